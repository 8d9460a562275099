"""``cats convert``: a checkpoint in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cats.assets import find_model
from cats.core.console import Force, execute, new_app, note
from cats.core.errors import InputError
from cats.core.outputs import OutputPlan

app = new_app(extra="export")

EXAMPLES = """
Examples:

- `cats convert best.pt -o best.safetensors` for sharing: others load it without unpickling anything

- `cats convert authors/ -o cats.safetensors --weights fp16-storage` the authors' folder, weights as float16
"""


@app.command(name="convert", epilog=EXAMPLES)
def main_command(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="best.pt, .safetensors, cats-tiny, hf://user/repo, the authors' folder or model_best.pth.",
            metavar="CHECKPOINT",
            readable=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="New file: .safetensors, or .pt as torch.save writes it.", metavar="FILE"),
    ],
    weights: Annotated[
        str, typer.Option(help="fp32, or fp16-storage: half the size, computed in float32.", metavar="NAME")
    ] = "fp32",
    hyperpixels: Annotated[
        str | None,
        typer.Option(
            help="Ids of hyperpixels, as 0,8,20: of an authors' file without args.pkl.",
            metavar="IDS",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Write a checkpoint, ours or the authors', as .safetensors or .pt, with configuration and metrics."""
    from cats.backbones import parse_hyperpixels
    from cats.checkpoints import load_checkpoint, save_checkpoint, weights_sha256

    if weights not in ("fp32", "fp16-storage"):
        raise InputError(f"--weights {weights}: choose fp32 or fp16-storage")
    file = find_model(checkpoint, ".pt")
    OutputPlan(force=force).reads(file).writes(output, suffixes=(".safetensors", ".pt")).check()
    loaded = load_checkpoint(file, hyperpixels=parse_hyperpixels(hyperpixels) if hyperpixels else None)
    save_checkpoint(
        output, loaded.model, metrics=loaded.metrics, training=loaded.training, half=weights == "fp16-storage"
    )
    note(f"wrote {output}: {loaded.model.config.backbone}, weights {weights_sha256(loaded.model)[:12]}")


def main() -> None:
    """Entry point of ``python -m cats.export.convert``."""
    execute(app)


if __name__ == "__main__":
    main()
