"""The soft-argmax of an exported graph: its temperature, another temperature in its place, and the same in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from cats.calibration.graph import Graph
from cats.core.errors import ModelFileError
from cats.export.modules import module_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NumpySoftArgmax:
    """A model's soft-argmax in numpy.

    Attributes:
        coordinates: (G * G, 2) of the cells of b, as the model has learned them.
        origin: (G * G, 2) of those of a, from which its flow counts.
        grid: G.
    """

    coordinates: Floats
    origin: Floats
    grid: int

    @classmethod
    def of(cls, graph: Graph, grid: int) -> NumpySoftArgmax:
        """Read the constants of an exported graph; raises :class:`ModelFileError` where it has none."""
        found = []
        for node in graph.model.graph.node:
            if module_of(node) == "soft_argmax" and node.op_type in ("MatMul", "Sub"):
                value = graph.constant(node.input[1])
                found += [value] if value is not None and value.size >= 2 * grid * grid else []
        if len(found) != 2 or found[0].shape != (grid * grid, 3) or found[1].size != 2 * grid * grid:
            raise ModelFileError("the graph's soft-argmax is not as cats-export writes it: export the model again")
        return cls(found[0][:, :2].astype(float), found[1].reshape(2, -1).T.astype(float), grid)

    def __call__(self, scores: NDArray[np.float32], temperature: float) -> Floats:
        """Flow in cells and confidence, (3, G, G), of scores (G * G, G * G) of the cells of two images."""
        logits = scores.astype(np.float64) / temperature
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        mean = p @ self.coordinates
        variance = np.maximum((p @ np.square(self.coordinates)).sum(1) - np.square(mean).sum(1), 0)
        return np.concatenate([(mean - self.origin).T, np.exp(-variance / 2)[None]]).reshape(3, self.grid, self.grid)


def temperature_of(model: onnx.ModelProto) -> float:
    """The soft-argmax's temperature as the graph computes it.

    Raises:
        ModelFileError: there is no such node.
    """
    graph = Graph(model)
    value = graph.constant(find_temperature(graph)[0].input[1])
    assert value is not None
    return round(float(value.reshape(())), 9)


def replace_temperature(model: onnx.ModelProto, temperature: float) -> onnx.ModelProto:
    """Give a copy of the model another temperature of the soft-argmax; other readers of the old constant keep it."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = Graph(result)
    node, name = find_temperature(graph)
    value = graph.constant(node.input[1])
    assert value is not None
    used = {item.name for item in result.graph.initializer} - {node.input[1]}
    if len(graph.consumers[node.input[1]]) == 1:
        for index, item in enumerate(result.graph.initializer):
            if item.name == node.input[1]:
                del result.graph.initializer[index]
                break
    while name in used:
        name += "_"
    node.input[1] = name
    result.graph.initializer.append(numpy_helper.from_array(np.asarray(temperature, value.dtype), name))
    onnx.checker.check_model(result)
    return result


def find_temperature(graph: Graph) -> tuple[onnx.NodeProto, str]:
    """The division in front of the soft-argmax's softmax, and a name for its constant."""
    for node in graph.model.graph.node:
        if node.op_type == "Softmax" and module_of(node) == "soft_argmax":
            before = graph.producer.get(node.input[0])
            if before is not None and before.op_type == "Div":
                value = graph.constant(before.input[1])
                if value is not None and value.size == 1:
                    return before, "soft_argmax.temperature"
    raise ModelFileError("the graph has no soft-argmax with a constant temperature: export the model again")
