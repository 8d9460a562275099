"""What a pickle that is read as data consists of, and what can be said of it: :mod:`cats.core.pickles` reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


class PickleError(ValueError):
    """The bytes are no pickle, or not one of plain data; the text says what was found."""


class ForeignError(PickleError):
    """The pickle asks for a class or function that is not data. ``name`` is its full name."""

    def __init__(self, name: str):
        self.name = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in name[:200])
        super().__init__(f"it refers to {self.name}")


class Arguments(dict[str, Any]):
    """The attributes of a pickled ``argparse.Namespace``."""


@dataclass(frozen=True)
class Storage:
    """A one-dimensional piece of memory of PyTorch, named in a pickle and stored elsewhere in its file.

    Attributes:
        dtype: element type, named as in torch, such as ``float32``.
        key: name of the piece in the file.
        count: elements.
    """

    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage: ``shape``, and ``strides`` and ``offset`` in elements. It lies within its storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> str:
        """Element type, as in torch."""
        return self.storage.dtype


ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
"""Bytes of one element of each type that tensors may have."""


def plain(value: Any, *, nodes: int = 100_000, depth: int = 32) -> Any:
    """A copy of JSON types alone: tuples and sets become lists, tensors and bytes their description, keys text.

    Raises:
        PickleError: more than ``nodes`` values, or nested more than ``depth`` deep (or within itself).
    """
    left = nodes

    def copy(item: Any, level: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or level > depth:
            raise PickleError("it is nested too deeply or holds too many values")
        if isinstance(item, dict):
            return {str(key): copy(part, level + 1) for key, part in item.items()}
        if isinstance(item, (list, tuple, set)):
            return [copy(part, level + 1) for part in item]
        if item is None or isinstance(item, (bool, int, str)):
            return item
        if isinstance(item, float):
            return item if math.isfinite(item) else str(item)
        return f"<{describe(item)}>"

    return copy(value, 0)


def describe(value: Any) -> str:
    """A few words on a value for a message; never its content, which may be of any size."""
    if isinstance(value, StoredTensor):
        return f"tensor {value.dtype} {list(value.shape)}"
    if isinstance(value, Arguments):
        return "argparse.Namespace"
    if isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 1 << 64):
        return repr(value)
    if isinstance(value, str):
        return ascii(value[:40])
    return "nothing" if value is None else type(value).__name__
