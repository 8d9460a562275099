"""The float16 typing pass: what is in which type, that names and bytes hold, and how far the flow moves."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_models import image_pair, tiny_model

from cats.core.errors import InputError
from cats.export.exported import PeakSession
from cats.export.forms import build_form
from cats.export.fp16.assign import to_fp16
from cats.export.fp16.emulate import PEAKS, computes_in_half, emulate_fp16
from cats.export.graph.deployment import DeploymentOptions
from cats.export.modules import is_inside, module_of
from cats.export.storage import store_as_half

KINDS = ("pair", "pair-inline", "encoder", "matcher", "end-to-end")
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


@pytest.fixture(scope="module")
def typed(forms):
    return {kind: to_fp16(forms[kind]) for kind in KINDS}


def types(model):
    """Value -> element type, weights included."""
    graph = model.graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return values | {item.name: item.data_type for item in graph.initializer}


def interface(model):
    return [
        (v.name, v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in (*model.graph.input, *model.graph.output)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_interface_names_and_bytes_hold(forms, typed, kind):
    before = forms[kind].SerializeToString(deterministic=True)
    again = to_fp16(forms[kind])
    assert forms[kind].SerializeToString(deterministic=True) == before
    assert again.SerializeToString(deterministic=True) == typed[kind].SerializeToString(deterministic=True)
    onnx.checker.check_model(typed[kind], full_check=True)
    assert interface(typed[kind]) == interface(forms[kind])
    names = [node.name for node in typed[kind].graph.node if not node.name.endswith((".half", ".float"))]
    assert names == [node.name for node in forms[kind].graph.node]
    added = [node for node in typed[kind].graph.node if node.name.endswith((".half", ".float"))]
    assert {node.op_type for node in added} == {"Cast"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_which_type(typed, kind):
    model, found = typed[kind], types(typed[kind])
    assert set(types(model)) >= {name for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        inputs = {found[name] for name in node.input if name} & {HALF, FLOAT}
        path = module_of(node)
        if node.op_type == "Cast":
            continue
        if node.op_type in ("Softmax", "GridSample") or is_inside(path, ("soft_argmax", "preprocess", "transfer")):
            assert HALF not in inputs, node.name
        elif node.op_type == "LayerNormalization" or path.endswith((".q", ".fc1", ".fc2")) or is_inside(path, ["proj"]):
            assert inputs == {HALF}, node.name
            assert all(a.i == 1 for a in node.attribute if a.name == "stash_type")
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    if convolutions:
        halves = [found[node.input[1]] == HALF for node in convolutions]
        assert not halves[0]  # of half the image's size
        assert halves == sorted(halves)
        assert sum(halves) > 0.6 * len(halves)


def test_refined_scores_are_float32(typed):
    """The sum of what the aggregator's last projection gives and the mean correlation, and all after it."""
    nodes = {name: node for node in typed["matcher"].graph.node for name in node.output}
    found = types(typed["matcher"])
    scores = next(n for n in typed["matcher"].graph.node if n.name == "soft_argmax/Softmax")
    add = nodes[nodes[scores.input[0]].input[0]]
    assert add.op_type == "Add"
    assert {found[name] for name in (*add.input, *add.output)} == {FLOAT}
    mean = next(nodes[name] for name in add.input if nodes[name].op_type == "ReduceMean")
    assert mean.input[0] == "correlation/Correlation"  # not by way of float16


def test_correlation_is_a_function_with_a_product_in_float16(typed):
    (function,) = typed["pair"].functions
    assert (function.domain, function.name) == ("cats", "Correlation")
    halves = [node for node in function.node if node.op_type == "Cast" and node.attribute[0].i == HALF]
    assert len(halves) == len(function.input)
    operators = [node.op_type for node in function.node]
    tiny = next(n for n in function.node if n.name == "tiny")
    assert numpy_helper.to_array(tiny.attribute[0].t) == np.float32(1e-30)
    assert operators.index("ReduceMax") > operators.index("MatMul")


