"""How far OpenVINO's bfloat16 moves the flow and the PCK of models with real weights, on PF-WILLOW and the demo photos.

The exported file runs in OpenVINO in float32 and in bfloat16 on the same CPU, which must compute in it. Distances are
in pixels of a 256 x 256 image, over all cells of all pairs. Speed is measured by ``cats-bench``.

Usage: python benchmarks/bf16_accuracy.py [--model cats-tiny --model lite0] [--output benchmarks/results/NAME.json]
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cats.benchmarks.exports import Exports
from cats.benchmarks.models import load_model
from cats.console import execute, new_app, note, print_json
from cats.data import open_dataset
from cats.evaluate import evaluate
from cats.export.pairs import demo_pairs
from cats.files import write_text
from cats.runtime.backends.openvino import OpenVinoBackend
from cats.runtime.hardware import cpu_features, cpu_name
from cats.runtime.images import ImageSource, preprocess, read_image

sys.path.append(str(Path(__file__).resolve().parent))

from fp16_accuracy import EveryNth, pixels

app = new_app()
WILLOW = Path(os.environ.get("CATS_SHARED", "../shared")) / "data" / "PF-WILLOW"


class Keeping:
    """A matcher in OpenVINO that keeps its flows, in order."""

    def __init__(self, path: Path, precision: str, threads: int) -> None:
        self.backend = OpenVinoBackend(path, precision=precision, threads=threads)
        self.flows: list[Any] = []

    def match(self, a: ImageSource, b: ImageSource) -> Any:
        """Flow (2, G, G) in cells, a -> b."""
        images = (preprocess(read_image(image), self.backend.metadata.preprocessing)[None] for image in (a, b))
        outputs = self.backend.run(dict(zip(("image_a", "image_b"), images, strict=True)))
        self.flows.append(np.asarray(outputs["flow"][0], np.float32))
        return self.flows[-1]


@app.command()
def main_command(
    model: Annotated[list[str] | None, typer.Option(help="Checkpoint or name, as of cats-bench.")] = None,
    data: Annotated[str, typer.Option(help="Annotated pairs KIND:DIR.")] = f"willow:{WILLOW}",
    every: Annotated[int, typer.Option(help="Take every n-th pair.", min=1)] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 2,
    output: Annotated[Path | None, typer.Option(help="Write the figures as JSON.", show_default=False)] = None,
) -> None:
    """Measure flow drift and PCK of bfloat16 against float32."""
    pairs = EveryNth(open_dataset(data), every)
    found: dict[str, Any] = {}
    for name in model or ["cats-tiny", "lite0"]:
        note(name)
        with tempfile.TemporaryDirectory() as folder:
            path = Exports(load_model(name).model, Path(folder)).pair()
            matchers = {precision: Keeping(path, precision, threads) for precision in ("fp32", "bf16")}
        figures: dict[str, Any] = {}
        for matcher in matchers.values():
            for a, b in demo_pairs().images():
                matcher.match(a, b)
        figures["demo photos"] = pixels(*(matchers[kind].flows for kind in ("bf16", "fp32")))
        pck = {}
        for kind, matcher in matchers.items():
            matcher.flows.clear()
            pck[kind] = round(evaluate(matcher, pairs, ("corrected",), (0.1,)).pck(0.1), 3)
        figures["pairs"] = pixels(*(matchers[kind].flows for kind in ("bf16", "fp32")))
        figures["pck@0.1 corrected"] = {**pck, "drift": round(pck["bf16"] - pck["fp32"], 3)}
        found[name] = figures
    result = {
        "date": datetime.date.today().isoformat(),
        "cpu": f"{cpu_name()} ({', '.join(cpu_features())})",
        "data": f"{len(pairs)} pairs, every {every}. of {data.partition(':')[0]}",
        "tolerance_px": 1.0,
        "models": found,
    }
    print_json(result)
    if output is not None:
        write_text(output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    execute(app)
