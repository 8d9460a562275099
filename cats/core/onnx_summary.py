"""The structure of an ONNX file: inputs, outputs, operators, weights by type; without the onnx package.

The field numbers are those of ``onnx.proto3``.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cats.core.errors import ModelFileError
from cats.core.onnx_file import METADATA_PROPS
from cats.core.protobuf import Message, mapped, span

_MAX_AXES = 64
_MAX_ENTRIES = 10_000
_LARGEST = 1 << 62  # of sizes, which a file may give as anything

_TYPES = {  # TensorProto.DataType: name, bits
    1: ("float32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    4: ("uint16", 16),
    5: ("int16", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    8: ("string", 0),
    9: ("bool", 8),
    10: ("float16", 16),
    11: ("float64", 64),
    12: ("uint32", 32),
    13: ("uint64", 64),
    16: ("bfloat16", 16),
    17: ("float8e4m3fn", 8),
    18: ("float8e4m3fnuz", 8),
    19: ("float8e5m2", 8),
    20: ("float8e5m2fnuz", 8),
    21: ("uint4", 4),
    22: ("int4", 4),
    23: ("float4e2m1", 4),
}


@dataclass(frozen=True)
class TensorInfo:
    """Name, element type and shape of a graph input or output; a dynamic dimension is its name or ``None``."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


@dataclass
class OnnxSummary:
    """Structure of an ONNX file.

    Attributes:
        opsets: version by operator domain (the standard one is ``ai.onnx``).
        operators: nodes by operator type, with domain where it is not the standard one; bodies of functions included.
        functions: model-local functions, ``domain::name``.
        weights: (tensors, bytes) by element type.
        metadata: all ``metadata_props``.
    """

    ir_version: int = 0
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    inputs: list[TensorInfo] = field(default_factory=list)
    outputs: list[TensorInfo] = field(default_factory=list)
    operators: Counter[str] = field(default_factory=Counter)
    functions: list[str] = field(default_factory=list)
    weights: dict[str, tuple[int, int]] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def read_onnx_summary(path: str | Path) -> OnnxSummary:
    """Read the structure of an ONNX file.

    Raises:
        ModelFileError: unreadable, empty, or not an ONNX file.
    """
    with mapped(path) as message:
        summary = _model(message)
    if not summary.ir_version or not summary.opsets:
        raise ModelFileError(f"{path} is not an ONNX file (no IR version or operator set)")
    return summary


def _model(message: Message) -> OnnxSummary:
    summary = OnnxSummary()
    producer = ["", ""]
    for number, value in message:
        if number == 1 and isinstance(value, int):
            summary.ir_version = value
        elif number in (2, 3):
            producer[number - 2] = span(value).text()
        elif number == 7:
            _graph(span(value), summary)
        elif number == 8:
            parts = dict(span(value))
            domain, version = parts.get(1), parts.get(2, 0)
            if isinstance(version, int):
                name = domain.text() if isinstance(domain, Message) else ""
                summary.opsets[name or "ai.onnx"] = version
        elif number == METADATA_PROPS:
            entry = span(value).strings()
            if len(summary.metadata) == _MAX_ENTRIES:
                raise ValueError(f"more than {_MAX_ENTRIES} metadata entries")
            summary.metadata[entry.get(1, "")] = entry.get(2, "")
        elif number == 25:
            _function(span(value), summary)
    summary.producer = " ".join(part for part in producer if part)
    return summary


def _graph(message: Message, summary: OnnxSummary) -> None:
    for number, value in message:
        if number == 1:
            _node(span(value), summary)
        elif number == 5:
            _initializer(span(value), summary)
        elif number == 11:
            summary.inputs.append(_value_info(span(value)))
        elif number == 12:
            summary.outputs.append(_value_info(span(value)))


def _function(message: Message, summary: OnnxSummary) -> None:
    name = domain = ""
    for number, value in message:
        if number == 1:
            name = span(value).text()
        elif number == 7:
            _node(span(value), summary)
        elif number == 10:
            domain = span(value).text()
    summary.functions.append(f"{domain}::{name}")


def _node(message: Message, summary: OnnxSummary) -> None:
    operator = domain = ""
    for number, value in message:
        if number == 4:
            operator = span(value).text()
        elif number == 7:
            domain = span(value).text()
    summary.operators[f"{domain}::{operator}" if domain and domain != "ai.onnx" else operator] += 1


def _initializer(message: Message, summary: OnnxSummary) -> None:
    shape: list[int] = []
    kind = 0
    for number, value in message:
        if number == 1:
            shape += [value] if isinstance(value, int) else value.numbers(_MAX_AXES)
            if len(shape) > _MAX_AXES:
                raise ValueError(f"a tensor of more than {_MAX_AXES} axes")
        elif number == 2 and isinstance(value, int):
            kind = value
    name, bits = _TYPES.get(kind, (f"type {kind}", 0))
    count, size = summary.weights.get(name, (0, 0))
    summary.weights[name] = (count + 1, min(size + (math.prod(shape) * bits + 7) // 8, _LARGEST))


def _value_info(message: Message) -> TensorInfo:
    name, dtype, shape = "", "?", []
    for number, value in message:
        if number == 1:
            name = span(value).text()
        elif number == 2:
            for kind, tensor in span(value):
                if kind != 1:  # sequences, maps and optionals
                    continue
                for part, content in span(tensor):
                    if part == 1 and isinstance(content, int):
                        dtype = _TYPES.get(content, (f"type {content}", 0))[0]
                    elif part == 2:
                        shape = [_dimension(span(dim)) for tag, dim in span(content) if tag == 1]
    return TensorInfo(name, dtype, tuple(shape))


def _dimension(message: Message) -> int | str | None:
    for number, value in message:
        if number == 1 and isinstance(value, int):
            return min(value, _LARGEST)
        if number == 2:
            return span(value).text()
    return None
