"""Pickles as data: an interpreter of its own for the few opcodes and types that checkpoints are made of.

Python's ``pickle`` is a program that runs: even with an allow-list of classes it calls them, sets their attributes and
lets a file of 8 bytes ask for gigabytes. Here nothing of the file is called or imported. A global is one of the names
in :data:`cats.core.pickle_builders.BUILDERS`, each of which turns checked arguments into plain data; everything else
ends the reading with the name of what was asked for. Work and memory are bounded by the length of the
file and by :data:`MAX_STEPS`.

What comes out: ``None``, bool, int, float, str, bytes, list, tuple, dict, set, :class:`.Arguments` for an
``argparse.Namespace`` and :class:`.StoredTensor` for a tensor of PyTorch, whose values are still in the file.
Containers may hold themselves; :func:`.plain` makes a bounded copy for those that walk through one.

The opcodes are those of Python's ``pickletools``; protocols 0 to 5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from cats.core.pickle_builders import BUILDERS, STORAGES, GlobalName, NumpyType, find_global, is_count
from cats.core.pickle_values import Arguments, PickleError, Storage

MAX_STEPS = 1_000_000
"""Opcodes of one pickle. A ResNet-101 with the state of its optimizer takes about 60,000."""

_MAX_LINE = 4096  # characters of a name or number written as text
_MAX_INT_BYTES = 64
_MAX_KEY = 1 << 31  # of integers as keys: larger ones can be chosen so that a dict takes quadratic time


def read_pickle(data: bytes | memoryview, start: int = 0) -> tuple[Any, int]:
    """Read one pickle.

    Args:
        data: holds the pickle.
        start: byte at which it begins.

    Returns:
        the value, and the byte after the pickle.

    Raises:
        ForeignError: the pickle names a class or function other than those of plain data and tensors.
        PickleError: it is damaged, or larger than this reader takes.
    """
    reader = _Reader(data, start)
    try:
        value = reader.run()
    except (IndexError, struct.error) as error:
        raise PickleError(f"it ends or goes wrong at byte {reader.at}") from error
    except (UnicodeDecodeError, OverflowError) as error:
        raise PickleError(f"a text or number at byte {reader.at} is damaged") from error
    return value, reader.at


class _Reader:
    """The stack machine of one pickle."""

    def __init__(self, data: bytes | memoryview, start: int):
        self.data, self.at = bytes(data), start
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.budget = 2 * len(data) + 1024  # of what calls copy: a value of the memo can be copied again and again

    def charge(self, size: int) -> None:
        """Count something that is copied; a file gets no more copies than it has bytes for."""
        self.budget -= size
        if self.budget < 0:
            raise PickleError("it asks for more copies of its values than plain data does")

    def run(self) -> Any:
        """Until the opcode STOP."""
        for _ in range(MAX_STEPS):
            code = self.take(1)[0]
            if code == 0x2E:  # STOP
                value = self.pop()
                if isinstance(value, (GlobalName, NumpyType)):
                    raise PickleError("it holds no value")
                return value
            step = _STEPS.get(code)
            if step is None:
                raise PickleError(f"byte {self.at - 1} is not an opcode of plain data")
            step(self)
        raise PickleError(f"it has more than {MAX_STEPS:,} steps")

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        if count < 0 or count > len(self.data) - self.at:
            raise PickleError(f"it ends within a value at byte {self.at}")
        part = self.data[self.at : self.at + count]
        self.at += count
        return part

    def number(self, form: str) -> Any:
        """The next number, as :mod:`struct` writes its form."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self, limit: int = _MAX_LINE) -> bytes:
        """What stands up to the next line feed."""
        end = self.data.find(b"\n", self.at, self.at + limit)
        if end < 0:
            raise PickleError(f"a line at byte {self.at} does not end")
        text = self.data[self.at : end]
        self.at = end + 1
        return text

    def word(self) -> str:
        """A name or number up to the next line feed."""
        return self.line().decode("ascii")

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Take the value on top, of the present group."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise PickleError(f"a value is missing at byte {self.at}")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        """The value on top, which must be of a type."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0) or type(self.stack[-1]) is not kind:
            raise PickleError(f"a {kind.__name__} is missing at byte {self.at}")
        return self.stack[-1]

    def group(self) -> list[Any]:
        """Take the values above the last mark, and the mark."""
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def tuple_of(self, count: int) -> None:
        """Replace the values on top by a tuple of them."""
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def add(self, container: Any, values: list[Any]) -> None:
        """Add keys and values, in turns, to a dict."""
        if len(values) % 2:
            raise PickleError(f"a key without a value at byte {self.at}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            container[_key(key)] = value

    def integer(self, count: int) -> None:
        """Push a little-endian integer of so many bytes."""
        if not 0 <= count <= _MAX_INT_BYTES:
            raise PickleError(f"an integer of {count} bytes at byte {self.at}")
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    def text(self, count: int) -> None:
        """Push UTF-8 text of so many bytes."""
        self.push(str(self.take(count), "utf-8", "replace"))

    def latin(self, count: int) -> None:
        """Push the text of a Python 2 string of so many bytes."""
        self.push(str(self.take(count), "latin-1"))

    def raw(self, count: int) -> None:
        """Push so many bytes."""
        self.push(self.take(count))

    def mark(self) -> None:
        """Begin a group."""
        self.marks.append(len(self.stack))

    def drop(self) -> None:
        """Take away the value on top, or the mark there."""
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def decimal(self) -> None:
        """Push an integer or bool written as text."""
        text = self.word()
        known = {"00": False, "01": True}
        if text in known:
            self.push(known[text])
            return
        digits = text.removesuffix("L")
        if len(digits) > 2 * _MAX_INT_BYTES or not digits.removeprefix("-").isdecimal():
            raise PickleError(f"an integer at byte {self.at} is damaged")
        self.push(int(digits))

    def real(self) -> None:
        """Push a float written as text."""
        text = self.word()
        try:
            self.push(float(text[:64]))
        except ValueError as error:
            raise PickleError(f"a number at byte {self.at} is damaged") from error

    def quoted(self) -> None:
        """Push a Python 2 string written in quotes, without escapes."""
        text = self.word()
        if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"" or "\\" in text:
            raise PickleError(f"a text at byte {self.at} is damaged")
        self.push(text[1:-1])

    def escaped(self) -> None:
        """Push text written with unicode escapes."""
        text = self.line(len(self.data)).decode("raw-unicode-escape")
        self.push(text.encode("utf-8", "replace").decode())

    def remember(self, index: int | str) -> None:
        """Put the value on top into the memo: a dict, where an index takes no more memory than another."""
        self.memo[_index(index)] = self.stack[-1]

    def recall(self, index: int | str) -> None:
        """Push a value from the memo."""
        try:
            self.push(self.memo[_index(index)])
        except KeyError as error:
            raise PickleError(f"a value that was never stored at byte {self.at}") from error

    def name(self) -> None:
        """Push a global, given as two lines."""
        module = self.word()
        self.push(find_global(f"{module}.{self.word()}"))

    def name_on_stack(self) -> None:
        """Push a global, given as two texts."""
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str) or len(name) + len(module) > _MAX_LINE:
            raise PickleError(f"a name at byte {self.at} is damaged")
        self.push(find_global(f"{module}.{name}"))

    def call(self) -> None:
        """REDUCE and NEWOBJ: replace a global and its arguments by what its builder makes of them."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, GlobalName) or not isinstance(arguments, tuple):
            raise PickleError(f"something else than a known function is called at byte {self.at}")
        self.charge(sum(len(part) for part in arguments if isinstance(part, (str, bytes))))
        try:
            self.push(BUILDERS[function.name](*arguments))
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            if isinstance(error, PickleError):
                raise
            raise PickleError(f"arguments of {function.name} that do not fit at byte {self.at}") from error

    def build(self) -> None:
        """BUILD: the attributes of a Namespace, the byte order of a number type; OrderedDict's are left out."""
        state, target = self.pop(), self.pop()
        if type(target) is Arguments and type(state) is dict:
            self.charge(len(state))
            if not all(isinstance(key, str) for key in state):
                raise PickleError(f"attributes without a name at byte {self.at}")
            target.update(state)
        elif isinstance(target, NumpyType) and isinstance(state, tuple) and len(state) >= 2:
            if state[1] not in ("<", ">", "|", "="):
                raise PickleError(f"an unknown byte order at byte {self.at}")
            target.order = state[1]
        elif type(target) is not dict or type(state) is not dict:
            raise PickleError(f"attributes of something that has none at byte {self.at}")
        self.push(target)

    def persistent(self) -> None:
        """BINPERSID: a storage of PyTorch: ('storage', type, key, device, elements[, view])."""
        found = self.pop()
        if not isinstance(found, tuple) or len(found) not in (5, 6) or found[0] != "storage":
            raise PickleError(f"a reference to something else than a tensor's storage at byte {self.at}")
        kind, key, count = found[1], found[2], found[4]
        if not isinstance(kind, GlobalName) or not kind.name.startswith("torch."):
            raise PickleError(f"a storage without a type at byte {self.at}")
        dtype = STORAGES.get(kind.name.removeprefix("torch."))
        if (
            dtype is None
            or not isinstance(key, str)
            or not is_count(count)
            or (len(found) == 6 and found[5] is not None)
        ):
            raise PickleError(f"a storage of an unknown kind at byte {self.at}")
        self.push(Storage(dtype, key, count))


