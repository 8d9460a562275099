"""List the TensorRT names that the runtime calls, with their signatures, as several releases have them.

    python tests/runtime/tensorrt_api/generate.py 10.12.0.36 10.16.1.11 11.4.0.106 rtx

writes a JSON file per release beside this file. The Python bindings of TensorRT come from PyPI and link to libraries
that do not; they import once stub libraries export the entry points (a C compiler ``cc`` makes them). ``rtx`` is the
TensorRT-RTX that is installed. A name that a release does not have is null.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from calls import SOURCES, calls_of  # noqa: E402

_ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


def describe(module: Any, names: list[str]) -> dict[str, list[str] | None]:
    """Signatures of functions (one for each overload), ``property`` or ``value``; None where there is no such name."""
    return {name: _describe(module, name) for name in names}


def _describe(module: Any, name: str) -> list[str] | None:
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            return None
        found = getattr(found, part)
    if isinstance(found, property):
        return ["property" if found.fset is None else "property, can be set"]
    if inspect.isclass(found):
        if "__members__" in dir(found):
            return ["enum"]
        return _signatures(found.__init__) or ["class"]
    if inspect.isfunction(found):
        return [f"{found.__name__}{inspect.signature(found)}"]
    return _signatures(found) or ["value"]


def _signatures(function: Any) -> list[str]:
    """Signatures out of the docstring that pybind11 writes, without module paths."""
    if not callable(function):
        return []
    name = re.escape(function.__name__)
    lines = re.findall(rf"^(?:\d+\. )?({name}\(.*\)(?: -> .*)?)$", function.__doc__ or "", re.MULTILINE)
    plain = [re.sub(r"\b(?:tensorrt_rtx_bindings|tensorrt_bindings)\.\w+\.", "", line) for line in lines]
    return [line for line in plain if line != f"{function.__name__}(*args, **kwargs)"]


def _write(label: str, module: Any) -> None:
    names = sorted({call.name for source in SOURCES for call in calls_of(source.read_text("utf-8"))})
    document = {"version": module.__version__, "names": describe(module, names)}
    (HERE / f"{label}.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def _list_release(version: str) -> None:
    """Install the bindings of a release in a temporary folder, give them stub libraries, and list them there."""
    major = version.partition(".")[0]
    with tempfile.TemporaryDirectory() as folder:
        package = f"tensorrt-cu12-bindings=={version}"  # the same names as for CUDA 13, and every release is there
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, package]
        subprocess.run(pip, check=True)
        source = Path(folder, "stubs.c")
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _ENTRY_POINTS))
        for library in _LIBRARIES:
            file = f"lib{library}.so.{major}"
            stub = ["cc", "-shared", "-fPIC", "-o", str(Path(folder, file)), str(source), f"-Wl,-soname,{file}"]
            subprocess.run(stub, check=True)
        paths = {"LD_LIBRARY_PATH": folder, "PYTHONPATH": folder}
        label = "tensorrt-" + ".".join(version.split(".")[:2])
        command = [sys.executable, __file__, "--module", "tensorrt_bindings", label]
        subprocess.run(command, check=True, env={**os.environ, **paths})


def main() -> None:
    """List the releases given as arguments."""
    if sys.argv[1:2] == ["--module"]:
        _write(sys.argv[3], importlib.import_module(sys.argv[2]))
        return
    for version in sys.argv[1:]:
        if version == "rtx":
            _write("tensorrt-rtx", importlib.import_module("tensorrt_rtx"))
        else:
            _list_release(version)


if __name__ == "__main__":
    main()
