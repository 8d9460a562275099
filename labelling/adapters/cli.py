"""``cats label-studio``: the labeller as a machine learning backend of Label Studio."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cats.core.console import execute, new_app, note
from cats.core.errors import InputError, require
from cats.core.images import quiet_pillow
from cats.labelling.adapters.label_studio import make_app
from cats.labelling.adapters.single import PhotoLabeller
from cats.labelling.formats.label_studio import label_config

app = new_app(extra="serve")

EXAMPLES = """
Examples:

- `cats label-studio refs/refs.json --images /data/photos` then add http://127.0.0.1:9090 as a model in the project's
  settings

- `cats label-studio refs/refs.json --images /data/photos --print-config` prints a labelling interface for them
"""


@app.command(epilog=EXAMPLES)
def main_command(
    references: Annotated[Path, typer.Argument(help="Label file of one to ten photos.", metavar="REFERENCES")],
    images: Annotated[
        Path,
        typer.Option(
            help="Folder of photos: Label Studio's local storage or media folder, from which photos of tasks are read.",
            metavar="DIR",
            show_default=False,
        ),
    ],
    root: Annotated[
        Path | None,
        typer.Option(help="Folder of the photos that REFERENCES names. Default: where it lies.", metavar="DIR"),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="ONNX file of cats-export, or .plan of cats-build; a split one is fastest. Default: cats-tiny.",
            metavar="FILE",
        ),
    ] = None,
    min_probability: Annotated[
        float, typer.Option(help="Points less likely to be right are not labelled.", min=0, max=1)
    ] = 0.5,
    host: Annotated[
        str, typer.Option(help="Address to listen on; it asks for no password.", metavar="ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.", min=0, max=65535)] = 9090,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print a labelling interface for the project (XML) and stop.")
    ] = False,
) -> None:
    """Answer Label Studio's requests for predictions with labels carried from a few photos."""
    quiet_pillow()
    if not images.is_dir():
        raise InputError(f"{images} is not a folder: give the one from which Label Studio takes its photos")
    labeller = PhotoLabeller(references, root=root, model=model, min_probability=min_probability)
    if print_config:
        typer.echo(label_config(labeller.references.categories), nl=False)
        return
    uvicorn = require("uvicorn", extra="serve", purpose="answer Label Studio")
    note(f"listening on http://{host}:{port}; Ctrl-C ends it")
    uvicorn.run(make_app(labeller, images), host=host, port=port, log_level="warning")


def main() -> None:
    """Entry point of ``cats label-studio`` by itself."""
    execute(app)


if __name__ == "__main__":
    main()
