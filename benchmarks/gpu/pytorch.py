"""The model by PyTorch on the GPU: eager, as a CUDA graph, compiled; in four precisions; parity with the CPU.

    python -m cats.benchmarks.gpu.pytorch resnet101 [--compile | --warm] [--fused] [--tune]

``eager`` is the training model as it is written (what the published code costs); ``pair`` the deployment graph with the
Triton kernels of the correlation; ``file`` the exported ONNX file, operator by operator in the types it gives, and
compiled by torch.compile with ``--compile``, with convolutions and attention as :mod:`.fused` joins them with
``--fused``, and with its kernels chosen by trying with ``--tune`` (minutes).
``--warm`` compiles that ahead, into the cache, and measures nothing.
"""

from __future__ import annotations

import sys

import onnx
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from cats.benchmarks.gpu.fused import FUSED, fuse, name_operators_alone
from cats.benchmarks.gpu.kit import (
    DEVICE,
    DRY,
    ROUNDS,
    device_ms,
    graphed,
    host_ms,
    kernel_times,
    load,
    photos,
    pixels,
    record,
    step,
    wait_for,
)
from cats.benchmarks.onnx_on_torch import OnnxOnTorch
from cats.export.graph.deployment import PairGraph

BATCHES = (1,) if DRY else (1, 32)
CHECKED = 2 if DRY else 4


class HalfPair(nn.Module):
    """The deployment graph under autocast, the soft-argmax in float32."""

    def __init__(self, pair: PairGraph, dtype: torch.dtype):
        super().__init__()
        self.pair, self.dtype = pair, dtype

    def forward(self, image_a: torch.Tensor, image_b: torch.Tensor) -> torch.Tensor:
        pair, half = self.pair, len(image_a)
        with torch.autocast(DEVICE, self.dtype):
            features, appearance = pair.encoder(torch.cat([image_a, image_b]))
            a, b = [x[:half] for x in features], [x[half:] for x in features]
            refined = pair.matcher.decoder(pair.matcher.correlation(a, b), appearance[:half], appearance[half:])
        return pair.matcher.soft_argmax(refined.float())[0]


def precise(tf32: bool = False, search: bool = True) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cudnn.benchmark = search


