"""COTR: places and positions against values worked out by hand, its config, checkpoint, training and export."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import make_image

from cats.architectures import build_model
from cats.checkpoints import load_checkpoint, save_checkpoint, weights_sha256
from cats.core.errors import InputError
from cats.cotr import COTR, HEAD_START, cell_places, encode_places
from cats.data.folders import PhotoFolder
from cats.data.warps import WarpPairs
from cats.evaluation.figures import attention_maps
from cats.evaluation.torch_matcher import TorchMatcher
from cats.model import CATsConfig
from cats.training.configs import TrainConfig, find_config
from cats.training.objectives import FlowObjective
from cats.training.trainer import Trainer

SMALL = CATsConfig(
    "tf_efficientnet_lite0", (5,), image_size=64, feature_size=8, projection_dim=32, num_heads=4, architecture="cotr"
)


def small_cotr() -> COTR:
    torch.manual_seed(0)
    model = build_model(SMALL).eval()
    assert isinstance(model, COTR)
    with torch.no_grad():
        model.head.fc3.weight.mul_(5 / HEAD_START)  # so that the flow differs from cell to cell
    return model


def test_places_lie_side_by_side():
    places = cell_places(4)
    assert places[0].tolist() == [1 / 16, 1 / 8]
    assert places[15].tolist() == [7 / 16, 7 / 8]
    assert places[16].tolist() == [9 / 16, 1 / 8]
    code = encode_places(torch.tensor([[0.25, 1.0]]), 8)[0]
    x, y = [math.pi / 4, math.pi / 2], [math.pi, 2 * math.pi]
    expected = [*map(math.sin, x), *map(math.cos, x), *map(math.sin, y), *map(math.cos, y)]
    assert code.tolist() == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_flow_and_confidence_say_what_head_and_attention_say():
    model = small_cotr()
    torch.nn.init.zeros_(model.head.fc3.weight)
    model.head.fc3.bias.copy_(torch.tensor([0.5 + 0.5 * 3.5 / 8, 2.5 / 8]))  # cell x 3, y 2 of b
    flow, _ = model.match(torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64))
    assert flow[0, :, 0, 0].tolist() == pytest.approx([3, 2], abs=1e-4)
    assert flow[0, :, 7, 5].tolist() == pytest.approx([-2, -5], abs=1e-4)
    weights = torch.zeros(1, 3, 64)
    weights[0, 0, 10] = 0.2  # all of what falls on b falls on one cell
    weights[0, 1, [10, 12]] = 0.3  # half each on cells two apart: variance 1
    weights[0, 2] = 1 / 64  # everywhere: twice the variance of 0..7
    assert model.confidence(weights)[0].tolist() == pytest.approx([1, math.exp(-0.5), math.exp(-5.25)], abs=1e-5)


@torch.no_grad()
def test_the_order_of_images_and_both_images_count():
    model = small_cotr()
    a, b, c = torch.randn(3, 1, 3, 64, 64)
    flow = model(a, b)
    assert flow.shape == (1, 2, 8, 8)
    assert all(not torch.allclose(flow, other, atol=1e-4) for other in (model(b, a), model(a, c), model(c, b)))
    batch = model.match(torch.cat([a, c]), torch.cat([b, a]))
    torch.testing.assert_close(batch[0][:1], flow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hyperpixels": (2, 3)}, "takes one hyperpixel"),
        ({"correlation": False}, "are switches of architecture cats"),
        ({"projection_dim": 30}, "that 4 and num_heads divide"),
        ({"architecture": "loftr"}, "expected cats or cotr"),
    ],
)
def test_configs_that_fit_no_cotr(change, message):
    with pytest.raises(InputError, match=message):
        CATsConfig.from_dict({**SMALL.to_dict(), **change})


def test_what_only_cats_can_do_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="start=random"):
        TrainConfig(model=SMALL, start="consensus")
    with pytest.raises(InputError, match="cycle is a term of architecture cotr"):
        find_config("tiny").override(["cycle=1"])
    make_image(tmp_path / "a.png", (90, 80))
    image = TorchMatcher(small_cotr()).match(tmp_path / "a.png", tmp_path / "a.png")
    assert image.flow.shape == (2, 8, 8)
    with pytest.raises(InputError, match="computes no correlation"):
        attention_maps(small_cotr(), None, None)  # type: ignore[arg-type]


def test_checkpoint_round_trip_and_training(tmp_path: Path):
    for number in range(3):
        make_image(tmp_path / "photos" / f"{number}.jpg", (90, 80), seed=number)
    config = TrainConfig(
        model=SMALL, backbone_weights="none", cycle=0.5, batch_size=2, validate_every=2, lr=1e-3, clip=1.0
    )
    dataset = WarpPairs(PhotoFolder.open(tmp_path / "photos"), size=64, grid=8)
    trainer = Trainer(
        config, dataset, FlowObjective(0.5), lambda model, bar: {"score": 0.0}, tmp_path / "run", steps=2, workers=0
    )
    before = weights_sha256(trainer.model)
    trainer.run()
    assert "cycle" in (tmp_path / "run" / "log.csv").read_text().splitlines()[0]
    loaded = load_checkpoint(tmp_path / "run" / "best.pt").model
    assert isinstance(loaded, COTR)
    assert weights_sha256(loaded) == weights_sha256(trainer.model) != before
    save_checkpoint(tmp_path / "half.safetensors", loaded, half=True)
    assert load_checkpoint(tmp_path / "half.safetensors").model.config == SMALL


def test_the_cycle_error_is_that_of_matching_back():
    model = small_cotr()
    with torch.no_grad():
        a, b = (model.features(torch.randn(1, 3, 64, 64)) for _ in range(2))
        torch.nn.init.zeros_(model.head.fc3.weight)
        model.head.fc3.bias.copy_(torch.tensor([0.25, 0.5]))  # everything is found again in the middle of a
        error = model.cycle_error(a, b, torch.zeros(1, 2, 8, 8))
    y, x = np.mgrid[:8, :8] + 0.5
    np.testing.assert_allclose(error[0], np.hypot(x - 4, y - 4), rtol=1e-4)


@torch.no_grad()
def test_training_starts_near_the_middle_of_b():
    for seed in range(3):
        torch.manual_seed(seed)
        model = build_model(
            CATsConfig("tf_efficientnet_lite0", (15,), projection_dim=256, architecture="cotr", num_heads=8)
        )
        maps = [[torch.randn(1, 192, 16, 16)] for _ in range(2)]
        flow, _ = model.eval().match_encoded(*maps)
        places = flow[0] + torch.stack(torch.meshgrid(torch.arange(16), torch.arange(16), indexing="xy"))
        # In cells, of 16; as Xavier draws them up to 23. Not exactly 0, or nothing below would learn at once.
        assert 0.01 < (places - 7.5).abs().max() < 2
