"""Rounding of weights by what a layer reads: nearer outputs than with the nearest integers."""

import numpy as np
import pytest

from cats.calibration.distribution import Channels
from cats.calibration.weight_rounding import Moments, mean_error, moments_of_channels, round_to_integers


def channels_of(values):
    """Of (samples, channels, taps)."""
    return Channels.of(np.moveaxis(values, 1, -1), -1)


def moments_of(values, groups=1):
    """Measured moments of (samples, channels, taps), a block for each group."""
    parts = np.moveaxis(values.reshape(len(values), groups, -1), 1, 0)
    covariance = np.stack([np.cov(part, rowvar=False, bias=True) for part in parts])
    return Moments(groups, parts.mean(axis=1).astype(np.float32), covariance.astype(np.float32))


def output_error(error, values):
    """Squared errors of a layer's outputs about their means, which go into the bias; (O,), on average."""
    if error.shape[1] == 1:
        return np.einsum("ock,nok->no", error, values).var(axis=0).mean()
    return np.einsum("ock,nck->no", error, values).var(axis=0).mean()


@pytest.mark.parametrize(
    ("shape", "channels"), [((40, 1, 9), 40), ((24, 16, 9), 16), ((32, 48, 1), 48), ((8, 3, 9), 3)]
)
@pytest.mark.parametrize("measured", [True, False])
def test_the_output_is_nearer(shape, channels, measured):
    rng = np.random.default_rng(0)
    ratio = rng.uniform(-126, 126, shape).astype(np.float32)
    # As behind an activation: channels that go together, and positions under a filter that are nearly equal.
    common = np.abs(rng.standard_normal((400, channels, 1))) + 5 * rng.uniform(0, 1, (400, 1, 1))
    values = (common + 0.2 * rng.standard_normal((400, channels, shape[2]))).astype(np.float32)
    groups = channels if shape[1] == 1 else 1
    moments = moments_of(values, groups) if measured else moments_of_channels(channels_of(values), groups, shape[2])
    whole = round_to_integers(ratio, moments, 127)
    assert np.array_equal(whole, np.rint(whole))
    assert np.abs(whole).max() <= 127
    nearest = output_error(np.rint(ratio) - ratio, values)
    if measured or shape[2] > 1:  # of single channels nothing is known but that each counts for itself
        assert output_error(whole - ratio, values) < 0.5 * nearest
    else:
        assert np.array_equal(whole, np.rint(ratio))


def test_the_mean_error_is_that_of_the_outputs():
    rng = np.random.default_rng(1)
    values = (rng.standard_normal((500, 6, 9)) + rng.uniform(-1, 1, (1, 6, 1))).astype(np.float32)
    error = rng.uniform(-0.5, 0.5, (4, 3, 9)).astype(np.float32)  # two groups of three channels, two outputs each
    means = np.concatenate(
        [np.einsum("ock,nck->no", error[2 * g : 2 * g + 2], values[:, 3 * g : 3 * g + 3]) for g in (0, 1)], 1
    )
    assert mean_error(error, moments_of(values, 2)) == pytest.approx(means.mean(axis=0), abs=1e-4)
    by_channel = mean_error(error, moments_of_channels(channels_of(values), 2, 9))
    assert by_channel == pytest.approx(means.mean(axis=0), abs=0.15)
    assert np.abs(by_channel).max() > 0.3


def test_whole_weights_and_the_largest_stay():
    ratio = np.float32([[[127.0, -127.0, 3.0, 126.8]]])
    channels = Channels(*(np.float32([v]) for v in (6, 3, 12)))
    assert round_to_integers(ratio, moments_of_channels(channels, 1, 4), 127).tolist() == [[[127, -127, 3, 127]]]


def test_silent_channels_are_rounded_to_the_nearest():
    ratio = np.float32([[[0.4, 0.6, -0.6]]])
    channels = Channels(*(np.float32([0]) for _ in range(3)))
    assert round_to_integers(ratio, moments_of_channels(channels, 1, 3), 127).tolist() == [[[0, 1, -1]]]
