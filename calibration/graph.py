"""Nodes of an exported graph by the PyTorch module they compute for, and which of them can be quantized."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cats.export.modules import is_inside, module_of

QUANTIZABLE = ("Conv", "Gemm", "MatMul")
"""Operators whose weight and input are quantized; the weight is their second input."""

_WEIGHT = re.compile(r"\.weight(\.half|\.int8|\.fp8)?$")
_MANY_TOKENS = 64  # with fewer, as among the levels of a position, quantizing costs more than it saves


def quantizable_modules(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Quantizable modules in graph order, each with the names of its nodes.

    A module is quantizable if its node is one of :data:`QUANTIZABLE` with the module's own weight. The aggregator's
    modules run once for each pass of swapping self-attention and have two nodes that share the weight.
    """
    graph = Graph(model)
    found: dict[str, list[str]] = defaultdict(list)
    for node in graph.quantizable():
        found[module_of(node)].append(node.name)
    return dict(found)


def condense(kept: Collection[str], names: Collection[str]) -> list[str]:
    """The fewest beginnings of paths that keep just these of all modules, in their order."""
    found: list[str] = []
    for module in kept:
        if is_inside(module, found):
            continue
        parts = module.split(".")
        beginnings = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
        found.append(next(b for b in beginnings if all(name in kept for name in names if is_inside(name, [b]))))
    return found


