"""``cats::Correlation`` on NVIDIA GPUs: Triton kernels, for PyTorch and, :mod:`.compiled` ahead of time, for TensorRT.

The mutual filter needs the maximum of every row and column of the correlations, so that no block can finish alone.
:func:`scores_kernel` multiplies one tile of one level, scales it by the norms, which it sums up while it reads the
features, and leaves the maxima of its tile; :func:`filter_kernel` takes the maxima of the tiles together and filters.
:func:`correlation_kernel` does both where there are many matrices: its blocks hold their tiles until the maxima of the
others are there. Features are read once per tile row or column, in float16 or float32; sums, norms and results are
float32.

Importing this module needs triton. A GPU is needed to run the kernels, not to compile them; with ``TRITON_INTERPRET=1``
in the environment they run on the CPU, slowly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """How the work is cut: one block computes ``rows`` by ``columns`` scores and reads ``step`` channels at once;
    ``stages`` - 1 reads are in flight; a thread has at most ``registers``, for more blocks beside each other."""

    rows: int
    columns: int
    step: int
    warps: int
    stages: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, int | None]:
        """Of Triton's compiler."""
        return {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": self.registers}


BLOCKS = {torch.float16: Blocks(64, 64, 64, 4, 4), torch.float32: Blocks(64, 64, 32, 4, 4)}
"""By the type of the features; the fastest of those tried on an H200, as are the next ones. Their reads fit in 48 KiB
of shared memory, all that needs no opt-in."""

LARGE = {False: Blocks(128, 128, 32, 4, 4), True: Blocks(128, 128, 64, 8, 4, 128)}
"""For float16, contiguous and channels last, and so many matrices of scores that they fill a GPU all the same."""
_MANY = 64
FILTERED = 64
"""Rows and columns that one block of the second kernel filters."""

_OWN = tl.constexpr(4)  # channels of one step that a thread reads: it adds up their squares by itself
_NORM_EPSILON, _TINY = tl.constexpr(1e-6), tl.constexpr(1e-30)


@triton.jit
def _scores_of_tile(  # type: ignore[no-untyped-def]
    a,
    b,
    row_maxima,
    column_maxima,
    tile,
    level,
    item,
    CHANNELS: tl.constexpr,  # noqa: N803
    CELLS: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    STEP: tl.constexpr,  # noqa: N803
    WHOLE: tl.constexpr,  # noqa: N803
    LAST: tl.constexpr,  # noqa: N803
):
    """Correlations of one tile (ROWS, COLUMNS), their rows and columns; their maxima are written.

    Arguments as of :func:`scores_kernel`.
    """
    across: tl.constexpr = (CELLS + COLUMNS - 1) // COLUMNS
    down: tl.constexpr = (CELLS + ROWS - 1) // ROWS
    tile_row, tile_column = tile // across, tile % across
    features_a, features_b, channels = a[0], b[0], CHANNELS[0] + level * 0
    for index in tl.static_range(1, len(CHANNELS)):
        if level == index:
            features_a, features_b, channels = a[index], b[index], CHANNELS[index] + level * 0
    rows = tile_row * ROWS + tl.arange(0, ROWS)
    columns = tile_column * COLUMNS + tl.arange(0, COLUMNS)
    steps = tl.arange(0, STEP)
    if LAST:
        if WHOLE:
            channels = tl.multiple_of(channels, STEP)  # so that several channels are read at once
        cell, channel = channels, 1
    else:
        cell, channel = 1, CELLS
    first = features_a + item * channels * CELLS + rows[:, None] * cell + steps[None, :] * channel
    second = features_b + item * channels * CELLS + columns[None, :] * cell + steps[:, None] * channel
    product = tl.zeros((ROWS, COLUMNS), tl.float32)
    # Squares are summed where they are read, and over the threads once at the end: a sum over threads in every step
    # takes longer than the product.
    squares_a = tl.zeros((ROWS, STEP // _OWN), tl.float32)
    squares_b = tl.zeros((STEP // _OWN, COLUMNS), tl.float32)
    for start in range(0, channels, STEP):
        if WHOLE:
            x = tl.load(first + start * channel)
            y = tl.load(second + start * channel)
        else:
            there = steps < channels - start
            x = tl.load(first + start * channel, mask=(rows < CELLS)[:, None] & there[None, :], other=0.0)
            y = tl.load(second + start * channel, mask=there[:, None] & (columns < CELLS)[None, :], other=0.0)
        product = tl.dot(x, y, product, input_precision="ieee")
        x, y = x.to(tl.float32), y.to(tl.float32)
        if LAST:
            squares_a += tl.sum(tl.reshape(x * x, (ROWS, STEP // _OWN, _OWN)), 2)
            squares_b += tl.sum(tl.reshape(y * y, (STEP // _OWN, _OWN, COLUMNS)), 1)
        else:
            squares_a += tl.sum(tl.reshape(x * x, (ROWS, _OWN, STEP // _OWN)), 1)
            squares_b += tl.sum(tl.reshape(y * y, (_OWN, STEP // _OWN, COLUMNS)), 0)
        # Always true, but the product must be complete for it. Triton 3.6 gives features that are used beside the
        # product too one buffer fewer than an unfinished product of compute capability 9.0 needs
        # (triton-lang/triton#8554): the next read overwrote what the product still read, with blocks of 128 x 128.
        product = tl.where(start < channels, product, 0.0)
    inverse_a = 1.0 / tl.sqrt(tl.sum(squares_a, axis=1) + _NORM_EPSILON)
    inverse_b = 1.0 / tl.sqrt(tl.sum(squares_b, axis=0) + _NORM_EPSILON)
    product = product * inverse_a[:, None] * inverse_b[None, :]
    found = tl.where((rows < CELLS)[:, None] & (columns < CELLS)[None, :], product, float("-inf"))
    matrix = item * len(CHANNELS) + level
    rows_to = row_maxima + (matrix * across + tile_column) * CELLS + rows
    columns_to = column_maxima + (matrix * down + tile_row) * CELLS + columns
    tl.store(rows_to, tl.max(found, axis=1), mask=rows < CELLS)
    tl.store(columns_to, tl.max(found, axis=0), mask=columns < CELLS)
    return product, rows, columns


@triton.jit
def _filter_tile(  # type: ignore[no-untyped-def]
    corr,
    row_maxima,
    column_maxima,
    matrix,
    rows,
    columns,
    CELLS: tl.constexpr,  # noqa: N803
    ACROSS: tl.constexpr,  # noqa: N803
    DOWN: tl.constexpr,  # noqa: N803
):
    """The mutual filter of the correlations at some rows and columns of one matrix."""
    row_maximum = tl.full((corr.shape[0],), float("-inf"), tl.float32)
    column_maximum = tl.full((corr.shape[1],), float("-inf"), tl.float32)
    # Read past the first cache of a multiprocessor: other blocks have just written them.
    for tile in tl.static_range(ACROSS):
        place = row_maxima + (matrix * ACROSS + tile) * CELLS + rows
        found = tl.load(place, mask=rows < CELLS, other=1.0, cache_modifier=".cg")
        row_maximum = tl.maximum(row_maximum, found)
    for tile in tl.static_range(DOWN):
        place = column_maxima + (matrix * DOWN + tile) * CELLS + columns
        found = tl.load(place, mask=columns < CELLS, other=1.0, cache_modifier=".cg")
        column_maximum = tl.maximum(column_maximum, found)
    row_inverse = 1.0 / tl.where(row_maximum == 0, _TINY, row_maximum)
    column_inverse = 1.0 / tl.where(column_maximum == 0, _TINY, column_maximum)
    return corr * (corr * row_inverse[:, None]) * (corr * column_inverse[None, :])


@triton.jit
def _places(matrix, rows, columns, CELLS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Where the correlations at some rows and columns of one matrix lie in (B, L, N, N), and which of them exist."""
    inside = (rows < CELLS)[:, None] & (columns < CELLS)[None, :]
    return (matrix * CELLS + rows[:, None]) * CELLS + columns[None, :], inside


@triton.jit
def scores_kernel(  # type: ignore[no-untyped-def]
    a,
    b,
    scores,
    row_maxima,
    column_maxima,
    CHANNELS: tl.constexpr,  # noqa: N803
    CELLS: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    STEP: tl.constexpr,  # noqa: N803
    WHOLE: tl.constexpr,  # noqa: N803
    LAST: tl.constexpr,  # noqa: N803
):
    """Correlations of one tile and their maxima.

    Grid (R * C, L, B), R = ceil(N / ROWS), C = ceil(N / COLUMNS). ``a`` and ``b`` are tuples of (B, C_l, N); ``scores``
    (B, L, N, N), rows a; ``row_maxima`` (B, L, C, N) and ``column_maxima`` (B, L, R, N), the maximum of each row
    (column) within the tiles of each column (row) of tiles. ``CHANNELS`` is the tuple of C_l; ``WHOLE`` says that tiles
    and steps divide N and each C_l, ``LAST`` that features lie in memory as (B, N, C_l).
    """
    level, item = tl.program_id(1), tl.program_id(2).to(tl.int64)
    product, rows, columns = _scores_of_tile(
        a,
        b,
        row_maxima,
        column_maxima,
        tl.program_id(0),
        level,
        item,
        CHANNELS,
        CELLS,
        ROWS,
        COLUMNS,
        STEP,
        WHOLE,
        LAST,
    )
    place, inside = _places(item * len(CHANNELS) + level, rows, columns, CELLS)
    tl.store(scores + place, product, mask=inside)


@triton.jit
def filter_kernel(  # type: ignore[no-untyped-def]
    scores,
    row_maxima,
    column_maxima,
    volume,
    LEVELS: tl.constexpr,  # noqa: N803
    CELLS: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
):
    """The mutual filter of ``TILE`` rows and columns; grid (T * T, L, B), T = ceil(N / TILE); arguments as of
    :func:`scores_kernel`, ``volume`` like ``scores`` or the same."""
    tiles: tl.constexpr = (CELLS + TILE - 1) // TILE
    item = tl.num_programs(2) - 1 - tl.program_id(2)  # last come first: what is left in the cache is read
    matrix = item.to(tl.int64) * LEVELS + tl.program_id(1)
    rows = (tl.program_id(0) // tiles) * TILE + tl.arange(0, TILE)
    columns = (tl.program_id(0) % tiles) * TILE + tl.arange(0, TILE)
    place, inside = _places(matrix, rows, columns, CELLS)
    corr = tl.load(scores + place, mask=inside, other=0.0)
    across: tl.constexpr = (CELLS + COLUMNS - 1) // COLUMNS
    down: tl.constexpr = (CELLS + ROWS - 1) // ROWS
    corr = _filter_tile(corr, row_maxima, column_maxima, matrix, rows, columns, CELLS, across, down)
    tl.store(volume + place, corr, mask=inside)


@triton.jit
def correlation_kernel(  # type: ignore[no-untyped-def]
    a,
    b,
    volume,
    row_maxima,
    column_maxima,
    tickets,
    CHANNELS: tl.constexpr,  # noqa: N803
    CELLS: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    STEP: tl.constexpr,  # noqa: N803
    WHOLE: tl.constexpr,  # noqa: N803
    LAST: tl.constexpr,  # noqa: N803
):
    """Both kernels in one: correlations are written once, filtered, and never read.

    Grid (R * C * L * B). ``tickets`` int32 (1 + B * L), zero before: how many blocks have begun, and how many of each
    matrix have written their maxima. Blocks take tiles in the order in which they begin, so that a block never waits
    for one that cannot begin before it ends. Other arguments as of :func:`scores_kernel`.
    """
    across: tl.constexpr = (CELLS + COLUMNS - 1) // COLUMNS
    down: tl.constexpr = (CELLS + ROWS - 1) // ROWS
    ticket = tl.atomic_add(tickets, 1, sem="relaxed")
    matrix, tile = ticket // (across * down), ticket % (across * down)
    level, item = matrix % len(CHANNELS), (matrix // len(CHANNELS)).to(tl.int64)
    product, rows, columns = _scores_of_tile(
        a, b, row_maxima, column_maxima, tile, level, item, CHANNELS, CELLS, ROWS, COLUMNS, STEP, WHOLE, LAST
    )
    tl.debug_barrier()  # all threads have written before one says so
    tl.atomic_add(tickets + 1 + matrix, 1, sem="release")
    while tl.atomic_add(tickets + 1 + matrix, 0, sem="acquire") < across * down:
        pass
    tl.debug_barrier()
    corr = _filter_tile(product, row_maxima, column_maxima, matrix, rows, columns, CELLS, across, down)
    place, inside = _places(matrix.to(tl.int64), rows, columns, CELLS)
    tl.store(volume + place, corr, mask=inside)


def launch(a: Sequence[Tensor], b: Sequence[Tensor], blocks: Blocks | None = None) -> Tensor:
    """Run the kernels: :func:`cats.export.graph.correlation.correlation` for tensors on a GPU.

    Args:
        a, b: one (B, C_l, N) per level, all float16 or all float32. Float16 features are read as most of them lie,
            contiguous or channels last, float32 ones contiguous; others are copied.
        blocks: None takes what is fastest for the type and the number of matrices. Many are filtered where they are
            computed, by :func:`correlation_kernel`.

    Returns:
        (B, L, N, N) float32, rows a, columns b.
    """
    lying = [(x.numel(), x.transpose(1, 2).is_contiguous()) for x in (*a, *b)]
    half = a[0].dtype == torch.float16
    last = half and 2 * sum(size for size, is_last in lying if is_last) > sum(size for size, _ in lying)
    a, b = [_laid(x, last) for x in a], [_laid(x, last) for x in b]
    batch, _, cells = a[0].shape
    channels, levels = tuple(x.shape[1] for x in a), len(a)
    many = half and batch * levels >= _MANY
    if blocks is None:
        blocks = LARGE[last] if many else BLOCKS[a[0].dtype]
    down, across, tiles = (triton.cdiv(cells, size) for size in (blocks.rows, blocks.columns, FILTERED))
    scores = a[0].new_empty((batch, levels, cells, cells), dtype=torch.float32)
    row_maxima = scores.new_empty((batch, levels, across, cells))
    column_maxima = scores.new_empty((batch, levels, down, cells))
    constants = scores_constants(channels, cells, blocks, last)
    with (
        torch.cuda.device(scores.device) if scores.is_cuda else contextlib.nullcontext()
    ):  # Triton takes the current GPU
        between = (scores, row_maxima, column_maxima)
        if many and (scores.is_cuda or down * across == 1):  # the interpreter's blocks do not run beside each other
            tickets = torch.zeros(1 + batch * levels, dtype=torch.int32, device=scores.device)
            grid = (down * across * levels * batch,)
            correlation_kernel[grid](tuple(a), tuple(b), *between, tickets, **constants, **blocks.options)
            return scores
        scores_kernel[(down * across, levels, batch)](tuple(a), tuple(b), *between, **constants, **blocks.options)
        sizes = (levels, cells, blocks.rows, blocks.columns, FILTERED)
        filter_kernel[(tiles * tiles, levels, batch)](*between, scores, *sizes, num_warps=4)
    return scores


def _laid(x: Tensor, last: bool) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2) if last else x.contiguous()


def scores_constants(channels: Sequence[int], cells: int, blocks: Blocks, last: bool = False) -> dict[str, Any]:
    """What :func:`scores_kernel` and :func:`correlation_kernel` are compiled for."""
    whole = cells % blocks.rows == cells % blocks.columns == 0 and all(count % blocks.step == 0 for count in channels)
    sizes = {"CHANNELS": tuple(channels), "CELLS": cells}
    sizes |= {"ROWS": blocks.rows, "COLUMNS": blocks.columns, "STEP": blocks.step}
    return {**sizes, "WHOLE": whole, "LAST": last}
