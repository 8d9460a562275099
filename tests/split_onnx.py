"""The tiny matcher in two files, encoder and matcher, with the names that ``cats-export --split`` gives."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper
from tiny_onnx import save_model, tiny_metadata, tiny_model


def tiny_split() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Encoder (image to features_0, appearance) and matcher (both of a, both of b, to flow, confidence)."""
    whole = tiny_model()
    nodes = {output: node for node in whole.graph.node for output in node.output}
    constants = {item.name: item for item in whole.graph.initializer}
    batch = ["N", 48, 256]

    def subgraph(outputs: list[str], stop: set[str]) -> list[onnx.NodeProto]:
        wanted, todo = [], list(outputs)
        while todo:
            name = todo.pop()
            if name in stop or name not in nodes or any(name in node.output for node in wanted):
                continue
            wanted.append(nodes[name])
            todo += nodes[name].input
        return [node for node in whole.graph.node if node in wanted]

    def model(body: list[onnx.NodeProto], inputs: list, outputs: list) -> onnx.ModelProto:
        used = {name for node in body for name in node.input}
        graph = helper.make_graph(
            body, "tiny", inputs, outputs, [constants[name] for name in constants if name in used]
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(made)
        return made

    def rename(body: list[onnx.NodeProto], names: dict[str, str]) -> list[onnx.NodeProto]:
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in body]
        for node in copies:
            for side in (node.input, node.output):
                side[:] = [names.get(name, name) for name in side]
        return copies

    def tensor(name: str, shape: list) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    half = rename(subgraph(["unit_a"], set()), {"image_a": "image", "unit_a": "features_0"})
    half.append(helper.make_node("Neg", ["features_0"], ["appearance"]))
    encoder = model(
        half, [tensor("image", ["N", 3, 256, 256])], [tensor("features_0", batch), tensor("appearance", batch)]
    )
    body = rename(
        subgraph(["flow", "confidence"], {"unit_a", "unit_b"}), {"unit_a": "features_0_a", "unit_b": "features_0_b"}
    )
    # a is taken from the second feature and b from the first, so that mixed-up inputs change the result.
    body = rename(body, {"features_0_a": "again"})
    body.insert(0, helper.make_node("Neg", ["appearance_a"], ["again"]))
    names = [f"{name}_{side}" for side in "ab" for name in ("features_0", "appearance")]
    matcher = model(
        body,
        [tensor(name, batch) for name in names],
        [tensor("flow", ["N", 2, 16, 16]), tensor("confidence", ["N", 16, 16])],
    )
    return encoder, matcher


def save_split(folder: Path, **metadata: str) -> tuple[Path, Path]:
    """Write ``tiny.encoder.onnx`` and ``tiny.matcher.onnx``."""
    paths = []
    for kind, made in zip(("encoder", "matcher"), tiny_split(), strict=True):
        text = tiny_metadata(**{"kind": kind, **metadata})
        paths.append(save_model(folder / f"tiny.{kind}.onnx", made, text))
    return paths[0], paths[1]
