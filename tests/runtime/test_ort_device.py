"""ONNX files on arrays that are on a GPU, on stand-ins: the memory of both is the host's, ONNX Runtime is real."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fake_cuda import FakeCuda, FakeView

from cats.core.errors import BackendError, InputError
from cats.runtime import Matcher
from cats.runtime.backends import cuda as cuda_module
from cats.runtime.backends import ort as backend_module
from cats.runtime.backends.ort import OnnxRuntimeBackend
from cats.runtime.backends.ort_device import DeviceRuns
from cats.runtime.backends.ort_providers import CUDA
from cats.runtime.device import DeviceMatch


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(cuda_module, "require", lambda name, **_: fake.modules()[name])
    return fake


@pytest.fixture
def matcher(cuda: FakeCuda, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A matcher whose backend takes the host for a GPU."""
    monkeypatch.setattr(backend_module, "DeviceRuns", lambda *args: DeviceRuns(*args, memory="cpu"))
    with Matcher(model_file, provider="cpu", threads=1) as opened:
        opened.backend.provider = CUDA
        yield opened


def images(batch: int, seed: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((batch, 3, 256, 256)).astype(np.float32) for name in ("image_a", "image_b")}


@pytest.mark.parametrize("stream", [None, 33, 0])
def test_results_equal_those_of_host_arrays(matcher: Any, cuda: FakeCuda, stream: int | None) -> None:
    for batch in (1, 3):
        feeds = images(batch, seed=batch)
        expected = matcher.backend.run(feeds)
        cuda.log.clear()
        found = matcher.backend.run_device({name: FakeView(value) for name, value in feeds.items()}, stream=stream)
        assert cuda.log == ["sync"] * (1 if stream is None else 2)  # inputs, memory; no copy
        for name in ("flow", "confidence"):
            assert found[name].shape == expected[name].shape
            np.testing.assert_array_equal(found[name].to_host(), expected[name])
    assert cuda.depth == 0
    assert cuda.streams == 1  # runs after one another share it


def test_the_matcher_takes_arrays_on_the_gpu(matcher: Any) -> None:
    feeds = images(2)
    a, b = (FakeView(value) for value in feeds.values())
    match = matcher.match(a, b, forward_backward=True)
    assert isinstance(match, DeviceMatch)
    turned = {"image_a": feeds["image_b"], "image_b": feeds["image_a"]}
    np.testing.assert_array_equal(match.flow_on_host(), matcher.backend.run(feeds)["flow"])
    np.testing.assert_array_equal(match.confidence_on_host(), matcher.backend.run(feeds)["confidence"])
    np.testing.assert_array_equal(match.backward_flow.to_host(), matcher.backend.run(turned)["flow"])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 3, 256, 256), (2, 3, 256, 256)], r"one batch size, not image_a \(1, 3, 256, 256\), image_b \(2,"),
        ([(1, 3, 256, 255), (1, 3, 256, 255)], r"takes image_a \(batch, 3, 256, 256\), not \(1, 3, 256, 255\)"),
        ([(3, 256, 256), (3, 256, 256)], r"takes image_a \(batch, 3, 256, 256\), not \(3, 256, 256\)"),
        ([(0, 3, 256, 256), (0, 3, 256, 256)], r"takes image_a .*, not \(0, 3, 256, 256\)"),
    ],
)
def test_shapes_are_compared_by_name(matcher: Any, cuda: FakeCuda, shapes: list, message: str) -> None:
    a, b = (FakeView(np.zeros(shape, np.float32)) for shape in shapes)
    with pytest.raises(InputError, match=message):
        matcher.match(a, b)
    assert cuda.depth == 0
    good = [FakeView(value) for value in images(1).values()]
    assert matcher.match(*good).flow.shape == (1, 2, 16, 16)


def test_a_device_that_fails_is_named(matcher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory")

    monkeypatch.setattr(matcher.backend._session, "run_with_iobinding", fail)
    with pytest.raises(BackendError, match=r"onnxruntime failed on GPU 0: .*out of memory"):
        matcher.match(*(FakeView(value) for value in images(1).values()))


def test_cuda_core_is_named_where_it_is_missing(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = OnnxRuntimeBackend(model_file, provider="cpu", threads=1)
    backend.provider = CUDA
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(BackendError, match=r"arrays that are on a GPU.*cats-toolkit\[gpu\]"):
        backend.run_device({name: FakeView(value) for name, value in images(1).items()})


def test_the_binding_of_pointers_is_onnx_runtimes(model_file: Path) -> None:
    """What the runs call exists in the installed version, with these arguments."""
    session = onnxruntime.InferenceSession(str(model_file), providers=["CPUExecutionProvider"])
    binding, feeds = session.io_binding(), images(1)
    for name, value in feeds.items():
        binding.bind_input(name, "cpu", 0, value.dtype.type, list(value.shape), value.ctypes.data)
    flow = np.zeros((1, 2, 16, 16), np.float32)
    binding.bind_output("flow", "cpu", 0, np.float32, [1, 2, 16, 16], flow.ctypes.data)
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(flow, session.run(["flow"], feeds)[0])