def _index(index: int | str) -> int:
    if isinstance(index, str):
        if not index.isdecimal() or len(index) > 10:
            raise PickleError("an index of the memo is damaged")
        return int(index)
    return index


def _key(key: Any) -> Any:
    """A key of a dict or member of a set, of a type whose comparison is quick."""
    if key is None or isinstance(key, (str, bytes, bool)):
        return key
    if isinstance(key, int) and abs(key) < _MAX_KEY:
        return key
    raise PickleError(f"a key of a kind that plain data does not have ({type(key).__name__})")


_STEPS: dict[int, Callable[[_Reader], None]] = {
    0x80: lambda r: _check_protocol(r.number("B")),  # PROTO
    0x95: lambda r: _ignore(r.take(8)),  # FRAME
    ord("("): lambda r: r.mark(),
    ord("0"): lambda r: r.drop(),
    ord("1"): lambda r: _ignore(r.group()),
    ord("2"): lambda r: r.push(r.stack[-1]),
    ord("N"): lambda r: r.push(None),
    0x88: lambda r: r.push(True),
    0x89: lambda r: r.push(False),
    ord("I"): lambda r: r.decimal(),
    ord("L"): lambda r: r.decimal(),
    ord("K"): lambda r: r.push(r.number("B")),
    ord("M"): lambda r: r.push(r.number("<H")),
    ord("J"): lambda r: r.push(r.number("<i")),
    0x8A: lambda r: r.integer(r.number("B")),
    0x8B: lambda r: r.integer(r.number("<i")),
    ord("F"): lambda r: r.real(),
    ord("G"): lambda r: r.push(r.number(">d")),
    ord("S"): lambda r: r.quoted(),
    ord("V"): lambda r: r.escaped(),
    ord("U"): lambda r: r.latin(r.number("B")),
    ord("T"): lambda r: r.latin(r.number("<i")),
    ord("X"): lambda r: r.text(r.number("<I")),
    0x8C: lambda r: r.text(r.number("B")),
    0x8D: lambda r: r.text(r.number("<Q")),
    ord("C"): lambda r: r.raw(r.number("B")),
    ord("B"): lambda r: r.raw(r.number("<I")),
    0x8E: lambda r: r.raw(r.number("<Q")),
    ord("]"): lambda r: r.push([]),
    ord("}"): lambda r: r.push({}),
    ord(")"): lambda r: r.push(()),
    0x8F: lambda r: r.push(set()),
    ord("l"): lambda r: r.push(r.group()),
    ord("t"): lambda r: r.push(tuple(r.group())),
    0x85: lambda r: r.tuple_of(1),
    0x86: lambda r: r.tuple_of(2),
    0x87: lambda r: r.tuple_of(3),
    ord("d"): lambda r: _new_dict(r),
    ord("a"): lambda r: _append(r, [r.pop()]),
    ord("e"): lambda r: _append(r, r.group()),
    ord("s"): lambda r: _set_item(r),
    ord("u"): lambda r: _set_items(r),
    0x90: lambda r: _add_items(r),
    ord("p"): lambda r: r.remember(r.word()),
    ord("q"): lambda r: r.remember(r.number("B")),
    ord("r"): lambda r: r.remember(r.number("<I")),
    0x94: lambda r: r.remember(len(r.memo)),
    ord("g"): lambda r: r.recall(r.word()),
    ord("h"): lambda r: r.recall(r.number("B")),
    ord("j"): lambda r: r.recall(r.number("<I")),
    ord("c"): lambda r: r.name(),
    0x93: lambda r: r.name_on_stack(),
    ord("R"): lambda r: r.call(),
    0x81: lambda r: r.call(),
    ord("b"): lambda r: r.build(),
    ord("Q"): lambda r: r.persistent(),
}


def _ignore(*_: Any) -> None:
    pass


def _check_protocol(number: int) -> None:
    if number > 5:
        raise PickleError(f"protocol {number} of pickle is not known")


def _new_dict(reader: _Reader) -> None:
    values: dict[Any, Any] = {}
    reader.add(values, reader.group())
    reader.push(values)


def _append(reader: _Reader, values: list[Any]) -> None:
    reader.top(list).extend(values)


def _set_item(reader: _Reader) -> None:
    value, key = reader.pop(), reader.pop()
    reader.add(reader.top(dict), [key, value])


def _set_items(reader: _Reader) -> None:
    values = reader.group()
    reader.add(reader.top(dict), values)


def _add_items(reader: _Reader) -> None:
    values = reader.group()
    reader.top(set).update(map(_key, values))
