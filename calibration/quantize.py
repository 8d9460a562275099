"""Explicit Q/DQ nodes: a float32 export and its activation ranges to a model that inference libraries run in 8 bits.

Weights are symmetric per output channel, rounded as :mod:`cats.calibration.weight_rounding` says; activations per
tensor. Two placements:

``tensorrt``
    symmetric int8 (or float8) and the placement rules of TensorRT: nothing between a convolution and its activation,
    a residual sum reads one branch quantized. ONNX Runtime and OpenVINO run it too.
``cpu``
    asymmetric uint8 activations, also behind each convolution and residual sum, so that ONNX Runtime runs the backbone
    in integers throughout: an activation that clips at zero then costs nothing. Products of queries and keys, and of
    attention weights and values, are integers too. OpenVINO runs it; TensorRT, which has no zero points, refuses it.

Everything but convolutions and linear layers stays float32: L2 norm, mutual filter, softmax, soft-argmax, LayerNorm,
residual stream of the aggregator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cats.calibration.balance import balance_channels
from cats.calibration.distribution import METHODS
from cats.calibration.graph import Graph, is_half, quantizable_modules
from cats.calibration.options import TARGETS
from cats.calibration.qdq import Plan, Point, Weight, rewrite
from cats.calibration.ranges import Ranges
from cats.calibration.weight_rounding import Moments, mean_error, moments_of_channels, round_to_integers
from cats.core.errors import InputError, ModelFileError
from cats.export.fp16.assign import is_quantized
from cats.export.modules import group_count, is_inside, module_of

PRECISIONS = ("int8", "fp8")

RoundedWeights = dict[str, tuple[NDArray[Any], NDArray[np.float32]]]
"""By name, weights in their 8-bit type, and what rounding adds to each output channel on average."""

_FP8_MAX = 448.0  # of float8e4m3fn


def quantize(
    model: onnx.ModelProto,
    ranges: Ranges,
    *,
    precision: str = "int8",
    method: str = "mse",
    keep: Collection[str] = (),
    target: str = "tensorrt",
    weight_bits: int = 8,
    rounded: RoundedWeights | None = None,
) -> onnx.ModelProto:
    """Insert Q/DQ nodes.

    Args:
        model: float32 export; is not changed. Its metadata is copied as it is.
        ranges: of this model; it is balanced as it was when they were measured.
        precision: ``int8`` or ``fp8`` (float8e4m3fn).
        method: how the interval of each activation is chosen, one of :data:`cats.calibration.ranges.METHODS`.
        keep: modules (:func:`cats.calibration.graph.quantizable_modules`) that stay float, or prefixes of their paths.
        target: ``cpu`` or ``tensorrt``, see above.
        weight_bits: 8, or 7 for x86 CPUs without VNNI, whose sums of two products of 8 bits saturate.
        rounded: weights of earlier calls with this model, these ranges, precision and bits; those of this one are
            added. Rounding is most of the work.

    Returns:
        A checked model.

    Raises:
        InputError: an option is unknown, a name in ``keep`` is no module, or the ranges lack a tensor.
        ModelFileError: quantized already, or typed in float16.
    """
    _check_options(model, precision, method, keep, target)
    if weight_bits not in (7, 8) or (weight_bits == 7 and precision != "int8"):
        raise InputError(f"weights of {weight_bits} bits in {precision}: int8 has 8, or 7 for CPUs without VNNI")
    result = balance_channels(model, ranges.balance)
    graph = Graph(result)
    chosen = [node for node in graph.quantizable() if not is_inside(module_of(node), keep)]
    if not chosen:
        raise InputError("every module is kept in float: nothing is left to quantize")
    choose = _chooser(ranges, precision, method, target)
    plan = Plan(graph, {node.name for node in chosen}, choose)
    if target == "cpu":
        plan.everything_around()
        plan.attention(keep)
    else:
        plan.inputs_only()
    rewrite(
        result,
        graph,
        plan,
        _weights(graph, chosen, precision, plan, weight_bits, ranges, {} if rounded is None else rounded),
    )
    onnx.checker.check_model(result)
    return result


def _check_options(model: onnx.ModelProto, precision: str, method: str, keep: Collection[str], target: str) -> None:
    for value, known, what in ((precision, PRECISIONS, "precision"), (method, METHODS, "method")):
        if value not in known:
            raise InputError(f"{what} {value!r}: choose {', '.join(known)}")
    if target not in TARGETS:
        raise InputError(f"target {target!r}: choose {', '.join(TARGETS)}")
    if precision == "fp8" and target == "cpu":
        raise InputError("float8 is for GPUs: CPUs compute it in float32; leave out the target cpu")
    if is_quantized(model):
        raise ModelFileError("the model is quantized already: give the float32 export")
    if is_half(model):
        raise ModelFileError("the model is typed in float16: give the float32 export")
    known_modules = quantizable_modules(model)
    for name in keep:
        if not any(is_inside(module, [name]) for module in known_modules):
            raise InputError(f"there is no quantizable module {name!r} to keep; see the table of cats sensitivity")


def _chooser(ranges: Ranges, precision: str, method: str, target: str) -> Callable[..., Point]:
    """The function that gives the parameters of a value by its name, without a zero point where asked so."""

    def choose(name: str, symmetric: bool = False) -> Point:
        if name not in ranges.tensors:
            raise InputError(f"the ranges lack {name}: collect them with this ONNX file")
        measured = ranges.tensors[name]
        if target == "cpu" and not symmetric:
            low, high = measured.limits(method)
            scale = max((high - low) / 255, 1e-30)
            return Point(scale, round(-low / scale), TensorProto.UINT8)
        if precision == "fp8":
            limit = measured.symmetric_limit("minmax")  # eight exponents below the largest make clipping pointless
            return Point(max(limit / _FP8_MAX, 1e-30), 0, TensorProto.FLOAT8E4M3FN)
        limit = measured.symmetric_limit(method)
        return Point(max(limit / 127, 1e-30), 0, TensorProto.INT8)

    return choose


def _weights(
    graph: Graph,
    chosen: list[onnx.NodeProto],
    precision: str,
    plan: Plan,
    bits: int,
    ranges: Ranges,
    rounded: RoundedWeights,
) -> dict[tuple[str, int], Weight]:
    """By node name and input index, the quantized weight (shared by the nodes of a module), and the bias of a
    convolution as a plain initializer or, with zero points, as integers."""
    by_name: dict[str, Weight] = {}
    found: dict[tuple[str, int], Weight] = {}
    for node in chosen:
        module, name = module_of(node), node.input[1]
        axis = _channel_axis(node)
        values = np.asarray(graph.constant(name), np.float32)
        steps = 2 ** (bits - 1) - 1 if precision == "int8" else _FP8_MAX
        scale = _weight_scale(values, axis, steps)
        if name not in by_name:
            if name not in rounded:
                rounded[name] = _round(values, scale, axis, steps, precision, _moments(ranges, node, values.shape))
            by_name[name] = _dequantized(module, name, rounded[name][0], scale, axis)
        found[node.name, 1] = by_name[name]
        if node.op_type != "Conv" or len(node.input) < 3 or not node.input[2]:
            continue
        bias = np.asarray(graph.constant(node.input[2]), np.float32)
        shift = rounded[name][1]
        bias = bias - shift
        point = plan.points[node.input[0]]
        if point.dtype == TensorProto.UINT8:
            found[node.name, 2] = _quantized_bias(module, bias, np.float32(point.scale) * scale)
        elif shift.any():
            corrected = f"{module}.bias.corrected"
            found[node.name, 2] = Weight(corrected, [numpy_helper.from_array(bias, corrected)], [])
    return found


def _moments(ranges: Ranges, node: onnx.NodeProto, shape: tuple[int, ...]) -> Moments | None:
    """Of a layer's inputs, as far as they were measured."""
    if node.input[1] in ranges.moments:
        return ranges.moments[node.input[1]]
    measured = ranges.tensors.get(node.input[0])
    if measured is None or measured.channels is None:
        return None
    return moments_of_channels(measured.channels, group_count(node), math.prod(shape[2:]))


