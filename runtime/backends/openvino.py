"""OpenVINO backend: the same ONNX files on Intel and AMD CPUs and Intel GPUs, in float32, bfloat16 or INT8."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from cats.errors import BackendError, InputError, ModelFileError, require
from cats.metadata import read_onnx_metadata
from cats.runtime.backends.base import Array, Backend, TensorSpec
from cats.runtime.hardware import physical_cores, usable_cpus

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
HINTS = {"latency": "LATENCY", "throughput": "THROUGHPUT"}


class OpenVinoBackend(Backend):
    """An ONNX file in OpenVINO.

    Args:
        path: ONNX file with CATs metadata; files with Q/DQ run their quantized operators in INT8.
        precision: of what is not quantized: ``fp32``, or ``bf16`` where the device computes in it.
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
        if threads is not None and threads < 1:
            raise InputError(f"threads must be at least 1, not {threads}")
        if not isinstance(device, str):
            raise InputError(f"a device of openvino is a name such as CPU or GPU, not {device!r}")
        self.path, self.precision, self.hint, self.device = Path(path), precision, hint, device.upper()
        self.metadata = read_onnx_metadata(path)
        self._ov = require("openvino", extra="openvino", purpose="run ONNX files with OpenVINO")
        self.threads = threads or min(physical_cores(), usable_cpus())
        core = self._ov.Core()
        self._check_device(core)
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": HINTS[hint],
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        }
        if self.device == "CPU":
            settings["INFERENCE_NUM_THREADS"] = self.threads
        plain = _plain_model(self.path)
        try:
            self._model = core.compile_model(core.read_model(plain), self.device, settings)
        except RuntimeError as error:
            raise ModelFileError(f"openvino {self._version} cannot load {path}: {_reason(error)}") from error
        self.inputs = tuple(_spec(port) for port in self._model.inputs)
        self.outputs = tuple(_spec(port) for port in self._model.outputs)
        self.prefers_batches = self.device != "CPU"
        self._local = threading.local()

    @property
    def _version(self) -> str:
        return str(self._ov.__version__).partition("-")[0]

    def _check_device(self, core: Any) -> None:
        devices = core.available_devices
        if not any(self.device == name or name.startswith(f"{self.device}.") for name in devices):
            raise BackendError(f"openvino has no device {self.device} here; it lists {', '.join(devices) or 'none'}")
        if self.precision == "bf16":
            able = core.get_property(self.device, "OPTIMIZATION_CAPABILITIES")
            if "BF16" not in able:
                raise BackendError(
                    f"{self.device} does not compute in bf16 (openvino lists {', '.join(able)}): use --precision fp32"
                )

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run once; each thread has an infer request of its own."""
        if not hasattr(self._local, "request"):
            self._local.request = self._model.create_infer_request()
        request = self._local.request
        try:
            request.infer({name: np.ascontiguousarray(value) for name, value in feeds.items()})
        except RuntimeError as error:
            raise BackendError(f"openvino ({self.device}) failed: {_reason(error)}") from error
        # Copies: the request writes its next results into the same memory.
        return {spec.name: request.get_tensor(spec.name).data.copy() for spec in self.outputs}

    def describe(self) -> str:
        """Version, device, precision, hint and threads."""
        quantized = f", file {self.metadata.precision}" if self.metadata.precision != "fp32" else ""
        where = f", {self.threads} thread{'' if self.threads == 1 else 's'}" if self.device == "CPU" else ""
        return f"openvino {self._version}, {self.device}, {self.precision}{quantized}, hint {self.hint}{where}"

    def close(self) -> None:
        """Release the compiled model and this thread's request."""
        self._local = threading.local()
        self._model = None


def _plain_model(path: Path) -> bytes:
    """The file without model-local functions, which OpenVINO rejects; refuses operators that only ONNX Runtime has."""
    onnx = require("onnx", extra="openvino", purpose="expand functions for OpenVINO")
    inliner = require("onnx.inliner", extra="openvino", purpose="expand functions for OpenVINO")
    try:
        model = onnx.load(str(path))
        if model.functions:
            model = inliner.inline_local_functions(model)
    except Exception as error:  # protobuf and onnx raise classes of their own
        raise ModelFileError(f"{path}: not a readable ONNX file ({_reason(error)})") from error
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain == "com.microsoft"})
    if foreign:
        raise ModelFileError(
            f"{path} has operators that only ONNX Runtime has ({', '.join(foreign)}): run it there, "
            "or write the file anew with cats-export"
        )
    data: bytes = model.SerializeToString()
    return data


def _spec(port: Any) -> TensorSpec:
    shape = tuple(side.get_length() if side.is_static else None for side in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), np.dtype(port.get_element_type().to_dtype()), shape)


def _reason(error: Exception) -> str:
    """The last line of a message that says something: OpenVINO puts source locations first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
