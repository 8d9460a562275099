"""Ranges of activations over a calibration set: what quantization needs to know about the data, as a file of its own.

:func:`collect_ranges` measures, :meth:`TensorRange.limits` chooses the interval that the quantized values cover.
Ranges of several runs can be merged, because all histograms have bins whose width is a power of two and whose edges
are multiples of it.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from cats.calibration.balance import Factors, balanced
from cats.calibration.graph import Graph
from cats.calibration.sessions import Session
from cats.core.errors import InputError, ModelFileError
from cats.core.files import write_text

FORMAT = 1
METHODS = ("minmax", "percentile", "entropy", "mse")

BINS = 1024
"""Bins on either side of zero, at most."""

_PERCENTILE = 99.99
_SHRINKS = np.linspace(1.0, 0.2, 81)

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

    def merged(self, other: Channels, share: float) -> Channels:
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
        arrays = [np.asarray(document[name], np.float32) for name in _CHANNEL_FIELDS]
        if len({array.shape for array in arrays}) > 1 or arrays[0].ndim != 1:
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

    def merged(self, other: TensorRange) -> TensorRange:
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
            channels = self.channels.merged(other.channels, int(other.counts.sum()) / int(counts.sum()))
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

    def limits(self, method: str, *, levels: int = 255, percentile: float = _PERCENTILE) -> tuple[float, float]:
        """The interval to be represented: ``low <= 0 <= high``.

        Args:
            method: ``minmax`` everything; ``percentile`` all but the rarest values; ``entropy`` least Kullback-Leibler
                divergence of the quantized distribution (as in TensorRT's former calibrator); ``mse`` least squared
                error.
            levels: steps of the quantized values over the interval (of the larger side, twice, where it will be
                symmetric: the caller passes the levels of the whole).
            percentile: of ``percentile``, in percent.

        Raises:
            InputError: unknown method.
        """
        low, high = min(self.minimum, 0.0), max(self.maximum, 0.0)
        if method == "minmax" or low == high:
            return low, high
        if method == "percentile":
            tail = (100 - percentile) / 200
            share = np.cumsum(self.counts) / self.counts.sum()
            edges = (self.first + np.arange(len(self.counts) + 1)) * self.width
            bottom = edges[int(np.searchsorted(share, tail))]
            top = edges[min(int(np.searchsorted(share, 1 - tail)) + 1, len(edges) - 1)]
            return max(low, min(float(bottom), 0.0)), min(high, max(float(top), 0.0))
        if method not in METHODS:
            raise InputError(f"method {method!r}: choose {', '.join(METHODS)}")
        cost = self._squared_error if method == "mse" else self._divergence
        costs = [cost(low * shrink, high * shrink, levels) for shrink in _SHRINKS]
        best = _SHRINKS[int(np.argmin(costs))]
        return low * best, high * best

    def symmetric_limit(self, method: str, *, steps: int = 127, percentile: float = _PERCENTILE) -> float:
        """Largest magnitude to be represented by ``steps`` steps on either side of zero; see :meth:`limits`."""
        low, high = self.mirrored().limits(method, levels=2 * steps, percentile=percentile)
        return max(-low, high)

    def mirrored(self) -> TensorRange:
        """Distribution of the values and their negatives."""
        mirror = TensorRange(
            -self.maximum, -self.minimum, self.width, -(self.first + len(self.counts)), self.counts[::-1]
        )
        return replace(self, channels=None).merged(mirror)

    def _squared_error(self, low: float, high: float, levels: int) -> float:
        values = self.centres
        scale = (high - low) / levels
        error = np.clip(np.round(values / scale) * scale, low, high) - values
        return float((self.counts * error * error).sum())

    def _divergence(self, low: float, high: float, levels: int) -> float:
        values = self.centres
        inside = (values >= low) & (values <= high)
        if not inside.any():
            return math.inf
        reference = self.counts[inside].astype(np.float64)
        reference[0] += self.counts[values < low].sum()  # what is outside lands on the borders
        reference[-1] += self.counts[values > high].sum()
        kept = self.counts[inside] > 0
        level = np.round(values[inside] * (levels / (high - low))).astype(np.int64)
        level -= level.min()
        total = np.bincount(level, weights=self.counts[inside].astype(np.float64))
        shared = np.bincount(level, weights=kept.astype(np.float64))
        spread = np.where(kept, (total / np.maximum(shared, 1))[level], 0)
        p, q = reference / reference.sum(), spread / max(spread.sum(), 1)
        used = p > 0
        return float((p[used] * np.log(p[used] / np.maximum(q[used], 1e-12))).sum())

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
        counts = np.asarray(document["counts"], np.int64)
        width = float(document["bin_width"])
        if counts.ndim != 1 or not len(counts) or (counts < 0).any() or math.frexp(width)[0] != 0.5:
            raise ValueError("a histogram needs counts of at least one bin, whose width is a power of two")
        return cls(
            float(document["min"]),
            float(document["max"]),
            width,
            int(document["first_bin"]),
            counts,
            None if channels is None else Channels.from_dict(channels),
        )


@dataclass(frozen=True)
class Ranges:
    """Ranges of the activations of one model.

    Attributes:
        weights_sha256: of the model's metadata; ranges fit a model with these weights only.
        tensors: by name of the value in the float model's graph.
        pairs: number of image pairs measured.
        sources: what the pairs were.
        balance: factors that the model's norms were balanced with before (:mod:`cats.calibration.balance`).
    """

    weights_sha256: str
    tensors: dict[str, TensorRange]
    pairs: int
    sources: tuple[str, ...] = field(default_factory=tuple)
    balance: Factors = field(default_factory=dict)

    def merge(self, other: Ranges) -> Ranges:
        """Ranges over the pairs of both.

        Raises:
            InputError: they are of different models.
        """
        if self.weights_sha256 != other.weights_sha256 or set(self.tensors) != set(other.tensors):
            raise InputError("ranges of different models cannot be merged: collect them with the same ONNX file")
        if set(self.balance) != set(other.balance) or any(
            not np.array_equal(factors, other.balance[norm]) for norm, factors in self.balance.items()
        ):
            raise InputError(
                "ranges of differently balanced models cannot be merged: measure both with --no-balance, or the second "
                "with --balance-as FIRST.json"
            )
        tensors = {name: value.merged(other.tensors[name]) for name, value in self.tensors.items()}
        sources = tuple(dict.fromkeys((*self.sources, *other.sources)))
        return Ranges(self.weights_sha256, tensors, self.pairs + other.pairs, sources, self.balance)

    def save(self, path: str | Path) -> None:
        """Write as JSON, one tensor a line; raises :class:`InputError` where that is impossible."""
        head = {
            "format": FORMAT,
            "weights_sha256": self.weights_sha256,
            "pairs": self.pairs,
            "sources": list(self.sources),
            "balance": {norm: factors.tolist() for norm, factors in self.balance.items()},
        }
        lines = [f"  {json.dumps(name)}: {json.dumps(value.to_dict())}" for name, value in self.tensors.items()]
        start = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items())
        write_text(path, "{\n" + start + ',\n "tensors": {\n' + ",\n".join(lines) + "\n }\n}\n")

    @classmethod
    def load(cls, path: str | Path) -> Ranges:
        """Read a file of :meth:`save`.

        Raises:
            InputError: unreadable, not such a file, or of a newer version.
        """
        try:
            document = json.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not JSON: {error}") from error
        version = document.get("format") if isinstance(document, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise InputError(f"{path}: ranges of format {version}, this toolkit reads {FORMAT}: upgrade cats-toolkit")
        try:
            tensors = {name: TensorRange.from_dict(value) for name, value in document["tensors"].items()}
            balance = {norm: np.asarray(item, np.float32) for norm, item in document.get("balance", {}).items()}
            return cls(document["weights_sha256"], tensors, int(document["pairs"]), tuple(document["sources"]), balance)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} is not a file of ranges ({error}): write one with --ranges") from error

    @classmethod
    def load_all(cls, paths: Sequence[str | Path]) -> Ranges:
        """Read and merge several files; see :meth:`load` and :meth:`merge`."""
        if not paths:
            raise InputError("no file of ranges was given")
        first, *rest = (cls.load(path) for path in paths)
        return functools.reduce(Ranges.merge, rest, first)


def observed_tensors(model: onnx.ModelProto) -> dict[str, int | None]:
    """Values whose ranges quantization may need -> axis of their channels, where these are of interest.

    Inputs and outputs of quantizable nodes, the activation behind them, residual sums, and the factors of
    attention's products. Channels matter of what a quantizable node reads: axis 1 for a convolution, the last one for a
    linear layer.
    """
    graph = Graph(model)
    found: dict[str, int | None] = {}
    for node in graph.quantizable():
        if found.get(node.input[0]) is None:
            found[node.input[0]] = 1 if node.op_type == "Conv" else -1
        if node.op_type != "Conv":
            continue
        queue = [node.output[0]]
        while queue:
            name = queue.pop()
            found.setdefault(name, None)
            queue += [
                reader.output[0]
                for reader in graph.consumers[name]
                if reader.op_type in ("Relu", "Clip", "Add", "MaxPool") and reader.output[0] not in found
            ]
    for node, _ in graph.attention_products():
        for name in node.input:
            found.setdefault(name, None)
    return found


def collect_ranges(
    model: onnx.ModelProto,
    batches: Iterable[Mapping[str, NDArray[Any]]],
    *,
    weights_sha256: str,
    source: str = "",
    balance: Factors | None = None,
    threads: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Ranges:
    """Run a float model on a calibration set and measure its activations.

    Args:
        model: a float32 export.
        batches: feeds by name of the input; the first axis of each is the batch.
        weights_sha256: of the model's metadata.
        source: what the batches are, for the record.
        balance: balance the model with these factors first.
        threads: CPU threads; None takes all.
        on_batch: called after each batch with the number of its pairs.

    Raises:
        InputError: no batch.
        ModelFileError: an activation is not finite.
    """
    if balance:
        model = balanced(model, balance)
    wanted = observed_tensors(model)
    session = Session(model, outputs=list(wanted), threads=threads)
    tensors: dict[str, TensorRange] = {}
    pairs = 0
    for feeds in batches:
        for name, values in session(feeds).items():
            try:
                measured = TensorRange.of(values, axis=wanted[name])
            except ModelFileError as error:
                raise ModelFileError(f"{name} has {error}: the model's weights are broken") from error
            tensors[name] = tensors[name].merged(measured) if name in tensors else measured
        count = len(next(iter(feeds.values())))
        pairs += count
        if on_batch is not None:
            on_batch(count)
    if not pairs:
        raise InputError("there is nothing to calibrate with: give at least two photos")
    ordered = {name: tensors[name] for name in wanted}
    return Ranges(weights_sha256, ordered, pairs, (source,) if source else (), dict(balance or {}))


def _width(largest: float) -> float:
    """Smallest power of two of which :data:`BINS` bins cover a magnitude."""
    if largest <= 0:
        return 2.0**-126
    return max(2.0 ** (math.floor(math.log2(largest)) + 1) / BINS, 2.0**-126)
