"""The models that benchmarks run: a checkpoint, or one of a few by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from cats.assets import asset
from cats.checkpoints import load_checkpoint
from cats.core.errors import InputError
from cats.model import CATs, CATsConfig

NAMES = {
    "cats-tiny": "the shipped model",
    "resnet101": "published structure, random weights whose activations stay in range",
    "lite0": "EfficientNet-Lite0 with ImageNet weights and a zero-started aggregator",
}


@dataclass(frozen=True)
class BenchmarkModel:
    """A model and what to call it.

    Attributes:
        name: of :data:`NAMES`, or the checkpoint's stem.
        description: one line for reports.
    """

    name: str
    description: str
    model: CATs


def load_model(name: str) -> BenchmarkModel:
    """A model by one of :data:`NAMES`, or the path of a checkpoint.

    Raises:
        InputError: neither.
        CheckpointError: the file is not a checkpoint.
    """
    if name == "cats-tiny":
        return BenchmarkModel(name, NAMES[name], load_checkpoint(asset("cats-tiny.pt")).model.eval())
    if name == "resnet101":
        return BenchmarkModel(name, NAMES[name], tamed_resnet101())
    if name == "lite0":
        torch.manual_seed(0)
        config = CATsConfig("tf_efficientnet_lite0", (11, 15))
        return BenchmarkModel(name, NAMES[name], CATs(config, backbone_weights="package", zero_start=True).eval())
    path = Path(name)
    if not path.exists():
        raise InputError(f"{name} is neither a checkpoint nor one of {', '.join(NAMES)}")
    return BenchmarkModel(path.resolve().stem, f"checkpoint {path.name}", load_checkpoint(path).model.eval())


def tamed_resnet101() -> CATs:
    """The published structure with random weights whose activations stay in range (each last norm scaled to 0.2)."""
    torch.manual_seed(0)
    model = CATs(CATsConfig()).eval()
    for name, parameter in model.feature_extraction.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.constant_(parameter, 0.2)
    return model
