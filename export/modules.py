"""Nodes of an exported graph: the PyTorch module they compute for, and what an operator's attributes say."""

from __future__ import annotations

from collections.abc import Collection

import onnx


def module_of(node: onnx.NodeProto) -> str:
    """Path of the module that a node computes for, as in the model's state dict; ``""`` for the graph's own plumbing.

    Examples: ``feature_extraction.backbone.layer1.0.conv1``, ``proj.0``, ``decoder.blocks.0.attn.q``,
    ``decoder.blocks.0.norm1``, ``correlation``, ``soft_argmax``, ``resize.2``. The path is the part of the node's name
    before the last ``/``, so it survives every tool that keeps names or adds a suffix to them.
    """
    return node.name.rpartition("/")[0]


def is_inside(path: str, modules: Collection[str]) -> bool:
    """Whether a module is one of ``modules`` or inside one; ``""`` holds only itself."""
    return path in modules or any(module and path.startswith(f"{module}.") for module in modules)


def find_modules(model: onnx.ModelProto, modules: Collection[str]) -> set[str]:
    """Find those of ``modules`` for which a model has nodes."""
    paths = {module_of(node) for node in model.graph.node}
    return {module for module in modules if any(is_inside(path, (module,)) for path in paths)}


def group_count(node: onnx.NodeProto) -> int:
    """Groups of a convolution; 1 for a linear layer."""
    return next((item.i for item in node.attribute if item.name == "group"), 1)
