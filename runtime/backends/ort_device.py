"""Runs of ONNX Runtime's CUDA provider on arrays that are on the GPU, with results there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cats.core.errors import BackendError, InputError
from cats.runtime.backends.base import TensorSpec
from cats.runtime.backends.cuda import CudaContext, DeviceArray
from cats.runtime.backends.ort_session import first_line


class DeviceRuns:
    """A session whose inputs and outputs are bound to memory on a GPU. It may be used from several threads at once.

    The provider computes in a stream that it makes with the session and shows to nobody, so that no other stream can
    wait for it on the GPU. The host waits instead: for the inputs and the memory of the results before a run, and in
    the run until it is done. No array is copied; results are complete when they are returned.

    Args:
        session: ``InferenceSession`` of the CUDA provider on this GPU.
        path: of the model, for messages.
        cuda: the GPU's primary context, which ONNX Runtime uses too.
        memory: ONNX Runtime's name of the memory.
    """

    def __init__(
        self,
        session: Any,
        path: Path,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        cuda: CudaContext,
        memory: str = "cuda",
    ) -> None:
        self._session, self._path, self._cuda, self._memory = session, path, cuda, memory
        self._inputs, self._outputs = inputs, outputs

    def run(self, feeds: dict[str, Any], stream: Any = None) -> dict[str, DeviceArray]:
        """One run; arguments and errors as of :meth:`cats.runtime.backends.ort.OnnxRuntimeBackend.run_device`."""
        cuda = self._cuda
        with cuda.current():
            own = cuda.take_stream()
            try:
                order = own if stream is None else cuda.stream_of(stream)
                views = [cuda.view(feeds[spec.name], spec, order) for spec in self._inputs]
                batch = self._check_shapes([tuple(view.shape) for view in views])
                results = {spec.name: self._allocate(spec, batch, own) for spec in self._outputs}
                cuda.wait(order)  # what the inputs are computed by
                if order is not own:
                    cuda.wait(own)  # who read what was in the memory of the results
                self._run(views, results)
            finally:
                cuda.give_stream_back(own)
        return results

    def _run(self, views: list[Any], results: dict[str, DeviceArray]) -> None:
        binding = self._session.io_binding()
        for spec, view in zip(self._inputs, views, strict=True):
            place = (spec.name, self._memory, self._cuda.index, spec.dtype.type)
            binding.bind_input(*place, list(view.shape), int(view.ptr))
        for name, array in results.items():
            place = (name, self._memory, self._cuda.index, array.dtype.type)
            binding.bind_output(*place, list(array.shape), array.address)
        try:
            self._session.run_with_iobinding(binding)  # waits for the provider's stream
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            raise BackendError(f"onnxruntime failed on GPU {self._cuda.index}: {first_line(error)}") from error

    def _check_shapes(self, shapes: list[tuple[int, ...]]) -> int:
        """The batch size, of shapes that the model takes."""
        for spec, shape in zip(self._inputs, shapes, strict=True):
            if not spec.takes(shape) or shape[0] < 1:
                sides = ", ".join("batch" if side is None else str(side) for side in spec.shape)
                raise InputError(f"{self._path} takes {spec.name} ({sides}), not {shape}")
        if len({shape[0] for shape in shapes}) > 1:
            described = ", ".join(f"{spec.name} {shape}" for spec, shape in zip(self._inputs, shapes, strict=True))
            raise InputError(f"{self._path} takes inputs of one batch size, not {described}")
        return shapes[0][0]

    def _allocate(self, spec: TensorSpec, batch: int, stream: Any) -> DeviceArray:
        sides = [side for side in spec.shape[1:] if side is not None]
        if len(sides) != len(spec.shape) - 1:
            raise BackendError(
                f"{self._path}: the shape of {spec.name} is not known before a run: give arrays on the host"
            )
        shape = (batch, *sides)
        buffer = self._cuda.device_memory(math.prod(shape) * spec.dtype.itemsize, stream)
        return DeviceArray(buffer, shape, spec.dtype, stream, self._cuda)
