"""Weights to integers so that the error of a layer's output is small, not that of each weight.

To the nearest integer, the errors of a filter's weights add up wherever its inputs are alike: neighbouring pixels are
nearly equal, channels have a mean. Filters whose weights cancel, as in a backbone's first layers, suffer most. Here a
weight may go to the other neighbouring integer where that makes the expected squared error of the output smaller, by
what the calibration set says of the inputs: mean and mean square of each channel. What is left of the mean error goes
into the bias (as in Nagel et al., ICCV 2019, section 4.2).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cats.calibration.distribution import Channels

_SPATIAL = np.float32(0.9)
"""Share of a channel's variance that the positions under a filter have in common."""

_FLIPS = 4  # of one filter, at most

Floats = NDArray[np.float32]


def round_to_integers(ratio: Floats, inputs: Channels, steps: int) -> Floats:
    """Round one layer's weights to integers.

    Args:
        ratio: weights in steps of their output channel: (O, C, taps), C the input channels of its group.
        inputs: of the values that the layer reads; all groups' channels in order.
        steps: largest magnitude of an integer.

    Returns:
        Whole numbers of the same shape, each one of the two integers around the weight.
    """
    mean, variance = _of_groups(ratio, inputs)
    outputs, channels, taps = ratio.shape
    shared = _SPATIAL if taps > 1 else np.float32(0)
    # The expected squared error of an output: of each channel `of_sum` times the squared sum of the errors of its
    # weights, and `of_each` times the sum of their squares; and the square of what the means of all channels add up to.
    of_sum, of_each = shared * variance, (1 - shared) * variance
    if channels == 1:
        of_sum = of_sum + np.square(mean)
    whole = np.rint(ratio)
    error = whole - ratio
    fixed = np.abs(ratio) > steps - 0.5

    def other() -> tuple[Floats, Floats]:
        """The step to the other neighbour, 0 where there is none, and what it adds to a channel's part."""
        step = np.where(error > 0, np.float32(-1), np.float32(1))
        step[fixed | (np.abs(error + step) >= 1)] = 0
        return step, of_sum * (2 * error.sum(axis=2, keepdims=True) * step + 1) + of_each * (2 * error * step + 1)

    for _ in range(_FLIPS if taps > 1 else 0):
        step, cost = other()
        best = np.where(step == 0, np.inf, cost).argmin(axis=2)[:, :, None]
        gained = np.take_along_axis(cost, best, 2) < 0
        if not gained.any():
            break
        np.put_along_axis(error, best, np.take_along_axis(error + np.where(gained, step, 0), best, 2), 2)
    if channels > 1:
        step, cost = (value.reshape(outputs, -1) for value in other())
        effect = (mean * step.reshape(error.shape)).reshape(outputs, -1)
        total = (mean * error.sum(axis=2, keepdims=True)).sum(axis=(1, 2))[:, None]
        # The cheapest for what they take off the total, one after the other, as long as it pays.
        useful = effect * total < 0
        cost = np.where(useful, np.maximum(cost, 0), 0)
        order = np.where(useful, cost / np.maximum(np.abs(effect), 1e-30), np.inf).argsort(axis=1, kind="stable")
        effect = np.where(useful, effect, 0)
        left = np.square(total + np.take_along_axis(effect, order, 1).cumsum(axis=1))
        left += np.take_along_axis(cost, order, 1).cumsum(axis=1)
        count = np.where(left.min(axis=1) < np.square(total[:, 0]), left.argmin(axis=1) + 1, 0)
        chosen = np.zeros(useful.shape, bool)
        np.put_along_axis(chosen, order, np.arange(order.shape[1]) < count[:, None], 1)
        error += np.where(chosen & useful, step, 0).reshape(error.shape)
    result: Floats = np.rint(ratio + error)
    return result


def mean_error(error: Floats, inputs: Channels) -> Floats:
    """What errors (O, C, taps) of weights add to each output channel on average: (O,)."""
    mean, _ = _of_groups(error, inputs)
    shift: Floats = (mean * error).sum(axis=(1, 2))
    return shift


def _of_groups(weights: Floats, inputs: Channels) -> tuple[Floats, Floats]:
    """Mean and variance of the input behind each weight, (O or 1, C, 1) each."""
    mean = inputs.mean.astype(np.float32)
    variance = np.maximum(inputs.square - np.square(inputs.mean), 0).astype(np.float32)
    outputs, width = weights.shape[:2]
    groups = len(mean) // width
    return tuple(  # type: ignore[return-value]
        np.repeat(value.reshape(groups, width), outputs // groups if groups > 1 else 1, axis=0)[:, :, None]
        for value in (mean, variance)
    )
