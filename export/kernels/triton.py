"""``cats::Correlation`` on NVIDIA GPUs: two Triton kernels, for PyTorch and, compiled ahead of time, for TensorRT.

The mutual filter needs the maximum of every row and column of the correlations, so that no block can finish alone.
:func:`scores_kernel` multiplies one tile of one level, scales it by the norms, which it sums up while it reads the
features, and leaves the maxima of its tile; :func:`filter_kernel` takes the maxima of the tiles together and filters.
Features are read once per tile row or column, in float16 or float32; sums, norms and results are float32.

Importing this module needs triton. A GPU is needed to run the kernels, not to compile them; with ``TRITON_INTERPRET=1``
in the environment they run on the CPU, slowly.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cats.core.errors import BackendError


@dataclass(frozen=True)
class Blocks:
    """How the work is cut: one block computes ``rows`` by ``columns`` scores and reads ``step`` channels at once;
    ``stages`` - 1 reads are in flight."""

    rows: int
    columns: int
    step: int
    warps: int
    stages: int


BLOCKS = {torch.float16: Blocks(64, 64, 64, 4, 4), torch.float32: Blocks(64, 64, 32, 4, 4)}
"""By the type of the features; the fastest of those tried on an H200, as are the next ones. Their reads fit in 48 KiB
of shared memory, all that needs no opt-in."""

LARGE = {False: Blocks(128, 128, 32, 4, 4), True: Blocks(128, 128, 64, 8, 4)}
"""For float16, contiguous and channels last, and so many matrices of scores that they fill a GPU all the same."""
_MANY = 64
_FILTERED = 64
"""Rows and columns that one block of the second kernel filters."""

_NORM_EPSILON, _TINY = tl.constexpr(1e-6), tl.constexpr(1e-30)

CAPABILITY = 80
"""Compute capability that :func:`compile_kernels` aims at; drivers translate its PTX for every later one."""

HOPPER = 90
"""Has matrix instructions of its own, which no other capability runs: in float16 the code for it takes 0.43 of the time
of the code for 8.0 on one pair and 0.28 on 32, in float32 the same."""


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
    across: tl.constexpr = (CELLS + COLUMNS - 1) // COLUMNS
    down: tl.constexpr = (CELLS + ROWS - 1) // ROWS
    tile_row, tile_column = tl.program_id(0) // across, tl.program_id(0) % across
    level, item = tl.program_id(1), tl.program_id(2).to(tl.int64)
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
    squares_a = tl.zeros((ROWS, STEP), tl.float32)
    squares_b = tl.zeros((STEP, COLUMNS), tl.float32)
    for start in range(0, channels, STEP):
        if WHOLE:
            x = tl.load(first + start * channel)
            y = tl.load(second + start * channel)
        else:
            there = steps < channels - start
            x = tl.load(first + start * channel, mask=(rows < CELLS)[:, None] & there[None, :], other=0.0)
            y = tl.load(second + start * channel, mask=there[:, None] & (columns < CELLS)[None, :], other=0.0)
        product = tl.dot(x, y, product, input_precision="ieee")
        squares_a += x.to(tl.float32) * x.to(tl.float32)
        squares_b += y.to(tl.float32) * y.to(tl.float32)
        # Always true, but the product must be complete for it. Triton 3.6 gives features that are used beside the
        # product too one buffer fewer than an unfinished product of compute capability 9.0 needs
        # (triton-lang/triton#8554): the next read overwrote what the product still read, with blocks of 128 x 128.
        product = tl.where(start < channels, product, 0.0)
    inverse_a = 1.0 / tl.sqrt(tl.sum(squares_a, axis=1) + _NORM_EPSILON)
    inverse_b = 1.0 / tl.sqrt(tl.sum(squares_b, axis=0) + _NORM_EPSILON)
    product = product * inverse_a[:, None] * inverse_b[None, :]
    inside = (rows < CELLS)[:, None] & (columns < CELLS)[None, :]
    matrix = item * len(CHANNELS) + level
    tl.store(scores + (matrix * CELLS + rows[:, None]) * CELLS + columns[None, :], product, mask=inside)
    product = tl.where(inside, product, float("-inf"))
    rows_to = row_maxima + (matrix * across + tile_column) * CELLS + rows
    columns_to = column_maxima + (matrix * down + tile_row) * CELLS + columns
    tl.store(rows_to, tl.max(product, axis=1), mask=rows < CELLS)
    tl.store(columns_to, tl.max(product, axis=0), mask=columns < CELLS)


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
    row_maximum = tl.full((TILE,), float("-inf"), tl.float32)
    column_maximum = tl.full((TILE,), float("-inf"), tl.float32)
    across: tl.constexpr = (CELLS + COLUMNS - 1) // COLUMNS
    for tile in tl.static_range(across):
        found = tl.load(row_maxima + (matrix * across + tile) * CELLS + rows, mask=rows < CELLS, other=1.0)
        row_maximum = tl.maximum(row_maximum, found)
    down: tl.constexpr = (CELLS + ROWS - 1) // ROWS
    for tile in tl.static_range(down):
        found = tl.load(column_maxima + (matrix * down + tile) * CELLS + columns, mask=columns < CELLS, other=1.0)
        column_maximum = tl.maximum(column_maximum, found)
    row_inverse = 1.0 / tl.where(row_maximum == 0, _TINY, row_maximum)
    column_inverse = 1.0 / tl.where(column_maximum == 0, _TINY, column_maximum)
    inside = (rows < CELLS)[:, None] & (columns < CELLS)[None, :]
    place = (matrix * CELLS + rows[:, None]) * CELLS + columns[None, :]
    corr = tl.load(scores + place, mask=inside, other=0.0)
    corr = corr * (corr * row_inverse[:, None]) * (corr * column_inverse[None, :])
    tl.store(volume + place, corr, mask=inside)


def launch(a: Sequence[Tensor], b: Sequence[Tensor], blocks: Blocks | None = None) -> Tensor:
    """Run both kernels: :func:`cats.export.graph.correlation.correlation` for tensors on a GPU.

    Args:
        a, b: one (B, C_l, N) per level, all float16 or all float32. Float16 features are read as most of them lie,
            contiguous or channels last, float32 ones contiguous; others are copied.
        blocks: None takes what is fastest for the type and the number of matrices.

    Returns:
        (B, L, N, N) float32, rows a, columns b.
    """
    lying = [(x.numel(), x.transpose(1, 2).is_contiguous()) for x in (*a, *b)]
    half = a[0].dtype == torch.float16
    last = half and 2 * sum(size for size, is_last in lying if is_last) > sum(size for size, _ in lying)
    a, b = [_laid(x, last) for x in a], [_laid(x, last) for x in b]
    batch, _, cells = a[0].shape
    channels, levels = tuple(x.shape[1] for x in a), len(a)
    if blocks is None:
        blocks = LARGE[last] if half and batch * levels >= _MANY else BLOCKS[a[0].dtype]
    down, across, tiles = (triton.cdiv(cells, size) for size in (blocks.rows, blocks.columns, _FILTERED))
    scores = a[0].new_empty((batch, levels, cells, cells), dtype=torch.float32)
    row_maxima = scores.new_empty((batch, levels, across, cells))
    column_maxima = scores.new_empty((batch, levels, down, cells))
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
    constants = _scores_constants(channels, cells, blocks, last)
    with (
        torch.cuda.device(scores.device) if scores.is_cuda else contextlib.nullcontext()
    ):  # Triton takes the current GPU
        between = (scores, row_maxima, column_maxima)
        scores_kernel[(down * across, levels, batch)](tuple(a), tuple(b), *between, **constants, **options)
        sizes = (levels, cells, blocks.rows, blocks.columns, _FILTERED)
        filter_kernel[(tiles * tiles, levels, batch)](*between, scores, *sizes, num_warps=4)
    return scores


def _laid(x: Tensor, last: bool) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2) if last else x.contiguous()


def _scores_constants(channels: Sequence[int], cells: int, blocks: Blocks, last: bool = False) -> dict[str, Any]:
    whole = cells % blocks.rows == cells % blocks.columns == 0 and all(count % blocks.step == 0 for count in channels)
    sizes = {"CHANNELS": tuple(channels), "CELLS": cells}
    sizes |= {"ROWS": blocks.rows, "COLUMNS": blocks.columns, "STEP": blocks.step}
    return {**sizes, "WHOLE": whole, "LAST": last}


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel that was compiled for known levels, ready to be launched by TensorRT.

    Attributes:
        name: of the entry point in ``ptx``.
        ptx: its parameters are pointers alone: inputs, then outputs, in the order of the kernel's arguments.
        grid: blocks along x and y; there is one along z for each pair of a batch.
        threads: of a block.
        shared_bytes: of dynamic shared memory.
    """

    name: str
    ptx: str
    grid: tuple[int, int]
    threads: int
    shared_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "grid": list(self.grid)}


