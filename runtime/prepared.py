"""Images made ready for a model: :class:`Prepared`, and the last ones kept."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cats.core.errors import InputError
from cats.core.files import file_key
from cats.core.geometry import Size
from cats.core.images import ImageSource, is_tensor, preprocess, read_image, tensor_pixels
from cats.core.metadata import Metadata
from cats.runtime.backends.base import Array
from cats.runtime.features import Features

ORDERS = ("rgb", "bgr")
"""Orders of an array's channels: ours and Pillow's, and OpenCV's."""


@dataclass(frozen=True)
class Prepared:
    """One image, ready for a model.

    Attributes:
        source: as it was given, arrays in RGB order.
        size: (width, height) of the upright image.
        tensor: input of the model without batch axis; None of features.
        read_ms, preprocess_ms: what that took.
        features: what the encoder made of the image, by name, without batch axis.
    """

    source: ImageSource | None
    size: Size
    tensor: Array | None
    read_ms: float = 0.0
    preprocess_ms: float = 0.0
    features: dict[str, Array] | None = None


def prepare_image(source: ImageSource, metadata: Metadata, *, max_pixels: int, order: str = "rgb") -> Prepared:
    """Read an image and make it the input of a model; an end-to-end model takes its pixels.

    Args:
        order: of the channels of an array, see :data:`ORDERS`.

    Raises:
        InputError: it cannot be read, or an unknown order.
    """
    start = time.perf_counter()
    source = as_rgb(source, order)
    image = read_image(source, max_pixels=max_pixels)
    read_ms = milliseconds_since(start)
    if metadata.kind == "end-to-end":
        return Prepared(source, image.size, np.asarray(image), read_ms)
    start = time.perf_counter()
    tensor = preprocess(image, metadata.preprocessing)
    return Prepared(source, image.size, tensor, read_ms, milliseconds_since(start))


def as_rgb(source: ImageSource | Features, order: str) -> ImageSource:
    """An array or tensor of another order as an array in RGB, without a copy; the others say it.

    Raises:
        InputError: an unknown order, or a tensor that is no image.
    """
    if order not in ORDERS:
        raise InputError(f"unknown order {order!r} of channels: choose {', '.join(ORDERS)}")
    if is_tensor(source):
        source = tensor_pixels(source)
    if order == "bgr" and isinstance(source, np.ndarray) and source.ndim == 3 and source.shape[2] in (3, 4):
        return source[:, :, [2, 1, 0, 3][: source.shape[2]]]
    return source  # type: ignore[return-value]  # features are no image and pass through


class RecentImages:
    """The images prepared last, since tables of pairs often name one photo in many rows; for several threads."""

    def __init__(self, size: int) -> None:
        self._size, self._lock = size, threading.Lock()
        self._items: OrderedDict[str, Prepared] = OrderedDict()

    def get(self, source: ImageSource | Features, prepare: Callable[[ImageSource | Features], Prepared]) -> Prepared:
        """A prepared image; only files are kept. One from here took no time to read."""
        if not isinstance(source, (str, Path)):
            return prepare(source)
        key = file_key(source)
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return replace(self._items[key], read_ms=0.0, preprocess_ms=0.0)
        item = prepare(source)
        with self._lock:
            self._items[key] = item
            while len(self._items) > self._size:
                self._items.popitem(last=False)
        return item


def milliseconds_since(start: float) -> float:
    """Milliseconds since a ``perf_counter`` value."""
    return (time.perf_counter() - start) * 1000
