"""The TensorRT backend on stand-ins that compute on the host: what is called, in which order, with which memory."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import fake_cuda
import numpy as np
import pytest
from fake_cuda import FakeCuda, FakeTensorRT, FakeView
from tiny_onnx import tiny_metadata

from cats.core.errors import BackendError, InputError, ModelFileError
from cats.core.files import sha256_file
from cats.runtime import Matcher
from cats.runtime.backends import cuda as cuda_module
from cats.runtime.backends import tensorrt as backend_module
from cats.runtime.backends.cuda import DeviceArray
from cats.runtime.backends.tensorrt import TensorRTBackend
from cats.runtime.device import DeviceMatch, is_device_array
from cats.runtime.hardware import Gpu, Nvidia
from cats.runtime.tensorrt.flavours import FLAVOURS

TENSORRT = ["tensorrt-10.12", "tensorrt-11.4"]
RELEASES = [*TENSORRT, "tensorrt-rtx"]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(cuda_module, "require", lambda name, **_: fake.modules()[name])
    gpus = (Gpu(0, "Fake GPU", (8, 9), 1 << 34),)
    monkeypatch.setattr(backend_module, "nvidia", lambda: Nvidia((13, 0), gpus, None))
    return fake


@pytest.fixture
def make(cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``make(release, fixed=batch, engine={changed sidecar}, **options)`` -> backend, library."""

    def build(release: str, fixed: int | None = None, engine: Any = None, width: int = 3, **options: Any) -> Any:
        library = FakeTensorRT(cuda, release, fixed=fixed, width=width)
        name = "tensorrt-rtx" if release == "tensorrt-rtx" else "tensorrt"
        monkeypatch.setattr(backend_module, "find_flavour", lambda _: (FLAVOURS[name], library))
        plan = tmp_path / "x.plan"
        plan.write_bytes((b"vtrt" if name == "tensorrt-rtx" else b"ftrt") + bytes(60))
        profiles = [] if fixed else [{"x": {"min": [1, width], "opt": [1, width], "max": [4, width]}}]
        described = {
            "flavour": name,
            "version": "1.2.3",
            "targets": [],
            "network": "network",
            "profiles": profiles,
            "sha256": sha256_file(plan),
            "source": "x.onnx",
            **(engine or {}),
        }
        Path(f"{plan}.json").write_text(tiny_metadata(engine=described).to_json())
        return TensorRTBackend(plan, **options), library

    return build


def feed(batch: int, start: float = 0) -> np.ndarray:
    return np.arange(start, start + batch * 3, dtype=np.float32).reshape(batch, 3)


def check(backend: TensorRTBackend, x: np.ndarray) -> None:
    results = backend.run({"x": x})
    np.testing.assert_array_equal(results["y"], 2 * x + 1)
    np.testing.assert_array_equal(results["z"], -x)


@pytest.mark.parametrize("release", RELEASES)
def test_dynamic_batches_run_in_stream_order(make: Any, cuda: FakeCuda, release: str) -> None:
    backend, library = make(release)
    assert backend.max_batch == 4
    assert not backend.cuda_graph
    for batch in (1, 3, 1):
        cuda.log.clear()
        check(backend, feed(batch, start=batch))
        assert cuda.log == ["pinned->device", "execute", "device->pinned", "device->pinned", "sync"]
    assert len(library.contexts) == 2  # one for each shape
    assert cuda.depth == 0


@pytest.mark.parametrize("release", TENSORRT)
def test_fixed_shapes_are_replayed_as_a_graph(make: Any, cuda: FakeCuda, release: str) -> None:
    backend, _ = make(release, fixed=2)
    assert "CUDA graph" in backend.describe()
    check(backend, feed(2))
    cuda.log.clear()
    check(backend, feed(2, start=9))
    assert cuda.log == ["launch", "sync"]


def test_graphs_of_several_shapes_have_contexts_of_their_own(make: Any, cuda: FakeCuda) -> None:
    backend, library = make("tensorrt-11.4", cuda_graph=True)
    for batch in (1, 2, 1, 2):
        check(backend, feed(batch, start=batch))
    assert cuda.log.count("launch") == 2
    assert len(library.contexts) == 2


def test_graphs_are_off_when_asked(make: Any, cuda: FakeCuda) -> None:
    backend, _ = make("tensorrt-11.4", fixed=2, cuda_graph=False)
    check(backend, feed(2))
    check(backend, feed(2))
    assert "launch" not in cuda.log


