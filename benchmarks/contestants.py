"""What :func:`cats.benchmarks.bench.bench` runs side by side, and on which device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cats.benchmarks.exports import FOR_CPU, NAIVE, OURS, Exports
from cats.core.errors import BackendError
from cats.core.metadata import read_onnx_metadata
from cats.export.graph.deployment import DeploymentOptions
from cats.runtime.backends import ENGINE_SUFFIXES
from cats.runtime.hardware import nvidia

BASELINES = {"cpu": "PyTorch eager, as the authors compute", "gpu": "PyTorch CUDA, as the authors compute"}
"""By device, the contestant that ratios of the others there refer to: never to another device's."""


def contestants(
    exports: Exports, threads: int, *, files: Sequence[Path] = (), int8: Path | None = None
) -> dict[str, Callable[[], dict[str, Any]]]:
    """By name, what makes the specification of its worker; raises :class:`BackendError` where it cannot run.

    Args:
        threads: of every contestant on the CPU.
        files: further model files. ONNX files run on the CPU, and on an NVIDIA GPU where there is one.
        int8: folder of photos to calibrate on; None leaves INT8 out.
    """

    def torch_spec(variant: str, device: str = "cpu") -> dict[str, Any]:
        if device != "cpu" and not torch.cuda.is_available():
            raise BackendError(nvidia().problem or "this build of torch has no CUDA")
        checkpoint = str(exports.checkpoint())
        return {"kind": "torch", "variant": variant, "path": checkpoint, "threads": threads, "device": device}

    def file(path: Path, backend: str | None, **options: Any) -> dict[str, Any]:
        spec: dict[str, Any] = {"kind": "file", "path": str(path), "threads": threads, "options": options}
        return {**spec, "backend": backend} if backend else spec

    def ort(options: DeploymentOptions) -> dict[str, Any]:
        return file(exports.pair(options), "onnxruntime", provider="cpu", threads=threads)

    def openvino(precision: str, options: DeploymentOptions = OURS) -> dict[str, Any]:
        return file(exports.pair(options), "openvino", precision=precision, threads=threads)

    def quantized(photos: Path, backend: str, **options: Any) -> dict[str, Any]:
        return file(exports.int8(photos, threads), backend, threads=threads, **options)

    def cuda(path: Path | None = None) -> dict[str, Any]:
        if nvidia().problem:
            raise BackendError(nvidia().problem or "")
        return file(path or exports.pair(OURS), "onnxruntime", provider="cuda")

    makers: dict[str, Callable[[], dict[str, Any]]] = {
        BASELINES["cpu"]: lambda: torch_spec("authors"),
        "PyTorch eager, ours": lambda: torch_spec("ours"),
        "PyTorch eager, our deployment graph": lambda: torch_spec("graph"),
        "PyTorch compiled": lambda: torch_spec("compile"),
        "ONNX Runtime, naive export": lambda: ort(NAIVE),
        "ONNX Runtime": lambda: ort(OURS),
        "ONNX Runtime, --for cpu": lambda: ort(FOR_CPU),
        "OpenVINO fp32": lambda: openvino("fp32"),
        "OpenVINO fp32, --for cpu": lambda: openvino("fp32", FOR_CPU),
        "OpenVINO bf16": lambda: openvino("bf16"),
        "OpenVINO bf16, --for cpu": lambda: openvino("bf16", FOR_CPU),
        BASELINES["gpu"]: lambda: torch_spec("authors", "cuda"),
        "PyTorch CUDA": lambda: torch_spec("ours", "cuda"),
        "PyTorch CUDA, our deployment graph": lambda: torch_spec("graph", "cuda"),
        "ONNX Runtime CUDA": cuda,
    }
    if int8 is not None:
        photos = int8
        makers["ONNX Runtime int8"] = lambda: quantized(photos, "onnxruntime", provider="cpu")
        makers["OpenVINO int8"] = lambda: quantized(photos, "openvino")
        makers["OpenVINO int8 + bf16"] = lambda: quantized(photos, "openvino", precision="bf16")
    for path in files:
        if path.suffix != ".onnx":
            makers[f"TensorRT, {path.name}"] = partial(file, path, None)
            continue
        kind = " int8" if read_onnx_metadata(path).precision == "int8" else ""
        makers[f"ONNX Runtime{kind}, {path.name}"] = partial(file, path, "onnxruntime", provider="cpu", threads=threads)
        if kind:
            makers[f"OpenVINO int8, {path.name}"] = partial(file, path, "openvino", threads=threads)
        if not nvidia().problem:
            makers[f"ONNX Runtime CUDA{kind}, {path.name}"] = partial(cuda, path)
    if not any(path.suffix in (".plan", ".engine") for path in files):
        makers["TensorRT"] = _no_engine
    return makers


def _no_engine() -> dict[str, Any]:
    raise BackendError(nvidia().problem or "give the engine of cats-build with --file MODEL.plan")


def device_of(spec: Mapping[str, Any]) -> str:
    """Where a worker's specification computes: ``cpu`` or ``gpu``."""
    on_gpu = (
        spec.get("device") == "cuda"
        or spec.get("options", {}).get("provider") == "cuda"
        or Path(spec["path"]).suffix in ENGINE_SUFFIXES
    )
    return "gpu" if on_gpu else "cpu"
