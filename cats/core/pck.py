"""PCK, the percentage of correct keypoints, under a protocol that says everything the figure depends on (numpy only).

A keypoint is right if its estimate lies within ``alpha * threshold`` of the truth (distance ``<=``). What papers and
code bases disagree about is in :class:`Protocol`; a PCK figure without it cannot be compared. Estimates are made by
:func:`cats.core.geometry.transfer_points`; figures are percentages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cats.core.errors import InputError
from cats.core.geometry import Floats, Size, as_points, transfer_points

Direction = Literal["a->b", "b->a"]
Frame = Literal["original", "model"]
Threshold = Literal["box", "keypoints", "keypoints-padded", "image"]
Reduction = Literal["pair", "point"]
Rounding = Literal["none", "truncate"]

MODEL_FRAME: Size = (256, 256)
"""The frame in which the authors' code measures, (width, height) in pixels."""

DEFAULT_ALPHAS = (0.05, 0.1, 0.15)

_CHOICES: dict[str, tuple[str, ...]] = {
    "direction": ("a->b", "b->a"),
    "frame": ("original", "model"),
    "threshold": ("box", "keypoints", "keypoints-padded", "image"),
    "reduction": ("pair", "point"),
    "rounding": ("none", "truncate"),
}


@dataclass(frozen=True)
class Protocol:
    """Everything besides alpha that a PCK figure depends on.

    "Query" is the image whose keypoints are transferred, "reference" the one in which the estimates are judged.

    Attributes:
        name: how tables and reports call it.
        direction: ``a->b``: a is the query, b the reference; ``b->a`` the other way round.
        frame: pixels in which distances and thresholds are measured: ``original`` (of the reference image), or
            ``model``: both images scaled to 256x256 by plain multiplication, as the authors' code does.
        threshold: the length that alpha multiplies, always of the reference: ``box`` (larger side of the object's box),
            ``keypoints`` (larger extent of its keypoints), ``keypoints-padded`` (the same over an array that ends in
            -1, as the authors' PF-WILLOW code computes it, which makes it the largest coordinate + 1), ``image``
            (larger side of the image; 256 in the model frame).
        reduction: ``pair``: mean over the points of a pair, then over pairs; ``point``: mean over all points.
        rounding: of the query keypoints before the flow is looked up: ``none``, or ``truncate`` (towards zero, then
            clamped to the frame), as the authors' code does.
    """

    name: str = "corrected"
    direction: Direction = "a->b"
    frame: Frame = "original"
    threshold: Threshold = "keypoints"
    reduction: Reduction = "pair"
    rounding: Rounding = "none"

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            if value not in choices:
                raise InputError(f"protocol {self.name}: {field} {value!r} is not one of {', '.join(choices)}")
        if self.rounding == "truncate" and self.frame != "model":
            raise InputError(f"protocol {self.name}: rounding 'truncate' is defined in the frame 'model' only")

    def with_(self, **changes: Any) -> Protocol:
        """A copy with some fields changed, under a name that says so unless a ``name`` is given."""
        changes = {key: value for key, value in changes.items() if value != getattr(self, key)}
        if changes and "name" not in changes:
            changes["name"] = f"{self.name} ({', '.join(f'{key} {value}' for key, value in changes.items())})"
        return replace(self, **changes)

    def describe(self) -> str:
        """The protocol in one line for a person, all of it."""
        reference = self.direction[-1]
        frame = f"original pixels of {reference}" if self.frame == "original" else "256x256 frame"
        threshold = {
            "box": f"larger side of {reference}'s box",
            "keypoints": f"larger extent of {reference}'s keypoints",
            "keypoints-padded": f"larger extent of {reference}'s keypoints padded with -1",
            "image": f"larger side of {reference}",
        }[self.threshold]
        rounding = ", queries truncated" if self.rounding == "truncate" else ""
        return f"{self.name}: {self.direction}, {frame}{rounding}, alpha x {threshold}, mean over {self.reduction}s"

    def to_dict(self) -> dict[str, str]:
        """Plain JSON types."""
        return asdict(self)


