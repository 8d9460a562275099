"""Parity of a model file with PyTorch, in pixels that a person understands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from cats.console import progress, stderr, table
from cats.export.exported import ExportedModel, Floats, Session
from cats.export.pairs import PairSource
from cats.geometry import transfer_points
from cats.model import CATs

TOLERANCE = {"fp32": 0.05, "fp16": 1.0, "bf16": 1.0, "int8": 2.0, "fp8": 2.0, "mixed": 2.0}
"""By precision, the largest accepted 99th percentile of the flow difference, in pixels of a 256 x 256 image."""

BATCHES = (1, 2, 3)
"""Sizes in which pairs are run by turns where the batch is dynamic; 2 is the one that export traces."""

LARGE_ACTIVATION = 30_000.0
"""Values in float16 above this are warned of: it ends at 65504, and other images may give twice as much."""

_FRAME = 256.0
_POINTS_TOLERANCE = 0.05

Batch = tuple[Floats, Floats]
"""Inputs of images a and b, (B, 3, S, S)."""

Result = tuple[Floats, Floats]
"""Flow (B, 2, G, G) in cells, and confidence (B, G, G)."""


@dataclass(frozen=True)
class Parity:
    """How far a model's flow is from PyTorch's in float32, over all cells of all pairs.

    Distances are lengths of the difference vector, in pixels of an image scaled to 256 x 256.

    Attributes:
        median_px, p99_px, max_px: of the distances; only ``p99_px`` is judged, against ``tolerance_px``.
        moved: share of the cells that moved by more than one pixel.
        confidence: largest difference of the confidence.
        pairs, source: how many pairs, and what they are.
        against: what was compared with what.
        argmax: the soft-argmax of these weights picks single cells without order among neighbours, as weights do that
            are neither trained nor zero-started: ties flip, and the figures say little.
        points_px: of an end-to-end model, how far its points are at most from the transfer of its flow.
        pck: of :func:`pck_drift`, where annotated pairs were given.
        activations: of a model in float16, :func:`activation_range` of its tensors.
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
    argmax: bool
    points_px: float | None = None
    pck: dict[str, Any] | None = None
    activations: dict[str, Any] | None = None

    @property
    def passed(self) -> bool:
        """Whether the 99th percentile is within the tolerance, and the points follow the flow."""
        return self.p99_px <= self.tolerance_px and (self.points_px is None or self.points_px <= _POINTS_TOLERANCE)

    def to_dict(self) -> dict[str, Any]:
        """The ``parity`` part of the metadata."""
        values = {k: round(v, 7) if isinstance(v, float) else v for k, v in asdict(self).items() if v is not None}
        return {**values, "frame": [int(_FRAME), int(_FRAME)]}


def compare(
    expected: Result,
    actual: Result,
    *,
    tolerance: float,
    source: str,
    against: str,
    points_px: float | None = None,
) -> Parity:
    """Compare two results; the remaining arguments are those of :class:`Parity`."""
    (flow, confidence), (other, other_confidence) = expected, actual
    distance = np.linalg.norm(other.astype(np.float64) - flow, axis=1) * (_FRAME / flow.shape[-1])
    distance = np.nan_to_num(distance, nan=np.inf, posinf=np.inf)
    finite = np.minimum(distance, 1e6)  # JSON knows no infinity
    difference = np.nan_to_num(np.abs(other_confidence.astype(np.float64) - confidence), nan=1.0)
    return Parity(
        float(np.median(finite)),
        float(np.quantile(finite, 0.99)),
        float(finite.max()),
        float((finite > 1).mean()),
        float(difference.max()),
        tolerance,
        len(flow),
        source,
        against,
        picks_single_cells(flow, confidence),
        points_px,
    )


def picks_single_cells(flow: Floats, confidence: Floats) -> bool:
    """Whether distributions are single cells (median confidence near 1) whose flow jumps between neighbours."""
    jumps = np.concatenate([np.linalg.norm(np.diff(flow, axis=axis), axis=1).ravel() for axis in (2, 3)])
    return bool(np.median(confidence) > 0.9 and np.median(jumps) > 2)


