"""The fused correlation: both Triton kernels, and the machine code that a TensorRT plan would hold, against float64."""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import sys
from dataclasses import astuple

import torch

from cats.benchmarks.gpu.kit import DRY, device_ms, graphed, kernel_times, record, step
from cats.export.graph.correlation import _definition
from cats.export.kernels import triton as correlation_kernel
from cats.export.kernels.compiled import compile_kernels

SPAIR = (64, *[1024] * 7)  # channels of the published levels
TINY = (40, 112, 192)
CELLS = 256


def features(channels, batch, dtype, device="cuda", seed=0, last=False):
    """Both images' levels (B, C, N); ``last``: in memory as (B, N, C), as convolutions in channels last leave them."""
    generator = torch.Generator(device).manual_seed(seed)
    sides = []
    for _ in range(2):
        side = [torch.randn(batch, c, CELLS, generator=generator, device=device) for c in channels]
        sides.append([(x * (1 + 9 * (i % 3 == 1))).to(dtype) for i, x in enumerate(side)])
    sides[0][0][:, :, 3] = 0  # a place without any feature: its maximum is 0
    return [[x.mT.contiguous().mT for x in side] for side in sides] if last else sides


def reference(a, b):
    """The definition in float64 on the CPU."""
    a, b = [x.double().cpu() for x in a], [x.double().cpu() for x in b]
    corr = torch.stack([x.transpose(1, 2) @ y for x, y in zip(a, b, strict=True)], dim=1)
    for side, dim in ((a, -1), (b, -2)):
        norm = torch.stack([(x * x).sum(1) for x in side], 1).add(1e-6).sqrt()
        corr = corr / norm.unsqueeze(dim)
    maxima = [corr.amax(dim, keepdim=True) for dim in (-1, -2)]
    maxima = [torch.where(m == 0, 1e-30, m) for m in maxima]
    return corr * (corr / maxima[0]) * (corr / maxima[1])


def error(found, expected):
    found = found.double().cpu()
    return {
        "relative": float((found - expected).norm() / expected.norm()),
        "max": float((found - expected).abs().max()),
        "nan": int(found.isnan().sum()),
    }


def parity(channels, dtype, last, batch=2):
    a, b = features(channels, batch, dtype, last=last)
    expected = reference(a, b)
    torch.full((64 << 20,), float("nan"), device="cuda")  # what is allocated next holds NaN where nothing was written
    return {"kernels": error(correlation_kernel.launch(a, b), expected), "pytorch": error(_definition(a, b), expected)}


def floor(channels, batch, dtype):
    """Bytes that must move and operations that must happen."""
    size = torch.tensor([], dtype=dtype).element_size()
    read = 2 * sum(channels) * CELLS * size * batch
    written = len(channels) * CELLS * CELLS * 4 * batch
    return {"mb": (read + written) / 1e6, "gflop": 2 * CELLS * CELLS * sum(channels) * batch / 1e9}


def repeated(channels, dtype, last, batch=32, runs=20):
    """Is every run of a full GPU the same to the bit, and right? Races show here, not in a small batch."""
    a, b = features(channels, batch, dtype, last=last)
    first = correlation_kernel.launch(a, b)
    other = sum(not torch.equal(first, correlation_kernel.launch(a, b)) for _ in range(runs))
    return {"differ": other, "of": runs, **error(first, reference(a, b))}


def timing(channels, dtype, batch, last):
    sets = itertools.cycle([features(channels, batch, dtype, seed=i, last=last) for i in range(4 if batch < 32 else 2)])
    torch.backends.cuda.matmul.allow_tf32 = False
    kernels = device_ms(lambda: correlation_kernel.launch(*next(sets)))
    found = {
        "kernels": kernels,
        "pytorch": device_ms(lambda: _definition(*next(sets))),
        **floor(channels, batch, dtype),
    }
    a, b = next(sets)
    replay, _ = graphed(lambda: correlation_kernel.launch(a, b))
    found["kernels_as_graph"] = device_ms(replay, inner=10)  # at batch 1 the events would be most of it
    ms = found["kernels_as_graph"]["ms"]
    return {**found, "tb_per_s": found["mb"] / ms / 1e3, "tflops": found["gflop"] / ms}


