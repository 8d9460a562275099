"""On an NVIDIA GPU: engines of quantized files against ONNX Runtime on the CPU, with every TensorRT that loads."""

import numpy as np
import pytest

from cats.calibration.quantize import quantize
from cats.calibration.sessions import ProbeSession
from cats.core.errors import CatsError
from cats.core.metadata import write_model
from cats.evaluation.parity import flow_distance
from cats.runtime import Matcher
from cats.runtime.hardware import nvidia
from cats.runtime.tensorrt.engine import EngineOptions, build_engine
from cats.runtime.tensorrt.flavours import FLAVOURS, find_flavour

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(nvidia().problem is not None, reason=f"needs an NVIDIA GPU: {nvidia().problem}"),
]


def missing(flavour: str) -> str | None:
    """Why a TensorRT is not here; asked before any fixture is made."""
    try:
        find_flavour(flavour)
    except CatsError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "flavour", [pytest.param(f, marks=pytest.mark.skipif(bool(missing(f)), reason=str(missing(f)))) for f in FLAVOURS]
)
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_engines_match_as_onnx_runtime_does(source, ranges, pairs, tmp_path, flavour, precision):
    model = quantize(source.model, ranges, precision=precision)
    write_model(model, source.metadata.with_(precision=precision), tmp_path / "q.onnx")
    plan = build_engine(tmp_path / "q.onnx", flavour=flavour, options=EngineOptions(batch=(1, 1, 2)))
    session = ProbeSession(model)
    distances = []
    with Matcher(plan) as matcher:
        for (a, b), feeds in zip(pairs.pairs, pairs.feeds(source.metadata.preprocessing), strict=True):
            distances.append(flow_distance(session(feeds)["flow"], matcher.match(a, b).flow[None]))
    assert np.median(distances) < 4  # fusions round at other places; a wrong scale gives far more
