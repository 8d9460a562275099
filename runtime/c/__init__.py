"""The C library: where its header, shared library and build files are, for building programs against it.

::

    cc app.c $(python -m cats.runtime.c --cflags --libs) -o app
    cmake -DCMAKE_PREFIX_PATH=$(python -m cats.runtime.c --cmake-dir) ...     # find_package(cats)
    PKG_CONFIG_PATH=$(python -m cats.runtime.c --pkgconfig-dir) pkg-config --cflags --libs cats

``include/cats.h`` documents the library itself.
"""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

from cats.core.errors import BackendError

ORT_FILES = ("libonnxruntime.so*", "libonnxruntime.*dylib", "onnxruntime.dll")  # Linux, macOS, Windows

ROOT = Path(__file__).resolve().parent
"""Folder of the header (``include``), sources (``src``), build files (``cmake``) and examples."""


def get_include() -> str:
    """Folder of ``cats.h``."""
    return str(ROOT / "include")


def get_cmake_dir() -> str:
    """Folder of ``cats-config.cmake``, for ``CMAKE_PREFIX_PATH`` or ``cats_DIR``."""
    return str(ROOT / "cmake")


def get_pkgconfig_dir() -> str:
    """Folder of ``cats.pc``, for ``PKG_CONFIG_PATH``."""
    return str(ROOT / "cmake")


def get_library() -> str:
    """File of ``libcats.so``.

    Raises:
        BackendError: this is a pure installation, without the library.
    """
    library = ROOT / "libcats.so"
    if not library.is_file():
        raise BackendError(
            f"libcats.so is not part of this installation (it was made without a C compiler, or with CATS_NO_NATIVE): "
            f"install a C compiler and cats-toolkit again, or build it from {ROOT} with cmake"
        )
    return str(library)


def find_onnxruntime() -> str:
    """Folder of the ONNX Runtime library of the Python package, for ``CATS_ORT_LIBRARY`` or ``ort_library``.

    Raises:
        BackendError: the package is not installed, or has no such library (before 1.19).
    """
    found = importlib.util.find_spec("onnxruntime")
    if found is None or found.origin is None:
        raise BackendError("onnxruntime is not installed: pip install 'cats-toolkit[cpu]'")
    folder = Path(found.origin).parent / "capi"
    if not any(any(folder.glob(pattern)) for pattern in ORT_FILES):
        raise BackendError(f"{folder} has no library of ONNX Runtime: upgrade onnxruntime to 1.20 or newer")
    return str(folder)


def compile_flags() -> str:
    """Flags for compiling against the header, quoted for a shell."""
    return shlex.quote(f"-I{get_include()}")


def link_flags() -> str:
    """Flags for linking against the library and finding it when the program runs, quoted for a shell.

    Raises:
        BackendError: see :func:`get_library`.
    """
    folder = str(Path(get_library()).parent)
    return shlex.join([f"-L{folder}", f"-Wl,-rpath,{folder}", "-lcats"])
