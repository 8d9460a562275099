"""Pairs of images to verify a model with: the user's own, or generated ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cats.errors import InputError
from cats.metadata import Preprocessing
from cats.runtime.images import preprocess, read_image
from cats.runtime.tables import read_pairs

GENERATED = 8
_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


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
    """Pairs of a CSV with columns a, b; raises :class:`InputError` as :func:`cats.runtime.tables.read_pairs` does."""
    return PairSource(str(path), tuple((row.a, row.b) for row in read_pairs(path)))


def pairs_from_folder(folder: str | Path, limit: int = 16) -> PairSource:
    """Each photo of a folder (searched recursively) with the next one of its own sub-folder, ``limit`` pairs at most.

    Raises:
        InputError: not a folder, or no two photos in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder of photos")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if len(files) < 2:
        raise InputError(f"{root} holds {len(files)} photos: at least two are needed")
    pairs = [(a, b) for a, b in itertools.pairwise(files) if a.parent == b.parent]
    pairs = pairs or list(itertools.pairwise(files))
    chosen = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, limit).astype(int))]
    return PairSource(str(root), tuple(chosen))


def generated_pairs(count: int = GENERATED, seed: int = 0) -> PairSource:
    """Textured scenes seen twice, through different affine maps and in different sizes; the same every time."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        scene = _scene(rng)
        pairs.append((_view(rng, scene), _view(rng, scene)))
    return PairSource("generated scenes seen twice", tuple(pairs))


_SCENE = 640  # pixels; views show about half of it, and never its border


def _scene(rng: np.random.Generator) -> Image.Image:
    """Noise of all scales and shaded blobs: edges and texture at every size, as photos have, and no flat areas."""
    side = _SCENE
    total = np.zeros((side, side, 3), np.float32)
    for cells in (5, 10, 20, 40, 80, 160):
        noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        total += np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC), np.float32) - 128
    y, x = np.mgrid[0:side, 0:side]
    for _ in range(40):
        centre, radius = rng.uniform(0, side, 2), rng.uniform(side / 40, side / 8)
        inside = (x - centre[0]) ** 2 + ((y - centre[1]) * rng.uniform(0.5, 2)) ** 2 < radius**2
        total[inside] = total[inside] * 0.5 + rng.uniform(-100, 100, 3)
    return Image.fromarray(np.clip(total * 0.5 + 128, 0, 255).astype(np.uint8))


def _view(rng: np.random.Generator, scene: Image.Image) -> Image.Image:
    """A rotated and scaled piece of the scene, 240 to 400 pixels wide and high."""
    width, height = (int(side) for side in rng.integers(240, 401, 2))
    angle, scale = np.deg2rad(rng.uniform(-15, 15)), np.exp(rng.uniform(-0.15, 0.15)) * 320 / max(width, height)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    shift = rng.uniform(-20, 20, 2) + scene.width / 2
    x0 = shift[0] - (cos * width - sin * height) / 2
    y0 = shift[1] - (sin * width + cos * height) / 2
    return scene.transform(
        (width, height), Image.Transform.AFFINE, (cos, -sin, x0, sin, cos, y0), Image.Resampling.BICUBIC
    )
