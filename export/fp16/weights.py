"""Rounding the weights of convolutions to float16 so that their errors cancel.

A weight's rounding error is the same at every position of every image: unlike the rounding of activations it does not
average out, and the error of a bias is a constant. To the nearest, the weights of EfficientNet-Lite0 and their biases
move its features more than all activations do. So each weight goes to one of its two neighbours in float16 such that
the error of the sum over the inputs as they usually are, with the bias's own error, is small.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Moments = Mapping[str, tuple[Array, Array]]
"""Name of a convolution's input -> mean of its channels (C,), and their mean square (C,) or mean products (C, C)."""

TYPICAL = (1.0, 2.0)
"""Mean and mean square of a channel of which nothing is known: of an activation that is seldom negative."""

_FLIPS = 256  # weights of one filter, at most, that go to the neighbour which is not the nearest
_BLOCK = 1 << 15  # weights whose search runs at once: three arrays of 256 kB
_ALIKE = 0.9  # correlation of a channel's neighbouring positions


def round_to_fp16(
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    mean: Array | float = TYPICAL[0],
    square: Array | float = TYPICAL[1],
) -> NDArray[np.float16]:
    """Round a convolution's weight to float16.

    Args:
        weight: (O, I, ...), O output channels; I is 1 for a depthwise convolution, of O input channels.
        bias: (O,), which is rounded to the nearest elsewhere.
        mean: of the input channels, (I,), for a depthwise convolution (O,); or of all.
        square: their mean square, or of a 1 x 1 convolution the mean products of every two (I, I).
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    nearest = rows.astype(np.float16)
    error = nearest - rows
    other = np.nextafter(nearest, np.where(error > 0, -np.inf, np.inf).astype(np.float16))
    other = np.where(np.isfinite(other), other, nearest)
    constant = np.zeros(len(rows)) if bias is None else bias.astype(np.float16).astype(np.float64) - bias
    step = other - rows - error
    if np.ndim(square) == 2 and np.shape(square)[0] == rows.shape[1] == weight.shape[1]:
        flips = _flip_correlated(error, step, constant, np.asarray(mean), np.asarray(square))
    else:
        depthwise, taps = weight.shape[1] == 1, rows.shape[1] // weight.shape[1]
        squares = np.diagonal(square) if np.ndim(square) == 2 else square
        first, second = (_of_each_weight(value, rows.shape, taps, depthwise) for value in (mean, squares))
        flips = _flip(error, step, constant, first, np.maximum(second - first**2, 0) + 1e-6 * second, depthwise)
    return np.where(flips, other, nearest).reshape(weight.shape)


def _of_each_weight(value: Array | float, shape: tuple[int, ...], taps: int, depthwise: bool) -> Array:
    """A value of each input channel, or of all, for each weight of each filter."""
    channels = np.asarray(value, np.float64)
    if channels.ndim:
        channels = channels[:, None] if depthwise else np.repeat(channels, taps)[None]
    return np.broadcast_to(channels, shape)


def _flip_correlated(error: Array, step: Array, constant: Array, mean: Array, products: Array) -> NDArray[np.bool_]:
    """Which weights of each filter (O, n) leave the nearest value by ``step``, one after the other as each makes the
    mean square of the filter's error least; ``constant`` (O,) is the bias's error."""
    slope = error @ products + constant[:, None] * mean
    own = np.diagonal(products)
    flipped = np.zeros(error.shape, bool)
    block = max(1, _BLOCK // error.shape[1])
    for start in range(0, len(error), block):  # filters are independent: a block of them stays in the CPU's cache
        rows = np.arange(start, min(start + block, len(error)))
        moves, slopes = step[rows], slope[rows]
        for _ in range(_FLIPS):
            change = moves * (2 * slopes + moves * own)
            best = change.argmin(1)
            better = change[np.arange(len(rows)), best] < 0
            if not better.all():  # the others stay as they are
                rows, moves, slopes, best = rows[better], moves[better], slopes[better], best[better]
            if not len(rows):
                break
            at = np.arange(len(rows)), best
            slopes += moves[at][:, None] * products[best]
            flipped[rows, best] ^= True
            moves[at] *= -1  # a further flip goes back
    return flipped


def _flip(
    error: Array, step: Array, constant: Array, mean: Array, variance: Array, depthwise: bool
) -> NDArray[np.bool_]:
    """As :func:`_flip_correlated` for channels that vary independently, or in a depthwise filter (O, n) almost alike:
    ``mean`` and ``variance`` are of the input of each weight."""
    alike = _ALIKE if depthwise else 0.0
    shared = alike * variance[:, 0]
    cost = (1 - alike) * variance * step * (2 * error + step)
    count = min(_FLIPS // 4, step.shape[1])
    chosen = np.argpartition(cost, count - 1, axis=1)[:, :count]  # the others are too near to their nearest value
    total, plain = (error * mean).sum(1) + constant, error.sum(1)
    cost, moved, step = (np.take_along_axis(x, chosen, 1) for x in (cost, step * mean, step))
    rows, flipped = np.arange(len(step)), np.zeros(step.shape, bool)
    for _ in range(count):
        change = moved * (2 * total[:, None] + moved) + cost
        change += shared[:, None] * step * (2 * plain[:, None] + step)
        best = change.argmin(1)
        better = change[rows, best] < 0
        if not better.any():
            break
        at = rows[better], best[better]
        total[better] += moved[at]
        plain[better] += step[at]
        flipped[at] ^= True
        for values in (moved, step, cost):
            values[at] *= -1
    result = np.zeros(error.shape, bool)
    np.put_along_axis(result, chosen, flipped, 1)
    return result
