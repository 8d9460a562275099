"""Distributions of activations: what a value of the graph was over a calibration set, and which interval to represent.

All histograms have bins whose width is a power of two and whose edges are multiples of it, so that they can be merged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cats.core.errors import InputError, ModelFileError

METHODS = ("minmax", "mse")

BINS = 1024
"""Bins on either side of zero, at most."""

_SHRINKS = np.linspace(1.0, 0.2, 81)

_LARGEST_BIN = 2**40  # index; a histogram that reaches farther is damaged
_LARGEST_COUNT = 2**53

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Channels:
    """What is known of each channel of a layer's input: (C,) float32 each.

    Attributes:
        largest: magnitude.
        mean, square: of all values, and of their squares.
    """

    largest: NDArray[np.float32]
    mean: NDArray[np.float32]
    square: NDArray[np.float32]

    @classmethod
    def of(cls, values: NDArray[np.float32], axis: int) -> Channels:
        """Measure an array with channels along ``axis``."""
        others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
        moments = (values.mean(axis=others, dtype=np.float64), np.square(values).mean(axis=others, dtype=np.float64))
        return cls(np.abs(values).max(axis=others), *(moment.astype(np.float32) for moment in moments))

    def merge(self, other: Channels, share: float) -> Channels:
        """Channels of the values of both, ``share`` of which are the other's."""
        mean, square = (
            ((1 - share) * mine.astype(np.float64) + share * its).astype(np.float32)
            for mine, its in ((self.mean, other.mean), (self.square, other.square))
        )
        return Channels(np.maximum(self.largest, other.largest), mean, square)

    def to_dict(self) -> dict[str, list[float]]:
        """Plain JSON types, six digits each."""
        return {name: [float(f"{value:.6g}") for value in getattr(self, name)] for name in _CHANNEL_FIELDS}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Channels:
        """Inverse of :meth:`to_dict`."""
        if not isinstance(document, dict):
            raise ValueError("channels of an earlier version: measure the ranges again")
        arrays = [finite_array(document[name], f"channels' {name}") for name in _CHANNEL_FIELDS]
        if len({array.shape for array in arrays}) > 1:
            raise ValueError("channels of different lengths")
        return cls(*arrays)


_CHANNEL_FIELDS = ("largest", "mean", "square")