def compile_kernels(
    channels: Sequence[int], cells: int, *, half: bool, capability: int = CAPABILITY
) -> tuple[CompiledKernel, CompiledKernel]:
    """Compile :func:`scores_kernel` and :func:`filter_kernel`, without a GPU.

    Args:
        channels: C_l of each level.
        cells: N.
        half: features in float16, else float32.
        capability: 80 for compute capability 8.0, and so on.
    """
    kind, blocks = ("*fp16", BLOCKS[torch.float16]) if half else ("*fp32", BLOCKS[torch.float32])
    features = (kind,) * len(channels)
    buffers = dict.fromkeys(("scores", "row_maxima", "column_maxima"), "*fp32")
    scores = _compile(
        scores_kernel,
        {"a": features, "b": features, **buffers},
        _scores_constants(channels, cells, blocks),
        blocks,
        capability,
    )
    filtered = _compile(
        filter_kernel,
        {**buffers, "volume": "*fp32"},
        {"LEVELS": len(channels), "CELLS": cells, "ROWS": blocks.rows, "COLUMNS": blocks.columns, "TILE": _FILTERED},
        blocks,
        capability,
    )
    tiles, parts = (triton.cdiv(cells, size) for size in (blocks.rows, _FILTERED))  # a row has as many as a column
    grids = (tiles**2, len(channels)), (parts**2, len(channels))
    return _ready(scores, 2 * len(channels) + 3, grids[0]), _ready(filtered, 4, grids[1])


