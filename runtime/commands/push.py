"""``cats push``: put a model on a hub, with a card that says what was measured."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from cats.assets import asset, find_model
from cats.core.console import CKPT, Force, execute, new_app, note, print_json, working
from cats.core.errors import InputError, ModelFileError, require
from cats.core.files import write_text
from cats.core.hub import HubName, asked_hub, parse_hub_name
from cats.core.metadata import Metadata, read_onnx_metadata
from cats.core.outputs import OutputPlan, make_folder
from cats.core.tables import read_points
from cats.runtime.document import model_document
from cats.runtime.draw import draw_match
from cats.runtime.matcher import Matcher
from cats.runtime.model_card import model_card
from cats.runtime.split import find_split
from cats.runtime.viewer import match_page

app = new_app(extra="hub")

CARD, PICTURE, PAGE = "README.md", "sample.png", "sample.html"

EXAMPLES = """
Examples:

- `cats push model.onnx hf://user/repo` uploads the model, its card and a sample; `--private` where nobody else is to see it

- `cats push model.onnx hf://user/repo --ckpt best.pt` with the checkpoint beside it, as .safetensors

- `cats push model.onnx hf://user/repo -o look` writes what would be uploaded into a folder, and uploads nothing
"""  # noqa: E501


def write_repository(
    folder: Path, model: Path, repo: str, *, checkpoint: Path | None = None, license: str | None = None
) -> list[Path]:
    """Write what a repository of a hub holds: model, card, a picture and a page of the demo photos matched by it.

    Args:
        folder: empty.
        model: ONNX file, or half of a split model.
        repo: ``user/repo``, for the card.
        checkpoint: written as ``.safetensors`` beside it.
        license: identifier of the weights' licence.

    Raises:
        ModelFileError: no ONNX file of this toolkit, or one that was changed since.
        CheckpointError, InputError: as :func:`cats.checkpoints.load_checkpoint`.
    """
    sources = list(find_split(model) or (model,))
    if any(path.suffix.lower() != ".onnx" for path in sources):
        raise ModelFileError(f"{model}: an ONNX file is pushed; an engine is code of one machine and is built there")
    metadata: Metadata = read_onnx_metadata(sources[0])
    if metadata.changed:
        raise ModelFileError(f"{sources[0]} was changed since it was exported: its card would say what is not so")
    files = [folder / path.name for path in sources]
    for path, target in zip(sources, files, strict=True):
        shutil.copyfile(path, target)
    if checkpoint is not None:
        files.append(_as_safetensors(checkpoint, folder))
    photos = [asset(name) for name in ("astronaut.jpg", "grace_hopper.jpg")]
    with Matcher(files[0]) as matcher:
        match = matcher.match(photos[0], photos[1], forward_backward=True)
        document = {**model_document(matcher), "file": files[0].name}
    draw_match(match).save(folder / PICTURE)
    points = read_points(asset("astronaut.json"))[:, :2]
    write_text(folder / PAGE, match_page(match, points=points, model=document))
    card = model_card(repo, metadata, files, picture=PICTURE, license=license)
    write_text(folder / CARD, card)
    return [*files, folder / PICTURE, folder / PAGE, folder / CARD]


def _as_safetensors(checkpoint: Path, folder: Path) -> Path:
    require("torch", extra="export", purpose=f"write {checkpoint} as .safetensors")
    checkpoints = require("cats.checkpoints", extra="export", purpose=f"write {checkpoint} as .safetensors")
    loaded = checkpoints.load_checkpoint(checkpoint)
    target = folder / f"{checkpoint.stem}.safetensors"
    checkpoints.save_checkpoint(target, loaded.model, metrics=loaded.metrics, training=loaded.training)
    return target


@app.command(name="push", epilog=EXAMPLES)
def main_command(
    model: Annotated[
        Path, typer.Argument(help="ONNX file of cats-export; of a split model either.", metavar="MODEL", readable=False)
    ],
    repo: Annotated[str, typer.Argument(help="hf://user/repo[@branch].", metavar="REPO")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            *CKPT, help="Checkpoint to upload beside it, as .safetensors.", metavar="FILE", show_default=False
        ),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(
            help="Licence of the weights, as the hub names it: apache-2.0, cc-by-4.0.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A repository made now is seen by you alone.")] = False,
    message: Annotated[str, typer.Option(help="Of the commit.", metavar="TEXT")] = "Upload with CATs toolkit",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write what would be uploaded into this folder, and upload nothing.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print commit and files as JSON.")] = False,
) -> None:
    """Upload a model to a hub, with a card, a picture and a page; a card that is there stays without --force.

    The account is that of `hf auth login`, or of HF_TOKEN.
    """
    name = parse_hub_name(repo if ":" in repo else f"hf://{repo}")
    if name is None or name.file is not None:
        raise InputError(f"{repo}: where to? hf://user/repo, or hf://user/repo@branch")
    given = find_model(checkpoint, ".pt") if checkpoint is not None else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with working("writing card and sample"):
            files = write_repository(folder, find_model(model), name.repo, checkpoint=given, license=license)
        if output is not None:
            targets = [output / path.name for path in files]
            make_folder(output)
            OutputPlan(force=force).reads(model, checkpoint).writes(*targets).check()
            for path, target in zip(files, targets, strict=True):
                shutil.copyfile(path, target)
            note(f"wrote {output}/, uploaded nothing")
            return
        with working(f"uploading to {name}"):
            commit, kept = upload(folder, name, private=private, message=message, replace_card=force)
    if kept:
        note(f"the {CARD} that is there stays; --force replaces it")
    pinned = HubName(name.repo, commit)
    note(f"uploaded {pinned}")
    if as_json:
        print_json({"source": str(pinned), "files": [path.name for path in files if not kept or path.name != CARD]})


def upload(folder: Path, name: HubName, *, private: bool, message: str, replace_card: bool) -> tuple[str, bool]:
    """Upload a folder as one commit; the commit, and whether a card that is there was kept.

    Raises:
        InputError: the hub refuses, or cannot be reached.
    """
    hub = require("huggingface_hub", extra="hub", purpose=f"upload to {name}")
    api: Any = hub.HfApi()
    try:
        api.create_repo(name.repo, private=private or None, exist_ok=True)
        if name.revision is not None:
            api.create_branch(name.repo, branch=name.revision, exist_ok=True)
        kept = not replace_card and api.file_exists(name.repo, CARD, revision=name.revision)
        done = api.upload_folder(
            repo_id=name.repo,
            folder_path=folder,
            revision=name.revision,
            commit_message=message,
            ignore_patterns=[CARD] if kept else None,
        )
    except Exception as error:
        said = asked_hub(str(name), error)
        if said is None:
            raise
        raise said from error
    return str(done.oid), kept


def main() -> None:
    """Entry point of ``python -m cats.runtime.commands.push``."""
    execute(app)


if __name__ == "__main__":
    main()
