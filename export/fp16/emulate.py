"""What a model typed in float16 computes, on a CPU.

ONNX Runtime has few float16 kernels for CPUs. It runs the other nodes in float32 and drops the casts between them, so
that neither rounding nor overflow of float16 shows. :func:`emulate_fp16` makes both explicit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from cats.export.fp16.assign import LAYOUT_OPERATORS, find_half_tensors, replace_all

PEAKS = "cats.largest"
"""Output of :func:`emulate_fp16` with ``peaks``."""

_ONE = "cats.one"
_HALF, _FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def computes_in_half(model: onnx.ModelProto) -> bool:
    """Whether any value is in float16, weights that are only stored so aside."""
    stored = {item.name for item in model.graph.initializer}
    inlined = (*model.graph.node, *(node for function in model.functions for node in function.node))
    return any(
        node.op_type == "Cast" and node.attribute[0].i == _HALF and node.input[0] not in stored for node in inlined
    )


def emulate_fp16(model: onnx.ModelProto, peaks: bool = False) -> tuple[onnx.ModelProto, list[str]]:
    """Make a float32 model that rounds every value to float16 where a typed model holds it in float16.

    Sums inside a node are in float32, as tensor cores do them. Values past 65504 become infinite.

    Args:
        model: of :func:`cats.export.fp16.assign.to_fp16`; is not changed.
        peaks: add the output :data:`PEAKS`, float32 (K,): the largest absolute value of each tensor before rounding.

    Returns:
        The model, and the names of the K tensors; empty without ``peaks``. Names of a function's inside begin with
        ``correlation/``.
    """
    result: onnx.ModelProto = inliner.inline_local_functions(model)
    for node in result.graph.node:
        if "/" not in node.name:
            node.name = f"correlation/{node.name}"
    result = onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)
    halves = set(find_half_tensors(result))
    graph = result.graph
    for item in graph.initializer:
        if item.data_type == _HALF:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float32), item.name))
    found: list[str] = []
    nodes = [changed for node in graph.node for changed in _round(node, halves, found, peaks)]
    if peaks:
        nodes.append(helper.make_node("Concat", [f"{name}.peaks" for name in found], [PEAKS], axis=0))
        graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), _ONE))
        graph.output.append(helper.make_tensor_value_info(PEAKS, _FLOAT, [len(found)]))
    replace_all(graph.node, nodes)
    del graph.value_info[:]
    return result, [_label(name) for name in found] if peaks else []


def _round(node: onnx.NodeProto, halves: set[str], found: list[str], peaks: bool) -> Iterator[onnx.NodeProto]:
    """A node and, if it computes float16 values, their rounding and, with ``peaks``, their largest values; ``found``
    gets the values' names."""
    if node.op_type == "Cast" and node.attribute[0].i == _HALF:
        node.op_type = "Identity"
        del node.attribute[:]
    elif node.op_type in LAYOUT_OPERATORS:
        halves = set()
    exact = {name: f"{name}.exact" for name in node.output if name in halves}
    node.output[:] = [exact.get(name, name) for name in node.output]
    yield node
    for name, source in exact.items():
        found.append(name)
        yield helper.make_node("Cast", [source], [f"{name}.rounded"], f"{source}.rounded", to=_HALF)
        yield helper.make_node("Cast", [f"{name}.rounded"], [name], f"{source}.back", to=_FLOAT)
        if peaks:
            yield helper.make_node("Abs", [source], [f"{name}.size"])
            yield helper.make_node("ReduceMax", [f"{name}.size"], [f"{name}.peak"], keepdims=0)
            yield helper.make_node("Reshape", [f"{name}.peak", _ONE], [f"{name}.peaks"])


def _label(name: str) -> str:
    return name if "/" in name else f"correlation/{name}"