def sweep(dtype, batch, last):
    """Other blocks than the module's, replayed as a CUDA graph."""
    a, b = features(SPAIR, batch, dtype, last=last)
    found = {}
    half = [
        (128, 128, 64, 8, 4), (128, 128, 64, 8, 3, 128), (128, 128, 32, 8, 5, 128), (128, 128, 32, 4, 4),
        (128, 64, 64, 4, 4), (64, 128, 64, 4, 4), (128, 256, 64, 8, 3),
    ]  # fmt: skip
    full = [(64, 64, 32, 4, 3), (64, 64, 16, 4, 4), (64, 64, 32, 8, 4), (64, 64, 16, 8, 4)]
    first = correlation_kernel.LARGE[last] if dtype == torch.float16 else correlation_kernel.BLOCKS[dtype]
    choices = [astuple(first), *(half if dtype == torch.float16 else full)]
    for choice in choices[: 1 if DRY else None]:
        blocks = correlation_kernel.Blocks(*choice)
        try:
            run = graphed(lambda blocks=blocks: correlation_kernel.launch(a, b, blocks))[0]
            found[str(choice)] = [
                device_ms(run, rounds=20, inner=10)["ms"],
                *(us for us, _ in kernel_times(run)["us and calls"].values()),
            ]
        except Exception as problem:
            found[str(choice)] = f"{type(problem).__name__}: {problem}"[:200]
    return {"rows, columns, step, warps, stages, registers -> ms, us of each kernel": found}


@functools.cache
def case(channels, dtype, batch):
    """Features of both images and their filtered correlation."""
    a, b = features(channels, batch, dtype)
    return a, b, reference(a, b)


def ahead_of_time(channels, half, batch, capability):
    """The PTX that ``--for tensorrt`` puts into a file, loaded by the driver and launched with pointers alone."""
    scores, filtered = compile_kernels(channels, CELLS, half=half, capability=capability)
    if not torch.cuda.is_available():
        return {"compiled": [len(scores.ptx), len(filtered.ptx)], "launched": "no GPU"}
    a, b, expected = case(channels, torch.float16 if half else torch.float32, batch)
    levels, tiles = len(channels), math.isqrt(scores.grid[0])
    new = lambda *shape: torch.full((batch, levels, *shape), float("nan"), device="cuda")  # noqa: E731
    product, rows, columns, volume = new(CELLS, CELLS), new(tiles, CELLS), new(tiles, CELLS), new(CELLS, CELLS)
    torch.cuda.synchronize()
    driver, launches = ctypes.CDLL("libcuda.so.1"), []
    for kernel, tensors in ((scores, (*a, *b, product, rows, columns)), (filtered, (product, rows, columns, volume))):
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        check(driver, driver.cuModuleLoadData(ctypes.byref(module), kernel.ptx.encode()))
        check(driver, driver.cuModuleGetFunction(ctypes.byref(function), module, kernel.name.encode()))
        pointers = [ctypes.c_uint64(tensor.data_ptr()) for tensor in tensors]
        arguments = (ctypes.c_void_p * len(pointers))(*(ctypes.addressof(p) for p in pointers))
        sizes = (*kernel.grid, batch, kernel.threads, 1, 1, kernel.shared_bytes)
        launches.append((function, sizes, arguments, pointers))

    def launch() -> None:
        for function, sizes, arguments, _ in launches:
            check(driver, driver.cuLaunchKernel(function, *sizes, None, arguments, None))

    launch()
    torch.cuda.synchronize()
    times = {"plan": device_ms(launch, inner=10)}
    return {
        **error(volume, expected),
        "shared_bytes": [scores.shared_bytes, filtered.shared_bytes],
        "batch": batch,
        **times,
    }


def check(driver, status):
    if status:
        name = ctypes.c_char_p()
        driver.cuGetErrorName(status, ctypes.byref(name))
        raise RuntimeError(f"driver: {(name.value or b'?').decode()}")


def main() -> None:
    layouts = {"": False, ", channels last": True}
    for label, channels in (("SPair levels", SPAIR), ("cats-tiny levels", TINY), ("odd levels", (5, 33, 7))):
        for dtype, (layout, last) in itertools.product((torch.float32, torch.float16), layouts.items()):
            name = f"parity {label} {str(dtype)[6:]}{layout}"
            step(name, lambda c=channels, d=dtype, last=last: parity(c, d, last))
    for dtype, (layout, last) in itertools.product((torch.float16, torch.float32), layouts.items()):
        name = f"runs of batch 32 {str(dtype)[6:]}{layout}"
        step(name, lambda d=dtype, last=last: repeated(SPAIR, d, last))
    for half, batch, capability in itertools.product((True, False), (1, 32), (80, 90)):
        label = f"PTX of a plan for {capability / 10}, {'fp16' if half else 'fp32'}, batch {batch}"
        step(label, lambda h=half, n=batch, c=capability: ahead_of_time(SPAIR, h, n, c), gpu=False)
    for dtype, batch, (layout, last) in itertools.product((torch.float16, torch.float32), (1, 8, 32), layouts.items()):
        name = f"time {str(dtype)[6:]} batch {batch}{layout}"
        step(name, lambda d=dtype, n=batch, last=last: timing(SPAIR, d, n, last))
    if "--sweep" in sys.argv:
        for batch, (layout, last) in itertools.product((32,), reversed(layouts.items())):
            name = f"sweep float16 batch {batch}{layout}"
            step(name, lambda n=batch, last=last: sweep(torch.float16, n, last))
    record("done", argv=sys.argv[1:])


if __name__ == "__main__":
    main()
