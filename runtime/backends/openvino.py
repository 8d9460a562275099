"""OpenVINO backend: the same ONNX files on Intel and AMD CPUs and Intel GPUs, in float32, bfloat16 or INT8."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from cats.core.errors import BackendError, InputError, ModelFileError, require
from cats.core.external_data import whole_model
from cats.core.metadata import read_onnx_metadata
from cats.runtime.backends.base import Array, Backend, TensorSpec
from cats.runtime.backends.openvino_parts import precision_parts
from cats.runtime.hardware import check_threads, compact_memory, physical_cores, usable_cpus

PRECISIONS = ("fp32", "bf16", "bf16-aggregator")
_HINTED = {"fp32": "f32", "bf16": "bf16"}
HINTS = {"latency": "LATENCY", "throughput": "THROUGHPUT"}
_core: Any = None
_core_lock = threading.Lock()
_core_process: int | None = None
_loaded: weakref.WeakSet[OpenVinoBackend] = weakref.WeakSet()


def shared_core() -> Any:
    """The one ``openvino.Core`` of this process, which is never released.

    OpenVINO's CPU plugin gives the thread that loads it an alternate signal stack of its own and unmaps it when the
    last ``Core`` goes, in whatever thread that happens: the first thread is left with a stack that is no more, and its
    next signal (Ctrl-C, an alarm, a time limit) ends the process. Of the libraries used here only this one does so:
    ONNX Runtime, torch and TensorRT-RTX set no such stack, and Ray's stays mapped.

    Raises:
        BackendError: OpenVINO is not installed, or began its work before this process was forked.
    """
    global _core, _core_process
    ov = require("openvino", extra="openvino", purpose="run ONNX files with OpenVINO")
    if _core_process not in (None, os.getpid()):
        raise BackendError(
            "openvino was used before this process was forked and its threads are gone: load the model in each worker "
            "first, or start workers with multiprocessing's 'spawn'"
        )
    with _core_lock:
        if _core is None:
            _core, _core_process = ov.Core(), os.getpid()
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=_keep_for_ever)
    return _core


def _keep_for_ever() -> None:
    """In a forked child: what OpenVINO made is never released, which would wait for threads that are not there."""
    for item in (_core, *(part for backend in _loaded for part in (backend._compiled, backend._idle))):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(item))


class OpenVinoBackend(Backend):
    """An ONNX file in OpenVINO.

    Args:
        path: ONNX file with CATs metadata; files with Q/DQ run their quantized operators in INT8.
        precision: of what is not quantized: ``fp32``; ``bf16`` where the model bears it, see
            :func:`cats.runtime.backends.openvino_parts.precision_parts`; or ``bf16-aggregator``, there alone.
        hint: ``latency`` (all threads on one run) or ``throughput`` (several runs side by side, for many threads).
        threads: CPU threads; ``None`` takes one per physical core, or fewer where the process is limited.
        device: OpenVINO's name, as ``CPU`` or ``GPU``; it is used or refused, never replaced.

    Raises:
        InputError: an unknown precision, hint or number of threads.
        BackendError: the package or device is not here, or the device does not compute in bf16.
        ModelFileError: no metadata, operators of ONNX Runtime alone, or not readable by this OpenVINO.
    """

    name = "openvino"

    def __init__(
        self,
        path: str | Path,
        *,
        precision: str = "fp32",
        hint: str = "latency",
        threads: int | None = None,
        device: str = "CPU",
    ) -> None:
        if precision not in PRECISIONS:
            raise InputError(f"openvino has no precision {precision!r}: choose {', '.join(PRECISIONS)}")
        if hint not in HINTS:
            raise InputError(f"openvino has no hint {hint!r}: choose {', '.join(HINTS)}")
        check_threads(threads)
        if not isinstance(device, str):
            raise InputError(f"a device of openvino is a name such as CPU or GPU, not {device!r}")
        super().__init__(path)
        self.precision, self.hint, self.device = precision, hint, device.upper()
        self.metadata = read_onnx_metadata(path)
        if self.metadata.kind == "end-to-end" and precision != "fp32":
            raise InputError(
                f"{path} takes pixels (end-to-end), which bf16 would round: --precision fp32, or the form for pairs"
            )
        self._ov = require("openvino", extra="openvino", purpose="run ONNX files with OpenVINO")
        self.threads = threads or min(physical_cores(), usable_cpus())
        core = shared_core()
        self._check_device(core)
        settings: dict[str, Any] = {"PERFORMANCE_HINT": HINTS[hint]}
        if self.device == "CPU":
            settings["INFERENCE_NUM_THREADS"] = self.threads
        self._core, self._settings = core, settings
        self._lock = threading.Lock()
        self._compiled: dict[int | None, list[Any]] = {}
        self._idle: dict[int | None, list[list[Any]]] = {}
        self.prefers_batches = self.device != "CPU"
        _loaded.add(self)
        with compact_memory():
            model = self._read()
            self.inputs = tuple(_spec(port) for port in model.inputs)
            self.outputs = tuple(_spec(port) for port in model.outputs)
            # Fixed shapes are faster, and pairs come one at a time unless a caller stacks them.
            self._free_batch = any(spec.shape[0] is None for spec in self.inputs)
            batch = 1 if self._free_batch else None
            self._compiled[batch] = self._compile(model, batch)
            del model

    def _read(self) -> Any:
        try:
            return self._core.read_model(_plain_model(self.path))
        except RuntimeError as error:
            raise ModelFileError(f"openvino {self._version} cannot load {self.path}: {_reason(error)}") from error

    def _compile(self, model: Any, batch: int | None) -> list[Any]:
        """The model for a batch size, None for those in the file: its parts, compiled (see :mod:`openvino_parts`)."""
        try:
            if batch is not None:
                shapes = {port.get_any_name(): port.get_partial_shape() for port in model.inputs}
                for shape in shapes.values():
                    shape[0] = batch
                model.reshape(shapes)
            parts = [(model, "fp32")]
            if self.precision != "fp32":
                only = self.precision == "bf16-aggregator"
                parts = [*precision_parts(self._ov, model, aggregator_only=only)]
            self._precisions = [precision for _, precision in parts]
            return [
                self._core.compile_model(
                    part, self.device, {**self._settings, "INFERENCE_PRECISION_HINT": _HINTED[precision]}
                )
                for part, precision in parts
            ]
        except RuntimeError as error:
            raise ModelFileError(f"openvino {self._version} cannot load {self.path}: {_reason(error)}") from error

    @property
    def _version(self) -> str:
        return str(self._ov.__version__).partition("-")[0]

    def _check_device(self, core: Any) -> None:
        devices = core.available_devices
        if not any(self.device == name or name.startswith(f"{self.device}.") for name in devices):
            raise BackendError(f"openvino has no device {self.device} here; it lists {', '.join(devices) or 'none'}")
        if self.precision != "fp32":
            able = core.get_property(self.device, "OPTIMIZATION_CAPABILITIES")
            if "BF16" not in able:
                raise BackendError(
                    f"{self.device} does not compute in bf16 (openvino lists {', '.join(able)}): use --precision fp32"
                )

    def _run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run once, with infer requests that no other run has meanwhile. The first run of a batch compiles the model
        for any batch size."""
        values: dict[str, Any] = {name: self._ov.Tensor(np.ascontiguousarray(v)) for name, v in feeds.items()}
        one = self._free_batch and all(
            values[spec.name].shape[0] == 1 for spec in self.inputs if spec.name in values and spec.shape[0] is None
        )
        batch = 1 if one else None
        requests = self._take_requests(batch)
        try:
            for request in requests:
                model = request.get_compiled_model()
                for port in model.inputs:
                    request.set_tensor(port, values[port.get_any_name()])
                request.infer()
                values |= {port.get_any_name(): request.get_tensor(port) for port in model.outputs}
        except RuntimeError as error:
            raise BackendError(f"openvino ({self.device}) failed: {_reason(error)}") from error
        # Copies: the request writes its next results into the same memory.
        results = {spec.name: values[spec.name].data.copy() for spec in self.outputs}
        self._idle[batch].append(requests)  # not after a failure
        return results

    def _take_requests(self, batch: int | None) -> list[Any]:
        """Infer requests for a batch size, one of each part, that are idle or new."""
        with self._lock:
            if batch not in self._compiled:
                with compact_memory():
                    self._compiled[batch] = self._compile(self._read(), batch)
            idle = self._idle.setdefault(batch, [])
            return idle.pop() if idle else [part.create_infer_request() for part in self._compiled[batch]]

    def describe(self) -> str:
        """Version, device, precision, hint and threads."""
        quantized = f", file {self.metadata.precision}" if self.metadata.precision != "fp32" else ""
        where = f", {self.threads} thread{'' if self.threads == 1 else 's'}" if self.device == "CPU" else ""
        parts = f" (its parts in {', '.join(self._precisions)})" if len(set(self._precisions)) > 1 else ""
        return f"openvino {self._version}, {self.device}, {self.precision}{parts}{quantized}, hint {self.hint}{where}"

    def _release(self) -> None:
        self._idle = {}
        self._compiled = {}


