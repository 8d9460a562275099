"""Which backend runs which file. Modules and their libraries are imported when one is used, not before."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cats.core.errors import BackendError, InputError, ModelFileError
from cats.core.onnx_summary import read_onnx_summary
from cats.runtime.backends.base import Backend

MAX_BATCH = 1024
"""Largest batch that a file may fix; as in libcats."""


@dataclass(frozen=True)
class Entry:
    """One backend.

    Attributes:
        module, cls: where its class is.
        suffixes: files it runs.
        library: import name of the inference library.
        extra: extra of the distribution that installs it.
        needs_gpu: the library runs nothing without an NVIDIA GPU.
    """

    module: str
    cls: str
    suffixes: tuple[str, ...]
    library: str
    extra: str
    needs_gpu: bool = False


ENGINE_SUFFIXES = (".plan", ".engine")

BACKENDS: dict[str, Entry] = {
    "onnxruntime": Entry("cats.runtime.backends.ort", "OnnxRuntimeBackend", (".onnx",), "onnxruntime", "cpu"),
    "openvino": Entry("cats.runtime.backends.openvino", "OpenVinoBackend", (".onnx",), "openvino", "openvino"),
    "tensorrt": Entry(
        "cats.runtime.backends.tensorrt", "TensorRTBackend", ENGINE_SUFFIXES, "tensorrt", "tensorrt", needs_gpu=True
    ),
    "tensorrt-rtx": Entry(
        "cats.runtime.backends.tensorrt",
        "TensorRTBackend",
        ENGINE_SUFFIXES,
        "tensorrt_rtx",
        "tensorrt-rtx",
        needs_gpu=True,
    ),
}

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")


def choose_backend(path: str | Path, backend: str | None = None) -> str:
    """Name of the backend for a model file: the one asked for, or the first whose suffixes fit.

    Raises:
        InputError: unknown backend name.
        ModelFileError: the file does not exist, is of another kind, or is not one that the backend asked for runs.
    """
    file = Path(path)
    if backend is not None and backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    if not file.is_file():
        what = "is a folder, not a model file" if file.is_dir() else "does not exist"
        raise ModelFileError(f"model {file} {what}; give an .onnx file of cats-export or a .plan of cats-build")
    suffix = file.suffix.lower()
    fitting = [name for name, entry in BACKENDS.items() if suffix in entry.suffixes]
    if backend in fitting:
        return backend
    if suffix in CHECKPOINT_SUFFIXES:
        raise ModelFileError(f"{file} is a checkpoint: export it first, cats-export --ckpt {file}")
    if not fitting:
        known = sorted({suffix for entry in BACKENDS.values() for suffix in entry.suffixes})
        raise ModelFileError(f"{file}: a model file ends in one of {', '.join(known)}")
    if backend is not None:
        wanted = " or ".join(BACKENDS[backend].suffixes)
        fix = f"build one with cats-build {file}" if suffix == ".onnx" else f"leave out --backend {backend}"
        raise ModelFileError(f"backend {backend} runs {wanted} files, not {file}: {fix}")
    return fitting[0]


def settings(backend: str) -> set[str]:
    """Names of the settings that a backend takes."""
    entry = BACKENDS[backend]
    return set(inspect.signature(getattr(importlib.import_module(entry.module), entry.cls)).parameters) - {"path"}


def open_backend(path: str | Path, backend: str | None = None, **options: Any) -> Backend:
    """Load a model file.

    Args:
        path: ONNX file or engine.
        backend: name out of :data:`BACKENDS`; ``None`` chooses by the file.
        options: settings of that backend's class (``provider``, ``device``, ``threads``, ...).

    Raises:
        InputError: an option that the backend does not have.
        ModelFileError: not a model that the backend can run.
        BackendError: its library or device is not here.
    """
    name = choose_backend(path, backend)
    entry = BACKENDS[name]
    cls = getattr(importlib.import_module(entry.module), entry.cls)
    unknown = set(options) - settings(name)
    if unknown:
        others = [
            other
            for other in BACKENDS
            if other != name and Path(path).suffix.lower() in BACKENDS[other].suffixes and unknown <= settings(other)
        ]
        fix = f": {others[0]} has, --backend {others[0]}" if others else ""
        raise InputError(f"backend {name} has no setting {', '.join(sorted(unknown))} (model {path}){fix}")
    if Path(path).suffix.lower() == ".onnx" and Path(path).is_file():
        for port in read_onnx_summary(path).inputs:  # before a library makes room for it
            _check_batch(path, port.shape)
    loaded: Backend = cls(path, **options)
    try:
        for spec in loaded.inputs:
            _check_batch(path, spec.shape)
    except ModelFileError:
        loaded.close()
        raise
    if backend is not None and loaded.name != backend:
        loaded.close()
        raise BackendError(f"{path} was built for {loaded.name}, not for {backend}: leave out --backend {backend}")
    return loaded


def _check_batch(path: str | Path, shape: tuple[int | str | None, ...]) -> None:
    if shape and isinstance(shape[0], int) and not 1 <= shape[0] <= MAX_BATCH:
        raise ModelFileError(
            f"{path} takes a fixed batch of {shape[0]}, 1 to {MAX_BATCH} are run: export it with --batch dynamic"
        )
