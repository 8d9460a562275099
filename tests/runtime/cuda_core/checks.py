"""The TensorRT backend on the real cuda-core and a CUDA driver that computes on the host; run by test_cuda_core.py."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver
from cuda.core.utils import StridedMemoryView
from fake_cuda import FakeTensorRT
from tiny_onnx import tiny_metadata

from cats.core.errors import BackendError, InputError
from cats.core.files import sha256_file
from cats.runtime.backends import tensorrt as backend_module
from cats.runtime.backends.tensorrt import TensorRTBackend
from cats.runtime.hardware import nvidia
from cats.runtime.tensorrt.flavours import FLAVOURS

LOG = Path(os.environ["CATS_DRIVER_LOG"])
HOST = ctypes.CDLL("libcuda.so.1")
HOST.test_other_context.restype = ctypes.c_void_p


class HostFunctions:
    """Runs the work of TensorRT's stand-in in the order of a stream, so that a capture records it."""

    def __init__(self) -> None:
        self._kept: list[Any] = []

    def execute(self, stream_handle: int, compute: Callable[[], None]) -> None:
        call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: compute())
        self._kept.append(call)
        assert HOST.cuLaunchHostFunc(ctypes.c_void_p(stream_handle), call, None) == 0


class Foreign:
    """An array of another library on the GPU: PyCUDA's, whose interface names no stream, or with a stream."""

    def __init__(self, values: np.ndarray, stream: int | None = None) -> None:
        memory = ctypes.c_void_p()
        assert HOST.cuMemAllocHost_v2(ctypes.byref(memory), ctypes.c_size_t(values.nbytes)) == 0
        ctypes.memmove(memory.value, np.ascontiguousarray(values).ctypes.data, values.nbytes)
        self.address = memory.value
        self.__cuda_array_interface__ = {
            "shape": values.shape,
            "strides": values.strides,
            "typestr": values.dtype.str,
            "data": (memory.value, False),
            "stream": stream,
            "version": 3,
        }


@pytest.fixture(autouse=True)
def contexts() -> Any:
    """The caller has a context of its own, as PyCUDA makes one, and has it back after every call."""
    HOST.cuCtxPushCurrent_v2(ctypes.c_void_p(HOST.test_other_context()))
    yield
    assert HOST.test_depth() == 1
    current = ctypes.c_void_p()
    HOST.cuCtxPopCurrent_v2(ctypes.byref(current))
    assert current.value == HOST.test_other_context()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TensorRTBackend]:
    def build(fixed: int | None = None, **options: Any) -> TensorRTBackend:
        library = FakeTensorRT(HostFunctions(), "tensorrt-11.4", fixed=fixed, width=64)
        monkeypatch.setattr(backend_module, "find_flavour", lambda _: (FLAVOURS["tensorrt"], library))
        plan = tmp_path / "x.plan"
        plan.write_bytes(b"ftrt" + bytes(60))
        engine = {
            "flavour": "tensorrt",
            "version": "1.2.3",
            "targets": ["sm89"],
            "network": "network",
            "profiles": [] if fixed else [{"x": {"min": [1, 64], "opt": [1, 64], "max": [4, 64]}}],
            "sha256": sha256_file(plan),
            "source": "x.onnx",
        }
        Path(f"{plan}.json").write_text(tiny_metadata(engine=engine).to_json())
        return TensorRTBackend(plan, **options)

    return build


@pytest.fixture
def log() -> Callable[[], list[str]]:
    """What went into streams since the last call, of the driver's log; or what begins with a word."""
    at = [LOG.stat().st_size if LOG.exists() else 0]
    others = ("push", "pop", "pin ", "allocate", "stream", "free")

    def read(word: str | None = None) -> list[str]:
        text = LOG.read_bytes()[at[0] :].decode()
        at[0] += len(text)
        lines = text.splitlines()
        return [line for line in lines if (not line.startswith(others) if word is None else line.startswith(word))]

    return read


def stream() -> int:
    """A stream of the caller."""
    return int(driver.cuStreamCreate(1)[1])


def name(handle: int) -> int:
    """As the log calls a stream."""
    return handle if handle <= 2 else handle & 0xFFFF


def feed(batch: int, start: float = 0) -> np.ndarray:
    return np.arange(start, start + batch * 64, dtype=np.float32).reshape(batch, 64)


def test_the_driver_is_the_hosts() -> None:
    assert [gpu.name for gpu in nvidia().gpus] == ["Host GPU"]


def test_host_arrays(make: Any, log: Any) -> None:
    backend = make()
    for batch in (1, 3, 1):
        x = feed(batch, start=batch)
        results = backend.run({"x": x})
        np.testing.assert_array_equal(results["y"], 2 * x + 1)
        np.testing.assert_array_equal(results["z"], -x)
        lines = [line.split()[0] for line in log()]
        assert lines == ["pinned->device", "device->pinned", "device->pinned", "sync"]


