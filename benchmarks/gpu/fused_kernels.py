"""Triton kernels of what :mod:`.fused` joins, for float16 on tensor cores."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

PLACES = 8
"""Cells whose attention among levels one block computes, so that its products fill tensor cores."""
SIDE, STEP = 64, 64
"""Pixels and filters of one block of a convolution, and channels that it reads at once."""
BLOCKS_AT_ONCE = 128
"""About the multiprocessors of a large GPU: a convolution of fewer blocks leaves some idle."""


@triton.jit
def level_attention_kernel(  # type: ignore[no-untyped-def]
    qkv,
    out,
    CELLS: tl.constexpr,  # noqa: N803
    LEVELS: tl.constexpr,  # noqa: N803
    HEADS: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
    SIDE: tl.constexpr,  # noqa: N803
):
    """Attention among the levels of ``SIDE`` cells: one product for all, with what is between two cells masked.

    Grid (N / SIDE, heads, B); ``qkv`` (B, L, N, 3, heads, width), ``out`` (B, L, N, heads, width).
    """
    rows = tl.arange(0, LEVELS * SIDE)
    level, cell = rows // SIDE, rows % SIDE
    token = (tl.program_id(2).to(tl.int64) * LEVELS + level) * CELLS + tl.program_id(0) * SIDE + cell
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    place = qkv + token[:, None] * (3 * HEADS * WIDTH) + columns[None, :]
    queries = tl.load(place)
    keys = tl.load(place + HEADS * WIDTH)
    values = tl.load(place + 2 * HEADS * WIDTH)
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    scores = tl.where(cell[:, None] == cell[None, :], scores, float("-inf"))
    scores = tl.exp(scores - tl.max(scores, 1)[:, None])
    scores = scores / tl.sum(scores, 1)[:, None]
    result = tl.dot(scores.to(values.dtype), values, input_precision="ieee")
    tl.store(out + token[:, None] * (HEADS * WIDTH) + columns[None, :], result.to(values.dtype))


def launch_level_attention(qkv: Tensor, levels: int, heads: int) -> Tensor:
    """Run the kernel; levels and width a power of two, N a multiple of :data:`PLACES`."""
    qkv = qkv.contiguous()
    tokens, cells, channels = qkv.shape
    out = qkv.new_empty((tokens, cells, channels // 3))
    grid = (cells // PLACES, heads, tokens // levels)
    level_attention_kernel[grid](qkv, out, cells, levels, heads, channels // 3 // heads, PLACES, num_warps=4)
    return out


@triton.jit
def convolution_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    out,
    parts,
    counters,
    HEIGHT: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
    CHANNELS: tl.constexpr,  # noqa: N803
    FILTERS: tl.constexpr,  # noqa: N803
    SIDE: tl.constexpr,  # noqa: N803
    STEP: tl.constexpr,  # noqa: N803
    SPLITS: tl.constexpr,  # noqa: N803
):
    """ReLU of a 3x3 convolution and its bias; ``SPLITS`` blocks share the sum of one tile, the last of them adds up.

    Grid (tiles, SPLITS). ``x`` (B, H, W, C), ``weight`` (K, 3, 3, C), ``out`` (B, H, W, K); ``parts`` float32 of
    (tiles, SPLITS, SIDE, SIDE); ``counters`` int32 (tiles), zero before and after.
    """
    tile, split = tl.program_id(0), tl.program_id(1)
    across: tl.constexpr = FILTERS // SIDE
    within: tl.constexpr = CHANNELS // STEP
    each: tl.constexpr = 9 * within // SPLITS
    cells = tl.arange(0, SIDE)
    rows, columns = (tile // across) * SIDE + cells, (tile % across) * SIDE + cells
    down, right = (rows // WIDTH) % HEIGHT, rows % WIDTH
    channels = tl.arange(0, STEP)
    product = tl.zeros((SIDE, SIDE), tl.float32)
    for index in range(each):
        step = split * each + index
        tap, start = step // within, (step % within) * STEP
        dy, dx = tap // 3 - 1, tap % 3 - 1
        inside = (down + dy >= 0) & (down + dy < HEIGHT) & (right + dx >= 0) & (right + dx < WIDTH)
        pixels = x + (rows + dy * WIDTH + dx)[:, None] * CHANNELS + (start + channels)[None, :]
        filters = weight + columns[None, :] * (9 * CHANNELS) + (tap * CHANNELS + start + channels)[:, None]
        product = tl.dot(tl.load(pixels, mask=inside[:, None], other=0.0), tl.load(filters), product)
    offsets = cells[:, None] * SIDE + cells[None, :]
    first = parts + tile * (SPLITS * SIDE * SIDE) + offsets
    tl.store(first + split * (SIDE * SIDE), product)
    tl.debug_barrier()  # all threads have written before one says so
    if tl.atomic_add(counters + tile, 1, sem="acq_rel") == SPLITS - 1:
        total = tl.load(first, cache_modifier=".cg")
        for other in tl.static_range(1, SPLITS):
            total += tl.load(first + other * (SIDE * SIDE), cache_modifier=".cg")
        total = tl.maximum(total + tl.load(bias + columns).to(tl.float32)[None, :], 0.0)
        tl.store(out + rows[:, None] * FILTERS + columns[None, :], total.to(out.dtype.element_ty))
        tl.store(counters + tile, 0)


def splits_of(x: Tensor, weight: Tensor) -> int:
    """Among how many blocks :func:`convolution_kernel` divides the sums of a tile; 0 where cuDNN has work for all."""
    filters, channels, *kernel = weight.shape
    pixels = len(x) * x.shape[2] * x.shape[3]
    if kernel != [3, 3] or x.dtype != torch.float16 or filters % SIDE or channels % STEP or pixels % SIDE:
        return 0
    tiles, steps = pixels // SIDE * (filters // SIDE), 9 * channels // STEP
    fitting = [n for n in range(2, 10) if steps % n == 0 and tiles * n <= BLOCKS_AT_ONCE]
    return max(fitting, default=0)


def launch_convolution(x: Tensor, weight: Tensor, bias: Tensor, splits: int) -> Tensor:
    """(B, C, H, W) and (K, C, 3, 3), both channels last, to (B, K, H, W) channels last."""
    batch, channels, height, width = x.shape
    filters = len(weight)
    pixels, weight = x.permute(0, 2, 3, 1).contiguous(), weight.permute(0, 2, 3, 1).contiguous()
    out = x.new_empty((batch, height, width, filters))
    tiles = batch * height * width // SIDE * (filters // SIDE)
    parts = x.new_empty((tiles, splits, SIDE, SIDE), dtype=torch.float32)
    sizes = (height, width, channels, filters, SIDE, STEP, splits)
    counters = zero_counters(tiles, str(x.device))
    convolution_kernel[(tiles, splits)](pixels, weight, bias, out, parts, counters, *sizes, num_warps=4, num_stages=4)
    return out.permute(0, 3, 1, 2)


@functools.cache
def zero_counters(count: int, device: str) -> Tensor:
    """Each launch leaves them as it found them; launches of one stream share them."""
    return torch.zeros(count, dtype=torch.int32, device=device)


@triton.jit
def linear_gelu_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    out,
    DEEP: tl.constexpr,  # noqa: N803
    WIDE: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    STEP: tl.constexpr,  # noqa: N803
):
    """GELU of (M, K) x (K, N) + (N); grid (M / ROWS * N / COLUMNS)."""
    across: tl.constexpr = WIDE // COLUMNS
    rows = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)
    steps = tl.arange(0, STEP)
    product = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, DEEP, STEP):
        left = tl.load(x + rows[:, None] * DEEP + (start + steps)[None, :])
        right = tl.load(weight + (start + steps)[:, None] * WIDE + columns[None, :])
        product = tl.dot(left, right, product)
    product += tl.load(bias + columns).to(tl.float32)[None, :]
    product = 0.5 * product * (1.0 + tl.erf(product * 0.7071067811865476))
    tl.store(out + rows[:, None] * WIDE + columns[None, :], product.to(out.dtype.element_ty))


def launch_linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Run the kernel; M, N and K multiples of 128, 128 and 64."""
    x, weight = x.contiguous(), weight.contiguous()
    (tall, deep), wide = x.shape, weight.shape[1]
    out = x.new_empty((tall, wide))
    grid = (tall // 128 * (wide // 128),)
    linear_gelu_kernel[grid](x, weight, bias, out, deep, wide, 128, 128, 64, num_warps=8, num_stages=3)
    return out
