"""Small models with weights that make every part of the computation matter, and images for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cats.model import CATs, CATsConfig

TINY: dict[str, Any] = {
    "backbone": "tf_efficientnet_lite0",
    "hyperpixels": (2, 4, 5),
    "image_size": 64,
    "feature_size": 8,
    "projection_dim": 32,
    "num_heads": 4,
}

TRAINING: dict[str, Any] = {
    "model.image_size": 64,
    "model.feature_size": 4,
    "model.hyperpixels": "[2,3]",
    "model.projection_dim": 16,
    "model.num_heads": 4,
    "backbone_weights": "none",
    "batch_size": 2,
    "validate_every": 2,
    "steps": 4,
}
"""Settings with which a run of ``cats-train`` takes a second."""


def tiny_model(**options: Any) -> CATs:
    """A CATs whose batch norms have statistics and whose soft-argmax has width; options as of CATsConfig."""
    torch.manual_seed(0)
    model = CATs(CATsConfig(**{**TINY, "temperature": 0.05, **options})).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.0)
                module.bias.normal_(std=0.1)
        for name, value in model.decoder.named_parameters():
            if "norm" in name or "bias" in name:
                value.add_(0.1 * torch.randn_like(value))
        model.decoder.proj.weight.mul_(5)  # so that the aggregator moves the flow as much as the correlation does
        model.x_normal.add_(0.01 * torch.randn_like(model.x_normal))
    return model


def image_pair(model: CATs, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two random image batches with structure, normalised, (B, 3, S, S)."""
    generator = torch.Generator().manual_seed(seed)
    side = model.config.image_size

    def image():
        parts = [torch.randn(batch, 3, side // k, side // k, generator=generator) for k in (1, 4, 8, 16)]
        return sum(torch.nn.functional.interpolate(x, (side, side)) for x in parts) / 2

    return image(), image()
