"""What is in an ONNX file, without the onnx package and without reading its weights.

Walks the protobuf fields of ModelProto in the mapped file; the field numbers are those of ``onnx.proto3``.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cats.core.errors import InputError, ModelFileError
from cats.core.files import open_regular

_LINEAR = frozenset(
    [
        "Add",
        "Cast",
        "Concat",
        "DequantizeLinear",
        "Div",
        "Gather",
        "Identity",
        "MatMul",
        "Mul",
        "QuantizeLinear",
        "ReduceSum",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Sub",
        "Transpose",
        "Unsqueeze",
    ]
)

PROBABILITIES = "probabilities"
"""Output of :func:`with_probabilities`."""

_METADATA_PROPS = 14  # field of ModelProto
_MAX_STRING = 16 << 20
_MAX_AXES = 64
_MAX_ENTRIES = 10_000
_LARGEST = 1 << 62  # of sizes, which a file may give as anything
_CONTENT = (7, 8, 20, 25)  # graph, operator sets, training information, functions

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


def read_onnx_entry(path: str | Path, key: str) -> bytes | None:
    """Value of one entry of an ONNX file's ``metadata_props``, skipping over graph and weights; None without it.

    Raises:
        ModelFileError: unreadable, not a protobuf, or with several entries of that name, of which libraries take one
            or another.
    """
    with mapped(path) as message:
        found = list(_entries(message, key))
    return _only(found, path, key)


def read_bound_entry(path: str | Path, key: str) -> tuple[bytes | None, str]:
    """An entry as of :func:`read_onnx_entry`, and the :func:`content_digest` of the file, in one pass."""
    with mapped(path) as message:
        found, digest = list(_entries(message, key)), _digest(message)
    return _only(found, path, key), digest


def content_digest(data: bytes) -> str:
    """BLAKE2b-256 over graph, weights, functions and operator sets of an ONNX file, as hexadecimal digits.

    It stays when metadata are written and changes with anything that the file computes. Of each field of ModelProto
    that holds those, in the order of the file: its number (1 byte), its length (8 bytes, little-endian), its bytes.
    """
    return _digest(Message(memoryview(data), 0, len(data)))


def replace_entry(data: bytes, key: str, value: bytes) -> bytes:
    """An ONNX file with one entry of ``metadata_props`` in place of all that have its name, or at the end; nothing else
    changes.

    Raises:
        ValueError: not a protobuf.
    """
    kept, end = [], 0
    entry = encode_field(_METADATA_PROPS, encode_field(1, key.encode()) + encode_field(2, value))
    for number, part, start, after in Message(memoryview(data), 0, len(data)).spans():
        if number == _METADATA_PROPS and _is_entry(span(part), key):
            kept += [data[end:start], entry]
            end, entry = after, b""
    return b"".join([*kept, data[end:], entry])


def _entries(message: Message, key: str) -> Iterator[bytes]:
    for number, value in message:
        if number == _METADATA_PROPS and _is_entry(span(value), key):
            parts = {part: span(text) for part, text in span(value)}
            yield parts[2].content() if 2 in parts else b""


def _is_entry(entry: Message, key: str) -> bool:
    return any(part == 1 and span(text).content() == key.encode() for part, text in entry)


def _only(found: list[bytes], path: str | Path, key: str) -> bytes | None:
    if len(found) > 1:
        raise ModelFileError(
            f"{path} has {len(found)} metadata entries {key!r}, which say different things to different programs: "
            "export the model again"
        )
    return found[0] if found else None


def _digest(message: Message) -> str:
    digest = hashlib.blake2b(digest_size=32)
    for number, value in message:
        if number in _CONTENT:
            part = span(value)
            digest.update(bytes([number]) + (part.end - part.start).to_bytes(8, "little"))
            with memoryview(message.data) as whole, whole[part.start : part.end] as view:
                digest.update(view)
    return digest.hexdigest()


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


@dataclass(frozen=True)
class NodeInfo:
    """A node of the graph: operator type and the names of the values that it takes and gives."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_onnx_nodes(path: str | Path) -> list[NodeInfo]:
    """Nodes of an ONNX file's graph, in its order, without bodies of functions.

    Raises:
        ModelFileError: unreadable, or not a protobuf.
    """
    with mapped(path) as message:
        graphs = [span(value) for number, value in message if number == 7]
        return [_node_info(span(value)) for graph in graphs for number, value in graph if number == 1]


