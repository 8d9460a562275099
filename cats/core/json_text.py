"""JSON of files that somebody else may have written: bounded, finite, and text that can be printed and stored.

The rules are those of libcats (``runtime/c/src/json.c``), so that Python and C take the same documents: UTF-8, at most
16 MiB and 64 levels; no NaN and no infinity, also not as a number of 400 digits; no lone surrogates, no NUL in texts.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from cats.core.errors import CatsError, InputError
from cats.core.files import read_bytes

MAX_BYTES = 16 << 20
MAX_DEPTH = 64
_MAX_VALUES = 4_000_000
_LONGEST_NUMBER = 64  # characters


def parse_json(
    text: str | bytes, source: str | Path, *, limit: int = MAX_BYTES, error: type[CatsError] = InputError
) -> Any:
    """Decode one JSON document.

    Args:
        text: of the document; bytes are UTF-8.
        source: what it is, for messages.
        limit: largest size in bytes.
        error: class of the errors raised.

    Raises:
        CatsError: of class ``error``: not JSON, or outside of the bounds above.
    """
    try:
        data = text.encode() if isinstance(text, str) else bytes(text)
        if len(data) > limit:
            raise ValueError(f"it has {len(data)} bytes, {limit} at most are read")
        if data.count(b",") + data.count(b"[") + data.count(b"{") > _MAX_VALUES:
            raise ValueError(f"it holds more than {_MAX_VALUES:,} values")
        document = json.loads(
            data.decode(), parse_constant=_refuse_constant, parse_int=_parse_int, parse_float=_parse_float
        )
        _check(document, texts=b"\\u" in data)
    except RecursionError as problem:
        raise error(f"{source} is not JSON: nested more than {MAX_DEPTH} deep") from problem
    except ValueError as problem:
        reason = "text that is not UTF-8" if isinstance(problem, UnicodeError) else str(problem)[:200]
        raise error(f"{source} is not JSON: {reason}") from problem
    return document


def read_json(path: str | Path, *, limit: int = MAX_BYTES, error: type[CatsError] = InputError) -> Any:
    """Decode a JSON file; raises as :func:`parse_json`, and where it cannot be read."""
    try:
        data = read_bytes(path, limit=limit, what="JSON file")
    except InputError as problem:
        raise error(str(problem)) from problem
    return parse_json(data, path, limit=limit, error=error)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a finite number")


def _parse_float(text: str) -> float:
    value = float(text) if len(text) <= _LONGEST_NUMBER else math.inf
    if not math.isfinite(value):
        raise ValueError(f"{text[:24]}... is not a number that can be computed with")
    return value


def _parse_int(text: str) -> int | float:
    return int(text) if len(text) <= _LONGEST_NUMBER else _parse_float(text)


def _check(document: Any, *, texts: bool) -> None:
    """Refuse what is too deep and, where ``texts`` may hold escapes, what is no text."""
    level, depth = [document], 0
    while level:
        if depth == MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        if texts:
            for item in level:
                if isinstance(item, str) and ("\0" in item or not _is_text(item)):
                    raise ValueError("a text with a lone surrogate or NUL")
                if isinstance(item, dict) and any("\0" in key or not _is_text(key) for key in item):
                    raise ValueError("a name with a lone surrogate or NUL")
        level = [
            part
            for item in level
            if isinstance(item, (dict, list))
            for part in (item.values() if isinstance(item, dict) else item)
        ]
        depth += 1


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
