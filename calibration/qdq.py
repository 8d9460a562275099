"""Where Q/DQ nodes go: which values are quantized, who reads them so, and the graph rewritten accordingly."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from cats.calibration.graph import Graph, take_name
from cats.export.modules import group_count, is_inside, module_of

_ACTIVATIONS = ("Relu", "Clip")


@dataclass(frozen=True)
class Point:
    """How one activation is quantized: ``q = round(x / scale) + zero_point``, saturated."""

    scale: float
    zero_point: int
    dtype: int


@dataclass(frozen=True)
class Weight:
    """A quantized weight: the initializers and nodes that replace it, and the value to read."""

    name: str
    initializers: list[onnx.TensorProto]
    nodes: list[onnx.NodeProto]


class Plan:
    """Which values get Q/DQ, and which nodes read them through it.

    Attributes:
        points: by value.
        readers: by value, names of the nodes that read the dequantized value; None for all.
    """

    def __init__(self, graph: Graph, chosen: set[str], choose: Callable[..., Point]) -> None:
        self.graph, self.chosen, self.choose = graph, chosen, choose
        self.points: dict[str, Point] = {}
        self.readers: dict[str, set[str] | None] = {}

    def inputs_only(self) -> None:
        """By TensorRT's rules."""
        for node in self._chosen():
            self._add(node.input[0], node)
        for node in self.graph.model.graph.node:
            if node.op_type != "Add":
                continue
            branches = [name for name in node.input if self._is_convolution(name)]
            if not branches:
                continue
            others = [name for name in node.input if name in self.points and name not in branches]
            if others or len(branches) == 2:
                self._add(others[0] if others else branches[1], node)

    def everything_around(self) -> None:
        """So that ONNX Runtime has integers in front of and behind each convolution, pooling and residual sum."""
        for node in self.graph.model.graph.node:
            if node.name in self.chosen and node.op_type == "Conv":
                self._add(node.input[0], node)
                self._add(self._end(node.output[0]), None)
            elif node.name in self.chosen:
                self._add(node.input[0], node)
            elif node.op_type == "MaxPool" and node.input[0] in self.points:
                self.points[node.output[0]] = self.points[node.input[0]]
                self.readers[node.output[0]] = None
            elif node.op_type == "Add" and all(name in self.points for name in node.input):
                for name in node.input:
                    self._add(name, node)
                self._add(self._end(node.output[0]), None)

    def attention(self, keep: Collection[str]) -> None:
        """Products of queries and keys, and of weights and values, whose layers are quantized; the key or the value
        takes the place of a weight."""
        for node, layers in self.graph.attention_products():
            module = module_of(node)
            if is_inside(module, keep) or any(is_inside(f"{module}.{layer}", keep) for layer in layers):
                continue
            left, right = node.input
            self._add(left, node)
            self.points[right] = self.choose(right, symmetric=True)
            self.readers[right] = {node.name}

    def _chosen(self) -> list[onnx.NodeProto]:
        return [node for node in self.graph.model.graph.node if node.name in self.chosen]

    def _add(self, name: str, reader: onnx.NodeProto | None) -> None:
        if name not in self.points:
            self.points[name] = self.choose(name)
            self.readers[name] = set()
        known = self.readers[name]
        if reader is None or known is None:
            self.readers[name] = None
        else:
            known.add(reader.name)

    def _end(self, name: str) -> str:
        """The value behind an activation that is fused with the node that computes ``name``."""
        readers = self.graph.consumers[name]
        if len(readers) == 1 and readers[0].op_type in _ACTIVATIONS and name not in self.graph.outputs:
            return readers[0].output[0]
        return name

    def _is_convolution(self, name: str) -> bool:
        node = self.graph.producer.get(name)
        return node is not None and node.op_type == "Conv" and node.name in self.chosen


