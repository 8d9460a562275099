"""Where two precisions of one model part: every value of both graphs compared, in the order they are computed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from cats.calibration.calibrate import load_pair
from cats.calibration.sessions import ProbeSession, fixed_batch
from cats.core.console import note, progress, stdout, table
from cats.core.errors import InputError
from cats.core.metadata import Metadata
from cats.data.photo_pairs import PhotoPairs
from cats.export.fp16.assign import HALF_LARGEST, LARGE_ACTIVATION, is_quantized
from cats.export.modules import module_of

THRESHOLD_8_BIT, THRESHOLD_16_BIT = 0.3, 0.03
"""Relative errors beyond which two precisions are said to part, where none is given."""

_INSERTED = ("QuantizeLinear", "DequantizeLinear", "Cast", "Constant")


@dataclass(frozen=True)
class NodeError:
    """One value in both models, over all pairs.

    Attributes:
        node, operator, module: what computes it; the module is PyTorch's path.
        relative: root mean square of B - A over that of A; infinite where B alone is not finite.
        step: ``relative`` less the largest of the node's inputs: what this node adds.
        largest_a, largest_b: largest finite magnitudes.
        not_finite_a, not_finite_b: how many values are NaN or infinite.
    """

    node: str
    operator: str
    module: str
    relative: float
    step: float
    largest_a: float
    largest_b: float
    not_finite_a: int
    not_finite_b: int


@dataclass(frozen=True)
class Divergence:
    """The walk over both models.

    Attributes:
        nodes: all compared values in the order of the graph.
        first: the first whose relative error is beyond ``threshold`` or that is not finite in one model; None where the
            models do not part.
        skipped: nodes of A that B lacks, or that are scaled differently on purpose (balanced norms).
        pairs, source: what the models were run on.
    """

    nodes: tuple[NodeError, ...]
    first: NodeError | None
    threshold: float
    skipped: tuple[str, ...]
    pairs: int
    source: str

    @property
    def largest_step(self) -> NodeError:
        """The node that adds most to the relative error of its inputs."""
        return max(self.nodes, key=lambda item: item.step)

    @property
    def overflowing(self) -> tuple[NodeError, ...]:
        """Values beyond :data:`LARGE_ACTIVATION` or not finite in either model, the largest first."""
        found = [
            item
            for item in self.nodes
            if max(item.largest_a, item.largest_b) > LARGE_ACTIVATION or item.not_finite_a or item.not_finite_b
        ]
        return tuple(sorted(found, key=lambda item: -max(item.largest_a, item.largest_b)))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; infinite errors are null."""

        def plain(item: NodeError | None) -> dict[str, Any] | None:
            if item is None:
                return None
            values = asdict(item)
            return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}

        return {
            "diverges": self.first is not None,
            "first": plain(self.first),
            "largest_step": plain(self.largest_step),
            "threshold": self.threshold,
            "overflowing": [plain(item) for item in self.overflowing],
            "pairs": self.pairs,
            "source": self.source,
            "skipped": list(self.skipped),
            "nodes": [plain(item) for item in self.nodes],
        }


def find_divergence(
    a: str | Path, b: str | Path, pairs: PhotoPairs, *, threshold: float | None = None, threads: int | None = None
) -> Divergence:
    """Compare two files of one model value by value, in ONNX Runtime on the CPU.

    Values in float16 are rounded, and overflow, as on a GPU. Nodes are matched by name and operator.

    Args:
        a, b: the more exact file first.
        pairs: to run both on; each pair is held in memory once, with all its values.
        threshold: relative error beyond which the models part; None takes 0.3 where a file is quantized, else 0.03.
        threads: CPU threads; None takes all.

    Raises:
        ModelFileError: a file cannot be read or run.
        InputError: the files are not of one model, or the threshold is not positive.
    """
    if threshold is not None and not (math.isfinite(threshold) and threshold > 0):
        raise InputError(f"a threshold of {threshold:g}: a positive relative error is needed, such as 0.1")
    (model_a, metadata_a), (model_b, metadata_b) = (
        load_pair(path, "give files of cats-export without --split") for path in (a, b)
    )
    if metadata_a.preprocessing != metadata_b.preprocessing or metadata_a.grid != metadata_b.grid:
        raise InputError(f"{a} and {b} take other inputs: they are not two precisions of one model")
    if threshold is None:
        threshold = THRESHOLD_8_BIT if is_quantized(model_a) or is_quantized(model_b) else THRESHOLD_16_BIT
    matched, skipped = _matched(model_a, model_b, _balanced(metadata_a) | _balanced(metadata_b))
    if not matched:
        raise InputError(f"{a} and {b} have no node in common: they are not two precisions of one model")
    sums = [_Sums() for _ in matched]
    batch_a, batch_b = fixed_batch(model_a), fixed_batch(model_b)
    if batch_a != batch_b:
        raise InputError(f"{a} and {b} have other batch sizes: export both alike")
    sessions = [
        ProbeSession(model, outputs=list(dict.fromkeys(names)), threads=threads)
        for model, names in (
            (model_a, [node.output[0] for node, _ in matched]),
            (model_b, [other.output[0] for _, other in matched]),
        )
    ]
    with progress() as bar:
        task = bar.add_task("comparing values, pairs", total=len(pairs))
        for feeds in pairs.feeds(metadata_a.preprocessing, batch_a):
            values_a, values_b = (session(feeds) for session in sessions)
            for (node, other), item in zip(matched, sums, strict=True):
                item.add(values_a[node.output[0]], values_b[other.output[0]])
            bar.advance(task, batch_a or 1)
    nodes = _errors(model_a, matched, sums)
    first = next(
        (item for item in nodes if item.relative > threshold or bool(item.not_finite_a) or bool(item.not_finite_b)),
        None,
    )
    return Divergence(tuple(nodes), first, threshold, tuple(skipped), len(pairs), pairs.name)


