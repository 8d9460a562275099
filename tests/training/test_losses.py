"""Losses against values worked out by hand."""

import math

import pytest
import torch

from cats.training.losses import (
    add_unmatched_state,
    divergence_from_even,
    endpoint_error,
    gaussian_targets,
    probabilistic_cross_entropy,
    unmatched_loss,
)


def test_endpoint_error_counts_valid_cells_only():
    flow = torch.zeros(1, 2, 2, 2)
    flow[0, :, 0, 0] = torch.tensor([3.0, 4.0])
    flow[0, :, 1, 1] = 100.0
    valid = torch.tensor([[[True, True], [False, False]]])
    assert endpoint_error(flow, torch.zeros_like(flow), valid).item() == pytest.approx(2.5, abs=1e-5)
    assert endpoint_error(flow, torch.zeros_like(flow), torch.zeros_like(valid)).item() == 0


def test_targets_are_centred_on_the_true_place():
    flow = torch.zeros(1, 2, 4, 4)
    flow[0, 0] = 1.0  # one cell to the right
    targets = gaussian_targets(flow, 0.3)
    assert torch.allclose(targets.sum(1), torch.ones(1, 16))
    cell = 1 * 4 + 2  # y 1, x 2 -> x 3
    assert targets[0, :, cell].argmax().item() == 1 * 4 + 3


def test_cross_entropy_of_a_uniform_distribution_is_its_entropy():
    uniform = torch.full((2, 16, 16), 1 / 16)
    visible = torch.ones(2, 4, 4, dtype=torch.bool)
    loss = probabilistic_cross_entropy(uniform, torch.zeros(2, 2, 4, 4), visible)
    assert loss.item() == pytest.approx(math.log(16), abs=1e-4)


def test_keep_takes_the_cells_that_agree_best():
    probability = torch.full((1, 16, 16), 1e-4)
    probability[0].fill_diagonal_(1.0)
    probability[0, :, 8:] = 1 / 16  # half of the cells know nothing
    flow, visible = torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    everything = probabilistic_cross_entropy(probability, flow, visible, sigma=0.1)
    best_half = probabilistic_cross_entropy(probability, flow, visible, sigma=0.1, keep=0.5)
    assert best_half.item() == pytest.approx(0, abs=1e-3)
    assert everything.item() == pytest.approx(math.log(16) / 2, abs=1e-2)


def test_unmatched_state_takes_what_no_place_claims():
    refined = torch.zeros(1, 16, 16)
    probability, unmatched = add_unmatched_state(refined, 0.02, torch.tensor(1.0))
    assert unmatched.min() > 0.999
    assert torch.allclose(probability.sum(1) + unmatched, torch.ones(1, 16))
    assert unmatched_loss(unmatched) < 1e-3 < unmatched_loss(1 - unmatched)


def test_matches_of_strangers_cost_what_they_lack_of_evenness():
    assert divergence_from_even(torch.full((2, 16, 16), 3.0)).item() == pytest.approx(0, abs=1e-6)
    # One place has half of the probability, the other 15 share the rest: -mean(log p) - log 16 by hand.
    logits = torch.zeros(1, 16, 16)
    logits[:, 3] = math.log(15)
    expected = -(math.log(1 / 2) + 15 * math.log(1 / 30)) / 16 - math.log(16)
    assert divergence_from_even(logits).item() == pytest.approx(expected, abs=1e-5)
