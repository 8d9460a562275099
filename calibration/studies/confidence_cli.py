"""``cats fit-confidence``: what probability of being right each confidence stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cats.assets import find_model
from cats.calibration.options import AsJson, Limit, Model, Threads
from cats.core.console import Force, execute, new_app, note, print_json, stdout, table
from cats.core.images import quiet_pillow
from cats.core.metadata import write_model
from cats.core.outputs import OutputPlan

app = new_app(extra="calibrate")

EXAMPLES = """
Examples:

- `cats fit-confidence cats.onnx --data categories:photos` writes cats.confidence.onnx here

- `cats fit-confidence cats.onnx --data willow:PF-WILLOW -o fitted.onnx --plot reliability.png`
"""


@app.command("fit-confidence", epilog=EXAMPLES)
def fit_and_write(
    model: Model,
    data: Annotated[
        str, typer.Option(help="Pairs with known flow: annotated KIND:DIR, or categories:DIR.", metavar="KIND:DIR")
    ],
    limit: Limit = 64,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write.", show_default="MODEL.confidence.onnx here"),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Reliability diagram: .png, .svg or .pdf.", show_default=False)
    ] = None,
    threads: Threads = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Fit the soft-argmax's temperature, and what probability of being right each confidence stands for."""
    from cats.calibration.calibrate import load_float_model
    from cats.calibration.studies.confidence import fit_confidence, plot_reliability, with_confidence
    from cats.calibration.studies.known_pairs import known_pairs

    quiet_pillow()
    model = find_model(model)
    destination = output or Path(f"{model.name.removesuffix('.onnx')}.confidence.onnx")
    outputs = OutputPlan(force=force).reads(model).reads_data(data)
    outputs.writes(destination, suffixes=(".onnx",)).writes(plot).check()
    source = load_float_model(model)
    metadata = source.metadata
    fit_on, held_out, what = known_pairs(data, metadata.grid[0], metadata.preprocessing.size[0], limit)
    fit = fit_confidence(source, fit_on, held_out, what, threads=threads)
    if plot is not None:
        plot_reliability(fit, plot)
    write_model(*with_confidence(source, fit), destination)
    if as_json:
        print_json(fit.to_dict())
    else:
        rows = [[name, f"{fit.before[name]:.4f}", f"{fit.after[name]:.4f}"] for name in fit.before]
        stdout.print(table(f"{fit.held_out} held-out pairs, {what}", ["", "before", "after"], rows))
    note(f"{destination}: temperature {fit.old_temperature:g} -> {fit.temperature:g}")


if __name__ == "__main__":
    execute(app)