def test_fixed_shapes_are_replayed_as_a_graph(make: Any, log: Any) -> None:
    backend = make(fixed=2)
    for start in (0, 5, 9):
        log()
        results = backend.run({"x": feed(2, start)})
        np.testing.assert_array_equal(results["y"], 2 * feed(2, start) + 1)
        np.testing.assert_array_equal(results["z"], -feed(2, start))
    launch, sync = log()
    assert launch.endswith("of 4")  # copy in, compute, two copies out
    assert sync.startswith("sync")


def test_arrays_of_other_libraries_in_the_callers_stream(make: Any, log: Any) -> None:
    backend, ours, theirs = make(), stream(), stream()
    x = feed(2)
    gc.collect()  # what other tests leave
    log()
    results = backend.run_device({"x": Foreign(x)}, stream=ours)
    assert log() == [f"record {name(ours)}"]  # neither a copy nor a wait
    backend.run_device({"x": Foreign(x, stream=theirs)}, stream=ours)
    assert log() == [f"record {name(theirs)}", f"{name(ours)} waits for {name(theirs)}", f"record {name(ours)}"]
    assert results["y"].stream == ours
    np.testing.assert_array_equal(results["y"].to_host(), 2 * x + 1)


@pytest.mark.parametrize("default", [0, 1])
def test_the_default_stream(make: Any, log: Any, default: int) -> None:
    backend = make()
    results = backend.run_device({"x": Foreign(feed(1))}, stream=default)
    np.testing.assert_array_equal(results["z"].to_host(), -feed(1))
    assert any(line == "sync 1" for line in log())


def test_results_are_inputs_of_the_next_run_in_another_stream(make: Any, log: Any) -> None:
    """DLPack both ways: what the one stream computes, the other waits for on the GPU."""
    backend, first, second = make(), stream(), stream()
    results = backend.run_device({"x": Foreign(feed(2))}, stream=first)
    log()
    again = backend.run_device({"x": results["y"]}, stream=second)
    lines = log()
    assert lines[:2] == [f"record {name(first)}", f"{name(second)} waits for {name(first)}"]
    assert not any("sync" in line or "->" in line for line in lines)
    np.testing.assert_array_equal(again["y"].to_host(), 2 * (2 * feed(2) + 1) + 1)


def test_memory_lives_as_long_as_who_took_it(make: Any, log: Any) -> None:
    backend, ours = make(), stream()
    result = backend.run_device({"x": Foreign(feed(1))}, stream=ours)["y"]
    taken = StridedMemoryView.from_dlpack(result, stream_ptr=ours)
    assert (taken.ptr, taken.shape, taken.dtype) == (result.address, (1, 64), np.float32)
    assert result.__dlpack_device__() == (2, 0)
    gc.collect()
    log()
    del result
    gc.collect()
    assert log("free") == []
    del taken
    gc.collect()
    assert log("free") == [f"free in {name(ours)}"]


@pytest.fixture
def lent(make: Any) -> Callable[[int], tuple[TensorRTBackend, int, Any]]:
    """A backend, a stream, and all that is left of a result in it: what was taken by DLPack for another stream."""

    def lend(reader: int) -> tuple[TensorRTBackend, int, Any]:
        backend, ours = make(), stream()
        result = backend.run_device({"x": Foreign(feed(1))}, stream=ours)["y"]
        taken = StridedMemoryView.from_dlpack(result, stream_ptr=reader)
        del result
        gc.collect()
        return backend, ours, taken

    return lend


def frees(log: Callable[..., list[str]]) -> list[str]:
    """What a release puts into streams."""
    return [line for line in log("") if not line.startswith(("push", "pop"))]


@pytest.mark.parametrize("default", [False, True])
def test_memory_is_freed_behind_who_read_it(lent: Any, log: Any, default: bool) -> None:
    reader = 1 if default else stream()
    _, ours, taken = lent(reader)
    log()
    assert frees(log) == []
    del taken
    gc.collect()
    read, own = name(reader), name(ours)
    assert frees(log) == [f"record {read}", f"{own} waits for {read}", f"free in {own}"]


def test_memory_is_freed_from_any_thread(lent: Any, log: Any) -> None:
    """Where no context is current, and the stream is the default one."""
    reader = stream()
    backend, ours, taken = lent(reader)
    kept = [taken, backend.run_device({"x": Foreign(feed(1))}, stream=0)["y"]]
    del taken
    gc.collect()
    log()
    thread = threading.Thread(target=kept.clear)
    thread.start()
    thread.join()
    read, own = name(reader), name(ours)
    assert frees(log) == ["free in 1", f"record {read}", f"{own} waits for {read}", f"free in {own}"]


def test_who_names_no_stream_is_waited_for_on_the_host(make: Any, log: Any) -> None:
    backend, ours = make(), stream()
    result = backend.run_device({"x": Foreign(feed(1))}, stream=ours)["y"]
    log()
    interface = result.__cuda_array_interface__
    assert log("sync") == [f"sync {name(ours)}"]
    assert (interface["stream"], interface["data"]) == (None, (result.address, False))
    del result
    gc.collect()
    assert frees(log) == ["sync all", f"free in {name(ours)}"]


