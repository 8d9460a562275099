"""Builds libcats from its sources and calls it through ctypes, for tests and benchmarks of the C library."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cats.runtime.c import ROOT, find_onnxruntime

CC = os.environ.get("CC", "gcc")
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
BASE = ["-std=c11", "-O2", "-g", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-DCATS_BUILD", *STRICT]
INCLUDE = [f"-I{ROOT / 'include'}", f"-I{ROOT / 'src'}"]
LIBS = ["-pthread", "-ldl", "-lm"]
SOURCES = sorted(map(str, (ROOT / "src").glob("*.c")))
RGB, BGR, RGBA, BGRA, GREY = 1, 2, 3, 4, 5
ARGUMENT, FILE, MODEL, RUNTIME, MEMORY, STATE, BUSY = 1, 2, 3, 4, 5, 6, 7
HAVE_COMPILER = shutil.which(CC) is not None


def compile_c(command: Sequence[str | Path], *, cwd: Path | None = None) -> None:
    """Run a compiler; its words become the failure."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stderr[-4000:]}"


def build_library(folder: Path, *flags: str, compiler: str = CC) -> Path:
    """``libcats.so`` with further flags."""
    library = folder / "libcats.so"
    command = [
        compiler,
        *BASE,
        *flags,
        *INCLUDE,
        *SOURCES,
        "-shared",
        "-Wl,-soname,libcats.so",
        *LIBS,
        "-o",
        str(library),
    ]
    compile_c(command)
    return library


def environment(**more: str) -> dict[str, str]:
    """The environment of a program that uses libcats, with ONNX Runtime named and nothing else of it found."""
    return {**os.environ, "CATS_ORT_LIBRARY": find_onnxruntime(), **more}


class Image(ctypes.Structure):
    """``cats_image``."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("stride", ctypes.c_int64),
        ("format", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class Options(ctypes.Structure):
    """``cats_options``."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("provider", ctypes.c_char_p),
        ("device", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("stream", ctypes.c_void_p),
        ("ort_library", ctypes.c_char_p),
        ("partner_path", ctypes.c_char_p),
        ("partner_data", ctypes.c_char_p),
        ("partner_size", ctypes.c_size_t),
        ("max_pixels", ctypes.c_int64),
        ("run_pairs", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )


class Info(ctypes.Structure):
    """``cats_info``."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("image_width", ctypes.c_int32),
        ("image_height", ctypes.c_int32),
        ("grid", ctypes.c_int32),
        ("max_batch", ctypes.c_int32),
        ("split", ctypes.c_int32),
        ("verified", ctypes.c_int32),
        ("calibrated", ctypes.c_int32),
        ("mean", ctypes.c_float * 3),
        ("std", ctypes.c_float * 3),
        ("precision", ctypes.c_char_p),
        ("weights", ctypes.c_char_p),
        ("provider", ctypes.c_char_p),
        ("ort_version", ctypes.c_char_p),
        ("ort_library", ctypes.c_char_p),
    )


class DeviceBatch(ctypes.Structure):
    """``cats_device_batch``."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("image_a", ctypes.c_void_p),
        ("image_b", ctypes.c_void_p),
        ("flow", ctypes.c_void_p),
        ("confidence", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("stream", ctypes.c_void_p),
    )


_P, _N, _I32 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32
_ARGUMENTS = {
    "cats_open": (ctypes.c_char_p, _P, _P),
    "cats_open_memory": (ctypes.c_char_p, _N, _P, _P),
    "cats_close": (_P,),
    "cats_get_info": (_P, _P),
    "cats_context_create": (_P, _P),
    "cats_context_destroy": (_P,),
    "cats_match": (_P, _P, _P),
    "cats_match_batch": (_P, _P, _P, _N),
    "cats_features_create": (_P, _P),
    "cats_features_destroy": (_P,),
    "cats_encode": (_P, _P, _P),
    "cats_match_features": (_P, _P, _P, _N),
    "cats_pair_count": (_P,),
    "cats_flow": (_P, _N, _P, _N),
    "cats_confidence": (_P, _N, _P, _N),
    "cats_calibrated_confidence": (_P, _N, _P, _N),
    "cats_transfer": (_P, _N, _P, _N, _P),
    "cats_confidence_at": (_P, _N, _P, _N, _P),
    "cats_dense_flow": (_P, _N, _I32, _I32, _I32, _I32, _P, _N),
    "cats_preprocess": (_P, _P, _P, _N),
    "cats_match_device": (_P, _P),
}


class CatsStatusError(Exception):
    """A call that did not return CATS_OK."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Library:
    """``libcats.so`` with the types of its functions; ``call`` raises for a status other than 0."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw = ctypes.CDLL(str(path))
        for name in ("cats_last_error", "cats_version", "cats_status_name"):
            getattr(self.raw, name).restype = ctypes.c_char_p
        self.raw.cats_pair_count.restype = ctypes.c_size_t
        for name, arguments in _ARGUMENTS.items():
            getattr(self.raw, name).argtypes = arguments

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.raw, name)(*arguments)
        if status:
            raise CatsStatusError(status, self.raw.cats_last_error().decode())

    def options(self, **changes: Any) -> Options:
        values = {"ort_library": find_onnxruntime().encode(), "threads": 2, **changes}
        return Options(struct_size=ctypes.sizeof(Options), **values)

    def open(self, model: Path | bytes, **changes: Any) -> CMatcher:
        """Open a file, or a model in memory, with a context."""
        handle, options = ctypes.c_void_p(), self.options(**changes)
        if isinstance(model, bytes):
            self.call("cats_open_memory", model, len(model), ctypes.byref(options), ctypes.byref(handle))
        else:
            self.call("cats_open", str(model).encode(), ctypes.byref(options), ctypes.byref(handle))
        return CMatcher(self, handle)


