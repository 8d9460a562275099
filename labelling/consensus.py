"""Where the points of an object lie in a photo, by what several labelled photos say: numpy only.

Each labelled photo (a reference) votes once for each of its points. The steps, each with what it gains, are measured on
PF-WILLOW by ``benchmarks/studies/labelling.py`` (docs/labelling.md shows the figures):

1. **Weights.** A vote counts more where the match leads back to where it came from (forward-backward error) and where
   the model is confident in both directions.
2. **Other views.** A reference whose votes weigh less than half of the best one's shows the object from another side,
   or mirrored, and is left out.
3. **Robust centre.** The geometric median: half of the votes may be anywhere.
4. **Mode.** From there to the nearest centre of agreement. A mean of two symmetric parts (left and right headlight)
   lies between them and is neither.
5. **Shape.** Each reference's points, turned, scaled and moved to where they lie nearest to that, vote once more: what
   all the other points say of one. A point on the wrong one of two like parts is drawn to the right one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cats.core.geometry import Floats

ERROR_SCALE = 0.04
"""Forward-backward error, in the object's extent, at which a vote has lost half of its weight: half a cell."""

OTHER_VIEW = 0.5
"""Mean weight of a reference, in that of the best one, below which it is left out. With none of five references
mirrored this costs nothing (PCK 97.0, 96.9 where the object's place is given), with two it gains 0.9 and with three 7.8
points; 0.7 costs 0.1, 0.3 gains less."""

KERNEL = 0.1
"""Width (standard deviation) of the mode's kernel in the object's extent: that of the errors of single votes."""

SHAPE_WEIGHT = 0.4
"""All votes of shapes together, in the weight of all others of a point. PCK with one reference: 85.8 without, 85.7 with
0.4, 84.8 with 0.8; three: 93.8, 94.2, 94.4; five: 95.0, 95.7, 95.6."""

SHAPE_SCALE = 0.12
"""Distance of a reference's shape from the points, in their extent, at which its votes have lost 63 % of their weight:
another view, or an object that bends."""

_ITERATIONS = 15
_FITS = 5
_LEFT_OUT = 1e-6  # not 0: where nobody else has a point, it is better than nothing


@dataclass(frozen=True)
class Votes:
    """What R references say about K points of one photo.

    Attributes:
        points: (R, K, 2) float64 in pixels of the photo; NaN where the reference does not have the point.
        error: (R, K) forward-backward error in the reference's extent; NaN where it was not asked for.
        confidence: (R, K) of the model in [0, 1]; the geometric mean of both directions where both were asked for.
        trust: (R, K) factor of the weight: 1 for labels by a person, less for predicted ones.
        shape: (R, K, 2) float64 the points in the reference, in pixels of its photo; NaN where it does not have one.
    """

    points: Floats
    error: Floats
    confidence: Floats
    trust: Floats
    shape: Floats

    @staticmethod
    def join(parts: list[Votes]) -> Votes:
        """The votes of all of them."""
        return Votes(*(np.concatenate([getattr(part, name) for part in parts]) for name in Votes.__annotations__))

    def weights(self) -> Floats:
        """(R, K) weight of each vote, 0 where there is none."""
        error = np.where(np.isfinite(self.error), self.error, ERROR_SCALE)
        weight = (self.confidence + 0.02) / (error + ERROR_SCALE)
        weight[~np.isfinite(self.points).all(axis=2)] = 0
        return self.trust * np.where(self._of_another_view(weight)[:, None], _LEFT_OUT, 1.0) * weight

    def _of_another_view(self, weight: Floats) -> NDArray[np.bool_]:
        """Which references (R,) to leave out, by the geometric mean of their weights: one good point saves none."""
        voted = weight > 0
        logarithm = np.log(np.where(voted, weight, 1.0)).sum(axis=1) / np.maximum(voted.sum(axis=1), 1)
        judged: NDArray[np.bool_] = np.any(voted & np.isfinite(self.error), axis=1)
        if not judged.any():
            return judged
        return judged & (logarithm < logarithm[judged].max() + np.log(OTHER_VIEW))


def extent(points: Floats) -> float:
    """Larger of the x and y extents of finite points, in pixels; at least 1."""
    finite = points[np.isfinite(points).all(axis=-1)]
    return max(float(np.ptp(finite, axis=0).max()), 1.0) if len(finite) else 1.0


def find_consensus(votes: Votes) -> Floats:
    """Points (K, 2) in pixels of the photo on which the votes agree best; NaN where nobody voted."""
    weights = votes.weights()
    places = np.nan_to_num(votes.points)
    voted = weights.sum(axis=0) > 0
    start = geometric_median(places, weights)
    start[~voted] = np.nan
    width = KERNEL * extent(start)
    result = find_mode(places, weights, start, width)
    shapes, shape_weights = shape_votes(votes, weights, result)
    if shape_weights.any():
        places, weights = np.concatenate([places, shapes]), np.concatenate([weights, shape_weights])
        result = _denser(places, weights, width, result, _average(shapes, shape_weights))
    result[~voted] = np.nan
    return result


