"""Pairs by which a confidence is fitted: annotated ones, or photos of one category whose matches are judged by the way
back; and pairs of different kinds, in which nothing matches."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cats.core.errors import InputError
from cats.core.geometry import identity_cells, pixels_to_cells
from cats.data import KINDS, open_dataset, parse_data
from cats.data.folders import PhotoFolder

FEWEST, MANY = 4, 16

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class KnownPair:
    """Two images and what is known of their matches.

    Attributes:
        image_a, image_b: RGB: paths, Pillow images or uint8 arrays.
        cells: (N, 2) positions in a, in cells of the model's grid.
        truth: (N, 2) where they lie in b, in cells; None where only the way there and back can judge a match.
    """

    image_a: Any
    image_b: Any
    cells: Floats
    truth: Floats | None = None


@dataclass(frozen=True)
class KnownPairs:
    """What a confidence is fitted and judged by.

    Attributes:
        fit_on, held_out: pairs of one kind of object each, no pair in both.
        others: pairs of different kinds of objects, where every match is wrong; empty where kinds are not known.
        annotated: whether their true matches are known.
        source: what they are.
    """

    fit_on: list[KnownPair]
    held_out: list[KnownPair]
    others: list[KnownPair]
    annotated: bool
    source: str


def open_known_pairs(spec: str, grid: int, count: int) -> KnownPairs:
    """Pairs to fit on, as many others to judge by, and pairs of other kinds.

    Warps of photos, whose flow is known too, are not taken: a photo matches its own warp far better than another
    photo of the same kind, and every confidence would come to mean nearly certain.

    Args:
        spec: an annotated data set ``KIND:DIR`` (its pairs alternate; images may occur in both halves), or
            ``categories:DIR``, pairs of photos of one sub-folder (no photo in both halves where there are enough).
        grid: side of the model's grid.
        count: pairs in all, at most.

    Raises:
        InputError: too few photos or pairs, or nothing annotated.
    """
    kind, path = parse_data(spec, (*KINDS, "categories"))
    pairs, others, source = _by_category(path, grid, count) if kind == "categories" else _annotated(spec, grid, count)
    if len(pairs) < FEWEST:
        raise InputError(
            f"{spec} gives {len(pairs)} pairs to fit on: at least {FEWEST} are needed, better {2 * MANY} or more"
        )
    return KnownPairs(pairs[::2], pairs[1::2], others, kind != "categories", source)


def _annotated(spec: str, grid: int, count: int) -> tuple[list[KnownPair], list[KnownPair], str]:
    dataset = open_dataset(spec)
    samples = [s for s in (dataset.select(limit=count) if len(dataset) else ()) if s.annotated]
    pairs = [
        KnownPair(
            sample.read("a"),
            sample.read("b"),
            pixels_to_cells(sample.points_a, sample.size_a, grid),
            pixels_to_cells(sample.points_b, sample.size_b, grid),
        )
        for sample in samples
    ]
    turned = samples[len(samples) // 2 :] + samples[: len(samples) // 2]
    cells = identity_cells(grid).reshape(2, -1).T
    others = [
        KnownPair(a.read("a"), b.read("b"), cells)
        for a, b in zip(samples, turned, strict=True)
        if a.category and b.category and _kind(a.category) != _kind(b.category)
    ]
    return pairs, others, dataset.description


def _kind(category: str) -> str:
    """The kind of object, without what some data sets add for views of it: ``car(G)`` and ``car(S)`` are cars."""
    return category.partition("(")[0].strip().lower()


def _by_category(path: Path, grid: int, count: int) -> tuple[list[KnownPair], list[KnownPair], str]:
    photos = PhotoFolder.open(path)
    kinds = [list(files) for _, files in itertools.groupby(photos.paths, key=lambda file: file.parent)]
    cells = identity_cells(grid).reshape(2, -1).T
    by_kind = [list(zip(files[::2], files[1::2], strict=False)) for files in kinds]
    if sum(map(len, by_kind)) < MANY:  # photos in both halves are better than few
        by_kind = [list(itertools.pairwise(files)) for files in kinds]
    in_turn = itertools.zip_longest(*by_kind)
    chosen = [pair for turn in in_turn for pair in turn if pair is not None][:count]
    others = [(files[0], following[-1]) for files, following in itertools.pairwise([*kinds, kinds[0]])]
    return (
        [KnownPair(a, b, cells) for a, b in chosen],
        [KnownPair(a, b, cells) for a, b in others[: max(1, count // 2)]] if len(kinds) > 1 else [],
        f"pairs of one category each of {path}, judged by the way there and back",
    )