def test_tensorrt_rtx_captures_by_itself(make: Any, cuda: FakeCuda) -> None:
    backend, library = make("tensorrt-rtx", fixed=2)
    check(backend, feed(2))
    check(backend, feed(2))
    assert "launch" not in cuda.log
    assert [config.cuda_graph_strategy for _, config in library.contexts] == [1]


def test_results_stay_after_the_next_run(make: Any) -> None:
    backend, _ = make("tensorrt-11.4", fixed=1)
    first = backend.run({"x": feed(1)})["y"]
    backend.run({"x": feed(1, start=50)})
    np.testing.assert_array_equal(first, 2 * feed(1) + 1)


def test_each_thread_has_its_own_context_and_stream(make: Any) -> None:
    backend, library = make("tensorrt-11.4")
    threads = [threading.Thread(target=check, args=(backend, feed(2, start=n))) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(library.contexts) == 3


def test_shapes_outside_the_profile_are_named(make: Any, cuda: FakeCuda) -> None:
    backend, _ = make("tensorrt-11.4")
    with pytest.raises(InputError, match=r"takes x \(batch, 3\), batch 1 to 4, not \(9, 3\)"):
        backend.run({"x": feed(9)})
    assert cuda.depth == 0  # the caller's context is back


class PyCudaStream:
    handle = 555


class TorchStream:
    cuda_stream = 777


@pytest.mark.parametrize("stream", [PyCudaStream(), TorchStream(), 999])
def test_device_arrays_run_in_the_callers_stream_without_waiting(make: Any, cuda: FakeCuda, stream: Any) -> None:
    backend, _ = make("tensorrt-11.4")
    x = feed(2)
    cuda.log.clear()
    results = backend.run_device({"x": FakeView(x)}, stream=stream)
    handle = stream if isinstance(stream, int) else getattr(stream, "handle", None) or stream.cuda_stream
    assert cuda.log == ["execute", f"record {handle}"]  # neither a copy nor a sync
    result = results["y"]
    assert isinstance(result, DeviceArray)
    assert result.stream == handle
    interface = result.__cuda_array_interface__
    assert cuda.log[2:] == ["sync"]  # not all who take this look at a stream: they are given what is complete
    assert (interface["shape"], interface["typestr"], interface["stream"]) == ((2, 3), "<f4", None)
    memory = (fake_cuda.ctypes.c_float * 6).from_address(interface["data"][0])
    np.testing.assert_array_equal(np.frombuffer(memory, np.float32), (2 * x + 1).ravel())


@pytest.mark.parametrize("fixed", [None, 3])
def test_larger_batches_on_the_gpu_are_several_runs(make: Any, cuda: FakeCuda, fixed: int | None) -> None:
    backend, library = make("tensorrt-11.4", fixed=fixed, width=64)
    x = np.arange(9 * 64, dtype=np.float32).reshape(9, 64)
    cuda.log.clear()
    results = backend.run_device({"x": FakeView(x)}, stream=33)
    assert cuda.log == ["execute"] * 3 + ["record 33"]
    assert len(library.contexts) == (1 if fixed else 2)
    np.testing.assert_array_equal(results["y"].to_host(), 2 * x + 1)
    np.testing.assert_array_equal(results["z"].to_host(), -x)
    if fixed:
        with pytest.raises(InputError, match=r"takes x \(3, 64\), not \(1, 64\)"):
            backend.run_device({"x": FakeView(x[:7])})


@pytest.mark.parametrize(
    ("consumer", "order"),
    [({"stream": 44}, ["44 waits for stream 33"]), ({}, ["1 waits for stream 33"]), ({"stream": 33}, [])],
)
def test_who_takes_a_result_by_dlpack_waits_for_it_on_the_gpu(
    make: Any, cuda: FakeCuda, consumer: dict, order: list[str]
) -> None:
    backend, _ = make("tensorrt-11.4")
    result = backend.run_device({"x": FakeView(feed(1))}, stream=33)["y"]
    cuda.log.clear()
    assert result.__dlpack_device__() == (2, 0)
    assert result.__dlpack__(max_version=(1, 0), **consumer).buffer.handle == result.address
    assert cuda.log == order
    result.__dlpack__(stream=-1)
    assert cuda.log == order
    assert cuda.depth == 0


def test_threads_that_end_leave_their_stream_to_others(make: Any, cuda: FakeCuda) -> None:
    backend, _ = make("tensorrt-11.4")
    for number in range(5):
        thread = threading.Thread(target=check, args=(backend, feed(2, start=number)))
        thread.start()
        thread.join()
    assert cuda.streams == 1


def test_results_on_the_gpu_come_to_the_host_when_asked(make: Any, cuda: FakeCuda) -> None:
    backend, _ = make("tensorrt-11.4")
    result = backend.run_device({"x": FakeView(feed(2))}, stream=33)["y"]
    cuda.log.clear()
    np.testing.assert_array_equal(result.to_host(), 2 * feed(2) + 1)
    assert cuda.log == ["device->pinned", "sync"]
    assert cuda.depth == 0


class Both:
    """An engine with the model's names, which computes with the stand-in's."""

    def __init__(self, backend: TensorRTBackend) -> None:
        self.backend, self.name = backend, backend.name

    def run_device(self, feeds: dict[str, Any], stream: Any = None) -> dict[str, DeviceArray]:
        assert set(feeds) == {"image_a", "image_b"}
        results = self.backend.run_device({"x": feeds["image_a"]}, stream=stream)
        return {"flow": results["y"], "confidence": results["z"]}

    def close(self) -> None:
        self.backend.close()


@pytest.fixture
def matcher(make: Any, model_file: Path) -> Any:
    with Matcher(model_file) as matcher:
        matcher.backend = Both(make("tensorrt-11.4")[0])
        yield matcher


def test_the_matcher_takes_arrays_on_the_gpu(matcher: Any, cuda: FakeCuda) -> None:
    a, b = feed(2), feed(2, start=7)
    cuda.log.clear()
    match = matcher.match(FakeView(a), FakeView(b), stream=44, forward_backward=True)
    assert isinstance(match, DeviceMatch)
    assert cuda.log == ["execute", "record 44", "execute", "record 44"]  # neither a copy nor a sync
    np.testing.assert_array_equal(match.flow_on_host(), 2 * a + 1)
    np.testing.assert_array_equal(match.confidence_on_host(), -a)
    np.testing.assert_array_equal(match.backward_flow.to_host(), 2 * b + 1)


def test_batches_on_the_gpu_are_one_run_for_each_array(matcher: Any, cuda: FakeCuda) -> None:
    pairs = [(FakeView(feed(n, start=n)), FakeView(feed(n))) for n in (1, 3)]
    cuda.log.clear()
    first, second = matcher.match_batch(pairs, stream=44)
    assert cuda.log.count("execute") == 2
    assert "sync" not in cuda.log
    np.testing.assert_array_equal(second.flow_on_host(), 2 * feed(3, start=3) + 1)
    np.testing.assert_array_equal(first.flow_on_host(), 2 * feed(1, start=1) + 1)
    with pytest.raises(InputError, match="batch 1 to 4"):  # rows of 12 bytes are no addresses for a GPU
        matcher.match(FakeView(feed(9)), FakeView(feed(9)))


def test_what_the_matcher_does_not_take_on_the_gpu(matcher: Any, model_file: Path) -> None:
    on_gpu = FakeView(feed(1))
    with pytest.raises(InputError, match=r"image b \(ndarray\) is not on a GPU"):
        matcher.match(on_gpu, feed(1))
    with pytest.raises(InputError, match="a stream"):
        matcher.match("a.jpg", "b.jpg", stream=3)
    with (
        Matcher(model_file) as on_host,
        pytest.raises(
            BackendError, match=r"CPUExecutionProvider takes no arrays on a GPU.*provider 'cuda'.*cats-build"
        ),
    ):
        on_host.match(on_gpu, on_gpu)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_arrays_on_the_host_are_images(library: str) -> None:
    module = pytest.importorskip(library)
    assert not is_device_array(module.zeros(3))
    assert not is_device_array("a.jpg")
    assert is_device_array(type("Array", (), {"__cuda_array_interface__": {}})())


def test_the_default_stream_goes_by_the_name_that_protocols_allow(make: Any, cuda: FakeCuda) -> None:
    backend, _ = make("tensorrt-11.4")
    result = backend.run_device({"x": FakeView(feed(1))}, stream=0)["y"]
    assert result.stream == 1


def test_shapes_are_compared_before_the_engine_sees_them(make: Any, cuda: FakeCuda) -> None:
    backend, library = make("tensorrt-11.4")
    for x in (np.zeros((1, 2), np.float32), np.zeros((1, 3, 1), np.float32), np.zeros(3, np.float32)):
        for run, value in ((backend.run, x), (backend.run_device, FakeView(x))):
            with pytest.raises(InputError, match=r"takes x \(batch, 3\), batch 1 to 4, not \("):
                run({"x": value})
    assert library.contexts == []


def test_another_stream_waits_for_the_working_memory(make: Any, cuda: FakeCuda) -> None:
    backend, _ = make("tensorrt-11.4")
    backend.run_device({"x": FakeView(feed(1))}, stream=11)
    backend.run_device({"x": FakeView(feed(1))}, stream=22)
    assert "22 waits for event 11" in cuda.log
    assert "sync" not in cuda.log


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (FakeView(feed(1), device=-1), "in the memory of the host"),
        (FakeView(feed(1), device=3), "in the memory of GPU 3"),
        (FakeView(feed(1).astype(np.float64)), "is float64, the model takes float32"),
        (FakeView(feed(3).T), "not contiguous"),
        (object(), "no array on a GPU"),
    ],
)
def test_arrays_that_cannot_be_taken_as_they_are(make: Any, array: Any, message: str) -> None:
    backend, _ = make("tensorrt-11.4")
    with pytest.raises(InputError, match=message):
        backend.run_device({"x": array})


