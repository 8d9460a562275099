"""The CUDA kernels of ``cats::Correlation``: in Triton's interpreter, compiled without a GPU, and on a GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_models import image_pair

from cats.core.errors import BackendError, CatsError, InputError
from cats.core.metadata import write_model
from cats.core.process import child_environment
from cats.export.export import describe
from cats.export.exported import ExportedModel
from cats.export.fp16.assign import to_fp16
from cats.export.graph.correlation import correlation
from cats.export.kernels.plugin_nodes import use_plugins
from cats.export.storage import inline_functions
from cats.runtime.tensorrt.engine import EngineOptions, build_engine
from cats.runtime.tensorrt.flavours import find_flavour
from cats.runtime.tensorrt.plugins import KERNELS_KEY
from cats.runtime.tensorrt.sidecar import read_sidecar

triton = pytest.importorskip("triton", reason="triton is not installed")

from cats.export.kernels import compiled  # noqa: E402
from cats.export.kernels import triton as correlation_kernel  # noqa: E402

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
CASES = [((5, 40), 16, 2), ((33, 7, 64), 100, 1), ((3,), 256, 1)]
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"


def features(channels, cells, batch, dtype, device="cpu", last=False):
    """Levels of very different size, one position without any feature; ``last``: in memory as (B, N, C_l)."""
    generator = torch.Generator().manual_seed(0)
    sides = []
    for _ in range(2):
        levels = [
            torch.randn(batch, c, cells, generator=generator) * s for c, s in zip(channels, (1, 50, 3, 1), strict=False)
        ]
        sides.append([x.to(dtype) for x in levels])
    sides[0][0][:, :, 3] = 0
    if last:
        sides = [[x.transpose(1, 2).contiguous().transpose(1, 2) for x in side] for side in sides]
    return [[x.to(device) for x in side] for side in sides]


INTERPRETED = """
import sys, torch
from cats.export.kernels import triton
cases, many = torch.load(sys.argv[1])
found = [triton.launch(a, b) for a, b in cases]
triton._MANY, triton.filter_kernel = 4, None  # of 64 matrices each takes its time
torch.save(found + [triton.launch(a, b) for a, b in many], sys.argv[2])
"""


def test_the_kernels_compute_the_definition_in_the_interpreter(tmp_path):
    laid = ((torch.float32, False), (torch.float16, False), (torch.float16, True))
    cases = [features(*case, dtype, last=last) for case in CASES for dtype, last in laid]
    cases.append(features(*CASES[0], torch.float32, last=True))  # which is copied
    cases.append([cases[1][0], cases[2][1]])  # b alone is channels last
    many = [features((5, 40), 16, 2, torch.float16, last=last) for last in (False, True)]  # both kernels in one
    torch.save((cases, many), tmp_path / "in.pt")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", INTERPRETED, str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]
    subprocess.run(command, env=environment, check=True, cwd=tmp_path)
    for (a, b), result in zip(cases + many, torch.load(tmp_path / "out.pt"), strict=True):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, correlation(a, b), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
def test_they_compile_without_a_gpu(capability, tmp_path):
    for kernel in compiled.compile_kernels((256, 1024), 256, half=True, capability=capability):
        assert kernel.grid == (16, 2)
        assert kernel.shared_bytes <= 48 << 10  # more needs a call that TensorRT does not make
        (tmp_path / "kernel.ptx").write_text(kernel.ptx)
        target = re.search(r"\.target (\w+)", kernel.ptx)[1]
        command = [PTXAS, "-v", f"-arch={target}", tmp_path / "kernel.ptx", "-o", tmp_path / "kernel.cubin"]
        if not PTXAS.is_file():
            pytest.skip("this triton brings no ptxas")
        if capability >= 100 and (newer := PTXAS.with_name("ptxas-blackwell")).is_file():
            command[0] = newer
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        assert "0 bytes spill stores" in said


def test_float16_runs_on_tensor_cores_and_takes_pointers_alone():
    scores, filtered = compiled.compile_kernels((256, 512, 1024), 256, half=True)
    assert "mma.sync" in scores.ptx
    assert "cp.async" in scores.ptx
    assert scores.ptx.count(".param .u64") == 2 * 3 + 3  # features of both images, then scores and maxima
    assert filtered.ptx.count(".param .u64") == 3 + 1


HALF = correlation_kernel.BLOCKS[torch.float16]


@pytest.mark.parametrize(
    ("one", "blocks", "last"),
    [(False, HALF, False), (False, HALF, True), *((True, b, last) for last, b in correlation_kernel.LARGE.items())],
)
def test_a_product_is_complete_before_its_features_are_overwritten(one, blocks, last):
    """With an unfinished product the loop needs one more buffer than Triton gives it: a race, seen on an H200."""
    half = ("*fp16", "*fp16")
    constants = correlation_kernel.scores_constants((256, 1024), 256, blocks, last)
    results = dict.fromkeys(("volume" if one else "scores", "row_maxima", "column_maxima"), "*fp32")
    signature = {"a": half, "b": half, **results, **({"tickets": "*i32"} if one else {})}
    kernel = correlation_kernel.correlation_kernel if one else correlation_kernel.scores_kernel
    ptx = compiled.compile_kernel(kernel, signature, constants, blocks, compiled.HOPPER).asm["ptx"]
    assert "wgmma.mma_async" in ptx
    assert set(re.findall(r"wgmma\.wait_group\.sync\.aligned\s+(\d+)", ptx)) == {"0"}
    if one:  # the other blocks' maxima are read after they have said that they wrote them
        assert ptx.index(".release.") < ptx.index(".acquire.")


def test_a_kernel_that_needs_scratch_memory_is_refused():
    ptx = ".visible .entry k(\n.param .u64 a,\n.param .u64 b\n)\n{ ld.param.b64 %rd1, [b]; }"
    with pytest.raises(BackendError, match="parameters a, b"):
        compiled._without_scratch(ptx, 1)
    assert ".param .u64 b" not in compiled._without_scratch(ptx.replace("[b]", "[a]"), 1)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_two_nodes_are_the_operator_bit_by_bit(forms, model, precision):
    whole = forms["pair"] if precision == "fp32" else to_fp16(forms["pair"])
    parts = use_plugins(whole)
    assert [node.op_type for node in parts.graph.node if node.domain] == ["CorrelationScores", "MutualFilter"]
    a, b = (x.numpy() for x in image_pair(model))
    results = [
        ExportedModel({"pair": graph}, model.config.preprocessing, None).run(a, b)
        for graph in (whole, parts, inline_functions(parts))
    ]
    for other in results[1:]:
        for name, value in results[0].items():
            assert np.array_equal(value, other[name])


@pytest.mark.parametrize("form", ["matcher", "pair"])
def test_the_file_holds_the_kernels(form, forms, model):
    (entry,) = [p.value for p in use_plugins(to_fp16(forms[form])).metadata_props if p.key == KERNELS_KEY]
    scores, filtered = json.loads(entry)["plugins"]
    cells, levels = model.config.feature_size**2, len(model.config.hyperpixels)
    assert scores["inputs"] == 2 * levels
    assert scores["outputs"] == [[levels, cells, cells], [levels, 1, cells], [levels, 1, cells]]
    assert filtered["outputs"] == [[levels, cells, cells]]
    for plugin in (scores, filtered):
        kernels = {"sm_80": plugin["kernel"]}
        if form == "pair":  # features in float16; those of an encoder's file are float32
            kernels["sm_90a"] = plugin["kernel_of"]["90"]
        for target, kernel in kernels.items():
            assert kernel["name"] in kernel["ptx"]
            assert re.search(r"\.target (\w+)", kernel["ptx"])[1] == target


def test_only_a_model_with_the_operator_takes_kernels(forms):
    for kind in ("encoder", "pair-inline"):
        with pytest.raises(InputError, match="no node cats::Correlation"):
            use_plugins(forms[kind])


def test_features_of_two_types_are_made_one(forms):
    typed = to_fp16(forms["pair"])
    (node,) = [node for node in typed.graph.node if node.domain]
    name = node.input[0]
    typed.graph.node.insert(
        list(typed.graph.node).index(node),
        onnx.helper.make_node("Cast", [name], ["single"], "single", to=onnx.TensorProto.FLOAT),
    )
    (value,) = [value for value in typed.graph.value_info if value.name == name]
    single = typed.graph.value_info.add()
    single.CopyFrom(value)
    single.name, single.type.tensor_type.elem_type = "single", onnx.TensorProto.FLOAT
    node.input[0] = "single"
    parts = use_plugins(typed)
    (scores,) = [node for node in parts.graph.node if node.op_type == "CorrelationScores"]
    shapes = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(parts).graph.value_info}
    assert {shapes[name] for name in scores.input} == {onnx.TensorProto.FLOAT}


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("case", [*CASES, ((256, 512, 1024, 2048), 256, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("last", [False, True])
def test_pytorch_on_a_gpu_runs_the_kernels(case, dtype, last, monkeypatch):
    a, b = features(*case, dtype, "cuda", last)
    calls = []
    launch = correlation_kernel.launch
    monkeypatch.setattr(correlation_kernel, "launch", lambda *args: (calls.append(1), launch(*args))[1])
    result = correlation(a, b)
    assert calls
    expected = correlation(*([x.double().float().cpu() for x in side] for side in (a, b)))
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-3, atol=1e-5)


RUN_PLAN = """
import sys, numpy as np
from cats.runtime.backends.tensorrt import TensorRTBackend
with np.load(sys.argv[2]) as feeds:
    np.savez(sys.argv[3], **TensorRTBackend(sys.argv[1]).run(dict(feeds)))