def _balanced(metadata: Metadata) -> set[str]:
    return set((metadata.calibration or {}).get("balanced", ()))


def _matched(
    a: onnx.ModelProto, b: onnx.ModelProto, balanced: set[str]
) -> tuple[list[tuple[onnx.NodeProto, onnx.NodeProto]], list[str]]:
    """Nodes of both models with one name and operator, and the names of those of A that are left out."""
    others = {node.name: node for node in b.graph.node if node.name}
    stored = {item.name for item in a.graph.initializer}
    matched, skipped = [], []
    for node in a.graph.node:
        if node.op_type in _INSERTED or all(name in stored for name in node.input):
            continue
        other = others.get(node.name)
        if other is None or other.op_type != node.op_type or module_of(node) in balanced:
            skipped.append(node.name)
        else:
            matched.append((node, other))
    return matched, skipped


class _Sums:
    """Running sums of one value's differences."""

    def __init__(self) -> None:
        self.square = self.difference = self.largest_a = self.largest_b = 0.0
        self.not_finite_a = self.not_finite_b = 0
        self.is_float = True

    def add(self, a: Any, b: Any) -> None:
        """One pair's values."""
        if a.dtype.kind != "f" or b.dtype.kind != "f":
            self.is_float = False
            return
        a, b = a.astype(np.float64), b.astype(np.float64)
        if a.shape != b.shape:
            raise InputError("the two files compute values of other shapes: they are not two precisions of one model")
        fine_a, fine_b = np.isfinite(a), np.isfinite(b)
        both = fine_a & fine_b
        self.not_finite_a += int((~fine_a).sum())
        self.not_finite_b += int((~fine_b).sum())
        self.square += float(np.square(a[both]).sum())
        self.difference += float(np.square(a[both] - b[both]).sum())
        self.largest_a = max(self.largest_a, float(np.abs(a[fine_a]).max(initial=0.0)))
        self.largest_b = max(self.largest_b, float(np.abs(b[fine_b]).max(initial=0.0)))

    @property
    def relative(self) -> float:
        """Relative error, infinite where the models disagree on what is finite."""
        if self.not_finite_a != self.not_finite_b:
            return math.inf
        return math.sqrt(self.difference / max(self.square, 1e-60)) if self.difference else 0.0


def _errors(
    model: onnx.ModelProto, matched: list[tuple[onnx.NodeProto, onnx.NodeProto]], sums: list[_Sums]
) -> list[NodeError]:
    by_value = {
        name: item.relative
        for (node, _), item in zip(matched, sums, strict=True)
        if item.is_float
        for name in node.output
    }
    carried: dict[str, float] = {}  # what a node that was not compared passes on
    inputs: dict[str, float] = {}
    for node in model.graph.node:
        known = [by_value.get(name, carried.get(name, 0.0)) for name in node.input]
        inputs[node.name] = max(known, default=0.0)
        carried.update(dict.fromkeys(node.output, inputs[node.name]))
    found = []
    for (node, _), item in zip(matched, sums, strict=True):
        if not item.is_float:
            continue
        before = inputs[node.name]
        step = item.relative - before if math.isfinite(before) else 0.0
        found.append(
            NodeError(
                node.name,
                node.op_type,
                module_of(node),
                item.relative,
                step,
                item.largest_a,
                item.largest_b,
                item.not_finite_a,
                item.not_finite_b,
            )
        )
    return found


def print_walk(found: Divergence, files: str) -> None:
    """Print the values around the first that parts, and what overflows."""
    first = found.nodes.index(found.first) if found.first else len(found.nodes)
    rows = [
        [
            f"{'> ' if item is found.first else ''}{item.node}",
            percent(item.relative),
            percent(item.step),
            f"{item.largest_a:.4g}",
            f"{item.largest_b:.4g}",
            str(item.not_finite_b),
        ]
        for item in found.nodes[max(0, first - 8) : first + 5]
    ]
    columns = ["node", "relative error", "added", "largest in A", "largest in B", "not finite in B"]
    stdout.print(table(f"{files}, {found.source}", columns, rows))
    for item in found.overflowing:
        largest = max(item.largest_a, item.largest_b)
        if largest > HALF_LARGEST:
            note(f"warning: {item.node} reaches {largest:.4g}: float16 overflows there")
        elif largest > LARGE_ACTIVATION:
            note(f"warning: {item.node} reaches {largest:.4g}, near the end of float16 (65504)")
        if item.not_finite_a or item.not_finite_b:
            note(f"warning: {item.node} is not finite: {item.not_finite_a} values in A, {item.not_finite_b} in B")
    step = found.largest_step
    note(f"most is added at {step.node} (module {step.module}): {percent(step.step)}")


def percent(value: float) -> str:
    """A relative error for people."""
    return f"{value:.2%}" if math.isfinite(value) else "not finite"
