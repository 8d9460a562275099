"""The deployment graph against the model, all rewrites together, each alone, and for every switch of the config."""

import dataclasses

import pytest
import torch
from tiny_models import image_pair, tiny_model

from cats.export.graph.deployment import DeploymentOptions, EncoderFileGraph, MatcherFileGraph, PairGraph, SoftArgmax
from cats.model import CATs, CATsConfig

NONE = DeploymentOptions(*[False] * len(dataclasses.fields(DeploymentOptions)))
REWRITES = [field.name for field in dataclasses.fields(DeploymentOptions)]


@torch.no_grad()
def agrees(graph, model, batch=2):
    images = image_pair(model, batch)
    flow, confidence = graph.eval()(*images)
    want_flow, want_confidence = model.match(*images)
    assert want_flow.std() > 0.1  # a flow of zeros would agree with anything
    assert 0.02 < want_confidence.mean() < 0.98
    assert torch.allclose(flow, want_flow, atol=2e-4)  # cells
    assert torch.allclose(confidence, want_confidence, atol=2e-4)


def test_all_rewrites_together(model):
    agrees(PairGraph(model), model)
    agrees(PairGraph(model), model, batch=1)


def test_without_rewrites_it_is_the_model(model):
    agrees(PairGraph(model, NONE), model)


@pytest.mark.parametrize("name", REWRITES)
def test_each_rewrite_alone(model, name):
    agrees(PairGraph(model, dataclasses.replace(NONE, **{name: True})), model)


@pytest.mark.parametrize("name", REWRITES[:-1])
def test_all_rewrites_but_one(model, name):
    agrees(PairGraph(model, DeploymentOptions(**{name: False})), model)


@pytest.mark.parametrize(
    "change",
    [
        {"hyperpixels": (3,)},
        {"appearance": False},
        {"swapping": False},
        {"correlation": False},
        {"depth": 2},
        {"num_heads": 2, "mlp_ratio": 2.0},
        {"temperature": 0.1},
        {"backbone": "resnet50", "hyperpixels": (0, 2, 4, 7)},
    ],
    ids=str,
)
def test_every_switch_of_the_config(change):
    model = tiny_model(**change)
    agrees(PairGraph(model), model)
    agrees(PairGraph(model, DeploymentOptions(winograd=True)), model)


def test_vision_transformer():
    model = tiny_model(backbone="vit_small_patch16_224.dino", hyperpixels=(1, 3), image_size=128)
    agrees(PairGraph(model), model)


@torch.no_grad()
def test_encoder_and_matcher_together_are_the_pair(model):
    encode, match = EncoderFileGraph(model).eval(), MatcherFileGraph(model).eval()
    a, b = image_pair(model)
    flow, confidence = match(*encode(a), *encode(b))
    expected = PairGraph(model).eval()(a, b)
    assert torch.allclose(flow, expected[0], atol=1e-4)
    assert torch.allclose(confidence, expected[1], atol=1e-4)


def test_the_model_itself_is_not_changed(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    PairGraph(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_confidence_of_a_certain_match_is_not_above_one():
    model = CATs(CATsConfig(backbone="tf_efficientnet_lite0", hyperpixels=(2,), image_size=64, feature_size=8)).eval()
    scores = 1000 * torch.eye(64)[None]
    flow, confidence = SoftArgmax(model, DeploymentOptions())(scores)
    assert confidence.max() <= 1
    assert confidence.min() > 0.9999
    assert flow.abs().max() < 1e-4
