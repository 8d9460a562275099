"""The starting points of training do what they say before any update."""

import dataclasses

import pytest
import torch

from cats.core.errors import InputError
from cats.model import CATs, CATsConfig
from cats.training.configs import find_config
from cats.training.starts import start_as_consensus

GRID = 8
CONFIG = CATsConfig(
    "tf_efficientnet_lite0", (3, 5), image_size=128, feature_size=GRID, projection_dim=32, num_heads=4, temperature=0.1
)


def noisy_volume(move=(1, 2)):
    """Correlation (1, 2, N, N) of images moved by (y, x) cells, drowned in noise, and the right row of each column."""
    generator = torch.Generator().manual_seed(3)
    y, x = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    inside = (y + move[0] < GRID) & (x + move[1] < GRID)
    target = (y * GRID + x)[inside]
    source = ((y + move[0]) * GRID + x + move[1])[inside]
    volume = torch.rand(1, 2, GRID**2, GRID**2, generator=generator) * 0.3
    volume[:, :, source, target] += 0.12
    return volume, source, target


@torch.no_grad()
def share_right(model):
    volume, source, target = noisy_volume()
    appearance = torch.zeros(1, 2, GRID**2, 32)
    refined = model.decoder(volume, appearance, appearance)
    return (refined[0].argmax(dim=0)[target] == source).float().mean().item()


@torch.no_grad()
def test_consensus_finds_matches_that_their_neighbours_support():
    torch.manual_seed(0)
    consensus = CATs(dataclasses.replace(CONFIG, depth=2)).eval()
    start_as_consensus(consensus)
    assert share_right(consensus) > share_right(CATs(CONFIG, zero_start=True).eval()) + 0.1


@torch.no_grad()
def test_consensus_heads_attend_to_one_neighbour_each():
    torch.manual_seed(0)
    model = CATs(CONFIG).eval()
    start_as_consensus(model)
    volume, _, _ = noisy_volume()
    block = model.decoder.blocks[0]
    tokens = model.decoder.tokens(volume, torch.zeros(1, 2, GRID**2, 32)).flatten(0, 1)
    weights, _ = block.attn.weights(block.norm1(tokens))
    cell = 3 * GRID + 4
    assert weights[0, :, cell].argmax(dim=-1).tolist() == [cell + 1, cell - 1, cell + GRID, cell - GRID]
    assert weights[0, :, cell].amax(dim=-1).min() > 0.5


def test_consensus_hands_gradients_to_every_branch():
    torch.manual_seed(0)
    model = CATs(CONFIG)
    start_as_consensus(model)
    volume, source, target = noisy_volume()
    appearance = torch.randn(1, 2, GRID**2, 32)
    model.probabilities(model.decoder(volume, appearance, appearance))[0, source, target].sum().backward()
    for branch in ("attn.proj", "attn_multiscale.proj", "mlp.fc2", "mlp2.fc2"):
        assert model.decoder.blocks[0].get_submodule(branch).weight.grad.abs().max() > 0


@pytest.mark.parametrize("change", [{"num_heads": 2}, {"projection_dim": 4, "num_heads": 4}, {"appearance": False}])
def test_consensus_says_which_models_it_does_not_fit(change):
    model = CATs(CATsConfig(**{**CONFIG.to_dict(), **change}))
    with pytest.raises(InputError, match=r"start=consensus needs .* use start=zero"):
        start_as_consensus(model)


def test_unknown_start_is_refused():
    with pytest.raises(InputError, match="expected one of random, zero, consensus"):
        find_config("tiny").override(["start=identity"])
