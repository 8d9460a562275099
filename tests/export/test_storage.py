"""Storage rewrites: weights as float16, functions inlined."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from tiny_models import image_pair, tiny_model

from cats.export.exported import ExportedModel
from cats.export.forms import build_form
from cats.export.graph.deployment import DeploymentOptions
from cats.export.storage import inline_functions, store_as_half, weight_factors


def outputs(model, onnx_model, batch=2):
    images = [x.numpy() for x in image_pair(model, batch)]
    return ExportedModel({"pair": onnx_model}, model.config.preprocessing, None).run(*images)


def as_from_a_half_checkpoint(model):
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.half().float())
    return model


def test_inlined_form_is_equal_bit_by_bit(model, forms):
    function, inlined = (outputs(model, forms[kind], 3) for kind in ("pair", "pair-inline"))
    for name in ("flow", "confidence"):
        assert np.array_equal(function[name], inlined[name])
    assert inline_functions(forms["pair"]) == forms["pair-inline"]


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ({}, DeploymentOptions()),
        ({"backbone": "resnet50", "hyperpixels": (0, 2, 5)}, DeploymentOptions()),
        ({"backbone": "resnet50", "hyperpixels": (0, 2, 5)}, DeploymentOptions(winograd=True)),
    ],
    ids=["lite0", "resnet50", "resnet50-winograd"],
)
def test_a_half_checkpoint_is_stored_without_loss(backbone, options):
    model = as_from_a_half_checkpoint(tiny_model(**backbone))
    exported = build_form(model, batch=2, options=options)["pair"]
    stored, rounded = store_as_half(exported, weight_factors(model, options))
    assert not rounded
    onnx.checker.check_model(stored, full_check=True)
    assert len(stored.SerializeToString()) < 0.65 * len(exported.SerializeToString())
    kinds = {item.name: item.data_type for item in stored.graph.initializer}
    weights = [k for k in kinds if ".weight" in k and "norm" not in k and not k.endswith("factor")]
    large = [k for k in weights if np.prod(next(i for i in stored.graph.initializer if i.name == k).dims) >= 256]
    assert len(large) > 10
    assert all(kinds[name] == TensorProto.FLOAT16 for name in large)
    expected, actual = outputs(model, exported), outputs(model, stored)
    assert np.abs(actual["flow"] - expected["flow"]).max() < 1e-4


def test_other_weights_are_rounded_and_it_says_so(model, forms):
    stored, rounded = store_as_half(forms["pair"], weight_factors(model, DeploymentOptions()))
    assert rounded
    original = {item.name: numpy_helper.to_array(item) for item in forms["pair"].graph.initializer}
    for item in stored.graph.initializer:
        if item.name.endswith(".half"):
            value = original[item.name.removesuffix(".half")]
            if not item.name.startswith("feature_extraction"):
                assert np.allclose(numpy_helper.to_array(item), value, rtol=1e-3, atol=1e-6)
    kept = {item.name for item in stored.graph.initializer if item.data_type == TensorProto.FLOAT}
    assert {"soft_argmax.coordinates", "offset", "position"} & set(original) <= kept
    difference = np.abs(outputs(model, stored)["flow"] - outputs(model, forms["pair"])["flow"])
    assert 0 < np.median(difference) < 0.05


def test_weights_beyond_float16_stay(model, forms):
    large = onnx.ModelProto()
    large.CopyFrom(forms["pair"])
    item = next(i for i in large.graph.initializer if i.name == "decoder.proj.weight")
    item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * np.float32(1e9), item.name))
    stored, _ = store_as_half(large)
    assert "decoder.proj.weight" in {i.name for i in stored.graph.initializer}
