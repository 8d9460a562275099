"""A tiny real matcher as an ONNX file, so that the runtime is tested without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from cats.core.metadata import KEY, Metadata, Preprocessing, write_model

# Patches of 16x16 pixels as features: each 4x4 block averaged, contrast-normalised, correlated, soft-argmax.
BODY = """
<ir_version: 10, opset_import: ["": 18]>
tiny (float[N,3,256,256] image_a, float[N,3,256,256] image_b) => (float[N,2,16,16] flow, float[N,16,16] confidence) {
  pool_a = AveragePool<kernel_shape=[4,4], strides=[4,4]>(image_a)
  pool_b = AveragePool<kernel_shape=[4,4], strides=[4,4]>(image_b)
  deep_a = SpaceToDepth<blocksize=4>(pool_a)
  deep_b = SpaceToDepth<blocksize=4>(pool_b)
  flat_a = Reshape(deep_a, flat_shape)
  flat_b = Reshape(deep_b, flat_shape)
  mean_a = ReduceMean(flat_a, channel)
  mean_b = ReduceMean(flat_b, channel)
  cent_a = Sub(flat_a, mean_a)
  cent_b = Sub(flat_b, mean_b)
  len_a = ReduceL2(cent_a, channel)
  len_b = ReduceL2(cent_b, channel)
  safe_a = Add(len_a, tiny)
  safe_b = Add(len_b, tiny)
  unit_a = Div(cent_a, safe_a)
  unit_b = Div(cent_b, safe_b)
  rows_b = Transpose<perm=[0,2,1]>(unit_b)
  corr = MatMul(rows_b, unit_a)
  sharp = Div(corr, temperature)
  p = Softmax<axis=1>(sharp)
  mean_xy = MatMul(cells, p)
  square_xy = MatMul(squares, p)
  mean2 = Mul(mean_xy, mean_xy)
  var_xy = Sub(square_xy, mean2)
  var = ReduceSum<keepdims=0>(var_xy, channel)
  half = Mul(var, minus_half)
  conf = Exp(half)
  confidence = Reshape(conf, confidence_shape)
  delta = Sub(mean_xy, cells)
  flow = Reshape(delta, flow_shape)
}
"""


def tiny_model(batch: int | None = None, grid: int = 16) -> onnx.ModelProto:
    """The matcher; a fixed ``batch``, or another ``grid`` than 16 (then its outputs do not fit the usual metadata)."""
    size = grid * 16
    model = onnx.parser.parse_model(
        BODY.replace("256,256", f"{size},{size}").replace("16,16", f"{grid},{grid}").replace("N", str(batch or "N"))
    )
    y, x = np.mgrid[0:grid, 0:grid].reshape(2, -1)
    cells = np.stack([x, y]).astype(np.float32)[None]
    constants = {
        "flat_shape": np.int64([0, 48, grid * grid]),
        "flow_shape": np.int64([0, 2, grid, grid]),
        "confidence_shape": np.int64([0, grid, grid]),
        "channel": np.int64([1]),
        "tiny": np.float32(1e-6),
        "temperature": np.float32(0.02),
        "minus_half": np.float32(-0.5),
        "cells": cells,
        "squares": cells**2,
    }
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    onnx.checker.check_model(model)
    return model


def tiny_metadata(**changes: Any) -> Metadata:
    """Metadata that fit :func:`tiny_model`."""
    values: dict[str, Any] = {
        "kind": "pair",
        "config": {"backbone": "patches", "hyperpixels": [0]},
        "preprocessing": Preprocessing(),
        "precision": "fp32",
        "opset": 18,
        "weights_sha256": "0" * 64,
        "verified": True,
        "tools": {"cats-toolkit": "test"},
    }
    return Metadata(**{**values, **changes})


def save_model(path: Path, model: onnx.ModelProto, document: str | Metadata | None) -> Path:
    """Write a model with metadata, which are bound to it as cats-export binds them, or with any text in their place."""
    if isinstance(document, Metadata):
        write_model(model, document, path)
        return path
    if document is not None:
        entry = model.metadata_props.add()
        entry.key, entry.value = KEY, document
    onnx.save(model, path)
    return path


def crops(texture: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Two non-square crops (320 x 192) of one image, and the shift: a's point (x, y) is b's (x + dx, y + dy).

    Cells are 20 x 12 pixels here; b begins 40 right of and 36 above a, so the true shift is (-40, +36).
    """
    a = texture[100:292, 100:420]
    b = texture[64:256, 140:460]
    return np.ascontiguousarray(a), np.ascontiguousarray(b), (-40, 36)


_GOOD = tiny_metadata().to_dict()

OUT_OF_BOUNDS: list[dict[str, Any]] = [
    {"preprocessing": {**_GOOD["preprocessing"], "mean": [10**400, 0, 0]}},
    {"preprocessing": {**_GOOD["preprocessing"], "mean": [float("nan")] * 3}},
    {"preprocessing": {**_GOOD["preprocessing"], "std": [1e-300, 1, 1]}},
    {"preprocessing": {**_GOOD["preprocessing"], "size": [256.5, 256]}},
    {"calibration": {"confidence": "x"}},
    {"calibration": {"confidence": {"a": 1}}},
    {"calibration": {"confidence": {"mapping": {"confidence": [0, 1], "probability": [0.5]}}}},
    {"calibration": {"confidence": {"mapping": {"confidence": ["a"], "probability": [0.5]}}}},
    {"calibration": {"confidence": {"mapping": {"confidence": [], "probability": []}}}},
    {"calibration": {"confidence": {"mapping": {"confidence": [0, 1], "probability": [0.7, 0.5]}}}},
    {"later": "\ud800"},
    {"later": "a\0b"},
    {"format": 2},
    {"grid": [0, 16]},
]
"""Changes of a document that Python and C refuse."""
