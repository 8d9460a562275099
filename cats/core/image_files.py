"""Opening image files of every kind safely: the only place that calls Pillow's ``open``.

What costs memory or time is bounded by the header, before anything is decoded: pixels, bytes of the file, tiles of a
TIFF, scans of a JPEG. Only formats whose decoders decode and do nothing else are read.
"""

from __future__ import annotations

import functools
import io
import re
from pathlib import Path
from typing import Any

from PIL import Image

from cats.core.errors import InputError
from cats.core.files import open_regular, read_bytes

MAX_PIXELS = 89_478_485
"""Default limit of an image, Pillow's own warning level: decoded, such an image takes 360 MB."""

# Pillow would run Ghostscript for EPS; others wait for a program or a network.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "BMP", "DIB", "GIF", "PPM", "TIFF", "MPO", "JPEG2000", "TGA", "QOI")

_BYTES_PER_PIXEL, _MORE_BYTES = 6, 16 << 20  # of a file: 16-bit RGB without compression, and what lies beside it
_TILE = 4096  # pixels a side that a tile may have although the image is smaller
_SCANS, _SCANNED = 16, 10  # scans that any JPEG may have, and passes over max_pixels
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)  # a marker within coded data
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def open_image(source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, str]:
    """An image that is opened, checked and not yet decoded, and its name for messages.

    Args:
        source: a file, which is read whole, or the content of one.
        max_pixels: limit of width x height.

    Raises:
        InputError: missing, no ordinary file, not an image, or over a limit.
    """
    if isinstance(source, bytes):
        data, name = source, "of the given bytes"
    else:
        name = str(source)
        limit = _BYTES_PER_PIXEL * max_pixels + _MORE_BYTES
        data = read_bytes(source, limit=limit, what="image")
    image = _open(io.BytesIO(data), data[:32], name)
    check_cost(image, name, max_pixels, data)
    return image, name


def open_header(path: Path) -> Image.Image:
    """An image whose header alone is read; the caller closes it. Raises :class:`InputError` as :func:`open_image`."""
    handle = open_regular(path, "image")
    try:
        head = handle.read(32)
        handle.seek(0)
        return _open(handle, head, str(path))
    except BaseException:
        handle.close()
        raise


def check_cost(image: Image.Image, name: str, max_pixels: int, data: bytes | None = None) -> None:
    """Refuse an image, opened and not yet decoded, whose decoding would take more memory or time than its size says.

    Args:
        data: content of its file; None reads it from the image.

    Raises:
        InputError: a format that is not read, too many pixels, tiles or scans.
    """
    if image.format is not None and image.format not in FORMATS:
        raise InputError(f"image {name} is of the format {image.format}, which is not read ({', '.join(formats())})")
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(
            f"image {name} is {width}x{height}, {width * height / 1e6:.3g} megapixels, over the limit of "
            f"{max_pixels / 1e6:.3g}: make it smaller first, or raise the limit (max_pixels, --max-megapixels)"
        )
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        for tag, side in ((322, width), (323, height)):
            value = tags.get(tag, 0)
            if not isinstance(value, int) or value > max(side, height, _TILE):
                raise InputError(f"image {name} is {width}x{height} in tiles of {value} pixels: a broken TIFF file")
    if image.format in ("JPEG", "MPO"):
        scans = count_scans(_content(image) if data is None else data)
        if scans > max(_SCANS, _SCANNED * max_pixels // max(width * height, 1)):
            raise InputError(f"image {name} is {width}x{height} in {scans} scans, which take minutes: save it anew")


def count_scans(jpeg: bytes) -> int:
    """Scans of the first image of a JPEG file, each of which is a pass over all its pixels."""
    scans, place = 0, 2
    while (found := _MARKER.search(jpeg, place)) is not None:
        marker = jpeg[found.start() + 1]
        if marker == _END_OF_IMAGE:
            break
        scans += marker == _START_OF_SCAN
        place = found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2], "big")
    return scans


@functools.cache
def formats() -> tuple[str, ...]:
    """:data:`FORMATS` that can be read here: HEIF where pillow-heif is installed, AVIF where Pillow has it."""
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def reason(error: Exception) -> str:
    """What a decoder says, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _content(image: Image.Image) -> bytes:
    handle: Any = getattr(image, "fp", None)
    if handle is None:  # decoded already
        return b""
    place = handle.tell()
    handle.seek(0)
    data = handle.read()
    handle.seek(place)
    return data


def _open(handle: Any, head: bytes, name: str) -> Image.Image:
    try:
        return Image.open(handle, formats=formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"image {name} is too large to be decoded ({str(error).partition(',')[0]}): make it smaller first, "
            "or raise the limit (PIL.Image.MAX_IMAGE_PIXELS, --max-megapixels)"
        ) from error
    except Image.UnidentifiedImageError as error:
        if head[4:8] == b"ftyp" and head[8:12] in _HEIC and "HEIF" not in formats():
            why = "is a HEIC photo, which is read where pillow-heif is installed: pip install 'cats-toolkit[heic]'"
        elif head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis") and "AVIF" not in formats():
            why = "is an AVIF image, which Pillow reads since 11.3: pip install --upgrade pillow"
        else:
            why = f"is not an image, or of a format that is not read ({', '.join(formats())})"
        raise InputError(f"{name} {why}") from error
    except Exception as error:  # decoders of hostile headers raise almost anything
        raise InputError(f"image {name} has a broken header: {reason(error)}") from error
