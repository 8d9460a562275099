"""Which few matches a picture shows: sure ones, on the object, spread over it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cats.core.geometry import Floats, grid_points
from cats.core.images import resize
from cats.runtime.result import Match

_SURE = 0.5  # share of the best cell's confidence from which a cell counts as sure
_RETURNS = 1.0  # cells that a -> b -> a may move a point
_OBJECT = (0.35, 0.25, 0.15, 0.0)  # likelihood from which a cell is not background, the less where that leaves too few
_WIDTH = 0.28  # of the place where an object is expected, as a standard deviation, in sides of the image
_APART = 1.5  # cells between points, at least
_FEWEST = 6  # points that a picture is to have
_SIDE, _LEVELS, _EDGE = 96, 8, 8  # of the small image in which colours are counted: side, levels a channel, ring


def spread_points(
    match: Match, image: Image.Image, count: int, *, min_confidence: float = 0.0, min_probability: float = 0.0
) -> Floats:
    """The surest places of the object in image a, spread over it: (n, 2) in pixels of a, n at most ``count``.

    Candidates are cells of the model's grid whose confidence is high among those of this pair, that a -> b -> a brings
    back to their place where the match knows the way back, and that look like the object, not like background.

    Args:
        image: a, upright RGB.
        min_confidence: of every point, in [0, 1].
        min_probability: the same of the probability of being right; above 0 only with a model that gives one.

    Raises:
        InputError: the model gives no probabilities, and some are asked for.
    """
    points = grid_points(match.size_a, match.grid)
    sure = match.confidence.reshape(-1).astype(np.float64)
    places = match.transfer(points)
    keep = (sure >= min_confidence) & (sure >= _SURE * sure.max())
    if min_probability > 0:
        keep &= match.calibrated_confidence.reshape(-1) >= min_probability
    keep &= ((places >= -0.5) & (places <= np.asarray(match.size_b) - 0.5)).all(axis=1)
    if match.backward_flow is not None:
        cell = np.asarray(match.size_a) / match.grid
        keep &= match.forward_backward_error(points) <= _RETURNS * np.linalg.norm(cell) / np.sqrt(2)
    likely = object_likelihood(image, match.grid).reshape(-1)
    weight = sure * likely**2
    chosen = np.zeros(0, np.intp)
    for least in _OBJECT:
        candidates = np.flatnonzero(keep & (likely >= least))
        spread = spread_out(
            points[candidates] / np.asarray(match.size_a), weight[candidates], count, _APART / match.grid
        )
        chosen = candidates[spread]
        if len(chosen) >= min(_FEWEST, count):
            break
    return points[np.sort(chosen)]


def object_likelihood(image: Image.Image, grid: int) -> NDArray[np.float64]:
    """How likely each cell shows the object, by its colours and its place: (G, G) in [0, 1].

    What a photo is of stands in the middle and seldom touches the left, right and upper edge: colours that are common
    there and rare elsewhere are those of the background.
    """
    small = resize(image, (_SIDE, _SIDE)).astype(np.intp) * _LEVELS // 256
    colours = (small[..., 0] * _LEVELS + small[..., 1]) * _LEVELS + small[..., 2]
    ring = np.zeros((_SIDE, _SIDE), bool)
    ring[:_EDGE] = ring[:, :_EDGE] = ring[:, -_EDGE:] = True
    middle = np.zeros_like(ring)
    middle[_SIDE // 4 :, _SIDE // 5 : -_SIDE // 5] = True
    edge, inner = (_histogram(colours[part]) for part in (ring, middle))
    likely = (inner / (inner + edge))[colours]
    centre = (np.arange(grid) + 0.5) / grid - 0.5
    place = np.exp(-(centre[:, None] ** 2 + centre[None] ** 2) / (2 * _WIDTH**2))
    return place * np.asarray(Image.fromarray(likely.astype(np.float32)).resize((grid, grid), Image.Resampling.BOX))


def _histogram(colours: NDArray[np.intp]) -> NDArray[np.float64]:
    """Share of each colour, a little of it spread to its neighbours; never 0."""
    counts = np.bincount(colours, minlength=_LEVELS**3).reshape((_LEVELS,) * 3).astype(np.float64)
    for axis in range(3):
        padded = np.pad(counts, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        counts = 0.5 * counts + 0.25 * (padded.take(range(_LEVELS), axis) + padded.take(range(2, _LEVELS + 2), axis))
    flat = counts.reshape(-1) + 0.5
    shares: NDArray[np.float64] = flat / flat.sum()
    return shares


def spread_out(places: Floats, weight: Floats, count: int, apart: float) -> NDArray[np.intp]:
    """Indices of at most ``count`` of the places (N, 2): the heaviest first, then each time the one whose weight times
    distance to the chosen ones is largest, while there is one at least ``apart`` from them."""
    if not len(places) or count < 1:
        return np.zeros(0, np.intp)
    chosen = [int(np.argmax(weight))]
    distance = np.linalg.norm(places - places[chosen[0]], axis=1)
    while len(chosen) < min(count, len(places)):
        best = int(np.argmax(np.where(distance < apart, -1, weight * distance)))
        if distance[best] < apart:
            break
        chosen.append(best)
        distance = np.minimum(distance, np.linalg.norm(places - places[chosen[-1]], axis=1))
    return np.asarray(chosen, np.intp)
