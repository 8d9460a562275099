"""Whether a loaded model takes and gives what its metadata says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cats.core.errors import ModelFileError
from cats.runtime.backends.base import Backend, TensorSpec

IMAGES = ("image_a", "image_b")
POINTS = "points_a"
FLOW, CONFIDENCE = "flow", "confidence"


def check_pair_model(backend: Backend) -> None:
    """Refuse what is no model of kind ``pair`` or ``end-to-end``, by name.

    Raises:
        ModelFileError: another kind, a grid that is not square, or other inputs and outputs than the metadata says.
    """
    path, metadata = backend.path, backend.metadata
    if metadata.kind not in ("pair", "end-to-end"):
        raise ModelFileError(f"{path} is a model of kind {metadata.kind}, not one that matches a pair of images")
    width, height = metadata.preprocessing.size
    wanted: dict[str, tuple[tuple[int | None, ...], type]] = dict.fromkeys(IMAGES, ((3, height, width), np.float32))
    if metadata.kind == "end-to-end":
        wanted = {**dict.fromkeys(IMAGES, ((None, None, 3), np.uint8)), POINTS: ((None, 2), np.float32)}
    batches = {
        _check_tensor(path, "input", name, backend.inputs, shape, np.dtype(dtype))
        for name, (shape, dtype) in wanted.items()
    }
    if len(batches) > 1:
        raise ModelFileError(f"{path} takes different batch sizes for {' and '.join(wanted)}: export the model again")
    extra = {spec.name for spec in backend.inputs} - set(wanted)
    if extra:
        raise ModelFileError(
            f"{path} has further inputs {', '.join(sorted(extra))}: not a model of kind {metadata.kind}"
        )
    check_outputs(backend)


def check_outputs(backend: Backend) -> None:
    """Refuse a model without flow and confidence on the square grid of its metadata; raises ModelFileError."""
    rows, columns = backend.metadata.grid
    if rows != columns:
        raise ModelFileError(f"{backend.path} has a grid of {rows}x{columns}; only square grids are defined")
    _check_tensor(backend.path, "output", FLOW, backend.outputs, (2, rows, columns))
    _check_tensor(backend.path, "output", CONFIDENCE, backend.outputs, (rows, columns))


def _check_tensor(
    path: Path,
    role: str,
    name: str,
    specs: Sequence[TensorSpec],
    shape: tuple[int | None, ...],
    exact: np.dtype[Any] | None = None,
) -> int | None:
    """Refuse a missing tensor, another shape behind the batch dimension, or another dtype; returns the batch size."""
    spec = next((spec for spec in specs if spec.name == name), None)
    if spec is None:
        names = ", ".join(spec.name for spec in specs) or "none"
        raise ModelFileError(f"{path} has no {role} {name} (it has {names}): not a CATs model for pairs of images")
    fits = len(spec.shape) == len(shape) + 1 and all(
        have is None or want is None or have == want for have, want in zip(spec.shape[1:], shape, strict=True)
    )
    if not fits:
        have, want = (", ".join("?" if side is None else str(side) for side in sides) for sides in (spec.shape, shape))
        raise ModelFileError(
            f"{path}: {role} {name} has shape ({have}), its metadata says (batch, {want}): export the model again"
        )
    if exact is not None and spec.dtype != exact:
        raise ModelFileError(f"{path}: {role} {name} is {spec.dtype}, expected {exact}: export the model again")
    return spec.shape[0]
