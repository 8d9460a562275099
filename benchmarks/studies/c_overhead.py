"""What libcats adds to ONNX Runtime: milliseconds of each call of the C library, and the overhead of a pair.

``cats_match`` at the model's own size is compared, in turn within each round, with ``cats_match_device`` on tensors
prepared beforehand, which is one run of the same session through IoBinding and nothing else. The overhead is the median
of the differences within a round, with the central half as spread. It does not depend on the model, but the noise of a
run does: it is measured on the model and, sharper, on one that only pools its inputs (256x256 images, grid 16). Calls
go through ctypes, which adds a few microseconds to each. Nothing else may run beside it.

Usage: python -m cats.benchmarks.studies.c_overhead
    [--model assets/cats-tiny.onnx] [--rounds 50] [--threads 2] [--output NAME.json]
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cats.benchmarks import libcats
from cats.benchmarks.record import describe_run, spread, write_record
from cats.core.console import execute, new_app, progress, stdout, table
from cats.core.files import write_text
from cats.core.metadata import KEY, Metadata, Preprocessing

app = new_app()
LIMIT_MS = 1.0
MATCH, ALONE = "cats_match, 256x256 RGB", "ONNX Runtime alone (cats_match_device)"


POOLING = """
<ir_version: 10, opset_import: ["": 18]>
pooling (float[N,3,256,256] image_a, float[N,3,256,256] image_b) => (float[N,2,16,16] flow, float[N,16,16] confidence) {
  a = MaxPool<kernel_shape=[16,16], strides=[16,16]>(image_a)
  b = MaxPool<kernel_shape=[16,16], strides=[16,16]>(image_b)
  flow = Slice(a, zero, two, one)
  blue = Slice(b, two, three, one)
  confidence = Squeeze(blue, one)
}
"""


def pooling_model(folder: Path) -> Path:
    """A pair model of which next to nothing is the model."""
    import onnx.parser

    model = onnx.parser.parse_model(POOLING)
    for number, name in enumerate(("zero", "one", "two", "three")):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([number], np.int64), name))
    metadata = Metadata("pair", {"backbone": "pooling"}, Preprocessing(), "fp32", opset=18, weights_sha256="0" * 64)
    onnx.helper.set_model_props(model, {KEY: metadata.to_json()})
    path = folder / "pooling.onnx"
    onnx.save(model, path)
    return path


def contestants(opened: libcats.CMatcher) -> dict[str, Callable[[], object]]:
    """Name -> call, all on one context; the first two are what is compared."""
    rng = np.random.default_rng(0)
    side, grid = (opened.info.image_height, opened.info.image_width), opened.info.grid
    small = [libcats.image(rng.integers(0, 256, (*side, 3), np.uint8)) for _ in range(2)]
    large = libcats.image(rng.integers(0, 256, (1080, 1920, 3), np.uint8))
    tensors = [opened.preprocess(picture)[None] for picture in small]
    flow, confidence = np.zeros((1, 2, grid, grid), np.float32), np.zeros((1, grid, grid), np.float32)
    pointers = (x.ctypes.data for x in (*tensors, flow, confidence))
    batch = libcats.DeviceBatch(ctypes.sizeof(libcats.DeviceBatch), *pointers, 1, None)
    batch.kept = (tensors, flow, confidence)
    out, call = np.empty((3, *side), np.float32), opened.library.call
    points, places = rng.uniform(0, side[1] - 1, (1000, 2)), np.empty((1000, 2))
    dense = np.empty((*side, 2), np.float32)

    def preprocess(picture: libcats.Image) -> Callable[[], object]:
        return lambda: call("cats_preprocess", opened.context, ctypes.byref(picture), out.ctypes.data, out.size)

    return {
        ALONE: lambda: call("cats_match_device", opened.context, ctypes.byref(batch)),
        MATCH: lambda: opened.match(*small),
        "cats_preprocess, 256x256": preprocess(small[0]),
        "cats_preprocess, 1920x1080": preprocess(large),
        "cats_transfer, 1000 points": lambda: call(
            "cats_transfer", opened.context, 0, points.ctypes.data, len(points), places.ctypes.data
        ),
        "cats_dense_flow, 256x256": lambda: call(
            "cats_dense_flow", opened.context, 0, 0, 0, 0, 0, dense.ctypes.data, dense.size
        ),
    }


def measure(calls: dict[str, Callable[[], object]], rounds: int, warm_up: int = 5) -> dict[str, np.ndarray]:
    """Milliseconds (rounds,) of each call, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    with progress() as bar:
        task = bar.add_task("rounds", total=rounds + warm_up)
        for number in range(rounds + warm_up):
            calls[MATCH]()  # what reads results needs one
            for name, call in calls.items():
                if "transfer" in name or "dense" in name:
                    calls[MATCH]()
                start = time.perf_counter()
                call()
                if number >= warm_up:
                    times[name].append((time.perf_counter() - start) * 1000)
            bar.advance(task)
    return {name: np.array(values) for name, values in times.items()}


