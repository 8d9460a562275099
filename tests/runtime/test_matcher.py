"""Matcher and Match: directions, sizes, batches, errors."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_onnx import crops

from cats.assets import asset
from cats.core.errors import BackendError, CatsError, InputError, ModelFileError
from cats.core.images import preprocess
from cats.runtime import Match, Matcher, grid_points

ROUNDING = 1e-3  # cells; sums are taken in another order when the batch differs


@pytest.fixture(scope="module")
def matcher(model_file: Path) -> Matcher:
    return Matcher(model_file, threads=1)


def inner(shift: tuple[int, int]) -> np.ndarray:
    """Points of crop a whose true place is well inside crop b."""
    points = grid_points((320, 192), 16)
    moved = points + shift
    return points[((moved > (20, 12)) & (moved < (300, 180))).all(axis=1)]


def test_known_translation_is_recovered_with_its_sign(matcher: Matcher, texture: np.ndarray) -> None:
    a, b, shift = crops(texture)
    match = matcher.match(a, b)
    points = inner(shift)
    assert len(points) > 100
    moved = match.transfer(points) - points
    assert np.abs(np.median(moved, axis=0) - shift).max() < 0.5
    assert (np.abs(moved - shift).max(axis=1) < 2).mean() > 0.95
    assert (match.confidence_at(points) > 0.5).mean() > 0.9


def test_forward_backward_error_tells_wrong_from_right(matcher: Matcher, texture: np.ndarray) -> None:
    a, b, shift = crops(texture)
    match = matcher.match(a, b, forward_backward=True)
    assert match.backward_flow is not None
    np.testing.assert_allclose(match.backward_flow, matcher.match(b, a).flow, atol=ROUNDING)
    error = match.forward_backward_error(inner(shift))
    assert np.median(error) < 1
    points = grid_points((320, 192), 16)
    lost = points[(points + shift < (-20, -12)).any(axis=1) | (points + shift > (340, 204)).any(axis=1)]
    assert np.median(match.forward_backward_error(lost)) > 20
    with pytest.raises(InputError, match="forward_backward=True"):
        matcher.match(a, b).forward_backward_error(points)


def test_batches_below_the_smallest_are_filled_up(model_file: Path, texture: np.ndarray) -> None:
    """As of an engine whose profile begins at 4."""
    a, b, _ = crops(texture)
    with Matcher(model_file, threads=1) as matcher:
        expected = matcher.match_batch([(a, b), (b, a)])
        run, sizes = matcher.backend.run, []
        matcher.backend.min_batch, matcher.backend.max_batch = 4, 5
        matcher.backend.run = lambda feeds: sizes.append(len(feeds["image_a"])) or run(feeds)  # type: ignore[method-assign]
        found = matcher.match_batch([(a, b), (b, a)] * 3)
    assert sizes == [5, 4]
    assert len(found) == 6
    for index, match in enumerate(found):
        np.testing.assert_allclose(match.flow, expected[index % 2].flow, atol=ROUNDING)


def test_dense_flow_at_any_size(matcher: Matcher, texture: np.ndarray) -> None:
    a, b, _ = crops(texture)
    match = matcher.match(a, b[:, :200])
    dense = match.dense_flow()
    assert dense.shape == (192, 320, 2)
    points = np.array([[0, 0], [319, 191], [100, 50], [7, 180]])
    expected = match.transfer(points) - points
    np.testing.assert_allclose(dense[points[:, 1], points[:, 0]], expected, atol=1e-3)
    half = match.dense_flow(size_a=(160, 96), size_b=(100, 96))
    assert half.shape == (96, 160, 2)
    np.testing.assert_allclose(half.mean(axis=(0, 1)), dense.mean(axis=(0, 1)) / 2, atol=0.3)
    with pytest.raises(InputError, match="at least 1"):
        match.dense_flow(size_a=(0, 5))


def test_warp_brings_b_into_the_frame_of_a(matcher: Matcher, texture: np.ndarray) -> None:
    a, b, shift = crops(texture)
    warped = np.asarray(matcher.match(a, b).warp(), np.int32)
    assert warped.shape == a.shape
    dx, dy = shift
    visible = (slice(0, 192 - dy - 12), slice(-dx + 20, 320))
    assert np.median(np.abs(warped[visible] - a[visible].astype(np.int32))) < 8
    assert np.abs(b[visible].astype(np.int32) - a[visible]).mean() > 20


def test_warp_in_strips_equals_one_piece(texture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    match = Match(
        flow=rng.normal(0, 2, (2, 16, 16)).astype(np.float32),
        confidence=np.ones((16, 16), np.float32),
        size_a=(101, 67),
        size_b=(640, 480),
        image_b=texture,
    )
    whole = np.asarray(match.warp())
    monkeypatch.setattr("cats.runtime.result._PIXELS_AT_ONCE", 300)
    np.testing.assert_array_equal(np.asarray(match.warp()), whole)
    # an independent sampler of the same positions
    y, x = np.mgrid[0:67, 0:101]
    places = match.transfer(np.stack([x.ravel(), y.ravel()], axis=1)).clip(0, (639, 479))
    left, top = np.floor(places).astype(int).clip(0, (638, 478)).T
    u, v = (places - np.stack([left, top], axis=1)).T[:, :, None]
    t = texture.astype(float)
    value = (t[top, left] * (1 - u) + t[top, left + 1] * u) * (1 - v) + (
        t[top + 1, left] * (1 - u) + t[top + 1, left + 1] * u
    ) * v
    assert np.abs(whole.reshape(-1, 3) - value).max() <= 0.51


def test_paths_images_and_arrays_give_the_same(matcher: Matcher, texture: np.ndarray, tmp_path: Path) -> None:
    a, b, _ = crops(texture)
    Image.fromarray(a).save(tmp_path / "a.png")
    Image.fromarray(b).save(tmp_path / "b.png")
    expected = matcher.match(a, b)
    for pair in (
        (tmp_path / "a.png", str(tmp_path / "b.png")),
        (Image.open(tmp_path / "a.png"), Image.fromarray(b)),
    ):
        np.testing.assert_array_equal(matcher.match(*pair).flow, expected.flow)
    assert expected.size_a == (320, 192)
    assert set(expected.times) == {"read", "preprocess", "model"}


def test_the_backend_sees_the_preprocessed_images(matcher: Matcher, texture: np.ndarray) -> None:
    a, b, _ = crops(texture)
    feeds = {
        "image_a": preprocess(a, matcher.metadata.preprocessing)[None],
        "image_b": preprocess(b, matcher.metadata.preprocessing)[None],
    }
    np.testing.assert_array_equal(matcher.backend.run(feeds)["flow"][0], matcher.match(a, b).flow)


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_batches_of_any_size(make_model: Callable[..., Path], texture: np.ndarray, batch: int | None) -> None:
    a, b, _ = crops(texture)
    pairs = [(a, b), (b, a), (a, a), (b, b)]
    with Matcher(make_model(batch=batch), threads=1) as matcher:
        single = [matcher.match(*pair, forward_backward=True) for pair in pairs]
        together = matcher.match_batch(pairs, forward_backward=True)
    for one, other in zip(single, together, strict=True):
        np.testing.assert_allclose(one.flow, other.flow, atol=ROUNDING)
        np.testing.assert_allclose(one.confidence, other.confidence, atol=ROUNDING)
        np.testing.assert_allclose(one.backward_flow, other.backward_flow, atol=ROUNDING)
    assert not np.allclose(single[0].flow, single[1].flow)


@pytest.mark.parametrize("streams", [1, 3])
def test_match_many_keeps_order_and_goes_on(
    matcher: Matcher, texture: np.ndarray, tmp_path: Path, streams: int
) -> None:
    a, b, _ = crops(texture)
    pairs = [(a, b), (tmp_path / "none.jpg", b), (b, a), (a, a), (a, b)]
    results = list(matcher.match_many(pairs, batch_size=2, streams=streams, return_errors=True))
    assert [isinstance(result, CatsError) for result in results] == [False, True, False, False, False]
    for result, pair in zip(results, pairs, strict=True):
        if isinstance(result, Match):
            np.testing.assert_allclose(result.flow, matcher.match(*pair).flow, atol=ROUNDING)
    with pytest.raises(InputError, match=r"none\.jpg"):
        list(matcher.match_many(pairs, streams=streams))
    assert list(matcher.match_many([], streams=streams)) == []


def test_streams_run_side_by_side(matcher: Matcher, texture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, _ = crops(texture)
    together = threading.Barrier(2, timeout=200)  # breaks unless two runs are under way at once
    run = matcher.backend.run
    monkeypatch.setattr(matcher.backend, "run", lambda feeds: (together.wait(), run(feeds))[1])
    assert len(list(matcher.match_many([(a, b)] * 4, streams=2))) == 4


@pytest.mark.parametrize("streams", [1, 2])
def test_match_many_reads_only_a_few_pairs_ahead(matcher: Matcher, texture: np.ndarray, streams: int) -> None:
    a, b, _ = crops(texture)
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield a, b

    stream = matcher.match_many(endless(), batch_size=2, workers=2, streams=streams)
    next(stream)
    stream.close()
    assert len(taken) <= (8 if streams == 1 else 12)


@pytest.mark.parametrize(
    ("points", "text"),
    [
        ([[10, 10], [320, 10], [5, -3]], r"point 1 at \(320, 10\) \(and 1 more\) lies outside image a.*320x192"),
        ([[-0.6, 0]], "point 0"),
        ([[1, 2, 3]], "shape"),
        ([[1, float("nan")]], "finite"),
        ([["x", "y"]], "numbers"),
    ],
)
def test_bad_points(matcher: Matcher, texture: np.ndarray, points: list, text: str) -> None:
    a, b, _ = crops(texture)
    match = matcher.match(a, b)
    for method in (match.transfer, match.confidence_at):
        with pytest.raises(InputError, match=text):
            method(points)
    assert match.transfer([]).shape == (0, 2)
    assert match.transfer([[-0.5, 191.5]]).shape == (1, 2)


def test_grid_points_are_cell_centres() -> None:
    points = grid_points((320, 192), 16)
    assert points.shape == (256, 2)
    np.testing.assert_allclose(points[0], [9.5, 5.5])
    np.testing.assert_allclose(points[1] - points[0], [20, 0])
    np.testing.assert_allclose(grid_points((100, 50), 1), [[49.5, 24.5]])
    with pytest.raises(InputError):
        grid_points((100, 50), 0)


def test_options_of_the_matcher(model_file: Path) -> None:
    with pytest.raises(InputError, match="unknown backend 'onnx'; known: onnxruntime"):
        Matcher(model_file, "onnx")
    with pytest.raises(InputError, match=r"no setting precision .*: openvino has, --backend openvino"):
        Matcher(model_file, precision="fp16")
    with pytest.raises(ModelFileError, match=r"tensorrt runs \.plan or \.engine files.*cats-build"):
        Matcher(model_file, "tensorrt")
    with pytest.raises(InputError, match="threads"):
        Matcher(model_file, threads=0)
    with pytest.raises(BackendError, match="no provider 'cuda-x'; it has cpu"):
        Matcher(model_file, provider="cuda-x")


def test_arrays_of_opencv_are_taken_in_their_order(matcher: Matcher, texture: np.ndarray) -> None:
    a, b, _ = crops(texture)
    expected = matcher.match(a, b)
    bgr = [np.ascontiguousarray(image[..., ::-1]) for image in (a, b)]
    match = matcher.match(*bgr, order="bgr")
    np.testing.assert_array_equal(match.flow, expected.flow)
    np.testing.assert_array_equal(np.asarray(match.warp()), np.asarray(expected.warp()))
    assert np.abs(matcher.match(*bgr).flow - expected.flow).max() > 0  # else the order would not be seen
    with_alpha = [np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]) for image in bgr]
    np.testing.assert_array_equal(next(matcher.match_many([with_alpha], order="bgr")).flow, expected.flow)
    with pytest.raises(InputError, match="unknown order 'brg' of channels: choose rgb, bgr"):
        matcher.match(a, b, order="brg")


def test_a_shipped_model_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Matcher("cats-tiny", threads=1) as matcher:
        assert matcher.path == asset("cats-tiny.onnx")
    for name in ("cats-tiny.int8", "cats-tiny.int8.onnx"):
        with Matcher(name, threads=1) as matcher:
            assert matcher.path == asset("cats-tiny.int8.onnx")
    for name in ("cats-huge", "cats-huge.onnx", "here/cats-tiny.onnx", "cats-tiny.int8.plan"):
        with pytest.raises(ModelFileError, match=rf"{name} does not exist"):
            Matcher(name)
    (tmp_path / "cats-tiny").write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"cats-tiny: a model file ends in"):
        Matcher("cats-tiny")


IMPORT_TEST = """
import sys, time
start = time.process_time()  # which other programs do not lengthen
import cats.runtime
elapsed = time.process_time() - start
heavy = {"torch", "timm", "onnx", "onnxruntime", "tensorrt", "openvino", "matplotlib", "typer", "jsonschema"}
print(elapsed, *sorted(heavy & set(sys.modules)))
"""


def test_importing_the_runtime_is_light() -> None:
    runs = [
        subprocess.run([sys.executable, "-c", IMPORT_TEST], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(3)
    ]
    assert all(len(run) == 1 for run in runs), runs
    assert min(float(run[0]) for run in runs) < 2


def test_matching_needs_no_torch(model_file: Path) -> None:
    script = (
        "import sys, numpy\n"
        "for name in ('torch', 'timm', 'onnx'): sys.modules[name] = None\n"
        "from cats.runtime import Matcher\n"
        "image = numpy.zeros((32, 40, 3), numpy.uint8)\n"
        "print(Matcher(sys.argv[1], threads=1).match(image, image).transfer([[3, 4]]).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(model_file)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(1, 2)"
