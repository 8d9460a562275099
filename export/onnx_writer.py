"""From a torch module to an ONNX model whose names say where each node comes from, the same bytes every time."""

from __future__ import annotations

import ast
import inspect
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import onnx
import torch
from torch import Tensor, nn

import cats
from cats.core.errors import CatsError, InputError
from cats.export.fp16.assign import replace_all
from cats.export.graph import correlation

OPSETS = range(18, 24)
"""Operator sets that can be asked for: 18 is the first whose reductions take their axes as the exporter writes them."""

DEFAULT_OPSET = 20
"""Old enough for ONNX Runtime 1.20 (which ends at 21), TensorRT 10.12 and OpenVINO 2025.0; new enough for a Gelu
operator (20), which ONNX Runtime runs in one pass where it does not recognise the exporter's formula, and for float8
Q/DQ (19)."""

FORBIDDEN = ("NonZero", "ScatterND", "If", "Loop", "Scan", "BatchNormalization")
"""Operators that TensorRT refuses, or that make shapes depend on data, or that should have been folded."""

_PREFIXES = ("pair.", "encoder.", "matcher.")  # parts of the graph that the published names of the model do not have
_IR_VERSION = 10  # the newest that ONNX Runtime 1.20 reads


def to_onnx(
    module: nn.Module,
    inputs: dict[str, Tensor],
    outputs: list[str],
    *,
    dynamic_axes: dict[str, dict[int, str]] | None = None,
    opset: int = DEFAULT_OPSET,
) -> onnx.ModelProto:
    """Export a module in evaluation mode.

    Args:
        inputs: name -> example, in the order of the module's arguments.
        outputs: names, in the order of the module's results.
        dynamic_axes: by input, the axes of free size with their name; the example's size there should be 2 or more.
        opset: one of :data:`OPSETS`.

    Returns:
        A checked model with full shapes, without metadata; each node's name begins with its module's path, see
        :func:`cats.export.modules.module_of`.

    Raises:
        InputError: the opset is not one of :data:`OPSETS`.
        CatsError: the graph came out with an operator that inference libraries refuse, or with a fixed batch.
    """
    if opset not in OPSETS:
        raise InputError(f"opset {opset} is not supported: choose {OPSETS.start} to {OPSETS.stop - 1}")
    dynamic_axes = dynamic_axes or {}
    names = {name for axes in dynamic_axes.values() for name in axes.values()}
    dims = {name: torch.export.Dim(name, min=1) for name in sorted(names)}
    shapes: tuple[Any, ...] = tuple(
        {axis: dims[d] for axis, d in dynamic_axes.get(name, {}).items()} or None for name in inputs
    )
    if any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(module.forward).parameters.values()):
        shapes = (shapes,)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=shapes if dims else None,
            custom_translation_table=correlation.translation_table(),
            optimize=True,
            verbose=False,
        )
    model: onnx.ModelProto = program.model_proto
    _tidy(model)
    _define_functions(model, opset)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    _check(model, dynamic_axes)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's remarks, which are about its own workings; failures are raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _tidy(model: onnx.ModelProto) -> None:
    """Give nodes and values names that do not depend on the exporter's counters; drop its notes, which hold paths."""
    graph = model.graph
    _keep_free_axes(graph)
    _activate_before_transposes(graph)
    graph.name = "cats"
    graph.doc_string = ""
    del graph.value_info[:]
    del model.metadata_props[:]
    del graph.metadata_props[:]
    model.ir_version = _IR_VERSION
    model.producer_name, model.producer_version = "cats-toolkit", cats.__version__
    model.doc_string = ""
    rename = {value.name: value.name for value in (*graph.input, *graph.output)}
    _order_initializers(graph, rename)
    counts: Counter[str] = Counter()
    for node in graph.node:
        path = _module_path(node)
        stem = f"{path}/{node.op_type}" if path else f"/{node.op_type}"
        node.name = f"{stem}_{counts[stem]}" if counts[stem] else stem
        counts[stem] += 1
        node.doc_string = ""
        del node.metadata_props[:]
        for index, name in enumerate(node.input):
            node.input[index] = rename.get(name, name)
        for index, name in enumerate(node.output):
            if name and name not in rename:
                rename[name] = node.name if len(node.output) == 1 else f"{node.name}:{index}"
            node.output[index] = rename.get(name, name)
        attributes = sorted(node.attribute, key=lambda item: item.name)
        del node.attribute[:]
        node.attribute.extend(attributes)
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]


