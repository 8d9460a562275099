"""Matches in the types of other libraries, and images out of theirs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from readme import code_blocks
from tiny_onnx import crops

from cats.benchmarks.record import REPOSITORY
from cats.core.errors import BackendError, InputError
from cats.runtime import Match, Matcher, grid_points, read_image
from cats.runtime.document import matches_document, model_document


@pytest.fixture(scope="module")
def matcher(model_file: Path) -> Matcher:
    return Matcher(model_file, threads=1)


@pytest.fixture(scope="module")
def shifted(matcher: Matcher, texture: np.ndarray) -> tuple[Match, tuple[int, int]]:
    """A match whose confident points move by a known shift."""
    a, b, shift = crops(texture)
    return matcher.match(a, b), shift


def test_opencv_finds_the_shift(shifted: tuple[Match, tuple[int, int]]) -> None:
    cv2 = pytest.importorskip("cv2")
    match, shift = shifted
    a, b, found = match.to_opencv(grid_points(match.size_a, 16), min_confidence=0.5)
    assert 20 < len(found) < 256
    assert [(m.queryIdx, m.trainIdx) for m in found] == [(i, i) for i in range(len(found))]
    assert a[0].response == pytest.approx(1 - found[0].distance)
    assert a[0].size == pytest.approx((320 + 192) / 2 / 16)
    points = [np.array([k.pt for k in keypoints], np.float32) for keypoints in (a, b)]
    homography, _ = cv2.findHomography(*points, cv2.RANSAC, 3.0)
    np.testing.assert_allclose(homography[:2, 2], shift, atol=3)
    picture = cv2.drawMatches(np.zeros((192, 320, 3), np.uint8), a, np.zeros((192, 320, 3), np.uint8), b, found, None)
    assert picture.shape == (192, 640, 3)
    assert picture.any()


def test_supervision_draws_them(shifted: tuple[Match, tuple[int, int]]) -> None:
    supervision = pytest.importorskip("supervision")
    match, _ = shifted
    points = [[100.0, 80.0], [150.0, 90.0]]
    a, b = match.to_supervision(points)
    np.testing.assert_allclose(a.xy, [points])
    np.testing.assert_allclose(b.xy, match.transfer(points)[None], rtol=1e-6)
    scene = supervision.VertexAnnotator().annotate(np.zeros((192, 320, 3), np.uint8), a)
    assert scene[80, 100].any()


def test_kornia_finds_the_shift(shifted: tuple[Match, tuple[int, int]]) -> None:
    geometry = pytest.importorskip("kornia.geometry")
    match, shift = shifted
    found = match.to_kornia(grid_points(match.size_a, 16), min_confidence=0.5)
    keypoints = [found[f"keypoints{index}"][None] for index in (0, 1)]
    homography = geometry.find_homography_dlt_iterated(*keypoints, found["confidence"][None])
    np.testing.assert_allclose(homography[0, :2, 2], shift, atol=3)
    assert found["batch_indexes"].tolist() == [0] * len(found["confidence"])


def test_dictionary_is_the_document_of_the_command(matcher: Matcher, texture: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(texture).save(file)
    match = matcher.match(file, texture, forward_backward=True)
    model = model_document(matcher)
    assert model["file"] == str(matcher.path)
    expected = matches_document(match, grid_points(match.size_a, 10), a=file, b=None, model=model)
    assert json.loads(json.dumps(match.to_dict())) == expected
    assert len(expected["matches"]) == 100
    middle = float(np.median(match.confidence_at(grid_points(match.size_a, 10))))
    assert 0 < len(match.to_dict(min_confidence=middle)["matches"]) < 100
    assert match.to_dict([])["matches"] == []


@pytest.mark.parametrize(("module", "method"), [("cv2", "opencv"), ("supervision", "supervision"), ("torch", "kornia")])
def test_what_is_not_installed_is_named(
    shifted: tuple[Match, tuple[int, int]], module: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendError, match=r"pip install 'cats-toolkit\[interop\]'"):
        getattr(shifted[0], f"to_{method}")()


def test_tensors_are_images(matcher: Matcher, texture: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    last = torch.from_numpy(texture)
    first = last.permute(2, 0, 1)
    expected = matcher.match(texture, texture[:, ::-1])
    for a, b in ((last, last.flip(1)), (first, first.flip(2)), (first.contiguous(), texture[:, ::-1])):
        np.testing.assert_array_equal(matcher.match(a, b).flow, expected.flow)
    swapped = matcher.match(first.flip(0), last.flip(1).flip(2), order="bgr")
    np.testing.assert_array_equal(swapped.flow, expected.flow)
    grey = matcher.match(last[..., 0], first[:1])
    np.testing.assert_array_equal(grey.flow, matcher.match(texture[..., 0], texture[..., 0]).flow)


def test_ambiguous_images_are_refused_in_one_sentence(matcher: Matcher, texture: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    unit = texture.astype(np.float32) / 255
    tensor = torch.from_numpy(unit).permute(2, 0, 1)
    says = {
        r"array of dtype float32: .* spans 0\..*if white is 1, give \(image \* 255\)\.round\(\)\.astype": unit,
        r"tensor of dtype float32: .* give \(image \* 255\)\.round\(\)\.to\(torch\.uint8\)": tensor,
        "undo its normalisation": tensor * 4 - 2,
        "is a batch: give its images one by one": torch.from_numpy(texture)[None],
        r"an image tensor of torch\.bfloat16": tensor.bfloat16(),
        "of dtype int64: uint8": texture.astype(np.int64),
    }
    for text, image in says.items():
        with pytest.raises(InputError, match=text):
            matcher.match(image, texture)
    with pytest.raises(InputError, match="move it to the CPU"):
        read_image(torch.empty((3, 32, 32), dtype=torch.uint8, device="meta"))


def test_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cv2", "supervision", "kornia", "torch"):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in code_blocks(REPOSITORY / "docs/interop.md"):
        if block.language == "python":
            exec(block.text, names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keypoints.png", "match.json", "opencv.png"]
