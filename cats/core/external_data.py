"""ONNX files that keep weights in other files beside them: one answer for every library that runs them.

ONNX Runtime, OpenVINO and TensorRT look for external data in different folders (the working folder among them) and
differ about links, which every file of a download cache is. So such a model is made whole here, once.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from cats.core.errors import InputError, ModelFileError
from cats.core.files import open_regular
from cats.core.protobuf import Message, encode_field, mapped, span

_LARGEST = (1 << 31) - 1  # bytes of a protobuf
_GRAPH, _INITIALIZER = 7, 5  # fields of ModelProto and GraphProto
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14  # of TensorProto


def whole_model(path: str | Path) -> bytes | None:
    """The content of an ONNX file with the weights that lie in other files put inside; None where it has none such.

    Locations are relative to the folder of ``path`` as it is given, and may not leave it; the files there may be links.

    Raises:
        ModelFileError: unreadable, a file with weights is missing, too short, or has a name that leads elsewhere, or
            the whole would be larger than 2 GiB.
    """
    with mapped(path) as message:
        if not any(_location(part) for part in _initializers(message)):
            return None
        files: dict[str, bytes] = {}
        parts, end = [], 0
        for number, value, start, after in message.spans():
            if number == _GRAPH:
                graph = _whole_graph(span(value), Path(path), files)
                parts += [bytes(message.data[end:start]), encode_field(_GRAPH, graph)]
                end = after
        result = b"".join([*parts, bytes(message.data[end : message.end])])
    if len(result) > _LARGEST:
        raise ModelFileError(f"{path} has {len(result) >> 20} MiB of weights; one model has less than 2 GiB")
    return result


def _initializers(message: Message) -> list[Message]:
    graphs = [span(value) for number, value in message if number == _GRAPH]
    return [span(value) for graph in graphs for number, value in graph if number == _INITIALIZER]


def _location(tensor: Message) -> dict[str, str]:
    """Where the values of a tensor are: ``location``, ``offset``, ``length``; empty where they are inside."""
    external, entries = False, {}
    for number, value in tensor:
        if number == _DATA_LOCATION:
            external = value == 1
        elif number == _EXTERNAL_DATA:
            entry = span(value).strings()
            entries[entry.get(1, "")] = entry.get(2, "")
    return {"location": "", **entries} if external else {}


def _whole_graph(graph: Message, path: Path, files: dict[str, bytes]) -> bytes:
    parts, end = [], graph.start
    for number, value, start, after in graph.spans():
        where = _location(span(value)) if number == _INITIALIZER else {}
        if where:
            tensor = span(value)
            kept = [
                bytes(tensor.data[first:last])
                for field, _, first, last in tensor.spans()
                if field not in (_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION)
            ]
            content = b"".join([*kept, encode_field(_RAW_DATA, _values(where, path, files))])
            parts += [bytes(graph.data[end:start]), encode_field(_INITIALIZER, content)]
            end = after
    return b"".join([*parts, bytes(graph.data[end : graph.end])])


def _values(where: dict[str, str], path: Path, files: dict[str, bytes]) -> bytes:
    name = where["location"]
    if name not in files:
        files[name] = _read_beside(name, path)
    data = files[name]
    try:
        offset = int(where.get("offset") or 0)
        length = int(where["length"]) if where.get("length") else len(data) - offset
    except ValueError as error:
        raise ModelFileError(f"{path}: a place in {name} is not a number") from error
    if offset < 0 or length < 0 or offset + length > len(data):
        raise ModelFileError(f"{path} keeps its weights in {name}, which is too short for them: copy both again")
    return data[offset : offset + length]


def _read_beside(name: str, path: Path) -> bytes:
    parts = PurePosixPath(name.replace("\\", "/"))
    if not name or parts.is_absolute() or ".." in parts.parts or "\0" in name:
        raise ModelFileError(f"{path} keeps its weights at {name[:100]!r}, which is not a file beside it")
    place = path.parent / parts
    if not place.exists():
        raise ModelFileError(f"{path} keeps its weights in {name}, which is not beside it: copy both files together")
    try:
        with open_regular(place, "weights") as handle:
            data = handle.read(_LARGEST + 1)
    except (InputError, OSError) as error:
        raise ModelFileError(f"{path} keeps its weights in {name}: {error}") from error
    if len(data) > _LARGEST:
        raise ModelFileError(f"{path} keeps its weights in {name}, which is larger than 2 GiB")
    return data
