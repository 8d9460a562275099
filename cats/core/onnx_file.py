"""Metadata, digest and nodes of an ONNX file, without the onnx package and without reading its weights; and the one
output that is put behind a file.

Walks the protobuf fields of ModelProto in the mapped file; the field numbers are those of ``onnx.proto3``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cats.core.errors import ModelFileError
from cats.core.protobuf import Message, encode_field, encode_number, encode_text, mapped, span

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

METADATA_PROPS = 14
"""Field of ModelProto."""

_CONTENT = (7, 8, 20, 25)  # graph, operator sets, training information, functions


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
    entry = encode_field(METADATA_PROPS, encode_field(1, key.encode()) + encode_field(2, value))
    for number, part, start, after in Message(memoryview(data), 0, len(data)).spans():
        if number == METADATA_PROPS and _is_entry(span(part), key):
            kept += [data[end:start], entry]
            end, entry = after, b""
    return b"".join([*kept, data[end:], entry])


def _entries(message: Message, key: str) -> Iterator[bytes]:
    for number, value in message:
        if number == METADATA_PROPS and _is_entry(span(value), key):
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
    texts = (node.outputs[0], PROBABILITIES, PROBABILITIES, "Identity")  # input, output, name, operator
    identity = b"".join(encode_text(number, text) for number, text in enumerate(texts, start=1))
    dimensions = encode_field(1, encode_text(2, "batch")) + 2 * encode_field(1, b"\x08" + encode_number(cells))
    tensor = b"\x08\x01" + encode_field(2, dimensions)  # elem_type 1: float32
    output = encode_text(1, PROBABILITIES) + encode_field(2, encode_field(1, tensor))
    return Path(path).read_bytes() + encode_field(7, encode_field(1, identity) + encode_field(12, output))


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