def report(document: dict[str, Any], rows: list[list[str]]) -> str:
    """The figures as a page of Markdown."""
    lines = ["| call | median ms | p25 | p75 |", "|---|---:|---:|---:|", *(f"| {' | '.join(row)} |" for row in rows)]
    return (
        f"# Cost of libcats\n\n{document['date']}, {document['machine']}, "
        f"ONNX Runtime {document['versions']['onnxruntime']}, "
        f"{document['model']}, {document['rounds']} rounds: `python -m cats.benchmarks.studies.c_overhead`.\n\n"
        + "\n".join(lines)
        + "\n\nThe overhead of a pair, `cats_match` less ONNX Runtime alone, is measured on a model that only pools its"
        "\ninputs, 256x256; on a real one the noise of the runs hides it.\n"
    )


@app.command()
def main_command(
    model: Annotated[Path, typer.Option(help="Pair model.")] = Path("assets/cats-tiny.onnx"),
    rounds: Annotated[int, typer.Option(help="Rounds.", min=5)] = 50,
    threads: Annotated[int, typer.Option(help="CPU threads of ONNX Runtime.", min=1)] = 2,
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.", show_default=False)] = None,
) -> None:
    """Measure the calls of the C library and its overhead over ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        library = libcats.Library(libcats.build_library(Path(folder), "-O3"))
        opened = library.open(model, threads=threads)
        times = measure(contestants(opened), rounds)
        opened.close()
        opened = library.open(pooling_model(Path(folder)), threads=1)  # ONNX Runtime's waiting threads take a core else
        pooling = contestants(opened)
        small = measure({name: pooling[name] for name in (ALONE, MATCH)}, rounds)
        opened.close()
    figures = {name: spread(values) for name, values in times.items()}
    on_model, overhead = (spread(part[MATCH] - part[ALONE]) for part in (times, small))
    rows = [
        [name, *(f"{value[key]:.3f}" for key in ("median", "q25", "q75"))]
        for name, value in {**figures, "overhead on this model": on_model, "overhead of a pair": overhead}.items()
    ]
    stdout.print(table(f"libcats, {rounds} rounds, {threads} threads", ["call", "median ms", "p25", "p75"], rows))
    stdout.print(f"overhead {overhead['median']:.3f} ms, {'under' if overhead['median'] < LIMIT_MS else 'OVER'} 1 ms")
    if output is not None:
        document = {
            **describe_run("c_overhead", ["onnxruntime"], threads),
            "model": model.name,
            "rounds": rounds,
            "milliseconds": figures,
            "overhead_on_model_ms": on_model,
            "overhead_ms": overhead,
        }
        write_record(output, document)
        write_text(output.with_suffix(".md"), report(document, rows))


if __name__ == "__main__":
    execute(app)
