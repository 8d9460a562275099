"""``cats divergence``: the first node where two precisions of one model part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cats.assets import find_model
from cats.calibration.options import AsJson, Data, Images, Limit, Pairs, Split, Threads, open_photos
from cats.core.console import execute, new_app, note, print_json
from cats.core.errors import VerificationError
from cats.core.images import quiet_pillow

app = new_app(extra="calibrate")

EXAMPLES = """
Examples:

- `cats divergence cats.onnx cats.fp16.onnx` names the first node where the two part, on the demo photos

- `cats divergence cats.onnx cats.int8.onnx --images photos/ --tolerance 0.5` on your own photos

Exit status: 0 they do not part; 1 they part; 2 bad input.
"""


@app.command(epilog=EXAMPLES)
def divergence(
    a: Annotated[Path, typer.Argument(help="The more exact file.", metavar="A.onnx")],
    b: Annotated[Path, typer.Argument(help="The other file of the same model.", metavar="B.onnx")],
    images: Images = None,
    pairs: Pairs = None,
    data: Data = None,
    split: Split = None,
    limit: Limit = 64,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Relative error at which they part.", show_default="0.3 quantized, 0.03 else"),
    ] = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Name the first node where two precisions of one model part, on photos or the two demo photos."""
    from cats.calibration.studies.divergence import find_divergence, percent, print_walk
    from cats.data.photo_pairs import demo_photos

    quiet_pillow()
    a, b = find_model(a), find_model(b)
    photos = open_photos(images, pairs, data, split) if images or pairs or data or split else None
    chosen = demo_photos() if photos is None else photos.spread(limit)
    found = find_divergence(a, b, chosen, threshold=tolerance, threads=threads)
    if as_json:
        print_json(found.to_dict())
    else:
        print_walk(found, f"{a} and {b}")
    if found.first is not None:
        item = found.first
        raise VerificationError(
            f"{a} and {b} part at node {item.node}, module {item.module or 'of the graph itself'}: relative error "
            f"{percent(item.relative)}, threshold {percent(found.threshold)}"
        )
    note(f"no divergence: no relative error beyond {percent(found.threshold)} in {len(found.nodes)} values")


if __name__ == "__main__":
    execute(app)
