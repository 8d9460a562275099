"""``cats::Correlation``: the custom op, the ONNX function and the inlined graph against the published formula."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from cats.export.exported import PeakSession
from cats.export.graph.correlation import DOMAIN, NAME, Correlation, correlation, correlation_function
from cats.model import correlation as published_correlation
from cats.model import mutual_filter


def published(a, b):
    """Rows source, so transposed here: rows a = target."""
    grid = int(a[0].shape[2] ** 0.5)
    maps = [[x.unflatten(2, (grid, grid)) for x in side] for side in (a, b)]
    levels = [published_correlation(source, target) for target, source in zip(*maps, strict=True)]
    return mutual_filter(torch.stack(levels, dim=1)).transpose(-1, -2)


def features(seed, batch=2, levels=3, grid=3):
    generator = torch.Generator().manual_seed(seed)
    channels = [4 + 3 * level for level in range(levels)]
    return tuple(
        [torch.randn(batch, c, grid * grid, generator=generator) * 10**level for level, c in enumerate(channels)]
        for _ in "ab"
    )


def model_of(levels, channels, cells, opset=20):
    """A model that is one node, with its function."""
    inputs = [
        helper.make_tensor_value_info(f"{side}{i}", TensorProto.FLOAT, ["batch", c, cells])
        for side in "ab"
        for i, c in enumerate(channels)
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", levels, cells, cells])
    node = helper.make_node(NAME, [value.name for value in inputs], ["y"], domain=DOMAIN)
    return helper.make_model(
        helper.make_graph([node], "g", inputs, [output]),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)],
        functions=[correlation_function(levels, opset)],
        ir_version=10,
    )


def run(model, a, b):
    feeds = {f"{side}{i}": x.numpy() for side, xs in (("a", a), ("b", b)) for i, x in enumerate(xs)}
    return torch.from_numpy(PeakSession(model)(feeds)["y"])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), batch=st.integers(1, 3), levels=st.integers(1, 4), grid=st.integers(2, 5))
def test_the_operator_is_the_published_formula(seed, batch, levels, grid):
    a, b = features(seed, batch, levels, grid)
    expected = published(a, b)
    for fused in (True, False):
        actual = Correlation(fused)(a, b)
        assert actual.shape == (batch, levels, grid**2, grid**2)
        assert torch.allclose(actual, expected, rtol=1e-3, atol=1e-5)


def test_the_custom_op_keeps_to_torchs_rules():
    a, b = features(0)
    torch.library.opcheck(correlation, (a, b), test_utils=("test_schema", "test_faketensor"))


def test_function_and_inlined_form_are_equal_bit_by_bit():
    a, b = features(0)
    model = model_of(3, [x.shape[1] for x in a], 9)
    onnx.checker.check_model(model, full_check=True)
    inlined = onnx.inliner.inline_local_functions(model)
    assert not inlined.functions
    assert {node.op_type for node in inlined.graph.node} >= {"MatMul", "ReduceMax", "Where"}
    result = run(model, a, b)
    assert torch.equal(result, run(inlined, a, b))
    assert torch.allclose(result, published(a, b), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("opset", [18, 21])
def test_a_maximum_of_exactly_zero_is_guarded(opset):
    # Features without anything in them: every maximum is exactly 0, and without the guard the result is 0 / 0.
    a, b = ([torch.zeros(1, 4, 9)], [torch.zeros(1, 4, 9)])
    model = model_of(1, [4], 9, opset)
    for result in (correlation(a, b), run(model, a, b)):
        assert torch.equal(result, torch.zeros(1, 1, 9, 9))
    constants = {n.output[0]: onnx.numpy_helper.to_array(n.attribute[0].t) for n in model.functions[0].node[:6]}
    assert constants["tiny"] == np.float32(1e-30)


def test_only_one_empty_position_is_guarded():
    a, b = features(0, batch=1, levels=1)
    a[0][:, :, 4] = 0
    result = run(model_of(1, [4], 9), a, b)
    assert torch.isfinite(result).all()
    assert torch.equal(result[0, 0, 4], torch.zeros(9))
    assert torch.allclose(result, published(a, b), rtol=1e-3, atol=1e-5)
