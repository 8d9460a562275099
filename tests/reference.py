"""The shared folder, and weights and images of the goldens, which come from a formula (nothing large is stored)."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from cats.model import CATs

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("CATS_SHARED", REPOSITORY.parent / "shared"))


def shared(*parts: str) -> Path:
    """A path in the shared folder; skips the test with the reason where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs shared/{'/'.join(parts)} (set CATS_SHARED)")
    return path


def golden_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the authors' SPair-71k checkpoint."""
    return {key: tuple(shape) for key, shape in json.loads(shared("goldens", "state_dict.json").read_text()).items()}


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


def golden_images(seed: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Target and source image batches of a golden, (B, 3, 256, 256) float32."""
    rng = np.random.default_rng(seed)

    def draw() -> np.ndarray:
        total = np.zeros((batch, 3, 256, 256), np.float32)
        for side in (8, 16, 32, 64, 128, 256):
            noise = rng.standard_normal((batch, 3, side, side)).astype(np.float32)
            total += noise.repeat(256 // side, axis=2).repeat(256 // side, axis=3)
        return total / np.float32(np.sqrt(6))

    target = draw()
    return target, draw()


def tamed_goldens() -> CATs:
    """The published structure (ResNet-101) with the golden weights, each ``bn3.weight`` scaled to 0.2.

    As they are, their activations grow through 33 residual sums and overflow float16.
    """
    import torch

    from cats.model import CATs, CATsConfig

    model = CATs(CATsConfig()).eval()
    weights = {k: torch.from_numpy(formula_weight(k, tuple(v.shape))) for k, v in model.state_dict().items()}
    model.load_state_dict({k: v * 0.2 if k.endswith("bn3.weight") else v for k, v in weights.items()})
    return model
