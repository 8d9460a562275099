"""Split and end-to-end files as one graph from two images to the flow, put together and, quantized, taken apart.

What calibration knows of is the pair: two normalised images in, flow out. A split model's two files are joined into
such a graph, both images in one pass of the encoder; of an end-to-end file the part between its resize and its transfer
of points is one already. Values keep the names that they have in the file for pairs, so that ranges and modules found
with one form hold for the others. The quantized graph is cut at the same places again: what was judged is what is
written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from cats.calibration.graph import Graph, separate_weights, take_name
from cats.core.errors import ModelFileError
from cats.core.metadata import Metadata

IMAGES = "/Concat"
"""Name of both images as one batch, in files for pairs and end-to-end."""

FLOW = ("flow", "confidence")

_IMAGES_AXIS = "images"  # of the encoder's values in a joined graph: two batches


@dataclass(frozen=True)
class FloatFile:
    """One file of a float32 export: its graph, every node with a name of its own, and what it says about itself."""

    path: Path
    model: onnx.ModelProto
    metadata: Metadata


@dataclass(frozen=True)
class FloatModel:
    """A float32 export of any form as one graph, and the files that it consists of.

    Attributes:
        path: as it was given.
        model: normalised ``image_a`` and ``image_b`` (B, 3, S, S) to ``flow`` and ``confidence``.
        metadata: of the file that computes the flow.
        files: by kind, as of :data:`cats.export.forms.FORMS`; empty for one file of kind ``pair``, which ``model`` is.
    """

    path: Path
    model: onnx.ModelProto
    metadata: Metadata
    files: Mapping[str, FloatFile] | None = None

    @property
    def by_kind(self) -> Mapping[str, FloatFile]:
        """Kind -> file."""
        return self.files or {"pair": FloatFile(self.path, self.model, self.metadata)}

    def take_apart(self, model: onnx.ModelProto) -> dict[str, onnx.ModelProto]:
        """A graph that was made of ``model``, such as the quantized one, as files of the same kinds; ``model`` itself
        gives the float files."""
        if not self.files:
            return {"pair": model}
        if "end-to-end" in self.files:
            return {"end-to-end": _put_back(self.files["end-to-end"], model)}
        return _cut(self.files["encoder"].model, self.files["matcher"].model, model)


def join_files(path: Path, files: Mapping[str, FloatFile]) -> FloatModel:
    """The model that files of one form are.

    Args:
        path: as it was given.
        files: by kind: ``pair``, ``encoder`` and ``matcher``, or ``end-to-end``.

    Raises:
        ModelFileError: the halves of a split model do not fit, or have a fixed batch; an end-to-end file has another
            structure than cats-export gives it.
    """
    if "pair" in files:
        file = files["pair"]
        return FloatModel(path, separate_weights(file.model), file.metadata)
    if "end-to-end" in files:
        file = files["end-to-end"]
        return FloatModel(path, separate_weights(_take_out(file)), file.metadata, files)
    joined = _join(files["encoder"], files["matcher"])
    return FloatModel(path, separate_weights(joined), files["matcher"].metadata, files)


def _join(encoder: FloatFile, matcher: FloatFile) -> onnx.ModelProto:
    """Encoder and matcher as one graph for pairs."""
    if encoder.metadata.weights_sha256 != matcher.metadata.weights_sha256:
        raise ModelFileError(
            f"{encoder.path} and {matcher.path} differ in weights: export both with cats-export --split"
        )
    first, second = encoder.model, matcher.model
    image, features = first.graph.input[0], [value.name for value in first.graph.output]
    wanted = {f"{name}_{side}" for name in features for side in "ab"}
    if {value.name for value in second.graph.input} != wanted or _opset(first) != _opset(second):
        raise ModelFileError(f"{matcher.path} takes other features than {encoder.path} gives: export both together")
    if image.type.tensor_type.shape.dim[0].dim_value:
        raise ModelFileError(
            f"{encoder.path} takes a fixed batch, both images cannot be one: export it with --batch dynamic"
        )
    names = _apart(first, second) | {image.name: IMAGES}
    nodes = [helper.make_node("Concat", ["image_a", "image_b"], [IMAGES], IMAGES, axis=0)]
    nodes += _renamed(first.graph.node, names)
    for name in features:
        halves = [f"{name}_{side}" for side in "ab"]
        nodes.append(
            helper.make_node("Split", [names.get(name, name)], halves, f"/Split.{name}", axis=0, num_outputs=2)
        )
    nodes += second.graph.node
    inputs = []
    for side in "ab":
        value = onnx.ValueInfoProto()
        value.CopyFrom(image)
        value.name = f"image_{side}"
        inputs.append(value)
    initializers = {names.get(item.name, item.name): item for item in first.graph.initializer}
    initializers |= {item.name: item for item in second.graph.initializer}
    shapes = [*_of_two(first.graph.value_info, image, names), *second.graph.value_info]
    return _with(second, _numbered(nodes), inputs, second.graph.output, initializers, shapes)


def _cut(encoder: onnx.ModelProto, matcher: onnx.ModelProto, model: onnx.ModelProto) -> dict[str, onnx.ModelProto]:
    """Inverse of :func:`_join` for what became of the joined graph."""
    graph = Graph(model)
    initializers = dict(graph.initializers)
    image, features = encoder.graph.input[0].name, [value.name for value in encoder.graph.output]
    # Where the value was quantized for all of its readers, the matcher gets what the others read too.
    given = {graph.producer[f"{name}_a"].input[0]: name for name in features}
    names = {IMAGES: image}
    for value, name in given.items():
        if value != name:
            names[name] = f"{name}.inside"
    names |= given
    nodes = _renamed(_nodes_for(model, given, {IMAGES}), names)
    halves = {value.name for value in matcher.graph.input}
    return {
        "encoder": _with(
            encoder, nodes, encoder.graph.input, encoder.graph.output, initializers, encoder.graph.value_info
        ),
        "matcher": _with(
            matcher,
            _nodes_for(model, FLOW, halves),
            matcher.graph.input,
            matcher.graph.output,
            initializers,
            matcher.graph.value_info,
        ),
    }


def _take_out(file: FloatFile) -> onnx.ModelProto:
    """The part of an end-to-end file that is a file for pairs."""
    images = _normalised(file)
    names = {value: name for name, value in images.items()}
    nodes = _renamed(_nodes_for(file.model, FLOW, set(names)), names)
    width, height = file.metadata.preprocessing.size
    batch = file.model.graph.input[0].type.tensor_type.shape.dim[0]
    shape = [batch.dim_value or batch.dim_param or None, 3, height, width]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in images]
    outputs = [value for value in file.model.graph.output if value.name in FLOW]
    initializers = Graph(file.model).initializers
    return _with(file.model, nodes, inputs, outputs, initializers, file.model.graph.value_info)


def _put_back(file: FloatFile, model: onnx.ModelProto) -> onnx.ModelProto:
    """Inverse of :func:`_take_out` for what became of that part."""
    whole = file.model.graph
    images = _normalised(file)
    before = _nodes_for(file.model, images.values(), set())
    after = _nodes_for(file.model, {value.name for value in whole.output} - set(FLOW), {*FLOW, *images.values()})
    nodes: list[onnx.NodeProto] = []
    made: set[str] = set()
    for node in (*before, *_renamed(model.graph.node, images), *after):
        if made.isdisjoint(node.output):  # constants that are cast for several parts
            made.update(node.output)
            nodes.append(node)
    initializers = {item.name: item for item in (*whole.initializer, *model.graph.initializer)}
    return _with(file.model, _numbered(nodes), whole.input, whole.output, initializers, whole.value_info)


def _normalised(file: FloatFile) -> dict[str, str]:
    """Of an end-to-end file, the values that a file for pairs has as inputs ``image_a`` and ``image_b``: the last ones
    that depend on one image alone."""
    origin: dict[str, frozenset[str]] = {"image_a": frozenset("a"), "image_b": frozenset("b")}
    found: dict[str, str] = {}
    for node in _nodes_for(file.model, FLOW, set()):
        sides = [origin.get(name, frozenset()) for name in node.input]
        together = frozenset().union(*sides)
        if len(together) == 2:
            for name, side in zip(node.input, sides, strict=True):
                if len(side) == 1:
                    (letter,) = side
                    if found.setdefault(f"image_{letter}", name) != name:
                        raise ModelFileError(f"{file.path}: its images meet at several places: export it again")
        origin.update(dict.fromkeys(node.output, together))
    if set(found) != {"image_a", "image_b"}:
        raise ModelFileError(f"{file.path}: its flow does not depend on both images: export it again")
    return dict(sorted(found.items()))


def _nodes_for(model: onnx.ModelProto, outputs: Iterable[str], stop: Collection[str]) -> list[onnx.NodeProto]:
    """Nodes that compute some values out of others, in graph order."""
    needed = set(outputs) - set(stop)
    found = []
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(node.output):
            found.append(node)
            needed.update(name for name in node.input if name not in stop)
    return found[::-1]


def _renamed(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> list[onnx.NodeProto]:
    """Copies of nodes with other names of values."""
    found = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for side in (copy.input, copy.output):
            side[:] = [names.get(name, name) for name in side]
        found.append(copy)
    return found


def _apart(first: onnx.ModelProto, second: onnx.ModelProto) -> dict[str, str]:
    """New names for those values of one file whose names mean something else in the other, or in the joined graph."""
    there = {item.name: item for item in second.graph.initializer}
    taken = {name for node in second.graph.node for name in (*node.input, *node.output)} | {IMAGES}
    shared = {
        item.name
        for item in first.graph.initializer
        if item.name in there and item.SerializeToString() == there[item.name].SerializeToString()
    }
    own = {name for node in first.graph.node for name in (*node.input, *node.output) if name}
    return {name: f"{name}.encoder" for name in sorted((own & taken) - shared)}


def _of_two(
    values: Iterable[onnx.ValueInfoProto], image: onnx.ValueInfoProto, names: Mapping[str, str]
) -> list[onnx.ValueInfoProto]:
    """Shapes of an encoder's values where its batch is two: those of ``a`` and those of ``b``."""
    batch = image.type.tensor_type.shape.dim[0].dim_param
    found = []
    for value in values:
        copy = onnx.ValueInfoProto()
        copy.CopyFrom(value)
        copy.name = names.get(value.name, value.name)
        for side in copy.type.tensor_type.shape.dim:
            if side.dim_param and side.dim_param == batch:
                side.dim_param = _IMAGES_AXIS
        found.append(copy)
    return found


