"""Pairs to verify a model with where the user gives none: the shipped photos and views of them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from cats.assets import asset
from cats.core.images import read_image
from cats.data.photo_pairs import Photo, PhotoPairs


def demo_pairs(count: int = 8, seed: int = 0) -> PhotoPairs:
    """The two shipped photos against each other, both ways, and views of each against other views of it; the same
    every time."""
    photos = [read_image(asset(name)) for name in ("astronaut.jpg", "grace_hopper.jpg")]
    rng = np.random.default_rng(seed)
    pairs: list[tuple[Photo, Photo]] = [(photos[0], photos[1]), (photos[1], photos[0])]
    while len(pairs) < count:
        photo = photos[len(pairs) % 2]
        pairs.append((_view(rng, photo), _view(rng, photo)))
    return PhotoPairs("the demo photos and views of them", tuple(pairs[:count]))


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
