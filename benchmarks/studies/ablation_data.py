"""What the study of ablations trains on and judges by: features of photos, computed once by a frozen backbone."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from cats.benchmarks.studies.ablation_rows import FULL, IDS
from cats.core.images import resize
from cats.core.pck import DEFAULT_ALPHAS, pck_table, preset, score_flow
from cats.data import open_dataset
from cats.data.folders import CategoryFolder, PhotoFolder
from cats.data.warps import CategoryTriplets, WarpPairs
from cats.model import CATs
from cats.training.objectives import normalise

Batch = tuple[dict[str, list[Tensor]], dict[str, Tensor]]
"""Features of each image, one map per level, and the rest of a batch."""

IMAGES = {"warps": ("image_a", "image_b"), "categories": ("i", "j", "w")}
"""Keys of an item of each objective that are images."""
HELD_OUT = 5  # every fifth category is not trained on
_AT_ONCE = 16  # items that go through the backbone together, and pairs that are judged together


class Pool:
    """Items with the features of their images, in half precision, on the backbone's device.

    Args:
        items: as the training sets give them.
        images: keys of an item that are images.
        backbone: a model whose features these are.
    """

    def __init__(self, items: Iterator[dict[str, Any]], images: tuple[str, ...], backbone: CATs):
        device = place_of(backbone)
        features: dict[str, list[list[Tensor]]] = {name: [[] for _ in IDS] for name in images}
        rest: dict[str, list[Tensor]] = {"flow": [], "visible": []}
        while part := [item for item, _ in zip(items, range(_AT_ONCE), strict=False)]:
            for name in images:
                stacked = torch.from_numpy(np.stack([item[name] for item in part])).to(device)
                for kept, maps in zip(features[name], encode(backbone, stacked), strict=True):
                    kept.append(maps.half())
            for name, kept in rest.items():
                kept.append(torch.from_numpy(np.stack([item[name] for item in part])).to(device))
        self.features = {name: [torch.cat(maps) for maps in levels] for name, levels in features.items()}
        self.rest = {name: torch.cat(values) for name, values in rest.items()}

    def __len__(self) -> int:
        return len(self.rest["flow"])

    def batch(self, indices: list[int], levels: list[int]) -> Batch:
        """Items by index, with some of the levels, float32."""
        at = torch.tensor(indices, device=self.rest["flow"].device)
        features = {name: [maps[level][at].float() for level in levels] for name, maps in self.features.items()}
        return features, {name: values[at] for name, values in self.rest.items()}


def place_of(model: torch.nn.Module) -> torch.device:
    """The device of a model."""
    return next(model.parameters()).device


@torch.no_grad()
def encode(model: CATs, images: Tensor) -> list[Tensor]:
    """Features of uint8 images (B, S, S, 3)."""
    return model.features(normalise(images, model))


def open_sets(photos: Path, objective: str, seed: int) -> tuple[Any, Any]:
    """The endless training set of one seed, and one of the categories that are held out, the same for all seeds."""
    folder = CategoryFolder.open(photos)
    names = sorted(folder.categories)
    parts = ([name for k, name in enumerate(names) if k % HELD_OUT], names[::HELD_OUT])
    sets: list[Any] = []
    for chosen, drawn in zip(parts, (seed + (1 << 32), 1 << 33), strict=True):
        categories = {name: folder.categories[name] for name in chosen}
        options: dict[str, Any] = {"size": FULL.image_size, "grid": FULL.feature_size, "seed": drawn}
        if objective == "categories":
            sets.append(CategoryTriplets(dataclasses.replace(folder, categories=categories), **options))
        else:
            paths = tuple(path for group in categories.values() for path in group)
            sets.append(WarpPairs(PhotoFolder(folder.root, paths), **options))
    return sets[0], sets[1]


class Reader:
    """Items of data sets, read by ``workers`` processes, or by this one if 0. It starts them at once: begin it before
    anything touches a GPU, because they are copies of this process.

    Args:
        wanted: data sets and which of their items.

    Attributes:
        streams: one stream of items for each data set.
    """

    def __init__(self, wanted: list[tuple[Any, range]], workers: int):
        cv2.setNumThreads(0)  # a copy of this process would wait for its threads for ever
        self._processes: ProcessPoolExecutor | None = None
        self.streams: list[Iterator[dict[str, Any]]]
        datasets = [dataset for dataset, _ in wanted]
        places = [[(k, index) for index in indices] for k, (_, indices) in enumerate(wanted)]
        if workers:
            context = multiprocessing.get_context("fork")
            self._processes = ProcessPoolExecutor(workers, context, _begin, (datasets,))
            self.streams = [self._processes.map(_read, part, chunksize=8) for part in places]
        else:
            _begin(datasets)
            self.streams = [map(_read, part) for part in places]

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._processes:
            self._processes.shutdown()


_datasets: list[Any] = []


def _begin(datasets: list[Any]) -> None:
    _datasets[:] = datasets


def _read(place: tuple[int, int]) -> dict[str, Any]:
    dataset, index = place
    return _datasets[dataset][index]


class Willow:
    """PCK on PF-WILLOW, or ``pairs`` of its pairs, from features that are computed once."""

    def __init__(self, root: Path, backbone: CATs, pairs: int):
        self.samples = list(open_dataset(f"willow:{root}").select(limit=pairs))
        self.protocol = preset("corrected", "willow")
        size = FULL.preprocessing.size
        self.place: dict[Path, int] = {}
        maps = []
        for sample in self.samples:
            for side, path in (("a", sample.image_a), ("b", sample.image_b)):
                if path not in self.place:
                    self.place[path] = len(self.place)
                    pixels = torch.from_numpy(resize(sample.read(side), size).copy())[None]
                    maps.append(encode(backbone, pixels.to(place_of(backbone))))
        self.maps = [torch.cat(level) for level in zip(*maps, strict=True)]

    @torch.no_grad()
    def __call__(self, model: CATs) -> dict[str, float]:
        """PCK in percent by alpha."""
        levels = [IDS.index(i) for i in model.config.hyperpixels]
        scores = []
        for first in range(0, len(self.samples), _AT_ONCE):
            part = self.samples[first : first + _AT_ONCE]
            sides = ([self.place[s.image_a] for s in part], [self.place[s.image_b] for s in part])
            a, b = ([self.maps[level][side] for level in levels] for side in sides)
            flow, _ = model.match_encoded(a, b)
            for sample, own in zip(part, flow.float().cpu().numpy(), strict=True):
                scores.append(score_flow(sample.keypoints, own, self.protocol))
        table = pck_table(scores, DEFAULT_ALPHAS, self.protocol.reduction)
        return {f"{alpha:g}": round(value, 2) for alpha, value in table.items()}
