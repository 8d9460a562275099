"""Balancing of activations against weights, as in SmoothQuant (Xiao et al., 2023, eq. 4), where it costs nothing.

A channel that is much larger than the others makes the steps of the whole tensor coarse. Its factor moves into the
weights of the layers that read it. There are two places for that:

norms
    the LayerNorm's own weight and bias are divided by it, the rows of the linear layers that read it multiplied.
streams
    the sums of a backbone's residual blocks, whose branches end in a convolution without an activation: the rows of
    these are divided, the columns of the convolutions that read a sum multiplied, whoever else reads it gets it
    multiplied back.

What the model computes does not change.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from cats.calibration.graph import Graph
from cats.export.modules import group_count, module_of

_STRENGTH = 0.6  # exponent of the activation's magnitude at a norm; that of the weight's is one minus it
_SMALLEST = 1 / 8  # of the largest channel of a stream, that silent ones count as: other photos may wake them
_ACTIVATIONS = ("Relu", "Clip")

Factors = dict[str, NDArray[np.float32]]
"""By the module of a LayerNorm, or the first value of a stream, the factor of each channel."""


def choose_factors(model: onnx.ModelProto, channels: Mapping[str, NDArray[np.float32]]) -> Factors:
    """Choose factors for all norms that are read by linear layers alone, and for all streams.

    Args:
        model: float32 export.
        channels: largest magnitude by channel of the values that quantizable layers read
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
        factors[norm] = _around_one(ratio)
    for name, values in find_streams(graph).items():
        largest = [channels[value] for value in values if value in channels]
        if largest:
            activation = np.maximum.reduce(largest)
            ratio = np.maximum(activation, max(float(activation.max()), 1e-5) * _SMALLEST)
            factors[name] = _around_one(ratio)
    return factors


def _around_one(ratio: NDArray[Any]) -> NDArray[np.float32]:
    """Factors in these ratios to each other, whose geometric mean is one."""
    return (ratio / np.exp(np.log(ratio).mean())).astype(np.float32)


def balance_channels(model: onnx.ModelProto, factors: Factors) -> onnx.ModelProto:
    """Move the factors between values and the layers that read them, in a copy of the model.

    Weights that are stored as float16 stay so, with the factor beside them.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = Graph(result)
    changes: dict[str, list[NDArray[Any]]] = defaultdict(list)  # what constants are multiplied by
    for norm, (_, weights) in _groups(graph).items():
        if norm in factors:
            for name in weights:
                changes[name].append(factors[norm][:, None])
            for leaf in ("weight", "bias"):
                changes[f"{norm}.{leaf}"].append(np.float32(1) / factors[norm])
    restored: dict[str, NDArray[np.float32]] = {}
    layers = {node.name for node in graph.quantizable()}
    for stream, values in find_streams(graph).items():
        if stream not in factors:
            continue
        factor = factors[stream]
        for name in values:
            producer = graph.producer[name]
            if producer.op_type == "Conv":
                changes[producer.input[1]].append((np.float32(1) / factor)[:, None, None, None])
                for bias in producer.input[2:]:
                    changes[bias].append(np.float32(1) / factor)
            for reader in graph.consumers[name]:
                if reader.name in layers and reader.op_type == "Conv" and group_count(reader) == 1:
                    changes[reader.input[1]].append(factor[None, :, None, None])
                elif reader.output[0] not in values:
                    restored[name] = factor[None, :, None, None]
                    reader.input[:] = [f"{name}.restored" if value == name else value for value in reader.input]
    added: dict[str, list[onnx.NodeProto]] = defaultdict(list)  # by value, what follows it
    for name, factor in restored.items():
        module = module_of(graph.producer[name])
        result.graph.initializer.append(numpy_helper.from_array(factor, f"{name}.factor"))
        added[name] = [
            helper.make_node("Mul", [name, f"{name}.factor"], [f"{name}.restored"], f"{module}/Mul.restored")
        ]
    for name, parts in changes.items():
        if name in graph.initializers:
            value = numpy_helper.to_array(graph.initializers[name])
            for part in parts:
                value = value * part
            graph.initializers[name].CopyFrom(numpy_helper.from_array(np.asarray(value, np.float32), name))
            continue
        # Stored as float16, or with a factor already: what was the constant gets another name.
        producer, value = graph.producer[name], f"{name}.unbalanced"
        producer.output[0] = value
        for k, part in enumerate(parts):
            result.graph.initializer.append(numpy_helper.from_array(part.astype(np.float32), f"{name}.balance{k}"))
            output = name if k == len(parts) - 1 else f"{name}.balanced{k}"
            module, _, leaf = name.rpartition(".")
            node = helper.make_node("Mul", [value, f"{name}.balance{k}"], [output], f"{module}/Mul.{leaf}.balance{k}")
            added[producer.output[0]].append(node)
            value = output
    nodes = [new for node in result.graph.node for new in (node, *(n for out in node.output for n in added[out]))]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def find_streams(graph: Graph) -> dict[str, list[str]]:
    """Values that sums join, each computed by a quantizable convolution without an activation or by such a sum; by the
    first of them, in graph order. A convolution that no sum follows is a stream of one value."""
    layers = {node.name for node in graph.quantizable()}
    stream: dict[str, str] = {}
    for node in graph.model.graph.node:
        name = node.output[0] if node.output else ""
        if node.op_type == "Conv" and node.name in layers:
            active = any(reader.op_type in _ACTIVATIONS for reader in graph.consumers[name])
            if not active and graph.consumers[name]:
                stream[name] = name
        elif node.op_type == "Add" and all(value in stream for value in node.input):
            first = stream[node.input[0]]
            joined = {stream[value] for value in node.input}
            stream = {value: first if old in joined else old for value, old in stream.items()} | {name: first}
    found: dict[str, list[str]] = defaultdict(list)
    for name, first in stream.items():
        found[first].append(name)
    shared = _read_twice(graph)
    return {
        values[0]: values
        for values in found.values()
        if graph.outputs.isdisjoint(values)
        and not any(node.input[1] in shared for value in values for node in _around(graph, value, layers))
    }


def _around(graph: Graph, value: str, layers: set[str]) -> list[onnx.NodeProto]:
    """Layers that compute or read a value."""
    nodes = [graph.producer[value], *graph.consumers[value]]
    return [node for node in nodes if node.name in layers]


def _read_twice(graph: Graph) -> set[str]:
    """Constants of several nodes, which cannot be changed for one of them."""
    return {name for name, readers in graph.consumers.items() if len(readers) > 1}


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
