"""``cats-export``: a checkpoint to a verified ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cats.console import execute, new_app, note, print_json
from cats.errors import InputError, VerificationError

app = new_app()

EXAMPLES = """
Examples:

- `cats-export --ckpt best.pt` writes best.onnx here and compares it with PyTorch

- `cats-export --ckpt authors/spair -o cats.onnx --batch 1` reads the authors' folder; a fixed batch

- `cats-export --ckpt model_best.pth --hyperpixels 2,17,21,22,25,26,28` without args.pkl
"""


@app.command(epilog=EXAMPLES)
def main_command(
    ckpt: Annotated[Path, typer.Option(help="best.pt, or the authors' folder or model_best.pth.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write. Default: the checkpoint's name here.", show_default=False),
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX operator set, 18 to 23.")] = 18,
    batch: Annotated[str, typer.Option(help="dynamic, or a fixed number of pairs.")] = "dynamic",
    hyperpixels: Annotated[
        str | None,
        typer.Option(help="Ids of an authors' file without args.pkl, as 0,8,20.", show_default=False),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Verify on the pairs of a CSV with columns a,b.", show_default=False)
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Verify on photos of a folder, each with the next.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the file's metadata as JSON.")] = False,
) -> None:
    """Export a CATs checkpoint to ONNX and compare the file with PyTorch."""
    from cats.checkpoints import load_checkpoint
    from cats.export.export import export_onnx
    from cats.export.pairs import pairs_from_csv, pairs_from_folder
    from cats.export.verify import print_parity

    if pairs is not None and images is not None:
        raise InputError("give --pairs or --images, not both")
    source = pairs_from_csv(pairs) if pairs else pairs_from_folder(images) if images else None
    checkpoint = load_checkpoint(ckpt, hyperpixels=_ids(hyperpixels))
    path = output or Path(f"{(ckpt.resolve() if ckpt.is_dir() else ckpt).stem}.onnx")
    report = export_onnx(checkpoint.model, path, opset=opset, batch=_batch(batch), pairs=source)
    assert report.parity is not None  # verification is on
    print_parity(report.parity, str(path))
    note(f"{path}: {path.stat().st_size / 1e6:.1f} MB, opset {opset}, batch {batch}")
    if as_json:
        print_json(report.metadata.to_dict())
    if not report.parity.passed:
        raise VerificationError(f"{path} differs from PyTorch by more than {report.parity.tolerance_px} px (p99)")


def _ids(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.strip("[] ").split(","))
    except ValueError:
        raise InputError(f"--hyperpixels {text!r} is not a list of numbers such as 0,8,20") from None


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--batch {text!r}: give dynamic or a number") from None


def main() -> None:
    """Entry point of ``cats-export``."""
    execute(app)
