"""Prepared pairs of images through a model, of one file or of two: outputs of each pair, as the metadata say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cats.core.errors import ModelFileError
from cats.core.onnx_file import PROBABILITIES
from cats.runtime.backends.base import Array, Backend
from cats.runtime.batches import run_batches
from cats.runtime.interface import CONFIDENCE, FLOW, IMAGES, POINTS
from cats.runtime.prepared import Prepared
from cats.runtime.same_kind import LIKENESS, feature_likeness
from cats.runtime.split import encode_tensors, matcher_feeds

_NO_POINTS = np.zeros((1, 2), np.float32)  # points go through the flow here; an end-to-end model takes at least one


def run_pairs(
    encoder: Backend | None, backend: Backend, pairs: Sequence[tuple[Prepared, Prepared]]
) -> list[dict[str, NDArray[np.float32]]]:
    """Flow and confidence of each pair, and what else the model gives.

    Args:
        encoder: of a split model, each image of which is encoded once; None of a model of one file.
        backend: the model for pairs, or of a split model the matcher.
        pairs: of images, or of a split model also features.

    Returns:
        Of each pair float32 arrays by name, without batch axis.

    Raises:
        ModelFileError: an output has another shape than the metadata says.
        BackendError: the device failed, or an output holds values that are not numbers.
    """
    outputs = _run_whole(backend, pairs) if encoder is None else _run_split(encoder, backend, pairs)
    return [_check(backend, item) for item in outputs]


def _run_whole(backend: Backend, pairs: Sequence[tuple[Prepared, Prepared]]) -> list[dict[str, Array]]:
    pixels = backend.metadata.kind == "end-to-end"
    further: dict[str, Any] = {POINTS: _NO_POINTS} if pixels else {}
    feeds = [dict(zip(IMAGES, (a.tensor, b.tensor), strict=True)) | further for a, b in pairs]
    return run_batches(backend, feeds, largest=1 if pixels else None)  # photos differ in size


def _run_split(
    encoder: Backend, matcher: Backend, pairs: Sequence[tuple[Prepared, Prepared]]
) -> list[dict[str, Array]]:
    fresh = {id(item): item for pair in pairs for item in pair if item.features is None}
    encoded = encode_tensors(encoder, [item.tensor for item in fresh.values() if item.tensor is not None])
    found = dict(zip(fresh, encoded, strict=True))
    features = [[found[id(item)] if item.features is None else item.features for item in pair] for pair in pairs]
    results = run_batches(matcher, [matcher_feeds(a, b) for a, b in features])
    return [
        {**result, LIKENESS: np.array(feature_likeness(a, b), np.float32)}
        for result, (a, b) in zip(results, features, strict=True)
    ]


def _check(backend: Backend, outputs: dict[str, Array]) -> dict[str, NDArray[np.float32]]:
    """Outputs of one pair in float32, refused in another shape than the metadata says."""
    flow, confidence, grid = outputs[FLOW], outputs[CONFIDENCE], backend.metadata.grid
    if flow.shape != (2, *grid) or confidence.shape != grid:
        raise ModelFileError(
            f"{backend.path} gave flow {flow.shape} and confidence {confidence.shape} for a pair, "
            f"not what its metadata says (grid {grid}): export the model again"
        )
    known = (FLOW, CONFIDENCE, PROBABILITIES, LIKENESS)
    return {name: outputs[name].astype(np.float32, copy=False) for name in known if name in outputs}
