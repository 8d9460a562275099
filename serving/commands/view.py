"""``cats view``: a match as one file to be sent by mail."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from cats.assets import find_model
from cats.core.console import Force, execute, new_app, note
from cats.core.files import write_text
from cats.core.images import quiet_pillow
from cats.core.metadata import read_onnx_metadata, trust_warning
from cats.core.outputs import OutputPlan
from cats.core.tables import parse_points
from cats.runtime.document import model_document
from cats.runtime.matcher import Matcher
from cats.runtime.split import find_split
from cats.runtime.viewer import match_page
from cats.serving.web import with_probabilities_file

app = new_app()

EXAMPLES = """
Examples:

- `cats view a.jpg b.jpg` writes match.html, which any browser opens from disk

- `cats view a.jpg b.jpg -o shoes.html --points heel.csv --model best.onnx`
"""


@app.command(epilog=EXAMPLES)
def main_command(
    a: Annotated[Path, typer.Argument(help="Image a.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="Image b.", metavar="B")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.", metavar="FILE")] = Path("match.html"),
    model: Annotated[
        Path | None,
        typer.Option(
            help="ONNX file of cats-export, or .plan of cats-build. Default: cats-tiny.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(
            help="Points of a to show at first, in its pixels: JSON [[x, y], ...], CSV x,y, or x,y;x,y;... itself.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Match image A to image B and write one HTML page that holds photos and match: no model, no network.

    Points are clicked or dragged in A and seen in B, as in the page of cats web. Where the model is an ONNX file for
    pairs, the page holds its probabilities too; else the heat layer is as wide as the confidence says. Photos are
    stored smaller and without EXIF data.
    """
    quiet_pillow()
    OutputPlan(force=force).reads(a, b, model, points).writes(output, suffixes=(".html", ".htm")).check()
    chosen = parse_points(str(points), Path())[:, :2] if points is not None else None
    file = find_model(model or "cats-tiny")
    with tempfile.TemporaryDirectory() as folder:
        opened = file
        if find_split(file) is None and file.suffix == ".onnx" and read_onnx_metadata(file).kind == "pair":
            opened = Path(folder, file.name)
            with_probabilities_file(file, opened)
        with Matcher(opened) as matcher:
            warning = trust_warning(matcher.metadata, file)
            if warning:
                note(warning)
            match = matcher.match(a, b, forward_backward=True)
            document = {**model_document(matcher), "file": str(file)}
    if chosen is not None:
        match.transfer(chosen)  # refuses points outside a
    write_text(output, match_page(match, names=(a.name, b.name), points=chosen, model=document))
    note(f"wrote {output}, {output.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    """Entry point."""
    execute(app)


if __name__ == "__main__":
    main()
