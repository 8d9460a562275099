"""Pictures of matches: geometry, colours and layout; how they look was judged by eye."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cats.core.errors import InputError
from cats.runtime import Match
from cats.runtime.draw import INK, confidence_colours, draw_matches
from cats.runtime.fonts import fit_line
from cats.runtime.overlay import overlay
from cats.runtime.sheet import Ranked, draw_ranking, draw_sheet
from cats.runtime.spread import spread_points

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
        # above the number in the middle of the point
        assert np.abs(np.asarray(picture)[round(y) - 6, round(x)].astype(int) - teal).max() < 12


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
def test_names_that_differ_look_different(one: str, other: str) -> None:
    assert not np.array_equal(captions((one, "b")), captions((other, "b")))


def test_letters_that_no_font_has_are_written_out() -> None:
    unknown = "a\U000f1234\U0010abcd.jpg"  # private use
    assert "".join(text for text, _ in fit_line(unknown, 15, 400).parts) == r"a\U000f1234\U0010abcd.jpg"
    np.testing.assert_array_equal(captions((unknown, "b")), captions((r"a\U000f1234\U0010abcd.jpg", "b")))


def test_control_characters_are_written_out_and_long_names_cut() -> None:
    line = fit_line("\x1b[31mred\n.jpg", 15, 400)
    assert "".join(text for text, _ in line.parts) == r"\x1b[31mred\n.jpg"
    cut = fit_line("long name " * 20, 15, 200)
    assert cut.width <= 200
    assert cut.parts[-1][0].endswith("…")


def test_few_points_are_numbered_and_many_are_not() -> None:
    def dark(count: int) -> int:
        """Pixels of ink within the photos."""
        points = np.linspace(60, 240, count)[:, None].repeat(2, axis=1)
        picture = draw((300, 300), (300, 300), points, points, [0.9] * count)
        left, top, right, bottom = panels(draw((300, 300), (300, 300), [], [], []))[0]
        # a line has no pixel as dark
        return int((np.asarray(picture, np.int32)[top:bottom, left:right].sum(axis=2) < sum(INK) + 40).sum())

    assert dark(3) > 3
    assert dark(31) == 0


def scene(at: tuple[int, int], size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A colourful object of 110 x 90 pixels on a plain ground."""
    image = Image.new("RGB", size, (120, 170, 230))
    pixels = np.random.default_rng(5).integers(0, 256, (9, 11, 3), np.uint8).repeat(10, axis=0).repeat(10, axis=1)
    image.paste(Image.fromarray(pixels // 2 + np.uint8([90, 0, 0])), at)
    return image


def known_match(shift: tuple[float, float] = (1.0, 0.0), sure: float = 0.8) -> Match:
    """All cells move by ``shift`` cells, and back."""
    flow = np.broadcast_to(np.float32(shift)[:, None, None], (2, 16, 16)).copy()
    confidence = np.full((16, 16), sure, np.float32)
    image = scene((105, 75))
    return Match(flow, confidence, image.size, image.size, -flow, image_a=image, image_b=image)


def test_the_points_of_a_picture_are_sure_spread_and_on_the_object() -> None:
    match = known_match()
    points = spread_points(match, match.image_a, 8)
    assert len(points) == 8
    assert ((points > (100, 70)) & (points < (220, 170))).all()
    distance = np.linalg.norm((points[:, None] - points[None]) / (320, 240), axis=2) + np.eye(8)
    assert distance.min() >= 1.5 / 16
    np.testing.assert_array_equal(points, spread_points(match, match.image_a, 8))
    unsure = match.confidence.copy()
    unsure[:, :8] = 0.1
    assert (spread_points(replace(match, confidence=unsure), match.image_a, 8)[:, 0] > 160).all()
    lost = match.backward_flow.copy()  # what comes back elsewhere is left out
    lost[1, :9] += 4
    assert (spread_points(replace(match, backward_flow=lost), match.image_a, 8)[:, 1] > 9 * 15).all()
    assert spread_points(match, match.image_a, 8, min_confidence=0.9).shape == (0, 2)
    assert spread_points(match, match.image_a, 3).shape == (3, 2)


def test_a_plain_photo_has_points_too() -> None:
    plain = Image.new("RGB", (320, 240), (90, 90, 90))
    assert len(spread_points(replace(known_match(), image_a=plain), plain, 8)) >= 6


def test_the_sheet_shows_six_panels() -> None:
    match = known_match(shift=(0.0, 0.0))
    sheet = np.asarray(draw_sheet(match, names=("left.jpg", "right.jpg")), np.int32)
    height, width = sheet.shape[:2]
    assert 1280 < width < 1400
    assert 700 < height < 800
    panel = [sheet[48:363, 20:440], sheet[48:363, 454:874], sheet[48:363, 888:1308], sheet[405:720, 888:1308]]
    for other in panel[1:]:  # nothing moves: b, the bent b and the checkerboard are a
        assert np.abs(panel[0] - other).mean() < 3
    grid = sheet[405:720, 454:874]
    assert (np.abs(grid - INK).sum(axis=2) < 60).mean() > 0.03
    with pytest.raises(InputError, match="without images"):
        draw_sheet(replace(match, image_a=None))


def test_a_ranking_shows_the_query_and_all_photos() -> None:
    query, points = scene((105, 75)), np.array([[150.0, 100.0], [200.0, 140.0]])
    for count in (1, 3, 5):
        ranked = [Ranked(scene((40 * k, 75)), f"{k}", points + 5, np.array([0.2, 0.9])) for k in range(count)]
        picture = np.asarray(draw_ranking(query, "query.jpg", points, ranked))
        ground = (picture == (120, 170, 230)).all(axis=2)
        columns = np.flatnonzero(np.diff(np.concatenate([[0], ground.any(axis=0).astype(int), [0]])))
        assert len(columns) // 2 == 1 + min(count, 3)
    far = [Ranked(query, "x", np.array([[-500.0, 100.0], [10.0, 9000.0]]), np.array([0.2, 0.9]))]
    assert draw_ranking(query, "query.jpg", points, far).width < 800  # points outside are clamped to the border


def test_a_notebook_gets_a_picture() -> None:
    data = known_match()._repr_png_()
    assert data is not None
    assert Image.open(io.BytesIO(data)).width > 800
    assert replace(known_match(), image_b=None)._repr_png_() is None
