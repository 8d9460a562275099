"""One CUDA context for a backend: streams, device and pinned memory, graphs, and other libraries' arrays and streams.

Everything is stream-ordered; nothing here waits for the GPU but :meth:`CudaContext.wait`, and what stands for consumers
that name no stream. The caller's current context is pushed aside for the time of a call and comes back afterwards, so
that PyTorch, CuPy and PyCUDA keep theirs.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from cats.core.errors import BackendError, InputError, require
from cats.runtime.backends.base import Array, TensorSpec

_ON_HOST = (1, 3)  # DLPack's device types of host memory, the second one pinned
_DEFAULT_STREAM = 1  # by its name; DLPack and the CUDA array interface do not allow its other one, 0
_CAPTURE_ERRORS = (900, 908)  # of CUresult, the first and the last
_THREAD_STREAM = 2  # each thread's default stream: the same name means another stream in another thread

Reader = tuple[Any, int]  # a stream, and the thread that named it


class CudaContext:
    """A CUDA context of one GPU.

    Args:
        index: of the GPU.
        extra, purpose: for the message where cuda-core is not installed.
        context: the caller's own, as PyCUDA's ``Context`` or an address; None takes the GPU's primary one, which
            PyTorch and CuPy use.
    """

    def __init__(self, index: int, *, extra: str, purpose: str = "run engines", context: Any = None) -> None:
        self._core = require("cuda.core", extra=extra, purpose=purpose)
        self._views = require("cuda.core.utils", extra=extra, purpose=purpose)
        self._driver = require("cuda.bindings.driver", extra=extra, purpose=purpose)
        self.index = index
        device = self._core.Device(index)  # starts the driver
        self.name: str = device.name
        self.compute_capability: tuple[int, int] = tuple(device.compute_capability)
        self._handle = self._driver.CUcontext(_address(context)) if context is not None else None
        if self._handle is None:
            self._handle = self._check(self._driver.cuDevicePrimaryCtxRetain(index))
        self._idle_streams: list[Any] = []
        self._unfreed: list[tuple[Any, Any, Collection[Reader] | None]] = []
        self._memory = self._core.DeviceMemoryResource(index)
        self._pinned = self._core.LegacyPinnedMemoryResource()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context current for this thread while the block runs.

        Raises:
            BackendError: cuda-core reports a failure of the driver inside (no memory, a lost device).
        """
        self._check(self._driver.cuCtxPushCurrent(self._handle))
        try:
            yield
        except Exception as error:
            if type(error).__name__ != "CUDAError":  # cuda-core does not publish it
                raise
            raise BackendError(f"CUDA on GPU {self.index} failed: {error}") from error
        finally:
            self._check(self._driver.cuCtxPopCurrent())

    def take_stream(self) -> Any:
        """A stream that does not wait for the default one, for one thread until :meth:`give_stream_back`."""
        try:
            return self._idle_streams.pop()
        except IndexError:
            flags = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
            return self._core.Stream.from_handle(int(self._check(self._driver.cuStreamCreate(flags))))

    def give_stream_back(self, stream: Any) -> None:
        """Let another thread have a stream of :meth:`take_stream`. It is never destroyed: buffers are freed in it."""
        self._idle_streams.append(stream)

    def stream_of(self, stream: Any) -> Any:
        """The caller's stream: ``__cuda_stream__``, PyTorch's, CuPy's, PyCUDA's, or an address.

        Raises:
            InputError: anything else.
        """
        if hasattr(stream, "__cuda_stream__"):
            protocol = stream.__cuda_stream__
            address = (protocol() if callable(protocol) else protocol)[1]
        else:
            address = next((getattr(stream, n) for n in ("cuda_stream", "ptr") if hasattr(stream, n)), None)
            address = _address(stream) if address is None else int(address)
        return self._core.Stream.from_handle(address or _DEFAULT_STREAM)

    def device_memory(self, size: int, stream: Any) -> Any:
        """A buffer of ``size`` bytes; given back in the order of ``stream``."""
        for _ in range(len(self._unfreed)):
            self.free_behind(*self._unfreed.pop())
        return self._memory.allocate(size, stream=stream)

    def free_behind(self, buffer: Any, order: Any, readers: Collection[Reader] | None) -> None:
        """Free a buffer so that nothing takes its memory before its readers are done. For finalizers: raises nothing.

        ``order``, in which the memory is freed, waits on the GPU for what the readers' streams hold by now. Where a
        reader's stream is captured as a CUDA graph, or ``order`` is, neither may wait for the other: the buffer is kept
        until a later allocation. Where one is gone already, the host waits for the GPU.

        Args:
            readers: streams in which the buffer may still be read; None means that they are not known, and the host
                waits for the GPU.
        """
        try:
            with self.current():
                streams = [order, *(stream for stream, _ in readers or ())]
                if any(self._captured(stream) for stream in streams):
                    self._unfreed.append((buffer, order, readers))
                    return
                if readers is None or not self._wait_for(order, readers):
                    self._check(self._driver.cuCtxSynchronize())
                buffer.close()  # here, because the default stream is the current context's
        except Exception:
            if not sys.is_finalizing():  # then the process ends, and the memory with it
                self._unfreed.append((buffer, order, readers))

    def _wait_for(self, order: Any, readers: Collection[Reader]) -> bool:
        """Put waits for the readers into ``order``; whether all could be reached."""
        try:
            for stream, thread in readers:
                if int(stream.handle) == _THREAD_STREAM and thread != threading.get_ident():
                    return False
                order.wait(stream)
        except Exception:
            return False
        return True

    def _captured(self, stream: Any) -> bool:
        """Whether a stream is captured, or is the default one while another stream is captured that waits for it."""
        status, capture = self._driver.cuStreamIsCapturing(stream.handle)
        return _CAPTURE_ERRORS[0] <= int(status) <= _CAPTURE_ERRORS[1] or (int(status) == 0 and int(capture) != 0)

    def pinned(self, shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[Any, Array]:
        """A buffer of host memory that the GPU copies from and to by itself, and an array over it."""
        size = math.prod(shape) * dtype.itemsize
        buffer = self._pinned.allocate(size)
        raw = (ctypes.c_uint8 * size).from_address(int(buffer.handle))
        return buffer, np.frombuffer(memoryview(raw), dtype).reshape(shape)

    def view(self, array: Any, spec: TensorSpec, stream: Any) -> Any:
        """A caller's array on this GPU, in the order of ``stream``, without a copy.

        ``stream`` waits for the stream in which the array's library computes it, where that one tells (PyTorch, CuPy);
        PyCUDA does not: its arrays are taken as complete in ``stream``.

        Raises:
            InputError: not on the GPU, of another dtype, or not contiguous.
        """
        device = getattr(array, "__dlpack_device__", None)
        if device is not None and int(device()[0]) in _ON_HOST:
            raise InputError(f"{spec.name} is in the memory of the host, the model on GPU {self.index}")
        try:
            view = self._views.StridedMemoryView.from_any_interface(array, stream_ptr=int(stream.handle))
        except (BufferError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            raise InputError(f"{spec.name}: no array on a GPU that can be shared ({error})") from error
        if view.device_id not in (-1, self.index):  # -1: managed memory
            raise InputError(f"{spec.name} is in the memory of GPU {view.device_id}, the model on GPU {self.index}")
        if view.dtype != spec.dtype:
            raise InputError(f"{spec.name} is {view.dtype}, the model takes {spec.dtype}")
        shape = tuple(view.shape)
        if view.strides is not None and not _contiguous(shape, tuple(view.strides)):
            raise InputError(f"{spec.name} is not contiguous: its strides are {tuple(view.strides)} elements")
        return view

    def wait(self, stream: Any) -> None:
        """Wait until everything in a stream is done."""
        stream.sync()

    def _check(self, result: tuple[Any, ...]) -> Any:
        status, *values = result
        if int(status) != 0:
            raise BackendError(f"CUDA on GPU {self.index} failed: {getattr(status, 'name', status)}")
        return values[0] if values else None


class _Memory:
    """The memory of a result: given back when nothing refers to it any more, behind those who read it.

    Attributes:
        readers: who read it in another stream than its own, by the stream's address and the thread.
        unknown: whether it was given to somebody who named no stream.
    """

    def __init__(self, buffer: Any, stream: Any, context: CudaContext) -> None:
        self.buffer, self.stream, self.context = buffer, stream, context
        self.readers: dict[tuple[int, int], Reader] = {}
        self.unknown = False

    def __del__(self) -> None:
        self.context.free_behind(self.buffer, self.stream, None if self.unknown else self.readers.values())


class DeviceArray:
    """A result on the GPU, not waited for: work put into its stream afterwards sees it complete.

    Consumed without a copy and without waiting by DLPack: ``torch.from_dlpack`` and ``cupy.from_dlpack``, whose current
    stream then waits for this one, on the GPU. When the array and all that was made of it are gone, its memory goes to
    the next run behind the work that those streams hold by then; a stream must last as long as what was made in it.

    ``__cuda_array_interface__`` (``torch.as_tensor``, Numba) costs two waits of the host, since not all who take it
    look at its stream, and none say theirs: for this array when it is asked for, and for the whole GPU when the memory
    goes back.

    Attributes:
        shape, dtype: as of a numpy array.
        address: of its first element.
        stream: address of the stream that computes it.
    """

    def __init__(
        self, buffer: Any, shape: tuple[int, ...], dtype: np.dtype[Any], stream: Any, context: CudaContext
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self.address, self.stream = int(buffer.handle), int(stream.handle)
        self._memory = _Memory(buffer, stream, context)
        # What DLPack's consumers keep is the view, which keeps the buffer that it is of, which keeps the memory.
        shared = context._core.Buffer.from_handle(self.address, buffer.size, owner=self._memory)
        self._view = context._views.StridedMemoryView.from_buffer(shared, shape, dtype=dtype)

    def to_host(self) -> Array:
        """A copy on the host; waits for the stream."""
        context, order = self._memory.context, self._memory.stream
        with context.current():
            pinned, host = context.pinned(self.shape, self.dtype)
            self._memory.buffer.copy_to(pinned, stream=order)
            context.wait(order)
            return host.copy()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Waits for the array on the host; see above."""
        with self._memory.context.current():
            self._memory.context.wait(self._memory.stream)
        self._memory.unknown = True
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "stream": None,  # complete
        }

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        """``stream`` as the protocol has it: the consumer's, None for the default one, -1 for no order."""
        if stream != -1:
            with self._memory.context.current():
                consumer = self._memory.context.stream_of(stream or _DEFAULT_STREAM)
                if int(consumer.handle) != self.stream:
                    consumer.wait(self._memory.stream)
                    thread = threading.get_ident()
                    self._memory.readers[int(consumer.handle), thread] = consumer, thread
        return self._view.__dlpack__(stream=-1, **options)  # cuda-core establishes no order for buffers

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._view.__dlpack_device__()
        return device


def _address(value: Any) -> int:
    """A handle: an integer, or an object that has one (PyCUDA's streams and contexts)."""
    handle = getattr(value, "handle", value)
    try:
        return int(handle)
    except (TypeError, ValueError):
        raise InputError(f"{type(value).__name__} is no CUDA stream or context") from None


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    if 0 in shape:
        return True
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True
