"""Kernels that an ONNX file of ``cats-export --for tensorrt`` brings along, as plugins of TensorRT.

They are plugins of TensorRT's own kind for kernels compiled ahead of time (``tensorrt.plugin``, an IPluginV3 inside):
the plan holds the compiled kernel and needs neither Python nor this toolkit to run. TensorRT-RTX has no such plugins;
it, and a TensorRT that is too old, expands the nodes' functions instead.
"""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from cats.core.console import note
from cats.core.errors import ModelFileError
from cats.core.json_text import parse_json
from cats.core.onnx_file import read_onnx_entry
from cats.runtime.hardware import nvidia
from cats.runtime.tensorrt.flavours import Flavour

KERNELS_KEY = "cats.kernels"
"""Entry of ``metadata_props`` that holds the kernels, as JSON."""

_FORMAT = 1
_registered: dict[str, str] = {}  # name of a plugin -> its description; TensorRT keeps them for the whole process


def register_plugins(trt: ModuleType, flavour: Flavour, path: str | Path, *, portable: bool = False) -> list[str]:
    """Register the plugins that a file has kernels for, before it is parsed.

    Args:
        portable: take kernels that later GPUs run too; else those for this machine's GPU alone, where there are some.

    Returns:
        Their names; empty where the file has none, or, with a note why, where this TensorRT or GPU does not take them.

    Raises:
        ModelFileError: the kernels are damaged, of a newer toolkit, or other ones of the same names are in use.
    """
    text = read_onnx_entry(path, KERNELS_KEY)
    if text is None:
        return []
    gpus = nvidia().gpus
    present = 10 * gpus[0].compute_capability[0] + gpus[0].compute_capability[1] if gpus else None
    plugins, capability = _parse(text, path, None if portable else present)
    problem = _problem(trt, flavour, capability)
    if problem:
        note(f"{path}: its kernels are not used, {problem}; the nodes' functions take their place")
        return []
    library = importlib.import_module(f"{flavour.module}.plugin")
    names = []
    for plugin in plugins:
        name, description = plugin["name"], json.dumps(plugin, sort_keys=True)
        if name not in _registered:
            _register(trt, library, plugin)
            _registered[name] = description
        elif _registered[name] != description:
            raise ModelFileError(f"{path}: {name} is in use with another kernel: build each model in its own process")
        names.append(name)
    return names


def creation_flags(trt: ModuleType) -> int:
    """Bits of the network that ask for kernels compiled ahead of time; 0 where TensorRT has no such kernels."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "PREFER_AOT_PYTHON_PLUGINS", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(text: bytes, path: str | Path, present: int | None) -> tuple[list[dict[str, Any]], int]:
    document = parse_json(text, f"{path}: its kernels are damaged, export it again: the list", error=ModelFileError)
    try:
        if document["format"] > _FORMAT:
            raise ModelFileError(
                f"{path}: kernels of a newer toolkit (format {document['format']}): upgrade cats-toolkit"
            )
        plugins = [
            {
                "name": str(plugin["name"]),
                "inputs": int(plugin["inputs"]),
                "outputs": [[int(side) for side in shape] for shape in plugin["outputs"]],
                "kernel": {key: kernel[key] for key in ("name", "ptx", "grid", "threads", "shared_bytes")},
            }
            for plugin in document["plugins"]
            for kernel in [plugin.get("kernel_of", {}).get(str(present), plugin["kernel"])]
        ]
        return plugins, int(document["capability"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: its kernels are damaged ({error}): export it again") from error


def _problem(trt: ModuleType, flavour: Flavour, capability: int) -> str | None:
    """Why kernels cannot be used."""
    if not hasattr(trt, "QuickPluginCreationRequest") or not creation_flags(trt):
        return f"{flavour.name} {trt.__version__} has no plugins of kernels compiled ahead of time"
    gpus = nvidia().gpus
    if gpus and 10 * gpus[0].compute_capability[0] + gpus[0].compute_capability[1] < capability:
        return f"they are for compute capability {capability / 10} or later and {gpus[0].name} is older"
    return None


def _register(trt: ModuleType, library: ModuleType, plugin: dict[str, Any]) -> None:
    """One plugin; TensorRT reads the number of tensors off the signatures of the two functions."""
    names = [f"x{index}" for index in range(plugin["inputs"])]
    kernel, outputs = plugin["kernel"], plugin["outputs"]

    def describe(*inputs: Any) -> Any:
        batch = inputs[0].shape_expr[0]
        return tuple(library.from_shape_expr((batch, *shape), trt.float32) for shape in outputs)

    def implement(*arguments: Any) -> Any:
        launch = library.KernelLaunchParams()
        launch.grid_x, launch.grid_y = kernel["grid"]
        launch.grid_z = arguments[0].shape_expr[0]
        launch.block_x = kernel["threads"]
        launch.shared_mem = kernel["shared_bytes"]
        return kernel["name"], kernel["ptx"], launch, library.SymIntExprs(0)

    tensor: Any = library.TensorDesc
    results = tuple.__class_getitem__((tensor,) * len(outputs))
    _sign(describe, names, tensor, results)
    compiled = tuple.__class_getitem__((str, str, library.KernelLaunchParams, library.SymIntExprs))
    _sign(implement, [*names, "outputs", "tactic"], inspect.Parameter.empty, compiled)
    library.register(plugin["name"])(describe)
    library.aot_impl(plugin["name"])(implement)


def _sign(function: Any, names: list[str], annotation: Any, returns: Any) -> None:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=annotation) for name in names]
    function.__signature__ = inspect.Signature(parameters, return_annotation=returns)
