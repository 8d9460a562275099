"""How far a quantized model is from the float model, in pixels and in PCK."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from cats.calibration.inputs import Feeds
from cats.calibration.sessions import Session
from cats.console import stderr, table
from cats.errors import ModelFileError
from cats.metadata import Metadata
from cats.runtime.images import ImageSource, preprocess, read_image

TOLERANCE = 2.0
"""Largest accepted 99th percentile of the flow difference of 8-bit models, in pixels of a 256 x 256 image."""

_FRAME = 256.0

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Drift:
    """Difference of the flows of two models over all cells of all pairs.

    Lengths of the difference vector, in pixels of an image scaled to 256 x 256.

    Attributes:
        median_px, p99_px, max_px: of the lengths; only ``p99_px`` is judged, against ``tolerance_px``.
        moved: share of the cells that moved by more than one pixel.
        confidence: largest difference of the confidence.
        pairs, source: how many pairs, and what they are.
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

    @property
    def passed(self) -> bool:
        """Whether the 99th percentile is within the tolerance."""
        return self.p99_px <= self.tolerance_px

    def to_dict(self) -> dict[str, Any]:
        """The ``parity`` part of the metadata."""
        values = {name: round(v, 7) if isinstance(v, float) else v for name, v in asdict(self).items()}
        return {**values, "frame": [int(_FRAME), int(_FRAME)]}


@dataclass(frozen=True)
class Outputs:
    """Results of a model over some pairs: ``flow`` (P, 2, G, G) in cells, ``confidence`` (P, G, G)."""

    flow: Floats
    confidence: Floats


def run(
    model: onnx.ModelProto | Session,
    feeds: Iterable[Feeds],
    *,
    pairs: int | None = None,
    threads: int | None = None,
    on_batch: Callable[[], None] | None = None,
) -> Outputs:
    """Outputs of a model in ONNX Runtime for all feeds; the first ``pairs`` of them where the last batch was filled
    up."""
    session = model if isinstance(model, Session) else Session(model, threads=threads)
    flows, confidences = [], []
    for item in feeds:
        outputs = session(item)
        flows.append(outputs["flow"])
        confidences.append(outputs["confidence"])
        if on_batch is not None:
            on_batch()
    return Outputs(np.concatenate(flows)[:pairs], np.concatenate(confidences)[:pairs])


def compare(expected: Outputs, actual: Outputs, *, source: str, against: str, tolerance: float = TOLERANCE) -> Drift:
    """Compare two results; values that are not finite count as a million pixels."""
    distance = flow_distance(expected.flow, actual.flow)
    difference = np.abs(actual.confidence.astype(np.float64) - expected.confidence)
    return Drift(
        float(np.median(distance)),
        float(np.quantile(distance, 0.99)),
        float(distance.max()),
        float((distance > 1).mean()),
        float(np.nan_to_num(difference, nan=1.0).max()),
        tolerance,
        len(expected.flow),
        source,
        against,
    )


def flow_distance(expected: Floats, actual: Floats) -> NDArray[np.float64]:
    """Lengths (P, G, G) of the difference of two flows (P, 2, G, G) in cells, in pixels of a 256 x 256 image."""
    distance = np.linalg.norm(actual.astype(np.float64) - expected, axis=1) * (_FRAME / expected.shape[-1])
    return np.minimum(np.nan_to_num(distance, nan=1e6, posinf=1e6), 1e6)


class SessionMatcher:
    """A model in memory as a matcher for :func:`cats.evaluate.evaluate`."""

    def __init__(self, model: onnx.ModelProto, metadata: Metadata, *, threads: int | None = None) -> None:
        self.session = Session(model, threads=threads)
        self.preprocessing = metadata.preprocessing
        self.batch = fixed_batch(model) or 1

    def match(self, a: ImageSource, b: ImageSource) -> Floats:
        """Flow (2, G, G) in cells, a -> b."""
        inputs = (preprocess(read_image(image), self.preprocessing)[None] for image in (a, b))
        stacked = (np.repeat(value, self.batch, axis=0) for value in inputs)
        return self.session(dict(zip(("image_a", "image_b"), stacked, strict=True)))["flow"][0]


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """Batch size of a model whose batch is not free; None where it is.

    Raises:
        ModelFileError: the model has no inputs.
    """
    if not model.graph.input:
        raise ModelFileError("the model has no inputs")
    return model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None


def print_drift(drift: Drift, title: str, pck: dict[str, Any] | None = None) -> None:
    """Show the figures as a table on stderr."""
    rows = [
        ["median", f"{drift.median_px:.3f} px"],
        ["99th percentile", f"{drift.p99_px:.3f} px"],
        ["largest", f"{drift.max_px:.3f} px"],
        ["cells moved by more than 1 px", f"{drift.moved:.2%}"],
        ["largest difference of confidence", f"{drift.confidence:.3f}"],
        ["tolerance of the 99th percentile", f"{drift.tolerance_px} px"],
    ]
    if pck is not None:
        rows.append([f"PCK@{pck['alpha']:g} of {pck['data']}, float", f"{pck['float']:.2f}"])
        rows.append(["the same, quantized", f"{pck['quantized']:.2f} ({pck['drift']:+.2f})"])
    stderr.print(f"{title}: {drift.against}; {drift.source}", markup=False, soft_wrap=True)
    verdict = "passed" if drift.passed else "FAILED"
    stderr.print(table("", [f"{verdict}: flow difference, in pixels at 256 x 256", ""], rows))
