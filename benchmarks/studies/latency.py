"""Latency of one pair on the CPU: PyTorch eager as the authors compute, our PyTorch, exported files, in one process.

All contestants run in turn within each round, so that whatever disturbs the machine disturbs them alike; figures are
medians over the rounds with the central half as spread, ratios are medians of the ratios within a round. Nothing else
may run beside it. Pre-processing is left out: inputs are normalised tensors. ``cats-bench`` compares more, each in a
process of its own.

Usage: python -m cats.benchmarks.studies.latency [--rounds 30] [--threads 2] [--output benchmarks/results/NAME.json]
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from cats.benchmarks.authors import AuthorsWay
from cats.benchmarks.exports import FOR_CPU, OURS, Exports
from cats.benchmarks.models import tamed_resnet101
from cats.benchmarks.record import describe_run, timed, write_record
from cats.benchmarks.statistics import interleave
from cats.core.console import execute, new_app, note, stdout, table
from cats.core.errors import BackendError
from cats.model import CATs
from cats.runtime.backends.base import Array, Backend
from cats.runtime.backends.openvino import OpenVinoBackend
from cats.runtime.backends.ort import OnnxRuntimeBackend

app = new_app()
BASELINE = "PyTorch eager, as the authors compute"


def summary(times: dict[str, np.ndarray], baseline: str) -> dict[str, dict[str, float]]:
    """Median, quartiles and ratio to the baseline of each contestant."""
    result = {}
    for name, values in times.items():
        low, median, high = np.percentile(values, (25, 50, 75))
        result[name] = {
            "median_ms": round(float(median), 2),
            "q25_ms": round(float(low), 2),
            "q75_ms": round(float(high), 2),
            "ratio": round(float(np.median(values / times[baseline])), 4),
        }
    return result


def contestants(model: CATs, folder: Path, threads: int) -> dict[str, Callable[[], object]]:
    """What runs side by side for a ResNet-101 CATs."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((1, 3, 256, 256)).astype(np.float32) for _ in range(2))
    target, source = torch.from_numpy(a), torch.from_numpy(b)
    authors = AuthorsWay(model)
    exports = Exports(model, folder)
    plain, for_cpu = exports.pair(OURS), exports.pair(FOR_CPU)
    backends: dict[str, Callable[[], Backend]] = {
        "ONNX Runtime": lambda: OnnxRuntimeBackend(plain, threads=threads),
        "ONNX Runtime, --for cpu": lambda: OnnxRuntimeBackend(for_cpu, threads=threads),
        "OpenVINO fp32, --for cpu": lambda: OpenVinoBackend(for_cpu, threads=threads),
        "OpenVINO bf16, --for cpu": lambda: OpenVinoBackend(for_cpu, precision="bf16", threads=threads),
    }
    feeds: dict[str, Array] = {"image_a": a, "image_b": b}
    found: dict[str, Callable[[], object]] = {
        BASELINE: lambda: authors(target, source),
        "PyTorch eager, ours": lambda: model(target, source),
    }
    for name, make in backends.items():
        try:
            found[name] = functools.partial(make().run, feeds)
        except BackendError as error:
            note(f"{name} is not measured: {error}")
    return found


@app.command()
def latency(
    rounds: Annotated[int, typer.Option(help="Measured rounds.", min=1)] = 30,
    threads: Annotated[int, typer.Option(help="Threads of every contestant.", min=1)] = 2,
    output: Annotated[Path | None, typer.Option(help="Write the figures as JSON.", show_default=False)] = None,
) -> None:
    """Measure the latency of one pair on the CPU, interleaved."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        calls = contestants(tamed_resnet101(), Path(folder), threads)
        times = interleave({name: timed(call) for name, call in calls.items()}, rounds, warm_up=3)
    figures = summary(times, BASELINE)
    rows = [
        [name, f"{v['median_ms']:.0f}", f"{v['q25_ms']:.0f}-{v['q75_ms']:.0f}", f"{v['ratio']:.2f}"]
        for name, v in figures.items()
    ]
    stdout.print(table("ResNet-101 CATs, one pair", ["", "ms (median)", "central half", "ratio"], rows))
    if output:
        head = describe_run("latency", ["torch", "onnxruntime", "openvino"], threads)
        write_record(output, {**head, "rounds": rounds, "figures": figures})


if __name__ == "__main__":
    execute(app)
