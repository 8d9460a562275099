"""What an engine joins, for an exported file that PyTorch runs: convolutions with what follows, and attention.

Three rewrites of the ONNX graph, each a node that :data:`FUSED` runs:

- ``FusedConv``: convolution, bias, residual and ReLU, and the sum before the ReLU where it is taken too. Those of one
  pair are :func:`.convolutions.convolution_kernel` where that is faster, a 1x1 convolution without residual is
  cuBLASLt's product with bias and ReLU, all others are cuDNN's.
- ``LinearGelu``: a product with its bias and GELU.
- ``Attention``: the projections to queries, keys and values as one product, then attention among the cells by PyTorch's
  own kernels, or among the levels of one cell.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor

from cats.benchmarks.gpu import convolutions, fused_kernels
from cats.benchmarks.onnx_on_torch import OPERATORS, take_padding
from cats.export.graph.correlation import correlation


class Rewriter:
    """A graph with what makes and takes each of its values."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
        self.weights = {item.name: item for item in graph.initializer}
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.outputs = {value.name for value in graph.output}
        self.takers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.takers[name].append(node)

    def only_taker(self, name: str, kind: str) -> onnx.NodeProto | None:
        """The node of that kind which alone takes a value."""
        takers = self.takers[name]
        alone = len(takers) == 1 and name not in self.outputs
        return takers[0] if alone and takers[0].op_type == kind else None

    def made_by(self, name: str, kind: str) -> onnx.NodeProto | None:
        """The node of that kind which makes a value."""
        node = self.maker.get(name)
        return node if node is not None and node.op_type == kind else None

    def array(self, name: str) -> np.ndarray:
        """A constant of the graph."""
        return numpy_helper.to_array(self.weights[name])

    def replace(self, last: onnx.NodeProto, node: onnx.NodeProto) -> None:
        """Put ``node``, which makes what ``last`` made, in its place."""
        index = next(i for i, other in enumerate(self.nodes) if other is last)
        self.nodes[index] = self.maker[node.output[0]] = node

    def finish(self) -> None:
        """Write the nodes back, without those whose values nothing takes."""
        nodes, taken = [], set(self.outputs)
        for node in reversed(self.nodes):
            if taken.intersection(node.output):
                taken.update(node.input)
                nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(reversed(nodes))


def fuse(model: onnx.ModelProto) -> dict[str, int]:
    """Rewrite a pair or encoder file in place; returns how many nodes of each kind there are now."""
    counts = {}
    for kind, rewrite in (
        ("FusedConv", _fuse_convolutions), ("LinearGelu", _fuse_gelu), ("Attention", _fuse_attention),
    ):  # fmt: skip
        rewriter = Rewriter(model.graph)
        counts[kind] = rewrite(rewriter)
        rewriter.finish()
    return counts


def _fuse_convolutions(rewriter: Rewriter) -> int:
    done, place = 0, {name: i for i, node in enumerate(rewriter.nodes) for name in node.output}
    for conv in [node for node in rewriter.nodes if node.op_type == "Conv" and len(node.input) == 3]:
        if rewriter.weights[conv.input[1]].dims[1] < 8:
            continue  # images have kernels of their own that join nothing: 120 us instead of 535 for 64
        residual, last = "", conv
        add = rewriter.only_taker(conv.output[0], "Add")
        if add is not None:
            (residual,) = [name for name in add.input if name != conv.output[0]]
            if place.get(residual, -1) > place[conv.output[0]]:
                continue  # the other side of the addition is computed later: it takes this one as its residual
            last = add
        names, results = [*conv.input, residual] if residual else list(conv.input), []
        relu = rewriter.only_taker(last.output[0], "Relu")
        if relu is None:  # a feature of the correlation is taken before its ReLU
            relu = next((node for node in rewriter.takers[last.output[0]] if node.op_type == "Relu"), None)
            results = [last.output[0]]
        if relu is None:
            continue
        made = helper.make_node("FusedConv", names, [*relu.output, *results], relu.name)
        made.attribute.extend(conv.attribute)
        if results:
            made.attribute.append(helper.make_attribute("keep", 1))
        rewriter.replace(last if results else relu, made)
        if results:
            rewriter.nodes = [node for node in rewriter.nodes if node is not relu]
        done += 1
    return done


def _fuse_gelu(rewriter: Rewriter) -> int:
    done = 0
    for gelu in [node for node in rewriter.nodes if node.op_type == "Gelu"]:
        exact = not any(item.name == "approximate" and item.s == b"tanh" for item in gelu.attribute)
        found = _projection(rewriter, gelu.input[0])
        if found is None or not exact:
            continue
        names = [f"{gelu.name}.weight", f"{gelu.name}.bias"]
        for name, value in zip(names, found[1:], strict=True):
            rewriter.graph.initializer.append(numpy_helper.from_array(value, name))
        rewriter.replace(gelu, helper.make_node("LinearGelu", [found[0], *names], list(gelu.output), gelu.name))
        done += 1
    return done


