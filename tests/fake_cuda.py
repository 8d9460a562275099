"""Stand-ins for cuda-core and TensorRT that compute on the host and keep a record of what was asked of them.

The TensorRT one has exactly the names of a committed list: a call to anything else fails here as it would there.
"""

from __future__ import annotations

import ctypes
import json
import types
from pathlib import Path
from typing import Any

import numpy as np

LISTS = Path(__file__).resolve().parent / "runtime" / "tensorrt_api"


class FakeBuffer:
    def __init__(self, size: int, kind: str, log: list[str]) -> None:
        self._memory, self._kind, self._log = ctypes.create_string_buffer(size), kind, log
        self.size, self.handle = size, ctypes.addressof(self._memory)

    def copy_from(self, src: FakeBuffer, *, stream: Any, options: Any = None) -> None:
        assert src.size == self.size
        stream.do(f"{src._kind}->{self._kind}", lambda: ctypes.memmove(self.handle, src.handle, self.size))

    @staticmethod
    def from_handle(ptr: int, size: int, *, owner: Any) -> FakeBuffer:
        shared = FakeBuffer(0, "device", [])
        shared.handle, shared.size, shared.owner = ptr, size, owner
        return shared

    def close(self) -> None:
        pass

    def copy_to(self, dst: FakeBuffer, *, stream: Any, options: Any = None) -> FakeBuffer:
        dst.copy_from(self, stream=stream)
        return dst


class FakeStream:
    capturing: FakeGraphBuilder | None = None
    by_handle: dict[int, FakeStream] = {}  # noqa: RUF012

    def __init__(self, handle: int, log: list[str]) -> None:
        self.handle, self._log = handle, log
        self.by_handle[handle] = self

    def do(self, name: str, action: Any) -> None:
        if self.capturing is not None:
            self.capturing.actions.append((name, action))
        else:
            self._log.append(name)
            action()

    def sync(self) -> None:
        assert self.capturing is None, "synchronising a capturing stream"
        self._log.append("sync")

    def record(self, event: Any = None, options: Any = None) -> str:
        self._log.append(f"record {self.handle}")
        return f"event {self.handle}"

    def wait(self, event_or_stream: Any) -> None:
        assert self.capturing is None, "waiting in a capturing stream"
        what = f"stream {event_or_stream.handle}" if isinstance(event_or_stream, FakeStream) else event_or_stream
        self._log.append(f"{self.handle} waits for {what}")

    def create_graph_builder(self) -> FakeGraphBuilder:
        return FakeGraphBuilder(self)


class FakeGraphBuilder:
    def __init__(self, stream: FakeStream) -> None:
        self.stream, self.actions = stream, []

    def begin_building(self, mode: str = "relaxed") -> FakeGraphBuilder:
        self.stream.capturing = self
        return self

    def do(self, name: str, action: Any) -> None:
        self.stream.do(name, action)

    def end_building(self) -> FakeGraphBuilder:
        self.stream.capturing = None
        return self

    def complete(self, options: Any = None) -> FakeGraph:
        return FakeGraph(self.actions)


class FakeGraph:
    def __init__(self, actions: list[Any]) -> None:
        self._actions = actions

    def launch(self, stream: FakeStream) -> None:
        stream._log.append("launch")
        for _, action in self._actions:
            action()


class FakeView:
    """Of an array that pretends to be on the GPU."""

    def __init__(self, array: np.ndarray, device: int = 0) -> None:
        self.array = array  # kept alive
        self.ptr, self.shape, self.dtype = array.ctypes.data, array.shape, array.dtype
        self.strides = tuple(stride // array.itemsize for stride in array.strides)
        self.device_id, self.is_device_accessible = device, device >= 0

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.device_id) if self.is_device_accessible else (1, 0)


class FakeBufferView:
    """Of a buffer; cuda-core's ignores the stream that a consumer names."""

    def __init__(self, buffer: FakeBuffer, shape: tuple[int, ...], *, dtype: np.dtype) -> None:
        assert buffer.size == int(np.prod(shape)) * dtype.itemsize
        self.buffer, self.shape, self.dtype = buffer, shape, dtype

    def __dlpack__(self, *, stream: int | None = None, max_version: Any = None, dl_device: Any = None) -> Any:
        return self

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


