"""The few classes and functions that a pickle may name, and what plain data each of them stands for.

Nothing of the file is called or imported: a name is looked up in :data:`BUILDERS`, and a function of this module checks
the arguments and makes the value.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cats.core.pickle_values import Arguments, ForeignError, PickleError, Storage, StoredTensor

_MAX_AXES = 16

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""Element type by the name of the storage in torch."""


@dataclass(frozen=True)
class GlobalName:
    """A class or function in the pickle: nothing but its name."""

    name: str


@dataclass
class NumpyType:
    """A numpy dtype of one number: its code, such as ``f8``, and the byte order, which comes after."""

    code: str
    order: str = "<"


def find_global(name: str) -> GlobalName:
    """The global of a full name, as Python 3 has it; raises :class:`ForeignError` where it is no plain data."""
    name = name.replace("__builtin__.", "builtins.").replace("copy_reg.", "copyreg.")
    if name not in BUILDERS:
        raise ForeignError(name)
    return GlobalName(name)


def is_count(value: Any) -> bool:
    """Whether a value is a number of elements that a file can have."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > _MAX_AXES or not all(map(is_count, values)):
        raise PickleError("a tensor with a damaged shape")
    return values


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any = False, hooks: Any = None, *_: Any
) -> StoredTensor:
    """``torch._utils._rebuild_tensor_v2``; refuses what lies outside of its storage."""
    shape, strides = _sizes(shape), _sizes(strides)
    if not isinstance(storage, Storage) or not is_count(offset) or len(shape) != len(strides):
        raise PickleError("a damaged tensor")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    elements = math.prod(shape)
    if elements and (last >= storage.count or elements > storage.count):
        raise PickleError(f"a tensor {list(shape)} that is larger than its storage of {storage.count} elements")
    return StoredTensor(storage, offset, shape, strides)


def _parameter(tensor: Any, requires_grad: Any = True, hooks: Any = None) -> StoredTensor:
    """``torch._utils._rebuild_parameter``."""
    if not isinstance(tensor, StoredTensor):
        raise PickleError("a parameter that is not a tensor")
    return tensor


def _numpy_type(code: Any, *_: Any) -> NumpyType:
    """``numpy.dtype`` of one number."""
    if not isinstance(code, str) or code not in _NUMPY_NUMBERS:
        raise PickleError("a numpy value that is not a number")
    return NumpyType(code)


_NUMPY_NUMBERS = {
    "f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b",
    "u8": "Q", "u4": "I", "u2": "H", "u1": "B", "b1": "?",
}  # fmt: skip


def _numpy_scalar(kind: Any, content: Any) -> float | int | bool:
    """``numpy.core.multiarray.scalar``: one number of numpy as one of Python. Python 2's bytes come as Latin-1."""
    if isinstance(content, str):
        content = content.encode("latin-1")
    if not isinstance(kind, NumpyType) or not isinstance(content, bytes):
        raise PickleError("a numpy value that is not a number")
    form = (">" if kind.order == ">" else "<") + _NUMPY_NUMBERS[kind.code]
    if len(content) != struct.calcsize(form):
        raise PickleError("a numpy number of a wrong length")
    return struct.unpack(form, content)[0]  # type: ignore[no-any-return]


def _namespace(kind: Any = None, base: Any = None, state: Any = None) -> Arguments:
    """``argparse.Namespace()``, which is filled afterwards; of protocols 0 and 1 through ``copyreg._reconstructor``."""
    if kind is not None and (
        kind != GlobalName("argparse.Namespace") or base != GlobalName("builtins.object") or state
    ):
        raise PickleError("an object other than argparse.Namespace")
    return Arguments()


def _mapping(items: Any = None) -> dict[Any, Any]:
    """``collections.OrderedDict()``, which is filled afterwards, and ``Counter`` of a dict."""
    if items is None:
        return {}
    if type(items) is not dict:
        raise PickleError("a dict of something else than a dict")
    return items


def _path(*parts: Any) -> str:
    """A ``pathlib`` path, as text."""
    if not all(isinstance(part, str) for part in parts):
        raise PickleError("a path of something else than text")
    return "/".join(part.rstrip("/") if part != "/" else "" for part in parts) or "/"


def _device(kind: Any, index: Any = 0) -> str:
    """``torch.device``, as text."""
    return f"{kind}:{index}" if isinstance(kind, str) and len(kind) < 20 and is_count(index) else "?"


def _set(items: Any) -> list[Any]:
    """``builtins.set`` of protocols below 4: stays the list that it is made of."""
    if type(items) is not list:
        raise PickleError("a set of something else than a list")
    return items


def _encoded(text: Any, encoding: Any) -> bytes:
    """``_codecs.encode``: bytes in protocols below 3."""
    if not isinstance(text, str) or encoding != "latin1":
        raise PickleError("bytes in an unknown encoding")
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise PickleError("damaged bytes") from error


def _no_value(*_: Any) -> Any:
    raise PickleError("a type stands where a value belongs")


BUILDERS: dict[str, Callable[..., Any]] = {
    "argparse.Namespace": _namespace,
    "copyreg._reconstructor": _namespace,
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "builtins.set": _set,
    "builtins.object": _no_value,
    "builtins.bytes": lambda: b"",
    "_codecs.encode": _encoded,
    "torch.Size": _sizes,
    "torch.device": _device,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": lambda storage, offset, shape, strides: _tensor(storage, offset, shape, strides),
    "torch._utils._rebuild_parameter": _parameter,
    "numpy.dtype": _numpy_type,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    **{f"pathlib{part}.{kind}Path": _path for part in ("", "._local") for kind in ("Posix", "Windows", "PurePosix")},
    **{f"torch.{name}": _no_value for name in STORAGES},
}
"""By full name, what makes plain data of checked arguments; raises TypeError, ValueError or KeyError of others."""
