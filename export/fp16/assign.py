"""Typing an exported model in float16 where that is safe, and in float32 where it is not.

The pass knows the model: nodes are told apart by the module that they compute for (the part of a node's name before the
last ``/``, see :func:`cats.export.modules.module_of`). In float16: backbone, resize, projections and the matrix
products, residual sums and norms of the aggregator. In float32:

- the L2 norm and the mutual filter, whose guard 1e-30 is 0 in float16; inside ``cats::Correlation`` only the product of
  the normalised features is in float16, see :mod:`cats.export.fp16.correlation`;
- softmaxes, and sums over many values; a LayerNormalization in float16 accumulates in float32 by definition
  (``stash_type`` 1);
- the refined scores, soft-argmax, flow and confidence: the temperature of 0.02 multiplies a score's error by 50;
- of a backbone whose first layers are depthwise, those down to the ones that read maps of half the image's size: they
  have few channels and filters whose weights cancel, so that rounding does not average out, and all else depends on
  them. With them in float16 the flow of cats-tiny differs by five times as much (99th percentile over 12 pairs of
  PF-WILLOW 3.4 px, else 0.65 px). ResNet's first convolution reads 147 values at once and is in float16 like the rest
  (0.76 px over 15 pairs, with it in float32 0.86 px over 36): without tensor cores it took 8 % of a batch on an H200;
- pre-processing and keypoint transfer, which count in pixels;
- of COTR, the encoded places, the head that makes a place of a token, and the spread of its attention.

The weights of convolutions are not rounded to the nearest, but so that their errors cancel
(:mod:`cats.export.fp16.weights`): that alone brings the 99th percentile of a model like cats-tiny from 2 to 0.6 px.

Inputs and outputs keep their types. Neither torch nor an inference library is used.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cats.core.errors import InputError
from cats.export.fp16.correlation import convert_correlation
from cats.export.fp16.weights import TYPICAL, Moments, round_to_fp16
from cats.export.modules import find_modules, group_count, is_inside, module_of

FLOAT_MODULES = (
    "correlation", "preprocess", "soft_argmax", "transfer",
    "positions", "query_positions", "head", "spread",  # of COTR
)  # fmt: skip
"""Modules that stay in float32 whatever happens."""

FLOAT_OPERATORS = frozenset(
    {
        "Softmax",
        "LogSoftmax",
        "Exp",
        "Log",
        "Sqrt",
        "Reciprocal",
        "Pow",
        "ReduceSum",
        "ReduceSumSquare",
        "ReduceL1",
        "ReduceL2",
        "CumSum",
        "GridSample",
        "BatchNormalization",
        "InstanceNormalization",
        "GroupNormalization",
    }
)
"""Operators that stay in float32 in every module."""

LAYOUT_OPERATORS = frozenset(
    {
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Pad",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators that move values without computing: they have the type of what they move."""

HALF_LARGEST = float(np.finfo(np.float16).max)
"""Largest finite float16, 65504."""

LARGE_ACTIVATION = 30_000.0
"""Values in float16 above this are warned of: it ends at 65504, and other images may give twice as much."""

_BACKBONE = "feature_extraction"
_SCORES = ("decoder", "soft_argmax")  # nodes of the first, by itself, that lead to the second make the refined scores
_FUNCTION = ("cats", "Correlation")
_HALF, _FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def to_fp16(model: onnx.ModelProto, keep: Collection[str] = (), moments: Moments | None = None) -> onnx.ModelProto:
    """Type a model in float16.

    Args:
        model: float32 model of any kind of ``cats-export``, with names as it writes them; is not changed. Weights that
            are stored in float16 become float32 first.
        keep: modules to leave in float32, each with all inside it, such as ``feature_extraction.backbone.conv1`` or
            ``decoder.blocks.0.mlp``; ``""`` is what belongs to no module.
        moments: of the inputs of convolutions (:func:`cats.export.fp16.input_moments.measure_moments`), by which their
        weights
            are rounded; of those that are missing something typical is assumed.

    Returns:
        A checked model: the same nodes in the same order, and a Cast wherever a value changes its type, named after the
        value with ``.half`` or ``.float``. Equal models give equal bytes.

    Raises:
        InputError: the model is typed already, quantized, or written for ONNX Runtime alone; or ``keep`` names a module
            that it does not have.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    _check(result, keep)
    _unpack_weights(graph)
    if not graph.value_info:
        result = onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)
        graph = result.graph
    half = _nodes_in_half(graph, keep)
    for function in result.functions:
        if (function.domain, function.name) == _FUNCTION and "correlation" not in keep:
            half |= {node.name for node in graph.node if (node.domain, node.op_type) == _FUNCTION}
            function.CopyFrom(convert_correlation(function))
    _Typing(graph, half, moments or {}).apply()
    del graph.value_info[:]
    result = onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)
    onnx.checker.check_model(result, full_check=True)
    return result


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether the graph has Q/DQ nodes already."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)


def find_half_tensors(model: onnx.ModelProto) -> list[str]:
    """Find the values of a typed model's graph that are in float16, in the order in which they are computed."""
    halves = _types(model.graph, _HALF)
    return [name for node in model.graph.node for name in node.output if name in halves]


