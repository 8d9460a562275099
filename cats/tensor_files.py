"""Files of tensors as data: PyTorch's ``.pt`` and ``.pth`` (both of its formats) and ``.safetensors``.

The structure is read first, by :mod:`cats.core.pickles` and without PyTorch's unpickler; the tensors in it are
:class:`~cats.core.pickles.StoredTensor`, which know their type and shape. Their values are read when asked for. So a
caller compares shapes before memory is spent, and what it does not use (the state of an optimizer) is never read.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cats.core.errors import CheckpointError, InputError, require
from cats.core.files import atomic_path, open_regular, read_bytes
from cats.core.json_text import parse_json
from cats.core.pickle_values import (
    ITEM_BYTES,
    Arguments,
    ForeignError,
    PickleError,
    Storage,
    StoredTensor,
    describe,
)
from cats.core.pickles import read_pickle

_MAX_PICKLE = 32 << 20  # bytes of structure, without the tensors
_MAX_ARGUMENTS = 1 << 20
_MAX_DIRECTORY = 64 << 20  # bytes of a zip archive's directory
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of files that PyTorch wrote before 1.6
_LEGACY_PROTOCOL = 1001
_MAX_DEPTH = 32
_HEADER_KEY = "cats"  # of the metadata of .safetensors
_SAFE_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class TensorFile:
    """An opened file of tensors; it can be loaded from as long as the file stays as it is.

    Attributes:
        path: of the file.
        content: plain Python values with :class:`~cats.core.pickles.StoredTensor` in place of tensors.
    """

    path: Path
    content: Any
    _read: Callable[[StoredTensor], Tensor]

    def load(self, stored: StoredTensor) -> Tensor:
        """Values of one of its tensors, on the CPU, in memory of their own; raises :class:`CheckpointError`."""
        try:
            return self._read(stored)
        except (OSError, PickleError) as error:
            raise CheckpointError(f"cannot read a {describe(stored)} of {self.path}: {error}") from error

    def load_all(self) -> Any:
        """A copy of the content with every tensor loaded.

        Raises:
            CheckpointError: the tensors would take much more memory than the file has bytes, or it is nested deeply.
        """
        left = self.memory_limit()

        def load(item: Any, depth: int) -> Any:
            nonlocal left
            left -= 64 + (tensor_bytes(item) if isinstance(item, StoredTensor) else 0)
            if left < 0 or depth > _MAX_DEPTH:
                raise CheckpointError(f"{self.path} is nested too deeply or would take much more memory than its size")
            if isinstance(item, StoredTensor):
                return self.load(item)
            if isinstance(item, dict):
                return type(item)((key, load(part, depth + 1)) for key, part in item.items())
            return type(item)(load(part, depth + 1) for part in item) if isinstance(item, (list, tuple)) else item

        return load(self.content, 0)

    def memory_limit(self) -> int:
        """Bytes that its tensors may take together: views of one piece of the file could ask for any number."""
        return 4 * self.path.stat().st_size + (64 << 20)


def tensor_bytes(stored: StoredTensor) -> int:
    """Memory that the values take when loaded."""
    return math.prod(stored.shape) * ITEM_BYTES[stored.dtype]


def open_tensor_file(path: str | Path) -> TensorFile:
    """Open a file that ``torch.save`` or safetensors wrote.

    The content of a ``.safetensors`` file is the document of its header (see :func:`write_safetensors`; empty in files
    of others) with its tensors under ``state_dict``.

    Raises:
        CheckpointError: unreadable, damaged, or it holds other things than tensors and plain data (named).
    """
    file = Path(path)
    try:
        if file.suffix.lower() == ".safetensors":
            return _open_safetensors(file)
        with open_regular(file, "checkpoint") as handle:
            start = handle.read(4)
            handle.seek(0)
            return _open_zip(file, handle) if start == b"PK\x03\x04" else _open_legacy(file, handle)
    except ForeignError as error:
        raise CheckpointError(
            f"{file} holds objects other than tensors and plain data, which are not loaded because loading them runs "
            f"code: it refers to {error.name[:200]}"
        ) from error
    except PickleError as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    except InputError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error


def read_arguments(path: str | Path) -> Arguments:
    """The attributes of the ``argparse.Namespace`` pickled in a file such as ``args.pkl``.

    Raises:
        CheckpointError: unreadable, too large, or not a plain namespace; nothing of it is executed.
    """
    file = Path(path)
    try:
        value, _ = read_pickle(read_bytes(file, limit=_MAX_ARGUMENTS, what="arguments"))
        if not isinstance(value, Arguments):
            raise PickleError(f"it holds {describe(value)}")
    except InputError as error:
        raise CheckpointError(str(error)) from error
    except PickleError as error:
        raise CheckpointError(
            f"{file} is not a plain pickled argparse.Namespace ({str(error)[:200]}); it was not executed: "
            "give --hyperpixels and move it away"
        ) from error
    return value


def write_safetensors(path: str | Path, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
    """Write tensors with a JSON document in the header, atomically.

    Raises:
        InputError: the file cannot be written.
    """
    library = require("safetensors.torch", extra="export", purpose="write .safetensors")
    header = {"format": "pt", _HEADER_KEY: json.dumps(document, sort_keys=True, allow_nan=False)}
    with atomic_path(path) as temporary:
        try:
            library.save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, header)
        except Exception as error:  # of the library's own type, whatever the cause
            raise InputError(f"cannot write {path}: {error}; what was there before is intact") from error


def _open_safetensors(file: Path) -> TensorFile:
    library = require("safetensors", extra="export", purpose="read .safetensors")
    try:
        handle = library.safe_open(file, framework="pt")
        document = parse_json((handle.metadata() or {}).get(_HEADER_KEY, "{}"), "its header", error=CheckpointError)
        tensors = {}
        for key in handle.keys():  # noqa: SIM118  # it is no dict
            part = handle.get_slice(key)
            shape = tuple(part.get_shape())
            dtype = _SAFE_TYPES.get(part.get_dtype())
            if dtype is None:
                raise PickleError(f"its tensor {key[:100]} has the type {part.get_dtype()}")
            tensors[key] = StoredTensor(Storage(dtype, key, math.prod(shape)), 0, shape, ())
    except (PickleError, OSError):
        raise
    except Exception as error:  # of the library's own type
        raise PickleError(str(error)[:200]) from error
    if not isinstance(document, dict):
        raise PickleError("its header holds no document of this toolkit")
    return TensorFile(
        file, {**document, "state_dict": tensors}, lambda stored: handle.get_tensor(stored.storage.key).clone()
    )


@contextlib.contextmanager
def _as_pickle_errors() -> Iterator[None]:
    """What goes wrong within an archive becomes a :class:`PickleError`."""
    try:
        yield
    except (PickleError, OSError):
        raise
    except Exception as error:  # of damaged archives zipfile raises many types
        raise PickleError(f"its archive is damaged ({str(error)[:100] or type(error).__name__})") from error


def _open_zip(file: Path, handle: BinaryIO) -> TensorFile:
    """PyTorch's format since 1.6: an archive of ``X/data.pkl`` and one ``X/data/KEY`` for each storage."""
    _check_directory(handle)
    with _as_pickle_errors(), zipfile.ZipFile(handle) as archive:
        names = set(archive.namelist())
        found = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(found) != 1:
            raise PickleError("it is a zip archive, but not one that torch.save writes")
        root = found[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in names:
            raise PickleError("it is a TorchScript program; save the state_dict of its model with torch.save")
        if f"{root}byteorder" in names and _member(archive, f"{root}byteorder", 16) != b"little":
            raise PickleError("it was written on a big-endian machine; save it again on another one")
        content, _ = read_pickle(_member(archive, found[0], _MAX_PICKLE))

    again: list[zipfile.ZipFile] = []  # open from the first tensor on: its directory has an entry for each of hundreds

    def read(stored: StoredTensor) -> Tensor:
        with _as_pickle_errors():
            if not again:
                again.append(zipfile.ZipFile(file))
            return _view(stored, _member(again[0], f"{root}data/{stored.storage.key}", _storage_bytes(stored)))

    return TensorFile(file, content, read)


def _check_directory(handle: BinaryIO) -> None:
    """Refuse an archive whose directory alone would take gigabytes when read."""
    size = handle.seek(0, 2)
    handle.seek(max(0, size - 65_557))
    tail = handle.read()
    handle.seek(0)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 16 > len(tail):
        raise PickleError("it is cut off: the directory at its end is missing")
    if struct.unpack_from("<I", tail, at + 12)[0] > _MAX_DIRECTORY:
        raise PickleError("its archive has too many entries")


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """A stored entry of at most ``limit`` bytes."""
    try:
        entry = archive.getinfo(name)
    except KeyError:
        raise PickleError(f"its archive lacks {name[:100]}") from None
    if entry.compress_type != zipfile.ZIP_STORED:
        raise PickleError("its archive is compressed, which torch.save never does; save it again")
    if entry.file_size > limit:
        raise PickleError(f"{name[:100]} in its archive has {entry.file_size} bytes, more than the {limit} expected")
    return archive.read(entry)


def _open_legacy(file: Path, handle: BinaryIO) -> TensorFile:
    """PyTorch's format before 1.6: five pickles, the last one the keys of the storages, then these, each with its
    length before it."""
    head, size = handle.read(_MAX_PICKLE), file.stat().st_size
    try:
        magic, at = read_pickle(head)
    except PickleError:
        magic = None
    if type(magic) is not int or magic != _LEGACY_MAGIC:
        raise PickleError("it is not a file of PyTorch")
    protocol, at = read_pickle(head, at)
    system, at = read_pickle(head, at)
    if type(protocol) is not int or protocol != _LEGACY_PROTOCOL or type(system) is not dict:
        raise PickleError("it has a format of PyTorch that is not known")
    if system.get("little_endian") is False:
        raise PickleError("it was written on a big-endian machine; save it again on another one")
    content, at = read_pickle(head, at)
    keys, at = read_pickle(head, at)
    sizes = {stored.storage.key: _storage_bytes(stored) for stored in _tensors(content)}
    if type(keys) is not list or not all(isinstance(key, str) and key in sizes for key in keys):
        raise PickleError("the list of its storages is damaged")
    places: dict[str, int] = {}
    for key in keys:
        places[key] = at
        at += 8 + sizes[key]
    if at > size or set(places) != set(sizes):
        raise PickleError("it is cut off")

    def read(stored: StoredTensor) -> Tensor:
        with open(file, "rb") as again:
            again.seek(places[stored.storage.key])
            if again.read(8) != struct.pack("<q", stored.storage.count):
                raise PickleError("it is damaged")
            return _view(stored, again.read(_storage_bytes(stored)))

    return TensorFile(file, content, read)


def _tensors(value: Any) -> Iterator[StoredTensor]:
    """All tensors within a value, each container looked into once."""
    seen: set[int] = set()
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, StoredTensor):
            yield item
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            stack.extend(item.values() if isinstance(item, dict) else item)


def _storage_bytes(stored: StoredTensor) -> int:
    return stored.storage.count * ITEM_BYTES[stored.dtype]


def _view(stored: StoredTensor, content: bytes) -> Tensor:
    """The tensor whose storage has this content."""
    if len(content) != _storage_bytes(stored):
        raise PickleError("it is cut off or damaged")
    dtype = getattr(torch, stored.dtype)
    if not content:
        return torch.empty(stored.shape, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that bytes cannot be written: the copy below can
        flat = torch.frombuffer(content, dtype=dtype)
    return flat.as_strided(stored.shape, stored.strides, stored.offset).clone(memory_format=torch.contiguous_format)
