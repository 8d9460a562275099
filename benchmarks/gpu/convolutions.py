"""Convolutions of one pair, for which cuDNN's tiles leave a large GPU idle: bias, residual and ReLU with them.

A layer of ResNet on one pair is a product of 512 x 256 with sums over 1024: 32 tiles of 64 x 64 where there are 132
multiprocessors. :func:`convolution_kernel` takes smaller tiles, or divides the sums too. All reads of a block are in
flight at once, because weights come from far: those of ResNet-101 do not fit into the GPU's cache.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """How a convolution is cut: one block adds up ``rows`` pixels by ``columns`` filters over its part of the sums,
    of which there are ``splits``, and reads ``step`` channels at once; ``stages`` - 1 reads are in flight."""

    rows: int
    columns: int
    step: int
    splits: int
    warps: int
    stages: int


@triton.jit
def convolution_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    residual,
    out,
    sums,
    parts,
    counters,
    HEIGHT: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
    CHANNELS: tl.constexpr,  # noqa: N803
    FILTERS: tl.constexpr,  # noqa: N803
    TAPS: tl.constexpr,  # noqa: N803
    RESIDUAL: tl.constexpr,  # noqa: N803
    KEEP: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    STEP: tl.constexpr,  # noqa: N803
    SPLITS: tl.constexpr,  # noqa: N803
):
    """ReLU of a 1x1 or 3x3 convolution (``TAPS`` 1 or 9), its bias and, if ``RESIDUAL``, a residual.

    Grid (tiles, SPLITS): the blocks of a tile share its sums, and the last of them adds up. ``x`` (B, H, W, C),
    ``weight`` (K, taps, C), ``out``, ``residual`` and, if ``KEEP``, ``sums`` (before the ReLU) (B, H, W, K); ``parts``
    float32 of (tiles, SPLITS, ROWS, COLUMNS); ``counters`` int32 (tiles), zero before and after.
    """
    tile, split = tl.program_id(0), tl.program_id(1)
    across: tl.constexpr = FILTERS // COLUMNS
    each: tl.constexpr = TAPS * (CHANNELS // STEP) // SPLITS
    down, right = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    rows, columns = (tile // across) * ROWS + down, (tile % across) * COLUMNS + right
    y_of, x_of = (rows // WIDTH) % HEIGHT, rows % WIDTH
    channels = tl.arange(0, STEP)
    product = tl.zeros((ROWS, COLUMNS), tl.float32)
    for index in range(each):
        step = split * each + index
        tap, start = step % TAPS, (step // TAPS) * STEP
        filters = weight + columns[None, :] * (TAPS * CHANNELS) + (tap * CHANNELS + start + channels)[:, None]
        if TAPS == 9:
            dy, dx = tap // 3 - 1, tap % 3 - 1
            inside = (y_of + dy >= 0) & (y_of + dy < HEIGHT) & (x_of + dx >= 0) & (x_of + dx < WIDTH)
            pixels = x + (rows + dy * WIDTH + dx)[:, None] * CHANNELS + (start + channels)[None, :]
            found = tl.load(pixels, mask=inside[:, None], other=0.0)
        else:
            found = tl.load(x + rows[:, None] * CHANNELS + (start + channels)[None, :])
        product = tl.dot(found, tl.load(filters), product)
    place = rows[:, None] * FILTERS + columns[None, :]
    last = True
    if SPLITS > 1:
        first = parts + tile * (SPLITS * ROWS * COLUMNS) + down[:, None] * COLUMNS + right[None, :]
        tl.store(first + split * (ROWS * COLUMNS), product)
        tl.debug_barrier()  # all threads have written before one says so
        last = tl.atomic_add(counters + tile, 1, sem="acq_rel") == SPLITS - 1
        if last:
            product = tl.load(first, cache_modifier=".cg")
            for other in tl.static_range(1, SPLITS):
                product += tl.load(first + other * (ROWS * COLUMNS), cache_modifier=".cg")
            tl.store(counters + tile, 0)
    if last:
        product += tl.load(bias + columns).to(tl.float32)[None, :]
        if RESIDUAL:
            product += tl.load(residual + place).to(tl.float32)
        if KEEP:
            tl.store(sums + place, product.to(out.dtype.element_ty))
        tl.store(out + place, tl.maximum(product, 0.0).to(out.dtype.element_ty))


PAIR = {  # (pixels, C, taps, K): of one pair of 256 x 256 pixels and ResNet-101
    (512, 1024, 1, 256): Tile(64, 16, 64, 1, 4, 9),
    (512, 256, 9, 256): Tile(64, 64, 128, 3, 4, 5),
    (512, 256, 1, 1024): Tile(64, 64, 64, 1, 4, 5),
    (2048, 512, 1, 128): Tile(64, 32, 64, 1, 4, 8),
    (2048, 128, 9, 128): Tile(64, 32, 64, 1, 4, 8),
    (2048, 128, 1, 512): Tile(128, 64, 64, 1, 4, 3),
    (8192, 256, 1, 64): Tile(64, 64, 64, 1, 4, 5),
    (8192, 64, 9, 64): Tile(64, 64, 64, 1, 4, 4),
    (8192, 64, 1, 256): Tile(64, 64, 64, 1, 4, 2),
}
"""Faster so than by cuDNN and cuBLASLt on an H200: the fastest tiles of those that the step ``layers`` tried."""
LARGE = Tile(128, 128, 64, 1, 8, 4)
"""Of many pairs, where the sum before the ReLU is taken too: cuDNN and cuBLASLt write one result."""


def tile_of(x: Tensor, weight: Tensor, keep: bool) -> Tile | None:
    """How :func:`launch_convolution` computes the convolution (B, C, H, W), (K, C, h, w) with stride 1 and the padding
    that keeps the size; None where cuDNN does it. ``keep``: with its sum."""
    filters, channels, *kernel = weight.shape
    pixels = len(x) * x.shape[2] * x.shape[3]
    if x.dtype != torch.float16 or kernel not in ([1, 1], [3, 3]):
        return None
    fits = pixels % LARGE.rows == filters % LARGE.columns == channels % LARGE.step == 0
    return PAIR.get((pixels, channels, kernel[0] * kernel[1], filters), LARGE if keep and fits else None)


def launch_convolution(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, tile: Tile, keep: bool = False
) -> Tensor:
    """Convolution with stride 1 that keeps the size, by :func:`convolution_kernel`.

    Args:
        x: (B, C, H, W); ``weight``: (K, C, 1, 1) or (K, C, 3, 3); ``bias``: (K); ``residual``: (B, K, H, W) or None.
            All float16, images and filters channels last.
        tile: its sides divide B * H * W and K, its step C, its splits the number of steps.
        keep: return the sum before its ReLU too.

    Returns:
        (B, K, H, W) channels last; with ``keep`` that and the sum, (2, B, K, H, W).
    """
    batch, channels, height, width = x.shape
    filters, taps = len(weight), weight.shape[2] * weight.shape[3]
    pixels, weight = x.permute(0, 2, 3, 1).contiguous(), weight.permute(0, 2, 3, 1).contiguous()
    results = x.new_empty((2 if keep else 1, batch, height, width, filters))
    out, sums = results[0], results[-1]
    added = out if residual is None else residual.permute(0, 2, 3, 1).contiguous()
    tiles = batch * height * width // tile.rows * (filters // tile.columns)
    shared = tile.splits > 1
    parts = x.new_empty((tiles, tile.splits, tile.rows, tile.columns) if shared else 1, dtype=torch.float32)
    sizes = (height, width, channels, filters, taps, residual is not None, keep)
    cut = (tile.rows, tile.columns, tile.step, tile.splits)
    counters = zero_counters(tiles if shared else 1, str(x.device))
    convolution_kernel[(tiles, tile.splits)](
        pixels, weight, bias, added, out, sums, parts, counters, *sizes, *cut,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    results = results.permute(0, 1, 4, 2, 3)
    return results if keep else results[0]


@functools.cache
def zero_counters(count: int, device: str) -> Tensor:
    """Each launch leaves them as it found them; launches of one stream share them."""
    return torch.zeros(count, dtype=torch.int32, device=device)
