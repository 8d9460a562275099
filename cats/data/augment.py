"""Augmentation of annotated pairs: the photometric set of the paper's Table 1, and the crop that keeps the object.

Everything draws from a given random generator, so that an item of a data set is a function of a seed and its index.
Both images of a pair are changed independently, and keypoints follow.
"""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cats.core.errors import InputError, require
from cats.core.geometry import Floats, Size, pixels_to_cells
from cats.core.images import resize
from cats.data.samples import Box, Sample

Window = tuple[int, int, int, int]
"""Part of an image: left, top, right, bottom in pixels, right and bottom exclusive, as in Pillow."""


class Photometric:
    """The paper's Table 1: ToGray, Posterize, Equalize, Sharpen, RandomBrightnessContrast, Solarize and ColorJitter,
    each with probability ``p``. Strengths are albumentations' defaults at that time, written out as some changed since.

    Args:
        p: probability of each.

    Raises:
        BackendError: albumentations is not installed.
    """

    def __init__(self, p: float = 0.2) -> None:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask the network for a newer version
        library: Any = require(
            "albumentations", extra="train", purpose="augment images (set augment=false to do without)"
        )
        self.p = p
        self._transforms = [
            library.ToGray(p=1),
            library.Posterize(num_bits=4, p=1),
            library.Equalize(mode="cv", by_channels=True, p=1),
            library.Sharpen(alpha=(0.2, 0.5), lightness=(0.5, 1.0), p=1),
            library.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=1),
            library.Solarize(threshold_range=(0.5, 0.5), p=1),
            library.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.2, p=1),
        ]

    def __call__(self, rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A changed copy of an RGB image (H, W, 3) uint8."""
        image = image.copy()
        # Not through albumentations' Compose: seeded, it gives every transform the same random numbers, so that all
        # seven happen together or none.
        for transform in self._transforms:
            if rng.random() < self.p:
                transform.set_random_seed(int(rng.integers(1 << 31)))
                image = transform(image=image)["image"]
        return image


def crop_window(rng: np.random.Generator, size: Size, points: Floats, box: Box | None) -> Window:
    """Draw a part of an image that holds the whole object and all keypoints; each side is uniform in what is allowed.

    Args:
        size: (width, height) of the image.
        points: (N, 2) keypoints in pixels, may be empty.
        box: of the object, or ``None``.
    """
    corners = [points] if box is None else [points, np.reshape(box, (2, 2))]
    inside = np.clip(np.concatenate(corners), 0, np.asarray(size) - 1)
    if not len(inside):
        return (0, 0, *size)
    low, high = inside.min(axis=0), inside.max(axis=0)
    first = [int(rng.integers(0, math.floor(value) + 1)) for value in low]
    last = [int(rng.integers(math.ceil(value) + 1, side + 1)) for value, side in zip(high, size, strict=True)]
    return first[0], first[1], last[0], last[1]


@dataclass(frozen=True)
class View:
    """One image of a pair as a training item shows it.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        points: (N, 2) keypoints in pixels of ``image``.
    """

    image: NDArray[np.uint8]
    points: Floats


def training_view(
    rng: np.random.Generator,
    sample: Sample,
    side: str,
    *,
    size: int = 256,
    augment: bool = True,
    crop: bool | float = True,
) -> View:
    """Read one image of an annotated pair, crop and resize it to the model's input, and change its colours.

    Args:
        sample: a pair with keypoints.
        side: ``"a"`` or ``"b"``.
        size: S in pixels; the aspect ratio is not kept.
        augment: apply :class:`Photometric`.
        crop: probability of a crop that keeps the object (see :func:`crop_window`); ``True`` is the paper's 0.5.

    Raises:
        InputError: the pair has no keypoints, or the image is missing or unreadable.
        BackendError: albumentations is not installed.
    """
    if not sample.annotated:
        raise InputError(f"{sample.name} has no keypoints in both images; supervised training needs them in every pair")
    points, box = (sample.points_a, sample.box_a) if side == "a" else (sample.points_b, sample.box_b)
    image = sample.read(side)
    probability = 0.5 if crop is True else float(crop)
    if rng.random() < probability:
        window = crop_window(rng, image.size, points, box)
        image, points = image.crop(window), points - window[:2]
    pixels = resize(image, (size, size))
    shown = _photometric()(rng, pixels) if augment else pixels.copy()
    return View(shown, pixels_to_cells(points, image.size, size))  # cells of one pixel: the same convention


@functools.cache
def _photometric() -> Photometric:
    return Photometric()