def image(array: np.ndarray, fmt: int = RGB, **changes: Any) -> Image:
    """A ``cats_image`` over an array (H, W[, C]) whose rows may have gaps, or run upwards."""
    made = Image(ctypes.sizeof(Image), array.ctypes.data, array.shape[1], array.shape[0], array.strides[0], fmt, 0)
    for name, value in changes.items():
        setattr(made, name, value)
    made.kept = array
    return made


class CMatcher:
    """A matcher and one context; results as numpy arrays."""

    def __init__(self, library: Library, handle: ctypes.c_void_p) -> None:
        self.library, self.handle, self.context = library, handle, ctypes.c_void_p()
        library.call("cats_context_create", handle, ctypes.byref(self.context))
        self.info = Info(struct_size=ctypes.sizeof(Info))
        library.call("cats_get_info", handle, ctypes.byref(self.info))

    def match(self, a: Image, b: Image) -> None:
        self.library.call("cats_match", self.context, ctypes.byref(a), ctypes.byref(b))

    def match_batch(self, a: Sequence[Image], b: Sequence[Image]) -> None:
        self.library.call("cats_match_batch", self.context, _pointers(a), _pointers(b), len(a))

    def encode(self, picture: Image) -> ctypes.c_void_p:
        features = ctypes.c_void_p()
        self.library.call("cats_features_create", self.handle, ctypes.byref(features))
        self.library.call("cats_encode", self.context, ctypes.byref(picture), features)
        return features

    def match_features(self, a: Sequence[ctypes.c_void_p], b: Sequence[ctypes.c_void_p]) -> None:
        one, two = ((ctypes.c_void_p * len(side))(*(item.value for item in side)) for side in (a, b))
        self.library.call("cats_match_features", self.context, one, two, len(a))

    def flow(self, pair: int = 0) -> np.ndarray:
        return self._read("cats_flow", pair, (2, self.info.grid, self.info.grid))

    def confidence(self, pair: int = 0) -> np.ndarray:
        return self._read("cats_confidence", pair, (self.info.grid, self.info.grid))

    def calibrated_confidence(self, pair: int = 0) -> np.ndarray:
        return self._read("cats_calibrated_confidence", pair, (self.info.grid, self.info.grid))

    def _read(self, name: str, pair: int, shape: tuple[int, ...]) -> np.ndarray:
        result = np.full(shape, np.nan, np.float32)
        self.library.call(name, self.context, pair, result.ctypes.data, result.size)
        return result

    def transfer(self, points: Any, pair: int = 0) -> np.ndarray:
        given = np.ascontiguousarray(points, np.float64)
        result = np.full(given.shape, np.nan)
        self.library.call("cats_transfer", self.context, pair, given.ctypes.data, len(given), result.ctypes.data)
        return result

    def confidence_at(self, points: Any, pair: int = 0) -> np.ndarray:
        given = np.ascontiguousarray(points, np.float64)
        result = np.full(len(given), np.nan)
        self.library.call("cats_confidence_at", self.context, pair, given.ctypes.data, len(given), result.ctypes.data)
        return result

    def dense_flow(self, size_a: tuple[int, int], sizes: tuple[int, int, int, int] = (0, 0, 0, 0)) -> np.ndarray:
        result = np.full((size_a[1], size_a[0], 2), np.nan, np.float32)
        self.library.call("cats_dense_flow", self.context, 0, *sizes, result.ctypes.data, result.size)
        return result

    def preprocess(self, picture: Image) -> np.ndarray:
        result = np.full((3, self.info.image_height, self.info.image_width), np.nan, np.float32)
        self.library.call("cats_preprocess", self.context, ctypes.byref(picture), result.ctypes.data, result.size)
        return result

    def close(self) -> None:
        self.library.raw.cats_context_destroy(self.context)
        self.library.raw.cats_close(self.handle)


def _pointers(images: Sequence[Image]) -> Any:
    return (ctypes.c_void_p * len(images))(*(ctypes.addressof(item) for item in images))