class Bench:
    def __init__(self, name: str) -> None:
        self.name, self.model = name, load(name)
        feeds = photos(self.model.config.preprocessing, max(BATCHES))
        self.feeds = {key: torch.from_numpy(value) for key, value in feeds.items()}
        with torch.inference_mode():
            self.expected = self.model(*self.images("cpu", CHECKED)).numpy()

    def images(self, device: str, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(self.feeds[key][:batch].to(device) for key in ("image_a", "image_b"))

    def measure(
        self, label: str, run, *, tf32: bool = False, graph: bool = True, batches=BATCHES, checked=CHECKED
    ) -> None:
        """``run(a, b)`` -> flow on the GPU; parity is judged on runs of ``checked`` pairs."""

        def parity() -> dict:
            precise(tf32, search=False)
            with torch.inference_mode():
                flow = run(*self.images(DEVICE, checked)).float().cpu().numpy()
            return pixels(flow[:CHECKED], self.expected[:checked])

        step(f"{self.name} {label}: parity", parity, gpu=not DRY)
        for batch in batches:
            rounds = ROUNDS if batch < 8 else 15

            def timing(batch=batch, rounds=rounds) -> dict:
                precise(tf32)
                with torch.inference_mode():
                    a, b = self.images("cuda", batch)
                    found = {"gpu": device_ms(lambda: run(a, b), rounds)}
                    found["wall"] = host_ms(lambda: (run(a, b), torch.cuda.synchronize()), rounds)
                found["pairs_per_s"] = round(batch / found["wall"]["ms"] * 1000, 1)
                return found

            def replay(batch=batch, rounds=rounds) -> dict:
                precise(tf32)
                with torch.inference_mode():
                    a, b = self.images("cuda", batch)
                    again, flow = graphed(lambda: run(a, b))
                    found = device_ms(again, rounds)
                    again()
                    same = pixels(flow.float().cpu().numpy(), run(a, b).float().cpu().numpy())
                return {"gpu": found, "pairs_per_s": round(batch / found["ms"] * 1000, 1), "to_eager": same}

            step(f"{self.name} {label}: batch {batch}", timing)
            if graph:
                step(f"{self.name} {label}: batch {batch} as a CUDA graph", replay)


def file_on_gpu(path, channels_last: bool, fused: bool = False):
    """An exported file as a function of both images; the correlation by the kernels, constants on the GPU."""
    whole = onnx.load(path)
    if fused:
        record(f"{path.name}: fused nodes", **fuse(whole))
    runner = OnnxOnTorch(whole, DEVICE, FUSED)
    if channels_last:
        for key, value in runner.weights.items():
            if value.ndim == 4 and value.shape[2] > 0:
                runner.weights[key] = value.contiguous(memory_format=torch.channels_last)

    def run(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if channels_last:
            a, b = (x.contiguous(memory_format=torch.channels_last) for x in (a, b))
        return runner({"image_a": a, "image_b": b})["flow"]

    return run


TUNED = {"max_autotune_gemm": True, "conv_1x1_as_mm": True, "max_autotune_gemm_backends": "ATEN,TRITON"}
"""Of torch.compile: 1x1 convolutions as matrix products, each by the fastest kernel with what follows inside."""


def compiled(bench: Bench, precision: str, batch: int, tuned: bool, fused: bool):
    """The exported file as one function for ``batch`` pairs, by torch.compile; convolutions in channels last."""
    torch._dynamo.reset()
    path = wait_for(f"{bench.name}.{precision}.onnx", 1 if DRY else 200)
    run = file_on_gpu(path, channels_last=True, fused=fused)
    images = bench.images(DEVICE, batch)
    precise(search=False)
    with torch.no_grad():
        traced = make_fx(run)(*images)
    name_operators_alone()
    return traced if DRY else torch.compile(traced, dynamic=False, options=TUNED if tuned else {})


def label_of(tuned: bool, fused: bool) -> str:
    """What :func:`compiled` makes, in the results."""
    return f"{'fused and ' if fused else ''}compiled{' and tuned' if tuned else ''} fp16"


def measure_compiled(bench: Bench, tuned: bool, fused: bool) -> None:
    """Each batch is compiled by itself, so that a cut-off leaves the first."""
    if fused:
        torch.backends.cudnn.benchmark_limit = 4  # each fused convolution that is tried is compiled first
    for batch in BATCHES:
        label = label_of(tuned, fused)
        try:
            run = compiled(bench, "fp16", batch, tuned, fused)
        except Exception as error:
            record(f"{bench.name} {label}, batch {batch}", failed=f"{type(error).__name__}: {error}"[:1500])
            continue
        bench.measure(label, run, batches=(batch,), checked=batch)
        step(f"{bench.name} {label}: kernels of batch {batch}", lambda r=run, b=batch: kernels(bench, r, b))


def kernels(bench: Bench, run, batch: int) -> dict:
    """Where the time of a run goes."""
    precise()
    with torch.inference_mode():
        a, b = bench.images(DEVICE, batch)
        return kernel_times(lambda: run(a, b))


def warm(bench: Bench, tuned: bool, fused: bool) -> None:
    """Fill the caches of torch.compile and Triton."""
    for batch in BATCHES:
        run = compiled(bench, "fp16", batch, tuned, fused)
        with torch.inference_mode():
            run(*bench.images(DEVICE, batch))
        record(f"{bench.name} {label_of(tuned, fused)}, batch {batch}", warmed=True)


def main() -> None:
    name, tuned, fused = sys.argv[1], "--tune" in sys.argv, "--fused" in sys.argv
    bench = Bench(name)
    record(f"{name} levels", hyperpixels=list(bench.model.config.hyperpixels))
    if "--warm" in sys.argv:
        warm(bench, tuned, fused)
        return
    pair = PairGraph(bench.model).eval().to(DEVICE)
    eager = bench.model.to(DEVICE)
    if "--compile" in sys.argv:
        measure_compiled(bench, tuned, fused)
        return
    bench.measure("eager fp32", eager)
    bench.measure("eager tf32", eager, tf32=True, graph=False)
    for dtype in (torch.float16, torch.bfloat16):

        def cast(a, b, dtype=dtype):
            with torch.autocast(DEVICE, dtype):
                return eager(a, b)

        bench.measure(f"eager autocast {str(dtype)[6:]}", cast)
    bench.measure("pair fp32", lambda a, b: pair(a, b)[0])
    bench.measure("pair fp16 autocast", HalfPair(pair, torch.float16))
    bench.measure("pair bf16 autocast", HalfPair(pair, torch.bfloat16))
    pair.to(memory_format=torch.channels_last)
    bench.measure("pair fp16 autocast channels last", HalfPair(pair, torch.float16))
    for precision in ("fp32", "fp16"):
        try:
            path = wait_for(f"{name}.{precision}.onnx", 1 if DRY else 120)
        except FileNotFoundError as error:
            record(f"{name} file {precision}", failed=str(error))
            continue
        for last in (False, True) if precision == "fp16" else (True,):
            run = file_on_gpu(path, last)
            bench.measure(f"file {precision}{' channels last' if last else ''}", run)
            if precision == "fp16" and last:
                for batch in BATCHES:
                    step(f"{name} file fp16: kernels of batch {batch}", lambda r=run, b=batch: kernels(bench, r, b))


if __name__ == "__main__":
    main()
