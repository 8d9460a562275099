"""Balancing moves factors from activations into weights without changing what the model computes."""

import numpy as np
import pytest

from cats.calibration.balance import balance_norms, choose_factors
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
    return balance_norms(source.model, {"decoder.blocks.0.norm4": factors})


def channels(model, feeds):
    names = [n.output[0] for n in model.graph.node if n.op_type == "LayerNormalization"]
    values = ProbeSession(model, outputs=names)(feeds)
    return {name: np.abs(value).reshape(-1, value.shape[-1]).max(axis=0) for name, value in values.items()}


def test_the_same_result(source, feeds):
    factors = choose_factors(source.model, channels(source.model, feeds))
    assert set(factors) == {f"decoder.blocks.0.norm{k}" for k in (1, 2, 3, 4)}
    changed = balance_norms(source.model, factors)
    before, after = (ProbeSession(model)(feeds)["flow"] for model in (source.model, changed))
    assert flow_distance(before, after).max() < 0.02
    assert not np.array_equal(before, after)


def test_a_planted_outlier_is_evened_out(skewed, feeds):
    def spread(model):
        largest = channels(model, feeds)["decoder.blocks.0.norm4/LayerNormalization"]
        return largest.max() / np.median(largest)

    assert spread(skewed) > 20
    assert spread(balance_norms(skewed, choose_factors(skewed, channels(skewed, feeds)))) < spread(skewed) / 5


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
    assert flow_distance(expected, ProbeSession(balance_norms(loaded, factors))(feeds)["flow"]).max() < 0.02


def test_weights_stored_as_half(source, feeds):
    stored, _ = store_as_half(source.model)
    changed = balance_norms(stored, choose_factors(stored, channels(stored, feeds)))
    before, after = (ProbeSession(model)(feeds)["flow"] for model in (stored, changed))
    assert flow_distance(before, after).max() < 0.02


def test_differently_balanced_ranges_do_not_merge(source, pairs, ranges):
    few = PhotoPairs("few", pairs.pairs[:1])
    with pytest.raises(InputError, match="differently balanced"):
        ranges.merge(measure_ranges(source, few, balance=False))
    assert ranges.merge(measure_ranges(source, few, balance=ranges.balance)).pairs == ranges.pairs + 1
