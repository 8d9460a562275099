"""What a model is calibrated with: pairs of photos as model inputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cats.assets import asset
from cats.core.errors import InputError
from cats.core.images import ImageSource, preprocess, read_image
from cats.core.metadata import Preprocessing
from cats.core.tables import read_pairs
from cats.data import KINDS, open_dataset, parse_data
from cats.data.folders import PhotoFolder

SMALL = 16
"""Fewer pairs than this say little about the ranges of other photos."""

Feeds = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class PhotoPairs:
    """Pairs of image files.

    Attributes:
        name: what they are, for reports.
        pairs: (a, b) each.
        skipped: files of the folder that are no images.
    """

    name: str
    pairs: tuple[tuple[Path, Path], ...]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.pairs)

    def spread(self, count: int) -> PhotoPairs:
        """At most ``count`` pairs, spread evenly over all."""
        if count >= len(self):
            return self
        chosen = tuple(self.pairs[k * len(self) // count] for k in range(count))
        return PhotoPairs(f"{count} of {self.name}", chosen, self.skipped)

    def split(self, held_out: int) -> tuple[PhotoPairs, PhotoPairs]:
        """Pairs to measure ranges on, and ``held_out`` others, spread evenly, to judge the result on.

        A set with fewer than ``2 * held_out`` pairs is not split: both are all of it.
        """
        if len(self) < 2 * held_out:
            return self, self
        chosen = {k * len(self) // held_out for k in range(held_out)}
        rest = tuple(pair for k, pair in enumerate(self.pairs) if k not in chosen)
        held = tuple(pair for k, pair in enumerate(self.pairs) if k in chosen)
        return PhotoPairs(self.name, rest, self.skipped), PhotoPairs(f"held out of {self.name}", held)

    def feeds(self, preprocessing: Preprocessing, batch: int | None = None) -> Iterator[Feeds]:
        """Inputs ``image_a`` and ``image_b``, float32 (B, 3, S, S), of all pairs.

        Args:
            preprocessing: of the model.
            batch: B where the model's batch is fixed (the last is filled up); None for 1.

        Raises:
            InputError: an image cannot be read.
        """
        size = batch or 1
        for start in range(0, len(self.pairs), size):
            part = list(self.pairs[start : start + size])
            part += [part[-1]] * (size - len(part))
            sides = (
                np.stack([preprocess(read_image(path), preprocessing) for path in side])
                for side in zip(*part, strict=True)
            )
            yield dict(zip(("image_a", "image_b"), sides, strict=True))


def pair_feeds(a: ImageSource, b: ImageSource, preprocessing: Preprocessing, batch: int | None = None) -> Feeds:
    """Inputs of one pair, as often as a fixed batch needs it; see :meth:`PhotoPairs.feeds`."""
    tensors = (preprocess(read_image(image), preprocessing)[None] for image in (a, b))
    return {f"image_{side}": np.repeat(tensor, batch or 1, axis=0) for side, tensor in zip("ab", tensors, strict=True)}


def photos_from_folder(folder: str | Path) -> PhotoPairs:
    """Photos of a folder (searched recursively), each with the next one of its own sub-folder, no photo twice where
    there are enough.

    Raises:
        InputError: not a folder, or fewer than two photos in it.
    """
    photos = PhotoFolder.open(folder)
    if len(photos) < 2:
        raise InputError(f"{folder} holds one photo: at least two are needed, better {2 * SMALL} or more")
    pairs: list[tuple[Path, Path]] = []
    for _, group in itertools.groupby(photos.paths, key=lambda path: path.parent):
        files = list(group)
        pairs += zip(files[::2], files[1::2], strict=False)
    if len(pairs) < SMALL:  # every neighbour, and photos that are alone in their folders too
        pairs = list(itertools.pairwise(photos.paths))
    return PhotoPairs(str(folder), tuple(pairs), photos.skipped)


def photos_from_csv(path: str | Path) -> PhotoPairs:
    """Pairs of a CSV with columns a, b; raises :class:`InputError` as :func:`cats.core.tables.read_pairs` does."""
    return PhotoPairs(str(path), tuple((row.a, row.b) for row in read_pairs(path)))


def photos_from_data(spec: str, split: str | None = None) -> PhotoPairs:
    """Pairs of a data set ``KIND:DIR``; its points are not used. ``categories:DIR`` is a folder of folders of photos.

    Raises:
        InputError: as :func:`cats.data.open_dataset`.
    """
    kind, path = parse_data(spec, (*KINDS, "categories"))
    if kind == "categories":
        return photos_from_folder(path)
    dataset = open_dataset(spec, split)
    return PhotoPairs(dataset.description, tuple((sample.image_a, sample.image_b) for sample in dataset))


def demo_photos() -> PhotoPairs:
    """The two shipped photos, both ways."""
    a, b = (asset(name) for name in ("astronaut.jpg", "grace_hopper.jpg"))
    return PhotoPairs("the two demo photos", ((a, b), (b, a)))