def _opset(model: onnx.ModelProto) -> int:
    return next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)


def _numbered(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Copies of nodes, each with a name of its own."""
    used: set[str] = set()
    found = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = take_name(node.name, used)
        found.append(copy)
    return found


def _with(
    like: onnx.ModelProto,
    nodes: Iterable[onnx.NodeProto],
    inputs: Iterable[onnx.ValueInfoProto],
    outputs: Iterable[onnx.ValueInfoProto],
    initializers: Mapping[str, onnx.TensorProto],
    shapes: Iterable[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """A checked model with the functions and operator sets of another, and of the constants those that are read."""
    nodes = list(nodes)
    read = {name for node in nodes for name in node.input}
    made = {name for node in nodes for name in node.output}
    graph = helper.make_graph(
        nodes,
        like.graph.name,
        list(inputs),
        list(outputs),
        [_named(item, name) for name, item in initializers.items() if name in read],
        value_info=[value for value in shapes if value.name in made],
    )
    result = onnx.ModelProto()
    result.CopyFrom(like)
    result.graph.CopyFrom(graph)
    onnx.checker.check_model(result)
    return result


def _named(item: onnx.TensorProto, name: str) -> onnx.TensorProto:
    if item.name == name:
        return item
    copy = onnx.TensorProto()
    copy.CopyFrom(item)
    copy.name = name
    return copy
