"""Moments of what weights are multiplied with are those of the layer as ONNX Runtime computes it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cats.calibration.graph import Graph, describe_storage
from cats.calibration.input_moments import measure_inputs
from cats.calibration.quantize import quantize
from cats.calibration.sessions import ProbeSession


def one_layer(weight, **settings):
    node = helper.make_node("Conv", ["x", "layer.weight"], ["y"], "layer/Conv", **settings)
    groups = settings.get("group", 1)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, count, None, None])
        for name, count in (("x", weight.shape[1] * groups), ("y", len(weight)))
    ]
    graph = helper.make_graph([node], "g", values[:1], values[1:], [numpy_helper.from_array(weight, "layer.weight")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((5, 3, 3, 3), {"strides": [2, 2], "pads": [0, 0, 1, 1]}),
        ((6, 1, 5, 5), {"group": 6, "pads": [2, 2, 2, 2]}),
        ((4, 2, 1, 1), {"group": 2}),
    ],
)
def test_moments_are_those_of_the_outputs(shape, settings):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape).astype(np.float32)
    model = one_layer(weight, **settings)
    feeds = {"x": rng.uniform(-1, 3, (2, shape[1] * settings.get("group", 1), 12, 12)).astype(np.float32)}
    found = measure_inputs(model, [feeds], 1)["layer.weight"]
    output = np.moveaxis(ProbeSession(model)(feeds)["y"], 1, 0).reshape(len(weight), -1)
    rows = weight.reshape(found.groups, -1, found.mean.shape[1])
    assert np.einsum("brd,bd->br", rows, found.mean).ravel() == pytest.approx(output.mean(axis=1), abs=1e-3)
    variance = np.einsum("brd,bde,bre->br", rows, found.covariance, rows).ravel()
    assert variance == pytest.approx(output.var(axis=1), rel=1e-3)


def test_every_layer_of_a_model_is_measured(source, ranges):
    names = {node.input[1] for node in Graph(source.model).quantizable()}
    assert set(ranges.moments) == names


def test_storage_says_what_is_in_the_file(source, ranges):
    assert describe_storage(source.model) is None
    assert describe_storage(quantize(source.model, ranges)).split(", ")[0] in ("int8", "fp32")
    half = onnx.ModelProto()
    half.CopyFrom(source.model)
    weights = [item for item in half.graph.initializer if item.name.endswith(".weight")]
    for item in weights:
        item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float16), item.name))
    assert "fp16-storage" in describe_storage(half)
