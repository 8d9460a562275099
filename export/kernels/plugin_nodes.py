"""``cats::Correlation`` as two nodes that TensorRT can run with our kernels instead of expanding their functions.

A TensorRT plugin that needs no Python when the plan runs is one kernel, and the operator takes two
(:mod:`cats.export.kernels.triton`): ``cats::CorrelationScores``, features to correlations and the maxima of their
rows and columns, and ``cats::MutualFilter``. Both keep a function, so that every runtime still runs the file; the
compiled kernels are entries of its metadata, which ``cats-build`` registers as plugins of the nodes' names
(:mod:`cats.runtime.tensorrt.plugins`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cats.core.errors import BackendError, InputError
from cats.export.graph.correlation import DOMAIN, NAME
from cats.export.modules import module_of
from cats.runtime.tensorrt.plugins import KERNELS_KEY

SCORES, FILTER = "CorrelationScores", "MutualFilter"
_NAMESPACE = "plugin_namespace"  # by this attribute TensorRT's parser finds a plugin


def use_plugins(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace the node ``cats::Correlation`` by the two nodes, and put their kernels into the metadata.

    Args:
        model: of ``cats-export``, float32 or typed in float16, with its function and shapes; is not changed.

    Raises:
        InputError: the model has no such node (encoders have none), or it was inlined.
        BackendError: triton, which compiles the kernels, is not installed.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    index = next((i for i, node in enumerate(graph.node) if (node.domain, node.op_type) == (DOMAIN, NAME)), None)
    function = next((f for f in result.functions if (f.domain, f.name) == (DOMAIN, NAME)), None)
    if index is None or function is None:
        raise InputError("the model has no node cats::Correlation that plugins could run: export it without --inline")
    node = graph.node[index]
    inputs = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input)}
    shapes = [[dim.dim_value for dim in inputs[name].shape.dim] for name in node.input]
    half = all(inputs[name].elem_type == TensorProto.FLOAT16 for name in node.input)
    levels, cells = len(shapes) // 2, shapes[0][2]
    new, features = [], []
    for name in node.input:
        if half or inputs[name].elem_type == TensorProto.FLOAT:
            features.append(name)
            continue
        features.append(f"{name}.float")  # a kernel takes features of one type
        new.append(helper.make_node("Cast", [name], [features[-1]], f"{features[-1]}", to=TensorProto.FLOAT))
    path = module_of(node)
    stem = f"{path}/" if path else ""
    between = [f"{stem}{name}" for name in ("scores", "row_maxima", "column_maxima")]
    attribute = {_NAMESPACE: DOMAIN}
    new.append(helper.make_node(SCORES, features, between, f"{stem}{SCORES}", domain=DOMAIN, **attribute))
    new.append(helper.make_node(FILTER, between, node.output, f"{stem}{FILTER}", domain=DOMAIN, **attribute))
    nodes = [*graph.node[:index], *new, *graph.node[index + 1 :]]
    del graph.node[:]
    graph.node.extend(nodes)
    others = [f for f in result.functions if (f.domain, f.name) != (DOMAIN, NAME)]
    del result.functions[:]
    result.functions.extend([*others, *_split(function)])
    entry = _kernels([shape[1] for shape in shapes[:levels]], cells, half)
    helper.set_model_props(result, {**{p.key: p.value for p in result.metadata_props}, KERNELS_KEY: entry})
    onnx.checker.check_model(result)
    return result


def has_correlation(model: onnx.ModelProto) -> bool:
    """Whether :func:`use_plugins` takes the model."""
    return any((node.domain, node.op_type) == (DOMAIN, NAME) for node in model.graph.node)


def _kernels(channels: Sequence[int], cells: int, half: bool) -> str:
    """The metadata entry: each plugin with the shapes of its outputs behind the batch, and its kernel."""
    try:
        from cats.export.kernels.compiled import CAPABILITY, HOPPER, compile_kernels
    except ModuleNotFoundError as error:
        raise BackendError(f"cannot compile the kernels for TensorRT: {error}; pip install triton") from error
    kernels = compile_kernels(channels, cells, half=half)
    hopper = compile_kernels(channels, cells, half=half, capability=HOPPER) if half else ()
    levels, tiles = len(channels), math.isqrt(kernels[0].grid[0])  # a grid of tiles by tiles
    volume, maxima = [levels, cells, cells], [levels, tiles, cells]
    plugins: list[dict[str, Any]] = [
        {"name": f"{DOMAIN}::{SCORES}", "inputs": 2 * levels, "outputs": [volume, maxima, maxima]},
        {"name": f"{DOMAIN}::{FILTER}", "inputs": 3, "outputs": [volume]},
    ]
    for plugin, kernel in zip(plugins, kernels, strict=True):
        plugin["kernel"] = kernel.to_dict()
    for plugin, kernel in zip(plugins, hopper, strict=False):
        plugin["kernel_of"] = {str(HOPPER): kernel.to_dict()}
    return json.dumps({"format": 1, "capability": CAPABILITY, "plugins": plugins}, sort_keys=True)


def _split(function: onnx.FunctionProto) -> list[onnx.FunctionProto]:
    """The function of ``cats::Correlation``, of either precision, as the functions of the two nodes."""
    constants = [node for node in function.node if node.op_type == "Constant"]
    two = helper.make_node(
        "Constant", [], ["two"], "two", value=numpy_helper.from_array(np.array([2], np.int64), "two")
    )
    corr = next(node.input[0] for node in function.node if node.op_type == "ReduceMax")
    scores: list[onnx.NodeProto] = [two]
    for node in function.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.output[:] = ["scores" if name == corr else name for name in node.output]
        scores.append(copy)
        if corr in node.output:
            break
    scores += [
        helper.make_node("ReduceMax", ["scores", "last"], ["rows"], "rows", keepdims=0),
        helper.make_node("Unsqueeze", ["rows", "two"], ["row_maxima"], "row_maxima"),
        helper.make_node("ReduceMax", ["scores", "columns"], ["column_maxima"], "column_maxima", keepdims=1),
    ]
    filtering: list[onnx.NodeProto] = [two, *constants]
    filtering += [
        helper.make_node("ReduceMax", ["row_maxima", "two"], ["rows"], "rows", keepdims=0),
        helper.make_node("Unsqueeze", ["rows", "last"], ["row"], "row"),
        helper.make_node("ReduceMax", ["column_maxima", "two"], ["column"], "column", keepdims=1),
    ]
    for side in ("row", "column"):
        filtering += [
            helper.make_node("Equal", [side, "zero"], [f"{side}_is_zero"], f"{side}_is_zero"),
            helper.make_node("Where", [f"{side}_is_zero", "tiny", side], [f"{side}_guarded"], f"{side}_guarded"),
            helper.make_node("Reciprocal", [f"{side}_guarded"], [f"{side}_inverse"], f"{side}_inverse"),
            helper.make_node("Mul", ["scores", f"{side}_inverse"], [f"{side}_ratio"], f"{side}_ratio"),
        ]
    filtering += [
        helper.make_node("Mul", ["scores", "row_ratio"], ["product"], "product"),
        helper.make_node("Mul", ["product", "column_ratio"], ["volume"], "volume"),
    ]
    maxima = ["scores", "row_maxima", "column_maxima"]
    return [
        helper.make_function(DOMAIN, name, inputs, outputs, nodes, list(function.opset_import), [_NAMESPACE])
        for name, inputs, outputs, nodes in (
            (SCORES, list(function.input), maxima, scores),
            (FILTER, maxima, ["volume"], filtering),
        )
    ]
