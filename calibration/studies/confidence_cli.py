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

CLEAR = 0.1
"""By how much pairs of one kind must be surer than pairs of different kinds."""

LABELS = {
    "ece": "expected calibration error",
    "mean_error_px": "mean error, px at 256 x 256",
    "right": "share of right matches",
    "mean_confidence": "mean confidence",
    "others_confidence": "the same of pairs of different kinds",
    "ece_with_others": "calibration error with pairs of different kinds",
}

EXAMPLES = """
Examples:

- `cats fit-confidence cats.onnx --data categories:photos` writes cats.confidence.onnx here

- `cats fit-confidence cats.onnx --data willow:PF-WILLOW -o fitted.onnx --plot reliability.png`
"""


@app.command("fit-confidence", epilog=EXAMPLES)
def fit_and_write(
    model: Model,
    data: Annotated[
        str,
        typer.Option(help="Data set of annotated pairs, or categories:DIR.", metavar="KIND:DIR"),
    ],
    limit: Limit = 64,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write.", metavar="FILE", show_default="MODEL.confidence.onnx here"
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Reliability diagram: .png, .svg or .pdf.", metavar="FILE", show_default=False)
    ] = None,
    keep_temperature: Annotated[
        bool,
        typer.Option("--keep-temperature", help="Fit the probabilities alone: matches and verification stay."),
    ] = False,
    threads: Threads = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Fit the soft-argmax's temperature, and what probability of being right each confidence stands for."""
    from cats.calibration.calibrate import load_float_model
    from cats.calibration.studies.confidence import apply_fit, fit_confidence, plot_reliability
    from cats.calibration.studies.known_pairs import open_known_pairs

    quiet_pillow()
    model = find_model(model)
    destination = output or Path(f"{model.name.removesuffix('.onnx')}.confidence.onnx")
    outputs = OutputPlan(force=force).reads(model).reads_data(data)
    outputs.writes(destination, suffixes=(".onnx",)).writes(plot).check()
    source = load_float_model(model, ("pair",))
    metadata = source.metadata
    pairs = open_known_pairs(data, metadata.grid[0], limit)
    fit = fit_confidence(source, pairs, keep_temperature=keep_temperature, threads=threads)
    if plot is not None:
        plot_reliability(fit, plot)
    write_model(*apply_fit(source, fit, pairs, threads=threads), destination)
    if as_json:
        print_json(fit.to_dict())
    else:
        rows = [[LABELS[name], f"{value:.4f}", f"{fit.after[name]:.4f}"] for name, value in fit.before.items()]
        stdout.print(table(f"{fit.held_out} held-out pairs, {pairs.source}", ["", "before", "after"], rows))
    note(f"{destination}: temperature {fit.old_temperature:g} -> {fit.temperature:g}")
    if not pairs.annotated:
        note(
            "the matches were judged by the way there and back: two wrong ways that agree count as right, so that the "
            "probabilities are upper bounds; annotated pairs (KIND:DIR) say more"
        )
    others = fit.after.get("others_confidence")
    if others is None:
        note("warning: photos of one kind alone: what the confidence says of pairs that do not match was not checked")
    elif others > fit.after["mean_confidence"] - CLEAR:
        note(
            f"warning: matches between different kinds of objects get {others:.2f}, those of one kind "
            f"{fit.after['mean_confidence']:.2f} on average: this confidence does not tell them apart"
        )


if __name__ == "__main__":
    execute(app)
