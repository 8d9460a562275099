"""Balancing moves factors from activations into weights without changing what the model computes."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from cats.calibration.balance import balance_channels, choose_factors, find_streams
from cats.calibration.calibrate import load_float_model, measure_ranges
from cats.calibration.graph import Graph
from cats.calibration.quantize import quantize
from cats.calibration.sessions import ProbeSession
from cats.core.errors import InputError
from cats.core.metadata import write_model
from cats.data.photo_pairs import PhotoPairs
from cats.evaluation.parity import flow_distance
from cats.export.storage import store_as_half


@pytest.fixture(scope="module")
def skewed(source):
    """The model with one channel of a norm made 100 times larger, and the rows that read it as much smaller."""
    factors = np.ones(Graph(source.model).constant("decoder.blocks.0.norm4.weight").shape, np.float32)
    factors[3] = 0.01
    return balance_channels(source.model, {"decoder.blocks.0.norm4": factors})


def channels(model, feeds):
    names = [n.output[0] for n in model.graph.node if n.op_type == "LayerNormalization"]
    values = ProbeSession(model, outputs=names)(feeds)
    return {name: np.abs(value).reshape(-1, value.shape[-1]).max(axis=0) for name, value in values.items()}


def test_the_same_result(source, feeds):
    factors = choose_factors(source.model, channels(source.model, feeds))
    assert set(factors) == {f"decoder.blocks.0.norm{k}" for k in (1, 2, 3, 4)}
    changed = balance_channels(source.model, factors)
    before, after = (ProbeSession(model)(feeds)["flow"] for model in (source.model, changed))
    assert flow_distance(before, after).max() < 0.02
    assert not np.array_equal(before, after)


def test_a_planted_outlier_is_evened_out(skewed, feeds):
    def spread(model):
        largest = channels(model, feeds)["decoder.blocks.0.norm4/LayerNormalization"]
        return largest.max() / np.median(largest)

    assert spread(skewed) > 20
    assert spread(balance_channels(skewed, choose_factors(skewed, channels(skewed, feeds)))) < spread(skewed) / 5


def test_it_brings_int8_nearer_where_there_is_an_outlier(source, skewed, pairs, feeds):
    from dataclasses import replace

    model = replace(source, model=skewed)
    expected = ProbeSession(skewed)(feeds)["flow"]
    drift = {}
    for balance in (False, True):
        ranges = measure_ranges(model, pairs, balance=balance)
        assert bool(ranges.balance) == balance
        result = quantize(skewed, ranges, method="minmax", keep=["feature_extraction"], weight_bits=7)
        drift[balance] = np.median(flow_distance(expected, ProbeSession(result)(feeds)["flow"]))
    assert drift[True] < drift[False]


def test_norms_that_share_their_parameters(source, feeds, copy, tmp_path):
    """As the exporter writes equal ones, such as those of a model before its first update."""
    model = copy(source.model)
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            node.input[1:3] = ["decoder.blocks.0.norm1.weight", "decoder.blocks.0.norm1.bias"]
    read = {name for node in model.graph.node for name in node.input}
    kept = [item for item in model.graph.initializer if item.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    expected = ProbeSession(model)(feeds)["flow"]
    largest = channels(model, feeds)
    assert choose_factors(model, largest) == {}
    write_model(model, source.metadata, tmp_path / "shared.onnx")
    loaded = load_float_model(tmp_path / "shared.onnx").model
    factors = choose_factors(loaded, largest)
    assert set(factors) == {f"decoder.blocks.0.norm{k}" for k in (1, 2, 3, 4)}
    assert flow_distance(expected, ProbeSession(loaded)(feeds)["flow"]).max() == 0
    assert flow_distance(expected, ProbeSession(balance_channels(loaded, factors))(feeds)["flow"]).max() < 0.02


def test_weights_stored_as_half(source, feeds):
    stored, _ = store_as_half(source.model)
    changed = balance_channels(stored, choose_factors(stored, channels(stored, feeds)))
    before, after = (ProbeSession(model)(feeds)["flow"] for model in (stored, changed))
    assert flow_distance(before, after).max() < 0.02
    assert changed.ByteSize() < 1.1 * stored.ByteSize()  # what stays in float32 is still stored as float16


def test_residual_streams():
    """Two convolutions that a sum joins; a third reads it, and so does the output, which stays as it was."""
    rng = np.random.default_rng(0)
    model = streams_model(rng, 8)
    feeds = {"x": rng.standard_normal((2, 8, 6, 6)).astype(np.float32)}
    assert find_streams(Graph(model)) == {"a/y": ["a/y", "b/y", "sum/y"]}
    watched = ["sum/y", "other/y", "c/y"]
    before = dict(zip(watched, ProbeSession(model, outputs=watched)(feeds).values(), strict=True))
    largest = np.abs(before["sum/y"]).max(axis=(0, 2, 3))
    factors = choose_factors(model, {"sum/y": largest})
    assert set(factors) == {"a/y"}
    assert largest.max() > 20 * np.median(largest)
    after = ProbeSession(balance_channels(model, factors), outputs=watched)(feeds)
    evened = np.abs(after["sum/y"]).max(axis=(0, 2, 3))
    assert evened.max() < 9 * np.median(evened)
    for name in watched[1:]:
        assert after[name] == pytest.approx(before[name], rel=1e-4, abs=1e-4), name


def streams_model(rng, width):
    def conv(name, value):
        return helper.make_node("Conv", [value, f"{name}.weight", f"{name}.bias"], [f"{name}/y"], f"{name}/Conv")

    nodes = [
        conv("a", "x"),
        conv("b", "x"),
        helper.make_node("Add", ["a/y", "b/y"], ["sum/y"], "sum/Add"),
        conv("c", "sum/y"),
        helper.make_node("Sigmoid", ["sum/y"], ["other/y"], "other/Sigmoid"),
    ]
    values = []
    for name in "abc":
        weight = rng.standard_normal((width, width, 1, 1)).astype(np.float32)
        if name != "c":
            weight[2] *= 40
        bias = rng.standard_normal(width).astype(np.float32)
        values += [numpy_helper.from_array(weight, f"{name}.weight"), numpy_helper.from_array(bias, f"{name}.bias")]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width, None, None])
        for name in ("x", "c/y", "other/y")
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_differently_balanced_ranges_do_not_merge(source, pairs, ranges):
    few = PhotoPairs("few", pairs.pairs[:1])
    with pytest.raises(InputError, match="differently balanced"):
        ranges.merge(measure_ranges(source, few, balance=False))
    assert ranges.merge(measure_ranges(source, few, balance=ranges.balance)).pairs == ranges.pairs + 1