def test_memory_stays_while_its_reader_is_captured(lent: Any, log: Any) -> None:
    reader, x = stream(), Foreign(feed(1))
    backend, ours, taken = lent(reader)
    assert HOST.cuStreamBeginCapture_v2(ctypes.c_void_p(reader), 0) == 0
    log()
    del taken
    gc.collect()
    assert frees(log) == []
    HOST.cuStreamEndCapture(ctypes.c_void_p(reader), None)
    backend.run_device({"x": x}, stream=ours)
    lines = frees(log)
    assert lines[:3] == [f"record {name(reader)}", f"{name(ours)} waits for {name(reader)}", f"free in {name(ours)}"]
    assert lines[3].startswith("allocate")


def test_a_reader_that_cannot_be_reached_is_waited_for_on_the_host(lent: Any, log: Any) -> None:
    """Its stream is gone, or was the default one of a thread other than this."""
    reader = stream()
    _, ours, taken = lent(reader)
    HOST.cuStreamDestroy_v2(ctypes.c_void_p(reader))
    log()
    del taken
    gc.collect()
    assert frees(log)[-2:] == ["sync all", f"free in {name(ours)}"]
    _, ours, taken = lent(2)
    kept = [taken]
    del taken
    log()
    thread = threading.Thread(target=kept.clear)
    thread.start()
    thread.join()
    assert frees(log)[-2:] == ["sync all", f"free in {name(ours)}"]


def test_results_that_outlive_the_backend_and_the_process(tmp_path: Path) -> None:
    """What is left at exit says nothing, and a closed backend's results are there."""
    code = (
        "import numpy as np; from cats.runtime.backends.cuda import CudaContext, DeviceArray\n"
        "from cuda.core.utils import StridedMemoryView\n"
        "cuda = CudaContext(0, extra='tensorrt')\n"
        "with cuda.current():\n"
        "    ours, reader = cuda.take_stream(), cuda.take_stream()\n"
        "    left = DeviceArray(cuda.device_memory(256, ours), (64,), np.dtype(np.float32), ours, cuda)\n"
        "    cycle = [StridedMemoryView.from_dlpack(left, stream_ptr=int(reader.handle)), left]\n"
        "    cycle.append(cycle)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_larger_batches_are_several_runs(make: Any, log: Any) -> None:
    backend, ours = make(), stream()
    log()
    results = backend.run_device({"x": Foreign(feed(9))}, stream=ours)
    assert log() == [f"record {name(ours)}"]
    np.testing.assert_array_equal(results["y"].to_host(), 2 * feed(9) + 1)


def test_the_callers_context_and_stream(make: Any, log: Any) -> None:
    """As PyCUDA's objects, which have their address as ``handle``."""

    class Handle:
        def __init__(self, handle: int) -> None:
            self.handle = handle

    ours = stream()
    backend = make(context=Handle(HOST.test_other_context()), stream=Handle(ours))
    x = feed(2)
    np.testing.assert_array_equal(backend.run({"x": x})["y"], 2 * x + 1)
    assert log("sync") == [f"sync {name(ours)}"]
    backend.run({"x": x})
    assert set(log("push")) == {"push other"}
    backend.run({"x": x})
    assert log("stream") == []


@pytest.mark.parametrize("batches", [1, 6])
def test_threads_share_the_engine(make: Any, log: Any, batches: int) -> None:
    backend, wrong = make(), []

    def work(number: int) -> None:
        for _ in range(batches):
            x = feed(2, start=number)
            if not np.array_equal(backend.run({"x": x})["y"], 2 * x + 1):
                wrong.append(number)

    for number in range(4):  # the driver of the host is for one thread at a time
        thread = threading.Thread(target=work, args=(number,))
        thread.start()
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 64), np.float32), "the host"),
        (object(), "no array on a GPU"),
    ],
)
def test_arrays_that_are_not_on_the_gpu(make: Any, array: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make().run_device({"x": array})


def test_a_gpu_without_memory_is_named(make: Any) -> None:
    backend = make()
    with backend._cuda.current():
        ours = backend._cuda.take_stream()
    with pytest.raises(BackendError, match="CUDA on GPU 0 failed: CUDA_ERROR_OUT_OF_MEMORY"), backend._cuda.current():
        backend._cuda.device_memory(1 << 40, ours)


def test_arrays_that_do_not_fit(make: Any) -> None:
    with pytest.raises(InputError, match=r"takes x \(batch, 64\), batch 1 to 4, not \(1, 63\)"):
        make().run_device({"x": Foreign(feed(1)[:, :63].copy())})
    with pytest.raises(InputError, match="is float64"):
        make().run_device({"x": Foreign(feed(1).astype(np.float64))})
    turned = Foreign(feed(4))
    turned.__cuda_array_interface__ |= {"shape": (4, 64), "strides": (4, 16)}
    with pytest.raises(InputError, match="not contiguous"):
        make().run_device({"x": turned})


def test_tensors_of_torch_on_the_host(make: Any) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match="the host"):
        make().run_device({"x": torch.zeros(1, 64)})
