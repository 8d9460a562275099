"""Fields of a protobuf message in a mapped file, without a schema and without the protobuf package."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cats.core.errors import InputError, ModelFileError
from cats.core.files import open_regular

_MAX_STRING = 16 << 20


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


def encode_number(value: int) -> bytes:
    """A varint."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def encode_field(number: int, content: bytes) -> bytes:
    """A field of a message: a string or another message."""
    return encode_number(number << 3 | 2) + encode_number(len(content)) + content


def encode_text(number: int, content: str) -> bytes:
    """A field of a message: a string."""
    return encode_field(number, content.encode())
