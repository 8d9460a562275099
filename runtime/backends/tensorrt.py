"""TensorRT engines, of both flavours: one engine, and for each thread a stream, contexts and buffers that it keeps.

Everything that can be checked is checked before TensorRT sees the plan: sidecar, hash, flavour, version, GPU.
"""

from __future__ import annotations

import math
import re
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from cats.core.errors import BackendError, InputError, ModelFileError
from cats.core.metadata import read_onnx_metadata
from cats.runtime.backends.base import Array, Backend, TensorSpec
from cats.runtime.backends.cuda import CudaContext, DeviceArray
from cats.runtime.hardware import nvidia
from cats.runtime.tensorrt.flavours import FLAVOURS, find_flavour
from cats.runtime.tensorrt.sidecar import read_sidecar

_SHAPES_KEPT = 4
_ALIGNMENT = 256  # bytes, of every address that the CUDA allocator gives

Shapes = tuple[tuple[int, ...], ...]


class TensorRTBackend(Backend):
    """A plan with its sidecar, on an NVIDIA GPU.

    Args:
        path: ``X.plan``; ``X.plan.json`` lies beside it.
        device: index of the GPU.
        cuda_graph: replay the work of a shape as a CUDA graph; None does so where the engine's shapes are fixed. With
            ``stream``, only TensorRT-RTX does, since it captures by itself.
        context: the caller's CUDA context (PyCUDA's ``Context``, or an address); None takes the GPU's primary one.
        stream: the caller's stream for all work, see :meth:`CudaContext.stream_of`; None takes one for each thread.

    Raises:
        ModelFileError: plan or sidecar missing, changed, or not each other's.
        BackendError: no GPU, TensorRT missing, or another flavour or version than the plan's.
    """

    prefers_batches = True

    def __init__(
        self,
        path: str | Path,
        *,
        device: int = 0,
        cuda_graph: bool | None = None,
        context: Any = None,
        stream: Any = None,
    ) -> None:
        super().__init__(path)
        self.metadata = read_sidecar(self.path)
        engine: dict[str, Any] = self.metadata.engine or {}
        self.name = engine["flavour"]
        targets = ", ".join(engine.get("targets") or []) or FLAVOURS[self.name].gpus()
        problem = nvidia().problem
        if problem:
            raise BackendError(
                f"{self.path} needs an NVIDIA GPU (compute capability: {targets}) and there is none: {problem}; "
                f"run the ONNX file that it was built from instead: {engine['source']}"
            )
        flavour, trt = find_flavour(self.name)
        newer = engine.get("version_compatible") and _numbers(trt.__version__) >= _numbers(engine["version"])
        if trt.__version__ != engine["version"] and not newer:
            raise BackendError(
                f"{self.path} was built with {flavour.name} {engine['version']}, installed is {trt.__version__}: "
                f"build it again with cats-build {engine['source']}"
            )
        self._check_gpu(engine, device)
        self._trt = trt
        self._cuda = CudaContext(device, extra=flavour.name, context=context)
        self._stream = None if stream is None else self._cuda.stream_of(stream)
        with self._cuda.current():
            self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
            if engine.get("version_compatible"):
                self._runtime.engine_host_code_allowed = True  # such a plan brings its own runtime
            self._engine = self._runtime.deserialize_cuda_engine(self.path.read_bytes())
        if self._engine is None:
            major, minor = self._cuda.compute_capability
            raise BackendError(
                f"{flavour.name} {trt.__version__} does not load {self.path} on {self._cuda.name} (compute capability "
                f"{major}.{minor}); it was built for {targets}: build it again with cats-build {engine['source']}"
            )
        if self._engine.name != engine.get("network"):
            raise ModelFileError(
                f"{self.path} holds the network {self._engine.name}, its sidecar {engine.get('network')}"
            )
        if engine.get("stripped"):
            self._refit(self.path.with_name(engine["source"]))
        self.inputs, self.outputs = self._specs()
        fixed = all(None not in spec.shape for spec in self.inputs)
        self.cuda_graph = fixed if cuda_graph is None else cuda_graph
        profiles = engine.get("profiles") or []
        self.max_batch = min(shape["max"][0] for shape in profiles[0].values()) if profiles else self.inputs[0].shape[0]
        self.min_batch = max(shape["min"][0] for shape in profiles[0].values()) if profiles else self.max_batch or 1
        self._threads = threading.local()

    def _refit(self, source: Path) -> None:
        """Give a weight-stripped engine the weights of the ONNX file that it was built from."""
        if not source.is_file():
            raise ModelFileError(f"{self.path} has no weights of its own: put {source.name}, which has them, beside it")
        if read_onnx_metadata(source).weights_sha256 != self.metadata.weights_sha256:
            raise ModelFileError(f"{source} has other weights than {self.path} was built from")
        with self._cuda.current():
            logger = self._trt.Logger(self._trt.Logger.ERROR)
            refitter = self._trt.Refitter(self._engine, logger)
            weights = self._trt.OnnxParserRefitter(refitter, logger)
            if not weights.refit_from_file(str(source)) or not refitter.refit_cuda_engine():
                raise BackendError(f"{self.name} could not take the weights of {source} into {self.path}")

    def _check_gpu(self, engine: dict[str, Any], device: int) -> None:
        gpus = nvidia().gpus
        if not 0 <= device < len(gpus):
            raise BackendError(f"there is no GPU {device}: the driver lists {len(gpus)}, counted from 0")
        major, minor = gpus[device].compute_capability
        if not FLAVOURS[self.name].runs_on((major, minor)):
            raise BackendError(
                f"{self.name} runs on compute capability {FLAVOURS[self.name].gpus()}, and {gpus[device].name} has "
                f"{major}.{minor}: run the ONNX file that {self.path.name} was built from instead, {engine['source']}"
            )
        present, built = f"sm{major}{minor}", engine.get("targets") or []
        if built and present not in built:
            target = f" --target {present}" if self.name == "tensorrt-rtx" else " on this machine"
            raise BackendError(
                f"{self.path} was built for {', '.join(built)} and {gpus[device].name} is {present}: "
                f"build it again with cats-build {engine['source']}{target}"
            )

    def _run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        with self._cuda.current():
            thread = self._thread()
            arrays = [np.ascontiguousarray(feeds[spec.name], spec.dtype) for spec in self.inputs]
            bound = thread.bound(tuple(array.shape for array in arrays))
            results = bound.run(arrays)
        return dict(zip((spec.name for spec in self.outputs), results, strict=True))

    def run_device(self, feeds: dict[str, Any], stream: Any = None) -> dict[str, DeviceArray]:
        """Put one run on arrays that are on the GPU into a stream, without copies and without waiting for it.

        Args:
            feeds: by name of :attr:`inputs`, anything contiguous with DLPack or ``__cuda_array_interface__`` (PyTorch,
                CuPy, PyCUDA), of one batch size; must stay as it is until the stream has passed. For the order of
                streams see :meth:`CudaContext.view`. Batches larger than :attr:`max_batch` are several runs, one after
                the other in the stream.
            stream: the caller's; None takes the backend's own.

        Raises:
            InputError: an array of another dtype, device or shape than the engine takes.
            BackendError: the device failed, or the backend is closed.
        """
        with self.lifetime.use(), self._cuda.current():
            thread = self._thread()
            order = thread.stream if stream is None else self._cuda.stream_of(stream)
            views = [self._cuda.view(feeds[spec.name], spec, order) for spec in self.inputs]
            return thread.enqueue(views, order)

    def _specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        found: dict[bool, list[TensorSpec]] = {True: [], False: []}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            shape = tuple(None if side < 0 else int(side) for side in self._engine.get_tensor_shape(name))
            dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
            is_input = self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
            found[is_input].append(TensorSpec(name, dtype, shape))
        return tuple(found[True]), tuple(found[False])

    def _thread(self) -> _Thread:
        if not hasattr(self._threads, "state"):
            self._threads.state = _Thread(self, self._stream)
        state: _Thread = self._threads.state
        return state

    def shaped_context(self, shapes: Shapes) -> tuple[Any, Shapes]:
        """A new execution context for these shapes of the inputs, and the shapes of the outputs.

        Raises:
            InputError: shapes that the engine does not have, or outside its profile.
            BackendError: no memory for another context.
        """
        for spec, shape in zip(self.inputs, shapes, strict=True):
            if not spec.takes(shape):
                raise InputError(f"{self.path} takes {spec.name} {self._range(spec)}, not {shape}")
        if self.cuda_graph and hasattr(self._trt, "CudaGraphStrategy"):  # TensorRT-RTX captures by itself
            runtime_config = self._engine.create_runtime_config()
            runtime_config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(runtime_config)
        else:
            context = self._engine.create_execution_context()
        if context is None:
            raise BackendError(f"no memory on GPU {self._cuda.index} for another execution context of {self.path}")
        for spec, shape in zip(self.inputs, shapes, strict=True):
            if not context.set_input_shape(spec.name, shape):
                raise InputError(f"{self.path} takes {spec.name} {self._range(spec)}, not {shape}")
        return context, tuple(tuple(context.get_tensor_shape(spec.name)) for spec in self.outputs)

    def _range(self, spec: TensorSpec) -> str:
        """Shapes that an input takes."""
        sides = ", ".join("batch" if side is None else str(side) for side in spec.shape)
        fixed = spec.shape[0] is not None or self.max_batch is None
        return f"({sides})" if fixed else f"({sides}), batch {self.min_batch} to {self.max_batch}"

    def describe(self) -> str:
        """Flavour, version, GPU, precision and CUDA graph."""
        graph = ", CUDA graph" if self.cuda_graph else ""
        return (
            f"{self.name} {self._trt.__version__}, GPU {self._cuda.index} ({self._cuda.name}), "
            f"{self.metadata.precision}{graph}"
        )

    def _release(self) -> None:
        self._threads = threading.local()
        self._engine = self._runtime = None


