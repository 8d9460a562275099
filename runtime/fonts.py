"""Text in pictures, in any script for which this machine has a font.

Pillow's own font knows Latin letters. For others a few fonts that systems usually have are looked for, by the names of
their files; letters of different fonts stand side by side in one line.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import ImageDraw, ImageFont

from cats.core.text import plain

# Latin, Greek and Cyrillic first, then Chinese, Japanese and Korean; Linux, Windows, macOS.
_FILES = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "segoeui.ttf", "Arial.ttf"),
    *("NotoSansCJK-Regular.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf", "wqy-microhei.ttc"),
    *("wqy-zenhei.ttc", "msyh.ttc", "YuGothR.ttc", "malgun.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc"),
    *("Arial Unicode.ttf", "unifont.otf", "unifont.ttf"),
)
_UNKNOWN = "\U0010ffff"  # no font has it: its picture is the font's box for unknown letters


@dataclass(frozen=True)
class Line:
    """Text with the font of each of its parts.

    Attributes:
        parts: (text, font), left to right.
        width: in pixels.
    """

    parts: tuple[tuple[str, Any], ...]
    width: float

    def draw(self, pen: ImageDraw.ImageDraw, place: tuple[float, float], fill: tuple[int, int, int]) -> None:
        """Draw the line; ``place`` is the left end of its baseline."""
        x, y = place
        for text, font in self.parts:
            pen.text((x, y), text, fill, font=font, anchor="ls")
            x += font.getlength(text)


def fit_line(text: str, size: int, width: float) -> Line:
    """Text in the fonts of this machine, cut to a width.

    Control characters and letters that no font has are written out, as ``\\n`` and ``\\u732b``: a box in their place
    would look like any other.

    Args:
        size: of the letters, in pixels.
        width: room in pixels; what is longer ends in an ellipsis.
    """
    text = plain(text).replace("\n", "\\n")
    line = _line(text, size)
    while line.width > width and len(text) > 4:
        text = text[:-2].rstrip("…") + "…"
        line = _line(text, size)
    return line


def _line(text: str, size: int) -> Line:
    parts: list[tuple[str, Any]] = []
    for char in text:
        last = parts[-1][1] if parts else None
        font = last if last is not None and _has(last, char) else _font_of(char, size)
        if font is None:
            char, font = char.encode("ascii", "backslashreplace").decode(), default_font(size)
        if font is last:
            parts[-1] = (parts[-1][0] + char, font)
        else:
            parts.append((char, font))
    return Line(tuple(parts), sum(font.getlength(part) for part, font in parts))


def _font_of(char: str, size: int) -> Any:
    return next((font for font in _fonts(size) if _has(font, char)), None)


def _fonts(size: int) -> Iterator[Any]:
    yield default_font(size)
    for name in _FILES:
        font = _open(name, size)
        if font is not None:
            yield font


@functools.lru_cache(maxsize=64)
def _open(name: str, size: int) -> Any:
    try:
        return ImageFont.truetype(name, size)
    except (ImportError, OSError):
        return None


@functools.lru_cache(maxsize=4096)
def _has(font: Any, char: str) -> bool:
    """Whether a font has a letter: its picture is not that of unknown ones."""
    if char.isspace():
        return True
    if not isinstance(font, ImageFont.FreeTypeFont):
        return char.isascii()
    known, unknown = font.getmask(char), font.getmask(_UNKNOWN)
    return known.size != unknown.size or bytes(known) != bytes(unknown)


@functools.lru_cache(maxsize=4)
def default_font(size: int) -> Any:
    """Pillow's own font; one small bitmap font where Pillow lacks FreeType."""
    try:
        return ImageFont.load_default(size)
    except (ImportError, OSError):
        return ImageFont.load_default()
