"""Coordinates and keypoint transfer, shared by evaluation, runtime and drawing (numpy only).

The one convention of the toolkit: everything a user sees runs **a -> b**. ``flow`` (2, G, G), channel 0 = x, in
cells, says where each cell of image a lies in image b; in the published model that is
``forward(target=a, source=b)``. Pixels have their centres at integers (as in OpenCV), x right, y down, so an image
of width W spans [-0.5, W - 0.5] and the grid of G cells lies over it as::

    cell = (x + 0.5) * G / W - 0.5          x = (cell + 0.5) * W / G - 0.5

Sizes are ``(width, height)`` throughout, as in Pillow. The C library mirrors these functions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cats.core.errors import InputError

Size = tuple[int, int]
Floats = NDArray[np.float64]

DIRECTION = "a->b"

GRID_POINTS = 10
"""Points a side of the even grid that is matched where no points are given."""


def as_points(points: ArrayLike) -> Floats:
    """Return points as float64 (N, 2), refusing other shapes and non-finite values with an :class:`InputError`."""
    try:
        array = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"points must be numbers, shape (N, 2): {error}") from error
    if array.size == 0:
        return np.zeros((0, 2))
    if array.ndim != 2 or array.shape[1] != 2:
        raise InputError(f"points have shape {array.shape}, expected (N, 2): one x, y per row")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise InputError(f"point {row} is {array[row].tolist()}: coordinates must be finite")
    return array


def pixels_to_cells(points: ArrayLike, size: Size, grid: int = 16) -> Floats:
    """Pixels of an image of ``size`` (width, height) to cells of a ``grid`` x ``grid`` grid; (..., 2) float64."""
    return (np.asarray(points, dtype=np.float64) + 0.5) * grid / np.asarray(size, dtype=np.float64) - 0.5


def cells_to_pixels(cells: ArrayLike, size: Size, grid: int = 16) -> Floats:
    """Inverse of :func:`pixels_to_cells`; (..., 2) float64."""
    return (np.asarray(cells, dtype=np.float64) + 0.5) * np.asarray(size, dtype=np.float64) / grid - 0.5


def sample_grid(values: ArrayLike, cells: ArrayLike) -> Floats:
    """Sample a grid bilinearly, clamped at its border.

    Args:
        values: (C, G, G), any real dtype.
        cells: (N, 2) x, y in cells, need not lie on the grid.

    Returns:
        (N, C) float64.
    """
    grid = np.asarray(values, dtype=np.float64)
    rows, columns = grid.shape[-2:]
    at = np.asarray(cells, dtype=np.float64)
    x = np.clip(at[:, 0], 0, columns - 1)
    y = np.clip(at[:, 1], 0, rows - 1)
    left = np.minimum(x.astype(np.intp), max(columns - 2, 0))
    top = np.minimum(y.astype(np.intp), max(rows - 2, 0))
    right, bottom = np.minimum(left + 1, columns - 1), np.minimum(top + 1, rows - 1)
    u, v = x - left, y - top
    upper = grid[:, top, left] * (1 - u) + grid[:, top, right] * u
    lower = grid[:, bottom, left] * (1 - u) + grid[:, bottom, right] * u
    return (upper * (1 - v) + lower * v).T


def transfer_points(points: ArrayLike, flow: ArrayLike, size_a: Size, size_b: Size) -> Floats:
    """Move points of image a to image b by a flow.

    Args:
        points: (N, 2) x, y in pixels of image a.
        flow: (2, G, G) in cells, a -> b.
        size_a: (width, height) of image a in pixels.
        size_b: (width, height) of image b in pixels.

    Returns:
        (N, 2) float64, pixels of image b; not clamped to the image.
    """
    array = np.asarray(flow)
    grid = array.shape[-1]
    cells = pixels_to_cells(as_points(points), size_a, grid)
    return cells_to_pixels(cells + sample_grid(array, cells), size_b, grid)


def dense_flow(flow: ArrayLike, size_a: Size, size_b: Size) -> NDArray[np.float32]:
    """Displacement of every pixel of image a, in pixels.

    Args:
        flow: (2, G, G) in cells, a -> b.
        size_a: (width, height) of image a, which is the size of the result.
        size_b: (width, height) of image b.

    Returns:
        (height, width, 2) float32: ``position in b - position in a``, channel 0 = x.
    """
    array = np.asarray(flow, dtype=np.float64)
    grid = array.shape[-1]
    width, height = size_a
    columns = pixels_to_cells(np.stack([np.arange(width), np.zeros(width)], axis=1), size_a, grid)[:, 0]
    rows = pixels_to_cells(np.stack([np.zeros(height), np.arange(height)], axis=1), size_a, grid)[:, 1]
    # The samples lie on a regular lattice, so bilinear sampling is one small matrix on either side of the grid.
    sampled = np.einsum("yj,cji,xi->yxc", _lerp_weights(rows, grid), array, _lerp_weights(columns, grid), optimize=True)
    sampled[..., 0] += columns[None, :]
    sampled[..., 1] += rows[:, None]
    in_b = cells_to_pixels(sampled, size_b, grid)
    in_b[..., 0] -= np.arange(width)[None, :]
    in_b[..., 1] -= np.arange(height)[:, None]
    return in_b.astype(np.float32)


def _lerp_weights(positions: Floats, grid: int) -> Floats:
    """Rows of linear interpolation weights (N, G) for positions in cells, clamped to the grid."""
    clamped = np.clip(positions, 0, grid - 1)
    return np.maximum(0.0, 1.0 - np.abs(clamped[:, None] - np.arange(grid)[None, :]))


def identity_cells(grid: int = 16) -> Floats:
    """Cell coordinates (2, G, G), channel 0 = x; ``identity + flow`` is the matching place."""
    y, x = np.mgrid[0:grid, 0:grid].astype(np.float64)
    return np.stack([x, y])


def grid_points(size: Size, count: int) -> Floats:
    """``count`` x ``count`` points spread evenly over an image of ``size`` (width, height): (count^2, 2) in pixels.

    With the model's own grid (16) they are the centres of its cells.
    """
    if count < 1:
        raise InputError(f"a grid of {count} points a side: at least 1 is needed")
    cells = identity_cells(count).reshape(2, -1).T
    return (cells + 0.5) * np.asarray(size, np.float64) / count - 0.5
