"""Rounding of weights by what a layer reads: nearer outputs than with the nearest integers, never a far integer."""

import numpy as np
import pytest

from cats.calibration.distribution import Channels
from cats.calibration.weight_rounding import mean_error, round_to_integers


def inputs_of(values):
    """Channels of (samples, channels, taps)."""
    return Channels.of(np.moveaxis(values, 1, -1), -1)


def output_error(whole, ratio, values):
    """Mean squared error of a layer's output; a group for each output channel where the weights have one channel."""
    error = whole - ratio
    if error.shape[1] == 1:
        return np.square(np.einsum("ock,nok->no", error, values)).mean()
    return np.square(np.einsum("ock,nck->no", error, values)).mean()


@pytest.mark.parametrize(
    ("shape", "channels"), [((40, 1, 9), 40), ((24, 16, 9), 16), ((32, 48, 1), 48), ((8, 3, 9), 3)]
)
def test_the_output_is_nearer(shape, channels):
    rng = np.random.default_rng(0)
    ratio = rng.uniform(-126, 126, shape).astype(np.float32)
    # As behind an activation: channels with means, and positions under a filter that are nearly equal.
    common = np.abs(rng.standard_normal((400, channels, 1))) + rng.uniform(0, 2, (1, channels, 1))
    values = (common + 0.2 * rng.standard_normal((400, channels, shape[2]))).astype(np.float32)
    whole = round_to_integers(ratio, inputs_of(values), 127)
    assert np.array_equal(whole, np.rint(whole))
    assert np.abs(whole - ratio).max() < 1
    assert output_error(whole, ratio, values) < 0.5 * output_error(np.rint(ratio), ratio, values)
    assert (
        np.abs(mean_error(whole - ratio, inputs_of(values))).mean()
        < np.abs(mean_error(np.rint(ratio) - ratio, inputs_of(values))).mean()
    )


def test_the_mean_error_is_that_of_the_outputs():
    rng = np.random.default_rng(1)
    values = (rng.standard_normal((500, 6, 9)) + rng.uniform(-1, 1, (1, 6, 1))).astype(np.float32)
    error = rng.uniform(-0.5, 0.5, (4, 3, 9)).astype(np.float32)  # two groups of three channels, two outputs each
    means = np.concatenate(
        [np.einsum("ock,nck->no", error[2 * g : 2 * g + 2], values[:, 3 * g : 3 * g + 3]) for g in (0, 1)], 1
    )
    channels = Channels(*(np.asarray(v, np.float32) for v in (np.ones(6), values.mean(axis=(0, 2)), np.ones(6))))
    by_tap = mean_error(error, channels)
    assert by_tap == pytest.approx(means.mean(axis=0), abs=0.15)
    assert np.abs(by_tap).max() > 0.3


def test_whole_weights_and_the_largest_stay():
    ratio = np.float32([[[127.0, -127.0, 3.0, 126.8]]])
    channels = Channels(*(np.float32([v]) for v in (6, 3, 12)))
    assert round_to_integers(ratio, channels, 127).tolist() == [[[127, -127, 3, 127]]]


def test_silent_channels_are_rounded_to_the_nearest():
    ratio = np.float32([[[0.4, 0.6, -0.6]]])
    channels = Channels(*(np.float32([0]) for _ in range(3)))
    assert round_to_integers(ratio, channels, 127).tolist() == [[[0, 1, -1]]]