def run_torch(model: CATs, batches: list[Batch]) -> Result:
    """Flow and confidence of batches of inputs by PyTorch in float32, concatenated."""
    with torch.no_grad():
        results = [model.match(torch.from_numpy(a), torch.from_numpy(b)) for a, b in batches]
    flow, confidence = (torch.cat(part).numpy() for part in zip(*results, strict=True))
    return flow, confidence


def make_batches(model: CATs, pairs: PairSource, batch: int | None) -> list[Batch]:
    """Inputs of all pairs in batches: of ``batch`` (the last filled up), or of :data:`BATCHES` by turns."""
    items = list(pairs.inputs(model.config.preprocessing))
    batches, turn = [], 0
    while items:
        size = batch or BATCHES[turn % len(BATCHES)]
        part, items = items[:size], items[size:]
        if batch:
            part += [part[-1]] * (batch - len(part))
        batches.append((np.stack([a for a, _ in part]), np.stack([b for _, b in part])))
        turn += 1
    return batches


def verify(
    models: Mapping[str, onnx.ModelProto],
    model: CATs,
    pairs: PairSource,
    *,
    batch: int | None,
    precision: str,
    data: str | None = None,
) -> Parity:
    """Compare exported files in ONNX Runtime with ``model`` in PyTorch.

    ONNX Runtime computes float16 models in float32 on a CPU, without rounding: what is judged are the same models with
    every rounding to float16 made explicit. That ONNX Runtime loads the files as they are is checked too.

    Args:
        models: kind -> file, all kinds of one form (:data:`cats.export.forms.FORMS`).
        batch: the files' fixed batch size, None where it is free.
        precision: key of :data:`TOLERANCE`.
        data: annotated pairs as ``KIND:DIR``, to measure the drift of PCK too.

    Raises:
        InputError: an image or data set cannot be read.
    """
    exported = ExportedModel(models, model.config.preprocessing, batch)
    how = ""
    if exported.in_half:
        how = ", each value rounded to float16 where the file has it so,"
        for file in models.values():
            Session(file)
    points_px = None
    if exported.takes_pixels:
        actual, points_px = _run_pixels(exported, pairs)
        expected = run_torch(model, make_batches(model, pairs, None))
    else:
        batches = make_batches(model, pairs, batch)
        outputs = [exported.run(a, b) for a, b in batches]
        flow, confidence = (np.concatenate([out[k] for out in outputs]) for k in ("flow", "confidence"))
        actual, expected = (flow, confidence), run_torch(model, batches)
    parity = compare(
        expected,
        actual,
        tolerance=TOLERANCE[precision],
        source=f"{len(pairs)} pairs, {pairs.name}",
        against=f"ONNX Runtime on the CPU{how} against PyTorch in float32",
        points_px=points_px,
    )
    if data:
        parity = replace(parity, pck=pck_drift(exported, model, data))
    return replace(parity, activations=activation_range(exported.peaks())) if exported.in_half else parity


def activation_range(peaks: Mapping[str, float]) -> dict[str, Any]:
    """How near the values of a float16 model come to its end.

    Args:
        peaks: largest absolute value by tensor, in the order of computation.

    Returns:
        ``largest``, ``tensor`` and ``module`` of the largest; ``above``: for each module with values above
        :data:`LARGE_ACTIVATION`, its name and largest value, in the order of computation. Infinity is 1e38.
    """
    finite = {name: min(value, 1e38) for name, value in peaks.items()}
    tensor = max(finite, key=lambda name: finite[name])
    above: dict[str, float] = {}
    for name, value in finite.items():
        module = name.rpartition("/")[0]
        if value > LARGE_ACTIVATION:
            above[module] = max(value, above.get(module, 0))
    return {
        "limit": LARGE_ACTIVATION,
        "largest": finite[tensor],
        "tensor": tensor,
        "module": tensor.rpartition("/")[0],
        "above": [[module, value] for module, value in above.items()],
    }


