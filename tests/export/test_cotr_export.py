"""COTR exports in every form with PyTorch's numbers, and typed in float16 where that is safe."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import TensorProto

from cats.architectures import build_model
from cats.core.metadata import read_onnx_metadata
from cats.export.export import export_onnx
from cats.export.forms import build_form
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
        model.head.fc3.weight.mul_(5)
        model.decoder_layers[0].attn.q.weight.mul_(5)  # so that attention is not flat
    return model


@pytest.mark.parametrize("form", ["pair", "split"])
def test_exported_files_equal_pytorch(cotr, form, tmp_path):
    report = export_onnx(cotr, tmp_path / "cotr.onnx", form=form)
    assert report.parity.passed
    assert report.parity.to_dict()["max_px"] < 0.05
    for file in report.files.values():
        assert read_onnx_metadata(file).config["architecture"] == "cotr"
    if form == "pair":
        match = Matcher(tmp_path / "cotr.onnx").match("assets/astronaut.jpg", "assets/grace_hopper.jpg")
        assert match.flow.shape == (2, 8, 8)


def test_head_and_positions_stay_in_float32(cotr):
    typed = to_fp16(build_form(cotr)["pair"])
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
