"""What the inputs of a model's convolutions usually are, on the shipped photos: for :mod:`cats.export.fp16.weights`."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cats.core.metadata import Preprocessing
from cats.export.exported import PeakSession
from cats.export.fp16.weights import Moments
from cats.export.modules import group_count
from cats.export.pairs import demo_pairs

_AXES, _FLAT = "cats.axes", "cats.flat"
_PAIRS = 3  # of the demo: the two photos both ways, and one pair of views


def measure_moments(model: onnx.ModelProto, preprocessing: Preprocessing) -> Moments:
    """Measure mean and mean square of each channel of each convolution's input, over the first demo pairs; seconds.

    Of inputs of 1 x 1 convolutions the mean products of every two channels stand in place of the mean square.

    Args:
        model: float32, of any kind of ``cats-export``; is not changed.
        preprocessing: of the model.
    """
    pointwise = _inputs(model)
    if not pointwise:
        return {}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    graph = watched.graph
    graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3], np.int64), _AXES))
    graph.initializer.append(numpy_helper.from_array(np.array([0, 0, -1], np.int64), _FLAT))
    del graph.output[:]
    for name, with_products in pointwise.items():
        square, flat, turned = f"{name}.square", f"{name}.flat", f"{name}.turned"
        graph.node.append(helper.make_node("Mul", [name, name], [square]))
        results = [f"{name}.mean", f"{name}.power"]
        for source, target in zip((name, square), results, strict=True):
            graph.node.append(helper.make_node("ReduceMean", [source, _AXES], [target], keepdims=0))
        if with_products:
            results.append(f"{name}.products")
            graph.node.append(helper.make_node("Reshape", [name, _FLAT], [flat]))
            graph.node.append(helper.make_node("Transpose", [flat], [turned], perm=[0, 2, 1]))
            graph.node.append(helper.make_node("MatMul", [flat, turned], [results[-1]]))
        graph.output.extend(helper.make_tensor_value_info(target, TensorProto.FLOAT, None) for target in results)
    session = PeakSession(watched)
    batches = {value.name: value.type.tensor_type.shape.dim[0].dim_value or 1 for value in model.graph.input}
    sums: dict[str, Any] = {}
    feeds = _feeds(list(batches), preprocessing)
    for values in feeds:
        found = session({name: np.repeat(value[None], batches[name], axis=0) for name, value in values.items()})
        for name, result in found.items():
            part = result.mean(axis=0) if name.endswith(".products") else result
            sums[name] = sums.get(name, 0) + part / len(feeds)
    moments = {}
    for name, with_products in pointwise.items():
        power = sums[f"{name}.power"]
        products = sums[f"{name}.products"] if with_products else None
        if products is not None:  # so far sums over the positions
            power = products * (power.sum() / max(np.trace(products), 1e-30))
        # To three digits, so that another order of sums, on another machine, seldom gives other weights.
        moments[name] = (_half(sums[f"{name}.mean"]), _half(power))
    return moments


def _inputs(model: onnx.ModelProto) -> dict[str, bool]:
    """Inputs of convolutions; whether a 1 x 1 convolution of all channels reads one."""
    weights = {item.name: item.dims for item in model.graph.initializer}
    found: dict[str, bool] = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            dims = list(weights.get(node.input[1], []))
            found[node.input[0]] = found.get(node.input[0], False) or (dims[2:] == [1, 1] and group_count(node) == 1)
    return found


def _half(values: np.ndarray) -> np.ndarray:
    return np.clip(values, -6e4, 6e4).astype(np.float16).astype(np.float64)


def _feeds(names: list[str], preprocessing: Preprocessing) -> list[dict[str, Any]]:
    """Inputs of the model, without the batch axis, for each demo pair (or image, where it takes one)."""
    source, found = demo_pairs(_PAIRS), []
    if "points_a" in names:
        for pair in source.images():
            pixels = {f"image_{side}": np.asarray(image) for side, image in zip("ab", pair, strict=True)}
            found.append({**pixels, "points_a": np.zeros((1, 2), np.float32)})
    elif "image" in names:
        found = [{"image": image} for image in itertools.chain.from_iterable(source.inputs(preprocessing))]
    else:
        found = [dict(zip(("image_a", "image_b"), pair, strict=True)) for pair in source.inputs(preprocessing)]
    return found