def _fuse_attention(rewriter: Rewriter) -> int:
    done = 0
    for softmax in [node for node in rewriter.nodes if node.op_type == "Softmax"]:
        before = rewriter.maker[softmax.input[0]]
        scores = rewriter.maker[before.input[0]] if before.op_type == "Cast" else before
        after = rewriter.takers[softmax.output[0]][0]
        product = rewriter.takers[after.output[0]][0] if after.op_type == "Cast" else after
        if scores.op_type != "MatMul" or product.op_type != "MatMul":
            continue
        shaped = [rewriter.made_by(name, "Transpose") for name in (*scores.input, product.input[1])]
        back = rewriter.only_taker(product.output[0], "Transpose")
        last = rewriter.only_taker(back.output[0], "Reshape") if back is not None else None
        if last is None or any(node is None for node in shaped):
            continue
        split = [rewriter.made_by(node.input[0], "Reshape") for node in shaped if node is not None]
        sides = [_projection(rewriter, node.input[0]) for node in split if node is not None]
        if len(sides) != 3 or any(side is None for side in sides) or len({side[0] for side in sides if side}) != 1:
            continue
        shape = rewriter.array(split[0].input[1]).tolist()  # type: ignore[union-attr]
        weight = np.concatenate([side[1] for side in sides if side], 1)
        bias = np.concatenate([side[2] for side in sides if side])
        names = [f"{last.name}.weight", f"{last.name}.bias"]
        for name, value in zip(names, (weight, bias), strict=True):
            rewriter.graph.initializer.append(numpy_helper.from_array(value, name))
        levels = shape[1] if len(shape) == 5 else 0
        made = helper.make_node(
            "Attention",
            [sides[0][0], *names],
            list(last.output),
            last.name,
            heads=shape[-2],
            levels=levels,  # type: ignore[index]
        )
        rewriter.replace(last, made)
        done += 1
    return done


def _projection(rewriter: Rewriter, name: str) -> tuple[str, np.ndarray, np.ndarray] | None:
    """What a value is the projection of, by which matrix, and with which bias."""
    bias, add = None, rewriter.made_by(name, "Add")
    if add is not None:
        (constant,) = [x for x in add.input if x in rewriter.weights]
        (name,) = [x for x in add.input if x != constant]
        bias = rewriter.array(constant)
    product = rewriter.made_by(name, "MatMul")
    if product is None or product.input[1] not in rewriter.weights:
        return None
    weight = rewriter.array(product.input[1])
    return product.input[0], weight, np.zeros(weight.shape[1], weight.dtype) if bias is None else bias


@torch.library.custom_op("cats_benchmarks::convolution", mutates_args=())
def convolution(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: list[int], padding: list[int], keep: bool
) -> Tensor:
    """ReLU of a convolution (B, C, H, W), its bias and, if given, a residual (B, K, H', W'), channels last.

    With ``keep`` that and the sum before the ReLU, (2, B, K, H', W').
    """
    return _convolve(x, weight, bias, residual, stride, padding, keep)


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: list[int], padding: list[int], keep: bool
) -> Tensor:
    total = F.conv2d(x, weight, bias, stride, padding)
    total = total if residual is None else total + residual
    results = [x.contiguous(memory_format=torch.channels_last) for x in (torch.relu(total), total)]
    return _stacked(*results) if keep else results[0]


def _stacked(result: Tensor, total: Tensor) -> Tensor:
    return torch.stack([x.permute(0, 2, 3, 1) for x in (result, total)]).permute(0, 1, 4, 2, 3)


@convolution.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: list[int], padding: list[int], keep: bool
) -> Tensor:
    result = x.new_empty((len(x), *_size(x, weight, stride, padding), len(weight))).permute(0, 3, 1, 2)
    return _stacked(result, result) if keep else result