@pytest.mark.parametrize("kind", ["pair", "pair-inline", "encoder", "matcher"])
def test_results_are_near(forms, typed, model, kind):
    a, b = (x.numpy() for x in image_pair(model, 3))
    feeds = {"image_a": a, "image_b": b}
    if kind == "encoder":
        feeds = {"image": a}
    elif kind == "matcher":
        encoder = PeakSession(forms["encoder"])
        feeds = {f"{n}_{s}": v for s, x in (("a", a), ("b", b)) for n, v in encoder({"image": x}).items()}
    expected = PeakSession(forms[kind])(feeds)
    for actual in (PeakSession(typed[kind])(feeds), PeakSession(emulate_fp16(typed[kind])[0])(feeds)):
        for name, value in expected.items():
            assert actual[name].dtype == np.float32
            scale = np.abs(value).max()
            error = np.abs(actual[name] - value) / scale
            assert error.max() > 0, name  # the pass does something
            assert np.quantile(error, 0.99) < 0.02, name


def test_end_to_end_is_near(forms, typed):
    rng = np.random.default_rng(0)
    feeds = {
        "image_a": rng.integers(0, 256, (2, 90, 70, 3), dtype=np.uint8),
        "image_b": rng.integers(0, 256, (2, 50, 120, 3), dtype=np.uint8),
        "points_a": rng.uniform(0, 70, (2, 5, 2)).astype(np.float32),
    }
    expected, actual = PeakSession(forms["end-to-end"])(feeds), PeakSession(emulate_fp16(typed["end-to-end"])[0])(feeds)
    for name, value in expected.items():
        assert np.quantile(np.abs(actual[name] - value), 0.95) < 0.02 * np.abs(value).max(), name


@pytest.mark.parametrize("keep", [{"decoder.blocks.0.mlp"}, {"feature_extraction", "proj"}, {"correlation"}, {""}])
def test_kept_modules_are_float32(forms, keep):
    model = to_fp16(forms["pair"], keep)
    found = types(model)
    for node in model.graph.node:
        if is_inside(module_of(node), keep) and node.op_type != "Cast":
            assert HALF not in {found[name] for name in (*node.input, *node.output)}, node.name
    assert computes_in_half(model)
    if keep == {"correlation"}:
        assert model.functions[0] == forms["pair"].functions[0]
    a, b = (x.numpy() for x in image_pair(tiny_model(), 2))
    assert np.isfinite(PeakSession(model)({"image_a": a, "image_b": b})["flow"]).all()


def test_everything_kept_is_the_same_model(forms, model):
    kept = to_fp16(forms["pair"], {"", "feature_extraction", "resize", "proj", "decoder", "correlation"})
    assert not computes_in_half(kept)
    assert [n.name for n in kept.graph.node] == [n.name for n in forms["pair"].graph.node]
    assert list(kept.graph.initializer) == list(forms["pair"].graph.initializer)


def test_modules_are_told_apart_at_dots():
    assert is_inside("proj.1", {"proj"})
    assert not is_inside("projection", {"proj"})
    assert not is_inside("proj", {""})
    assert is_inside("", {""})


def test_stored_weights_become_float32_first(forms):
    stored, _ = store_as_half(forms["pair"])
    model = to_fp16(stored)
    assert "Cast.weight" not in " ".join(node.name for node in model.graph.node)
    names = {item.name for item in model.graph.initializer}
    assert names == {item.name for item in to_fp16(forms["pair"]).graph.initializer}


