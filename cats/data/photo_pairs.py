"""Pairs of photos without labels, as a model takes them: what calibration measures on and verification judges by."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cats.assets import asset
from cats.core.errors import InputError
from cats.core.images import ImageSource, preprocess, read_image
from cats.core.metadata import Preprocessing
from cats.core.photos import pair_photos
from cats.core.tables import read_pairs
from cats.data import KINDS, open_dataset, parse_data
from cats.data.folders import PhotoFolder

SMALL = 16
"""Fewer pairs than this say little about the ranges of other photos."""

Feeds = dict[str, NDArray[np.float32]]
Photo = Path | Image.Image


@dataclass(frozen=True)
class PhotoPairs:
    """Pairs of photos, read one pair at a time.

    Attributes:
        name: what they are, for reports.
        pairs: (a, b) each.
        skipped: files of the folder that are no images.
    """

    name: str
    pairs: tuple[tuple[Photo, Photo], ...]
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

    def images(self) -> Iterator[tuple[Image.Image, Image.Image]]:
        """The pairs as upright images of mode RGB, in their own sizes; raises :class:`InputError` as reading does."""
        for a, b in self.pairs:
            yield read_image(a), read_image(b)

    def inputs(self, preprocessing: Preprocessing) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """The pairs as model inputs, float32 (3, S, S) each; raises as :meth:`images`."""
        for a, b in self.images():
            yield preprocess(a, preprocessing), preprocess(b, preprocessing)

    def feeds(self, preprocessing: Preprocessing, batch: int | None = None) -> Iterator[Feeds]:
        """Inputs ``image_a`` and ``image_b``, float32 (B, 3, S, S), of all pairs; raises as :meth:`images`.

        Args:
            preprocessing: of the model.
            batch: B where the model's batch is fixed (the last is filled up); None for 1.
        """
        size, waiting = batch or 1, self.inputs(preprocessing)
        while part := list(itertools.islice(waiting, size)):
            part += [part[-1]] * (size - len(part))
            yield {
                f"image_{side}": np.stack(tensors) for side, tensors in zip("ab", zip(*part, strict=True), strict=True)
            }

    def contents(self) -> Iterator[bytes]:
        """The bytes of all photos in order, for a digest; raises :class:`InputError` where one cannot be read."""
        for photo in itertools.chain.from_iterable(self.pairs):
            try:
                yield photo.tobytes() if isinstance(photo, Image.Image) else photo.read_bytes()
            except OSError as error:
                raise InputError(f"cannot read {photo}: {error.strerror}") from error


def pair_feeds(a: ImageSource, b: ImageSource, preprocessing: Preprocessing, batch: int | None = None) -> Feeds:
    """Inputs of one pair, as often as a fixed batch needs it; see :meth:`PhotoPairs.feeds`."""
    tensors = (preprocess(read_image(image), preprocessing)[None] for image in (a, b))
    return {f"image_{side}": np.repeat(tensor, batch or 1, axis=0) for side, tensor in zip("ab", tensors, strict=True)}


def photos_from_folder(folder: str | Path) -> PhotoPairs:
    """Photos of a folder (searched recursively), each with the next one of its own sub-folder, no photo twice where
    there are enough: to measure on, which wants many different photos.

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


def alike_photos(folder: str | Path, limit: int = 16) -> PhotoPairs:
    """Pairs of one sub-folder each, ``limit`` at most: to judge by, which wants photos that match; see
    :func:`cats.core.photos.pair_photos`."""
    return PhotoPairs(str(folder), tuple(pair_photos(folder, limit)))


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
