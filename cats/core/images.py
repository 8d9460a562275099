"""Reading images of every kind, and the one pre-processing that training, calibration and the runtime share.

:func:`read_image` turns what a user has into an upright RGB image or says why not; :func:`preprocess` turns that into
a model input. The C library mirrors :func:`preprocess`.
"""

from __future__ import annotations

import functools
import logging
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from cats.core.errors import InputError
from cats.core.geometry import Size
from cats.core.image_files import MAX_PIXELS, check_cost, open_header, open_image, reason
from cats.core.metadata import Preprocessing

if TYPE_CHECKING:
    from typing import TypeGuard


class Tensor(Protocol):
    """A tensor of torch, as far as it is looked at here."""

    @property
    def dtype(self) -> Any:
        """Element type."""

    @property
    def device(self) -> Any:
        """Where it lies."""

    def detach(self) -> Any:
        """The same values, not recorded for gradients."""


ImageSource = str | Path | bytes | Image.Image | NDArray[np.uint8] | Tensor
"""A file, the content of one, a Pillow image of any mode, or a uint8 array (H, W, 3) RGB, (H, W, 4) RGBA, (H, W) or
(H, W, 1) grey; or a uint8 tensor of torch on the CPU, which may have its channels first too."""

MIN_SIDE = 16
"""An image needs at least one pixel per cell of the flow."""

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_PLAIN = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")
_BITS, _PHOTOMETRIC = 258, 262  # tags of a TIFF

# Pillow decodes lazily and is not safe when one image is decoded by several threads; image -> lock by its identity.
_DECODING = tuple(threading.Lock() for _ in range(64))


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    The EXIF orientation is applied. Grey, palette, CMYK and YCbCr are converted; transparent pixels are laid over
    white; 16-bit samples are scaled from 0..65535 to 0..255; of an animation the first frame is taken.

    Args:
        source: see :data:`ImageSource`. A file is only decoded after its header passed the limits. One Pillow image
            may be given in several threads at once.
        max_pixels: larger images are refused before decoding.
        at_least: a JPEG may be decoded at a half, a quarter or an eighth of its size where both sides keep this many
            pixels, which is several times faster.

    Returns:
        Image of mode ``RGB``; its ``size`` is (width, height). May be ``source`` itself, so do not write into it.

    Raises:
        InputError: missing, no ordinary file, unreadable, truncated, not an image, too small or too large, or of a
            sample type whose brightness is undefined (float, 32-bit integer).
    """
    if isinstance(source, (str, Path, bytes)):
        image, name = open_image(source, max_pixels=max_pixels)
        with image:
            return _finish(image, name, at_least)
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "") or f"the given {source.mode} image")
        with _DECODING[id(source) // 64 % len(_DECODING)]:
            _check(lambda: check_cost(source, name, max_pixels), name)
            return _finish(source, name, None)
    if is_tensor(source):
        source = tensor_pixels(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise InputError(f"an image of type {type(source).__name__}: give a path, a Pillow image or a uint8 array")


def is_tensor(value: object) -> TypeGuard[Tensor]:
    """Whether a value is a tensor of torch, which is not imported for that."""
    return any(f"{kind.__module__}.{kind.__qualname__}" == "torch.Tensor" for kind in type(value).__mro__)


def tensor_pixels(tensor: Tensor) -> NDArray[np.uint8]:
    """Pixels of one image in a tensor of torch, channels last, without a copy.

    Args:
        tensor: uint8 on the CPU: (C, H, W) or (H, W, C) with 1, 3 or 4 channels, or (H, W).

    Returns:
        uint8 (H, W, C) or (H, W).

    Raises:
        InputError: of another dtype, device or shape.
    """
    if tensor.device.type != "cpu":
        raise InputError(f"an image tensor on {tensor.device}: move it to the CPU with .cpu()")
    try:
        array: NDArray[Any] = tensor.detach().numpy()
    except (TypeError, RuntimeError, AttributeError) as error:  # bfloat16, sparse, quantized tensors
        raise InputError(f"an image tensor of {tensor.dtype}: uint8 with values 0..255 is needed") from error
    if array.dtype != np.uint8:
        raise InputError(_not_bytes(array, "tensor", ".round().to(torch.uint8)"))
    if array.ndim == 4:
        raise InputError(f"an image tensor of shape {array.shape} is a batch: give its images one by one")
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    return array


def image_size(path: str | Path) -> Size:
    """(width, height) of an image as :func:`read_image` shows it, from its header.

    Raises:
        InputError: missing, or not an image.
    """
    file = Path(path)
    with open_header(file) as image:
        width, height = image.size
        if image.format == "TIFF":  # whose size Pillow turns itself, in some of its versions
            tags = image.tag_v2  # type: ignore[attr-defined]
            width, height = int(tags[256]), int(tags[257])
        turned = _orientation(image) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def read_mask(path: str | Path) -> NDArray[np.bool_]:
    """(H, W) bool of a mask's file: where a sample, or the index of a palette, is not 0.

    Raises:
        InputError: as :func:`read_image`.
    """
    image, name = open_image(path)
    with image:
        _check(image.load, name)
        values = np.asarray(image)
    return (values if values.ndim == 2 else values[..., :3].max(axis=-1)) > 0


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


def _check(work: Any, name: str) -> None:
    try:
        work()
    except InputError:
        raise
    except Exception as error:  # decoders of broken files raise almost anything
        raise InputError(f"image {name} cannot be decoded: {reason(error)}") from error


def _finish(image: Image.Image, name: str, at_least: int | None) -> Image.Image:
    """Check the sides, decode, turn upright and convert."""
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise InputError(f"image {name} is {width}x{height}: at least {MIN_SIDE}x{MIN_SIDE} pixels are needed")
    try:
        coding = _Coding.of(image)
        if at_least is not None:
            image.draft(image.mode, (at_least, at_least))
        image.load()
        return _to_rgb(_upright(image), name, coding)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"image {name} cannot be decoded: {reason(error)}") from error


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data says nothing about the orientation, and the pixels are fine
        return 1
    return orientation if orientation in range(2, 9) else 1


def _upright(image: Image.Image) -> Image.Image:
    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


@dataclass(frozen=True)
class _Coding:
    """How a file codes its samples, which a decoded image no longer says.

    Attributes:
        raw: Pillow's name of it, where there is one.
        grey: mode ``I`` holds 16-bit grey: of PGM files, and of PNG files before Pillow 11.3.
        white: the largest value of a 16-bit sample.
        negative: 0 is white.
    """

    raw: str | None = None
    grey: bool = False
    white: int = 65535
    negative: bool = False

    @classmethod
    def of(cls, image: Image.Image) -> _Coding:
        """Of an image that is not decoded yet."""
        tile = next(iter(getattr(image, "tile", ())), None)
        args = tile[3] if tile is not None else None
        raw = args if isinstance(args, str) else args[0] if isinstance(args, tuple) and args else None
        coding = cls(raw if isinstance(raw, str) else None, image.format in ("PNG", "PPM"))
        if image.format != "TIFF":
            return coding
        tags: Any = getattr(image, "tag_v2", {})
        bits = int(np.ravel(tags.get(_BITS, 16))[0])
        return cls(coding.raw, False, (1 << bits) - 1 if 8 < bits < 16 else 65535, tags.get(_PHOTOMETRIC) == 0)


def _to_rgb(image: Image.Image, name: str, coding: _Coding) -> Image.Image:
    if image.mode in _SIXTEEN_BIT or (image.mode == "I" and coding.grey):
        return Image.fromarray(_eight_bits(image, coding)).convert("RGB")
    if image.has_transparency_data:
        layer = _with_eight_bit_key(image, coding).convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(layer, mask=layer.getchannel("A"))
        return canvas
    if image.mode == "RGB":
        return image
    if image.mode in _PLAIN:
        return image.convert("RGB")
    raise InputError(
        f"image {name} has samples of mode {image.mode}, whose brightness range is undefined: save it as 8-bit RGB"
    )


def _eight_bits(image: Image.Image, coding: _Coding) -> NDArray[np.uint8]:
    """Grey levels of 16-bit samples, which Pillow's own conversion clips; the transparent one is white."""
    samples = np.asarray(image)
    levels = (np.arange(coding.white + 1) * 255 + coding.white // 2) // coding.white
    table = (255 - levels if coding.negative else levels).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int) and 0 <= key <= coding.white:
        table[key] = 255
    result = np.empty(samples.shape, np.uint8)
    for top in range(0, len(samples), 64):  # in parts, for each index takes eight bytes
        result[top : top + 64] = table.take(samples[top : top + 64], mode="clip")
    return result


