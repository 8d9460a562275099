"""A table of photos against pure inference: what reading costs on top of the model, per pair, in ONNX Runtime.

Photos are matched as ``cats-run --pairs`` does it: read, decoded, resized and matched, in its default streams. Pure
inference is the same model on inputs that are ready, one pair at a time, on all threads. Both run in turns; nothing
else may run beside them.

Usage: python benchmarks/studies/throughput.py [MODEL.onnx] [--photos DIR] [--output benchmarks/results/throughput.json]
"""

from __future__ import annotations

import datetime
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import typer

from cats.assets import asset
from cats.benchmarks.statistics import median_interval, ratio_interval
from cats.core.console import execute, new_app, note, print_json
from cats.core.files import write_text
from cats.core.images import image_size
from cats.core.photos import list_photos
from cats.runtime import Matcher
from cats.runtime.hardware import cpu_name
from cats.runtime.match_files import Outputs, run_pairs

app = new_app()
PHOTOS = Path(os.environ.get("CATS_SHARED", "../shared")) / "data" / "Caltech-101"


@app.command()
def throughput(
    model: Annotated[Path, typer.Argument(help="ONNX file; default: cats-tiny.")] = asset("cats-tiny.onnx"),  # noqa: B008
    photos: Annotated[Path, typer.Option(help="Folder of photos.")] = PHOTOS,
    pairs: Annotated[int, typer.Option(help="Pairs of a round.", min=4)] = 48,
    rounds: Annotated[int, typer.Option(help="Measured rounds.", min=3)] = 7,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 2,
    output: Annotated[Path | None, typer.Option(help="Write the figures as JSON.", show_default=False)] = None,
) -> None:
    """Measure a table of photos and pure inference, interleaved."""
    files, _ = list_photos(photos)
    chosen = random.Random(0).sample(files, 2 * pairs)
    sizes = [image_size(path) for path in chosen]
    whole = Matcher(model, "onnxruntime", provider="cpu", threads=threads)
    single = Matcher(model, "onnxruntime", provider="cpu", threads=1)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "pairs.csv"
        rows = [f"{a.resolve()},{b.resolve()}" for a, b in zip(chosen[::2], chosen[1::2], strict=True)]
        table.write_text("\n".join(["a,b", *rows]) + "\n")
        ready = [(whole._prepare(a), whole._prepare(b)) for a, b in zip(chosen[::2], chosen[1::2], strict=True)]
        ways = {
            "pure inference": lambda: [whole._infer([pair], False) for pair in ready],
            "table, read ahead": lambda: list(run_pairs(whole, table, folders=Outputs())),
            "table, streams": lambda: list(run_pairs(single, table, folders=Outputs(), streams=threads)),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        note(f"{rounds} rounds of {pairs} pairs")
        for number in range(rounds + 1):
            for name, way in ways.items():
                time.sleep(0.2)
                start = time.perf_counter()
                way()
                if number:
                    times[name].append(1000 * (time.perf_counter() - start) / pairs)
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "threads": threads,
        "onnxruntime": onnxruntime.__version__,
        "model": model.name,
        "photos": f"{2 * pairs} of {photos.name}, median {np.median(np.prod(sizes, axis=1)) / 1e6:.2f} megapixels",
        "rounds": rounds,
        "pairs_per_round": pairs,
        "ms_a_pair": {name: median_interval(values) for name, values in times.items()},
        "to_pure_inference": {name: ratio_interval(v, times["pure inference"]) for name, v in times.items()},
    }
    print_json(result)
    if output is not None:
        write_text(output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    execute(app)