class _Thread:
    """What one thread keeps: its stream, buffers for the shapes it uses, and contexts for arrays of the caller."""

    def __init__(self, backend: TensorRTBackend, stream: Any) -> None:
        self.backend, self.stream = backend, stream or backend._cuda.take_stream()
        if stream is None:
            weakref.finalize(self, backend._cuda.give_stream_back, self.stream)
        self._bound: dict[Shapes, _Bound] = {}
        self._contexts: dict[Shapes, tuple[Any, Shapes]] = {}
        self._last: tuple[int, Any] | None = None  # stream and event of the last run on the caller's arrays

    def bound(self, shapes: Shapes) -> _Bound:
        """Buffers for host arrays of these shapes; the oldest go where there are too many."""
        if shapes not in self._bound:
            while len(self._bound) >= _SHAPES_KEPT:
                self._bound.pop(next(iter(self._bound)))
            self._bound[shapes] = _Bound(self.backend, self.stream, shapes)
        return self._bound[shapes]

    def enqueue(self, views: list[Any], stream: Any) -> dict[str, DeviceArray]:
        """One run on the caller's memory in the order of ``stream``, or several on parts of it."""
        backend, cuda = self.backend, self.backend._cuda
        shapes = tuple(tuple(view.shape) for view in views)
        batch, step = shapes[0][0] if shapes[0] else 0, backend.max_batch or 0
        if any(shape[:1] != (batch,) for shape in shapes):
            described = ", ".join(f"{spec.name} {shape}" for spec, shape in zip(backend.inputs, shapes, strict=True))
            raise InputError(f"{backend.path} takes inputs of one batch size, not {described}")
        if not 0 < step < batch or not _sliceable((*backend.inputs, *backend.outputs)):
            step = batch
        parts = [(first, min(step, batch - first)) for first in range(0, batch, step or 1)] or [(0, 0)]
        contexts = [self._context(tuple((size, *shape[1:]) for shape in shapes)) for _, size in parts]
        handle = int(stream.handle)
        if self._last is not None and self._last[0] != handle:
            stream.wait(self._last[1])  # contexts have one working memory: runs on other streams come first
        results = {}
        for spec, shape in zip(backend.outputs, contexts[0][1], strict=True):
            size = math.prod((batch, *shape[1:])) * spec.dtype.itemsize
            buffer = cuda.device_memory(size, stream)
            results[spec.name] = DeviceArray(buffer, (batch, *shape[1:]), spec.dtype, stream, cuda)
        for (first, _), (context, _) in zip(parts, contexts, strict=True):
            for spec, view in zip(backend.inputs, views, strict=True):
                context.set_tensor_address(spec.name, int(view.ptr) + first * _row_bytes(spec))
            for spec in backend.outputs:
                context.set_tensor_address(spec.name, results[spec.name].address + first * _row_bytes(spec))
            if not context.execute_async_v3(handle):
                raise BackendError(f"{backend.name} failed to run {backend.path}")
        self._last = (handle, stream.record())
        return results

    def _context(self, shapes: Shapes) -> tuple[Any, Shapes]:
        """As :meth:`TensorRTBackend.shaped_context`; the oldest go where there are too many."""
        if shapes not in self._contexts:
            while len(self._contexts) >= _SHAPES_KEPT:
                self._contexts.pop(next(iter(self._contexts)))
            self._contexts[shapes] = self.backend.shaped_context(shapes)
        return self._contexts[shapes]


