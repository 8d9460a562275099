"""Layers of one pair by cuDNN and cuBLASLt and by the kernels of :mod:`.convolutions`, in tiles of many kinds.

    python -m cats.benchmarks.gpu.layers [--warm]

Each kind of layer is a CUDA graph of as many as ResNet-101 has, with weights of their own that have left the second
cache, as in a model. ``--warm`` compiles the kernels by several processes at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
import torch.nn.functional as F
from torch import Tensor

from cats.benchmarks.gpu import convolutions, fused
from cats.benchmarks.gpu.convolutions import Tile
from cats.benchmarks.gpu.kit import DRY, device_ms, graphed, record, step

KINDS = {  # name: sides of the two images together, channels, taps, filters, residual, how many there are
    "layer 3, to fewer channels": (16, 1024, 1, 256, False, 22),
    "layer 3, 3x3": (16, 256, 9, 256, False, 22),
    "layer 3, to more channels": (16, 256, 1, 1024, True, 22),
    "layer 2, to fewer channels": (32, 512, 1, 128, False, 3),
    "layer 2, 3x3": (32, 128, 9, 128, False, 3),
    "layer 2, to more channels": (32, 128, 1, 512, True, 4),
    "layer 1, to fewer channels": (64, 256, 1, 64, False, 2),
    "layer 1, 3x3": (64, 64, 9, 64, False, 3),
    "layer 1, to more channels": (64, 64, 1, 256, True, 3),
}
TILES = {
    "layer 3, to fewer channels": [
        (64, 64, 64, 4, 4, 5), (64, 64, 128, 4, 4, 3), (64, 64, 64, 2, 4, 8), (32, 32, 64, 1, 4, 8),
        (32, 32, 128, 1, 4, 6), (64, 32, 64, 2, 4, 8), (32, 64, 64, 2, 4, 8), (64, 32, 64, 1, 4, 8),
        (64, 16, 64, 1, 4, 9), (64, 64, 64, 4, 8, 5),
    ],
    "layer 3, 3x3": [
        (64, 64, 64, 4, 4, 4), (64, 64, 64, 4, 4, 6), (64, 64, 64, 4, 4, 9), (64, 64, 128, 3, 4, 5),
        (64, 64, 64, 4, 8, 7), (64, 32, 64, 2, 4, 8), (32, 64, 64, 2, 4, 8), (32, 32, 64, 1, 4, 9),
        (64, 32, 64, 4, 4, 9), (64, 64, 64, 3, 4, 7),
    ],
    "layer 3, to more channels": [
        (64, 64, 64, 1, 4, 5), (64, 64, 128, 1, 4, 3), (64, 64, 64, 1, 8, 5), (32, 64, 64, 1, 4, 5),
        (64, 128, 64, 1, 4, 5), (128, 64, 64, 1, 8, 5),
    ],
    "layer 2, to fewer channels": [
        (64, 32, 64, 1, 4, 8), (64, 64, 64, 2, 4, 5), (64, 64, 128, 2, 4, 3), (32, 64, 64, 1, 4, 8),
    ],
    "layer 2, 3x3": [
        (64, 64, 64, 2, 4, 8), (64, 32, 64, 1, 4, 8), (32, 64, 64, 1, 4, 8), (64, 64, 64, 2, 4, 5),
    ],
    "layer 2, to more channels": [
        (64, 64, 64, 1, 4, 3), (64, 128, 64, 1, 4, 3), (128, 64, 64, 1, 4, 3), (128, 128, 64, 1, 8, 3),
    ],
    "layer 1, to fewer channels": [
        (64, 64, 64, 1, 4, 5), (64, 32, 64, 1, 4, 5), (32, 64, 64, 1, 4, 5),
    ],
    "layer 1, 3x3": [
        (64, 64, 64, 1, 4, 6), (64, 64, 64, 1, 4, 4), (32, 64, 64, 1, 4, 6),
    ],
    "layer 1, to more channels": [
        (64, 64, 64, 1, 4, 2), (64, 128, 64, 1, 4, 2), (128, 64, 64, 1, 8, 2), (64, 256, 64, 1, 8, 2),
    ],
}  # fmt: skip
FLUSH = 128 << 20
"""Bytes that are written before each run: more than the second cache holds."""


def layers(kind: str, count: int | None = None) -> tuple[Tensor, Tensor | None, list[Tensor], Tensor]:
    """Images, residual, weights of each layer, bias; float16, channels last."""
    side, channels, taps, filters, residual, there = KINDS[kind]
    draw, root = torch.Generator("cuda").manual_seed(0), 3 if taps == 9 else 1
    new = lambda *shape: torch.randn(*shape, generator=draw, device="cuda").half()  # noqa: E731
    last = torch.channels_last
    x = new(2, channels, side, side).contiguous(memory_format=last)
    weights = [
        (new(filters, channels, root, root) / (root * channels**0.5)).contiguous(memory_format=last)
        for _ in range(count or there)
    ]
    added = new(2, filters, side, side).contiguous(memory_format=last) if residual else None
    return x, added, weights, new(filters)


def cold(runs: list[Callable[[], object]]) -> float:
    """Microseconds of one of several calls in a CUDA graph that begins by emptying the second cache."""
    scratch = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")

    def all_of_them() -> None:
        scratch.zero_()
        for run in runs:
            run()

    alone = device_ms(graphed(scratch.zero_)[0], rounds=20)["ms"]
    return round((device_ms(graphed(all_of_them)[0], rounds=20)["ms"] - alone) * 1000 / len(runs), 2)


def measure(kind: str) -> dict[str, object]:
    """Microseconds a layer, by libraries and by each tile, or what is wrong with it."""
    x, residual, weights, bias = layers(kind)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = True, 4
    rest = bias, residual, [1, 1], [weights[0].shape[2] // 2] * 2, False
    by_libraries = fused.convolve_by_libraries
    found: dict[str, object] = {"libraries": cold([lambda w=w: by_libraries(x, w, *rest) for w in weights])}
    expected = by_libraries(x, weights[0], *rest).float()
    for sizes in TILES[kind]:
        tile = Tile(*sizes)
        try:
            run = lambda w, tile=tile: convolutions.launch_convolution(x, w, bias, residual, tile)  # noqa: E731
            error = (run(weights[0]).float() - expected).abs().max().item()
            found[str(sizes)] = (
                cold([lambda w=w, run=run: run(w) for w in weights]) if error < 0.02 else f"off by {error}"
            )
        except Exception as problem:
            found[str(sizes)] = f"{type(problem).__name__}: {problem}"[:200]
    return found


def measure_gelu(pairs: int) -> dict[str, object]:
    """Microseconds of the product with GELU of one block of the aggregator, as cuBLASLt joins it, and without GELU."""
    draw = torch.Generator("cuda").manual_seed(0)
    shapes = ((2048 * pairs, 384), (384, 1536), (1536,))
    x, weight, bias = (torch.randn(*shape, generator=draw, device="cuda").half() / 8 for shape in shapes)
    error = (fused.linear_gelu(x, weight, bias).float() - F.gelu(x.float() @ weight.float() + bias.float())).abs().max()
    joined = cold([lambda: fused.linear_gelu(x, weight, bias)] * 4)
    return {"joined": joined, "product alone": cold([lambda: torch.addmm(bias, x, weight)] * 4), "error": error.item()}


def compile_tile(job: tuple[str, tuple[int, ...]]) -> str:
    """Compile one kernel into the cache that all processes share; what went wrong, or nothing."""
    kind, sizes = job
    try:
        x, residual, weights, bias = layers(kind, 1)
        convolutions.launch_convolution(x, weights[0], bias, residual, Tile(*sizes))
        torch.cuda.synchronize()
    except Exception as problem:
        return f"{kind} {sizes}: {type(problem).__name__}: {problem}"[:200]
    return ""


def warm() -> dict[str, object]:
    """Compile all tiles, eight at once."""
    jobs = [(kind, sizes) for kind, tiles in TILES.items() for sizes in tiles]
    with ProcessPoolExecutor(8, mp_context=get_context("spawn")) as pool:
        return {"failed": [text for text in pool.map(compile_tile, jobs) if text], "kernels": len(jobs)}


def main() -> None:
    if "--warm" in sys.argv:
        step("compiled", warm)
        return
    for kind in TILES:
        step(f"{kind}, one pair: us", lambda kind=kind: measure(kind))
    for pairs in (1, 32):
        step(f"product with GELU, {pairs} pair{'s' * (pairs > 1)}: us", lambda pairs=pairs: measure_gelu(pairs))
    record("done", argv=sys.argv[1:], dry=DRY)


if __name__ == "__main__":
    main()
