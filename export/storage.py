"""Rewrites of a finished ONNX model that change how it is stored, not what it computes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from cats.export.correlation import NAME

_SMALLEST = 256  # elements; below it a cast costs more bytes than it saves


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with the bodies of its functions in the graph, for runtimes that refuse functions."""
    inlined: onnx.ModelProto = inliner.inline_local_functions(model)
    kept = [entry for entry in inlined.opset_import if entry.domain in ("", "ai.onnx")]
    del inlined.opset_import[:]
    inlined.opset_import.extend(kept)
    counts: Counter[str] = Counter()
    rename: dict[str, str] = {}
    for node in inlined.graph.node:
        if "/" in node.name:  # not out of a function
            continue
        stem = f"{NAME.lower()}/{node.op_type}"
        node.name = f"{stem}_{counts[stem]}" if counts[stem] else stem
        counts[stem] += 1
        for name in node.output:
            if "/" not in name:
                rename[name] = node.name
    for node in inlined.graph.node:
        node.input[:] = [rename.get(name, name) for name in node.input]
        node.output[:] = [rename.get(name, name) for name in node.output]
    for value in inlined.graph.value_info:
        value.name = rename.get(value.name, value.name)
    return onnx.shape_inference.infer_shapes(inlined, strict_mode=True, data_prop=True)


def store_as_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose float32 weights are stored as float16 and cast back at the start of the graph.

    Everything is still computed in float32; inference libraries fold the casts when they load the file. Weights that
    float16 cannot hold to 0.1 % of their largest value, and small ones, stay as they are.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    casts = []
    for item in result.graph.initializer:
        if item.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(item)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        largest = float(np.abs(values).max(initial=0))
        lost = np.abs(half.astype(np.float32) - values).max(initial=0)
        if values.size < _SMALLEST or not np.isfinite(half).all() or lost > 1e-3 * largest:
            continue
        name = item.name
        item.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        node = helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT)
        node.name = f"{name.rpartition('.')[0]}/Cast.{name.rpartition('.')[2]}"
        casts.append(node)
    nodes = list(result.graph.node)
    del result.graph.node[:]
    result.graph.node.extend([*casts, *nodes])
    return result
