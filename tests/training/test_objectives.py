"""The terms of a training step against what they are made of."""

import numpy as np
import pytest
import torch

from cats.model import CATs, CATsConfig
from cats.training.configs import find_config
from cats.training.losses import divergence_from_even
from cats.training.objectives import WarpConsistencyObjective

GRID, SIZE, BATCH = 4, 64, 5


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = CATsConfig(
        "tf_efficientnet_lite0", (2, 3), image_size=SIZE, feature_size=GRID, projection_dim=16, num_heads=4
    )
    return CATs(config, backbone_weights=None).eval()


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    images = {name: torch.from_numpy(rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)) for name in "ijwn"}
    flow = torch.from_numpy(rng.normal(0, 0.5, (BATCH, 2, GRID, GRID)).astype(np.float32))
    return {**images, "flow": flow, "visible": torch.ones(BATCH, GRID, GRID, dtype=torch.bool)}


def parts(model, batch, *settings):
    objective = WarpConsistencyObjective(find_config("tiny").override(list(settings)))
    with torch.no_grad():
        return objective(model, batch)


def test_strangers_are_part_of_the_loss_of_a_share_of_the_batch(model, batch):
    without, terms = parts(model, batch, "even=0")
    assert "even" not in terms
    loss, terms = parts(model, batch, "even=2", "even_share=0.3")
    with torch.no_grad():
        w, n = (model.features((batch[name].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5) for name in "wn")
        refined = model.match_features([x[:2] for x in w], [x[:2] for x in n])  # 0.3 of five, rounded up
    assert terms["even"] == pytest.approx(2 * divergence_from_even(refined / model.config.temperature).item(), rel=1e-3)
    assert loss.item() == pytest.approx(without.item() + terms["even"], rel=1e-4)


def test_both_terms_of_strangers_together(model, batch):
    _, both = parts(model, batch, "even=1", "even_share=0.3", "unmatched=0.5")
    _, one = parts(model, batch, "even=1", "even_share=0.3")
    assert both["even"] == pytest.approx(one["even"], rel=1e-3)
    assert both["unmatched"] > 0
