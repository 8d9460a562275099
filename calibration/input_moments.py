"""Moments of what the weights of a model are multiplied with, on a few pairs: for :mod:`.weight_rounding`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from cats.calibration.graph import Graph
from cats.calibration.sessions import ProbeSession
from cats.calibration.weight_rounding import Moments
from cats.export.modules import group_count

WIDEST = 1280
"""Weights of one output whose products are measured; of wider layers the channels of the ranges must do."""

_POSITIONS = 4096  # of a layer's output in one run, at most, spread evenly
_CONVOLUTION = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1]}


def measure_inputs(
    model: onnx.ModelProto, batches: Iterable[Mapping[str, NDArray[Any]]], threads: int | None = None
) -> dict[str, Moments]:
    """Moments by the name of each weight, over all nodes that have it.

    Args:
        model: float32, as it will be quantized.
        batches: feeds by name of the input.
        threads: CPU threads; None takes all.
    """
    graph = Graph(model)
    nodes = [(node, shape) for node in graph.quantizable() if (shape := _shape(graph, node)) is not None]
    session = ProbeSession(model, outputs=sorted({node.input[0] for node, _ in nodes}), threads=threads)
    sums: dict[str, list[Any]] = {}
    start: dict[str, NDArray[np.float32]] = {}  # near the means, so that nothing cancels in float32
    for feeds in batches:
        values = session(feeds)
        for node, shape in nodes:
            read = _patches(values[node.input[0]], node, shape)
            read = read - start.setdefault(node.input[1], read.mean(axis=1, keepdims=True))
            parts = read.shape[1], read.sum(axis=1, dtype=np.float64), read.swapaxes(1, 2) @ read
            known = sums.setdefault(node.input[1], [0, 0.0, 0.0])
            sums[node.input[1]] = [old + new for old, new in zip(known, parts, strict=True)]
    found = {}
    for name, (count, total, products) in sums.items():
        mean = total / count
        covariance = products / count - mean[:, :, None] * mean[:, None, :]
        whole = (mean + start[name][:, 0]).astype(np.float32)
        found[name] = Moments(len(mean), whole, covariance.astype(np.float32))
    return found


def _shape(graph: Graph, node: onnx.NodeProto) -> tuple[int, ...] | None:
    """Shape of a node's weight where its inputs are measured."""
    weight = graph.constant(node.input[1])
    assert weight is not None  # as it is quantizable
    if node.op_type != "Conv":
        return weight.shape if node.op_type == "MatMul" and weight.shape[0] <= WIDEST else None
    plain = weight.ndim == 4 and weight.size / len(weight) <= WIDEST and _setting(node, "dilations") == [1, 1]
    return weight.shape if plain else None


def _setting(node: onnx.NodeProto, name: str) -> list[int]:
    return next((list(item.ints) for item in node.attribute if item.name == name), _CONVOLUTION[name])


def _patches(values: NDArray[np.float32], node: onnx.NodeProto, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """What the outputs of each group are computed of: (groups, positions, D)."""
    if node.op_type != "Conv":
        rows = values.reshape(1, -1, values.shape[-1])
        return rows[:, :: -(-rows.shape[1] // _POSITIONS)]
    top, left, bottom, right = _setting(node, "pads")
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    down, across = _setting(node, "strides")
    windows = np.lib.stride_tricks.sliding_window_view(padded, shape[2:], (2, 3))[:, :, ::down, ::across]
    every = max(1, round((windows.shape[0] * windows.shape[2] * windows.shape[3] / _POSITIONS) ** 0.5))
    windows = windows[:, :, ::every, ::every]
    groups = group_count(node)
    parted = windows.reshape(len(windows), groups, -1, *windows.shape[2:])
    return np.ascontiguousarray(parted.transpose(1, 0, 3, 4, 2, 5, 6)).reshape(groups, -1, int(np.prod(shape[1:])))