def _check(model: onnx.ModelProto, keep: Collection[str]) -> None:
    nodes = model.graph.node
    if any(node.domain == "com.microsoft" for node in nodes):
        raise InputError("float16 is for GPUs, and this model is for ONNX Runtime alone: export it for any")
    if is_quantized(model):
        raise InputError("a quantized model cannot be typed in float16: type it first and quantize it then")
    stored = {item.name for item in model.graph.initializer}
    if any(node.op_type == "Cast" and node.attribute[0].i == _HALF and node.input[0] not in stored for node in nodes):
        raise InputError("the model is in float16 already")
    unknown = set(keep) - find_modules(model, keep)
    if unknown:
        raise InputError(f"the model has no module {', '.join(sorted(unknown))} to leave in float32")


def _unpack_weights(graph: onnx.GraphProto) -> None:
    """Compute what only depends on weights: those stored in float16 are cast, and multiplied by folded factors."""
    values = {item.name: item for item in graph.initializer}
    rest = []
    for node in graph.node:
        if node.op_type not in ("Cast", "Mul") or not all(name in values for name in node.input):
            rest.append(node)
            continue
        arrays = [numpy_helper.to_array(values[name]) for name in node.input]
        array = arrays[0] * arrays[1] if node.op_type == "Mul" else arrays[0].astype(_numpy_type(node.attribute[0].i))
        values[node.output[0]] = numpy_helper.from_array(np.asarray(array), node.output[0])
    if len(rest) == len(graph.node):
        return
    used = dict.fromkeys(name for node in rest for name in node.input if name in values)
    replace_all(graph.initializer, [values[name] for name in used])
    replace_all(graph.node, rest)


def _nodes_in_half(graph: onnx.GraphProto, keep: Collection[str]) -> set[str]:
    """Names of the nodes that compute in float16."""
    floats = _types(graph, _FLOAT)
    weights = {item.name: item for item in graph.initializer if item.data_type == _FLOAT}
    special = _score_nodes(graph) | _large_map_nodes(graph)
    half: set[str] = set()
    half_values: set[str] = set()
    for node in graph.node:
        if not any(name in floats for name in node.output) or (node.domain, node.op_type) == _FUNCTION:
            continue
        if node.op_type in ("Cast", "Constant", "ConstantOfShape", "Range"):
            continue
        path, moves = module_of(node), node.op_type in LAYOUT_OPERATORS
        if is_inside(path, keep) or (not moves and (node.op_type in FLOAT_OPERATORS or is_inside(path, FLOAT_MODULES))):
            continue
        if moves:
            chosen = any(name in half_values for name in node.input)
        else:
            chosen = node.name not in special and all(_fits(weights[name]) for name in node.input if name in weights)
        if chosen:
            half.add(node.name)
            half_values.update(name for name in node.output if name in floats)
    return half


def _score_nodes(graph: onnx.GraphProto) -> set[str]:
    """Nodes of the aggregator, outside its parts, that make the refined scores of its last outputs."""
    producers = {name: node for node in graph.node for name in node.output}
    inside, reader = _SCORES
    waiting = [name for node in graph.node if module_of(node) == reader for name in node.input]
    found: set[str] = set()
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and node.name not in found and module_of(node) == inside:
            found.add(node.name)
            waiting += node.input
    return found


def _large_map_nodes(graph: onnx.GraphProto) -> set[str]:
    """Nodes of the backbone that make or read maps of half the image's size or more, if some of them are depthwise."""
    sizes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim][2:]
        for value in (*graph.value_info, *graph.input, *graph.output)
        if len(value.type.tensor_type.shape.dim) == 4
    }
    inside = [node for node in graph.node if is_inside(module_of(node), (_BACKBONE,))]
    image = sizes.get(inside[0].input[0]) if inside else None
    if not image:
        return set()
    height, width = image
    large = {name for name, (rows, columns) in sizes.items() if 2 * rows >= height > 0 or 2 * columns >= width > 0}
    found = [node for node in inside if large.intersection((*node.input, *node.output))]
    return {node.name for node in found} if any(group_count(node) > 1 for node in found) else set()


def _fits(weight: onnx.TensorProto) -> bool:
    """Whether float16 holds a weight: not beyond its range, and a single number not below it."""
    values = np.abs(numpy_helper.to_array(weight))
    return bool((values <= HALF_LARGEST).all() and not (values.size == 1 and 0 < values.max() < 2**-24))