def test_weights_beyond_float16_stay(forms):
    changed = onnx.ModelProto()
    changed.CopyFrom(forms["pair"])
    weight = next(item for item in changed.graph.initializer if item.name == "proj.1.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1e7, weight.name))
    found = types(to_fp16(changed))
    assert (found["proj.1.weight"], found["proj.0.weight"]) == (FLOAT, HALF)


def test_what_cannot_be_typed(forms):
    with pytest.raises(InputError, match=r"no module decoder\.blocks\.7"):
        to_fp16(forms["pair"], {"decoder.blocks.7", "proj"})
    with pytest.raises(InputError, match="float16 already"):
        to_fp16(to_fp16(forms["pair"]))
    other = onnx.ModelProto()
    other.CopyFrom(forms["pair"])
    other.graph.node[0].domain = "com.microsoft"
    with pytest.raises(InputError, match="ONNX Runtime alone"):
        to_fp16(other)
    quantized = onnx.ModelProto()
    quantized.CopyFrom(forms["pair"])
    quantized.graph.node.append(helper.make_node("QuantizeLinear", ["flow", "s"], ["q"], "q"))
    with pytest.raises(InputError, match="type it first"):
        to_fp16(quantized)


@pytest.mark.parametrize(
    "changes",
    [{"hyperpixels": (4,)}, {"correlation": False}, {"appearance": False}, {"swapping": False}, {"depth": 2}],
)
def test_every_structure_is_typed(changes):
    model = tiny_model(**changes)
    exported = build_form(model, "pair", batch=2)["pair"]
    a, b = (x.numpy() for x in image_pair(model, 2))
    feeds = {"image_a": a, "image_b": b}
    typed = emulate_fp16(to_fp16(exported))[0]
    expected, actual = PeakSession(exported)(feeds)["flow"], PeakSession(typed)(feeds)["flow"]
    assert np.quantile(np.abs(actual - expected), 0.95) < 0.05


def test_without_rewrites_too():
    model = tiny_model()
    names = DeploymentOptions.__dataclass_fields__.keys() - {"fold_batch_norm"}  # without which nothing is exported
    plain = DeploymentOptions(**dict.fromkeys(names, False))
    exported = build_form(model, "pair", opset=18, batch=2, options=plain)["pair"]
    typed = to_fp16(exported)
    onnx.checker.check_model(typed, full_check=True)
    a, b = (x.numpy() for x in image_pair(model, 2))
    feeds = {"image_a": a, "image_b": b}
    expected, actual = PeakSession(exported)(feeds)["flow"], PeakSession(emulate_fp16(typed)[0])(feeds)["flow"]
    assert np.quantile(np.abs(actual - expected), 0.95) < 0.05


def chain(factors):
    """x times one number after the other, each in a module of its own."""
    nodes = [
        helper.make_node("Mul", ["x" if i == 0 else f"m{i - 1}/Mul", f"f{i}"], [f"m{i}/Mul"], f"m{i}/Mul")
        for i in range(len(factors))
    ]
    nodes.append(helper.make_node("Softmax", [f"m{len(factors) - 1}/Mul"], ["y"], "soft_argmax/Softmax"))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "chain", [value("x", FLOAT, [4])], [value("y", FLOAT, [4])])
    graph.initializer.extend(numpy_helper.from_array(np.float32(f), f"f{i}") for i, f in enumerate(factors))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def test_overflow_shows_where_onnx_runtime_hides_it():
    typed = to_fp16(chain([1000.0, 1000.0, 1e-6]))
    x = np.float32([1, 0.5, 2, 0.1])
    assert np.isfinite(PeakSession(typed)({"x": x})["y"]).all()
    model, names = emulate_fp16(typed, peaks=True)
    results = PeakSession(model)({"x": x})
    assert not np.isfinite(results["y"]).all()
    assert names[1:] == ["m0/Mul", "m1/Mul", "m2/Mul"]
    assert results[PEAKS][-3:-1].tolist() == [2000, 2_000_000]


def test_rounding_is_that_of_float16():
    typed = to_fp16(chain([0.1, 3.0]))
    x = np.float32([0.123456, 1.7, -2.2, 0.9])
    half = ((x.astype(np.float16) * np.float16(0.1)) * np.float16(3)).astype(np.float64)
    e = np.exp(half - half.max())
    np.testing.assert_allclose(PeakSession(emulate_fp16(typed)[0])({"x": x})["y"], e / e.sum(), rtol=1e-6)


def test_the_pass_needs_no_torch():
    code = "import sys, cats.export.fp16.assign; sys.exit('torch' in sys.modules or 'onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
