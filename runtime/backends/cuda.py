"""One CUDA context for a backend: streams, device and pinned memory, graphs, and other libraries' arrays and streams.

Everything is stream-ordered; nothing here waits for the GPU but :meth:`CudaContext.wait`. The caller's current context
is pushed aside for the time of a call and comes back afterwards, so that PyTorch, CuPy and PyCUDA keep theirs.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from cats.core.errors import BackendError, InputError, require
from cats.runtime.backends.base import Array, TensorSpec

_ON_HOST = (1, 3)  # DLPack's device types of host memory, the second one pinned
_DEFAULT_STREAM = 1  # by its name; DLPack and the CUDA array interface do not allow its other one, 0


class CudaContext:
    """A CUDA context of one GPU.

    Args:
        index: of the GPU.
        extra: extra of the distribution that brings cuda-core, for messages.
        context: the caller's own, as PyCUDA's ``Context`` or an address; None takes the GPU's primary one, which
            PyTorch and CuPy use.
    """

    def __init__(self, index: int, *, extra: str, context: Any = None) -> None:
        self._core = require("cuda.core", extra=extra, purpose="run engines")
        self._views = require("cuda.core.utils", extra=extra, purpose="run engines")
        self._driver = require("cuda.bindings.driver", extra=extra, purpose="run engines")
        self.index = index
        device = self._core.Device(index)  # starts the driver
        self.name: str = device.name
        self.compute_capability: tuple[int, int] = tuple(device.compute_capability)
        self._handle = self._driver.CUcontext(_address(context)) if context is not None else None
        if self._handle is None:
            self._handle = self._check(self._driver.cuDevicePrimaryCtxRetain(index))
        self._idle_streams: list[Any] = []
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
        return self._memory.allocate(size, stream=stream)

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
            raise InputError(f"{spec.name} is in the memory of the host, the engine on GPU {self.index}")
        try:
            view = self._views.StridedMemoryView.from_any_interface(array, stream_ptr=int(stream.handle))
        except (BufferError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            raise InputError(f"{spec.name}: no array on a GPU that can be shared ({error})") from error
        if view.device_id not in (-1, self.index):  # -1: managed memory
            raise InputError(f"{spec.name} is in the memory of GPU {view.device_id}, the engine on GPU {self.index}")
        if view.dtype != spec.dtype:
            raise InputError(f"{spec.name} is {view.dtype}, the engine takes {spec.dtype}")
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


class DeviceArray:
    """A result on the GPU, not waited for: work put into its stream afterwards sees it complete.

    Consumed without a copy by ``torch.from_dlpack`` and ``cupy.from_dlpack``, whose current stream then waits for this
    one, on the GPU. ``torch.as_tensor`` does not look at the stream of the CUDA array interface: it may read a result
    that is not there yet, unless the caller synchronises first. Keep the array, or what was made of it, until the work
    that reads it in another stream is done: its memory is given to the next run in the order of its own stream.

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
        self._buffer, self._order, self._context = buffer, stream, context
        self._view = context._views.StridedMemoryView.from_buffer(buffer, shape, dtype=dtype)

    def to_host(self) -> Array:
        """A copy on the host; waits for the stream."""
        with self._context.current():
            pinned, host = self._context.pinned(self.shape, self.dtype)
            self._buffer.copy_to(pinned, stream=self._order)
            self._context.wait(self._order)
            return host.copy()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "stream": self.stream,
        }

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        """``stream`` as the protocol has it: the consumer's, None for the default one, -1 for no order."""
        if stream != -1:
            with self._context.current():
                consumer = self._context.stream_of(stream or _DEFAULT_STREAM)
                if int(consumer.handle) != self.stream:
                    consumer.wait(self._order)
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
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True