def rewrite(model: onnx.ModelProto, graph: Graph, plan: Plan, weights: dict[tuple[str, int], Weight]) -> None:
    """Put the new nodes where they belong and drop what nobody reads any more."""
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []
    written: set[str] = set()

    def behind(name: str) -> None:
        if name not in plan.points:
            return
        parts = [_pair(name, plan.points[name], graph)]
        if any(_is_float_convolution(node, plan) for node in graph.consumers[name]):
            parts.append(_by_channel(name, plan.points[name], graph))
        for new_nodes, new_initializers in parts:
            nodes.extend(new_nodes)
            initializers.extend(new_initializers)

    for value in model.graph.input:
        behind(value.name)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            weight = weights.get((node.name, index))
            if weight is not None:
                if weight.name not in written:
                    written.add(weight.name)
                    nodes.extend(weight.nodes)
                    initializers.extend(weight.initializers)
                node.input[index] = weight.name
            elif name in plan.points:
                readers = plan.readers[name]
                if readers is None and _is_float_convolution(node, plan):
                    node.input[index] = f"{name}.by_channel"
                elif readers is None or node.name in readers:
                    node.input[index] = f"{name}.dequantized"
        nodes.append(node)
        for name in node.output:
            behind(name)
    kept = [*model.graph.initializer, *initializers]
    nodes = _without_unused(nodes, graph.outputs)
    used: set[str] = set()
    for node in nodes:  # values of different nodes may end alike where another tool dropped names
        node.name = take_name(node.name, used)
    read = {name for node in nodes for name in node.input}
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(item for item in kept if item.name in read)


def _pair(name: str, point: Point, graph: Graph) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Q and DQ of an activation; their names carry the module that computes it."""
    producer = graph.producer.get(name)
    module = module_of(producer) if producer is not None else ""
    leaf = name.rpartition("/")[2]
    scale = helper.make_tensor(f"{name}.scale", TensorProto.FLOAT, [], [point.scale])
    zero = helper.make_tensor(f"{name}.zero_point", point.dtype, [], [point.zero_point])
    quantized, result = f"{name}.quantized", f"{name}.dequantized"
    return [
        helper.make_node(
            "QuantizeLinear", [name, scale.name, zero.name], [quantized], f"{module}/QuantizeLinear.{leaf}"
        ),
        helper.make_node(
            "DequantizeLinear", [quantized, scale.name, zero.name], [result], f"{module}/DequantizeLinear.{leaf}"
        ),
    ], [scale, zero]


def _is_float_convolution(node: onnx.NodeProto, plan: Plan) -> bool:
    return node.op_type == "Conv" and node.name not in plan.chosen


def _by_channel(name: str, point: Point, graph: Graph) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """A second DQ for convolutions that stay float, with the same parameters repeated for each channel.

    ONNX Runtime quantizes the weights of a float convolution between a DQ and a Q by itself, with one scale for all of
    them (its pass WeightBiasQuantization), unless that DQ has a scale for each channel.
    """
    node = next(reader for reader in graph.consumers[name] if reader.op_type == "Conv")
    weight = graph.constant(node.input[1])
    assert weight is not None
    count = weight.shape[1] * group_count(node)
    scales = helper.make_tensor(f"{name}.scales", TensorProto.FLOAT, [count], [point.scale] * count)
    zeros = helper.make_tensor(f"{name}.zero_points", point.dtype, [count], [point.zero_point] * count)
    producer = graph.producer.get(name)
    module, leaf = module_of(producer) if producer is not None else "", name.rpartition("/")[2]
    dequantize = helper.make_node(
        "DequantizeLinear",
        [f"{name}.quantized", scales.name, zeros.name],
        [f"{name}.by_channel"],
        f"{module}/DequantizeLinear.{leaf}.by_channel",
        axis=1,
    )
    return [dequantize], [scales, zeros]


def _without_unused(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Nodes whose result is read, such as not the casts of weights that are integers now."""
    needed = set(outputs)
    kept = []
    for node in reversed(nodes):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed.update(node.input)
    return kept[::-1]
