"""ONNX Runtime backend: CPU, CUDA, TensorRT and TensorRT-RTX execution providers, each an explicit choice.

ONNX Runtime replaces a provider that does not start by the CPU without an error; here that is a
:class:`~cats.core.errors.BackendError` which says what is missing.
"""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from cats.core.errors import BackendError, ModelFileError
from cats.core.external_data import whole_model
from cats.core.metadata import read_onnx_metadata
from cats.runtime.backends.base import Array, Backend, TensorSpec
from cats.runtime.backends.cuda import CudaContext, DeviceArray
from cats.runtime.backends.ort_device import DeviceRuns
from cats.runtime.backends.ort_providers import (
    CPU,
    CUDA,
    ENGINE_MAX_BATCH,
    PROVIDERS,
    TENSORRT,
    TENSORRT_RTX,
    check_gpu,
    choose_provider,
    create_session,
    diagnose,
    provider_options,
)
from cats.runtime.backends.ort_session import first_line, import_onnxruntime, session_options
from cats.runtime.hardware import check_threads, compact_memory, physical_cores, usable_cpus

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
_SHAPES_KEPT = 4


class OnnxRuntimeBackend(Backend):
    """An ONNX file in ONNX Runtime.

    Args:
        path: ONNX file with CATs metadata.
        provider: ``cpu``, ``cuda``, ``tensorrt``, ``tensorrt-rtx``, or the full name of another provider of the
            installed build. ``None`` takes ``cuda`` where the build has it and the driver lists a GPU, else ``cpu``.
        device: index of the GPU.
        threads: CPU threads of one run; ``None`` takes one per physical core, or fewer where the process is limited.
        cache_dir: folder in which the TensorRT providers keep their engines between processes.

    Raises:
        BackendError: the package, the provider or a library of it is not here.
        ModelFileError: not an ONNX file with metadata that this toolkit and this ONNX Runtime can use.
    """

    name = "onnxruntime"

    def __init__(
        self,
        path: str | Path,
        *,
        provider: str | None = None,
        device: int = 0,
        threads: int | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        check_threads(threads)
        super().__init__(path)
        self.metadata = read_onnx_metadata(path)
        self._ort = import_onnxruntime()
        self.provider, self._why = choose_provider(self._ort, provider)
        check_gpu(self.provider, device)
        self.device = device
        self.threads = threads or min(physical_cores(), usable_cpus())
        settings = provider_options(
            self.provider,
            path,
            device=device,
            cache_dir=cache_dir,
            cache_key=f"cats_{self.metadata.weights_sha256[:12]}_{self.metadata.precision}",
        )
        with compact_memory():
            self._session = self._create(Path(path), settings, limit_threads=threads is not None)
        self.inputs = tuple(_spec(node, path) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node, path) for node in self._session.get_outputs())
        dynamic = any(None in spec.shape for spec in self.inputs)
        self.max_batch = ENGINE_MAX_BATCH if dynamic and self.provider in (TENSORRT, TENSORRT_RTX) else None
        self._on_gpu = self.provider in PROVIDERS.values() and self.provider != CPU
        self.prefers_batches = self._on_gpu
        self._left_on_cpu = self._nodes_left_on_cpu()
        if self.provider == CUDA and self.metadata.precision == "int8":
            self.advice = (
                f"{self.path} is INT8, which {CUDA} computes in float32 with conversions in between, slower than a "
                "float file: run the fp32 or fp16 file there, or build an engine (cats-calibrate --for tensorrt)"
            )
        self._local = threading.local()
        self._device_runs: DeviceRuns | None = None
        self._starting = threading.Lock()

    def run_device(self, feeds: dict[str, Any], stream: Any = None) -> dict[str, DeviceArray]:
        """Run on arrays that are on the GPU, without copies, with results there; on the CUDA provider.

        The host waits until the inputs are computed and until the run is done, see :class:`DeviceRuns`: other work of
        the GPU goes on meanwhile, other work of the calling thread does not.

        Args:
            feeds: by name of :attr:`inputs`, anything contiguous with DLPack or ``__cuda_array_interface__`` (PyTorch,
                CuPy, PyCUDA), of one batch size.
            stream: the caller's, whose work is waited for too: PyCUDA's arrays do not say theirs.

        Raises:
            InputError: an array of another dtype, device or shape than the model takes.
            BackendError: another provider, cuda-core is not installed, the device failed, or the backend is closed.
        """
        if self.provider != CUDA:
            raise BackendError(
                f"{self.path}: {self.provider} takes no arrays on a GPU: give images on the host, open the file with "
                f"provider 'cuda', or use an engine (cats-build {self.path.with_suffix('.onnx').name})"
            )
        with self.lifetime.use():
            with self._starting:
                if self._device_runs is None:
                    cuda = CudaContext(self.device, extra="gpu", purpose="run ONNX files on arrays that are on a GPU")
                    self._device_runs = DeviceRuns(self._session, self.path, self.inputs, self.outputs, cuda)
            return self._device_runs.run(feeds, stream)

    def _run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        try:
            values = self._bound(feeds).run(feeds) if self._on_gpu else self._session.run(None, feeds)
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            raise BackendError(f"onnxruntime ({self.provider}) failed: {first_line(error)}") from error
        return dict(zip((output.name for output in self.outputs), values, strict=True))

    def describe(self) -> str:
        """Version, provider and why, device or threads, and the nodes that a GPU provider leaves to the CPU."""
        where = f"GPU {self.device}" if self._on_gpu else f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        text = f"onnxruntime {self._ort.__version__}, {self.provider} ({self._why}), {where}"
        if self._left_on_cpu:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self._left_on_cpu.most_common(4))
            text += f", {self._left_on_cpu.total()} nodes left on the CPU: {kinds}"
        return text

    def _release(self) -> None:
        self._local = threading.local()
        self._session = self._device_runs = None

    def _create(self, path: Path, settings: dict[str, str], *, limit_threads: bool) -> Any:
        ort = self._ort
        # else ONNX Runtime pins one thread to each physical core
        limited = limit_threads or self.threads < physical_cores()
        options = session_options(ort, self.threads if limited else None)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL  # all threads work on one operator at a time
        options.inter_op_num_threads = 1
        if self.provider != CPU and hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        model = whole_model(path) or str(path)
        try:
            return create_session(ort, model, options, self.provider, settings, self.device)
        except BackendError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            text = first_line(error, path)
            if "opset" in text or "IR version" in text:
                raise ModelFileError(
                    f"{path} is too new for onnxruntime {ort.__version__} ({text}): upgrade onnxruntime, "
                    "or export with a lower --opset"
                ) from error
            if self.provider == CPU:
                raise ModelFileError(f"onnxruntime cannot load {path}: {text}") from error
            raise BackendError(
                f"{self.provider} did not start for {path}: {diagnose(ort, self.provider) or text}"
            ) from error

    def _nodes_left_on_cpu(self) -> Counter[str]:
        if self.provider == CPU or not hasattr(self._session, "get_provider_graph_assignment_info"):
            return Counter()
        parts = self._session.get_provider_graph_assignment_info()
        return Counter(node.op_type for part in parts if part.ep_name == CPU for node in part.get_nodes())

    def _bound(self, feeds: dict[str, Array]) -> BoundRun:
        """This thread's device buffers for these shapes."""
        runs: dict[Any, BoundRun] = self._local.__dict__.setdefault("runs", {})
        key = tuple((name, value.shape) for name, value in feeds.items())
        if key not in runs:
            while len(runs) >= _SHAPES_KEPT:
                runs.pop(next(iter(runs)))
            names = [output.name for output in self.outputs]
            # The plugin comes with ONNX Runtime for CPUs, which cannot allocate on a GPU: there the provider copies.
            where = ("cpu", 0) if self.provider == TENSORRT_RTX else ("cuda", self.device)
            runs[key] = BoundRun(self._ort, self._session, feeds, names, *where)
        return runs[key]


class BoundRun:
    """Inputs of fixed shapes that stay in the memory of a device, bound to a session; for one thread at a time."""

    def __init__(
        self, ort: Any, session: Any, feeds: dict[str, Array], outputs: list[str], memory: str, device: int
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._outputs = outputs
        self._inputs = {
            name: ort.OrtValue.ortvalue_from_shape_and_type(value.shape, value.dtype.type, memory, device)
            for name, value in feeds.items()
        }
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)

    def run(self, feeds: dict[str, Array]) -> list[Array]:
        """Copy the inputs to the device, run, and copy the outputs back; the results stay valid after later runs."""
        for name, value in feeds.items():
            self._inputs[name].update_inplace(np.ascontiguousarray(value))
        for name in self._outputs:
            self._binding.bind_output(name, "cpu")  # anew each time, or the next run would write into this result
        self._session.run_with_iobinding(self._binding)
        return [value.numpy() for value in self._binding.get_outputs()]


def _spec(node: Any, path: str | Path) -> TensorSpec:
    if node.type not in _DTYPES:
        raise ModelFileError(f"{path}: {node.name} is {node.type}, which no CATs model has; write it with cats-export")
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorSpec(node.name, np.dtype(_DTYPES[node.type]), shape)
