"""Pictures of matches: geometry, colours and layout; how they look was judged by eye."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cats.core.errors import InputError
from cats.runtime import Match
from cats.runtime.draw import confidence_colours, draw_matches
from cats.runtime.fonts import fit_line
from cats.runtime.overlay import overlay

GREY = (128, 128, 128)


def panels(picture: Image.Image) -> np.ndarray:
    """Columns and rows that are photo: the boxes of grey on the white ground, as (left, top, right, bottom)."""
    array = np.asarray(picture, np.int32)
    grey = (array == GREY).all(axis=2)
    rows = np.flatnonzero(grey.mean(axis=1) > 0.3)
    columns = grey[rows[0] : rows[-1]].mean(axis=0) > 0.5
    edges = np.flatnonzero(np.diff(np.concatenate([[0], columns.astype(int), [0]])))
    return np.array([(left, rows[0], right, rows[-1] + 1) for left, right in edges.reshape(-1, 2)])


def draw(size_a: tuple[int, int], size_b: tuple[int, int], points_a: list, points_b: list, sure: list) -> Image.Image:
    images = [Image.new("RGB", size, GREY) for size in (size_a, size_b)]
    return draw_matches(*images, points_a, points_b, sure, names=("left.jpg", "right.jpg"), subtitle="model")


def test_points_stand_where_they_belong() -> None:
    picture = draw((400, 300), (200, 400), [[300, 75]], [[50, 300]], [1.0])
    (la, ta, ra, ba), (lb, tb, rb, bb) = panels(picture)
    assert (ba - ta) == (bb - tb)
    assert abs((ra - la) / (ba - ta) - 400 / 300) < 0.01
    assert abs((rb - lb) / (bb - tb) - 200 / 400) < 0.01
    teal = confidence_colours([1.0])[0].astype(int)
    for x, y in (
        (la + 300.5 / 400 * (ra - la), ta + 75.5 / 300 * (ba - ta)),
        (lb + 50.5 / 200 * (rb - lb), tb + 300.5 / 400 * (bb - tb)),
    ):
        assert np.abs(np.asarray(picture)[round(y), round(x)].astype(int) - teal).max() < 12


def test_colours_follow_confidence() -> None:
    ramp = confidence_colours(np.linspace(0, 1, 5)).astype(int)
    assert len({tuple(colour) for colour in ramp.tolist()}) == 5
    low, high = (draw((300, 300), (300, 300), [[150, 150]], [[150, 150]], [c]) for c in (0.05, 0.95))
    difference = np.abs(np.asarray(low, np.int32) - np.asarray(high, np.int32)).sum(axis=2)
    assert (difference > 60).sum() > 300
    np.testing.assert_array_equal(confidence_colours([-1, 2]), confidence_colours([0, 1]))


def test_the_surest_is_on_top() -> None:
    both = draw((300, 300), (300, 300), [[10, 150], [10, 150]], [[290, 150], [290, 150]], [1.0, 0.0])
    alone = draw((300, 300), (300, 300), [[10, 150]], [[290, 150]], [1.0])
    box = panels(alone)[0]
    y = (box[1] + box[3]) // 2
    row_both, row_alone = (np.asarray(p, np.int32)[y - 3 : y + 3, box[2] - 60] for p in (both, alone))
    assert np.abs(row_both - row_alone).max() < 60


@pytest.mark.parametrize(
    ("size_a", "size_b"),
    [((16, 16), (16, 20)), ((4000, 300), (3000, 500)), ((100, 3000), (4000, 3000)), ((9000, 16), (16, 16))],
)
def test_any_shape_gives_a_picture_of_sane_size(size_a: tuple[int, int], size_b: tuple[int, int]) -> None:
    picture = draw(size_a, size_b, [[0, 0]], [[size_b[0] - 1, 0]], [0.5])
    assert picture.mode == "RGB"
    assert min(picture.size) >= 80
    assert max(picture.size) <= 1800


def test_two_panoramas_stand_on_top_of_each_other() -> None:
    picture = draw((1600, 300), (1600, 400), [[0, 0]], [[0, 0]], [0.5])
    array = np.asarray(picture)
    column = (array[:, picture.width // 2] == GREY).all(axis=1)
    assert np.flatnonzero(np.diff(column.astype(int))).size == 4


def test_points_outside_b_are_clamped_and_none_is_fine() -> None:
    draw((300, 300), (300, 300), [[10, 10]], [[900, -50]], [0.5])
    empty = draw((300, 300), (300, 300), [], [], [])
    assert len(panels(empty)) == 2


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(InputError, match="1 points of a, 2 of b and 1 confidences"):
        draw((300, 300), (300, 300), [[1, 1]], [[1, 1], [2, 2]], [0.5])


def test_overlay_shows_b_where_it_is_sure() -> None:
    confidence = np.zeros((16, 16), np.float32)
    confidence[:, 8:] = 1
    match = Match(np.zeros((2, 16, 16), np.float32), confidence, (160, 160), (160, 160))
    a, b = Image.new("RGB", (160, 160), (200, 0, 0)), Image.new("RGB", (160, 160), (0, 0, 200))
    result = np.asarray(overlay(match, a, b, strength=0.5)).astype(int)
    assert result[80, 10].tolist() == [200, 0, 0]
    assert np.abs(result[80, 150] - (100, 0, 100)).max() <= 1
    with pytest.raises(InputError, match="size of image a"):
        overlay(match, a, b.resize((10, 10)))


def captions(names: tuple[str, str], subtitle: str = "x") -> np.ndarray:
    point = [[20.0, 20.0]]
    images = [Image.new("RGB", (400, 300), GREY)] * 2
    return np.asarray(draw_matches(*images, point, point, [1.0], names=names, subtitle=subtitle))


@pytest.mark.parametrize(
    ("one", "other"), [("cup.jpg", "hat.jpg"), ("кот.jpg", "дом.jpg"), ("γάτα.jpg", "σπίτι.jpg"), ("猫.jpg", "犬.jpg")]
)
def test_names_that_differ_look_different_or_are_left_out(one: str, other: str) -> None:
    drawn = captions((one, "b"))
    if all(fit_line(name, 15, 400) for name in (one, other)):
        assert not np.array_equal(drawn, captions((other, "b")))
    else:
        np.testing.assert_array_equal(drawn, captions(("a", "b")))


def test_a_name_that_no_font_writes_is_left_out() -> None:
    unknown = "\U000f1234\U0010abcd"  # private use
    assert fit_line(unknown, 15, 400) is None
    np.testing.assert_array_equal(captions((unknown, "b")), captions(("a", "b")))
    np.testing.assert_array_equal(captions(("a", "b"), unknown), captions(("a", "b"), ""))


def test_control_characters_are_written_out_and_long_names_cut() -> None:
    line = fit_line("\x1b[31mred\n.jpg", 15, 400)
    assert line is not None
    assert "".join(text for text, _ in line.parts) == r"\x1b[31mred\n.jpg"
    cut = fit_line("long name " * 20, 15, 200)
    assert cut is not None
    assert cut.width <= 200
    assert cut.parts[-1][0].endswith("…")