@dataclass(frozen=True)
class TensorRange:
    """Distribution of one tensor.

    Attributes:
        minimum, maximum: of all values.
        width: of a bin, a power of two.
        first: index of the first bin; bin i covers ``[i * width, (i + 1) * width)``.
        counts: values in each bin from ``first`` on.
        channels: of inputs of convolutions and linear layers.
    """

    minimum: float
    maximum: float
    width: float
    first: int
    counts: Counts
    channels: Channels | None = None

    @classmethod
    def of(cls, values: NDArray[np.float32], *, axis: int | None = None) -> TensorRange:
        """Measure an array, and its channels along ``axis``.

        Raises:
            ModelFileError: a value is not finite.
        """
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ModelFileError("values that are not finite")
        width = _width(max(-low, high))
        index = np.floor(values.ravel() * np.float32(1 / width)).astype(np.int32)
        first = int(index.min())
        counts = np.bincount(index - first)
        return cls(low, high, width, first, counts, None if axis is None else Channels.of(values, axis))

    def merge(self, other: TensorRange) -> TensorRange:
        """Distribution of the values of both."""
        width = max(self.width, other.width)
        parts = [part._rebinned(width) for part in (self, other)]
        first = min(part.first for part in parts)
        last = max(part.first + len(part.counts) for part in parts)
        counts = np.zeros(last - first, np.int64)
        for part in parts:
            counts[part.first - first : part.first - first + len(part.counts)] += part.counts
        channels = None
        if self.channels is not None and other.channels is not None:
            channels = self.channels.merge(other.channels, int(other.counts.sum()) / int(counts.sum()))
        return TensorRange(
            min(self.minimum, other.minimum), max(self.maximum, other.maximum), width, first, counts, channels
        )

    def _rebinned(self, width: float) -> TensorRange:
        if width == self.width:
            return self
        factor = int(min(width / self.width, 2.0**62))
        index = (self.first + np.arange(len(self.counts))) // factor
        counts = np.zeros(int(index[-1] - index[0]) + 1, np.int64)
        np.add.at(counts, index - index[0], self.counts)
        return replace(self, width=width, first=int(index[0]), counts=counts)

    @property
    def centres(self) -> NDArray[np.float64]:
        """Middle of each bin."""
        return np.asarray((self.first + np.arange(len(self.counts)) + 0.5) * self.width, np.float64)

    def limits(self, method: str, *, levels: int = 255) -> tuple[float, float]:
        """The interval to be represented: ``low <= 0 <= high``.

        Args:
            method: ``minmax`` everything; ``mse`` least squared error.
            levels: steps of the quantized values over the interval (of the larger side, twice, where it will be
                symmetric: the caller passes the levels of the whole).

        Raises:
            InputError: unknown method.
        """
        low, high = min(self.minimum, 0.0), max(self.maximum, 0.0)
        if method == "minmax" or low == high:
            return low, high
        if method not in METHODS:
            raise InputError(f"method {method!r}: choose {', '.join(METHODS)}")
        costs = [self._squared_error(low * shrink, high * shrink, levels) for shrink in _SHRINKS]
        best = _SHRINKS[int(np.argmin(costs))]
        return low * best, high * best

    def symmetric_limit(self, method: str, *, steps: int = 127) -> float:
        """Largest magnitude to be represented by ``steps`` steps on either side of zero; see :meth:`limits`."""
        low, high = self.mirror().limits(method, levels=2 * steps)
        return max(-low, high)

    def mirror(self) -> TensorRange:
        """Distribution of the values and their negatives."""
        mirror = TensorRange(
            -self.maximum, -self.minimum, self.width, -(self.first + len(self.counts)), self.counts[::-1]
        )
        return replace(self, channels=None).merge(mirror)

    def _squared_error(self, low: float, high: float, levels: int) -> float:
        values = self.centres
        scale = (high - low) / levels
        error = np.clip(np.round(values / scale) * scale, low, high) - values
        return float((self.counts * error * error).sum())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        document: dict[str, Any] = {
            "min": self.minimum,
            "max": self.maximum,
            "bin_width": self.width,
            "first_bin": self.first,
            "counts": self.counts.tolist(),
        }
        if self.channels is not None:
            document["channels"] = self.channels.to_dict()
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> TensorRange:
        """Inverse of :meth:`to_dict`."""
        channels = document.get("channels")
        low, high, width = (_number(document[name], name) for name in ("min", "max", "bin_width"))
        first, counts = document["first_bin"], document["counts"]
        if low > high:
            raise ValueError(f"a smallest value {low:g} beyond the largest {high:g}")
        if type(first) is not int or not -_LARGEST_BIN < first < _LARGEST_BIN:
            raise ValueError(f"a first bin {str(first)[:40]}: a whole number is needed")
        if not (isinstance(counts, list) and 0 < len(counts) <= 2 * BINS + 2 and all(type(c) is int for c in counts)):
            raise ValueError(f"a histogram needs whole numbers, of 1 to {2 * BINS + 2} bins")
        if min(counts) < 0 or not 0 < sum(counts) <= _LARGEST_COUNT or math.frexp(width)[0] != 0.5:
            raise ValueError("a histogram needs counts of zero or more, and bins whose width is a power of two")
        measured = None if channels is None else Channels.from_dict(channels)
        return cls(low, high, width, first, np.asarray(counts, np.int64), measured)


def finite_array(values: Any, what: str) -> NDArray[np.float32]:
    """A list of a JSON document as float32 (n,); raises :class:`ValueError` where it is not finite numbers in a row."""
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"{what} that are no list of numbers")
    array = np.asarray([max(-1e39, min(1e39, value)) for value in values], np.float64).astype(np.float32)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"{what} that are missing or not finite")
    return array


def _number(value: Any, what: str) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e38:
        raise ValueError(f"{what} is {str(value)[:40]}: a finite number is needed")
    return float(value)


def _width(largest: float) -> float:
    """Smallest power of two of which :data:`BINS` bins cover a magnitude."""
    if largest <= 0:
        return 2.0**-126
    return max(2.0 ** (math.floor(math.log2(largest)) + 1) / BINS, 2.0**-126)
