"""COTR exports in every form with PyTorch's numbers, and typed in float16 where that is safe."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from made_once import made_once
from onnx import TensorProto

from cats.architectures import build_model
from cats.benchmarks import libcats
from cats.core.images import read_image
from cats.core.metadata import read_onnx_metadata
from cats.cotr import HEAD_START
from cats.export.export import export_onnx
from cats.export.fp16.assign import to_fp16
from cats.export.modules import module_of
from cats.model import CATsConfig
from cats.runtime import Matcher

SMALL = CATsConfig(
    "tf_efficientnet_lite0", (5,), image_size=64, feature_size=8, projection_dim=32, num_heads=4, architecture="cotr"
)


@pytest.fixture(scope="module")
def cotr():
    torch.manual_seed(0)
    model = build_model(SMALL).eval()
    with torch.no_grad():
        model.head.fc3.weight.mul_(5 / HEAD_START)
        model.decoder_layers[0].attn.q.weight.mul_(5)  # so that attention is not flat
    return model


@pytest.fixture(scope="module")
def pair(cotr, tmp_path_factory):
    """The pair as a file, compared with PyTorch."""

    def export(folder):
        export_onnx(cotr, folder / "cotr.onnx")

    return made_once(tmp_path_factory, "cotr", export) / "cotr.onnx"


def test_the_pair_equals_pytorch(pair):
    metadata = read_onnx_metadata(pair)
    assert metadata.verified
    assert metadata.parity["max_px"] < 0.05
    assert metadata.config["architecture"] == "cotr"
    match = Matcher(pair).match("assets/astronaut.jpg", "assets/grace_hopper.jpg")
    assert match.flow.shape == (2, 8, 8)


def test_encoder_and_matcher_equal_pytorch(cotr, tmp_path):
    report = export_onnx(cotr, tmp_path / "cotr.onnx", form="split", batch=2)
    assert report.parity.passed
    assert report.parity.to_dict()["max_px"] < 0.05
    for file in report.files.values():
        assert read_onnx_metadata(file).config["architecture"] == "cotr"


@pytest.mark.skipif(not libcats.HAVE_COMPILER, reason="no C compiler")
def test_the_c_library_runs_it(pair, tmp_path):
    a, b = (np.asarray(read_image(f"assets/{name}.jpg")) for name in ("astronaut", "grace_hopper"))
    opened = libcats.Library(libcats.build_library(tmp_path)).open(pair)
    opened.match(libcats.image(a), libcats.image(b))
    match = Matcher(pair).match(a, b)
    np.testing.assert_allclose(opened.flow(), match.flow, atol=1e-4)
    np.testing.assert_allclose(opened.confidence(), match.confidence, atol=1e-5)
    opened.close()
    assert np.ptp(match.flow[0]) > 0.5  # it says something


def test_head_and_positions_stay_in_float32(pair):
    typed = to_fp16(onnx.load(pair))
    onnx.checker.check_model(typed)
    halves = {value.name for value in typed.graph.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    modules = {module_of(node) for node in typed.graph.node if halves.intersection(node.output)}
    assert any(name.startswith("encoder_layers.0.attn") or name == "encoder_layers.0.q" for name in modules)
    computing = {
        module_of(node)
        for node in typed.graph.node
        if halves.intersection(node.output) and node.op_type not in ("Cast", "Reshape", "Transpose")
    }
    for module in ("head", "positions", "spread"):
        assert not any(name == module or name.startswith(f"{module}.") for name in computing)
