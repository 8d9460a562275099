"""What a training step minimises, for each kind of data. Batches are the data sets' items, collated."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cats.model import CATs
from cats.training.configs import TrainConfig
from cats.training.losses import (
    add_unmatched_state,
    divergence_from_even,
    endpoint_error,
    probabilistic_cross_entropy,
    unmatched_loss,
)

Batch = dict[str, Tensor]
Features = list[Tensor]


class TrainingSet(Protocol):
    """Endless material, deterministic by index: dicts of arrays that the run's objective understands."""

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class Objective(Protocol):
    """Turns a batch into a loss; ``parameters`` are learnt beside the model's and not part of the saved model.

    Attributes:
        images: keys of a batch that are images.
    """

    parameters: nn.ParameterDict
    images: tuple[str, ...]

    def __call__(self, model: CATs, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Loss (a scalar with gradient) and its parts for the log."""

    def of_features(self, model: CATs, features: dict[str, Features], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The same from the images' features, which a frozen backbone computes once; images are not read."""


class LossModule(nn.Module):
    """Model and objective as one module, so that DistributedDataParallel sees every parameter."""

    def __init__(self, model: CATs, objective: Objective):
        super().__init__()
        self.model, self.objective, self.extra = model, objective, objective.parameters

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Loss and its parts, as the objective gives them."""
        return self.objective(self.model, batch)


def normalise(images: Tensor, model: CATs) -> Tensor:
    """uint8 (B, S, S, 3) to the model's input, float32 (B, 3, S, S) on the same device."""
    pre = model.config.preprocessing
    mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (pre.mean, pre.std))
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


class FlowObjective:
    """End-point error in cells over the cells with ground truth: keypoints (Sec. 3.5) and warps alike.

    Batches hold ``image_a``, ``image_b`` uint8 (B, S, S, 3), ``flow`` float32 (B, 2, G, G) and ``visible`` (B, G, G).

    Args:
        cycle: weight of COTR's cycle error (:meth:`cats.cotr.COTR.cycle_error`), over the same cells.
    """

    images = ("image_a", "image_b")

    def __init__(self, cycle: float = 0.0) -> None:
        self.cycle = cycle
        self.parameters = nn.ParameterDict()

    def __call__(self, model: CATs, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Mean end-point error in cells."""
        return self.of_features(model, _features(model, batch, self.images), batch)

    def of_features(self, model: CATs, features: dict[str, Features], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """See :class:`Objective`."""
        a, b = features["image_a"], features["image_b"]
        flow, _ = model.match_encoded(a, b)
        loss = endpoint_error(flow, batch["flow"], batch["visible"])
        parts = {"epe": loss.item()}
        if self.cycle:
            error = model.cycle_error(a, b, flow)
            cycle = (error * batch["visible"]).sum() / batch["visible"].sum().clamp_min(1)
            parts["cycle"] = cycle.item()
            loss = loss + self.cycle * cycle
        return loss, parts


class WarpConsistencyObjective:
    """Probabilistic warp consistency (Truong et al., CVPR 2022) on :class:`cats.data.warps.CategoryTriplets`.

    The composition P(W -> J) then P(J -> I) and the direct P(W -> I) are compared with the known warp W -> I; with
    ``config.direct_epe`` so is the direct flow, which places matches between cells, and with ``config.unmatched`` a
    state without partner is learnt from pairs of different categories. With ``config.even`` matches of different
    categories are to be spread evenly over the image.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.images = ("i", "j", "w", "n") if config.unmatched or config.even else ("i", "j", "w")
        self.parameters = nn.ParameterDict()
        if config.unmatched:
            self.parameters["unmatched_score"] = nn.Parameter(torch.tensor(0.5))

    def __call__(self, model: CATs, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Weighted sum of the terms."""
        return self.of_features(model, _features(model, batch, self.images), batch)

    def of_features(self, model: CATs, features: dict[str, Features], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """See :class:`Objective`."""
        config, flow, visible = self.config, batch["flow"], batch["visible"]
        passes = [("w", "j"), ("j", "i")]
        counts = [len(flow)] * len(passes)
        direct = bool(config.direct or config.direct_epe)
        if direct:
            passes.append(("w", "i"))
            counts.append(math.ceil(config.direct_share * len(flow)))
        if config.unmatched or config.even:
            passes.append(("w", "n"))
            counts.append(len(flow) if config.unmatched else math.ceil(config.even_share * len(flow)))
        refined = model.match_features(
            _concatenate([_first(features[a], n) for (a, _), n in zip(passes, counts, strict=True)]),
            _concatenate([_first(features[b], n) for (_, b), n in zip(passes, counts, strict=True)]),
        ).float()
        scores = dict(zip(passes, refined.split(counts), strict=True))
        unmatched = None
        if config.unmatched:
            score = self.parameters["unmatched_score"]
            states = {pair: add_unmatched_state(r, model.config.temperature, score) for pair, r in scores.items()}
            probability = {pair: p for pair, (p, _) in states.items()}
            unmatched = states["w", "n"][1]
        else:
            probability = {pair: model.probabilities(r) for pair, r in scores.items()}
        terms: dict[str, Any] = {
            "composed": config.composed
            * probabilistic_cross_entropy(
                probability["j", "i"] @ probability["w", "j"], flow, visible, sigma=config.sigma, keep=config.keep
            )
        }
        if direct:
            n = len(probability["w", "i"])
            known, seen = flow[:n], visible[:n]
            if config.direct:
                terms["direct"] = config.direct * probabilistic_cross_entropy(
                    probability["w", "i"], known, seen, sigma=config.sigma
                )
            if config.direct_epe:
                estimated, _ = model.soft_argmax(scores["w", "i"])
                terms["epe"] = config.direct_epe * endpoint_error(estimated, known, seen)
        if unmatched is not None:
            terms["unmatched"] = config.unmatched * unmatched_loss(unmatched)
        if config.even:
            strangers = scores["w", "n"][: math.ceil(config.even_share * len(flow))]
            terms["even"] = config.even * divergence_from_even(strangers / model.config.temperature)
        return sum(terms.values()), {name: value.item() for name, value in terms.items()}


def _features(model: CATs, batch: Batch, names: tuple[str, ...]) -> dict[str, Features]:
    """Features of a batch's images, all through the backbone at once."""
    maps = model.features(normalise(torch.cat([batch[name] for name in names]), model))
    return dict(zip(names, _split(maps, len(names)), strict=True))


def _split(maps: Features, parts: int) -> list[Features]:
    """Features of a concatenated batch, one list of levels for each part."""
    chunks = [x.chunk(parts) for x in maps]
    return [[levels[k] for levels in chunks] for k in range(parts)]


def _first(maps: Features, count: int) -> Features:
    return [x[:count] for x in maps]


def _concatenate(features: list[Features]) -> Features:
    return [torch.cat(levels) for levels in zip(*features, strict=True)]
