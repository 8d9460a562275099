"""Winograd's convolutions equal the convolutions they replace, in torch and in a file."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tiny_models import tiny_model
from torch import nn

from cats.export.forms import build_form
from cats.export.graph.deployment import DeploymentOptions
from cats.export.graph.winograd import WinogradConv2d, applies, transforms, use_winograd
from cats.export.storage import store_as_half


def conv(channels=128, outputs=None, **options):
    torch.manual_seed(0)
    return nn.Conv2d(channels, outputs or channels, **{"kernel_size": 3, "padding": 1} | options).eval()


def test_transforms_are_exact():
    outputs, weights, inputs = transforms()
    values, taps = np.random.default_rng(0).standard_normal((6, 8)), np.array([0.5, -2.0, 1.25])
    found = outputs @ ((weights @ taps)[:, None] * (inputs @ values))
    expected = [taps @ values[i : i + 3] for i in range(4)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (5, 13), (7, 3), (1, 1)])
@pytest.mark.parametrize("options", [{}, {"outputs": 160, "bias": False}], ids=str)
@torch.no_grad()
def test_the_convolution_is_the_same(height, width, options):
    layer = conv(**options)
    x = torch.randn(2, 128, height, width)
    expected = layer(x)
    found = WinogradConv2d(layer, width)(x)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 64},
        {"outputs": 64},
        {"stride": 2},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"padding": 0},
        {"kernel_size": 1, "padding": 0},
        {"padding_mode": "reflect"},
    ],
    ids=str,
)
def test_others_stay(options):
    assert applies(conv())
    assert not applies(conv(**options))


@torch.no_grad()
def test_layers_of_a_network_are_replaced_by_name():
    network = nn.Sequential(nn.Conv2d(3, 128, 3, 2, 1), nn.ReLU(), nn.Sequential(conv(), nn.ReLU())).eval()
    network.unused = conv()
    network.forward = lambda x: network[2](network[1](network[0](x)))
    image = torch.randn(1, 3, 24, 24)
    expected = network(image)
    assert use_winograd(network, image) == ["2.0"]
    assert torch.allclose(network(image), expected, atol=1e-5)


@pytest.fixture(scope="module")
def model():
    return tiny_model(backbone="resnet50", hyperpixels=(0, 4, 9))


@pytest.fixture(scope="module")
def files(model):
    """The pair without and with Winograd's convolutions."""
    return [build_form(model, batch=1, options=DeploymentOptions(winograd=on))["pair"] for on in (False, True)]


def test_the_file_holds_the_weights_as_they_were(files):
    plain, winograd = ({i.name: numpy_helper.to_array(i) for i in file.graph.initializer} for file in files)
    name = "feature_extraction.backbone.layer2.1.conv2.weight"
    assert np.array_equal(plain[name].transpose(3, 0, 1, 2), winograd[name])
    assert files[1].ByteSize() < 1.02 * files[0].ByteSize()


def test_onnxruntime_transforms_them_when_it_loads_the_file(files, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    shape = [side.dim_value for side in files[0].graph.input[0].type.tensor_type.shape.dim]
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name in ("image_a", "image_b")}
    flows, reads = [], []
    for number, file in enumerate([*files, store_as_half(files[1])[0]]):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{number}.onnx")
        options.log_severity_level = 3
        session = ort.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])
        flows.append(session.run(["flow"], feeds)[0])
        reads.append(constant_products(tmp_path / f"{number}.onnx"))
    assert reads == [0, 0, 0]
    assert np.abs(flows[1] - flows[0]).max() < 1e-3
    assert np.abs(flows[2] - flows[0]).max() < 1  # rounded weights


def constant_products(path):
    """Products of two constants in an optimized graph."""
    graph = onnx.load(path).graph
    constants = {item.name for item in graph.initializer}
    return sum(node.op_type == "MatMul" and set(node.input) <= constants for node in graph.node)
