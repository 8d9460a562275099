"""``cats-build``: a TensorRT engine from an exported ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cats.console import execute, new_app, note, print_json
from cats.errors import InputError
from cats.runtime.engine import RTX_TARGETS, EngineOptions, build_engine
from cats.runtime.flavours import FLAVOURS
from cats.runtime.sidecar import read_sidecar

app = new_app()

EXAMPLES = """
Examples:

- `cats-build cats.onnx` writes cats.plan and cats.plan.json beside it

- `cats-build cats.fp16.onnx -o engine.plan --target sm89 --batch 1,4,16` for one kind of GPU, built anywhere

The precision of the engine is that of the ONNX file. A plan holds compiled code: load only plans that you trust.
"""


@app.command(epilog=EXAMPLES)
def main_command(
    model: Annotated[Path, typer.Argument(help="ONNX file of cats-export.", metavar="MODEL.onnx")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Plan to write. Default: MODEL.plan.", show_default=False)
    ] = None,
    flavour: Annotated[
        str | None,
        typer.Option(help=f"{' or '.join(FLAVOURS)}. Default: the first installed.", show_default=False),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            help="Smallest, best and largest number of pairs, of a model with dynamic batch. Default: 1,1,8.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help=f"GPUs to build for, as sm86,sm89: {', '.join(RTX_TARGETS)} (tensorrt-rtx).", show_default=False
        ),
    ] = None,
    workspace: Annotated[int | None, typer.Option(help="Largest workspace in MiB.", show_default=False, min=1)] = None,
    optimisation: Annotated[int | None, typer.Option(help="Level, 0 to 5.", show_default=False)] = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let float32 products use TensorFloat-32.")] = False,
    version_compatible: Annotated[bool, typer.Option("--version-compatible", help="For newer releases too.")] = False,
    hardware_compatible: Annotated[bool, typer.Option("--hardware-compatible", help="For newer GPUs too.")] = False,
    strip_weights: Annotated[bool, typer.Option("--strip-weights", help="Leave the weights out of the plan.")] = False,
    refittable: Annotated[bool, typer.Option("--refittable", help="Weights can be replaced later.")] = False,
    timing_cache: Annotated[
        Path | None, typer.Option(help="File that later builds reuse (tensorrt).", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing engine.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the sidecar as JSON.")] = False,
) -> None:
    """Build a TensorRT engine; TensorRT-RTX does so without a GPU too."""
    options = EngineOptions(
        batch=None if batch is None else _batch(batch),
        workspace_mb=workspace,
        optimisation=optimisation,
        tf32=tf32,
        targets=tuple(name.strip().lower() for text in target or () for name in text.split(",")),
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        strip_weights=strip_weights,
        refittable=refittable,
    )
    plan = build_engine(model, output, flavour=flavour, options=options, timing_cache=timing_cache, force=force)
    metadata = read_sidecar(plan)
    engine = metadata.engine or {}
    size = plan.stat().st_size / 1e6
    note(f"{plan}: {metadata.kind}, {metadata.precision}, {engine['flavour']} {engine['version']}, {size:.1f} MB")
    if as_json:
        print_json(metadata.to_dict())


def _batch(text: str) -> tuple[int, int, int]:
    try:
        low, best, high = (int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--batch {text!r}: three numbers such as 1,1,8") from None
    return low, best, high


def main() -> None:
    """Entry point of ``cats-build``."""
    execute(app)
