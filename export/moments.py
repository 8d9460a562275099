"""What the inputs of a model's convolutions usually are, on the shipped photos: for :mod:`cats.export.half_weights`."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cats.export.exported import Session
from cats.export.half_weights import Moments
from cats.export.pairs import demo_pairs
from cats.metadata import Preprocessing

_AXES, _SQUARED = "cats.axes", ".squared"
_PAIRS = 3  # of the demo: the two photos both ways, and one pair of views


def channel_moments(model: onnx.ModelProto, preprocessing: Preprocessing) -> Moments:
    """Mean and mean square of each channel of each convolution's input, over the first demo pairs; seconds.

    Args:
        model: float32, of any kind of ``cats-export``; is not changed.
        preprocessing: of the model.
    """
    inputs = list(dict.fromkeys(node.input[0] for node in model.graph.node if node.op_type == "Conv"))
    if not inputs:
        return {}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    graph = watched.graph
    graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3], np.int64), _AXES))
    del graph.output[:]
    for name in inputs:
        square = f"{name}{_SQUARED}"
        graph.node.append(helper.make_node("Mul", [name, name], [f"{square}.all"]))
        for value, result in ((name, f"{name}.mean"), (f"{square}.all", square)):
            graph.node.append(helper.make_node("ReduceMean", [value, _AXES], [result], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, None))
    session = Session(watched)
    batches = {value.name: value.type.tensor_type.shape.dim[0].dim_value or 1 for value in model.graph.input}
    results = [
        session({name: np.repeat(value[None], batches[name], axis=0) for name, value in feeds.items()})
        for feeds in _feeds(list(batches), preprocessing)
    ]
    means = {name: np.mean([result[name] for result in results], axis=0) for name in results[0]}
    # To three digits, so that another order of sums, on another machine, seldom gives other weights.
    return {name: (_half(means[f"{name}.mean"]), _half(means[f"{name}{_SQUARED}"])) for name in inputs}


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