def test_the_callers_context_and_stream(make: Any, cuda: FakeCuda) -> None:
    class PyCudaContext:
        handle = 4242

    backend, _ = make("tensorrt-11.4", fixed=1, context=PyCudaContext(), stream=PyCudaStream())
    for _ in range(2):
        check(backend, feed(1))
    assert set(cuda.contexts) == {4242}
    assert "launch" not in cuda.log  # the caller may be capturing that stream
    with pytest.raises(InputError, match="no CUDA stream"):
        backend.run_device({"x": FakeView(feed(1))}, stream="default")


@pytest.mark.parametrize(
    ("engine", "options", "message"),
    [
        ({"version": "9.9"}, {}, r"built with tensorrt 9.9, installed is 1.2.3.*cats-build x.onnx"),
        ({"version": "1.10.0", "version_compatible": True}, {}, r"built with tensorrt 1.10.0, installed is 1.2.3"),
        ({"targets": ["sm86"]}, {}, r"built for sm86 and Fake GPU is sm89.*cats-build x.onnx"),
        ({"network": "other"}, {}, "holds the network network, its sidecar other"),
        ({}, {"device": 1}, "no GPU 1"),
    ],
)
def test_engines_that_do_not_fit(make: Any, engine: dict, options: dict, message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        make("tensorrt-11.4", engine=engine, **options)
    assert isinstance(caught.value, BackendError) or "network" in message


def test_a_gpu_that_the_library_does_not_run_on(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "nvidia", lambda: Nvidia((13, 0), (Gpu(0, "H200", (9, 0), 1 << 34),), None))
    with pytest.raises(BackendError, match=r"8.0, 8.6, 8.9, 12.0 or later, and H200 has 9.0.*instead, x.onnx"):
        make("tensorrt-rtx")


def test_version_compatible_engines_run_on_newer_releases(make: Any) -> None:
    backend, library = make("tensorrt-11.4", engine={"version": "1.0", "version_compatible": True})
    assert library.Runtime(None).engine_host_code_allowed is True
    check(backend, feed(1))


def test_stripped_engines_take_their_weights_from_the_onnx_file(make: Any, make_model: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"put x.onnx, which has them, beside it"):
        make("tensorrt-11.4", engine={"stripped": True})
    make_model("x.onnx", weights_sha256="1" * 64)
    with pytest.raises(ModelFileError, match="has other weights"):
        make("tensorrt-11.4", engine={"stripped": True})
    source = make_model("x.onnx")
    backend, library = make("tensorrt-11.4", engine={"stripped": True})
    assert library.refitted == [str(source)]
    check(backend, feed(1))


def test_the_stand_ins_have_only_names_that_cuda_core_has() -> None:
    core = pytest.importorskip("cuda.core", reason="needs cuda-core")
    graph = pytest.importorskip("cuda.core.graph")
    real = {
        fake_cuda.FakeBuffer: core.Buffer,
        fake_cuda.FakeStream: core.Stream,
        fake_cuda.FakeGraphBuilder: graph.GraphBuilder,
        fake_cuda.FakeGraph: graph.Graph,
    }
    ours = {"do", "capturing", "by_handle"}
    for fake, cls in real.items():
        public = {name for name in vars(fake) if not name.startswith("_")} - ours
        assert public <= set(dir(cls)), fake
    driver = pytest.importorskip("cuda.bindings.driver")
    fake = FakeCuda()
    for module, stand_in in ((core, fake.core), (driver, fake.driver)):
        assert set(vars(stand_in)) <= set(dir(module))
