"""The picture of a match: both photos, lines between matching points coloured by confidence, and a legend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from cats.core.errors import InputError
from cats.core.geometry import Floats, Size, as_points
from cats.core.images import read_image
from cats.runtime.fonts import default_font, fit_line
from cats.runtime.result import Match
from cats.runtime.spread import spread_points

_MARGIN = 20
_GAP = 12
_CAPTION = 26
_LEGEND = 44
# Panels are scaled so that their common side lies between the first two, and the other one is at most the third.
_BESIDE = (420, 760, 800)
_STACKED = (840, 1600, 760)
_NUMBERED = 30  # more points than this are dots without a number
_SAMPLES = 3  # lines are drawn this much larger and averaged
_WIDE = 2.0  # pairs of pictures wider than this stand on top of each other

INK, FAINT = (40, 44, 52), (120, 126, 136)
BACKGROUND = (255, 255, 255)
# Low, middle and high confidence; told apart also without seeing red or green, by lightness.
_RAMP = np.array([[196, 38, 78], [246, 178, 60], [38, 205, 190]], np.float64)


@dataclass(frozen=True)
class _Panel:
    """Where one photo stands in the picture: its corner and size there, and its size in its own pixels."""

    left: int
    top: int
    size: Size
    original: Size

    def place(self, points: Floats) -> Floats:
        """Pixels of the photo to pixels of the picture."""
        scale = np.asarray(self.size, np.float64) / np.asarray(self.original)
        return (points + 0.5) * scale - 0.5 + (self.left, self.top)


def draw_matches(
    a: Image.Image,
    b: Image.Image,
    points_a: ArrayLike,
    points_b: ArrayLike,
    confidence: ArrayLike,
    *,
    names: tuple[str, str] = ("a", "b"),
    subtitle: str = "",
    scale: str = "confidence",
) -> Image.Image:
    """Draw a match.

    Args:
        a, b: upright RGB images of :func:`cats.core.images.read_image`, of any size.
        points_a: (N, 2) in pixels of a.
        points_b: (N, 2) in pixels of b; those outside b are clamped to its border and shown hollow.
        confidence: (N,) in [0, 1]; the surest are drawn on top. Up to 30 points are numbered from 1, in their order.
        names: captions of the photos.
        subtitle: a line of text beside the legend.
        scale: what the colours are, see :func:`scale_name`.

    Returns:
        RGB image of at most about 1600 pixels a side.

    Raises:
        InputError: the three lists differ in length.
    """
    start, end = as_points(points_a), as_points(points_b)
    sure = np.clip(np.asarray(confidence, np.float64).reshape(-1), 0, 1)
    if not len(start) == len(end) == len(sure):
        raise InputError(f"{len(start)} points of a, {len(end)} of b and {len(sure)} confidences: give as many of each")
    panels, size = _layout(a.size, b.size)
    canvas = Image.new("RGB", size, BACKGROUND)
    for image, panel in zip((a, b), panels, strict=True):
        # Draft size first: reducing a large photo by whole factors costs a fraction of resampling it at once.
        canvas.paste(image.resize(panel.size, Image.Resampling.LANCZOS, reducing_gap=3), (panel.left, panel.top))
    inside = np.clip(end, -0.5, np.asarray(b.size) - 0.5)
    ends = (panels[0].place(start), panels[1].place(inside))
    layer = _draw_lines(size, *ends, sure, (inside != end).any(axis=1))
    canvas.paste(layer, mask=layer.getchannel("A"))
    if len(start) <= _NUMBERED:
        _draw_numbers(canvas, ends)
    _draw_captions(canvas, panels, names)
    _draw_legend(canvas, len(start), subtitle, scale)
    return canvas


def draw_match(match: Match, *, count: int = 10) -> Image.Image:
    """The picture of a match by itself: ``count`` sure points on the object, see :func:`spread_points`.

    Raises:
        InputError: the match was made without images, or they can no longer be read.
    """
    if match.image_a is None or match.image_b is None:
        raise InputError("this match was made without images: there is nothing to draw")
    a, b = read_image(match.image_a), read_image(match.image_b)
    points = spread_points(match, a, count)
    return draw_matches(a, b, points, match.transfer(points), match.shown_at(points), scale=scale_name(match))


def scale_name(match: Match) -> str:
    """What :meth:`cats.runtime.Match.shown_at` gives."""
    return "probability" if match.is_calibrated else "confidence"


def confidence_colours(confidence: ArrayLike) -> NDArray[np.uint8]:
    """Colour of each confidence in [0, 1]: (N,) to uint8 (N, 3)."""
    at = np.clip(np.asarray(confidence, np.float64), 0, 1)
    stops = np.linspace(0, 1, len(_RAMP))
    return np.stack([np.interp(at, stops, _RAMP[:, channel]) for channel in range(3)], axis=-1).round().astype(np.uint8)


def _layout(size_a: Size, size_b: Size) -> tuple[tuple[_Panel, _Panel], Size]:
    """Panels of equal height side by side, or of equal width above each other for two wide pictures."""
    stacked = all(width > _WIDE * height for width, height in (size_a, size_b))
    shared = 0 if stacked else 1  # the axis along which both panels are equally long
    low, high, other = _STACKED if stacked else _BESIDE
    side = min(max(low, size_a[shared], size_b[shared]), high)
    longest = max(size[1 - shared] * side / size[shared] for size in (size_a, size_b))
    scales = [side * min(1.0, other / longest) / size[shared] for size in (size_a, size_b)]
    sizes = [
        (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        for size, scale in zip((size_a, size_b), scales, strict=True)
    ]
    (wa, ha), (wb, hb) = sizes
    top = _MARGIN + _CAPTION
    if stacked:
        second = (_MARGIN, top + ha + _GAP + _CAPTION)
        canvas = (max(wa, wb) + 2 * _MARGIN, second[1] + hb + _LEGEND + _MARGIN)
    else:
        second = (_MARGIN + wa + _GAP, top)
        canvas = (second[0] + wb + _MARGIN, top + max(ha, hb) + _LEGEND + _MARGIN)
    return (_Panel(_MARGIN, top, sizes[0], size_a), _Panel(*second, sizes[1], size_b)), canvas


def _draw_lines(size: Size, start: Floats, end: Floats, confidence: Floats, clamped: NDArray[np.bool_]) -> Image.Image:
    """A transparent layer with all lines and points, antialiased by averaging."""
    layer = Image.new("RGBA", (size[0] * _SAMPLES, size[1] * _SAMPLES), (0, 0, 0, 0))
    pen = ImageDraw.Draw(layer)
    crowd = np.clip(np.log10(max(len(start), 1)) - 1, 0, 2)  # 0 up to 10 points, 2 from 1000
    width = _SAMPLES * (2.2 - 0.7 * crowd)
    radius = _SAMPLES * (8.5 if len(start) <= _NUMBERED else 5.0 - 1.5 * crowd)
    halo = _SAMPLES * 0.8
    begin, finish = ((points + 0.5) * _SAMPLES for points in (start, end))
    colours = confidence_colours(confidence)
    order = np.argsort(confidence, kind="stable")
    for index in order:
        line = [tuple(begin[index]), tuple(finish[index])]
        opacity = 0.4 + 0.6 * confidence[index]  # what is not sure stays in the background
        pen.line(line, fill=(0, 0, 0, round(80 * opacity)), width=round(width + 2 * halo))
        pen.line(line, fill=(*colours[index].tolist(), round(235 * opacity)), width=max(1, round(width)))
    for index in order:
        for place, hollow in ((begin[index], False), (finish[index], bool(clamped[index]))):
            _draw_point(pen, place, radius, halo, colours[index].tolist(), hollow)
    return layer.reduce(_SAMPLES)


def _draw_point(
    pen: ImageDraw.ImageDraw, place: Any, radius: float, halo: float, colour: list[int], hollow: bool
) -> None:
    """A disc with a white and a dark rim; the inside of a hollow one is white."""
    _dot(pen, place, radius + 2 * halo, (0, 0, 0, 120))
    _dot(pen, place, radius + halo, (255, 255, 255, 255))
    _dot(pen, place, radius - halo / 2, (colour[0], colour[1], colour[2], 255))
    if hollow:
        _dot(pen, place, radius - 2.5 * halo, (255, 255, 255, 255))


def _draw_numbers(canvas: Image.Image, ends: tuple[Floats, ...]) -> None:
    pen = ImageDraw.Draw(canvas)
    for points in ends:
        for number, (x, y) in enumerate(points, start=1):
            pen.text((x, y), str(number), INK, font=default_font(11), anchor="mm")


def _dot(pen: ImageDraw.ImageDraw, place: Any, radius: float, fill: tuple[int, int, int, int]) -> None:
    x, y = place
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _draw_captions(canvas: Image.Image, panels: tuple[_Panel, _Panel], names: tuple[str, str]) -> None:
    """Letter, name and size above each photo."""
    pen = ImageDraw.Draw(canvas)
    for panel, letter, name in zip(panels, "ab", names, strict=True):
        width, x, baseline = panel.size[0], panel.left, panel.top - 8
        title = fit_line(name if name == letter else f"{letter}   {name}", 15, width)
        detail = fit_line(f"   {panel.original[0]} x {panel.original[1]}", 15, width)
        title.draw(pen, (x, baseline), INK)
        if title.width + detail.width <= width:
            detail.draw(pen, (x + title.width, baseline), FAINT)


def draw_caption(canvas: Image.Image, text: str, place: tuple[int, int], room: float) -> None:
    """One line of text whose baseline begins at ``place``, cut to ``room`` pixels."""
    fit_line(text, 13, room).draw(ImageDraw.Draw(canvas), place, INK)


def draw_points(canvas: Image.Image, places: Floats, confidence: Floats | None, hollow: NDArray[np.bool_]) -> None:
    """Numbered points at (N, 2) pixels of a picture, coloured by confidence, white without; hollow ones with a rim."""
    size = (canvas.width * _SAMPLES, canvas.height * _SAMPLES)
    layer = Image.new("RGBA", size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(layer)
    radius, halo = _SAMPLES * 8.5, _SAMPLES * 0.8
    colours = np.full((len(places), 3), 255) if confidence is None else confidence_colours(confidence)
    for place, colour, rim in zip((places + 0.5) * _SAMPLES, colours, hollow, strict=True):
        _draw_point(pen, place, radius, halo, colour.tolist(), bool(rim))
    small = layer.reduce(_SAMPLES)
    canvas.paste(small, mask=small.getchannel("A"))
    _draw_numbers(canvas, (places,))


def _draw_legend(canvas: Image.Image, count: int, subtitle: str, label: str) -> None:
    """A bar from 0 to 1 at the lower right, and what the picture shows at the lower left."""
    pen = ImageDraw.Draw(canvas)
    font = default_font(13)
    width = min(180, canvas.width // 3)
    right, top = canvas.width - _MARGIN, canvas.height - _MARGIN - 26
    bar = np.broadcast_to(confidence_colours(np.linspace(0, 1, width)), (10, width, 3))
    canvas.paste(Image.fromarray(np.ascontiguousarray(bar)), (right - width, top))
    for value, anchor in ((0.0, "la"), (0.5, "ma"), (1.0, "ra")):
        pen.text((right - width * (1 - value), top + 13), f"{value:g}", FAINT, font=font, anchor=anchor)
    pen.text((right - width - 10, top + 5), label, FAINT, font=font, anchor="rm")
    text = f"{count} match{'' if count == 1 else 'es'}"
    room = right - width - 20 - pen.textlength(label, font=font) - _MARGIN
    line = fit_line(f"{text}, {subtitle}" if subtitle else text, 13, room) or fit_line(text, 13, room)
    if line is not None and line.width <= room:
        line.draw(pen, (_MARGIN, top + 10), FAINT)
