"""``cats compare``: two models on photos without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cats.core.console import execute, new_app, note, plain, print_json, progress, stdout, table
from cats.core.files import write_text
from cats.core.images import quiet_pillow
from cats.core.outputs import OutputPlan
from cats.core.photos import pair_photos
from cats.evaluation.comparison import CONSISTENT, Comparison, compare_models
from cats.evaluation.comparison_page import comparison_page, draw_difference, stack_pictures
from cats.runtime.commands.options import (
    MANY,
    MAX_MEGAPIXELS,
    OUTPUTS,
    Backend,
    Device,
    Force,
    Json,
    MaxMegapixels,
    Precision,
    Provider,
    Threads,
    engine_options,
    note_model,
    number_option,
    path_option,
)
from cats.runtime.match_files import PICTURES, save_picture
from cats.runtime.matcher import Matcher

app = new_app()

EXAMPLES = """
Examples:

- `cats compare cats-tiny best.onnx --images photos/` how far apart they are, and which agrees more with itself

- `cats compare best.onnx best.int8.onnx --images photos/ --html report.html -o worst.jpg` with the worst pairs
"""


@app.command(name="compare", epilog=EXAMPLES)
def main_command(
    first: Annotated[
        Path, typer.Argument(help="ONNX file, .plan, or a shipped model: cats-tiny.", metavar="A", readable=False)
    ],
    second: Annotated[Path, typer.Argument(help="The model to compare with it.", metavar="B", readable=False)],
    images: Annotated[
        Path,
        typer.Option(
            help="Folder of photos; each is matched to the next one of its own sub-folder.",
            metavar="DIR",
            readable=False,
        ),
    ],
    limit: Annotated[int, number_option(help="Pairs at most, spread evenly over the list.", panel=MANY, min=1)] = 64,
    worst: Annotated[int, number_option(help="Pairs of the picture and the report.", panel=OUTPUTS, min=1)] = 4,
    output: Annotated[
        Path | None,
        path_option("--output", "-o", help="Picture of the pairs that differ most (.png, .jpg, .webp).", panel=OUTPUTS),
    ] = None,
    html: Annotated[
        Path | None, path_option(help="One HTML file with the report and its pictures.", panel=OUTPUTS)
    ] = None,
    as_json: Json = False,
    force: Force = False,
    backend: Backend = None,
    provider: Provider = None,
    device: Device = None,
    precision: Precision = None,
    threads: Threads = None,
    max_megapixels: MaxMegapixels = MAX_MEGAPIXELS,
) -> None:
    """Compare two models on photos without labels: how far apart their matches are, how each agrees with itself."""
    quiet_pillow()
    plan = OutputPlan(force=force).reads(first, second, images)
    plan.writes(output, suffixes=PICTURES).writes(html, suffixes=(".html", ".htm")).check()
    pairs = pair_photos(images, limit)
    settings = engine_options(
        backend, max_megapixels, device=device, provider=provider, precision=precision, threads=threads
    )
    with Matcher(first, **settings) as one, Matcher(second, **settings) as other:
        for matcher, model in ((one, first), (other, second)):
            note_model(matcher, model)
        with progress() as bar:
            task = bar.add_task("matching, pairs", total=len(pairs))
            names = _names(first, second)
            found = compare_models((one, other), pairs, names=names, on_pair=lambda: bar.advance(task))
        if output is not None or html is not None:
            shown = [(pair, draw_difference(pair, found.names, (one, other))) for pair in found.worst(worst)]
            if output is not None:
                save_picture(stack_pictures([picture for _, picture in shown]), output)
                note(f"wrote {output}")
            if html is not None:
                write_text(html, comparison_page(found, shown, str(images)))
                note(f"wrote {html}")
    if as_json:
        print_json(found.to_dict())
    else:
        _show(found, images, worst)


def _names(first: Path, second: Path) -> tuple[str, str]:
    """File names, with their folders where they are the same."""
    return (first.name, second.name) if first.name != second.name else (str(first), str(second))


def _show(found: Comparison, images: Path, worst: int) -> None:
    figures = found.to_dict()
    difference = figures["difference"]
    stdout.print(Text(plain(f"{' against '.join(found.names)}: {len(found.pairs)} pairs of {images}")), soft_wrap=True)
    rows = [
        ["median", f"{difference['median_px']:.2f}"],
        ["99th percentile", f"{difference['p99_px']:.2f}"],
        ["largest", f"{difference['max_px']:.2f}"],
        ["points over 1 px apart", f"{difference['moved']:.1%}"],
    ]
    stdout.print(table("", ["how far apart", "px at 256 x 256"], rows))
    rows = [
        [model["name"], f"{model['way_back_px']:.2f}", f"{model['consistent']:.1%}", f"{model['confidence']:.3f}"]
        for model in figures["models"]
    ]
    columns = ["agreement, a -> b -> a", "median px", f"within {CONSISTENT:.0%} of the side", "confidence"]
    stdout.print(table("", columns, rows))
    rows = [
        [f"{pair.a.name} {pair.b.name}", f"{pair.p99:.2f}", *(f"{row.mean():.2f}" for row in pair.way_back)]
        for pair in found.worst(worst)
    ]
    stdout.print(table("", ["pairs that differ most", "p99 px", "way back, A", "B"], rows))


def main() -> None:
    """Entry point of ``python -m cats.evaluation.compare_cli``."""
    execute(app)


if __name__ == "__main__":
    main()