def _channel_axis(node: onnx.NodeProto) -> int:
    """Axis of the output channels of a node's weight."""
    if node.op_type == "Conv":
        return 0
    transposed = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if transposed else 1


def _weight_scale(values: NDArray[np.float32], axis: int, steps: float) -> NDArray[np.float32]:
    largest = np.abs(values).max(axis=tuple(i for i in range(values.ndim) if i != axis))
    # A channel of zeros needs a scale too; a tiny one would make the scale of an integer bias underflow.
    return np.maximum(largest / np.float32(steps), np.float32(max(float(largest.max()), 1e-6) * 1e-4 / steps))


def _round(
    values: NDArray[np.float32],
    scale: NDArray[np.float32],
    axis: int,
    steps: float,
    precision: str,
    inputs: Moments | None,
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Weights in their 8-bit type, and what that adds to each output channel on average."""
    first = np.moveaxis(values, axis, 0)
    ratio = first.reshape(*first.shape[:2], -1) / scale[:, None, None]
    if precision == "fp8":
        stored: NDArray[Any] = np.clip(ratio, -_FP8_MAX, _FP8_MAX).astype(ml_dtypes.float8_e4m3fn)
    elif inputs is None:
        stored = np.clip(np.rint(ratio), -steps, steps).astype(np.int8)
    else:
        stored = round_to_integers(ratio, inputs, int(steps)).astype(np.int8)
    shift = np.zeros_like(scale) if inputs is None else mean_error(stored.astype(np.float32) - ratio, inputs) * scale
    return np.ascontiguousarray(np.moveaxis(stored.reshape(first.shape), 0, axis)), shift


def _quantized_bias(module: str, values: NDArray[np.float32], scale: NDArray[np.float32]) -> Weight:
    limits = np.iinfo(np.int32)
    steps = np.clip(np.rint(values.astype(np.float64) / scale), limits.min, limits.max).astype(np.int32)
    return _dequantized(module, f"{module}.bias", steps, scale, 0)


def _dequantized(module: str, name: str, values: NDArray[Any], scale: NDArray[np.float32], axis: int) -> Weight:
    """A parameter that is stored in 8 or 32 bits with a scale for each output channel."""
    kind = "fp8" if values.dtype == ml_dtypes.float8_e4m3fn else values.dtype.name
    stored, scales = numpy_helper.from_array(values, f"{name}.{kind}"), numpy_helper.from_array(scale, f"{name}.scale")
    node = helper.make_node(
        "DequantizeLinear",
        [stored.name, scales.name],
        [f"{name}.dequantized"],
        f"{module}/DequantizeLinear.{name.rpartition('.')[2]}",
        axis=axis,
    )
    return Weight(node.output[0], [stored, scales], [node])
