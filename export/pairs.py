"""Pairs of images to verify a model with: the user's own, or the shipped photos."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cats.assets import asset
from cats.core.images import preprocess, read_image
from cats.core.metadata import Preprocessing
from cats.core.photos import pair_photos
from cats.core.tables import read_pairs


@dataclass(frozen=True)
class PairSource:
    """Pairs of upright RGB images, read one pair at a time.

    Attributes:
        name: what they are, for reports.
        pairs: paths or Pillow images.
    """

    name: str
    pairs: tuple[tuple[Path | Image.Image, Path | Image.Image], ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def images(self) -> Iterator[tuple[Image.Image, Image.Image]]:
        """The pairs as images of mode RGB, in their own sizes."""
        for a, b in self.pairs:
            yield read_image(a), read_image(b)

    def inputs(self, preprocessing: Preprocessing) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """The pairs as model inputs, float32 (3, H, W) each."""
        for a, b in self.images():
            yield preprocess(a, preprocessing), preprocess(b, preprocessing)


def pairs_from_csv(path: str | Path) -> PairSource:
    """Pairs of a CSV with columns a, b; raises :class:`InputError` as :func:`cats.core.tables.read_pairs` does."""
    return PairSource(str(path), tuple((row.a, row.b) for row in read_pairs(path)))


def pairs_from_folder(folder: str | Path, limit: int = 16) -> PairSource:
    """Each photo of a folder (searched recursively) with the next one of its own sub-folder, ``limit`` pairs at most.

    Raises:
        InputError: not a folder, or no two photos in it.
    """
    return PairSource(str(folder), tuple(pair_photos(folder, limit)))


def demo_pairs(count: int = 8, seed: int = 0) -> PairSource:
    """The two shipped photos against each other, both ways, and views of each against other views of it; the same
    every time."""
    photos = [read_image(asset(name)) for name in ("astronaut.jpg", "grace_hopper.jpg")]
    rng = np.random.default_rng(seed)
    pairs: list[tuple[Path | Image.Image, Path | Image.Image]] = [(photos[0], photos[1]), (photos[1], photos[0])]
    while len(pairs) < count:
        photo = photos[len(pairs) % 2]
        pairs.append((_view(rng, photo), _view(rng, photo)))
    return PairSource("the demo photos and views of them", tuple(pairs[:count]))


def _view(rng: np.random.Generator, photo: Image.Image) -> Image.Image:
    """About the middle half of a photo, rotated, scaled and shifted, 240 to 400 pixels wide and high."""
    width, height = (int(side) for side in rng.integers(240, 401, 2))
    shorter = min(photo.size)
    angle, scale = np.deg2rad(rng.uniform(-15, 15)), rng.uniform(0.5, 0.65) * shorter / max(width, height)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    centre = np.asarray(photo.size) / 2 + rng.uniform(-0.05, 0.05, 2) * shorter
    x0 = centre[0] - (cos * width - sin * height) / 2
    y0 = centre[1] - (sin * width + cos * height) / 2
    return photo.transform(
        (width, height), Image.Transform.AFFINE, (cos, -sin, x0, sin, cos, y0), Image.Resampling.BICUBIC
    )
