"""Weights to integers so that the error of a layer's output is small, not that of each weight.

To the nearest integer, the errors of a filter's weights add up wherever its inputs are alike: neighbouring pixels are
nearly equal, channels go together. Filters whose weights cancel, as in a backbone's first layers, suffer most. Here the
expected squared error of the output is made small, by what the calibration set says of the inputs: weights are rounded
one after the other, each error is made up for by those that follow (GPTQ, Frantar et al., 2023), and then each may go
to a neighbouring integer where that takes something off the rest. What is left of the mean error goes into the bias (as
in Nagel et al., ICCV 2019, section 4.2), which is why all moments are about the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cats.calibration.distribution import Channels

_SPATIAL = 0.9
"""Share of a channel's variance that the positions under a filter have in common, where that was not measured."""

_DAMPING = 0.01  # of the mean variance, which no direction falls below: samples are few, and sums of float32
_TOGETHER = 128  # columns whose errors are passed on in one product
_FLIPS = 400  # of one row, at most

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Moments of what a layer's weights are multiplied with, in blocks between which nothing is known: the groups of a
    convolution, or each of their channels.

    Attributes:
        groups: of the layer.
        mean: (B, D), B a multiple of ``groups``, D the weights of one output in a block.
        covariance: (B, D, D).
    """

    groups: int
    mean: Floats
    covariance: Floats


def moments_of_channels(channels: Channels, groups: int, taps: int) -> Moments:
    """Moments as far as mean and mean square of each channel tell: a block for each channel."""
    variance = np.maximum(channels.square - np.square(channels.mean), 0).astype(np.float32)
    shape = np.full((taps, taps), _SPATIAL, np.float32)
    np.fill_diagonal(shape, 1)
    return Moments(groups, np.repeat(channels.mean[:, None], taps, axis=1), variance[:, None, None] * shape)


def round_to_integers(ratio: Floats, moments: Moments, steps: int) -> Floats:
    """Round one layer's weights to integers.

    Args:
        ratio: weights in steps of their output channel: (O, C, taps), C the input channels of its group.
        moments: of what they are multiplied with.
        steps: largest magnitude of an integer.

    Returns:
        Whole numbers of the same shape; of inputs that never vary the nearest ones.
    """
    rows = _to_blocks(ratio, moments).astype(np.float64)
    whole = np.clip(np.rint(rows), -steps, steps)
    covariance = moments.covariance.astype(np.float64)
    power = np.einsum("bii->b", covariance) / covariance.shape[1]
    known = power > 0
    if known.any():
        damped = covariance[known] + (_DAMPING * power[known])[:, None, None] * np.eye(covariance.shape[1])
        whole[known] = _flip(rows[known], _pass_errors_on(rows[known], damped, steps), damped, steps)
    split = len(whole) // moments.groups
    whole = whole.reshape(moments.groups, split, -1, whole.shape[2]).swapaxes(1, 2)
    return np.ascontiguousarray(whole.reshape(ratio.shape), np.float32)


def mean_error(error: Floats, moments: Moments) -> Floats:
    """What errors (O, C, taps) of weights add to each output channel on average: (O,)."""
    rows = _to_blocks(error, moments).astype(np.float64)
    added = np.einsum("brd,bd->br", rows, moments.mean.astype(np.float64))
    shift: Floats = added.reshape(moments.groups, -1, rows.shape[1]).sum(axis=1).reshape(-1).astype(np.float32)
    return shift


def _to_blocks(weights: Floats, moments: Moments) -> Floats:
    """(O, C, taps) as (B, outputs of a group, D)."""
    blocks, groups = len(moments.mean), moments.groups
    parted = weights.reshape(groups, len(weights) // groups, blocks // groups, -1).swapaxes(1, 2)
    return parted.reshape(blocks, len(weights) // groups, -1)


def _pass_errors_on(rows: Doubles, covariance: Doubles, steps: int) -> Doubles:
    """GPTQ: the inputs of most variance first; (B, R, D) and (B, D, D) to whole numbers (B, R, D)."""
    order = np.argsort(-np.einsum("bii->bi", covariance), axis=1, kind="stable")
    turned = np.take_along_axis(np.take_along_axis(covariance, order[:, :, None], 1), order[:, None, :], 2)
    upper = np.linalg.cholesky(np.linalg.inv(turned)).swapaxes(1, 2)
    left = np.take_along_axis(rows, np.broadcast_to(order[:, None], rows.shape), 2)
    whole, width = np.empty_like(left), left.shape[2]
    for start in range(0, width, _TOGETHER):
        end = min(start + _TOGETHER, width)
        errors = np.empty((*left.shape[:2], end - start))
        for k in range(start, end):
            whole[:, :, k] = np.clip(np.rint(left[:, :, k]), -steps, steps)
            error = (left[:, :, k] - whole[:, :, k]) / upper[:, None, k, k]
            errors[:, :, k - start] = error
            left[:, :, k:end] -= error[:, :, None] * upper[:, None, k, k:end]
        left[:, :, end:] -= errors @ upper[:, start:end, end:]
    back = np.argsort(order, axis=1)
    return np.take_along_axis(whole, np.broadcast_to(back[:, None], rows.shape), 2)


def _flip(rows: Doubles, whole: Doubles, covariance: Doubles, steps: int) -> Doubles:
    """Of each row, the best step of one weight to a neighbouring integer, as long as the expected error shrinks."""
    error = whole - rows
    slope, own = error @ covariance, np.einsum("bii->bi", covariance)[:, None]
    block, row = np.indices(error.shape[:2])
    for _ in range(_FLIPS):
        step = -np.sign(slope)
        change = own + 2 * slope * step
        change[(np.abs(whole + step) > steps) | (step == 0)] = np.inf
        best = change.argmin(axis=2)
        taken = np.where(change[block, row, best] < -1e-9 * own.max(axis=2), step[block, row, best], 0)
        if not taken.any():
            break
        whole[block, row, best] += taken
        slope += taken[:, :, None] * covariance[block, best]
    return whole
