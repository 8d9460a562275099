"""Run an exported model by PyTorch, operator by operator in the types that the file gives.

On a GPU this is the arithmetic that an engine does, from the same typed file, where no TensorRT is installed. It knows
the operators of the pair, encoder and matcher forms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor

from cats.core.errors import InputError
from cats.export.storage import inline_functions

_DTYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16}


class OnnxOnTorch:
    """A model on a torch device: named tensors in, named tensors out.

    Args:
        model: of ``cats-export``.
        device: ``cpu`` or ``cuda``.
        operators: beside :data:`OPERATORS`; a function of the model that is among them is not taken apart.

    Raises:
        InputError: the model has an operator that is not known here.
    """

    def __init__(
        self, model: onnx.ModelProto, device: str = "cpu", operators: Mapping[str, Callable[..., Any]] | None = None
    ) -> None:
        known = {**OPERATORS, **(operators or {})}
        if not {function.name for function in model.functions} <= set(known):
            model = inline_functions(model)
        graph = model.graph
        unknown = sorted({node.op_type for node in graph.node} - set(known) - {"Constant"})
        if unknown:
            raise InputError(f"no {', '.join(unknown)} for PyTorch: give a pair, encoder or matcher file")
        weights = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                weights[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.weights = {
            # Shapes and axes are read as Python numbers, on the GPU each would be waited for.
            name: torch.from_numpy(np.array(value)).to("cpu" if value.dtype == np.int64 else device)
            for name, value in weights.items()
        }
        made = {}  # constant tensors that the graph makes itself, once and where the weights are
        for node in graph.node:
            if node.op_type == "ConstantOfShape" and node.input[0] in self.weights:
                value = numpy_helper.to_array(_attributes(node)["value"])
                shape = self.weights[node.input[0]].tolist()
                made[node.output[0]] = torch.full(
                    shape,
                    value.item(),
                    dtype=torch.from_numpy(value).dtype,
                    device="cpu" if value.dtype == np.int64 else device,
                )
        self.weights |= made
        self.outputs = [value.name for value in graph.output]
        self.steps = [
            (known[node.op_type], list(node.input), list(node.output), _attributes(node))
            for node in graph.node
            if node.op_type != "Constant" and node.output[0] not in made
        ]

    @torch.inference_mode()
    def __call__(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once."""
        values: dict[str, Any] = {**self.weights, **feeds}
        for run, inputs, outputs, attributes in self.steps:
            found = run(*(values[name] if name else None for name in inputs), **attributes)
            values.update(zip(outputs, found if isinstance(found, tuple) else (found,), strict=False))
        return {name: values[name] for name in self.outputs}


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def take_padding(x: Tensor, pads: Sequence[int] | None) -> tuple[Tensor, list[int]]:
    """An image and the padding of both its axes that a convolution of PyTorch takes; uneven padding is added to it."""
    top, left, bottom, right = pads or [0, 0, 0, 0]
    if (top, left) == (bottom, right):
        return x, [top, left]
    return F.pad(x, (left, right, top, bottom)), [0, 0]


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, **a: Any) -> Tensor:
    x, padding = take_padding(x, a.get("pads"))
    stride, dilation = a.get("strides", [1, 1]), a.get("dilations", [1, 1])
    return F.conv2d(x, weight, bias, stride, padding, dilation, a.get("group", 1))


def _max_pool(x: Tensor, **a: Any) -> Tensor:
    top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
    x = F.pad(x, (left, right, top, bottom), value=float("-inf"))
    return F.max_pool2d(x, a["kernel_shape"], a.get("strides", [1, 1]), ceil_mode=bool(a.get("ceil_mode", 0)))


def _reduce(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, axes: Tensor | None = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        dims = tuple(range(x.ndim)) if axes is None else tuple(axes.tolist())
        return function(x, dim=dims, keepdim=bool(keepdims))

    return run


def _reshape(x: Tensor, shape: Tensor, allowzero: int = 0) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(shape.tolist())])


def _slice(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    count = len(starts)
    dims = list(range(count)) if axes is None else axes.tolist()
    strides = [1] * count if steps is None else steps.tolist()
    index: list[Any] = [slice(None)] * x.ndim
    for dim, start, end, stride in zip(dims, starts.tolist(), ends.tolist(), strides, strict=True):
        index[dim] = slice(start, min(end, x.shape[dim]), stride)
    return x[tuple(index)]


def _squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None, **a: Any) -> Tensor:
    shape = x.shape[a.get("axis", -1) :]
    wide = None if bias is None else bias.float()  # statistics and scaling in float32: stash_type 1
    return F.layer_norm(x.float(), shape, scale.float(), wide, a.get("epsilon", 1e-5)).to(x.dtype)


def _gather(x: Tensor, index: Tensor, axis: int = 0) -> Tensor:
    if index.ndim == 0:
        return x.select(axis, int(index))
    return x.index_select(axis, index.flatten().to(x.device)).reshape(
        *x.shape[:axis], *index.shape, *x.shape[axis:][1:]
    )


def _divide(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "Cast": lambda x, to: x.to(_DTYPES[to]),
    "Clip": lambda x, low=None, high=None: torch.clamp(x, low, high),
    "Concat": lambda *x, axis: torch.cat(x, axis),
    "ConstantOfShape": lambda shape, value: torch.full(shape.tolist(), numpy_helper.to_array(value).item()),
    "Conv": _conv,
    "Div": _divide,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Gather": _gather,
    "Gelu": lambda x, approximate=b"none": F.gelu(x, approximate=approximate.decode()),
    "Identity": lambda x: x,
    "LayerNormalization": _layer_norm,
    "MatMul": lambda x, y: x.to(y.device) @ y,  # constants of a shape are made on the CPU
    "Max": torch.maximum,
    "MaxPool": _max_pool,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Pow": lambda x, y: torch.pow(x, y.to(x.dtype)),
    "Reciprocal": torch.reciprocal,
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Relu": torch.relu,
    "Reshape": _reshape,
    "Shape": lambda x, start=0, end=None: torch.tensor(x.shape[start:end]),
    "Sigmoid": torch.sigmoid,
    "Slice": _slice,
    "Softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "Sqrt": torch.sqrt,
    "Squeeze": _squeeze,
    "Sub": torch.sub,
    "Transpose": lambda x, perm: x.permute(perm),
    "Unsqueeze": _unsqueeze,
    "Where": torch.where,
}
"""ONNX operator -> its computation."""