def _plain_model(path: Path) -> bytes:
    """The file without model-local functions, which OpenVINO rejects; refuses operators that only ONNX Runtime has."""
    onnx = require("onnx", extra="openvino", purpose="expand functions for OpenVINO")
    inliner = require("onnx.inliner", extra="openvino", purpose="expand functions for OpenVINO")
    try:
        whole = whole_model(path)
        model = onnx.load_from_string(whole) if whole else onnx.load(str(path), load_external_data=False)
        if model.functions:
            model = inliner.inline_local_functions(model)
    except ModelFileError:
        raise
    except Exception as error:  # protobuf and onnx raise classes of their own
        raise ModelFileError(f"{path}: not a readable ONNX file ({_reason(error)})") from error
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain == "com.microsoft"})
    if foreign:
        raise ModelFileError(
            f"{path} has operators that only ONNX Runtime has ({', '.join(foreign)}): run it there, "
            "or write the file anew with cats-export"
        )
    if _needs_64_bits(onnx, model):
        raise ModelFileError(
            f"{path} takes pixels (end-to-end) and was written before its resize did with 32 bits, which are all that "
            "openvino has: write it anew with cats-export, or --backend onnxruntime"
        )
    data: bytes = model.SerializeToString()
    return data


def _needs_64_bits(onnx: Any, model: Any) -> bool:
    """Whether whole numbers are multiplied by one that leaves less than 8 bits to them, as an earlier resize did."""
    values = [(tensor.name, tensor) for tensor in model.graph.initializer]
    values += [
        (node.output[0], attribute.t)
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    large = {
        name
        for name, tensor in values
        if tensor.data_type == onnx.TensorProto.INT64
        and (array := onnx.numpy_helper.to_array(tensor)).size == 1
        and abs(int(array.reshape(-1)[0])) >= 1 << 23
    }
    return any(large.intersection(node.input) for node in model.graph.node if node.op_type == "Mul")


def _spec(port: Any) -> TensorSpec:
    shape = tuple(side.get_length() if side.is_static else None for side in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), np.dtype(port.get_element_type().to_dtype()), shape)


def _reason(error: Exception) -> str:
    """The last line of a message that says something: OpenVINO puts source locations first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
