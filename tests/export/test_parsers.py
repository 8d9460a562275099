"""Other inference libraries take the exported files: TensorRT-RTX parses all forms, OpenVINO computes the same."""

import numpy as np
import pytest
from tiny_models import image_pair

from cats.export.exported import Session

KINDS = ("pair", "pair-inline", "encoder", "matcher", "end-to-end")


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
    ov = pytest.importorskip("openvino")
    from cats.export.storage import inline_functions

    exported = inline_functions(forms[kind])
    compiled = ov.Core().compile_model(
        ov.Core().read_model(exported.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    if kind == "pair-inline":
        feeds = dict(zip(("image_a", "image_b"), (x.numpy() for x in image_pair(model, 3)), strict=True))
    else:
        rng = np.random.default_rng(0)
        feeds = {
            "image_a": rng.integers(0, 256, (2, 90, 70, 3), dtype=np.uint8),
            "image_b": rng.integers(0, 256, (2, 50, 120, 3), dtype=np.uint8),
            "points_a": rng.uniform(0, 70, (2, 5, 2)).astype(np.float32),
        }
    expected, actual = Session(exported)(feeds), compiled(feeds)
    for output in compiled.outputs:
        name = output.get_any_name()
        assert np.abs(actual[output] - expected[name]).max() < (0.05 if name == "points_b" else 2e-3), name
