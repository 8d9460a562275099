"""Judging weights during training: PCK where keypoints are known, end-point error on fixed warps where none are.

Both return metrics with a ``score`` (higher is better), by which the best weights are chosen, and show their progress
on a bar if they are given one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from cats.core.console import progress
from cats.core.errors import InputError
from cats.core.images import resize
from cats.core.pck import DEFAULT_ALPHAS, Protocol, pck_table, preset, score_flow
from cats.core.protocols import PairSet
from cats.data.samples import Sample
from cats.data.warps import WarpPairs
from cats.model import CATs
from cats.training.objectives import normalise
from cats.training.optimization import autocast

BATCH = 16


class KeypointValidation:
    """PCK (percent) at 0.05, 0.1 and 0.15 on annotated pairs; the score is the one at 0.1.

    Args:
        dataset: pairs; images are kept decoded and resized (192 KiB each at 256x256).
        amp: precision of the forward pass, as in training.

    Raises:
        InputError: no pair has keypoints, or an annotation is broken.
    """

    def __init__(self, dataset: PairSet[Sample], protocol: Protocol | None = None, amp: str = "off"):
        self.samples: Sequence[Sample] = [sample for sample in dataset if sample.annotated]
        if not self.samples:
            raise InputError(f"{dataset.root}: no pair has keypoints in both images; validation needs some that have")
        self.protocol = protocol or preset("corrected", dataset.kind)
        self.amp = amp
        self._images: dict[Any, Tensor] = {}

    def __call__(self, model: CATs, bar: Progress | None = None) -> dict[str, float]:
        """Metrics of a model in evaluation mode, on its own device."""
        device = next(model.parameters()).device
        scores = []
        for part in _batches(self.samples, bar):
            query, reference = ("a", "b") if self.protocol.direction == "a->b" else ("b", "a")
            images = [torch.stack([self._image(s, side, model) for s in part]) for side in (query, reference)]
            target, source = (normalise(x.to(device), model) for x in images)
            with autocast(device, self.amp):
                flow, _ = model.match(target, source)
            scores += [
                score_flow(sample.keypoints, f, self.protocol)
                for sample, f in zip(part, flow.float().cpu().numpy(), strict=True)
            ]
        table = pck_table(scores, DEFAULT_ALPHAS, self.protocol.reduction)
        return {"score": table[0.1], **{f"PCK@{alpha:g} ({self.protocol.name})": v for alpha, v in table.items()}}

    def _image(self, sample: Sample, side: str, model: CATs) -> Tensor:
        path, mirrored = (sample.image_a, sample.mirror_a) if side == "a" else (sample.image_b, sample.mirror_b)
        key = (path, mirrored, model.config.preprocessing.size)
        if key not in self._images:
            self._images[key] = torch.from_numpy(resize(sample.read(side), model.config.preprocessing.size).copy())
        return self._images[key]


class WarpValidation:
    """End-point error on fixed random warps, visible cells, in pixels of the model's input; the score is its negative.

    Args:
        pairs: its seed should differ from the training's.
        count: number of pairs, the first ones of ``pairs``.
        amp: precision of the forward pass, as in training.
    """

    def __init__(self, pairs: WarpPairs, count: int = 64, amp: str = "off"):
        bar = progress()
        with bar:
            self.items = [pairs[index] for index in bar.track(range(count), description="drawing warps to validate on")]
        self.amp = amp

    def __call__(self, model: CATs, bar: Progress | None = None) -> dict[str, float]:
        """Metrics of a model in evaluation mode, on its own device."""
        device = next(model.parameters()).device
        cell = model.config.image_size / model.config.feature_size
        distances = []
        for part in _batches(self.items, bar):
            a, b = (torch.from_numpy(np.stack([x[key] for x in part])).to(device) for key in ("image_a", "image_b"))
            with autocast(device, self.amp):
                flow, _ = model.match(normalise(a, model), normalise(b, model))
            error = np.linalg.norm(flow.float().cpu().numpy() - np.stack([x["flow"] for x in part]), axis=1)
            distances.append(error[np.stack([x["visible"] for x in part])] * cell)
        mean = float(np.concatenate(distances).mean())
        return {"score": -mean, "EPE (px)": mean}


def _batches(items: Sequence[Any], bar: Progress | None) -> Iterator[Sequence[Any]]:
    """Parts of ``BATCH`` items, shown on the bar while they are worked on."""
    task = bar.add_task("validating", total=len(items)) if bar is not None else None
    for start in range(0, len(items), BATCH):
        part = items[start : start + BATCH]
        yield part
        if bar is not None and task is not None:
            bar.advance(task, len(part))
    if bar is not None and task is not None:
        bar.remove_task(task)
