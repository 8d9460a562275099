"""``cats triton``: a model repository for NVIDIA Triton."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cats.assets import find_model
from cats.core.console import execute, new_app, note
from cats.core.outputs import OutputPlan
from cats.serving.triton import MARK, model_files, write_repository

app = new_app()

EXAMPLES = """
Examples:

- `cats triton models best.onnx` a pair model, and best_points from the photos' files to points

- `cats triton models best.plan best.encoder.onnx best.e2e.onnx` an engine, a split model, an end-to-end one

- `cats triton models cats-tiny --cpu` on the CPU
"""


@app.command(epilog=EXAMPLES)
def main_command(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder to write: new, empty, or with --force of an earlier cats triton.", metavar="DIR"),
    ],
    models: Annotated[
        list[Path],
        typer.Argument(
            help="ONNX files of cats-export or cats-calibrate, and engines of cats-build.", metavar="MODEL..."
        ),
    ],
    max_batch: Annotated[
        int, typer.Option(help="Pairs of one run of the model at most, of ONNX files; engines say theirs.", min=1)
    ] = 8,
    max_delay_ms: Annotated[
        float, typer.Option(help="Milliseconds that a request waits for others to share its run.", min=0)
    ] = 2,
    instances: Annotated[int, typer.Option(help="Instances of each model on each device.", min=1)] = 1,
    cpu: Annotated[bool, typer.Option("--cpu", help="Run ONNX files on the CPU instead of the GPU.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder of an earlier cats triton.")] = False,
) -> None:
    """Write a model repository for NVIDIA Triton: each model, and one from photos to points."""
    found = [find_model(model) for model in models]
    OutputPlan(force=force).reads(*model_files(found)).writes_folder(folder, MARK).check()
    names = write_repository(folder, found, max_batch=max_batch, max_delay_ms=max_delay_ms, cpu=cpu, count=instances)
    note(f"wrote {folder}/: {', '.join(names)}; its README.md says how to start Triton with it")


def main() -> None:
    """Entry point."""
    execute(app)


if __name__ == "__main__":
    main()