def shape_votes(votes: Votes, weights: Floats, points: Floats) -> tuple[Floats, Floats]:
    """Where each reference's points lie if it is turned, scaled and moved to ``points`` (K, 2), and their weights.

    A point counts in the fit as far as votes, of ``weights`` (R, K), agree on it, and the less the further the shape
    misses it.

    Returns:
        (R, K, 2) in pixels of the photo and (R, K); weight 0 where the reference does not have the point, and for one
        that shares fewer than three points with the photo.
    """
    size, agreed = extent(points), _near(votes, weights, points)
    agreed[~np.isfinite(points).all(axis=1)] = 0
    places, counts = np.zeros_like(votes.points), np.zeros_like(weights)
    for index, shape in enumerate(votes.shape):
        known = np.isfinite(shape).all(axis=1)
        share = np.where(known, agreed, 0)
        if (share > 0).sum() < 3:
            continue
        fitted, away = _fit_shape(np.nan_to_num(shape), np.nan_to_num(points), share, size)
        places[index] = fitted
        counts[index, known] = np.exp(-away / SHAPE_SCALE) / (away + 0.03) ** 2
    total = counts.max(axis=1).sum()
    if total > 0:
        counts *= SHAPE_WEIGHT * float(np.median(weights.sum(axis=0)[agreed > 0])) / total
    return places, counts


def _fit_shape(shape: Floats, points: Floats, share: Floats, size: float) -> tuple[Floats, float]:
    """``shape`` (K, 2) after the similarity that brings it nearest to ``points``, and its mean distance in ``size``."""
    weight = share
    for _ in range(_FITS):
        fitted = _similarity(shape, points, weight / weight.sum())
        distance = np.linalg.norm(fitted - points, axis=1) / size
        weight = share / (distance + 0.05)
    return fitted, float((share * distance).sum() / share.sum())


def _similarity(shape: Floats, points: Floats, weight: Floats) -> Floats:
    """Least squares over turning, scaling and moving, in complex numbers: one factor turns and scales."""
    source, target = (values[:, 0] + 1j * values[:, 1] for values in (shape, points))
    source_mean, target_mean = weight @ source, weight @ target
    source, target = source - source_mean, target - target_mean
    factor = (weight * source.conj() * target).sum() / max(float((weight * abs(source) ** 2).sum()), 1e-12)
    fitted = factor * source + target_mean
    return np.stack([fitted.real, fitted.imag], axis=1)


def geometric_median(points: Floats, weights: Floats) -> Floats:
    """Point of least weighted distance from (R, K, 2), for each of K: Weiszfeld's iteration."""
    centre = _average(points, weights)
    for _ in range(_ITERATIONS):
        distance = np.linalg.norm(points - centre, axis=2)
        centre = _average(points, weights / (distance + 1e-3))
    return centre


def find_mode(points: Floats, weights: Floats, start: Floats, width: float) -> Floats:
    """Mean shift with a Gaussian kernel of ``width`` pixels, from ``start`` (K, 2)."""
    centre = start
    for _ in range(_ITERATIONS):
        near = np.exp(-((points - centre) ** 2).sum(axis=2) / (2 * width**2))
        centre = _average(points, weights * (near + 1e-9))
    return centre


def _denser(points: Floats, weights: Floats, width: float, *starts: Floats) -> Floats:
    """Of the modes that the starts (K, 2) lead to, for each of K points the one with more weight around it."""
    modes = np.stack([find_mode(points, weights, start, width) for start in starts])
    distance = ((points - modes[:, None]) ** 2).sum(axis=3)
    found = (weights * np.exp(-distance / (2 * width**2))).sum(axis=1)
    return np.take_along_axis(modes, found.argmax(axis=0)[None, :, None], axis=0)[0]


def agreement(votes: Votes, points: Floats) -> Floats:
    """Share (K,) of the votes' weight within a tenth of the extent of ``points`` (K, 2); 0 where nobody voted."""
    weights = votes.weights()
    return _near(votes, weights, points) / np.maximum(weights.sum(axis=0), 1e-12)


def _near(votes: Votes, weights: Floats, points: Floats) -> Floats:
    """Weight (K,) of the votes within a tenth of the extent of ``points`` (K, 2)."""
    distance = np.linalg.norm(np.nan_to_num(votes.points) - np.nan_to_num(points), axis=2)
    near: Floats = np.where(distance <= 0.1 * extent(points), weights, 0).sum(axis=0)
    return near


def spread(votes: Votes, points: Floats) -> Floats:
    """Weighted mean distance (K,) of the votes from ``points`` (K, 2), in the extent of the points."""
    weights = votes.weights()
    distance = np.linalg.norm(np.nan_to_num(votes.points) - np.nan_to_num(points), axis=2)
    return (distance * weights).sum(axis=0) / np.maximum(weights.sum(axis=0), 1e-12) / extent(points)


def _average(points: Floats, weights: NDArray[np.float64]) -> Floats:
    total = np.maximum(weights.sum(axis=0), 1e-12)
    return (points * weights[..., None]).sum(axis=0) / total[:, None]