_PRESETS: dict[str, Protocol] = {
    # Source keypoints of a data set are our a, target keypoints our b; the authors transfer target -> source.
    "cats2021": Protocol("cats2021", "b->a", "model", "image", "pair", "truncate"),
    "corrected": Protocol("corrected", "a->b", "original", "keypoints", "pair", "none"),
    "per-point": Protocol("per-point", "a->b", "original", "keypoints", "point", "none"),
}
_PUBLISHED_THRESHOLD: dict[str, Threshold] = {"spair": "box", "pfpascal": "image", "willow": "keypoints-padded"}
_WITH_BOXES = frozenset({"spair", "pfpascal"})

PRESET_NAMES = tuple(_PRESETS)


def preset(name: str, kind: str = "willow") -> Protocol:
    """A named protocol for one kind of data set.

    ``cats2021`` is what the authors' code computes: target -> source (b -> a) in the 256x256 frame, query keypoints
    truncated, threshold ``box`` on SPair-71k, ``image`` on PF-PASCAL and other data, ``keypoints-padded`` on PF-WILLOW.
    ``corrected`` is a -> b, unrounded, in original pixels of b, threshold ``box`` where the data set has boxes and
    ``keypoints`` where not. ``per-point`` is ``corrected`` with the mean over all points.

    Args:
        name: one of :data:`PRESET_NAMES`.
        kind: of the data set: ``spair``, ``pfpascal``, ``willow``, ``tss``, ``pairs``, ...

    Raises:
        InputError: unknown name.
    """
    if name not in _PRESETS:
        raise InputError(f"unknown protocol {name!r}; known: {', '.join(PRESET_NAMES)}")
    protocol = _PRESETS[name]
    if name == "cats2021":
        return replace(protocol, threshold=_PUBLISHED_THRESHOLD.get(kind, "image"))
    return replace(protocol, threshold="box" if kind in _WITH_BOXES else "keypoints")


@dataclass(frozen=True)
class PairKeypoints:
    """Annotation of one pair: corresponding points, and what thresholds are made of.

    Attributes:
        points_a, points_b: (N, 2) x, y in original pixels; row i of one corresponds to row i of the other.
        size_a, size_b: (width, height) of the images.
        box_a, box_b: object boxes (x_min, y_min, x_max, y_max) in original pixels, where the data set has them.
        name: of the pair, for messages.
    """

    points_a: Floats
    points_b: Floats
    size_a: Size
    size_b: Size
    box_a: Sequence[float] | None = None
    box_b: Sequence[float] | None = None
    name: str = "the pair"

    def __post_init__(self) -> None:
        object.__setattr__(self, "points_a", as_points(self.points_a))
        object.__setattr__(self, "points_b", as_points(self.points_b))
        if len(self.points_a) != len(self.points_b):
            raise InputError(
                f"{self.name}: {len(self.points_a)} points in a and {len(self.points_b)} in b; they must correspond"
            )

    def directed(self, direction: Direction) -> PairKeypoints:
        """The annotation with the query image as a: itself, or a and b exchanged."""
        if direction == "a->b":
            return self
        return PairKeypoints(self.points_b, self.points_a, self.size_b, self.size_a, self.box_b, self.box_a, self.name)


@dataclass(frozen=True)
class PairScore:
    """Errors of one pair's estimates.

    Attributes:
        distances: (N,) float64, from the truth, in pixels of the protocol's frame.
        threshold: length that alpha multiplies, in the same pixels.
    """

    distances: Floats
    threshold: float

    def correct(self, alpha: float) -> NDArray[np.bool_]:
        """Which estimates are right: (N,) bool."""
        return self.distances <= alpha * self.threshold

    def pck(self, alpha: float) -> float:
        """Percentage of right estimates; NaN for a pair without points."""
        return 100 * float(self.correct(alpha).mean()) if self.distances.size else float("nan")


def score_flow(pair: PairKeypoints, flow: ArrayLike, protocol: Protocol) -> PairScore:
    """Transfer the query keypoints by a flow and measure.

    Args:
        pair: annotation.
        flow: (2, G, G) in cells **in the direction of the protocol**: for ``b->a``, that of ``match(b, a)``.
        protocol: see :class:`Protocol`.

    Raises:
        InputError: the protocol's threshold needs a box that the pair does not have, or the threshold is 0.
    """
    directed = pair.directed(protocol.direction)
    if protocol.frame == "original":
        predicted = transfer_points(directed.points_a, flow, directed.size_a, directed.size_b)
    else:
        query = _to_model_frame(directed.points_a, directed.size_a)
        if protocol.rounding == "truncate":
            query = np.clip(np.trunc(query), 0, np.asarray(MODEL_FRAME) - 1)
        predicted = transfer_points(query, flow, MODEL_FRAME, MODEL_FRAME)
    return _measure(directed, predicted, protocol)


