"""``cats web``: the page with the model in it, as static files for any web server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cats.assets import find_model
from cats.core.console import execute, new_app, note, stderr
from cats.core.images import quiet_pillow
from cats.core.outputs import OutputPlan
from cats.core.tables import read_pairs
from cats.serving.web import SETTINGS, read_samples, write_site

app = new_app()

EXAMPLES = """
Examples:

- `cats web site` writes the page with cats-tiny into site/; `python -m http.server -d site` shows it

- `cats web site --model best.onnx --pairs samples.csv` your model, your sample pairs

- `cats web site --no-webgpu` without the build for WebGPU: 27 MB instead of 54
"""


@app.command(epilog=EXAMPLES)
def main_command(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder to write: new, empty, or with --force of an earlier cats web.", metavar="DIR"),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            help="ONNX file of cats-export for pairs, fp32 or int8. Default: cats-tiny.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="CSV with columns a,b and optionally points and label: the page's sample pairs. Default: the shipped "
            "photos.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    webgpu: Annotated[bool, typer.Option(help="Include ONNX Runtime Web's build for WebGPU (27 MB).")] = True,
    service_worker: Annotated[
        bool, typer.Option(help="Include a service worker that allows threads where the server sends no headers.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder of an earlier cats web.")] = False,
) -> None:
    """Write the page as static files: the model runs in the browser, photos never leave the machine."""
    quiet_pillow()
    found = find_model(model or "cats-tiny")
    photos = [photo for row in read_pairs(pairs) for photo in (row.a, row.b)] if pairs is not None else []
    OutputPlan(force=force).reads(found, pairs, *photos).writes_folder(folder, SETTINGS).check()
    samples = read_samples(pairs) if pairs is not None else None
    with stderr.status("writing the page"):
        size = write_site(folder, found, samples=samples, webgpu=webgpu, threads=service_worker)
    note(f"wrote {folder}/, {size / 1e6:.0f} MB; to see it: python -m http.server -d {folder}")


def main() -> None:
    """Entry point."""
    execute(app)


if __name__ == "__main__":
    main()
