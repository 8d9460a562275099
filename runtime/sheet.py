"""Pictures of several panels: everything about one warp, and the best photos of a gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from cats.core.errors import InputError
from cats.core.geometry import Floats, Size
from cats.core.images import read_image
from cats.runtime.draw import BACKGROUND, INK, confidence_colours, draw_caption, draw_points, scale_name
from cats.runtime.result import Match

_MARGIN, _GAP, _CAPTION = 20, 14, 28
_BOX = (420, 360)  # largest panel of a sheet
_QUERY, _RESULT, _COLUMNS = (360, 420), (300, 230), 3
_LINES, _STEPS = 12, 97  # of the bent grid: lines each way, points of a line
_SQUARES = 8  # of the checkerboard, along the longer side


def draw_sheet(match: Match, *, names: tuple[str, str] = ("a", "b"), max_pixels: int | None = None) -> Image.Image:
    """Six panels about one match.

    a, b, b bent into the frame of a, where that is sure, how the grid of a lies in b, and squares of a and the bent b
    by turns, in which edges go on where the match is right.

    Args:
        names: captions of the photos.
        max_pixels: see :func:`cats.core.images.read_image`.

    Raises:
        InputError: the match was made without images, or they can no longer be read.
    """
    if match.image_a is None or match.image_b is None:
        raise InputError("this match was made without images: there is nothing to draw")
    limit = {} if max_pixels is None else {"max_pixels": max_pixels}
    a, b = (read_image(image, **limit) for image in (match.image_a, match.image_b))
    size_a, size_b = _fit(a.size, _BOX), _fit(b.size, _BOX)
    small_a, small_b = _small(a, size_a), _small(b, size_b)
    bent = _small(match.warp(**limit), size_a)
    panels = [
        (small_a, f"a   {names[0]}"),
        (small_b, f"b   {names[1]}"),
        (bent, "b bent into the frame of a"),
        (_confidence(match, small_a), f"{scale_name(match)}: red 0, yellow 0.5, turquoise 1"),
        (_bent_grid(match, small_b), "the grid of a, in b"),
        (_checkerboard(small_a, bent), "a and the bent b by turns"),
    ]
    return _tile(panels, columns=3, box=_BOX)


@dataclass(frozen=True)
class Ranked:
    """One photo of a ranking: its picture, caption, and the query's points in it with their confidences."""

    image: Image.Image
    caption: str
    points: Floats
    confidence: Floats


def draw_ranking(query: Image.Image, name: str, points: Floats, ranked: Sequence[Ranked]) -> Image.Image:
    """The query at the left with numbered points, the ranked photos beside it with the places of the same points.

    Args:
        query: upright RGB image.
        points: (N, 2) in its pixels.
        ranked: best first.
    """
    rows = -(-len(ranked) // _COLUMNS)
    columns = min(_COLUMNS, len(ranked))
    size = _fit(query.size, _QUERY)
    left = 2 * _MARGIN + size[0]
    width = left + columns * (_RESULT[0] + _GAP) - _GAP + _MARGIN
    heights = [
        max(_fit(item.image.size, _RESULT)[1] for item in ranked[row * _COLUMNS : (row + 1) * _COLUMNS])
        for row in range(rows)
    ]
    height = max(_CAPTION + size[1], sum(heights) + rows * (_CAPTION + _GAP) - _GAP) + 2 * _MARGIN
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    _paste(canvas, query, name, (_MARGIN, _MARGIN), _QUERY, points, None)
    top = _MARGIN
    for row in range(rows):
        for column, item in enumerate(ranked[row * _COLUMNS : (row + 1) * _COLUMNS]):
            corner = (left + column * (_RESULT[0] + _GAP), top)
            _paste(canvas, item.image, item.caption, corner, _RESULT, item.points, item.confidence)
        top += heights[row] + _CAPTION + _GAP
    return canvas


def _paste(
    canvas: Image.Image,
    image: Image.Image,
    caption: str,
    corner: tuple[int, int],
    box: Size,
    points: Floats,
    confidence: Floats | None,
) -> None:
    """A captioned panel with numbered points; without confidences they are grey."""
    size = _fit(image.size, box)
    left, top = corner[0], corner[1] + _CAPTION
    canvas.paste(_small(image, size), (left, top))
    draw_caption(canvas, caption, (left, top - 9), max(size[0], box[0] - _GAP))
    inside = np.clip(points, -0.5, np.asarray(image.size) - 0.5)
    places = (inside + 0.5) * np.asarray(size) / np.asarray(image.size) - 0.5 + (left, top)
    draw_points(canvas, places, confidence, (inside != points).any(axis=1))


def _tile(panels: Sequence[tuple[Image.Image, str]], columns: int, box: Size) -> Image.Image:
    rows = [panels[first : first + columns] for first in range(0, len(panels), columns)]
    widths = [max(row[column][0].width for row in rows if column < len(row)) for column in range(columns)]
    heights = [max(image.height for image, _ in row) for row in rows]
    size = (
        sum(widths) + (columns - 1) * _GAP + 2 * _MARGIN,
        sum(heights) + len(rows) * (_CAPTION + _GAP) + 2 * _MARGIN,
    )
    canvas = Image.new("RGB", size, BACKGROUND)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        left = _MARGIN
        for (image, caption), width in zip(row, widths, strict=False):
            draw_caption(canvas, caption, (left, top + _CAPTION - 9), width)
            canvas.paste(image, (left, top + _CAPTION))
            left += width + _GAP
        top += height + _CAPTION + _GAP
    return canvas


def _fit(size: Size, box: Size) -> Size:
    scale = min(box[0] / size[0], box[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _small(image: Image.Image, size: Size) -> Image.Image:
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)


def _confidence(match: Match, a: Image.Image) -> Image.Image:
    """Image a in grey under the colours of the confidence."""
    shown = match.calibrated_confidence if match.is_calibrated else match.confidence
    colours = confidence_colours(shown.reshape(-1)).reshape(*shown.shape, 3)
    layer = Image.fromarray(colours).resize(a.size, Image.Resampling.BILINEAR)
    return Image.blend(a.convert("L").convert("RGB"), layer, 0.6)


def _bent_grid(match: Match, b: Image.Image) -> Image.Image:
    """A regular grid over a, drawn where the match says that its lines lie in b."""
    canvas = Image.blend(b, Image.new("RGB", b.size, "white"), 0.45)
    pen = ImageDraw.Draw(canvas)
    size_a, scale = np.asarray(match.size_a, np.float64), np.asarray(b.size) / np.asarray(match.size_b)
    along = np.linspace(-0.5, 0.5, _STEPS)
    for axis in (0, 1):
        for at in np.linspace(-0.5, 0.5, _LINES + 1):
            line = np.empty((_STEPS, 2))
            line[:, axis], line[:, 1 - axis] = at, along
            places = (match.transfer((line + 0.5) * size_a - 0.5) + 0.5) * scale - 0.5
            pen.line([tuple(place) for place in places], fill=(*INK, 255), width=1 if abs(at) < 0.5 else 2)
    return canvas


def _checkerboard(a: Image.Image, bent: Image.Image) -> Image.Image:
    square = max(a.size) / _SQUARES
    x, y = ((np.arange(side) / square).astype(int) for side in a.size)
    mask = ((x[None] + y[:, None]) % 2 * 255).astype(np.uint8)
    return Image.composite(bent, a, Image.fromarray(mask))
