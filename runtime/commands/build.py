"""``cats-build``: a TensorRT engine from an exported ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cats.assets import find_model
from cats.core.console import Force, execute, new_app, note, print_json
from cats.core.errors import InputError
from cats.core.metadata import read_onnx_metadata, trust_warning
from cats.runtime.tensorrt.engine import RTX_TARGETS, EngineOptions, build_engine
from cats.runtime.tensorrt.flavours import FLAVOURS
from cats.runtime.tensorrt.sidecar import read_sidecar

app = new_app(extra="tensorrt-rtx")

EXAMPLES = """
Examples:

- `cats-build cats.onnx` writes cats.plan and cats.plan.json beside it

- `cats-build cats.end-to-end.onnx --sides 256,1080,1920 --points 1,20,500` takes photos of these sizes

- `cats-build cats.fp16.onnx -o engine.plan --target sm89 --batch 1,4,16` for one kind of GPU, built anywhere

The precision of the engine is that of the ONNX file. A plan holds compiled code: load only plans that you trust.
"""


@app.command(epilog=EXAMPLES)
def main_command(
    model: Annotated[Path, typer.Argument(help="ONNX file of cats-export.", metavar="MODEL.onnx")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Plan to write. Default: MODEL.plan.", show_default=False, metavar="FILE"),
    ] = None,
    flavour: Annotated[
        str | None,
        typer.Option(
            help=f"{' or '.join(FLAVOURS)}. Default: the first installed.", show_default=False, metavar="NAME"
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            help="Smallest, best and largest number of pairs, of a model with dynamic batch. Default: 1,1,8; "
            "1,1,1 with pixels as input.",
            show_default=False,
            metavar="N,N,N",
        ),
    ] = None,
    sides: Annotated[
        str | None,
        typer.Option(
            help="Smallest, best and largest side of an image in pixels, of a model with pixels as input. Default: "
            "32,640,2048.",
            show_default=False,
            metavar="N,N,N",
        ),
    ] = None,
    points: Annotated[
        str | None,
        typer.Option(
            help="Fewest, best and most points, of such a model. Default: 1,32,1024.",
            show_default=False,
            metavar="N,N,N",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help=f"GPUs to build for, as sm86,sm89: {', '.join(RTX_TARGETS)} (tensorrt-rtx); repeatable.",
            show_default=False,
            metavar="NAMES",
        ),
    ] = None,
    workspace: Annotated[int | None, typer.Option(help="Largest workspace in MiB.", show_default=False, min=1)] = None,
    optimization: Annotated[int | None, typer.Option(help="Level, 0 to 5.", show_default=False)] = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let float32 products use TensorFloat-32.")] = False,
    version_compatible: Annotated[bool, typer.Option("--version-compatible", help="For newer releases too.")] = False,
    hardware_compatible: Annotated[bool, typer.Option("--hardware-compatible", help="For newer GPUs too.")] = False,
    strip_weights: Annotated[bool, typer.Option("--strip-weights", help="Leave the weights out of the plan.")] = False,
    refittable: Annotated[bool, typer.Option("--refittable", help="Weights can be replaced later.")] = False,
    timing_cache: Annotated[
        Path | None, typer.Option(help="File that later builds reuse (tensorrt).", show_default=False, metavar="FILE")
    ] = None,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the sidecar as JSON.")] = False,
) -> None:
    """Build a TensorRT engine; TensorRT-RTX does so without a GPU too."""
    options = EngineOptions(
        batch=_range("--batch", batch),
        sides=_range("--sides", sides),
        points=_range("--points", points),
        workspace_mb=workspace,
        optimization=optimization,
        tf32=tf32,
        targets=tuple(name.strip().lower() for text in target or () for name in text.split(",")),
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        strip_weights=strip_weights,
        refittable=refittable,
    )
    file = find_model(model)
    if file != model and output is None:
        output = Path(f"{file.stem}.plan")  # of a shipped model, or one of a hub: here, not beside it
    plan = build_engine(file, output, flavour=flavour, options=options, timing_cache=timing_cache, force=force)
    metadata = read_sidecar(plan)
    engine = metadata.engine or {}
    size = plan.stat().st_size / 1e6
    note(f"{plan}: {metadata.kind}, {metadata.precision}, {engine['flavour']} {engine['version']}, {size:.1f} MB")
    warning = trust_warning(read_onnx_metadata(file), file)
    if warning:
        note(warning)
    if metadata.target == "cpu":
        note(f"{file} was exported for CPUs; TensorRT chooses such convolutions itself: export without --for cpu")
    if as_json:
        print_json(metadata.to_dict())


def _range(option: str, text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    try:
        low, best, high = (int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text!r}: three numbers such as 1,1,8") from None
    return low, best, high


def main() -> None:
    """Entry point of ``cats-build``."""
    execute(app)


if __name__ == "__main__":
    main()
