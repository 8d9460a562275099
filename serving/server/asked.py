"""Reading a request of ``/v1``: a multipart form or JSON, photos and the values beside them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import anyio
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from cats.core.errors import InputError
from cats.core.geometry import Floats, as_points
from cats.core.json_text import parse_json
from cats.runtime.match_files import Selection
from cats.serving.server.answers import HttpError
from cats.serving.server.guards import Bodies

ARRAYS = ("flow", "confidence", "backward_flow", "probabilities")
"""Arrays of a match that an answer may hold."""

NAME = 200
"""Longest name of a photo, in characters."""

_PHOTOS = ("a", "b", "image")
_MAX_FIELD = 4 << 20  # bytes of a form's text field: 100,000 points
_MAX_POINTS = 10_000


@dataclass
class Asked:
    """A request, whatever form it came in.

    Attributes:
        photos: file contents by field: ``a`` and ``b``, or ``image``.
        names: what the client calls them; only text.
        values: the other fields.
    """

    photos: dict[str, bytes] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def photo(self, name: str) -> bytes:
        """A photo that must be there."""
        if not self.photos.get(name):
            raise InputError(f"no photo {name}: send a file as the field {name!r}, in JSON as base64")
        return self.photos[name]

    def number(self, name: str, default: float | None, low: float, high: float) -> float | None:
        """A number of the request within limits."""
        value = self.values.get(name, default)
        if value is None:
            return None
        try:
            number = float(value) if not isinstance(value, bool) else None
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None or not low <= number <= high:
            raise InputError(f"{name} is {str(value)[:40]!r}: a number from {low:g} to {high:g} is needed")
        return number

    def points(self) -> Floats | None:
        """Points of a, (N, 2) in pixels; None where an even grid is wanted."""
        given = self.values.get("points")
        if isinstance(given, str):
            given = parse_json(given, "points") if given.strip() else None
        if given is None:
            return None
        if not isinstance(given, list) or len(given) > _MAX_POINTS:
            raise InputError(f"points must be a list [[x, y], ...] of at most {_MAX_POINTS}")
        try:
            return as_points(given)
        except OverflowError as error:
            raise InputError(f"points must be numbers, shape (N, 2): {error}") from error

    def selection(self) -> Selection:
        """Which matches are wanted, with the defaults of ``cats-run``."""
        grid = self.number("grid", 10, 1, 256)
        least, probable = self.number("min_confidence", 0, 0, 1), self.number("min_probability", 0, 0, 1)
        assert grid is not None and least is not None and probable is not None  # they have defaults  # noqa: PT018
        if grid != int(grid):
            raise InputError(f"grid is {grid:g}: a whole number is needed")
        way = self.number("max_forward_backward", None, 0, 1e9)
        return Selection(int(grid), least, way, min_probability=probable)

    def arrays(self) -> list[str]:
        """Which arrays of the match the answer is to hold."""
        given = self.values.get("arrays") or []
        names = [name.strip() for name in given.split(",")] if isinstance(given, str) else given
        if not isinstance(names, list) or any(name not in ARRAYS for name in names):
            raise InputError(f"arrays is {str(given)[:80]!r}: choose of {', '.join(ARRAYS)}")
        return names


async def read_request(request: Request, bodies: Bodies) -> Asked:
    """Read a multipart form or JSON; the photos are not decoded yet.

    Raises:
        InputError, HttpError: what :meth:`Bodies.read` raises, another content type, or a body that is not of its type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/json"):
        raise HttpError(415, f"content type {kind[:80]!r}: send multipart/form-data or application/json")
    body = await bodies.read(request)
    if kind == "application/json":
        return await anyio.to_thread.run_sync(_from_json, body)
    return await _from_form(request, body)


def _from_json(body: bytes) -> Asked:
    document = parse_json(body, "the body", limit=len(body))
    if not isinstance(document, dict):
        raise InputError('the body is not an object {"a": ..., "b": ...}')
    asked = Asked()
    for key, value in document.items():
        if key in _PHOTOS:
            asked.photos[key] = _decode(key, value)
        elif key in ("name_a", "name_b", "name"):
            asked.names[key.replace("name_", "")] = str(value)
        else:
            asked.values[key] = value
    return asked


def _decode(key: str, value: Any) -> bytes:
    """Base64 of a file, with or without the head of a data URL."""
    if not isinstance(value, str):
        raise InputError(f"{key} must be a text: the photo's file as base64")
    try:
        return base64.b64decode(value.rpartition(",")[2] if value.startswith("data:") else value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{key} is not base64: {error}") from error


async def _from_form(request: Request, body: bytes) -> Asked:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = MultiPartParser(request.headers, whole(), max_files=2, max_fields=16, max_part_size=_MAX_FIELD)
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError, UnicodeError, LookupError) as error:
        text = getattr(error, "message", "") or str(error)
        raise InputError(f"the body is not a multipart form: {text[:200]}") from error
    asked = Asked()
    try:
        for key, value in form.multi_items():
            if isinstance(value, UploadFile):
                asked.photos[key] = await value.read()
                asked.names[key] = value.filename or ""
            else:
                asked.values[key] = value
    finally:
        await form.close()
    return asked


def plain_name(name: str, default: str) -> str:
    """The last part of a name, as text: no folder, nothing that is not printable."""
    last = PurePosixPath(name.replace("\\", "/")).name
    return "".join(character for character in last if character.isprintable())[:NAME] or default