def _size(x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> list[int]:
    kernel = weight.shape[2:]
    return [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(x.shape[2:], padding, kernel, stride, strict=True)]


@convolution.register_kernel("cuda")
def _(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: list[int], padding: list[int], keep: bool
) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    same = stride == [1, 1] and padding == [n // 2 for n in weight.shape[2:]]
    tile = convolutions.tile_of(x, weight, keep) if same else None
    if tile is None:
        return convolve_by_libraries(x, weight, bias, residual, stride, padding, keep)
    return convolutions.launch_convolution(x, weight, bias, residual, tile, keep)


def convolve_by_libraries(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: list[int], padding: list[int], keep: bool
) -> Tensor:
    """:func:`convolution` on a GPU without kernels of ours; ``x`` channels last."""
    if keep:
        return _convolve(x, weight, bias, residual, stride, padding, keep)
    if residual is None and weight.shape[2:] == (1, 1) and stride == [1, 1]:
        rows = x.permute(0, 2, 3, 1)
        matrix = weight.view(len(weight), -1).t()
        flat = torch._addmm_activation(bias, rows.reshape(-1, rows.shape[-1]), matrix, use_gelu=False)
        return flat.view(*rows.shape[:3], -1).permute(0, 3, 1, 2)
    if residual is None:  # of zeros: cuDNN's own form without one reads a result that nothing has written yet
        height, width = _size(x, weight, stride, padding)
        residual = zeros(len(x), len(weight), height, width, x.dtype)
    return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, stride, padding, [1, 1], 1)


@functools.cache
def zeros(batch: int, channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) of zeros on the GPU in channels last; nothing writes into them."""
    made = torch.zeros(batch, height, width, channels, dtype=dtype, device="cuda")
    return made.permute(0, 3, 1, 2)


@torch.library.custom_op("cats_benchmarks::level_attention", mutates_args=())
def level_attention(qkv: Tensor, levels: int, heads: int) -> Tensor:
    """Attention among the levels of each cell: (B * L, N, 3 * C) to (B * L, N, C)."""
    tokens, cells, channels = qkv.shape
    parts = qkv.view(tokens // levels, levels, cells, 3, heads, -1).permute(3, 0, 2, 4, 1, 5)
    scores = (parts[0] @ parts[1].transpose(-1, -2)).float().softmax(-1).to(qkv.dtype)
    return (scores @ parts[2]).permute(0, 3, 1, 2, 4).reshape(tokens, cells, channels // 3)


@level_attention.register_fake
def _(qkv: Tensor, levels: int, heads: int) -> Tensor:
    return qkv.new_empty((*qkv.shape[:2], qkv.shape[2] // 3))


@level_attention.register_kernel("cuda")
def _(qkv: Tensor, levels: int, heads: int) -> Tensor:
    return fused_kernels.launch_level_attention(qkv, levels, heads)


def _run_convolution(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, keep: int = 0, **a: Any
) -> Tensor | tuple[Tensor, ...]:
    x, padding = take_padding(x, a.get("pads"))
    result = convolution(x, weight, bias, residual, a.get("strides", [1, 1]), padding, bool(keep))
    return result.unbind() if keep else result


@torch.library.custom_op("cats_benchmarks::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU of a product (M, K) x (K, C) and its bias; on a GPU by tanh, at most 5e-4 off, as cuBLASLt joins it."""
    return F.gelu(x @ weight + bias)


@linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty((len(x), weight.shape[1]))


@linear_gelu.register_kernel("cuda")
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch._addmm_activation(bias, x, weight, use_gelu=True)


def _run_linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return linear_gelu(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)


def _run_mean(x: Tensor, axes: Tensor | None = None, keepdims: int = 1, **a: Any) -> Tensor:
    """Over levels as a sum of slices: torch.compile's own reduction over so few reads the rest out of order."""
    if axes is None or axes.tolist() != [1] or keepdims or x.shape[1] > 16:
        return OPERATORS["ReduceMean"](x, axes, keepdims, **a)
    total = functools.reduce(torch.add, [part.float() for part in x.unbind(1)])
    return (total / x.shape[1]).to(x.dtype)


def _run_attention(x: Tensor, weight: Tensor, bias: Tensor, heads: int, levels: int) -> Tensor:
    tokens, cells, channels = x.shape
    qkv = torch.addmm(bias, x.reshape(-1, channels), weight).view(tokens, cells, -1)
    if levels:
        return level_attention(qkv, levels, heads)
    query, key, value = qkv.view(tokens, cells, 3, heads, -1).permute(2, 0, 3, 1, 4)
    found = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    return found.transpose(1, 2).reshape(tokens, cells, -1)


def run_correlation(*features: Tensor) -> Tensor:
    """The node ``cats::Correlation``: levels of both images, a first."""
    half = len(features) // 2
    return correlation(list(features[:half]), list(features[half:]))


FUSED = {
    "Correlation": run_correlation,
    "FusedConv": _run_convolution,
    "LinearGelu": _run_linear_gelu,
    "ReduceMean": _run_mean,
    "Attention": _run_attention,
}
"""Operator -> its computation, beside those of :data:`cats.benchmarks.onnx_on_torch.OPERATORS`."""


def name_operators_alone() -> None:
    """Keep torch.compile (2.11) from writing down what the inputs of an operator that it does not know were made of,
    those of theirs, and so on, for its log: with residuals twice as long for each block of ResNet."""
    from torch._inductor.exc import OperatorIssue

    OperatorIssue.operator_str = staticmethod(lambda target, args, kwargs: f"  target: {target}")
