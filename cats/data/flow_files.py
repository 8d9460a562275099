"""Middlebury ``.flo`` files: dense flow, little-endian: the float 202021.25, width, height, then x, y per pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cats.core.errors import InputError
from cats.core.files import write_bytes

_MAGIC = b"PIEH"
_UNKNOWN = 1e9  # larger components mean that the pixel has no known partner
_MAX_SIDE = 1 << 15


def read_flow(path: str | Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Read a flow file.

    Returns:
        flow (H, W, 2) float32 in pixels, x first, 0 where unknown; known (H, W) bool.

    Raises:
        InputError: missing, not a flow file, or truncated.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read flow file {path}: {error.strerror}") from error
    if len(data) < 12 or data[:4] != _MAGIC:
        raise InputError(f"{path} is not a Middlebury .flo file (it does not begin with 'PIEH')")
    width, height = (int(value) for value in np.frombuffer(data, "<i4", 2, offset=4))
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE):
        raise InputError(f"flow file {path} says it has {width}x{height} pixels: it is broken")
    if len(data) != 12 + 8 * width * height:
        raise InputError(
            f"flow file {path} has {len(data)} bytes, {12 + 8 * width * height} expected for {width}x{height} pixels: "
            "it is truncated or broken"
        )
    flow = np.frombuffer(data, "<f4", offset=12).reshape(height, width, 2).astype(np.float32)
    known: NDArray[np.bool_] = np.all(np.abs(flow) < _UNKNOWN, axis=-1)  # False for NaN too
    flow[~known] = 0
    return flow, known


def write_flow(path: str | Path, flow: NDArray[np.float32], known: NDArray[np.bool_] | None = None) -> None:
    """Write a flow (H, W, 2) in pixels atomically; pixels that are not ``known`` (H, W) become 1e10."""
    values = np.array(flow, dtype="<f4")
    if known is not None:
        values[~known] = 1e10
    height, width = values.shape[:2]
    write_bytes(path, _MAGIC + np.array([width, height], "<i4").tobytes() + values.tobytes())
