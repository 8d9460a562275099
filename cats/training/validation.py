"""Judging weights during training: PCK where keypoints are known, end-point error on fixed warps where none are.

Both return metrics with a ``score`` (higher is better), by which the best weights are chosen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cats.core.errors import InputError
from cats.core.images import resize
from cats.core.pck import DEFAULT_ALPHAS, Protocol, pck_table, preset, score_flow
from cats.data.samples import PairDataset, Sample
from cats.data.warps import WarpPairs
from cats.model import CATs
from cats.training.objectives import normalise

BATCH = 16


class KeypointValidation:
    """PCK (percent) at 0.05, 0.1 and 0.15 on annotated pairs; the score is the one at 0.1.

    Args:
        dataset: pairs; images are kept decoded and resized (192 KiB each at 256x256).
        amp: autocast dtype of the forward pass, as in training, or None.

    Raises:
        InputError: no pair has keypoints, or an annotation is broken.
    """

    def __init__(self, dataset: PairDataset, protocol: Protocol | None = None, amp: torch.dtype | None = None):
        self.samples: Sequence[Sample] = [sample for sample in dataset if sample.annotated]
        if not self.samples:
            raise InputError(f"{dataset.root}: no pair has keypoints in both images; validation needs some that have")
        self.protocol = protocol or preset("corrected", dataset.kind)
        self.amp = amp
        self._images: dict[Any, Tensor] = {}

    def __call__(self, model: CATs) -> dict[str, float]:
        """Metrics of a model in evaluation mode, on its own device."""
        device = model.x_normal.device
        scores = []
        for start in range(0, len(self.samples), BATCH):
            part = self.samples[start : start + BATCH]
            query, reference = ("a", "b") if self.protocol.direction == "a->b" else ("b", "a")
            images = [torch.stack([self._image(s, side, model) for s in part]) for side in (query, reference)]
            target, source = (normalise(x.to(device), model) for x in images)
            with _autocast(device, self.amp):
                flow, _ = model.match(target, source)
            scores += [
                score_flow(sample.keypoints, f, self.protocol)
                for sample, f in zip(part, flow.float().cpu().numpy(), strict=True)
            ]
        table = pck_table(scores, DEFAULT_ALPHAS, self.protocol.reduction)
        return {"score": table[0.1], **{f"PCK@{alpha:g} ({self.protocol.name})": v for alpha, v in table.items()}}

    def _image(self, sample: Sample, side: str, model: CATs) -> Tensor:
        key = (sample.image_a, sample.mirror_a) if side == "a" else (sample.image_b, sample.mirror_b)
        if key not in self._images:
            self._images[key] = torch.from_numpy(resize(sample.read(side), model.config.preprocessing.size).copy())
        return self._images[key]


class WarpValidation:
    """End-point error on fixed random warps, visible cells, in pixels of the model's input; the score is its negative.

    Args:
        pairs: its seed should differ from the training's.
        count: number of pairs, the first ones of ``pairs``.
    """

    def __init__(self, pairs: WarpPairs, count: int = 64, amp: torch.dtype | None = None):
        self.items = [pairs[index] for index in range(count)]
        self.amp = amp

    def __call__(self, model: CATs) -> dict[str, float]:
        """Metrics of a model in evaluation mode, on its own device."""
        device = model.x_normal.device
        cell = model.config.image_size / model.config.feature_size
        distances = []
        for start in range(0, len(self.items), BATCH):
            part = self.items[start : start + BATCH]
            a, b = (torch.from_numpy(np.stack([x[key] for x in part])).to(device) for key in ("image_a", "image_b"))
            with _autocast(device, self.amp):
                flow, _ = model.match(normalise(a, model), normalise(b, model))
            error = np.linalg.norm(flow.float().cpu().numpy() - np.stack([x["flow"] for x in part]), axis=1)
            distances.append(error[np.stack([x["visible"] for x in part])] * cell)
        mean = float(np.concatenate(distances).mean())
        return {"score": -mean, "EPE (px)": mean}


def _autocast(device: torch.device, dtype: torch.dtype | None) -> Any:
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
