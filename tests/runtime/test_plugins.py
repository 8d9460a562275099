"""Kernels of a file as TensorRT plugins: what is registered, with a stand-in for ``tensorrt.plugin``, and refusals."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import pytest
from onnx import helper

from cats.core.errors import ModelFileError
from cats.runtime.hardware import Gpu, Nvidia
from cats.runtime.tensorrt import plugins
from cats.runtime.tensorrt.flavours import Flavour
from cats.runtime.tensorrt.plugins import KERNELS_KEY, creation_flags, register_plugins

FLAVOUR = Flavour("tensorrt", "stand_in", targets=False)
KERNEL = {"name": "scores_kernel", "ptx": ".entry scores_kernel", "grid": [16, 3], "threads": 128, "shared_bytes": 512}
PLUGIN = {"name": "cats::CorrelationScores", "inputs": 6, "outputs": [[3, 256, 256], [3, 4, 256]], "kernel": KERNEL}


def file(folder: Path, document: Any) -> Path:
    """An ONNX file that holds nothing but kernels."""
    model = helper.make_model(helper.make_graph([], "g", [], []))
    helper.set_model_props(model, {KERNELS_KEY: document if isinstance(document, str) else json.dumps(document)})
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def document(**changes: Any) -> dict[str, Any]:
    return {"format": 1, "capability": 80, "plugins": [PLUGIN], **changes}


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """TensorRT 11's names, as far as plugins need them; what is registered lands in ``trt.found``."""
    found: dict[str, list[Any]] = {}
    library: Any = ModuleType("stand_in.plugin")
    library.TensorDesc = type("TensorDesc", (), {})
    library.KernelLaunchParams = type("KernelLaunchParams", (), {})
    library.SymIntExprs = type("SymIntExprs", (list,), {"__init__": lambda self, length: None})
    library.from_shape_expr = lambda shape, dtype: (shape, dtype)
    for name in ("register", "aot_impl"):
        setattr(library, name, lambda plugin: lambda function: found.setdefault(plugin, []).append(function))
    monkeypatch.setitem(sys.modules, "stand_in", ModuleType("stand_in"))
    monkeypatch.setitem(sys.modules, "stand_in.plugin", library)
    monkeypatch.setattr(plugins, "_registered", {})
    monkeypatch.setattr(plugins, "nvidia", lambda: Nvidia(None, (), "no driver"))
    flags = SimpleNamespace(PREFER_AOT_PYTHON_PLUGINS=2)
    return SimpleNamespace(
        __version__="11.4",
        float32="float32",
        QuickPluginCreationRequest=None,
        NetworkDefinitionCreationFlag=flags,
        library=library,
        found=found,
    )


def test_shapes_launch_and_signatures(trt: SimpleNamespace, tmp_path: Path) -> None:
    path = file(tmp_path, document())
    assert register_plugins(trt, FLAVOUR, path) == ["cats::CorrelationScores"]
    assert creation_flags(trt) == 4
    describe, implement = trt.found["cats::CorrelationScores"]
    signature = inspect.signature(describe)
    assert len(signature.parameters) == 6
    assert all(p.annotation is trt.library.TensorDesc for p in signature.parameters.values())
    assert get_args(signature.return_annotation) == (trt.library.TensorDesc,) * 2
    assert list(inspect.signature(implement).parameters)[-2:] == ["outputs", "tactic"]
    inputs = [SimpleNamespace(shape_expr=("B", 64, 256)) for _ in range(6)]
    assert describe(*inputs) == ((("B", 3, 256, 256), "float32"), (("B", 3, 4, 256), "float32"))
    name, ptx, launch, extra = implement(*inputs, (), None)
    assert (name, ptx, extra) == (KERNEL["name"], KERNEL["ptx"], [])
    assert vars(launch) == {"grid_x": 16, "grid_y": 3, "grid_z": "B", "block_x": 128, "shared_mem": 512}


def test_a_process_registers_each_plugin_once_and_not_another_of_its_name(trt: SimpleNamespace, tmp_path: Path) -> None:
    path = file(tmp_path, document())
    for _ in range(2):
        assert register_plugins(trt, FLAVOUR, path)
    assert len(trt.found["cats::CorrelationScores"]) == 2  # description and kernel
    path = file(tmp_path, document(plugins=[{**PLUGIN, "inputs": 4}]))
    with pytest.raises(ModelFileError, match=r"cats::CorrelationScores is in use.*its own process"):
        register_plugins(trt, FLAVOUR, path)


@pytest.mark.parametrize(
    ("capability", "portable", "expected"),
    [((9, 0), False, "hopper"), ((9, 0), True, "any"), ((12, 0), False, "any"), (None, False, "any")],
)
def test_a_gpu_takes_the_kernel_that_was_compiled_for_it(
    trt: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int] | None,
    portable: bool,
    expected: str,
) -> None:
    several = {**PLUGIN, "kernel": {**KERNEL, "ptx": "any"}, "kernel_of": {"90": {**KERNEL, "ptx": "hopper"}}}
    if capability:
        gpu = Gpu(0, "a GPU", capability, 1 << 34)
        monkeypatch.setattr(plugins, "nvidia", lambda: Nvidia((13, 0), (gpu,), None))
    assert register_plugins(trt, FLAVOUR, file(tmp_path, document(plugins=[several])), portable=portable)
    _, implement = trt.found["cats::CorrelationScores"]
    assert implement(SimpleNamespace(shape_expr=("B",)), (), None)[1] == expected


def test_a_tensorrt_or_gpu_that_does_not_take_them(
    trt: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file(tmp_path, document())
    gpu = Gpu(0, "Tesla T4", (7, 5), 1 << 34)
    monkeypatch.setattr(plugins, "nvidia", lambda: Nvidia((13, 0), (gpu,), None))
    assert register_plugins(trt, FLAVOUR, path) == []
    assert "compute capability 8.0 or later and Tesla T4 is older" in capsys.readouterr().err.replace("\n", " ")
    del trt.QuickPluginCreationRequest
    assert register_plugins(trt, FLAVOUR, path) == []
    assert "has no plugins of kernels compiled ahead of time" in capsys.readouterr().err.replace("\n", " ")
    assert not trt.found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ("[" * 100_000, "damaged, export it again"),
        (document(capability=1e400), "Infinity is not a finite number"),
        (document(plugins=[{"name": "x"}]), "damaged"),
        (document(plugins=[{**PLUGIN, "kernel_of": []}]), "damaged"),
        (document(format=2), "newer toolkit"),
    ],
)
def test_damaged_kernels(trt: SimpleNamespace, tmp_path: Path, text: Any, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        register_plugins(trt, FLAVOUR, file(tmp_path, text))


def test_files_without_kernels_need_nothing(tmp_path: Path) -> None:
    model = helper.make_model(helper.make_graph([], "g", [], []))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert register_plugins(ModuleType("none"), FLAVOUR, tmp_path / "model.onnx") == []
