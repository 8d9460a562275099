"""``cats pull``: fetch a model from a hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from cats.core.console import CKPT, Force, execute, new_app, note, print_json, working
from cats.core.errors import InputError
from cats.core.files import atomic_path, sha256_file
from cats.core.hub import CHECKPOINTS, MODELS, fetch, hub_source, parse_hub_name
from cats.core.outputs import OutputPlan, make_folder
from cats.runtime.split import find_split

app = new_app(extra="hub")

EXAMPLES = """
Examples:

- `cats pull hf://user/repo` fetches the model into the cache and prints where it lies; `cats-run hf://user/repo a.jpg b.jpg` does so too

- `cats pull hf://user/repo@v1 -o models` copies it into a folder

- `cats pull hf://user/repo --ckpt` fetches what cats-export and cats-train --init take
"""  # noqa: E501


@app.command(name="pull", epilog=EXAMPLES)
def main_command(
    model: Annotated[str, typer.Argument(help="hf://user/repo[@revision][/file].", metavar="MODEL")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Copy the files into this folder.", metavar="DIR", show_default=False),
    ] = None,
    checkpoint: Annotated[bool, typer.Option(*CKPT, help="The checkpoint, not the ONNX file.")] = False,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print files, digests and commit as JSON.")] = False,
) -> None:
    """Fetch a model from a hub, checked against its digest; later commands find it in the cache, also offline."""
    name = parse_hub_name(model if ":" in model else f"hf://{model}")
    if name is None:
        raise InputError(f"{model} is no name on the hub: hf://user/repo[@revision][/file]")
    with working(f"fetching {name}"):
        first = fetch(name, CHECKPOINTS if checkpoint else MODELS)
    cached = list(find_split(first) or (first,))
    files = cached if output is None else [output / path.name for path in cached]
    if output is not None:
        make_folder(output)
        OutputPlan(force=force).writes(*files).check()
        for path, target in zip(cached, files, strict=True):
            with atomic_path(target) as temporary:
                shutil.copyfile(path, temporary)
    source = hub_source(first)
    note(f"fetched {source}")
    if as_json:
        listed = [{"file": str(path), "sha256": sha256_file(path)} for path in files]
        print_json({"source": source, "files": listed})
        return
    for path in files:
        typer.echo(str(path))


def main() -> None:
    """Entry point of ``python -m cats.runtime.commands.pull``."""
    execute(app)


if __name__ == "__main__":
    main()
