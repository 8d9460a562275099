"""How far OpenVINO's bfloat16 moves the flow and the PCK of models with real weights, on PF-WILLOW and the demo photos.

The exported file runs in OpenVINO in float32, in bfloat16 and with that in the aggregator alone, on the same CPU, which
must compute in it. Distances are in pixels of a 256 x 256 image, over all cells of all pairs. Speed is measured by
``cats-bench``.

Models are those of ``fp16_accuracy.py``.

Usage: python -m cats.benchmarks.studies.bf16_accuracy [--model cats-tiny ...] [--output benchmarks/results/NAME.json]
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cats.benchmarks.exports import FOR_CPU, OURS, Exports
from cats.benchmarks.record import SHARED, describe_run, write_record
from cats.benchmarks.studies.fp16_accuracy import MODELS, EveryNth, models_named, pixels
from cats.core.console import execute, new_app, note, print_json
from cats.core.images import ImageSource, preprocess, read_image
from cats.core.protocols import OneByOne, PairFlow
from cats.data import open_dataset
from cats.evaluation.evaluate import evaluate
from cats.export.pairs import demo_pairs
from cats.runtime.backends.openvino import PRECISIONS, OpenVinoBackend

app = new_app()


class Keeping(OneByOne):
    """A matcher in OpenVINO that keeps its flows, in order."""

    def __init__(self, path: Path, precision: str, threads: int) -> None:
        self.backend = OpenVinoBackend(path, precision=precision, threads=threads)
        self.flows: list[Any] = []

    def match(self, a: ImageSource, b: ImageSource) -> PairFlow:
        """Flow (2, G, G) in cells, a -> b."""
        images = (preprocess(read_image(image), self.backend.metadata.preprocessing)[None] for image in (a, b))
        outputs = self.backend.run(dict(zip(("image_a", "image_b"), images, strict=True)))
        self.flows.append(np.asarray(outputs["flow"][0], np.float32))
        return PairFlow(self.flows[-1])


@app.command()
def main_command(
    model: Annotated[list[str] | None, typer.Option(help="Beginning of a model's name. Default: all.")] = None,
    data: Annotated[str, typer.Option(help="Annotated pairs KIND:DIR.")] = f"willow:{SHARED / 'data' / 'PF-WILLOW'}",
    every: Annotated[int, typer.Option(help="Take every n-th pair.", min=1)] = 3,
    for_cpu: Annotated[bool, typer.Option("--for-cpu", help="Export as cats-export --for cpu.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 2,
    output: Annotated[Path | None, typer.Option(help="Write the figures as JSON.", show_default=False)] = None,
) -> None:
    """Measure flow drift and PCK of bfloat16 against float32."""
    chosen = models_named(model or [])
    pairs = EveryNth(open_dataset(data), every)
    found: dict[str, Any] = {}
    for name in chosen:
        note(name)
        with tempfile.TemporaryDirectory() as folder:
            path = Exports(MODELS[name](), Path(folder)).pair(FOR_CPU if for_cpu else OURS)
            matchers = {precision: Keeping(path, precision, threads) for precision in PRECISIONS}
        figures: dict[str, Any] = {}
        for kind, matcher in matchers.items():
            for a, b in demo_pairs().images():
                matcher.match(a, b)
            demo = matcher.flows[:]
            matcher.flows.clear()
            pck = round(evaluate(matcher, pairs, ("corrected",), (0.1,)).pck(0.1), 3)
            figures[kind] = {"runs on": matcher.backend.describe(), "pck@0.1": pck}
            if kind == "fp32":
                reference = demo, matcher.flows, pck
                continue
            figures[kind] |= {
                "pck drift": round(pck - reference[2], 3),
                "demo photos": pixels(demo, reference[0]),
                "pairs": pixels(matcher.flows, reference[1]),
            }
        found[name] = figures
    result = {
        **describe_run("bf16_accuracy", ["openvino"], threads),
        "data": f"{len(pairs)} pairs, every {every}. of {data.partition(':')[0]}",
        "exported": "for cpu" if for_cpu else "for any",
        "protocol": "corrected",
        "tolerance_px": 1.0,
        "models": found,
    }
    print_json(result)
    if output is not None:
        write_record(output, result)


if __name__ == "__main__":
    execute(app)
