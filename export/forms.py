"""The forms in which a model is exported: which graph, under which names, with which free axes."""

from __future__ import annotations

import onnx
import torch
from torch import Tensor

from cats.core.errors import InputError
from cats.export.graph.deployment import DeploymentOptions, EncoderFileGraph, MatcherFileGraph, PairGraph
from cats.export.graph.end_to_end import EndToEndGraph
from cats.export.onnx_writer import DEFAULT_OPSET, to_onnx
from cats.model import CATs

FORMS = {"pair": ("pair",), "split": ("encoder", "matcher"), "end-to-end": ("end-to-end",)}
"""Form -> kinds of the files it consists of."""

_BATCH = {0: "batch"}


def build_form(
    model: CATs,
    form: str = "pair",
    *,
    opset: int = DEFAULT_OPSET,
    batch: int | None = None,
    options: DeploymentOptions | None = None,
) -> dict[str, onnx.ModelProto]:
    """Export a model in one of :data:`FORMS`: kind -> ONNX model, without metadata, not yet verified.

    Tensors, with B the batch, S the image side, G the grid side, N = G * G, L levels, all float32 unless said:

    - ``pair``: ``image_a``, ``image_b`` (B, 3, S, S), normalised, to ``flow`` (B, 2, G, G) in cells and ``confidence``
      (B, G, G).
    - ``encoder``: ``image`` (B, 3, S, S) to ``features_0`` .. ``features_{L-1}`` (B, C_l, N) and, if the model has it,
      ``appearance`` (B, L, N, P).
    - ``matcher``: all of the encoder's outputs with ``_a`` appended, then all with ``_b``, to what ``pair`` gives.
    - ``end-to-end``: ``image_a``, ``image_b`` uint8 (B, H, W, 3) RGB, each of any size, and ``points_a`` (B, K, 2) in
      pixels of a, to ``points_b`` (B, K, 2) in pixels of b, ``points_confidence`` (B, K), and what ``pair`` gives.

    Args:
        batch: fixed B; None leaves it free. H, W and K are always free.

    Raises:
        InputError: an unknown form, opset or batch.
    """
    if form not in FORMS:
        raise InputError(f"unknown form {form!r}: choose {', '.join(FORMS)}")
    if batch is not None and batch < 1:
        raise InputError(f"batch {batch} must be at least 1, or dynamic")
    build = {"pair": _pair, "split": _split, "end-to-end": _end_to_end}[form]
    return build(model.eval(), opset, batch, options or DeploymentOptions())


def feature_names(model: CATs) -> list[str]:
    """Names of the encoder's outputs."""
    names = [f"features_{level}" for level in range(len(model.config.hyperpixels))]
    return [*names, "appearance"] if model.config.projects_appearance else names


def _pair(model: CATs, opset: int, batch: int | None, options: DeploymentOptions) -> dict[str, onnx.ModelProto]:
    inputs = {name: _image(model, batch) for name in ("image_a", "image_b")}
    axes = {} if batch else dict.fromkeys(inputs, _BATCH)
    graph = PairGraph(model, options)
    return {"pair": to_onnx(graph, inputs, ["flow", "confidence"], dynamic_axes=axes, opset=opset)}


def _split(model: CATs, opset: int, batch: int | None, options: DeploymentOptions) -> dict[str, onnx.ModelProto]:
    names, image = feature_names(model), _image(model, batch)
    encoder = EncoderFileGraph(model, options).eval()
    axes = {} if batch else {"image": _BATCH}
    exported = to_onnx(encoder, {"image": image}, names, dynamic_axes=axes, opset=opset)
    with torch.no_grad():
        encoded = dict(zip(names, encoder(image), strict=True))
    inputs = {f"{name}_{side}": value.clone() for side in "ab" for name, value in encoded.items()}
    axes = {} if batch else dict.fromkeys(inputs, _BATCH)
    matcher = to_onnx(MatcherFileGraph(model, options), inputs, ["flow", "confidence"], dynamic_axes=axes, opset=opset)
    return {"encoder": exported, "matcher": matcher}


def _end_to_end(model: CATs, opset: int, batch: int | None, options: DeploymentOptions) -> dict[str, onnx.ModelProto]:
    count = batch or 2
    inputs = {
        "image_a": torch.zeros(count, 120, 90, 3, dtype=torch.uint8),
        "image_b": torch.zeros(count, 70, 100, 3, dtype=torch.uint8),
        "points_a": torch.zeros(count, 5, 2),
    }
    axes = {f"image_{side}": {1: f"height_{side}", 2: f"width_{side}"} for side in "ab"} | {"points_a": {1: "points"}}
    if not batch:
        axes = {name: _BATCH | free for name, free in axes.items()}
    outputs = ["points_b", "points_confidence", "flow", "confidence"]
    graph = EndToEndGraph(model, options)
    return {"end-to-end": to_onnx(graph, inputs, outputs, dynamic_axes=axes, opset=opset)}


def _image(model: CATs, batch: int | None) -> Tensor:
    # An example batch of one would be taken for a constant.
    return torch.zeros(batch or 2, 3, model.config.image_size, model.config.image_size)