def score_points(pair: PairKeypoints, predicted: ArrayLike, protocol: Protocol) -> PairScore:
    """Measure estimates that were made elsewhere; ``rounding`` does not apply, the look-up has been done.

    Args:
        pair: annotation.
        predicted: (N, 2) in original pixels of the reference image (b; for a protocol ``b->a``, a).
        protocol: see :class:`Protocol`.

    Raises:
        InputError: as :func:`score_flow`, or the number of points differs.
    """
    directed = pair.directed(protocol.direction)
    points = as_points(predicted)
    if len(points) != len(directed.points_b):
        raise InputError(f"{pair.name}: {len(points)} estimates for {len(directed.points_b)} keypoints")
    if protocol.frame == "model":
        points = _to_model_frame(points, directed.size_b)
    return _measure(directed, points, protocol)


def pck(scores: Iterable[PairScore], alpha: float, reduction: Reduction = "pair") -> float:
    """PCK of many pairs in percent; pairs without keypoints do not count.

    Raises:
        InputError: no pair has a keypoint, or alpha is not positive.
    """
    if not alpha > 0:
        raise InputError(f"alpha is {alpha}, it must be positive")
    correct = [score.correct(alpha) for score in scores if score.distances.size]
    if not correct:
        raise InputError("no pair has keypoints: PCK is not defined")
    if reduction == "point":
        return 100 * float(np.concatenate(correct).mean())
    return 100 * float(np.mean([pair.mean() for pair in correct]))


def pck_table(
    scores: Sequence[PairScore], alphas: Sequence[float] = DEFAULT_ALPHAS, reduction: Reduction = "pair"
) -> dict[float, float]:
    """:func:`pck` at several alphas: ``{alpha: percent}``."""
    return {alpha: pck(scores, alpha, reduction) for alpha in alphas}


def pck_by_group(
    groups: Mapping[str, Sequence[PairScore]],
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    reduction: Reduction = "pair",
) -> dict[str, dict[float, float]]:
    """:func:`pck_table` of each group that has keypoints at all."""
    return {
        name: pck_table(scores, alphas, reduction)
        for name, scores in groups.items()
        if any(score.distances.size for score in scores)
    }


def _to_model_frame(points: Floats, size: Size) -> Floats:
    """Multiplication without the half-pixel shift of :mod:`cats.core.geometry`, as in the published evaluation."""
    return points * (np.asarray(MODEL_FRAME, np.float64) / np.asarray(size, np.float64))


def _measure(directed: PairKeypoints, predicted: Floats, protocol: Protocol) -> PairScore:
    truth = directed.points_b
    scale = np.ones(2)
    size: Size = directed.size_b
    if protocol.frame == "model":
        truth, size = _to_model_frame(truth, directed.size_b), MODEL_FRAME
        scale = np.asarray(MODEL_FRAME, np.float64) / np.asarray(directed.size_b, np.float64)
    distances = np.linalg.norm(predicted - truth, axis=1)
    if not distances.size:
        return PairScore(distances, float("nan"))
    threshold = _threshold(directed, truth, size, scale, protocol)
    if not threshold > 0:
        raise InputError(
            f"{directed.name}: the threshold {protocol.threshold!r} is {threshold:g} pixels; "
            "use the threshold 'box' or 'image' for pairs whose keypoints have no extent"
        )
    return PairScore(distances, threshold)


def _threshold(directed: PairKeypoints, truth: Floats, size: Size, scale: Floats, protocol: Protocol) -> float:
    if protocol.threshold == "image":
        return float(max(size))
    if protocol.threshold == "keypoints":
        return float(np.ptp(truth, axis=0).max())
    if protocol.threshold == "keypoints-padded":
        return float(np.ptp(np.vstack([truth, [[-1.0, -1.0]]]), axis=0).max())
    if directed.box_b is None:
        raise InputError(
            f"{directed.name} has no object box: use the threshold 'keypoints' or 'image' instead of 'box'"
        )
    x_min, y_min, x_max, y_max = directed.box_b
    return float(max((x_max - x_min) * scale[0], (y_max - y_min) * scale[1]))
