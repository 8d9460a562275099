"""Balancing of activations against weights, as in SmoothQuant (Xiao et al., 2023, eq. 4), where it costs nothing.

A channel of a LayerNorm's output that is much larger than the others makes the steps of the whole tensor coarse. Its
factor moves into the weights of the linear layers that read it: the norm's own weight and bias are divided by it, the
rows of the weights multiplied. What the model computes does not change.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from cats.calibration.graph import Graph
from cats.export.modules import module_of

_STRENGTH = 0.6  # exponent of the activation's magnitude; that of the weight's is one minus it

Factors = dict[str, NDArray[np.float32]]
"""By the module of a LayerNorm, the factor of each channel."""


def choose_factors(model: onnx.ModelProto, channels: Mapping[str, NDArray[np.float32]]) -> Factors:
    """Choose factors for all norms that are read by linear layers alone.

    Args:
        model: float32 export.
        channels: largest magnitude by channel of the values that linear layers read
            (:class:`cats.calibration.distribution.Channels`).

    Returns:
        Factors with a geometric mean of 1.
    """
    graph = Graph(model)
    factors = {}
    for norm, (values, weights) in _groups(graph).items():
        seen = [channels.get(name) for name in values]
        largest = [item for item in seen if item is not None]
        if len(largest) < len(seen):
            continue
        activation = np.maximum.reduce(largest)
        weight = np.maximum.reduce([np.abs(_weight(graph, name)).max(axis=1) for name in weights])
        ratio = np.maximum(activation, 1e-5) ** _STRENGTH / np.maximum(weight, 1e-5) ** (1 - _STRENGTH)
        factors[norm] = (ratio / np.exp(np.log(ratio).mean())).astype(np.float32)
    return factors


def balance_norms(model: onnx.ModelProto, factors: Factors) -> onnx.ModelProto:
    """Move the factors between the norms and the layers that read them, in a copy of the model."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = Graph(result)
    changed: dict[str, NDArray[np.float32]] = {}
    for norm, (_, weights) in _groups(graph).items():
        if norm not in factors:
            continue
        for name in weights:
            changed[name] = _weight(graph, name) * factors[norm][:, None]
        for leaf in ("weight", "bias"):
            changed[f"{norm}.{leaf}"] = _weight(graph, f"{norm}.{leaf}") / factors[norm]
    nodes = [node for node in result.graph.node if not set(node.output) & set(changed)]
    read = {name for node in nodes for name in node.input}
    kept = [item for item in result.graph.initializer if item.name in read and item.name not in changed]
    kept += [numpy_helper.from_array(value, name) for name, value in changed.items()]
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(kept)
    return result


def _groups(graph: Graph) -> dict[str, tuple[list[str], list[str]]]:
    """By the module of a norm, the values that it computes (one for each pass of the aggregator) and the weights of all
    linear layers that read them; only norms that nothing else reads, with parameters of their own."""
    linear = {node.name for node in graph.quantizable() if node.op_type == "MatMul"}
    values: dict[str, list[str]] = defaultdict(list)
    weights: dict[str, dict[str, None]] = defaultdict(dict)
    others: set[str] = set()
    for node in graph.model.graph.node:
        if node.op_type != "LayerNormalization":
            continue
        norm = module_of(node)
        own = [f"{norm}.weight", f"{norm}.bias"]
        shared = any(module_of(reader) != norm for name in own for reader in graph.consumers[name])
        if list(node.input[1:3]) != own or shared:
            continue
        values[norm].append(node.output[0])
        for reader in graph.consumers[node.output[0]]:
            if reader.name in linear and reader.input[0] == node.output[0]:
                weights[norm][reader.input[1]] = None
            else:
                others.add(norm)
    return {norm: (names, list(weights[norm])) for norm, names in values.items() if norm not in others}


def _weight(graph: Graph, name: str) -> NDArray[np.float32]:
    return np.asarray(graph.constant(name), np.float32)