class _Typing:
    """Rewrites a graph so that the nodes in ``half`` read and write float16, and all others what they did before."""

    def __init__(self, graph: onnx.GraphProto, half: set[str], moments: Moments) -> None:
        self.graph, self.half = graph, half
        self.floats = _types(graph, _FLOAT)
        self.weights = {item.name: item for item in graph.initializer if item.data_type == _FLOAT}
        self.outputs = {value.name for value in graph.output}
        self.half_values: set[str] = set()
        self.nodes: list[onnx.NodeProto] = []
        self.casts: dict[tuple[str, int], str] = {}
        self.renamed: dict[str, str] = {}
        self.convolutions: dict[str, tuple[str, Any, Any]] = {}  # weight -> bias, moments of the input
        for node in reversed(graph.node):  # of a weight that several read, the first counts
            if node.op_type == "Conv" and node.name in half:
                mean, square = moments.get(node.input[0], TYPICAL)
                self.convolutions[node.input[1]] = (node.input[2] if len(node.input) > 2 else "", mean, square)

    def apply(self) -> None:
        """Rewrite the graph in place."""
        readers = self._readers()
        for node in self.graph.node:
            wanted = self._wanted(node)
            node.input[:] = [self._input(self.renamed.get(name, name), wanted, readers) for name in node.input]
            self.nodes.append(node)
            if self._wanted(node) == _HALF:
                self._outputs(node)
        replace_all(self.graph.node, self.nodes)
        kept = []
        for item in self.graph.initializer:
            kinds = readers.get(item.name, set())
            if item.name in self.weights and _HALF in kinds:
                if kinds != {_HALF}:
                    kept.append(item)
                name = item.name if kinds == {_HALF} else f"{item.name}.half"
                kept.append(numpy_helper.from_array(self._half_weight(item), name))
            else:
                kept.append(item)
        replace_all(self.graph.initializer, kept)

    def _half_weight(self, item: onnx.TensorProto) -> np.ndarray:
        values = numpy_helper.to_array(item)
        if item.name not in self.convolutions:
            return values.astype(np.float16)
        name, mean, square = self.convolutions[item.name]
        bias = numpy_helper.to_array(self.weights[name]) if name in self.weights else None
        return round_to_fp16(values, bias, mean, square)

    def _wanted(self, node: onnx.NodeProto) -> int | None:
        """The type in which a node reads its floats; None leaves them as they come."""
        if (node.domain, node.op_type) == _FUNCTION and node.name in self.half:
            return None  # its definition casts
        if node.op_type in ("Shape", "Size"):
            return None
        return _HALF if node.name in self.half else _FLOAT

    def _readers(self) -> dict[str, set[int | None]]:
        """By weight, the types in which nodes read it."""
        found: dict[str, set[int | None]] = {}
        for node in self.graph.node:
            for name in node.input:
                if name in self.weights:
                    found.setdefault(name, set()).add(self._wanted(node))
        return found

    def _input(self, name: str, wanted: int | None, readers: dict[str, set[int | None]]) -> str:
        if name in self.weights:
            return f"{name}.half" if wanted == _HALF and readers[name] != {_HALF} else name
        is_half = name in self.half_values
        if wanted is None or is_half == (wanted == _HALF) or not (is_half or name in self.floats):
            return name
        if (name, wanted) not in self.casts:
            place = name if "/" in name else f"/{name}"
            self.casts[name, wanted] = self._cast(name, f"{place}.{'half' if wanted == _HALF else 'float'}", wanted)
        return self.casts[name, wanted]

    def _outputs(self, node: onnx.NodeProto) -> None:
        """Record a node's results as float16; those that the graph gives away become float32 again."""
        for index, name in enumerate(node.output):
            if name not in self.floats:
                continue
            if name not in self.outputs:
                self.half_values.add(name)
                continue
            inner = node.name if len(node.output) == 1 else f"{node.name}:{index}"
            node.output[index] = self.renamed[name] = inner
            self.half_values.add(inner)
            self.casts[inner, _FLOAT] = self._cast_output(inner, name)

    def _cast(self, source: str, name: str, to: int) -> str:
        self.nodes.append(helper.make_node("Cast", [source], [name], name, to=to))
        return name

    def _cast_output(self, source: str, name: str) -> str:
        self.nodes.append(helper.make_node("Cast", [source], [name], f"{source}.float", to=_FLOAT))
        return name


def _types(graph: onnx.GraphProto, element: int) -> set[str]:
    """Values of one element type, weights aside."""
    values = (*graph.value_info, *graph.output, *graph.input)
    return {value.name for value in values if value.type.tensor_type.elem_type == element}


def _numpy_type(element: int) -> np.dtype:
    return helper.tensor_dtype_to_np_dtype(element)


def replace_all(field: Any, items: list[Any]) -> None:
    """Put other messages into a repeated field; they may be its own."""
    kept = []
    for item in items:
        copy = type(item)()
        copy.CopyFrom(item)
        kept.append(copy)
    del field[:]
    field.extend(kept)
