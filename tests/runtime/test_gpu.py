"""On an NVIDIA GPU: the CUDA layer by itself, and engines of every TensorRT that loads against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cats.core.errors import CatsError
from cats.runtime import Matcher
from cats.runtime.backends.base import TensorSpec
from cats.runtime.backends.cuda import CudaContext, DeviceArray
from cats.runtime.backends.tensorrt import TensorRTBackend
from cats.runtime.hardware import nvidia
from cats.runtime.tensorrt.engine import EngineOptions, build_engine
from cats.runtime.tensorrt.flavours import FLAVOURS, find_flavour

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(nvidia().problem is not None, reason=f"needs an NVIDIA GPU: {nvidia().problem}"),
]


@pytest.fixture(scope="module")
def cuda() -> CudaContext:
    pytest.importorskip("cuda.core", reason="needs cuda-core")
    return CudaContext(0, extra="tensorrt")


def test_pinned_memory_to_the_gpu_and_back_as_a_graph(cuda: CudaContext) -> None:
    with cuda.current():
        stream = cuda.take_stream()
        (source, given), (target, found) = (cuda.pinned((4, 5), np.dtype(np.float32)) for _ in range(2))
        memory = cuda.device_memory(source.size, stream)
        capture = stream.create_graph_builder()
        capture.begin_building("thread_local")
        memory.copy_from(source, stream=capture)
        memory.copy_to(target, stream=capture)
        graph = capture.end_building().complete()
        for value in (3, 7):
            given[:] = value
            graph.launch(stream)
            cuda.wait(stream)
            assert (found == value).all()


@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_arrays_of_other_libraries_without_a_copy(cuda: CudaContext, library: str) -> None:
    module = pytest.importorskip(library)
    array = (
        module.arange(6, dtype=module.float32, device="cuda")
        if library == "torch"
        else module.arange(6, dtype=module.float32)
    )
    spec = TensorSpec("x", np.dtype(np.float32), (6,))
    with cuda.current():
        stream = cuda.take_stream()
        view = cuda.view(array, spec, stream)
        assert int(view.ptr) == (array.data_ptr() if library == "torch" else array.data.ptr)
        copy = cuda.device_memory(24, stream)
        result = DeviceArray(copy, (6,), np.dtype(np.float32), stream, cuda)
    back = module.from_dlpack(result)
    assert (back.data_ptr() if library == "torch" else back.data.ptr) == int(copy.handle)


@pytest.fixture(scope="module", params=list(FLAVOURS))
def engine(request: pytest.FixtureRequest, model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny matcher as an engine of each flavour."""
    try:
        find_flavour(request.param)
    except CatsError as error:
        pytest.skip(str(error))
    plan = tmp_path_factory.mktemp(request.param) / "tiny.plan"
    return build_engine(model_file, plan, flavour=request.param, options=EngineOptions(batch=(1, 2, 4)))


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_engines_match_as_onnx_runtime_does(
    engine: Path, model_file: Path, texture: np.ndarray, cuda_graph: bool
) -> None:
    pairs = [(texture[:200, :300], texture[40:240, 60:360]), (texture[100:], texture[:300])] * 3
    with Matcher(model_file, provider="cpu") as reference, Matcher(engine, cuda_graph=cuda_graph) as matcher:
        for _ in range(2):  # the second time replays
            for ours, theirs in zip(matcher.match_batch(pairs), reference.match_batch(pairs), strict=True):
                np.testing.assert_allclose(ours.flow, theirs.flow, atol=0.05)
                np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=0.02)


def test_the_matcher_takes_torch_tensors(engine: Path) -> None:
    torch = pytest.importorskip("torch")
    with Matcher(engine) as matcher:
        a, b = (torch.rand(2, 3, 256, 256, device="cuda") for _ in range(2))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        match: Any = matcher.match(a, b, stream=stream, forward_backward=True)
        expected = matcher.backend.run({"image_a": a.cpu().numpy(), "image_b": b.cpu().numpy()})
        np.testing.assert_allclose(match.flow_on_host(), expected["flow"], atol=1e-3)
        with torch.cuda.stream(stream):
            confidence = torch.from_dlpack(match.confidence).cpu().numpy()
        np.testing.assert_allclose(confidence, expected["confidence"], atol=1e-3)


def test_torch_tensors_in_the_callers_stream(engine: Path) -> None:
    torch = pytest.importorskip("torch")
    backend = TensorRTBackend(engine)
    images = {name: torch.rand(2, 3, 256, 256, device="cuda") for name in ("image_a", "image_b")}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    results: dict[str, Any] = backend.run_device(images, stream=stream)
    expected = backend.run({name: value.cpu().numpy() for name, value in images.items()})
    with torch.cuda.stream(stream):
        flow = torch.from_dlpack(results["flow"]).cpu().numpy()
    np.testing.assert_allclose(flow, expected["flow"], atol=1e-3)
