"""Weights go to a neighbour in float16, and the errors of a filter and its bias cancel on the inputs it usually has."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cats.export.exported import PeakSession
from cats.export.fp16.assign import to_fp16
from cats.export.fp16.input_moments import measure_moments
from cats.export.fp16.weights import round_to_fp16


def error_of_sums(weight, half, bias, inputs):
    """Root mean square of what a convolution's results are off by, (samples, channels of the filter) inputs."""
    bias_error = bias.astype(np.float16).astype(np.float64) - bias
    difference = (half.astype(np.float64) - weight).reshape(len(weight), -1)
    return np.sqrt(np.mean((inputs @ difference.T + bias_error) ** 2))


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("shape", [(32, 1, 3, 3), (64, 1, 5, 5), (48, 24, 1, 1), (16, 300, 1, 1), (8, 16, 3, 3)])
def test_errors_cancel(shape, products):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape).astype(np.float32)
    bias = (4 * rng.standard_normal(shape[0])).astype(np.float32)
    depthwise, taps = shape[1] == 1, shape[2] * shape[3]
    channels = shape[0] if depthwise else shape[1]
    mean, deviation = rng.uniform(0.5, 2, channels), rng.uniform(0.1, 0.4, channels)
    square = mean**2 + deviation**2
    half = round_to_fp16(weight, bias, mean, np.outer(mean, mean) + np.diag(deviation**2) if products else square)
    nearest = weight.astype(np.float16)
    assert (half.shape, half.dtype) == (shape, np.float16)
    below, above = (np.nextafter(nearest, np.float16(side)) for side in (-np.inf, np.inf))
    assert ((half == nearest) | (half == below) | (half == above)).all()
    steps = np.abs(half.astype(np.float64) - weight) / (above.astype(np.float64) - nearest)
    assert steps.max() <= 1  # one of the two neighbours of the weight itself
    if depthwise:  # each filter has a channel of its own, whose neighbouring positions are alike
        samples = [
            np.abs(m + d * (rng.standard_normal((400, 1)) + 0.3 * rng.standard_normal((400, taps))))
            for m, d in zip(mean, deviation, strict=True)
        ]
        pairs = [(weight[[k]], half[[k]], nearest[[k]], bias[[k]], samples[k]) for k in range(channels)]
    else:
        values = mean + deviation * rng.standard_normal((400, channels))
        pairs = [(weight, half, nearest, bias, np.repeat(values, taps, axis=1))]
    ours, theirs = (np.mean([error_of_sums(w, x[k], b, inputs) for w, *x, b, inputs in pairs]) for k in (0, 1))
    assert ours < 0.6 * theirs


def test_channels_that_vary_together():
    """A few patterns are what the inputs are made of, so that errors can cancel although every channel varies."""
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((40, 96, 1, 1)).astype(np.float32)
    bias = rng.standard_normal(40).astype(np.float32)
    values = rng.standard_normal((2000, 6)) @ rng.standard_normal((6, 96)) + 0.05 * rng.standard_normal((2000, 96))
    mean, products = values.mean(0), values.T @ values / len(values)
    halves = (
        round_to_fp16(weight, bias, mean, products),
        round_to_fp16(weight, bias, mean, np.diagonal(products)),
        weight.astype(np.float16),
    )
    together, alone, nearest = (error_of_sums(weight, half, bias, values) for half in halves)
    assert together < 0.4 * nearest
    assert together < 0.6 * alone


def test_without_a_bias_and_at_the_ends_of_float16():
    weight = np.array([[[[65504.0, -65504.0, 0.0, 1e-9]]]], np.float32)
    half = round_to_fp16(weight, None)
    assert np.isfinite(half).all()
    np.testing.assert_allclose(half[0, 0, 0, :2], weight[0, 0, 0, :2])
    assert np.abs(half[0, 0, 0, 2:]).max() < 1e-7


def test_weights_that_float16_holds_stay():
    weight = np.arange(-8, 8, dtype=np.float32).reshape(4, 4, 1, 1) / 4
    np.testing.assert_array_equal(round_to_fp16(weight, np.zeros(4, np.float32)), weight)


@pytest.mark.parametrize("kind", ["pair", "encoder", "matcher", "end-to-end"])
def test_moments_are_those_of_the_inputs(forms, model, kind):
    before = forms[kind].SerializeToString()
    found = measure_moments(forms[kind], model.config.preprocessing)
    assert forms[kind].SerializeToString() == before
    convolutions = [node for node in forms[kind].graph.node if node.op_type == "Conv"]
    assert set(found) == {node.input[0] for node in convolutions}
    weights = {item.name: numpy_helper.to_array(item) for item in forms[kind].graph.initializer}
    for node in convolutions:
        mean, square = found[node.input[0]]
        weight = weights[node.input[1]]
        channels = len(weight) if weight.shape[1] == 1 else weight.shape[1]
        assert mean.shape == (channels,)
        assert square.shape in ((channels,), (channels, channels))
        assert square.ndim == 2 or weight.shape[2:] != (1, 1)
        squares = np.diagonal(square) if square.ndim == 2 else square
        assert (squares >= mean**2 * 0.99 - 1e-3).all()
    assert bool(found) == (kind != "matcher")


def test_typed_models_use_them(forms, model):
    """The features of the photos are nearer to float32's."""
    encoder, preprocessing = forms["encoder"], model.config.preprocessing
    moments = measure_moments(encoder, preprocessing)
    typed = to_fp16(encoder, moments=moments)
    assert typed.SerializeToString(deterministic=True) == to_fp16(encoder, moments=moments).SerializeToString(
        deterministic=True
    )
    assert typed.SerializeToString(deterministic=True) != to_fp16(encoder).SerializeToString(deterministic=True)
    nearest = onnx.ModelProto()
    nearest.CopyFrom(typed)
    exact = {item.name: numpy_helper.to_array(item) for item in encoder.graph.initializer}
    for item in nearest.graph.initializer:
        name = item.name.removesuffix(".half")
        if item.data_type == onnx.TensorProto.FLOAT16 and name in exact:
            item.CopyFrom(numpy_helper.from_array(exact[name].astype(np.float16), item.name))
    rng = np.random.default_rng(1)
    image = np.repeat(np.repeat(rng.standard_normal((2, 3, 16, 16)), 4, 2), 4, 3).astype(np.float32)
    # ONNX Runtime computes typed files in float32 on a CPU: only the weights are rounded.
    expected, ours, theirs = (PeakSession(file)({"image": image}) for file in (encoder, typed, nearest))
    errors = [
        np.mean([np.mean((x[n] - expected[n]) ** 2) / np.mean(expected[n] ** 2) for n in ("features_0", "features_1")])
        for x in (ours, theirs)
    ]
    assert errors[0] < errors[1], errors  # random weights and little biases leave little to gain
