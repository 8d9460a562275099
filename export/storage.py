"""Rewrites of a finished ONNX model that change how it is stored, not what it computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, inliner, numpy_helper

from cats.export.graph.correlation import NAME
from cats.export.graph.deployment import DeploymentOptions, EncoderGraph
from cats.model import Attention, CATs

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


def store_as_half(
    model: onnx.ModelProto, factors: Mapping[str, NDArray[np.float32]] | None = None
) -> tuple[onnx.ModelProto, bool]:
    """Store float32 weights as float16, cast back at the start of the graph; everything is computed in float32.

    Inference libraries fold the casts when they load the file. A checkpoint that is itself in float16 is stored
    exactly: what was folded into a weight (batch norms, the scale of queries) as a factor beside it, and what has no
    exact float16 form in float32. Weights that float16 does not hold are rounded to it, other constants never.

    Args:
        factors: by name of a weight, what the graph multiplied the checkpoint's weight by (:func:`weight_factors`).

    Returns:
        A copy of the model, and whether weights were rounded.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    factors, nodes, rounded, added = factors or {}, [], False, []
    for item in result.graph.initializer:
        values = numpy_helper.to_array(item)
        if item.data_type != TensorProto.FLOAT or values.size < _SMALLEST:
            continue
        name = item.name
        path, _, leaf = name.rpartition(".")
        factor = factors.get(name)
        half = _to_half(values if factor is None else values / factor)
        exact = _same(half.astype(np.float32) * (1 if factor is None else factor), values)
        if not exact:
            factor, half = None, _to_half(values)
            if not name.endswith(".weight") or not np.isfinite(half).all():
                continue
        rounded |= not exact
        item.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        cast = name if factor is None else f"{name}.float"
        nodes.append(helper.make_node("Cast", [f"{name}.half"], [cast], f"{path}/Cast.{leaf}", to=TensorProto.FLOAT))
        if factor is not None:
            added.append(numpy_helper.from_array(factor, f"{name}.factor"))
            nodes.append(helper.make_node("Mul", [cast, f"{name}.factor"], [name], f"{path}/Mul.{leaf}"))
    nodes += result.graph.node
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(added)
    return result, rounded


def weight_factors(model: CATs, options: DeploymentOptions) -> dict[str, NDArray[np.float32]]:
    """For :func:`store_as_half`: by the names of weights in exported files, the factors that the rewrites fold into
    them, in a shape that multiplies the weight."""
    factors = {}
    graph = EncoderGraph(model, options)
    for name, value in graph.folded_factors.items():
        if value.all():  # a channel that batch norm switches off has lost its weight
            axes = 2 if name.removesuffix(".weight") in graph.winograd else 3  # behind that of the output channels
            factors[f"feature_extraction.{name}"] = value.numpy().reshape(-1, *[1] * axes)
    scale = (model.config.embed_dim // model.config.num_heads) ** -0.5
    for name, module in model.named_modules():
        if isinstance(module, Attention):
            factors[f"{name}.q.weight"] = np.float32(scale).reshape(())
    return factors


def _same(stored: NDArray[np.float32], values: NDArray[np.float32]) -> bool:
    """Equal but for values so small beside the largest that float16 holds fewer bits of them."""
    return bool(np.abs(stored - values).max() <= 1e-5 * np.abs(values).max())


def _to_half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        return values.astype(np.float16)