def _compile(kernel: Any, signature: dict[str, Any], constants: dict[str, Any], blocks: Blocks, capability: int) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    paths: list[tuple[int, ...]] = []  # of the pointers among the arguments
    for index, kind in enumerate(signature.values()):
        paths += [(index, part) for part in range(len(kind))] if isinstance(kind, tuple) else [(index,)]
    aligned = {path: [["tt.divisibility", 16]] for path in paths}  # as every allocator of GPU memory gives
    signature = {**signature, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _ready(compiled: Any, pointers: int, grid: tuple[int, int]) -> CompiledKernel:
    metadata = compiled.metadata
    text = compiled.asm["ptx"]
    ptx = _without_scratch(text if isinstance(text, str) else text.decode(), pointers)
    return CompiledKernel(metadata.name, ptx, grid, 32 * metadata.num_warps, metadata.shared)


def _without_scratch(ptx: str, pointers: int) -> str:
    """PTX whose entry takes ``pointers`` parameters; Triton adds pointers to scratch memory that its own launcher fills
    and no other does.

    Raises:
        BackendError: the kernel uses such memory, or has other parameters than expected.
    """
    start = ptx.index("(", ptx.index(".entry"))
    end = ptx.index(")", start)
    parameters = [text.strip() for text in ptx[start + 1 : end].split(",")]
    names = [re.split(r"\s+", text)[-1] for text in parameters]
    used = [name for name in names[pointers:] if re.search(rf"\b{re.escape(name)}\b", ptx[end:])]
    if used or len(names) < pointers or not all(".u64" in text or ".b64" in text for text in parameters[:pointers]):
        raise BackendError(f"triton {triton.__version__} compiled a kernel with parameters {', '.join(names)}")
    return f"{ptx[: start + 1]}\n\t" + ",\n\t".join(parameters[:pointers]) + f"\n{ptx[end:]}"
