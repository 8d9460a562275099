"""What each rewrite of the deployment graph gains in ONNX Runtime, switched on one after the other.

Files are written with the rewrites switched on one by one, in the order of ``DeploymentOptions``; all run in turn
within each round in one process, and a rewrite's gain is the median, over the rounds, of the time with it to the time
of the file before it. Nothing else may run beside it.

Usage: python -m cats.benchmarks.studies.rewrites [MODEL] [--rounds 41] [--work DIR] [--output NAME.md]
"""

from __future__ import annotations

import datetime
import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import typer

from cats.benchmarks.exports import FOR_CPU, NAIVE, OURS, Exports
from cats.benchmarks.models import load_model
from cats.benchmarks.record import timed
from cats.benchmarks.statistics import interleave, ratio_interval
from cats.core.console import execute, new_app, note
from cats.core.files import write_text
from cats.export.graph.deployment import DeploymentOptions
from cats.runtime.backends.base import Array
from cats.runtime.backends.ort import OnnxRuntimeBackend
from cats.runtime.hardware import cpu_name

app = new_app()
TEXTS = {
    "one_backbone_pass": "both images through the backbone as one batch",
    "resize_as_matmul": "resize as two products, none where the size fits",
    "fused_correlation": "L2 norm as a scale of the product, inverse maxima",
    "constant_position": "constant positional embedding",
    "split_heads": "one weight each for query, key and value; no regrouping of tokens",
    "mean_first": "mean over the levels before the last projection",
    "soft_argmax_as_matmul": "soft-argmax and its variance as one product",
    "winograd": "3x3 convolutions with half the multiplications (`--for cpu`)",
}


def steps() -> dict[str, DeploymentOptions]:
    """By name, from the naive graph to the one with every rewrite."""
    options, found = NAIVE, {"naive": NAIVE}
    for name in TEXTS:
        options = replace(options, **{name: True})
        found[name] = options
    assert OURS in found.values()
    assert options == FOR_CPU
    return found


def report(name: str, files: dict[str, Path], times: dict[str, Any], threads: int) -> str:
    """The table as Markdown."""
    rounds = len(times["naive"])
    lines = [
        f"# Gain of each rewrite: {name} in ONNX Runtime",
        "",
        f"{cpu_name()}, {threads} threads, ONNX Runtime {onnxruntime.__version__}, {datetime.date.today()}; medians "
        f"of {rounds} interleaved rounds with 95 % bootstrap intervals, written by `benchmarks/studies/rewrites.py`. "
        "Batch norm is folded in every file. Each row has all rewrites of the rows above it.",
        "",
        "| rewrite | ms | to the row above | to naive | file, MB |",
        "|---|---:|---:|---:|---:|",
    ]
    before = "naive"
    for step, path in files.items():
        gain, total = (ratio_interval(times[step], times[other]) for other in (before, "naive"))
        text = f"`{step}`: {TEXTS[step]}" if step in TEXTS else "naive: all off"
        cells = [f"{part['median']:.3f} ({part['low']:.3f} - {part['high']:.3f})" for part in (gain, total)]
        size = path.stat().st_size / 1e6
        lines.append(f"| {text} | {np.median(times[step]):.1f} | {cells[0]} | {cells[1]} | {size:.1f} |")
        before = step
    return "\n".join(lines) + "\n"


@app.command()
def rewrites(
    model: Annotated[str, typer.Argument(help="Checkpoint, or cats-tiny, resnet101, lite0.")] = "cats-tiny",
    rounds: Annotated[int, typer.Option(help="Measured rounds.", min=3)] = 41,
    threads: Annotated[int, typer.Option(help="Threads.", min=1)] = 2,
    work: Annotated[Path | None, typer.Option(help="Folder that keeps the files.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option(help="Write the table as Markdown.", show_default=False)] = None,
) -> None:
    """Measure what each rewrite of the deployment graph gains."""
    chosen = load_model(model)
    side = chosen.model.config.image_size
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {
        name: rng.standard_normal((1, 3, side, side)).astype(np.float32) for name in ("image_a", "image_b")
    }
    with tempfile.TemporaryDirectory() as temporary:
        exports = Exports(chosen.model, work or Path(temporary))
        files = {}
        for name, options in steps().items():
            note(f"exporting {name}")
            files[name] = exports.pair(options)
        backends = {name: OnnxRuntimeBackend(path, threads=threads) for name, path in files.items()}
        calls = {name: timed(functools.partial(backend.run, feeds)) for name, backend in backends.items()}
        note(f"{rounds} rounds")
        text = report(chosen.name, files, interleave(calls, rounds, 3), threads)
    print(text)
    if output is not None:
        write_text(output, text)


if __name__ == "__main__":
    execute(app)
