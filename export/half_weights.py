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

Moments = Mapping[str, tuple[NDArray[Any], NDArray[Any]]]
"""Name of a convolution's input -> mean and mean square of its channels, each (C,)."""

TYPICAL = (1.0, 2.0)
"""Mean and mean square of a channel of which nothing is known: of an activation that is seldom negative."""

_CANDIDATES = 64  # weights of one filter that may go to the neighbour which is not the nearest
_ALIKE = 0.9  # correlation of a channel's neighbouring positions


def round_weights(
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    mean: NDArray[Any] | float = TYPICAL[0],
    square: NDArray[Any] | float = TYPICAL[1],
) -> NDArray[np.float16]:
    """A convolution's weight in float16.

    Args:
        weight: (O, I, ...), O output channels; I is 1 for a depthwise convolution, of O input channels.
        bias: (O,), which is rounded to the nearest elsewhere.
        mean, square: mean and mean square of the input channels, (I,), for a depthwise convolution (O,); or of all.
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    taps = rows.shape[1] // weight.shape[1]
    depthwise = weight.shape[1] == 1
    first, second = (_spread(value, rows.shape, taps, depthwise) for value in (mean, square))
    spread = np.maximum(second - first**2, 0) + 1e-6 * (second + 1e-6)
    nearest = rows.astype(np.float16)
    error = nearest - rows
    other = np.nextafter(nearest, np.where(error > 0, -np.inf, np.inf).astype(np.float16))
    step = np.where(np.isfinite(other), other, nearest) - rows - error
    cost = spread * (1 - _ALIKE * depthwise) * ((error + step) ** 2 - error**2)
    constant = np.zeros(len(rows)) if bias is None else bias.astype(np.float16).astype(np.float64) - bias
    flips = _flips(
        (error * first).sum(1) + constant, step * first, error.sum(1), step, spread[:, 0] * _ALIKE * depthwise, cost
    )
    return np.where(flips, other, nearest).reshape(weight.shape)


def _spread(value: NDArray[Any] | float, shape: tuple[int, ...], taps: int, depthwise: bool) -> NDArray[np.float64]:
    """A value of each input channel, or of all, for each weight of each filter."""
    channels = np.asarray(value, np.float64)
    if channels.ndim:
        channels = channels[:, None] if depthwise else np.repeat(channels, taps)[None]
    return np.broadcast_to(channels, shape)


def _flips(
    total: NDArray[Any],
    step: NDArray[Any],
    plain_total: NDArray[Any],
    plain_step: NDArray[Any],
    plain_weight: NDArray[Any],
    cost: NDArray[Any],
) -> NDArray[np.bool_]:
    """Which weights of each filter (O, n) leave the nearest value, one after the other as each makes the error least.

    The error is ``total ** 2 + plain_weight * plain_total ** 2`` plus the cost of each flip; a flip adds its ``step``
    to ``total`` and its ``plain_step`` to ``plain_total``.
    """
    result = np.zeros(step.shape, bool)
    count = min(_CANDIDATES, step.shape[1])
    chosen = np.argpartition(cost, count - 1, axis=1)[:, :count]
    step, plain_step, cost = (np.take_along_axis(x, chosen, 1) for x in (step, plain_step, cost))
    flipped = np.zeros(step.shape, bool)
    rows = np.arange(len(step))
    for _ in range(count):
        change = step * (2 * total[:, None] + step) + cost
        change += plain_weight[:, None] * plain_step * (2 * plain_total[:, None] + plain_step)
        best = change.argmin(1)
        better = change[rows, best] < 0
        if not better.any():
            break
        at = rows[better], best[better]
        total[better] += step[at]
        plain_total[better] += plain_step[at]
        flipped[at] ^= True
        for values in (step, plain_step, cost):
            values[at] *= -1  # a further flip goes back
    np.put_along_axis(result, chosen, flipped, 1)
    return result
