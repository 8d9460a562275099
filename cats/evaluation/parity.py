"""How far a model's results are from those it should give, in pixels that a person understands.

One measure for exported models (against PyTorch) and quantized ones (against the float model): the ``parity`` part of
the metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cats.core.console import note, progress, stderr, table
from cats.core.protocols import PairMatcher
from cats.data import open_dataset
from cats.evaluation.evaluate import evaluate

TOLERANCE = {"fp32": 0.05, "fp16": 1.0, "bf16": 1.0, "int8": 2.0, "fp8": 2.0, "mixed": 2.0}
"""By precision, the largest accepted 99th percentile of the flow difference, in pixels of a 256 x 256 image."""

REFINED_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 5e-2}
"""By precision, the largest accepted difference of the refined correlation of weights that are not trained."""

FRAME = 256.0
"""Side of the image in whose pixels differences are given."""

_POINTS_TOLERANCE = 0.05

Floats = NDArray[np.float32]

Outputs = tuple[Floats, Floats]
"""Flow (B, 2, G, G) in cells, and confidence (B, G, G)."""


@dataclass(frozen=True)
class Parity:
    """How far a model's flow is from that of a more exact one, over all cells of all pairs.

    Distances are lengths of the difference vector, in pixels of an image scaled to 256 x 256.

    Attributes:
        median_px, p99_px, max_px: of the distances; only ``p99_px`` is judged, against ``tolerance_px``.
        moved: share of the cells that moved by more than one pixel.
        confidence: largest difference of the confidence.
        pairs, source: how many pairs, and what they are.
        against: what was compared with what.
        argmax: of an exported model, whether the flow of these weights jumps from cell to cell without order, as of
            weights that are neither trained nor zero-started: ties flip, and the figures say little.
        not_finite: cells with a value of either side that is not a finite number; any fails. None for none.
        refined: of such weights, the difference of the refined correlation that the soft-argmax reads, as a share of
            its own size (root mean squares): it is judged in place of the flow, against ``refined_tolerance``.
        points_px: of an end-to-end model, how far its points are at most from the transfer of its flow.
        pck: of :func:`pck_drift`, where annotated pairs were given.
        activations: of a model in float16, :func:`cats.export.verify.summarize_peaks` of its tensors.
    """

    median_px: float
    p99_px: float
    max_px: float
    moved: float
    confidence: float
    tolerance_px: float
    pairs: int
    source: str
    against: str
    argmax: bool | None = None
    not_finite: int | None = None
    refined: float | None = None
    refined_tolerance: float | None = None
    points_px: float | None = None
    pck: dict[str, Any] | None = None
    activations: dict[str, Any] | None = None

    @property
    def passed(self) -> bool:
        """Whether the 99th percentile (or, of weights that are not trained, the refined correlation) is within the
        tolerance, and the points follow the flow."""
        if self.not_finite:
            return False
        within = self.p99_px <= self.tolerance_px
        if self.refined is not None and self.refined_tolerance is not None:
            within = within or self.refined <= self.refined_tolerance
        return within and (self.points_px is None or self.points_px <= _POINTS_TOLERANCE)

    def to_dict(self) -> dict[str, Any]:
        """The ``parity`` part of the metadata."""
        values = {k: round(v, 7) if isinstance(v, float) else v for k, v in asdict(self).items() if v is not None}
        return {**values, "frame": [int(FRAME), int(FRAME)]}


def measure_parity(expected: Outputs, actual: Outputs, *, tolerance: float, source: str, against: str) -> Parity:
    """Compare two results; the remaining arguments are those of :class:`Parity`."""
    distance = flow_distance(expected[0], actual[0])
    difference = np.abs(actual[1].astype(np.float64) - expected[1])
    return Parity(
        float(np.median(distance)),
        float(np.quantile(distance, 0.99)),
        float(distance.max()),
        float((distance > 1).mean()),
        float(np.nan_to_num(difference, nan=1.0, posinf=1.0).max()),
        tolerance,
        len(distance),
        source,
        against,
        not_finite=_not_finite(expected, actual) or None,
    )


def _not_finite(*results: Outputs) -> int:
    """Cells in which a flow or a confidence is not a finite number."""
    finite = [np.isfinite(flow).all(axis=1) & np.isfinite(confidence) for flow, confidence in results]
    return int((~np.logical_and.reduce(finite)).sum())


def flow_distance(expected: Floats, actual: Floats) -> NDArray[np.float64]:
    """Lengths (P, G, G) of the difference of two flows (P, 2, G, G) in cells, in pixels of a 256 x 256 image; values
    that are not finite, which JSON does not know, count as a million."""
    distance = np.linalg.norm(actual.astype(np.float64) - expected, axis=1) * (FRAME / expected.shape[-1])
    return np.minimum(np.nan_to_num(distance, nan=1e6, posinf=1e6), 1e6)


def pck_drift(matchers: Mapping[str, PairMatcher], data: str, alpha: float = 0.1) -> dict[str, Any]:
    """PCK of two models, protocol ``corrected``, on annotated pairs ``KIND:DIR``, in percent.

    Args:
        matchers: name -> matcher for :func:`cats.evaluation.evaluate.evaluate`, the more exact model first.

    Returns:
        ``data``, ``protocol``, ``alpha``, ``pairs``, the PCK by name, and ``drift`` (second - first).

    Raises:
        InputError: the data set or an image of it cannot be read.
    """
    dataset = open_dataset(data)
    scores = {}
    with progress() as bar:
        for name, matcher in matchers.items():
            advance = partial(bar.advance, bar.add_task(f"PCK, {name}", total=len(dataset)))
            scores[name] = round(evaluate(matcher, dataset, ("corrected",), (alpha,), on_pair=advance).pck(alpha), 3)
    first, second = scores.values()
    part = {"data": data, "protocol": "corrected", "alpha": alpha, "pairs": len(dataset)}
    return {**part, **scores, "drift": round(second - first, 3)}


def print_figures(parity: Parity, heading: str, models: tuple[str, str], *, px: str, confidence: str) -> None:
    """Show the figures as a table on stderr.

    Args:
        heading: line above the table.
        models: what was compared; in lower case, the names of :func:`pck_drift`.
        px, confidence: formats of distances and of the confidence.
    """
    rows = [
        ["median", f"{parity.median_px:{px}} px"],
        ["99th percentile", f"{parity.p99_px:{px}} px"],
        ["largest", f"{parity.max_px:{px}} px"],
        ["cells moved by more than 1 px", f"{parity.moved:.2%}"],
        ["largest difference of confidence", f"{parity.confidence:{confidence}}"],
        ["tolerance of the 99th percentile", f"{parity.tolerance_px} px"],
    ]
    if parity.points_px is not None:
        rows.append(["points against the flow's transfer, largest", f"{parity.points_px:{px}} px"])
    if (pck := parity.pck) is not None:
        before, after = (pck[name.lower()] for name in models)
        rows.append([f"PCK@{pck['alpha']:g} of {pck['data']}, {models[0]}", f"{before:.2f}"])
        rows.append([f"the same, {models[1]}", f"{after:.2f} ({pck['drift']:+.2f})"])
    if parity.activations is not None:
        rows.append(["largest value in float16, which ends at 65504", f"{parity.activations['largest']:.4g}"])
    note(heading)
    verdict = "passed" if parity.passed else "FAILED"
    stderr.print(table("", [f"{verdict}: flow difference, in pixels at 256 x 256", ""], rows))