def with_probabilities(path: str | Path, *, flow: str = "flow", cells: int = 256) -> bytes | None:
    """An ONNX model that also gives ``probabilities``, float32 (batch, cells, cells): the distributions of the
    soft-argmax, row by row a cell of a over the cells of b.

    They are in every model that cats-export writes, as the softmax before ``flow``. The file stays as it is; a second
    piece of its graph is put behind it, which protobuf readers join with the first: an Identity and an output.

    Args:
        path: ONNX file of kind ``pair`` or ``matcher``.
        flow: name of the output before which the softmax is.
        cells: of one image, G * G.

    Returns:
        The new file's content; None where no softmax is before the flow with linear operators alone between them.

    Raises:
        ModelFileError: unreadable, or not a protobuf.
    """
    made_by = {name: node for node in read_onnx_nodes(path) for name in node.outputs}
    waiting, seen = [flow], {flow}
    while waiting:
        node = made_by.get(waiting.pop(0))
        if node is None:
            continue
        if node.operator == "Softmax":
            break
        if node.operator not in _LINEAR:
            continue  # what comes before is no part of the soft-argmax, such as the attention of another model
        fresh = [name for name in node.inputs if name and name not in seen]
        seen.update(fresh)
        waiting += fresh
    else:
        return None
    identity = _text(1, node.outputs[0]) + _text(2, PROBABILITIES) + _text(3, PROBABILITIES) + _text(4, "Identity")
    dimensions = encode_field(1, _text(2, "batch")) + 2 * encode_field(1, b"\x08" + _number(cells))
    tensor = b"\x08\x01" + encode_field(2, dimensions)  # elem_type 1: float32
    output = _text(1, PROBABILITIES) + encode_field(2, encode_field(1, tensor))
    return Path(path).read_bytes() + encode_field(7, encode_field(1, identity) + encode_field(12, output))


@contextlib.contextmanager
def mapped(path: str | Path) -> Iterator[Message]:
    """A file as one message; what goes wrong with it becomes a :class:`ModelFileError`."""
    try:
        with open_regular(path, "model") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield Message(data, 0, len(data))
    except InputError as error:
        raise ModelFileError(str(error)) from error
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, IndexError, AttributeError) as error:
        raise ModelFileError(f"{path} is not an ONNX file ({error})") from error


@dataclass(frozen=True)
class Message:
    """A span of the mapped file that holds the fields of one message."""

    data: mmap.mmap | memoryview
    start: int
    end: int

    def __iter__(self) -> Iterator[tuple[int, int | Message]]:
        """Field numbers with their value: an integer, or the span of a string, message or packed list."""
        for number, value, _, _ in self.spans():
            yield number, value

    def spans(self) -> Iterator[tuple[int, int | Message, int, int]]:
        """As iteration, with the bytes at which the whole field begins and after which it ends."""
        at = self.start
        while at < self.end:
            start = at
            key, at = self._varint(at)
            number, wire = key >> 3, key & 7
            if wire == 0:
                value, at = self._varint(at)
                yield number, value, start, at
            elif wire == 2:
                length, at = self._varint(at)
                if length > self.end - at:
                    raise ValueError(f"field {number} at byte {at} ends beyond its message")
                at += length
                yield number, Message(self.data, at - length, at), start, at
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
                if at > self.end:
                    raise ValueError(f"field {number} at byte {start} ends beyond its message")
            else:
                raise ValueError(f"wire type {wire} at byte {at}")

    def _varint(self, at: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= self.end:
                raise ValueError(f"it ends within a number at byte {at}")
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise ValueError(f"a number longer than 10 bytes at byte {at}")

    def content(self) -> bytes:
        """The bytes of a string."""
        if self.end - self.start > _MAX_STRING:
            raise ValueError(f"a string of {self.end - self.start} bytes at byte {self.start}")
        return bytes(self.data[self.start : self.end])

    def text(self) -> str:
        """A string."""
        return self.content().decode("utf-8", errors="replace")

    def strings(self) -> dict[int, str]:
        """The string fields of a message by number."""
        return {number: value.text() for number, value in self if isinstance(value, Message)}

    def numbers(self, limit: int) -> list[int]:
        """A packed list of at most ``limit`` integers."""
        values, at = [], self.start
        while at < self.end:
            value, at = self._varint(at)
            values.append(value)
            if len(values) > limit:
                raise ValueError(f"a list of more than {limit} sizes at byte {at}")
        return values


def span(value: int | Message) -> Message:
    """A value that must be a message, string or packed list; raises :class:`ValueError` for a number."""
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


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
        elif number == _METADATA_PROPS:
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


def _node_info(message: Message) -> NodeInfo:
    inputs: list[str] = []
    outputs: list[str] = []
    operator = ""
    for number, value in message:
        if number in (1, 2):
            (inputs if number == 1 else outputs).append(span(value).text())
        elif number == 4:
            operator = span(value).text()
    return NodeInfo(operator, tuple(inputs), tuple(outputs))


def _number(value: int) -> bytes:
    """A varint."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def encode_field(number: int, content: bytes) -> bytes:
    """A field of a message: a string or another message."""
    return _number(number << 3 | 2) + _number(len(content)) + content


def _text(number: int, content: str) -> bytes:
    return encode_field(number, content.encode())
