"""Engines really built by TensorRT-RTX from every form of a small model, in float32 and float16."""

import copy

import onnx
import pytest
from onnx.tools.update_model_dims import update_inputs_outputs_dims

from cats.core.errors import InputError
from cats.core.metadata import write_model
from cats.export.export import describe
from cats.export.fp16.assign import to_fp16
from cats.export.kernels.plugin_nodes import use_plugins
from cats.runtime.tensorrt.engine import EngineOptions, build_engine
from cats.runtime.tensorrt.sidecar import read_sidecar

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


@pytest.fixture
def save(model, tmp_path):
    """Write a graph as ``cats-export`` does: ``save(graph, kind, precision)`` -> path."""

    def write(graph, kind, precision):
        path = tmp_path / "model.onnx"
        write_model(copy.deepcopy(graph), describe(model, kind, precision=precision, opset=20), path)
        return path

    return write


@pytest.mark.parametrize("kind", ["pair", "pair-inline", "encoder", "matcher"])
def test_float16_with_a_dynamic_batch(forms, save, kind):
    path = save(to_fp16(forms[kind]), kind.removesuffix("-inline"), "fp16")
    plan = build_engine(path, options=EngineOptions(batch=(1, 2, 4)))
    sidecar = read_sidecar(plan)
    assert plan.read_bytes()[:4] == b"vtrt"
    assert sidecar.precision == "fp16"
    (profile,) = sidecar.engine["profiles"]
    assert set(profile) == {value.name for value in forms[kind].graph.input}
    for shapes in profile.values():
        assert [shapes[name][0] for name in ("min", "opt", "max")] == [1, 2, 4]


def test_float32_is_larger(forms, save):
    sizes = {}
    for precision, graph in (("fp32", forms["pair"]), ("fp16", to_fp16(forms["pair"]))):
        path = save(graph, "pair", precision)
        sizes[precision] = build_engine(path, path.with_suffix(f".{precision}.plan")).stat().st_size
    assert sizes["fp16"] < sizes["fp32"]


def test_float16_with_a_fixed_batch(forms, save):
    graph = copy.deepcopy(forms["pair"])
    del graph.graph.value_info[:]
    sizes = {v.name: [d.dim_value or 2 for d in v.type.tensor_type.shape.dim] for v in graph.graph.input}
    results = {v.name: [d.dim_value or 2 for d in v.type.tensor_type.shape.dim] for v in graph.graph.output}
    graph = update_inputs_outputs_dims(graph, sizes, results)
    path = save(to_fp16(onnx.shape_inference.infer_shapes(graph)), "pair", "fp16")
    with pytest.raises(InputError, match="fixed batch of 2: leave out --batch"):
        build_engine(path, options=EngineOptions(batch=(1, 2, 4)))
    plan = build_engine(path)
    assert read_sidecar(plan).engine["profiles"] == []


def test_end_to_end_takes_ranges_of_sizes(forms, save):
    path = save(to_fp16(forms["end-to-end"]), "end-to-end", "fp16")
    plan = build_engine(path, options=EngineOptions(sides=(16, 100, 400), points=(1, 5, 50)))
    assert plan.read_bytes()[:4] == b"vtrt"
    (profile,) = read_sidecar(plan).engine["profiles"]
    assert profile["image_a"] == {"min": [1, 16, 16, 3], "opt": [1, 100, 100, 3], "max": [1, 400, 400, 3]}
    assert profile["points_a"] == {"min": [1, 1, 2], "opt": [1, 5, 2], "max": [1, 50, 2]}


def test_ranges_of_sizes_are_for_end_to_end_alone(forms, save, tmp_path):
    path = save(to_fp16(forms["pair"]), "pair", "fp16")
    with pytest.raises(InputError, match="kind pair takes images of one size and no points"):
        build_engine(path, options=EngineOptions(sides=(16, 100, 400)))
    assert not list(tmp_path.glob("*.plan*"))


def test_kernels_for_tensorrt_are_left_aside_by_tensorrt_rtx(forms, save, capsys):
    triton = pytest.importorskip("triton", reason="triton is not installed")
    assert triton
    path = save(use_plugins(to_fp16(forms["pair"])), "pair", "fp16")
    plan = build_engine(path, options=EngineOptions(batch=(1, 2, 4)))
    assert read_sidecar(plan).engine["plugins"] == []
    assert "its kernels are not used, tensorrt-rtx" in capsys.readouterr().err
