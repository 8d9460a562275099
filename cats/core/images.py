"""Reading images of every kind, and the one pre-processing that training, calibration and the runtime share.

:func:`read_image` turns what a user has into an upright RGB image or says why not; :func:`preprocess` turns that into
a model input. The C library mirrors :func:`preprocess`.
"""

from __future__ import annotations

import functools
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from cats.core.errors import InputError
from cats.core.metadata import Preprocessing

ImageSource = str | Path | Image.Image | NDArray[np.uint8]
"""A file, a Pillow image of any mode, or a uint8 array (H, W, 3) RGB, (H, W, 4) RGBA, (H, W) or (H, W, 1) grey."""

MAX_PIXELS = 89_478_485
"""Default limit of :func:`read_image`, Pillow's own warning level: decoded, such an image takes 360 MB."""

MIN_SIDE = 16
"""An image needs at least one pixel per cell of the flow."""

# Formats whose decoders only decode: Pillow would run Ghostscript for EPS.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "BMP", "DIB", "GIF", "PPM", "TIFF", "MPO", "JPEG2000", "TGA", "QOI")
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_PLAIN = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    The EXIF orientation is applied. Grey, palette, CMYK and YCbCr are converted; transparent pixels are laid over
    white; 16-bit samples are scaled from 0..65535 to 0..255; of an animation the first frame is taken.

    Args:
        source: see :data:`ImageSource`. A file is only decoded after its header passed the limits.
        max_pixels: larger images are refused before decoding.

    Returns:
        Image of mode ``RGB``; its ``size`` is (width, height). May be ``source`` itself, so do not write into it.

    Raises:
        InputError: missing, unreadable, truncated, not an image, too small or too large, or of a sample type whose
            brightness is undefined (float, 32-bit integer).
    """
    if isinstance(source, (str, Path)):
        return _read_file(Path(source), max_pixels)
    if isinstance(source, Image.Image):
        return _finish(source, getattr(source, "filename", "") or f"the given {source.mode} image", max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise InputError(f"an image of type {type(source).__name__}: give a path, a Pillow image or a uint8 numpy array")


def resize(image: Image.Image | NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize an RGB image to ``size`` (width, height) with Pillow's antialiased bilinear filter, aspect ratio not kept.

    Args:
        image: mode ``RGB``, or uint8 (H, W, 3).

    Returns:
        uint8 (height, width, 3).
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
    # Horizontally first, as Pillow did until 12; since 13 its own order, and with it the rounding, depends on the size.
    wide = picture.resize((size[0], picture.height), Image.Resampling.BILINEAR)
    return np.asarray(wide.resize(size, Image.Resampling.BILINEAR))


def normalise(image: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """``(image / 255 - mean) / std`` in float32 arithmetic: uint8 (H, W, 3) RGB to float32 (3, H, W)."""
    table = _lookup(preprocessing.mean, preprocessing.std)
    result = np.empty((3, *image.shape[:2]), np.float32)
    for channel in range(3):
        np.take(table[channel], image[..., channel], out=result[channel])
    return result


def preprocess(image: Image.Image | NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Model input of one image, bit-equal to the training transform.

    Args:
        image: RGB image of :func:`read_image`, or uint8 (H, W, 3) RGB.
        preprocessing: from the model's metadata.

    Returns:
        float32 (3, H, W), C-contiguous, where (W, H) is ``preprocessing.size``.
    """
    return normalise(resize(image, preprocessing.size), preprocessing)


@functools.lru_cache(maxsize=16)
def _lookup(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """Normalised value of each of the 256 grey levels, (3, 256); a lookup is exact and faster than the arithmetic."""
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    centred = levels[None] - np.asarray(mean, np.float32)[:, None]
    return centred / np.asarray(std, np.float32)[:, None]


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _read_file(path: Path, max_pixels: int) -> Image.Image:
    try:
        with open(path, "rb") as handle:
            return _finish(_open_header(handle, path), str(path), max_pixels)
    except OSError as error:  # decoding errors are turned into InputError below
        raise InputError(f"cannot read image {path}: {error.strerror or error}") from error


def _open_header(handle: Any, path: Path) -> Image.Image:
    try:
        return Image.open(handle, formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"image {path} is too large to be decoded ({str(error).partition(',')[0]}): make it smaller first, "
            "or raise the limit (PIL.Image.MAX_IMAGE_PIXELS, --max-megapixels)"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise InputError(
            f"{path} is not an image, or of a format that is not read ({', '.join(_formats())})"
        ) from error
    except OSError:
        raise
    except Exception as error:  # decoders of hostile headers raise almost anything
        raise InputError(f"image {path} has a broken header: {error}") from error


def _finish(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Check the size, decode, turn upright and convert."""
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise InputError(f"image {name} is {width}x{height}: at least {MIN_SIDE}x{MIN_SIDE} pixels are needed")
    if width * height > max_pixels:
        raise InputError(
            f"image {name} is {width}x{height}, {width * height / 1e6:.3g} megapixels, over the limit of "
            f"{max_pixels / 1e6:.3g}: make it smaller first, or raise the limit (max_pixels, --max-megapixels)"
        )
    try:
        image.load()
        return _to_rgb(_upright(image), name)
    except InputError:
        raise
    except Exception as error:  # decoders of broken files raise almost anything
        raise InputError(f"image {name} cannot be decoded: {error or type(error).__name__}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data says nothing about the orientation, and the pixels are fine
        return image
    if orientation not in range(2, 9):
        return image
    return ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(layer, mask=layer.getchannel("A"))
        return canvas
    if image.mode == "RGB":
        return image
    # Pillow before 11.3 opens 16-bit grey PNG files with mode I; its own conversion to 8 bits clips.
    if image.mode in _SIXTEEN_BIT or (image.mode == "I" and image.format == "PNG"):
        samples = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((samples + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in _PLAIN:
        return image.convert("RGB")
    raise InputError(
        f"image {name} has samples of mode {image.mode}, whose brightness range is undefined: save it as 8-bit RGB"
    )


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8:
        raise InputError(f"an image array of dtype {array.dtype}: uint8 with values 0..255 is needed")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        hint = ": transpose it to (H, W, C)" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise InputError(f"an image array of shape {array.shape}: (H, W), (H, W, 3) or (H, W, 4) is needed{hint}")
    if min(array.shape[:2]) < MIN_SIDE:
        raise InputError(f"an image array of shape {array.shape}: at least {MIN_SIDE}x{MIN_SIDE} pixels are needed")
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)), "array")


def quiet_pillow() -> None:
    """Stop Pillow's warnings and log (damaged EXIF data, sizes) in this process; errors say what matters."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")
