"""The second look of a pair, and the windows that it is cut to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import runner
from PIL import Image

from cats.assets import asset
from cats.core.errors import InputError
from cats.runtime import Matcher
from cats.runtime.commands.run import main
from cats.runtime.windows import Window, box_corners, object_window

SIDE = 150  # of the head in b, which is 210 in a
FACE = np.array([[203.0, 101.0], [247.0, 103.0], [225.0, 128.0], [205.0, 152.0], [248.0, 150.0]])


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    return Matcher(asset("cats-tiny.encoder.onnx"), threads=1)


@pytest.fixture(scope="module")
def small_object() -> tuple[Image.Image, Image.Image]:
    """The astronaut's head, large in a and small in the corner of b: its left upper corner at (100, 100)."""
    photo = Image.open(asset("astronaut.jpg")).convert("RGB").crop((120, 20, 330, 230))
    canvas = Image.new("RGB", (512, 384), (90, 120, 90))
    canvas.paste(photo.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (100, 100))
    return Image.open(asset("astronaut.jpg")).convert("RGB"), canvas


def truth(points: np.ndarray) -> np.ndarray:
    return 100 + (points - (120, 20) + 0.5) * SIDE / 210 - 0.5


def test_a_window_has_room_on_all_sides_and_stays_in_the_photo() -> None:
    window = object_window([[100, 100], [200, 150]], (400, 300))
    assert window == Window(80, 80, 221, 171)
    assert object_window([[0, 0], [399, 299]], (400, 300)) == Window(0, 0, 400, 300)
    assert object_window([[399, 299], [np.nan, 5]], (400, 300)).size == (16, 16)
    flat = object_window([[100, 150], [300, 150]], (400, 300), margin=0.0)
    assert flat.size[1] >= 0.6 * (flat.size[0] - 2)  # not drawn out


def test_points_go_into_a_window_and_back() -> None:
    window = Window(10, 20, 110, 220)
    assert window.size == (100, 200)
    assert np.array_equal(window.to_photo(window.to_window(FACE)), FACE)


def test_a_window_around_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="at least one must be finite"):
        object_window([[np.nan, 1.0]], (100, 100))


@pytest.mark.parametrize("box", [[1, 2, 3], [5, 5, 5, 9], [0, 0, float("nan"), 4], "a,b,c,d"])
def test_a_region_that_is_no_box_is_refused(box: object) -> None:
    with pytest.raises(InputError, match="region_a"):
        box_corners(box, "region_a")  # type: ignore[arg-type]


def test_a_second_look_finds_a_small_object_better(
    matcher: Matcher, small_object: tuple[Image.Image, Image.Image]
) -> None:
    a, b = small_object
    once = matcher.match(a, b)
    twice = matcher.match(a, b, looks=2, region_a=[190, 85, 262, 165])
    errors = [np.linalg.norm(match.transfer(FACE) - truth(FACE), axis=1).mean() for match in (once, twice)]
    assert errors[1] < 0.7 * errors[0], errors
    assert twice.second_look is not None
    assert twice.second_look.window_b.size[0] < 200


def test_what_the_second_look_does_not_show_stays_as_it_was(
    matcher: Matcher, small_object: tuple[Image.Image, Image.Image]
) -> None:
    a, b = small_object
    once = matcher.match(a, b, forward_backward=True)
    twice = matcher.match(a, b, looks=2, region_a=[190, 85, 262, 165], forward_backward=True)
    outside = np.array([[480.0, 480.0], [20.0, 400.0]])
    assert np.allclose(once.transfer(outside), twice.transfer(outside))
    assert np.allclose(once.forward_backward_error(outside), twice.forward_backward_error(outside))
    assert np.allclose(once.confidence_at(outside), twice.confidence_at(outside))
    assert not np.allclose(once.forward_backward_error(FACE), twice.forward_backward_error(FACE))


def test_the_grid_holds_what_the_second_look_found(
    matcher: Matcher, small_object: tuple[Image.Image, Image.Image]
) -> None:
    a, b = small_object
    twice = matcher.match(a, b, looks=2, region_a=[150, 60, 300, 200])
    dense = twice.dense_flow()[128, 225] + (225, 128)
    assert np.linalg.norm(dense - twice.transfer([[225, 128]])[0]) < 8
    assert twice.warp().size == a.size


def test_without_a_region_the_confident_cells_are_looked_at(
    matcher: Matcher, small_object: tuple[Image.Image, Image.Image]
) -> None:
    twice = matcher.match(*small_object, looks=2)
    assert twice.second_look is not None
    assert twice.times["model"] > 0


def test_what_cannot_be_looked_at_again_is_refused(
    matcher: Matcher, small_object: tuple[Image.Image, Image.Image]
) -> None:
    a, b = small_object
    with pytest.raises(InputError, match="looks 3"):
        matcher.match(a, b, looks=3)
    with pytest.raises(InputError, match="region_a may be given"):
        matcher.match(a, b, region_a=[0, 0, 10, 10])
    with pytest.raises(InputError, match="reaches out of image a"):
        matcher.match(a, b, looks=2, region_a=[0, 0, 900, 10])
    with pytest.raises(InputError, match="a second look needs the images"):
        matcher.match(matcher.encode(a), b, looks=2)


def test_cats_run_looks_twice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    run = runner(main, "cats-run", monkeypatch, capsys)
    photos = [asset("astronaut.jpg"), asset("grace_hopper.jpg")]
    model, points = asset("cats-tiny.onnx"), asset("astronaut.json")
    documents = [
        json.loads(run(model, *photos, "--points", points, "--json", *extra).out)
        for extra in ((), ("--looks", "2"), ("--looks", "2", "--region", "190,90,262,165"))
    ]
    once, twice, region = (document["matches"] for document in documents)
    assert [entry["a"] for entry in once] == [entry["a"] for entry in twice]
    assert once != twice
    assert twice != region
    table = tmp_path / "pairs.csv"
    table.write_text(f"a,b,points\n{photos[0]},{photos[1]},{points}\n{photos[0]},missing.jpg,\n")
    done = run(model, "--pairs", table, "--json", "--looks", "2")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert rows[0]["matches"] == twice
    assert "missing.jpg" in rows[1]["error"]
    assert "--region" in run(model, *photos, "--region", "1,2,3,4").error
    assert "x_min,y_min,x_max,y_max" in run(model, *photos, "--looks", "2", "--region", "1,2").error
