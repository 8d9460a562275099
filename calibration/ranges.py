"""Ranges of activations over a calibration set: what quantization needs to know about the data, as a file of its own.

:func:`collect_ranges` measures, :meth:`.TensorRange.limits` chooses the interval that the quantized values cover.
Ranges of several runs can be merged.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from cats.calibration.balance import Factors, balance_channels
from cats.calibration.distribution import TensorRange, finite_array
from cats.calibration.graph import Graph
from cats.calibration.sessions import ProbeSession
from cats.calibration.weight_rounding import Moments
from cats.core.errors import InputError, ModelFileError
from cats.core.files import write_text
from cats.core.json_text import read_json

FORMAT = 1
_LARGEST_FILE = 256 << 20


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


@dataclass(frozen=True)
class Ranges:
    """Ranges of the activations of one model.

    Attributes:
        weights_sha256: of the model's metadata; ranges fit a model with these weights only.
        tensors: by name of the value in the float model's graph.
        pairs: number of image pairs measured.
        sources: what the pairs were.
        balance: factors that the model was balanced with before (:mod:`cats.calibration.balance`).
        moments: of the inputs of layers by the name of their weight (:mod:`cats.calibration.input_moments`), where they
            were measured too. Files do not hold them, as they are as large as the weights.
    """

    weights_sha256: str
    tensors: dict[str, TensorRange]
    pairs: int
    sources: tuple[str, ...] = field(default_factory=tuple)
    balance: Factors = field(default_factory=dict)
    moments: Mapping[str, Moments] = field(default_factory=dict)

    def merge(self, other: Ranges) -> Ranges:
        """Ranges over the pairs of both, without moments.

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
        tensors = {name: value.merge(other.tensors[name]) for name, value in self.tensors.items()}
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
        document = read_json(path, limit=_LARGEST_FILE)
        version = document.get("format") if isinstance(document, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise InputError(f"{path}: ranges of format {version}, this toolkit reads {FORMAT}: upgrade cats-toolkit")
        try:
            tensors = {name: TensorRange.from_dict(value) for name, value in document["tensors"].items()}
            pairs, digest, sources = document["pairs"], document["weights_sha256"], document["sources"]
            if type(pairs) is not int or not 0 < pairs < 2**31:
                raise ValueError(f"pairs is {str(pairs)[:40]}: a count is needed")
            if not isinstance(digest, str) or not isinstance(sources, list) or not all(map(_is_text, sources)):
                raise ValueError("weights_sha256 is text, sources a list of it")
            factors = {name: finite_array(value, f"balance of {name}") for name, value in document["balance"].items()}
            if any((value <= 0).any() for value in factors.values()):
                raise ValueError("factors of a balance are positive")
            return cls(digest, tensors, pairs, tuple(sources), factors)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{path} is not a file of ranges ({what}): write one with --ranges") from error

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
        model = balance_channels(model, balance)
    wanted = observed_tensors(model)
    session = ProbeSession(model, outputs=list(wanted), threads=threads)
    tensors: dict[str, TensorRange] = {}
    pairs = 0
    for feeds in batches:
        for name, values in session(feeds).items():
            try:
                measured = TensorRange.of(values, axis=wanted[name])
            except ModelFileError as error:
                raise ModelFileError(f"{name} has {error}: the model's weights are broken") from error
            tensors[name] = tensors[name].merge(measured) if name in tensors else measured
        count = len(next(iter(feeds.values())))
        pairs += count
        if on_batch is not None:
            on_batch(count)
    if not pairs:
        raise InputError("there is nothing to calibrate with: give at least two photos")
    ordered = {name: tensors[name] for name in wanted}
    return Ranges(weights_sha256, ordered, pairs, (source,) if source else (), dict(balance or {}))