def _with_eight_bit_key(image: Image.Image, coding: _Coding) -> Image.Image:
    """The image with the transparent colour of a PNG of 2, 4 or 16 bits a sample in 8 bits, as Pillow has the rest."""
    key: Any = image.info.get("transparency")
    if coding.raw == "RGB;16B" and isinstance(key, tuple):
        key = tuple(value >> 8 for value in key)
    elif coding.raw in ("L;2", "L;4") and isinstance(key, int):
        key = key * (85 if coding.raw == "L;2" else 17) & 255
    else:
        return image
    image = image.copy()
    image.info["transparency"] = key
    return image


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8:
        raise InputError(_not_bytes(array, "array", ".round().astype('uint8')"))
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        hint = ": transpose it to (H, W, C)" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise InputError(f"an image array of shape {array.shape}: (H, W), (H, W, 3) or (H, W, 4) is needed{hint}")
    if min(array.shape[:2]) < MIN_SIDE:
        raise InputError(f"an image array of shape {array.shape}: at least {MIN_SIDE}x{MIN_SIDE} pixels are needed")
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)), "array", _Coding())


def _not_bytes(array: NDArray[Any], what: str, conversion: str) -> str:
    """What to say of samples that are not bytes: a float image may be of 0..1 or 0..255, or normalised."""
    text = f"an image {what} of dtype {array.dtype}: uint8 with values 0..255 is needed"
    if array.dtype.kind != "f" or array.size == 0:
        return text
    low, high = float(array.min()), float(array.max())
    spans = f"{text}, and this one spans {low:.3g}..{high:.3g}"
    if 0 <= low <= high <= 1:
        return f"{spans}: if white is 1, give (image * 255){conversion}"
    return f"{spans}: undo its normalisation, then give it as bytes"


def quiet_pillow() -> None:
    """Stop Pillow's warnings and log (damaged EXIF data, sizes) in this process; errors say what matters."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")
