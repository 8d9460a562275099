"""What exported graphs look like: names, shapes, operators, bytes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from cats.core.errors import CatsError, InputError
from cats.export.exported import PeakSession
from cats.export.forms import build_form, feature_names
from cats.export.modules import module_of
from cats.export.onnx_writer import DEFAULT_OPSET, FORBIDDEN, to_onnx

KINDS = ("pair", "encoder", "matcher", "end-to-end", "pair-inline")


def shapes(values):
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
    }


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_are_clean(forms, kind):
    model = forms[kind]
    onnx.checker.check_model(model, full_check=True)
    operators = {node.op_type for node in model.graph.node} | {n.op_type for f in model.functions for n in f.node}
    assert not operators & set(FORBIDDEN)
    assert not operators & {"Identity", "Loop", "Scan", "Expand", "Pad", "Resize"}
    assert model.ir_version == 10
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [DEFAULT_OPSET]
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    known = shapes([*model.graph.value_info, *model.graph.output])
    assert all(name in known for node in model.graph.node for name in node.output)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_machine_is_in_the_file(forms, kind):
    text = forms[kind].SerializeToString()
    assert b"site-packages" not in text
    assert b"File \\" not in text
    assert not any(node.metadata_props or node.doc_string for node in forms[kind].graph.node)


def test_functions(forms):
    assert [(f.domain, f.name) for f in forms["pair"].functions] == [("cats", "Correlation")]
    assert [(f.domain, f.name) for f in forms["matcher"].functions] == [("cats", "Correlation")]
    assert not forms["encoder"].functions
    assert not forms["pair-inline"].functions
    assert {entry.domain for entry in forms["pair-inline"].opset_import} == {""}


def test_inputs_and_outputs(forms, model):
    image = ["batch", 3, 64, 64]
    outputs = {"flow": ["batch", 2, 8, 8], "confidence": ["batch", 8, 8]}
    assert shapes(forms["pair"].graph.input) == {"image_a": image, "image_b": image}
    assert shapes(forms["pair"].graph.output) == outputs
    channels = model.feature_extraction.channels
    encoded = {f"features_{i}": ["batch", c, 64] for i, c in enumerate(channels)} | {"appearance": ["batch", 3, 64, 32]}
    assert feature_names(model) == list(encoded)
    assert shapes(forms["encoder"].graph.input) == {"image": image}
    assert shapes(forms["encoder"].graph.output) == encoded
    both = {f"{name}_{side}": shape for side in "ab" for name, shape in encoded.items()}
    assert shapes(forms["matcher"].graph.input) == both
    assert shapes(forms["matcher"].graph.output) == outputs
    assert shapes(forms["end-to-end"].graph.input) == {
        "image_a": ["batch", "height_a", "width_a", 3],
        "image_b": ["batch", "height_b", "width_b", 3],
        "points_a": ["batch", "points", 2],
    }
    assert shapes(forms["end-to-end"].graph.output) == {
        "points_b": ["batch", "points", 2],
        "points_confidence": ["batch", "points"],
        **outputs,
    }
    assert forms["end-to-end"].graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


@pytest.mark.parametrize("kind", KINDS)
def test_nodes_know_their_module(forms, model, kind):
    names = {name for name, _ in model.named_modules()}
    extra = {"correlation", "soft_argmax", "transfer", "preprocess", "resize.0", "resize.1", "resize.2"}
    extra |= {f"decoder.blocks.0.{name}.{part}" for name in ("attn", "attn_multiscale") for part in "qkv"}
    by_type = {}
    for node in forms[kind].graph.node:
        path = module_of(node)
        assert path in names | extra, node.name
        by_type.setdefault(node.op_type, set()).add(path)
    if kind != "matcher":
        assert by_type["Conv"] <= {n for n in names if n.startswith("feature_extraction.backbone.")}
        assert "proj.1" in by_type["MatMul"]
    if kind != "encoder":
        assert {"decoder.blocks.0.mlp.fc2", "decoder.blocks.0.attn.q", "decoder.proj"} <= by_type["MatMul"]
        assert by_type["LayerNormalization"] == {f"decoder.blocks.0.norm{i}" for i in (1, 2, 3, 4)}
        assert {"decoder.blocks.0.attn", "decoder.blocks.0.attn_multiscale", "soft_argmax"} == by_type["Softmax"]
    if kind == "pair-inline":
        assert "correlation" in by_type["Where"]


def test_weights_of_the_shared_block_are_stored_once(forms, model):
    stored = sum(onnx.numpy_helper.to_array(item).size for item in forms["pair"].graph.initializer)
    parameters = sum(value.numel() for name, value in model.named_parameters() if not name.endswith("pos_embed_x"))
    position = 3 * 64 * (64 + 32)
    assert stored < parameters + position + 2000


@pytest.fixture(scope="module")
def fixed(model):
    """The pair with a batch of one: exported in a third of the time of a free batch."""
    return build_form(model, batch=1)["pair"]


def test_the_same_bytes_every_time(fixed, tmp_path):
    # In another process and in the other order, so that no counter of the exporter is where it was.
    script = (
        "import cats, sys; sys.path[:0] = sys.argv[2:]; import test_onnx_writer as this, tiny_models; "
        "free, fixed = this.free_batch(), this.build_form(tiny_models.tiny_model(), batch=1)['pair']; "
        "open(sys.argv[1], 'wb').write(this.bytes_of(fixed, free))"
    )
    target, here = tmp_path / "again.onnx", Path(__file__).parent
    subprocess.run([sys.executable, "-c", script, str(target), str(here), str(here.parent)], check=True)
    assert target.read_bytes() == bytes_of(fixed, free_batch())


def bytes_of(*models):
    return b"".join(model.SerializeToString(deterministic=True) for model in models)


@pytest.mark.parametrize("opset", [18, 23])
def test_other_opsets(model, opset):
    exported = build_form(model, opset=opset, batch=2)["pair"]
    assert [entry.version for entry in exported.opset_import if entry.domain == ""] == [opset]
    assert [entry.version for entry in exported.functions[0].opset_import] == [opset]


def test_fixed_batch(fixed):
    assert shapes(fixed.graph.input)["image_a"] == [1, 3, 64, 64]
    assert shapes(fixed.graph.output)["flow"] == [1, 2, 8, 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"opset": 17}, "opset 17"), ({"opset": 24}, "opset 24"), ({"batch": 0}, "batch 0"), ({"form": "x"}, "form 'x'")],
)
def test_wrong_options_are_named(model, options, message):
    with pytest.raises(InputError, match=message):
        build_form(model, **options)


class FixesItsBatch(nn.Module):
    """The exporter takes the size of the halves for a constant, without a word."""

    def forward(self, x):
        return torch.cat([x, x + 1]).chunk(2)[1] * 2


class ScattersIntoItsInput(nn.Module):
    def forward(self, x):
        x = x.clone()
        x[x == 0] += 1e-30
        return x


@pytest.mark.parametrize(
    ("module", "message"),
    [(FixesItsBatch(), r"fixed axis 0 \(batch\) of x to 2"), (ScattersIntoItsInput(), "NonZero|Scatter")],
)
def test_graphs_that_would_fail_elsewhere_are_refused(module, message):
    with pytest.raises(CatsError, match=message):
        to_onnx(module, {"x": torch.zeros(2, 3)}, ["y"], dynamic_axes={"x": {0: "batch"}})


class Reshaping(nn.Module):
    """Keeps the batch, merges with it, and activates what it transposed."""

    def forward(self, x):
        kept = x.reshape(-1, 6).reshape(-1, 3, 2)
        turned = kept.transpose(1, 2)
        return torch.relu(turned), x.reshape(-1, 3)


def free_batch():
    return to_onnx(Reshaping(), {"x": torch.zeros(2, 2, 3)}, ["activated", "merged"], dynamic_axes={"x": {0: "batch"}})


def test_a_batch_keeps_its_name_through_reshapes():
    model = free_batch()
    constants = {item.name: onnx.numpy_helper.to_array(item).tolist() for item in model.graph.initializer}
    targets = [constants[node.input[1]] for node in model.graph.node if node.op_type == "Reshape"]
    assert targets in ([[0, 6], [0, 3, 2], [-1, 3]], [[0, 3, 2], [-1, 3]])
    assert shapes(model.graph.output)["activated"] == ["batch", 2, 3]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    activated, merged = PeakSession(model)({"x": x}).values()
    np.testing.assert_array_equal(activated, np.maximum(x.reshape(5, 3, 2).transpose(0, 2, 1), 0))
    np.testing.assert_array_equal(merged, x.reshape(10, 3))


def test_activations_come_before_transposes():
    model = to_onnx(Reshaping(), {"x": torch.zeros(2, 2, 3)}, ["activated", "merged"])
    order = [node.op_type for node in model.graph.node]
    assert order.index("Relu") < order.index("Transpose")
