"""Other inference libraries take the exported files: TensorRT-RTX parses all forms, OpenVINO computes the same."""

import numpy as np
import pytest
from tiny_models import image_pair, tiny_model

from cats.export.exported import PeakSession
from cats.runtime.backends.openvino import shared_core

KINDS = ("pair", "pair-inline", "encoder", "matcher", "end-to-end")


def feeds_of(model, kind, batch):
    if kind != "end-to-end":
        return dict(zip(("image_a", "image_b"), (x.numpy() for x in image_pair(model, batch)), strict=True))
    rng = np.random.default_rng(0)
    return {
        "image_a": rng.integers(0, 256, (batch, 90, 70, 3), dtype=np.uint8),
        "image_b": rng.integers(0, 256, (batch, 50, 120, 3), dtype=np.uint8),
        "points_a": rng.uniform(0, 70, (batch, 5, 2)).astype(np.float32),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_tensorrt_rtx_parses(forms, kind):
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(forms[kind].SerializeToString())
    assert parsed, [str(parser.get_error(i)) for i in range(parser.num_errors)]
    assert network.num_outputs == len(forms[kind].graph.output)


@pytest.mark.parametrize("kind", ["pair-inline", "end-to-end"])
def test_openvino_computes_the_same(forms, model, kind):
    pytest.importorskip("openvino")
    from cats.export.storage import inline_functions

    exported, core = inline_functions(forms[kind]), shared_core()
    compiled = core.compile_model(
        core.read_model(exported.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    feeds = feeds_of(model, kind, 3 if kind == "pair-inline" else 2)
    expected, actual = PeakSession(exported)(feeds), compiled(feeds)
    for output in compiled.outputs:
        name = output.get_any_name()
        assert np.abs(actual[output] - expected[name]).max() < (0.05 if name == "points_b" else 2e-3), name


@pytest.mark.parametrize("kind", ["pair-inline", "end-to-end"])
def test_parts_for_bf16_together_are_the_model(forms, model, kind):
    ov = pytest.importorskip("openvino")
    from cats.export.storage import inline_functions
    from cats.runtime.backends.openvino_parts import precision_parts

    exported = inline_functions(forms[kind])
    core, settings = shared_core(), {"INFERENCE_PRECISION_HINT": "f32"}
    parts = list(precision_parts(ov, core.read_model(exported.SerializeToString())))
    assert [precision for _, precision in parts] == ["fp32", "bf16", "fp32"]
    values = feeds_of(model, kind, 1)
    expected = PeakSession(exported)(values)
    for part, _ in parts:
        compiled = core.compile_model(part, "CPU", settings)
        done = compiled({port.get_any_name(): values[port.get_any_name()] for port in compiled.inputs})
        values |= {port.get_any_name(): done[port] for port in compiled.outputs}
    for name, value in expected.items():
        assert np.abs(values[name] - value).max() < (0.05 if name == "points_b" else 2e-3), name
    assert not [node for node in parts[0][0].get_ops() if node.get_friendly_name().startswith("decoder")]
    aggregator = {node.get_friendly_name() for node in parts[1][0].get_ops() if node.get_type_name() == "MatMul"}
    assert aggregator
    assert all(name.startswith("decoder") for name in aggregator)


@pytest.mark.parametrize(
    ("kind", "resnet", "aggregator_only", "precisions"),
    [
        ("pair", True, True, ["fp32", "bf16", "fp32"]),
        ("encoder", False, False, ["fp32"]),
        ("matcher", False, False, ["fp32", "bf16", "fp32"]),  # features of any backbone
        ("pair", True, False, ["bf16", "bf16", "fp32"]),
        ("encoder", True, False, ["bf16"]),
    ],
)
def test_precisions_of_the_parts(forms, kind, resnet, aggregator_only, precisions):
    ov = pytest.importorskip("openvino")
    from cats.export.forms import build_form
    from cats.export.graph.deployment import DeploymentOptions
    from cats.export.storage import inline_functions
    from cats.runtime.backends.openvino_parts import precision_parts

    exported = forms[kind]
    if resnet:
        other = tiny_model(backbone="resnet50", hyperpixels=(0, 5))
        form = "split" if kind == "encoder" else "pair"
        exported = build_form(other, form, batch=1, options=DeploymentOptions(winograd=True))[kind]
    parts = precision_parts(
        ov, shared_core().read_model(inline_functions(exported).SerializeToString()), aggregator_only=aggregator_only
    )
    assert [precision for _, precision in parts] == precisions