assert "tensorrt.plugin" not in sys.modules and "triton" not in sys.modules
"""


@pytest.fixture(scope="session")
def tensorrt():
    """Asked for first, so that nothing is exported where it is not here."""
    try:
        find_flavour("tensorrt")
    except CatsError as error:
        pytest.skip(str(error))


@pytest.mark.gpu
@needs_gpu
def test_a_tensorrt_plan_holds_the_kernels_and_needs_no_python(tensorrt, forms, model, tmp_path):
    graph = use_plugins(to_fp16(forms["pair"]))
    write_model(graph, describe(model, "pair", precision="fp16", opset=20), tmp_path / "pair.onnx")
    plan = build_engine(tmp_path / "pair.onnx", flavour="tensorrt", options=EngineOptions(batch=(1, 2, 4)))
    assert read_sidecar(plan).engine["plugins"] == ["cats::CorrelationScores", "cats::MutualFilter"]
    a, b = (x.numpy() for x in image_pair(model))
    np.savez(tmp_path / "in.npz", image_a=a, image_b=b)
    command = [sys.executable, "-c", RUN_PLAN, str(plan), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    subprocess.run(command, check=True, cwd=tmp_path, env=child_environment())  # which has registered no plugin
    expected = ExportedModel({"pair": graph}, model.config.preprocessing, None).run(a, b)
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_allclose(found["flow"], expected["flow"], atol=0.05)