def _numbers(version: str) -> tuple[int, ...]:
    """``11.4.0.106`` as numbers, to be compared."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _row_bytes(spec: TensorSpec) -> int:
    """Size of one item of a batch."""
    return math.prod(side or 0 for side in spec.shape[1:]) * spec.dtype.itemsize


def _sliceable(specs: tuple[TensorSpec, ...]) -> bool:
    """Whether parts of a batch begin where the GPU's allocator could have put them."""
    return all(None not in spec.shape[1:] and _row_bytes(spec) % _ALIGNMENT == 0 for spec in specs)


class _Bound:
    """Pinned and device buffers of fixed shapes with an execution context, replayed as a CUDA graph if that is on."""

    def __init__(self, backend: TensorRTBackend, stream: Any, shapes: Shapes) -> None:
        self._backend, self._stream, self._graph = backend, stream, None
        self._context, found = backend.shaped_context(shapes)
        own_stream = backend._stream is None
        self._captures = backend.cuda_graph and own_stream and not hasattr(backend._trt, "CudaGraphStrategy")
        self._inputs = [self._buffers(spec, shape) for spec, shape in zip(backend.inputs, shapes, strict=True)]
        self._outputs = [self._buffers(spec, shape) for spec, shape in zip(backend.outputs, found, strict=True)]

    def run(self, arrays: list[Array]) -> list[Array]:
        """Copy in, run, copy out, wait."""
        for (_, host, _), array in zip(self._inputs, arrays, strict=True):
            np.copyto(host, array)
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._enqueue(self._stream, self._stream)
        self._backend._cuda.wait(self._stream)
        results = [host.copy() for _, host, _ in self._outputs]
        if self._captures and self._graph is None:  # after a run, because the first one still sets things up
            self._graph = self._capture()
        return results

    def _buffers(self, spec: TensorSpec, shape: tuple[int, ...]) -> tuple[Any, Array, Any]:
        cuda = self._backend._cuda
        pinned, host = cuda.pinned(shape, spec.dtype)
        memory = cuda.device_memory(host.nbytes, self._stream)
        self._context.set_tensor_address(spec.name, int(memory.handle))
        return pinned, host, memory

    def _enqueue(self, order: Any, stream: Any) -> None:
        for pinned, _, memory in self._inputs:
            memory.copy_from(pinned, stream=order)
        if not self._context.execute_async_v3(int(stream.handle)):
            raise BackendError(f"{self._backend.name} failed to run {self._backend.path}")
        for pinned, _, memory in self._outputs:
            memory.copy_to(pinned, stream=order)

    def _capture(self) -> Any:
        capture = self._stream.create_graph_builder()
        capture.begin_building("thread_local")
        self._enqueue(capture, capture.stream)
        return capture.end_building().complete()