def _keep_free_axes(graph: onnx.GraphProto) -> None:
    """Let every Reshape that leaves a free axis as it is say so: 0, which copies the size, in place of -1.

    ONNX Runtime then sees that two values have the same batch, and computes residual sums within the convolutions.
    """
    values = (*graph.value_info, *graph.input, *graph.output)
    axes = {value.name: [d.dim_param for d in value.type.tensor_type.shape.dim] for value in values}
    shapes = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in shapes:
            continue
        shape, before, after = shapes[node.input[1]].copy(), axes.get(node.input[0], []), axes.get(node.output[0], [])
        for axis in range(min(len(before), len(after))):
            if shape[axis] == -1 and before[axis] and before[axis] == after[axis]:
                shape[axis] = 0
                name = f"shape_{'_'.join(map(str, shape))}"
                if name not in shapes:
                    graph.initializer.append(onnx.numpy_helper.from_array(shape, name))
                    shapes[name] = shape
                node.input[1] = name
                del node.attribute[:]  # allowzero, by which 0 would be a size


def _activate_before_transposes(graph: onnx.GraphProto) -> None:
    """Move a ReLU that reads a transposed map in front of the transpose, which ONNX Runtime then makes part of the
    change of layout that a convolution needs."""
    nodes = list(graph.node)
    readers = Counter(name for node in nodes for name in node.input)
    readers.update(value.name for value in graph.output)
    producers = {name: place for place, node in enumerate(nodes) for name in node.output}
    for place, relu in enumerate(nodes):
        before = producers.get(relu.input[0]) if relu.op_type == "Relu" else None
        if before is None or nodes[before].op_type != "Transpose" or readers[relu.input[0]] > 1:
            continue
        transpose = nodes[before]
        between, result = relu.input[0], relu.output[0]
        relu.input[0], relu.output[0] = transpose.input[0], between
        transpose.input[0], transpose.output[0] = between, result
        nodes[before], nodes[place] = relu, transpose
    replace_all(graph.node, nodes)


def _define_functions(model: onnx.ModelProto, opset: int) -> None:
    """Add the definition of ``cats::Correlation`` where the graph uses it."""
    for node in model.graph.node:
        if (node.domain, node.op_type) == (correlation.DOMAIN, correlation.NAME):
            model.functions.append(correlation.correlation_function(len(node.input) // 2, opset))
            return


def _order_initializers(graph: onnx.GraphProto, rename: dict[str, str]) -> None:
    """Sort initializers by first use; parameters keep their path, other constants are numbered."""
    initializers = {item.name: item for item in graph.initializer}
    used = dict.fromkeys(name for node in graph.node for name in node.input if name in initializers)
    del graph.initializer[:]
    for number, name in enumerate(used):
        item = initializers[name]
        rename[name] = _strip(name) if "." in name else f"constant_{number}"
        item.name = rename[name]
        item.doc_string = ""
        del item.metadata_props[:]
        graph.initializer.append(item)


def _module_path(node: onnx.NodeProto) -> str:
    notes = {entry.key: entry.value for entry in node.metadata_props}
    scopes: list[str] = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
    path = scopes[-2] if len(scopes) > 1 else ""
    return "" if path.startswith("_") else _strip(path)  # the exporter's name for "no module" begins with _


def _strip(path: str) -> str:
    for prefix in _PREFIXES:
        if f"{path}." == prefix:
            return ""
        path = path.removeprefix(prefix)
    return path


def _check(model: onnx.ModelProto, dynamic_axes: dict[str, dict[int, str]]) -> None:
    onnx.checker.check_model(model, full_check=True)
    bad = sorted({node.op_type for node in model.graph.node} & set(FORBIDDEN))
    if bad:
        raise CatsError(f"the exported graph holds {', '.join(bad)}, which inference libraries refuse")
    for value in model.graph.input:
        sizes: list[Any] = list(value.type.tensor_type.shape.dim)
        for axis, name in dynamic_axes.get(value.name, {}).items():
            if sizes[axis].dim_param != name:
                raise CatsError(
                    f"the exporter fixed axis {axis} ({name}) of {value.name} to {sizes[axis].dim_value}: "
                    "something in the model computes with that size"
                )
