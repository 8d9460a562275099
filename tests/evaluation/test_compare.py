"""``cats compare``: figures of models whose matches are known, the points it shows, its files and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import Command, runner
from PIL import Image
from tiny_onnx import crops, save_model, tiny_metadata, tiny_model

pytest.importorskip("onnxruntime")

from cats.assets import asset
from cats.core.errors import InputError
from cats.core.photos import pair_photos
from cats.evaluation.compare_cli import main
from cats.evaluation.comparison import compare_models
from cats.runtime import Matcher

SHIFT = 0.5  # cells, in x


def shifted_model():
    """The tiny matcher with every match half a cell further right."""
    model = tiny_model()
    constant = next(item for item in model.graph.initializer if item.name == "cells")
    # The flow is the mean place minus "cells": a constant of its own for the minus.
    other = model.graph.initializer.add()
    other.CopyFrom(constant)
    other.name = "cells_of_a"
    values = np.frombuffer(constant.raw_data, np.float32).reshape(1, 2, -1).copy()
    values[:, 0] -= SHIFT
    other.raw_data = values.tobytes()
    minus = next(node for node in model.graph.node if node.output[0] == "delta")
    minus.input[1] = "cells_of_a"
    return model


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    return (
        save_model(tmp_path / "one.onnx", tiny_model(), tiny_metadata()),
        save_model(tmp_path / "other.onnx", shifted_model(), tiny_metadata()),
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three crops of the astronaut, two in a folder of their own."""
    texture = np.asarray(Image.open(asset("astronaut.jpg")))
    a, b, _ = crops(texture)
    folder = tmp_path / "photos"
    (folder / "two").mkdir(parents=True)
    for name, pixels in (("two/a.png", a), ("two/b.png", b), ("c.png", texture)):
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return runner(main, "cats compare", monkeypatch, capsys)


def test_figures_of_a_known_difference(models, photos):
    pair = (photos / "two/a.png", photos / "two/b.png")
    with Matcher(models[0]) as one, Matcher(models[1]) as other:
        found = compare_models((one, other), [pair]).to_dict()
        same = compare_models((one, one), [pair]).to_dict()
        match = one.match(*pair, forward_backward=True)
    difference = found["difference"]
    assert [difference[name] for name in ("median_px", "p99_px", "max_px")] == pytest.approx([8.0] * 3, abs=1e-3)
    assert difference["moved"] == 1
    assert same["difference"] == {"median_px": 0, "p99_px": 0, "max_px": 0, "moved": 0}
    one_back, other_back = (model["way_back_px"] for model in found["models"])
    assert other_back > one_back  # a shift both ways adds up
    assert found["models"][0]["confidence"] == pytest.approx(float(match.confidence.mean()), abs=1e-4)
    assert found["models"][1]["name"] == "other.onnx"
    assert found["points"] == 256


def test_shown_points_lie_apart_in_a(models, photos):
    with Matcher(models[0]) as one, Matcher(models[1]) as other:
        (pair,) = compare_models((one, other), [(photos / "two/a.png", photos / "two/b.png")]).pairs
    points = pair.farthest_points(8)
    assert points.shape == (8, 2)
    assert (points >= 0).all()
    assert (points < pair.size_a).all()
    cells = points / np.asarray(pair.size_a) * 16
    distances = np.linalg.norm(cells[:, None] - cells[None], axis=2) + 100 * np.eye(8)
    assert distances.min() > 2


def test_grids_may_differ(models, photos, tmp_path):
    fine = tiny_metadata(grid=(32, 32))
    fine = save_model(
        tmp_path / "fine.onnx",
        tiny_model(grid=32),
        tiny_metadata(grid=(32, 32), preprocessing=type(fine.preprocessing)(size=(512, 512))),
    )
    with Matcher(models[0]) as one, Matcher(fine) as other:
        found = compare_models((one, other), [(photos / "two/a.png", photos / "two/b.png")])
    assert found.to_dict()["points"] == 32 * 32


def test_command_writes_picture_and_page(models, photos, run, tmp_path):
    picture, page = tmp_path / "worst.png", tmp_path / "report.html"
    done = run(*models, "--images", photos, "-o", picture, "--html", page, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [Path(found["pairs"][0][side]).name for side in "ab"] == ["a.png", "b.png"]
    text = page.read_text("utf-8")
    assert "one.onnx against other.onnx" in text
    assert "8.00 px" in text
    assert text.count("<img") == 1
    assert 'src="http' not in text
    assert "href" not in text
    assert Image.open(picture).width > 600
    assert "exists already" in run(*models, "--images", photos, "--html", page).error


def test_table_of_the_command(models, photos, run):
    done = run(*models, "--images", photos)
    assert done.code == 0, done.err
    assert "8.00" in done.out
    assert "other.onnx" in done.out
    assert "a.png b.png" in done.out


def test_refusals(models, photos, run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds 0 photos" in run(*models, "--images", tmp_path / "empty").error
    assert "photos of" in run(*models, "--images", photos, "-o", photos / "worst.png").error
    with Matcher(models[0]) as one, pytest.raises(InputError, match="no pair"):
        compare_models((one, one), [])


def test_pairs_stay_in_their_folder_and_spread(photos, tmp_path):
    assert [[p.name for p in pair] for pair in pair_photos(photos, 9)] == [["a.png", "b.png"]]
    for number in range(10):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    names = [(a.stem, b.stem) for a, b in pair_photos(tmp_path, 3) if a.parent == tmp_path]
    assert len(pair_photos(tmp_path, 3)) == 3
    assert names[0] == ("0", "1")
    assert len(pair_photos(tmp_path, 1)) == 1
