"""Windows of photos: the part that a second look matches again, cut to the object.

The model sees every image at one small size, so an object that fills a third of its photo gets a third of the cells.
Cut to the object, both photos show it as large as the model can see it, and at like scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from cats.core.errors import InputError
from cats.core.geometry import Floats, Size
from cats.core.images import MIN_SIDE

MARGIN = 0.2
LEAST_SIDE = 0.6


@dataclass(frozen=True)
class Window:
    """A rectangle of whole pixels of a photo; right and bottom are the first ones outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> Size:
        """(width, height) in pixels."""
        return self.right - self.left, self.bottom - self.top

    def crop(self, image: Image.Image) -> Image.Image:
        """This part of an image."""
        return image.crop((self.left, self.top, self.right, self.bottom))

    def to_window(self, points: ArrayLike) -> Floats:
        """Pixels of the photo to pixels of the window; (..., 2) float64."""
        return np.asarray(points, np.float64) - np.array([self.left, self.top])

    def to_photo(self, points: ArrayLike) -> Floats:
        """Inverse of :meth:`to_window`."""
        return np.asarray(points, np.float64) + np.array([self.left, self.top])


def object_window(points: ArrayLike, size: Size, *, margin: float = MARGIN, least_side: float = LEAST_SIDE) -> Window:
    """The window around an object, within its photo.

    Args:
        points: (N, 2) of the object in pixels; those that are not finite do not count.
        size: (width, height) of the photo.
        margin: room on each side, in the longer extent of the points. 0.2 was best of 0.15 to 0.5
            (benchmarks/studies/labelling.py): less cuts off what the points do not span, more shows the object smaller.
        least_side: no side is shorter than this part of the longer one, or a flat object would be drawn out.

    Raises:
        InputError: no point is finite.
    """
    array = np.asarray(points, np.float64).reshape(-1, 2)
    array = array[np.isfinite(array).all(axis=1)]
    if not len(array):
        raise InputError("a window around no points: at least one must be finite")
    low, high = array.min(axis=0), array.max(axis=0)
    side = high - low + 2 * margin * max((high - low).max(), 1.0)
    side = np.maximum(side, least_side * side.max())
    centre, limit = (low + high) / 2, np.asarray(size)
    first = np.clip(np.floor(centre - side / 2), 0, limit - MIN_SIDE).astype(int)
    last = np.clip(np.ceil(centre + side / 2) + 1, first + MIN_SIDE, limit).astype(int)
    return Window(int(first[0]), int(first[1]), int(last[0]), int(last[1]))


def box_corners(box: ArrayLike, name: str) -> Floats:
    """Corners (2, 2) of a box x_min, y_min, x_max, y_max; raises :class:`InputError` where it is none."""
    try:
        corners = np.asarray(box, np.float64).reshape(2, 2)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is not x_min, y_min, x_max, y_max: {box!r}") from error
    if not np.isfinite(corners).all() or (corners[1] <= corners[0]).any():
        raise InputError(f"{name} {corners.ravel().tolist()}: the maximum must lie right of and below the minimum")
    return corners
