"""``cats::Correlation``: features of both images in, filtered cost volume of all levels out.

One operator in three forms that compute the same: :func:`correlation`, a torch custom op with its eager definition;
a node of that name in exported graphs; and :func:`correlation_function`, the model-local ONNX function that defines
the node for every runtime. A TensorRT plugin or an ONNX Runtime custom operator of the same name may replace it. On
NVIDIA GPUs PyTorch runs the operator as the kernels of :mod:`cats.export.kernels.triton`.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from cats.model import l2_normalise, mutual_filter

DOMAIN, NAME = "cats", "Correlation"

NORM_EPSILON = 1e-6
"""Added to the sum of squares under the root of the L2 norm."""

TINY = 1e-30
"""Takes the place of a maximum of exactly 0 in the mutual filter; needs float32."""


@torch.library.custom_op("cats::correlation", mutates_args=())
def correlation(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Cosine similarity of all pairs of positions (Sec. 3.2) and the soft mutual nearest neighbour filter.

    The L2 norm is a scale of the product: ``(a^T b) / |a| / |b|`` with ``|x| = sqrt(sum of x^2 + 1e-6)``. Then
    ``c * (c / max over b) * (c / max over a)``, where a maximum of exactly 0 counts as 1e-30.

    Args:
        a, b: one (B, C_l, N) per level, float32 or float16.

    Returns:
        (B, L, N, N) float32, rows a, columns b; sums and norms are float32 for either type.
    """
    return _definition(a, b)


@correlation.register_fake
def _(a: list[Tensor], b: list[Tensor]) -> Tensor:
    batch, _, cells = a[0].shape
    return a[0].new_empty((batch, len(a), cells, cells), dtype=torch.float32)


@correlation.register_kernel("cuda")
def _(a: list[Tensor], b: list[Tensor]) -> Tensor:
    kernel = _kernel()
    types = {x.dtype for x in (*a, *b)}
    if kernel is None or types not in ({torch.float32}, {torch.float16}):
        return _definition(a, b)
    result: Tensor = kernel.launch(a, b)
    return result


@functools.cache
def _kernel() -> ModuleType | None:
    """The Triton kernels; None where triton is not installed, and the definition runs in PyTorch's own operators."""
    try:
        return importlib.import_module("cats.export.kernels.triton")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        return None


def _definition(a: list[Tensor], b: list[Tensor]) -> Tensor:
    a, b = [x.float() for x in a], [x.float() for x in b]
    corr = torch.stack([x.transpose(1, 2) @ y for x, y in zip(a, b, strict=True)], dim=1)
    corr = corr * _inverse_norms(a)[..., :, None] * _inverse_norms(b)[..., None, :]
    return corr * (corr * _inverse_maximum(corr, -1)) * (corr * _inverse_maximum(corr, -2))


def _inverse_norms(features: list[Tensor]) -> Tensor:
    squares = torch.stack([(x * x).sum(dim=1) for x in features], dim=1)
    return (squares + NORM_EPSILON).sqrt().reciprocal()


def _inverse_maximum(corr: Tensor, dim: int) -> Tensor:
    maximum = corr.amax(dim=dim, keepdim=True)
    return torch.where(maximum == 0, TINY, maximum).reciprocal()


class Correlation(nn.Module):
    """The operator as a module; with ``fused`` false, element by element as :mod:`cats.model` writes it."""

    def __init__(self, fused: bool = True):
        super().__init__()
        self.fused = fused

    def forward(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Two lists of (B, C_l, N) to (B, L, N, N), rows a, columns b."""
        if self.fused:
            return correlation(a, b)
        levels = [l2_normalise(x).transpose(1, 2) @ l2_normalise(y) for x, y in zip(a, b, strict=True)]
        return mutual_filter(torch.stack(levels, dim=1))


def translation_table() -> dict[Any, Any]:
    """For torch's exporter: the custom op becomes one node ``cats::Correlation`` with inputs a_0.., b_0.. ."""
    import onnxscript

    parameter = onnx.defs.OpSchema.FormalParameter
    schema = onnx.defs.OpSchema(
        NAME,
        DOMAIN,
        1,
        inputs=[parameter("features", "tensor(float)", param_option=onnx.defs.OpSchema.FormalParameterOption.Variadic)],
        outputs=[parameter("volume", "tensor(float)")],
    )
    operator = onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, 1), NAME, schema)

    def translate(a: Any, b: Any) -> Any:
        return operator(*a, *b)

    return {torch.ops.cats.correlation.default: translate}


def correlation_function(levels: int, opset: int) -> onnx.FunctionProto:
    """The definition of the node for a number of levels, in standard operators.

    Inputs ``a_0 .. a_{L-1}, b_0 .. b_{L-1}``, each (B, C_l, N); output ``volume`` (B, L, N, N).
    """
    body = _Body()
    one, last, before_last = (body.constant(name, [i]) for name, i in (("one", 1), ("last", -1), ("columns", -2)))
    epsilon, tiny, zero = (body.constant(n, v) for n, v in (("epsilon", NORM_EPSILON), ("tiny", TINY), ("zero", 0.0)))
    products = []
    for level in range(levels):
        rows = body.add("Transpose", f"a_{level}", perm=[0, 2, 1])
        products.append(body.add("Unsqueeze", body.add("MatMul", rows, f"b_{level}"), one))
    product = body.add("Concat", *products, axis=1)
    # Sums over channels as products with ones: a tenth of what ONNX Runtime takes for ReduceSum.
    ones = []
    for level in range(levels):
        channels = body.add("Shape", f"a_{level}", start=1, end=2)
        shape = body.add("Concat", one, channels, axis=0)
        ones.append(
            body.add("ConstantOfShape", shape, value=helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0]))
        )
    scales = {}
    for side, axis in (("a", last), ("b", before_last)):
        squares = []
        for level in range(levels):
            square = body.add("Mul", f"{side}_{level}", f"{side}_{level}")
            squares.append(body.add("MatMul", ones[level], square))
        squares_of_levels = body.add("Concat", *squares, axis=1)
        norm = body.add("Sqrt", body.add("Add", squares_of_levels, epsilon))
        scales[side] = body.add("Unsqueeze", body.add("Reciprocal", norm), axis)
    corr = body.add("Mul", body.add("Mul", product, scales["a"]), scales["b"])
    ratios = []
    for axis in (last, before_last):
        maximum = body.add("ReduceMax", corr, axis, keepdims=1)
        guarded = body.add("Where", body.add("Equal", maximum, zero), tiny, maximum)
        ratios.append(body.add("Mul", corr, body.add("Reciprocal", guarded)))
    body.add("Mul", body.add("Mul", corr, ratios[0]), ratios[1], output="volume")
    inputs = [f"{side}_{level}" for side in "ab" for level in range(levels)]
    return helper.make_function(
        DOMAIN, NAME, inputs, ["volume"], body.nodes, [helper.make_opsetid("", opset)], doc_string=correlation.__doc__
    )


class _Body:
    """Nodes of a function, with values named after the operator that makes them."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        name = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: float | list[int]) -> str:
        """Append a constant: a float32 scalar or a list of int64."""
        tensor = (
            helper.make_tensor(name, TensorProto.INT64, [len(value)], value)
            if isinstance(value, list)
            else helper.make_tensor(name, TensorProto.FLOAT, [], [value])
        )
        self.nodes.append(helper.make_node("Constant", [], [name], name=name, value=tensor))
        return name
