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
