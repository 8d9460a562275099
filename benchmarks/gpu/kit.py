"""What the steps share: results that survive a cut-off, timing on the GPU, models and images."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cats.benchmarks.record import REPOSITORY

CARRIED = Path(os.environ.get("KIT_CARRIED", "/tmp/kit/main"))
"""What the transfer brought: wheels, small models, libraries in parts."""
MODELS = Path(os.environ.get("KIT_MODELS", "/tmp/kit/models"))
RESULTS = Path(os.environ.get("KIT_RESULTS", "results.jsonl"))
DRY = os.environ.get("KIT_DRY") == "1"  # on a CPU, to see that the scripts work
DEVICE = "cpu" if DRY else "cuda"
STEP = Path(sys.argv[0]).stem
ROUNDS = 3 if DRY else 50


def record(name: str, **figures: Any) -> None:
    """Append one line to the results, at once."""
    line = {"step": STEP, "name": name, **figures}
    with RESULTS.open("a") as file:
        file.write(json.dumps(line, default=str).replace(f"{REPOSITORY}/", "") + "\n")  # results are committed
        file.flush()
        os.fsync(file.fileno())
    print(f"[{STEP}] {name}: " + ", ".join(f"{k} {_short(v)}" for k, v in figures.items()), flush=True)


def _short(value: Any) -> str:
    return str(round(value, 5)) if isinstance(value, float) else str(value)[:240]


def step(name: str, work: Callable[[], dict[str, Any] | None], *, gpu: bool = True) -> None:
    """Run ``work`` and record what it returns, or why it failed, or that it needs a GPU."""
    import torch

    if gpu and not torch.cuda.is_available():
        record(name, skipped="no GPU")
        return
    start = time.perf_counter()
    try:
        found = work()
        record(name, **(found or {}), took_s=round(time.perf_counter() - start, 1))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # pytest's skips are no Exceptions
        text = f"{type(error).__name__}: {error}"[:1500]
        record(name, failed=text, took_s=round(time.perf_counter() - start, 1))


def host_ms(run: Callable[[], Any], rounds: int = ROUNDS) -> dict[str, float]:
    """Time of a call that returns when its work is done: median, and the 10th and 90th percentile."""
    for _ in range(2 if DRY else 5):
        run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1000)
    return _summary(times)


def device_ms(run: Callable[[], Any], rounds: int = ROUNDS, inner: int = 1) -> dict[str, float]:
    """Time on the GPU between two events around ``inner`` calls, for one call."""
    import torch

    for _ in range(5):
        run()
    torch.cuda.synchronize()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(inner):
            run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / inner)
    return _summary(times)


def _summary(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "ms": round(statistics.median(ordered), 4),
        "ms_p10": round(ordered[len(ordered) // 10], 4),
        "ms_p90": round(ordered[-1 - len(ordered) // 10], 4),
    }


def graphed(run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """A call that replays ``run`` as a CUDA graph, and what the graph writes into."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph.replay, result


def kernel_times(run: Callable[[], Any], rounds: int = 5) -> dict[str, Any]:
    """Microseconds and calls of each kernel in one run on the GPU, the longest first; how many kernels there are."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    for _ in range(3):
        run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for _ in range(rounds):
            run()
        torch.cuda.synchronize()
    rows = [(e.key, e.self_device_time_total / rounds, e.count / rounds) for e in profiler.key_averages()]
    rows = sorted((row for row in rows if row[1] > 0), key=lambda row: -row[1])
    return {
        "kernels": round(sum(row[2] for row in rows)),
        "total_us": round(sum(row[1] for row in rows), 1),
        "us and calls": {name[:110]: [round(us, 1), round(calls, 1)] for name, us, calls in rows[:30]},
    }


def pixels(flow: Any, expected: np.ndarray, cell: float = 16.0) -> dict[str, float]:
    """Difference of two flows in pixels at the model's input size."""
    flow = np.asarray(flow, np.float64)
    if flow.shape != expected.shape or not np.isfinite(flow).all():
        return {"wrong": f"shape {flow.shape}, {np.isnan(flow).sum()} NaN"}  # type: ignore[dict-item]
    distance = np.linalg.norm(flow - expected, axis=1) * cell
    return {
        "median_px": round(float(np.median(distance)), 5),
        "p99_px": round(float(np.percentile(distance, 99)), 4),
        "max_px": round(float(distance.max()), 4),
        "moved_over_1px": round(float((distance > 1).mean()), 5),
    }


def load(name: str) -> Any:
    """``cats-tiny``, or ``resnet101``: the published structure with weights from a formula."""
    from cats.assets import asset
    from cats.checkpoints import load_checkpoint

    if name == "resnet101":
        from cats.benchmarks.models import tamed_resnet101

        return tamed_resnet101("formula")
    return load_checkpoint(Path(asset("cats-tiny.pt"))).model.eval()


def photos(preprocessing: Any, batch: int) -> dict[str, np.ndarray]:
    """The first demo pairs as model inputs, repeated where the batch is larger."""
    from cats.export.pairs import demo_pairs

    pairs = list(demo_pairs().inputs(preprocessing))
    pairs = [pairs[i % len(pairs)] for i in range(batch)]
    sides = zip(*pairs, strict=True)
    return {k: np.ascontiguousarray(np.stack(s)) for k, s in zip(("image_a", "image_b"), sides, strict=True)}


def wait_for(name: str, seconds: float = 120) -> Path:
    """A file that the export in the background writes."""
    path, end = MODELS / name, time.monotonic() + seconds
    while not path.is_file():
        if time.monotonic() > end:
            raise FileNotFoundError(f"{name} was not exported within {seconds} s")
        time.sleep(0.5)
    return path
