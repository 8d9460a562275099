"""Two models on the same photos, without labels: how far their matches are apart, and how each agrees with itself.

Without labels nothing says which of two different matches is right. Two things can be measured all the same: the
distance between both, and for each model how far the way to the other photo and back leads away from where it began,
which is small where a match is right and seldom small where it is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cats.core.errors import InputError
from cats.core.geometry import Floats, Size, grid_points, transfer_points
from cats.evaluation.parity import FRAME
from cats.runtime.matcher import Matcher
from cats.runtime.result import Match

CONSISTENT = 0.1
"""Share of the side within which a point that comes back is called consistent."""

_FRAME_SIZE: Size = (int(FRAME), int(FRAME))


@dataclass(frozen=True)
class ComparedPair:
    """One pair of photos matched by both models.

    Attributes:
        a, b: the photos.
        points: (N, 2) cell centres of a, in pixels of an image scaled to 256 x 256.
        difference: (N,) distance of both models' matches, in the same pixels.
        way_back: (2, N) by model, distance after a -> b -> a, in the same pixels.
        confidence: (2, N) by model.
        size_a: (width, height) of a in its own pixels.
    """

    a: Path
    b: Path
    points: Floats
    difference: Floats
    way_back: Floats
    confidence: Floats
    size_a: Size

    @property
    def p99(self) -> float:
        """99th percentile of the difference."""
        return float(np.quantile(self.difference, 0.99))

    def farthest_points(self, count: int) -> Floats:
        """Up to ``count`` points of a, (K, 2) in its own pixels, whose matches differ most, none beside another."""
        apart = 2.5 * FRAME / np.sqrt(len(self.points))
        chosen: list[int] = []
        for index in np.argsort(-self.difference, kind="stable"):
            distances = np.linalg.norm(self.points[chosen] - self.points[index], axis=1)
            if len(chosen) < count and (distances >= apart).all():
                chosen.append(int(index))
        scale = np.asarray(self.size_a) / FRAME
        result: Floats = (self.points[chosen] + 0.5) * scale - 0.5
        return result


@dataclass(frozen=True)
class Comparison:
    """What two models say of the same photos.

    Attributes:
        names: of both models.
        pairs: in the order in which they were matched.
    """

    names: tuple[str, str]
    pairs: list[ComparedPair]

    def worst(self, count: int) -> list[ComparedPair]:
        """The pairs that differ most, by their 99th percentile."""
        return sorted(self.pairs, key=lambda pair: -pair.p99)[:count]

    def to_dict(self) -> dict[str, Any]:
        """Figures as plain JSON types; distances in pixels at 256 x 256.

        Returns:
            ``frame``, ``points``, ``difference`` (``median_px``, ``p99_px``, ``max_px`` and ``moved``, the share over
            one pixel), ``models`` (of each ``name``, ``way_back_px``, the median, ``consistent``, the share within a
            tenth of the side, and ``confidence``, the mean), and ``pairs`` (``a``, ``b``, ``median_px``, ``p99_px``,
            ``moved``, ``way_back_px`` of both models).
        """
        difference = np.concatenate([pair.difference for pair in self.pairs])
        back = np.concatenate([pair.way_back for pair in self.pairs], axis=1)
        confidence = np.concatenate([pair.confidence for pair in self.pairs], axis=1)
        return {
            "frame": list(_FRAME_SIZE),
            "points": len(difference),
            "difference": {**_distances(difference), "max_px": _rounded(difference.max())},
            "models": [
                {
                    "name": name,
                    "way_back_px": _rounded(np.median(back[index])),
                    "consistent": _rounded((back[index] <= CONSISTENT * FRAME).mean()),
                    "confidence": _rounded(confidence[index].mean()),
                }
                for index, name in enumerate(self.names)
            ],
            "pairs": [
                {
                    "a": str(pair.a),
                    "b": str(pair.b),
                    **_distances(pair.difference),
                    "way_back_px": [_rounded(np.median(values)) for values in pair.way_back],
                }
                for pair in self.pairs
            ],
        }


def compare_models(
    models: tuple[Matcher, Matcher],
    pairs: Sequence[tuple[Path, Path]],
    *,
    names: tuple[str, str] | None = None,
    on_pair: Callable[[], None] | None = None,
) -> Comparison:
    """Match pairs of photos with two models, both ways, and compare what they find.

    Points are the cell centres of the finer of both grids, so that models of different grids can be compared.

    Args:
        names: of the models; default: their files' names.
        on_pair: called after each pair.

    Raises:
        InputError: no pair, or a photo that cannot be read.
    """
    if not pairs:
        raise InputError("no pair of photos to compare two models on")
    grid = max(side for matcher in models for side in matcher.metadata.grid)
    found = []
    for a, b in pairs:
        matches = [matcher.match(a, b, forward_backward=True) for matcher in models]
        found.append(_compare_pair(a, b, matches, grid))
        if on_pair is not None:
            on_pair()
    return Comparison(names or (models[0].path.name, models[1].path.name), found)


def _compare_pair(a: Path, b: Path, matches: Sequence[Match], grid: int) -> ComparedPair:
    points = grid_points(_FRAME_SIZE, grid)
    places = [transfer_points(points, match.flow, _FRAME_SIZE, _FRAME_SIZE) for match in matches]
    back = []
    for match, there in zip(matches, places, strict=True):
        assert match.backward_flow is not None  # asked for above
        back.append(transfer_points(there, match.backward_flow, _FRAME_SIZE, _FRAME_SIZE) - points)
    own = grid_points(matches[0].size_a, grid)
    return ComparedPair(
        a,
        b,
        points,
        np.linalg.norm(places[0] - places[1], axis=1),
        np.linalg.norm(np.stack(back), axis=2),
        np.stack([match.confidence_at(own) for match in matches]),
        matches[0].size_a,
    )


def _distances(values: Floats) -> dict[str, float]:
    return {
        "median_px": _rounded(np.median(values)),
        "p99_px": _rounded(np.quantile(values, 0.99)),
        "moved": _rounded((values > 1).mean()),
    }


def _rounded(value: np.floating[Any] | float) -> float:
    return round(float(value), 4)