def pck_drift(exported: ExportedModel, model: CATs, data: str, alpha: float = 0.1) -> dict[str, Any]:
    """PCK of the model in PyTorch and exported, protocol ``corrected``, on annotated pairs ``KIND:DIR``, in percent.

    Returns:
        ``data``, ``protocol``, ``alpha``, ``pairs``, ``pytorch``, ``exported`` and ``drift`` (exported - pytorch).
    """
    from cats.data import open_dataset
    from cats.evaluate import evaluate
    from cats.torch_matcher import TorchMatcher

    dataset = open_dataset(data)
    scores = {}
    with progress() as bar:
        for name, matcher in (("pytorch", TorchMatcher(model)), ("exported", exported)):
            advance = partial(bar.advance, bar.add_task(f"PCK, {name}", total=len(dataset)))
            result = evaluate(matcher, dataset, ("corrected",), (alpha,), on_pair=advance)
            scores[name] = round(result.pck(alpha), 3)
    drift = round(scores["exported"] - scores["pytorch"], 3)
    return {"data": data, "protocol": "corrected", "alpha": alpha, "pairs": len(dataset), **scores, "drift": drift}


def _run_pixels(exported: ExportedModel, pairs: PairSource) -> tuple[Result, float]:
    """Flow and confidence of each pair from its raw pixels, and how far its points are from the flow's own transfer,
    at most, in pixels of a 256 x 256 image."""
    results, worst = [], 0.0
    for a, b in pairs.images():
        points = _spread_points(a.size)
        outputs = exported.run_pixels(a, b, points)
        results.append((outputs["flow"], outputs["confidence"]))
        difference = outputs["points_b"] - transfer_points(points, outputs["flow"], a.size, b.size)
        worst = max(worst, float(np.linalg.norm(difference * _FRAME / np.asarray(b.size), axis=1).max()))
    flow, confidence = (np.stack(part) for part in zip(*results, strict=True))
    return (flow, confidence), worst


def _spread_points(size: tuple[int, int]) -> NDArray[np.float32]:
    """Points all over an image, its corners and borders included: (100, 2)."""
    x, y = (np.linspace(-0.5, side - 0.5, 10) for side in size)
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.float32)


def print_parity(parity: Parity, title: str) -> None:
    """Show the figures as a table on stderr."""
    rows = [
        ["median", f"{parity.median_px:.4f} px"],
        ["99th percentile", f"{parity.p99_px:.4f} px"],
        ["largest", f"{parity.max_px:.4f} px"],
        ["cells moved by more than 1 px", f"{parity.moved:.2%}"],
        ["largest difference of confidence", f"{parity.confidence:.1e}"],
        ["tolerance of the 99th percentile", f"{parity.tolerance_px} px"],
    ]
    if parity.points_px is not None:
        rows.append(["points against the flow's transfer, largest", f"{parity.points_px:.4f} px"])
    if parity.pck is not None:
        rows.append([f"PCK@{parity.pck['alpha']:g} of {parity.pck['data']}, PyTorch", f"{parity.pck['pytorch']:.2f}"])
        rows.append(["the same, exported", f"{parity.pck['exported']:.2f} ({parity.pck['drift']:+.2f})"])
    if parity.activations is not None:
        found = parity.activations
        rows.append(["largest value in float16, which ends at 65504", f"{found['largest']:.4g}"])
    stderr.print(f"{title}: {parity.against}, {parity.source}", markup=False, soft_wrap=True)
    verdict = "passed" if parity.passed else "FAILED"
    stderr.print(table("", [f"{verdict}: flow difference, in pixels at 256 x 256", ""], rows))
    for module, value in (parity.activations or {}).get("above", []):
        stderr.print(
            f"warning: values of {module} reach {value:.4g} and float16 ends at 65504: leave it in float32, "
            f"--float32 {module}",
            markup=False,
            soft_wrap=True,
        )
    if parity.argmax:
        stderr.print(
            "note: these weights look neither trained nor zero-started: their soft-argmax picks single cells without "
            "order, where ties flip, so the difference says little about trained weights",
            markup=False,
        )
