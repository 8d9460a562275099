"""What the kit fuses in exported files computes the same as the file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny_models import image_pair, tiny_model

pytest.importorskip("triton", reason="triton is not installed")

from cats.benchmarks.gpu.fused import FUSED, fuse
from cats.benchmarks.onnx_on_torch import OnnxOnTorch
from cats.export.forms import build_form


def bottleneck() -> onnx.ModelProto:
    """Three convolutions with a projected residual, then one whose sum is taken before its ReLU too."""
    rng = np.random.default_rng(0)
    weights = {
        "w0": (8, 9, 1, 1),
        "w1": (8, 8, 3, 3),
        "w2": (10, 8, 1, 1),
        "side": (10, 9, 1, 1),
        "last": (10, 10, 3, 3),
    }
    constants = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in weights.items()]
    biases = {f"{name}.b": shape[0] for name, shape in weights.items()}
    constants += [numpy_helper.from_array(rng.normal(size=n).astype(np.float32), name) for name, n in biases.items()]

    def conv(x: str, name: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node("Conv", [x, name, f"{name}.b"], [f"{name}.out"], **attributes)

    nodes = [
        conv("x", "w0"), helper.make_node("Relu", ["w0.out"], ["r0"]),
        conv("r0", "w1", pads=[1, 1, 1, 1], strides=[2, 2]), helper.make_node("Relu", ["w1.out"], ["r1"]),
        conv("r1", "w2"), conv("x", "side", strides=[2, 2]),
        helper.make_node("Add", ["side.out", "w2.out"], ["sum"]), helper.make_node("Relu", ["sum"], ["r2"]),
        conv("r2", "last", pads=[1, 1, 1, 1]), helper.make_node("Add", ["last.out", "r2"], ["early"]),
        helper.make_node("Relu", ["early"], ["late"]),
    ]  # fmt: skip
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "early", "late")]
    graph = helper.make_graph(nodes, "bottleneck", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_convolutions_take_bias_residual_and_relu_with_them() -> None:
    model, x = bottleneck(), torch.from_numpy(np.random.default_rng(1).normal(size=(2, 9, 8, 8)).astype(np.float32))
    expected = OnnxOnTorch(model, operators=FUSED)({"x": x})
    assert fuse(model)["FusedConv"] == 4
    assert [node.op_type for node in model.graph.node].count("Conv") == 1  # the projection
    assert list(model.graph.node[-1].output) == ["late", "early"]  # a sum that is taken before its ReLU too
    for name, value in OnnxOnTorch(model, operators=FUSED)({"x": x}).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-3)  # sums in another order


def test_attention_of_an_exported_model() -> None:
    torch_model = tiny_model(hyperpixels=(2, 3, 4, 5))
    model = build_form(torch_model, "pair", batch=2)["pair"]
    feeds = dict(zip(("image_a", "image_b"), image_pair(torch_model), strict=True))
    expected = OnnxOnTorch(model, operators=FUSED)(feeds)["flow"]
    assert fuse(model) == {"FusedConv": 0, "LinearGelu": 4, "Attention": 4}
    assert [node.op_type for node in model.graph.node].count("Softmax") == 1  # of the soft-argmax
    torch.testing.assert_close(OnnxOnTorch(model, operators=FUSED)(feeds)["flow"], expected, rtol=1e-3, atol=1e-3)


INTERPRETED = """
import torch
import torch.nn.functional as F
from cats.benchmarks.gpu import fused, fused_kernels
draw = torch.Generator().manual_seed(0)
for dtype, tolerance in ((torch.float16, 4e-3), (torch.float32, 1e-5)):
    qkv = torch.randn(2 * 4, 16, 3 * 2 * 32, generator=draw).to(dtype)
    expected = fused.level_attention(qkv.float(), 4, 2)
    found = fused_kernels.launch_level_attention(qkv, 4, 2).float()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
from cats.benchmarks.gpu.convolutions import Tile, launch_convolution
for taps in (1, 3):
    x = torch.randn(2, 32, 8, 8, generator=draw).half().contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, 32, taps, taps, generator=draw) / (6 * taps)
    weight = weight.half().contiguous(memory_format=torch.channels_last)
    bias, added = torch.randn(64, generator=draw).half(), torch.randn(2, 64, 8, 8, generator=draw).half()
    plain = F.conv2d(x.float(), weight.float(), bias.float(), padding=taps // 2)
    for splits, residual, keep in ((1, added, True), (2, None, False), (1, None, True), (2, added, True)):  # counters
        tile = Tile(64, 32, 16, splits, 4, 3)  # two each of images, of filters and of channels
        found = launch_convolution(x, weight, bias, residual, tile, keep)
        found, total = found.unbind() if keep else (found, None)
        assert found.is_contiguous(memory_format=torch.channels_last)
        expected = plain if residual is None else plain + residual.float()
        torch.testing.assert_close(found.float(), F.relu(expected), rtol=1e-3, atol=3e-3)
        if keep:
            torch.testing.assert_close(total.float(), expected, rtol=1e-3, atol=3e-3)
"""


def test_the_kernels_in_the_interpreter(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, check=True, cwd=tmp_path)
