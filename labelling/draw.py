"""A labelled photo as a picture: points and bones coloured by probability, box and outlines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cats.core.geometry import Floats
from cats.labelling.annotations import Annotation
from cats.runtime.draw import confidence_colours, draw_points

LONGER_SIDE = 640
_FRAME = (38, 132, 205)


def draw_annotation(
    photo: Image.Image, annotation: Annotation, skeleton: Sequence[tuple[int, int]] = (), side: int = LONGER_SIDE
) -> Image.Image:
    """A photo with its labels.

    Args:
        photo: upright RGB.
        annotation: points that are not labelled are hollow; without probabilities all are drawn as certain.
        skeleton: bones, as pairs of indices into the points.
        side: longer side of the picture in pixels.
    """
    scale = side / max(photo.size)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    canvas = photo.resize(size, Image.Resampling.LANCZOS).convert("RGB")
    pen = ImageDraw.Draw(canvas)
    if annotation.box is not None:
        x, y, width, height = annotation.box
        corners = _scaled(np.array([[x, y], [x + width, y + height]]), scale)
        pen.rectangle([tuple(corner) for corner in corners.tolist()], outline=_FRAME, width=2)
    for polygon in annotation.polygons:
        pen.line([tuple(p) for p in _scaled(np.concatenate([polygon, polygon[:1]]), scale).tolist()], _FRAME, 2)
    places = _scaled(annotation.points, scale)
    sure = np.ones(len(places)) if annotation.probability is None else annotation.probability
    drawn: NDArray[np.bool_] = np.all(np.isfinite(places), axis=1)
    for a, b in skeleton:
        if drawn[a] and drawn[b]:
            colour = tuple(int(value) for value in confidence_colours([min(sure[a], sure[b])])[0])
            pen.line([tuple(places[a].tolist()), tuple(places[b].tolist())], colour, 3)
    draw_points(canvas, places[drawn], sure[drawn], ~annotation.labelled[drawn])
    return canvas


def _scaled(points: Floats, scale: float) -> Floats:
    return (points + 0.5) * scale - 0.5
