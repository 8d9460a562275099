"""The models that benchmarks run: a checkpoint, or one of a few by name."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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


def tamed_resnet101(weights: str = "random") -> CATs:
    """The published structure with weights whose activations stay in range: each last norm is scaled to 0.2.

    As they are, the activations of untrained weights grow through 33 residual sums and overflow float16.

    Args:
        weights: ``random`` (PyTorch's initialisation, seed 0) or ``formula`` (:func:`formula_weight`, as the goldens).
    """
    torch.manual_seed(0)
    model = CATs(CATsConfig()).eval()
    if weights == "formula":
        state = {key: torch.from_numpy(formula_weight(key, tuple(v.shape))) for key, v in model.state_dict().items()}
        model.load_state_dict({key: v * 0.2 if key.endswith("bn3.weight") else v for key, v in state.items()})
        return model
    for name, parameter in model.feature_extraction.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.constant_(parameter, 0.2)
    return model


def formula_weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The golden weight of one tensor, float32."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if "num_batches_tracked" in key:
        return np.zeros(shape, np.int64)
    if "running_mean" in key:
        value = 0.1 * rng.standard_normal(shape)
    elif "running_var" in key:
        value = rng.uniform(0.5, 1.5, shape)
    elif key in ("x_normal", "y_normal"):
        value = np.linspace(-1, 1, shape[0]) + 0.01 * rng.standard_normal(shape)
    elif "pos_embed" in key or key.endswith("bias"):
        value = 0.02 * rng.standard_normal(shape)
    elif len(shape) == 1:
        value = rng.uniform(0.5, 1.0, shape)
    elif len(shape) == 2:
        value = 0.02 * rng.standard_normal(shape)
    else:
        value = np.sqrt(2 / np.prod(shape[1:])) * rng.standard_normal(shape)
    return value.astype(np.float32)
