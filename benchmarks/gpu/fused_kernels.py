"""Triton kernels of what :mod:`.fused` joins, for float16 on tensor cores."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

PLACES = 8
"""Cells whose attention among levels one block computes, so that its products fill tensor cores."""


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
def gelu(x):  # type: ignore[no-untyped-def]
    """GELU with erf by a polynomial: at most 7e-5 off. The exact one takes longer than the product before it."""
    z = tl.minimum(tl.maximum(x * 0.7071067811865476, -3.0), 3.0)
    square = z * z
    erf = square * 4.07412858e-08 - 1.94479157e-06
    erf = erf * square + 4.10600376e-05
    erf = erf * square - 5.11032842e-04
    erf = erf * square + 4.23540852e-03
    erf = erf * square - 2.51028111e-02
    erf = erf * square + 1.11079265e-01
    erf = erf * square - 3.75314831e-01
    erf = erf * square + 1.12826842e00
    return 0.5 * x * (1.0 + z * erf)


@triton.jit
def linear_gelu_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    out,
    DEEP: tl.constexpr,  # noqa: N803
    WIDE: tl.constexpr,  # noqa: N803
    LEVELS: tl.constexpr,  # noqa: N803
    CELLS: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    STEP: tl.constexpr,  # noqa: N803
):
    """GELU of (B * L * N, K) x (K, C) + (C), and its mean over the levels: (B * N, C); one level and one cell for none.

    Grid (B * L * N / ROWS * C / COLUMNS).
    """
    across: tl.constexpr = WIDE // COLUMNS
    places: tl.constexpr = ROWS // LEVELS
    place = (tl.program_id(0) // across).to(tl.int64) * places + tl.arange(0, places)
    columns = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)
    rows = place // CELLS * (LEVELS * CELLS) + place % CELLS
    if LEVELS > 1:
        rows = tl.reshape(tl.arange(0, LEVELS)[:, None] * CELLS + rows[None, :], (ROWS,))
    steps = tl.arange(0, STEP)
    product = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, DEEP, STEP):
        left = tl.load(x + rows[:, None] * DEEP + (start + steps)[None, :])
        right = tl.load(weight + (start + steps)[:, None] * WIDE + columns[None, :])
        product = tl.dot(left, right, product)
    product = gelu(product + tl.load(bias + columns).to(tl.float32)[None, :])
    if LEVELS > 1:
        product = tl.sum(tl.reshape(product, (LEVELS, places, COLUMNS)), 0) / LEVELS
    tl.store(out + place[:, None] * WIDE + columns[None, :], product.to(out.dtype.element_ty))


GELU_TILES = {True: (128, 128, 64, 8, 3), False: (128, 128, 64, 8, 3)}
"""Rows, columns, step, warps and stages of the product with GELU, by whether there is one pair or more."""


def launch_linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, levels: int = 1, tile: tuple[int, ...] | None = None
) -> Tensor:
    """Run the kernel.

    Args:
        x: (B * levels, N, K); ``weight``: (K, C); ``bias``: (C).
        levels: over which the mean is taken; a power of two.
        tile: divides B * levels * N, C and K, and its rows, divided by the levels, N.

    Returns:
        (B, N, C).
    """
    x, weight = x.contiguous(), weight.contiguous()
    tokens, cells, deep = x.shape
    tall, wide = tokens * cells, weight.shape[1]
    rows, columns, step, warps, stages = tile or GELU_TILES[tall <= 4096]
    out = x.new_empty((tokens // levels, cells, wide))
    sizes = (deep, wide, levels, cells, rows, columns, step)
    grid = (tall // rows * (wide // columns),)
    linear_gelu_kernel[grid](x, weight, bias, out, *sizes, num_warps=warps, num_stages=stages)
    return out
