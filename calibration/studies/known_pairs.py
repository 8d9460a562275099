"""Pairs of images whose true matches are known: annotated ones, or warps of photos."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cats.core.errors import InputError
from cats.core.geometry import identity_cells, pixels_to_cells
from cats.data import KINDS, open_dataset, parse_data
from cats.data.folders import PhotoFolder

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class KnownPair:
    """Two images and true matches.

    Attributes:
        image_a, image_b: RGB, Pillow images or uint8 arrays.
        cells: (N, 2) positions in a, in cells of the model's grid.
        truth: (N, 2) where they lie in b, in cells.
    """

    image_a: Any
    image_b: Any
    cells: Floats
    truth: Floats


def known_pairs(
    spec: str, grid: int, size: int, count: int, *, seed: int = 0
) -> tuple[list[KnownPair], list[KnownPair], str]:
    """Pairs to fit on, as many others to judge by, and what they are.

    Args:
        spec: ``categories:DIR`` for random warps of a folder's photos (no photo in both halves), or an annotated data
            set ``KIND:DIR`` (its pairs alternate; images may occur in both halves).
        grid, size: of the model.
        count: pairs in all, at most.

    Raises:
        InputError: too few photos or pairs, or nothing annotated.
    """
    kind, path = parse_data(spec, (*KINDS, "categories"))
    if kind == "categories":
        pairs = list(_warps(path, grid, size, count, seed))
        what = f"random warps of photos of {path}"
    else:
        dataset = open_dataset(spec)
        pairs = []
        for sample in dataset.select(limit=count) if len(dataset) else ():
            if sample.annotated:
                cells = pixels_to_cells(sample.points_a, sample.size_a, grid)
                truth = pixels_to_cells(sample.points_b, sample.size_b, grid)
                pairs.append(KnownPair(sample.read("a"), sample.read("b"), cells, truth))
        what = dataset.description
    if len(pairs) < 4:
        raise InputError(f"{spec} gives {len(pairs)} pairs with known flow: at least 4 are needed, better 32 or more")
    return pairs[::2], pairs[1::2], what


def _warps(path: Path, grid: int, size: int, count: int, seed: int) -> Iterator[KnownPair]:
    from cats.data.warps import WarpPairs

    photos = PhotoFolder.open(path)
    pairs = WarpPairs(photos, size=size, grid=grid, seed=seed)
    identity = identity_cells(grid).reshape(2, -1).T
    total = min(count, len(photos))
    for k in range(total):
        item = pairs.make(np.random.default_rng((seed, k)), photos.paths[k * len(photos) // total])
        seen = item["visible"].ravel()
        truth = identity + item["flow"].reshape(2, -1).T
        yield KnownPair(item["image_a"], item["image_b"], identity[seen], truth[seen])
