"""A table of photos against pure inference: what reading costs on top of the model, per pair, in ONNX Runtime.

Photos are matched as ``cats-run --pairs`` does it: read, decoded, resized and matched, in its default streams. Pure
inference is the same model on inputs that are ready, one pair at a time, on all threads. Both run in turns; nothing
else may run beside them.

Usage: python -m cats.benchmarks.studies.throughput [MODEL.onnx] [--photos DIR] [--output NAME.json]
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cats.assets import asset
from cats.benchmarks.record import SHARED, describe_run, timed, write_record
from cats.benchmarks.statistics import interleave, median_interval, ratio_interval
from cats.core.console import execute, new_app, note, print_json
from cats.core.images import image_size, preprocess, read_image
from cats.core.photos import list_photos
from cats.runtime import Matcher
from cats.runtime.match_files import Outputs, run_pairs

app = new_app()


@app.command()
def throughput(
    model: Annotated[Path, typer.Argument(help="ONNX file; default: cats-tiny.")] = asset("cats-tiny.onnx"),  # noqa: B008
    photos: Annotated[Path, typer.Option(help="Folder of photos.")] = SHARED / "data" / "Caltech-101",
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

    def prepare(photo: Path) -> np.ndarray:
        return preprocess(read_image(photo), whole.metadata.preprocessing)[None]

    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "pairs.csv"
        rows = [f"{a.resolve()},{b.resolve()}" for a, b in zip(chosen[::2], chosen[1::2], strict=True)]
        table.write_text("\n".join(["a,b", *rows]) + "\n")
        ready = [{"image_a": prepare(a), "image_b": prepare(b)} for a, b in zip(chosen[::2], chosen[1::2], strict=True)]
        ways = {
            "pure inference": lambda: [whole.backend.run(feeds) for feeds in ready],
            "table, read ahead": lambda: list(run_pairs(whole, table, folders=Outputs())),
            "table, streams": lambda: list(run_pairs(single, table, folders=Outputs(), streams=threads)),
        }
        note(f"{rounds} rounds of {pairs} pairs")
        times = interleave({name: timed(way, per=pairs) for name, way in ways.items()}, rounds, warm_up=1)
    result: dict[str, Any] = {
        **describe_run("throughput", ["onnxruntime"], threads),
        "model": model.name,
        "photos": f"{2 * pairs} of {photos.name}, median {np.median(np.prod(sizes, axis=1)) / 1e6:.2f} megapixels",
        "rounds": rounds,
        "pairs_per_round": pairs,
        "ms_a_pair": {name: median_interval(values) for name, values in times.items()},
        "to_pure_inference": {name: ratio_interval(v, times["pure inference"]) for name, v in times.items()},
    }
    print_json(result)
    if output is not None:
        write_record(output, result)


if __name__ == "__main__":
    execute(app)
