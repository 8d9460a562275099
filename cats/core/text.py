"""Names and texts from elsewhere, as text that only shows."""

from __future__ import annotations

import unicodedata

_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def plain(text: str) -> str:
    r"""Text without what acts on a terminal: control characters, marks that turn the direction of writing, and bytes of
    file names that are no text appear as ``\x1b``, ``\u202e``, ``\udcff``. Line ends stay."""
    return "".join(ascii(char)[1:-1] if _acts(char) else char for char in text)


def _acts(char: str) -> bool:
    return char in _REORDERING or (char != "\n" and unicodedata.category(char) in ("Cc", "Cs"))
