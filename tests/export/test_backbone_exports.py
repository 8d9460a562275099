"""Backbones of today, from random weights over two updates to files in float32 and float16 within tolerance."""

from __future__ import annotations

import pytest
import torch

from cats.backbones import find_backbone
from cats.export.export import export_onnx
from cats.model import CATs, CATsConfig

BACKBONES = ("vit_small_patch14_dinov2.lvd142m", "vit_small_patch16_dinov3.lvd1689m", "convnext_tiny",
             "deit3_small_patch16_224")  # fmt: skip


def two_steps(name: str) -> CATs:
    """A zero-started model on a random backbone after two updates of everything, at a temperature without ties."""
    torch.manual_seed(0)
    entry = find_backbone(name)
    config = CATsConfig(name, entry.hyperpixels[-2:], entry.image_size, temperature=0.1)
    model = CATs(config, zero_start=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.randn(2, 2, 3, entry.image_size, entry.image_size)
    for _ in range(2):
        model(images[0], images[1]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_float32_and_float16_within_tolerance(name, tmp_path):
    model = two_steps(name)
    for precision in ("fp32", "fp16"):
        report = export_onnx(model, tmp_path / f"{precision}.onnx", fp16=precision == "fp16")
        figures = report.parity.to_dict()
        print(name, precision, {key: value for key, value in figures.items() if key.endswith("px")})
        assert report.parity.passed, (precision, figures)
