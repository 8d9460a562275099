"""Parity of a model file with PyTorch, in pixels that a person understands."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from cats.console import stderr, table
from cats.errors import require
from cats.export.pairs import PairSource
from cats.model import CATs

TOLERANCE = {"fp32": 0.05, "fp16": 1.0, "bf16": 1.0, "int8": 2.0, "fp8": 2.0, "mixed": 2.0}
"""By precision, the largest accepted 99th percentile of the flow difference, in pixels of a 256 x 256 image."""

BATCHES = (1, 2, 3)
"""Sizes in which pairs are run by turns where the batch is dynamic; 2 is the one that export traces."""

_FRAME = 256.0

Flow = NDArray[np.float32]


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

    @property
    def passed(self) -> bool:
        """Whether the 99th percentile is within the tolerance."""
        return self.p99_px <= self.tolerance_px

    def to_dict(self) -> dict[str, Any]:
        """The ``parity`` part of the metadata; pixels to a ten-thousandth of one."""
        values = {key: round(v, 7) if isinstance(v, float) else v for key, v in asdict(self).items()}
        return {**values, "frame": [int(_FRAME), int(_FRAME)]}


def compare(
    expected: tuple[Flow, Flow], actual: tuple[Flow, Flow], *, tolerance: float, source: str, against: str
) -> Parity:
    """Compare flows (B, 2, G, G) in cells and confidences (B, G, G), each given as a pair of arrays."""
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
    )


def picks_single_cells(flow: Flow, confidence: Flow) -> bool:
    """Whether distributions are single cells (median confidence near 1) whose flow jumps between neighbours."""
    jumps = np.concatenate([np.linalg.norm(np.diff(flow, axis=axis), axis=1).ravel() for axis in (2, 3)])
    return bool(np.median(confidence) > 0.9 and np.median(jumps) > 2)


def run_onnx(model: onnx.ModelProto | bytes, batches: list[tuple[Flow, Flow]]) -> tuple[Flow, Flow]:
    """Flow and confidence of batches of inputs by ONNX Runtime on the CPU, concatenated."""
    ort = require("onnxruntime", extra="export", purpose="verify the exported model")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    results = [session.run(["flow", "confidence"], {"image_a": a, "image_b": b}) for a, b in batches]
    return tuple(np.concatenate(part).astype(np.float32) for part in zip(*results, strict=True))  # type: ignore[return-value]


def run_torch(model: CATs, batches: list[tuple[Flow, Flow]]) -> tuple[Flow, Flow]:
    """The same by PyTorch in float32."""
    with torch.no_grad():
        results = [model.match(torch.from_numpy(a), torch.from_numpy(b)) for a, b in batches]
    return tuple(torch.cat(part).numpy() for part in zip(*results, strict=True))  # type: ignore[return-value]


def make_batches(model: CATs, pairs: PairSource, batch: int | None) -> list[tuple[Flow, Flow]]:
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
    exported: onnx.ModelProto | bytes, model: CATs, pairs: PairSource, *, batch: int | None, precision: str
) -> Parity:
    """Compare an exported pair model in ONNX Runtime with ``model`` in PyTorch.

    Args:
        batch: the file's fixed batch size, None where it is dynamic.
        precision: key of :data:`TOLERANCE`.
    """
    batches = make_batches(model, pairs, batch)
    return compare(
        run_torch(model, batches),
        run_onnx(exported, batches),
        tolerance=TOLERANCE[precision],
        source=f"{len(pairs)} pairs, {pairs.name}",
        against="ONNX Runtime CPU against PyTorch float32",
    )


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
    stderr.print(table(f"{title}: {parity.against}", ["flow difference, in pixels at 256 x 256", ""], rows))
    stderr.print(f"{'passed' if parity.passed else 'FAILED'} on {parity.source}", markup=False)
    if parity.argmax:
        stderr.print(
            "note: these weights look neither trained nor zero-started: their soft-argmax picks single cells without "
            "order, where ties flip, so the difference says little about trained weights",
            markup=False,
        )