class FakeCuda:
    """``cuda.core``, ``cuda.core.utils`` and ``cuda.bindings.driver`` in one; ``log`` is what happened in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.depth = 0  # contexts pushed by us
        self.utils = types.SimpleNamespace(
            StridedMemoryView=types.SimpleNamespace(from_any_interface=self._view, from_buffer=FakeBufferView)
        )
        self.core = types.SimpleNamespace(
            Device=lambda index: types.SimpleNamespace(name="Fake GPU", compute_capability=(8, 9)),
            DeviceMemoryResource=lambda index: types.SimpleNamespace(
                allocate=lambda size, *, stream: FakeBuffer(size, "device", self.log)
            ),
            LegacyPinnedMemoryResource=lambda: types.SimpleNamespace(
                allocate=lambda size: FakeBuffer(size, "pinned", self.log)
            ),
            Stream=types.SimpleNamespace(from_handle=self._stream),
            Buffer=FakeBuffer,
        )
        self.driver = types.SimpleNamespace(
            CUcontext=int,
            CUstream_flags=types.SimpleNamespace(CU_STREAM_NON_BLOCKING=1),
            cuDevicePrimaryCtxRetain=lambda index: (0, 7),
            cuCtxPushCurrent=lambda context: (self._push(1, context),),
            cuCtxPopCurrent=lambda: (self._push(-1, None), 7),
            cuStreamCreate=lambda flags: (0, self._new_handle()),
            cuStreamIsCapturing=lambda stream: (0, int(FakeStream.by_handle[stream].capturing is not None)),
            cuCtxSynchronize=lambda: (self.log.append("wait for the GPU") or 0,),
        )
        self.contexts: list[Any] = []
        self._handles = 100

    def modules(self) -> dict[str, Any]:
        return {"cuda.core": self.core, "cuda.core.utils": self.utils, "cuda.bindings.driver": self.driver}

    def _push(self, step: int, context: Any) -> int:
        self.depth += step
        if context is not None:
            self.contexts.append(context)
        return 0

    @property
    def streams(self) -> int:
        """Number of streams that were created."""
        return self._handles - 100

    def _new_handle(self) -> int:
        self._handles += 1
        return self._handles

    def execute(self, stream_handle: int, compute: Any) -> None:
        """Put the work of a stand-in for TensorRT into a stream."""
        FakeStream.by_handle[stream_handle].do("execute", compute)

    def _stream(self, handle: int) -> FakeStream:
        return FakeStream(handle, self.log)

    def _view(self, array: Any, stream_ptr: int | None = None) -> FakeView:
        if isinstance(array, FakeView):
            return array
        raise BufferError("neither DLPack nor CUDA array interface")


class Listed:
    """Base of TensorRT's stand-ins: only names of the list exist, and only those set here do something."""

    def __init__(self, cls: str, release: str, **members: Any) -> None:
        names = json.loads((LISTS / f"{release}.json").read_text())["names"]
        prefix = f"{cls}." if cls else ""
        have = {name[len(prefix) :].split(".")[0] for name, found in names.items() if found and name.startswith(prefix)}
        object.__setattr__(self, "_have", have)
        unknown = set(members) - have
        assert not unknown, f"{release} has no {cls}.{unknown}"
        for name, value in members.items():
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._have:
            raise AttributeError(f"cannot set {name}")
        object.__setattr__(self, name, value)


class FakeTensorRT(Listed):
    """A library with one engine: y = 2 x + 1, z = -x, float32 (batch, ``width``), batches 1 to 4."""

    def __init__(self, cuda: Any, release: str, *, fixed: int | None = None, width: int = 3) -> None:
        self_ = object.__setattr__
        self_(self, "cuda", cuda)
        self_(self, "contexts", [])
        self_(self, "refitted", [])
        shape = (fixed or -1, width)
        mode = Listed("TensorIOMode", release, INPUT="in")
        engine = Listed(
            "ICudaEngine",
            release,
            name="network",
            num_io_tensors=3,
            get_tensor_name=lambda index: "xyz"[index],
            get_tensor_shape=lambda name: shape,
            get_tensor_dtype=lambda name: "FLOAT",
            get_tensor_mode=lambda name: mode.INPUT if name == "x" else "out",
            create_runtime_config=lambda: Listed("IRuntimeConfig", release),
            create_execution_context=lambda config=None: self._context(release, config, fixed, width),
        )
        runtime = Listed("Runtime", release, deserialize_cuda_engine=lambda data: engine)
        members: dict[str, Any] = {
            "Runtime": lambda logger: runtime,
            "Logger": type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None}),
            "Refitter": lambda engine, logger: Listed(
                "Refitter", release, refit_cuda_engine=lambda: bool(self.refitted)
            ),
            "OnnxParserRefitter": lambda refitter, logger: Listed(
                "OnnxParserRefitter", release, refit_from_file=lambda model: self.refitted.append(model) or True
            ),
            "nptype": lambda dtype: np.float32,
            "TensorIOMode": mode,
        }
        if release == "tensorrt-rtx":
            members["CudaGraphStrategy"] = Listed("CudaGraphStrategy", release, WHOLE_GRAPH_CAPTURE=1)
        super().__init__("", release, **members)
        self_(self, "__version__", "1.2.3")

    def _context(self, release: str, config: Any, fixed: int | None, width: int) -> Any:
        shapes: dict[str, tuple[int, ...]] = {}
        addresses: dict[str, int] = {}

        def set_input_shape(name: str, shape: tuple[int, ...]) -> bool:
            shapes[name] = shape
            return len(shape) == 2 and shape[1] == width and (shape[0] == fixed if fixed else 1 <= shape[0] <= 4)

        def array(name: str) -> np.ndarray:
            count = shapes["x"][0] * width
            return np.frombuffer((ctypes.c_float * count).from_address(addresses[name]), np.float32)

        def compute() -> None:
            array("y")[:] = 2 * array("x") + 1
            array("z")[:] = -array("x")

        def execute(stream_handle: int) -> bool:
            self.cuda.execute(stream_handle, compute)
            return True

        context = Listed(
            "IExecutionContext",
            release,
            set_input_shape=set_input_shape,
            get_tensor_shape=lambda name: shapes["x"],
            set_tensor_address=lambda name, memory: addresses.__setitem__(name, memory) or True,
            execute_async_v3=execute,
        )
        self.contexts.append((context, config))
        return context
