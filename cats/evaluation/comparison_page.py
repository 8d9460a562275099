"""What a comparison of two models looks like: the pairs that differ most as one picture, and a report as one page."""

from __future__ import annotations

import base64
import io
from importlib import resources
from typing import Any

from PIL import Image

from cats.core.images import read_image
from cats.evaluation.comparison import ComparedPair, Comparison
from cats.runtime.draw import BACKGROUND
from cats.runtime.matcher import Matcher
from cats.runtime.sheet import Ranked, draw_ranking

_POINTS = 8  # of a picture


def draw_difference(pair: ComparedPair, names: tuple[str, str], models: tuple[Matcher, Matcher]) -> Image.Image:
    """Photo a with the points whose matches differ most, and b twice, with where each model puts them.

    Raises:
        InputError: a photo can no longer be read.
    """
    limit = min(matcher.max_pixels for matcher in models)
    a, b = (read_image(photo, max_pixels=limit) for photo in (pair.a, pair.b))
    points = pair.farthest_points(_POINTS)
    sides = []
    for name, matcher in zip(names, models, strict=True):
        match = matcher.match(a, b)
        sides.append(Ranked(b, f"{pair.b.name}   {name}", match.transfer(points), match.shown_at(points)))
    return draw_ranking(a, pair.a.name, points, sides)


def stack_pictures(pictures: list[Image.Image]) -> Image.Image:
    """Pictures below one another."""
    canvas = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), BACKGROUND)
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas


def comparison_page(comparison: Comparison, worst: list[tuple[ComparedPair, Image.Image]], folder: str) -> str:
    """The report as HTML that holds everything.

    Args:
        worst: pairs with their pictures of :func:`draw_difference`.
        folder: where the photos are from.
    """
    import jinja2  # here, because most comparisons are tables

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = resources.files("cats.evaluation").joinpath("templates/comparison.html.j2").read_text("utf-8")
    shown = [(pair, _data_url(picture)) for pair, picture in worst]
    values: dict[str, Any] = {"names": comparison.names, "found": comparison.to_dict(), "folder": folder}
    return environment.from_string(page).render(worst=shown, **values)


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
