"""The shared folder, and images of the goldens, which come from a formula as their weights do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cats.benchmarks.record import SHARED


def shared(*parts: str) -> Path:
    """A path in the shared folder; skips the test with the reason where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs shared/{'/'.join(parts)} (set CATS_SHARED)")
    return path


def golden_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the authors' SPair-71k checkpoint."""
    return {key: tuple(shape) for key, shape in json.loads(shared("goldens", "state_dict.json").read_text()).items()}


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