class Graph:
    """Look-ups in a model's main graph, made once.

    Attributes:
        producer: by value, the node that computes it.
        consumers: by value, the nodes that read it, in graph order.
        outputs: names of the graph's outputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.initializers = {item.name: item for item in model.graph.initializer}
        self.producer = {name: node for node in model.graph.node for name in node.output if name}
        consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                consumers[name].append(node)
        self.consumers: Mapping[str, list[onnx.NodeProto]] = consumers
        self.outputs = {value.name for value in model.graph.output}

    def constant(self, name: str) -> NDArray[Any] | None:
        """Value of an initializer, or of what is stored as float16 and cast (and multiplied by a factor) when the file
        is loaded (:func:`cats.export.storage.store_as_half`); None for what depends on the inputs."""
        if name in self.initializers:
            value: NDArray[Any] = numpy_helper.to_array(self.initializers[name])
            return value
        node = self.producer.get(name)
        if node is None or node.op_type not in ("Cast", "Mul", "Constant"):
            return None
        if node.op_type == "Constant":
            return next((numpy_helper.to_array(a.t) for a in node.attribute if a.name == "value"), None)
        parts = [part for part in map(self.constant, node.input) if part is not None]
        if len(parts) < len(node.input):
            return None
        if node.op_type == "Mul":
            return np.multiply(parts[0], parts[1])
        kind = next(attribute.i for attribute in node.attribute if attribute.name == "to")
        return parts[0].astype(helper.tensor_dtype_to_np_dtype(kind))

    def quantizable(self) -> list[onnx.NodeProto]:
        """Nodes that can be quantized, in graph order."""
        return [node for node in self.model.graph.node if self._is_quantizable(node)]

    def attention_products(self) -> list[tuple[onnx.NodeProto, str]]:
        """Matrix products of attention over many tokens, in graph order, each with the letters of the layers whose
        results it multiplies: queries and keys ``qk``, which a softmax alone reads, and its weights and the values
        ``v``. Their module is the attention, which has those layers.
        """
        widths = {
            value.name: value.type.tensor_type.shape.dim[-1].dim_value
            for value in self.model.graph.value_info
            if len(value.type.tensor_type.shape.dim)
        }
        found: list[tuple[onnx.NodeProto, str]] = []
        weights: set[str] = set()
        for node in self.model.graph.node:
            if node.op_type != "MatMul" or not all(
                name in self.producer and self.constant(name) is None for name in node.input
            ):
                continue
            readers = self.consumers[node.output[0]]
            if [r.op_type for r in readers] == ["Softmax"] and widths.get(node.output[0], 0) >= _MANY_TOKENS:
                found.append((node, "qk"))
                weights.add(readers[0].output[0])
            elif node.input[0] in weights:
                found.append((node, "v"))
        return found

    def _is_quantizable(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in QUANTIZABLE or node.domain not in ("", "ai.onnx") or len(node.input) < 2:
            return False
        # Other constants, such as those of resize and soft-argmax, are no weights of the module.
        if node.input[1] != f"{module_of(node)}.weight":
            return False
        weight = self.constant(node.input[1])
        return weight is not None and weight.dtype == np.float32


def separate_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every module its parameters for itself, in a copy of the model.

    The exporter stores equal constants once, under the name of the first module, such as the norms of a model that was
    not trained yet: then neither could the others be told apart, nor one be changed without them.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = Graph(result)
    added: dict[str, onnx.TensorProto] = {}
    for node in result.graph.node:
        for index, name in enumerate(node.input):
            owner, _, leaf = name.rpartition(".")
            module = module_of(node)
            if leaf not in ("weight", "bias") or not module or owner == module or not owner:
                continue
            own, value = f"{module}.{leaf}", graph.constant(name)
            if value is None or own in graph.initializers or own in graph.producer:
                continue
            added.setdefault(own, numpy_helper.from_array(value, own))
            node.input[index] = own
    result.graph.initializer.extend(added.values())
    return result


def name_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in which every node has a name of its own that begins with its module; a copy.

    Names are optional in ONNX: some tools drop or repeat them. What a node computes, and the weights that it reads,
    still say whose it is.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = Graph(result)
    used: set[str] = set()
    for node in result.graph.node:
        owner = next((name.rpartition(".")[0] for name in node.input[1:] if _is_own(graph, name)), None)
        written = next((name for name in node.output if "/" in name), "")
        name = node.name
        if "/" not in name:
            name = f"{owner}/{node.op_type}" if owner is not None else written or f"/{node.op_type}"
        node.name = take_name(name, used)
    return result


def take_name(name: str, used: set[str]) -> str:
    """The name, numbered where it is in ``used`` already; the result is added to that."""
    unique, count = name, 0
    while unique in used:
        count += 1
        unique = f"{name}_{count}"
    used.add(unique)
    return unique


def _is_own(graph: Graph, name: str) -> bool:
    """Whether a value is a module's parameter by its name."""
    owner, _, leaf = name.rpartition(".")
    return bool(owner) and leaf in ("weight", "bias") and graph.constant(name) is not None


def is_half(model: onnx.ModelProto) -> bool:
    """Whether the graph computes in float16 or bfloat16: inputs, outputs or weights that are not cast when loaded."""
    graph = model.graph
    cast = {node.input[0] for node in graph.node if node.op_type == "Cast"}
    types = {item.data_type for item in graph.initializer if item.name not in cast}
    types |= {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    return bool(types & {TensorProto.FLOAT16, TensorProto.BFLOAT16})


def describe_storage(model: onnx.ModelProto) -> str | None:
    """How the weights of a file's layers are stored, what most bytes are in first, such as ``int8, fp16-storage``; None
    where all are float32."""
    names = {TensorProto.FLOAT16: "fp16-storage", TensorProto.FLOAT: "fp32", TensorProto.INT8: "int8"}
    names |= {TensorProto.FLOAT8E4M3FN: "fp8"}
    sizes: dict[str, int] = defaultdict(int)
    for item in model.graph.initializer:
        count = math.prod(item.dims)
        if item.data_type in names and len(item.dims) > 1 and _WEIGHT.search(item.name):
            sizes[names[item.data_type]] += count * {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2}.get(
                item.data_type, 1
            )
    found = sorted(sizes, key=lambda name: (-sizes[name], name))
    return None if found in ([], ["fp32"]) else ", ".join(found)
