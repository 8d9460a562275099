"""Options that the commands of this room share: the model, the photos to measure on, threads and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cats.core.errors import InputError
from cats.data.photo_pairs import PhotoPairs, photos_from_csv, photos_from_data, photos_from_folder
from cats.runtime.hardware import cpu_features, has_vnni, nvidia

TARGETS = ("cpu", "tensorrt")
PHOTOS = "Photos to measure ranges on (one of these)"
SEARCH, HOW, OUTPUTS = "What stays in float32", "How it is quantized", "Outputs"


def option(*names: str, help: str, panel: str, default: bool | str = False, **more: Any) -> Any:
    """An option under a heading of the help text; ``default`` as ``show_default`` of typer."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=default, **more)


Model = Annotated[
    Path,
    typer.Argument(
        help="Float32 ONNX file of cats-export: for pairs, end-to-end, or either of a split model.",
        metavar="MODEL.onnx",
    ),
]
Images = Annotated[
    Path | None,
    option(
        "--images",
        help="Folder of photos, searched recursively: those of one sub-folder pair.",
        panel=PHOTOS,
        metavar="DIR",
    ),
]
Pairs = Annotated[Path | None, option("--pairs", help="CSV with columns a,b.", panel=PHOTOS, metavar="FILE")]
Data = Annotated[
    str | None,
    option("--data", help="Data set of annotated pairs, or categories:DIR.", panel=PHOTOS, metavar="KIND:DIR"),
]
Split = Annotated[
    str | None, option("--split", help="Split of --data: train, val or test.", panel=PHOTOS, metavar="NAME")
]
FromRanges = Annotated[
    list[Path] | None,
    option(
        "--from-ranges",
        help="Ranges of an earlier run instead of photos; repeatable, then merged.",
        panel=PHOTOS,
        metavar="FILE",
    ),
]
Limit = Annotated[
    int, option("--limit", help="Pairs at most, spread evenly over the list.", panel=PHOTOS, default=True, min=1)
]
Method = Annotated[
    str,
    option(
        "--method",
        help="Interval of each int8 activation: minmax (everything), or mse (least squared error).",
        metavar="NAME",
        panel=HOW,
        default=True,
    ),
]
Target = Annotated[
    str | None,
    option(
        "--for",
        help="What will run the file: cpu (with zero points, refused by TensorRT) or tensorrt (symmetric, as TensorRT "
        "demands).",
        metavar="NAME",
        panel=HOW,
        default="tensorrt where an NVIDIA GPU is, else cpu",
    ),
]
WeightBits = Annotated[
    int,
    option(
        "--weight-bits",
        help="8, or 7 for x86 CPUs without VNNI, where sums would saturate.",
        panel=HOW,
        default=True,
    ),
]
ExactSums = Annotated[
    bool,
    option(
        "--exact-sums",
        help="Judge by sums as CPUs with VNNI compute them, on a CPU without: for a file that others will run.",
        panel=HOW,
    ),
]
Balance = Annotated[
    bool,
    option(
        "--balance/--no-balance",
        help="Even out the channels of norms and residual sums, at the cost of the weights that read them.",
        panel=HOW,
        default=True,
    ),
]
By = Annotated[
    str, option("--by", help="Vary each module, or each block at once.", panel=SEARCH, default=True, metavar="NAME")
]
State = Annotated[
    Path | None, option("--state", help="JSON file with which a killed run goes on.", panel=OUTPUTS, metavar="FILE")
]
Check = Annotated[
    str | None,
    option("--check", help="Annotated pairs: also compare PCK of both models.", panel=OUTPUTS, metavar="KIND:DIR"),
]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads.", show_default="one per core", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.", show_default=False)]


def open_photos(
    images: Path | None,
    pairs: Path | None,
    data: str | None,
    split: str | None,
    from_ranges: list[Path] | None = None,
) -> PhotoPairs | None:
    """The pairs that the options name; None with ``--from-ranges``.

    Raises:
        InputError: not exactly one source is given, or it holds nothing.
    """
    given = [
        name
        for name, value in {"images": images, "pairs": pairs, "data": data, "from-ranges": from_ranges}.items()
        if value
    ]
    if len(given) != 1:
        what = f"not {' and '.join(f'--{name}' for name in given)}" if given else "to know the ranges of activations"
        raise InputError(f"give one of --images, --pairs, --data or --from-ranges, {what}")
    if split is not None and data is None:
        raise InputError("--split belongs to --data: leave it out")
    if images is not None:
        return photos_from_folder(images)
    if pairs is not None:
        return photos_from_csv(pairs)
    return photos_from_data(data, split) if data is not None else None


def choose_target(target: str | None, precision: str) -> tuple[str, str]:
    """The target of ``--for``, or the one that suits where the file will most likely run; and why.

    Raises:
        InputError: there is no such target.
    """
    if target is not None:
        if target not in TARGETS:
            raise InputError(f"--for {target}: choose {' or '.join(TARGETS)}")
        return target, "as told"
    if precision != "int8":
        return "tensorrt", f"{precision} is for GPUs"
    gpus = nvidia().gpus
    if gpus:
        return "tensorrt", f"this machine has an {gpus[0].name}; give --for cpu for a file that runs on CPUs"
    return "cpu", "this machine has no NVIDIA GPU; give --for tensorrt for a file of which engines are built"


def saturation_note(target: str, weight_bits: int) -> str | None:
    """What to say where sums of 8-bit products saturate on this CPU, and do not where the file may run."""
    features = cpu_features()
    if target != "cpu" or weight_bits < 8 or "avx2" not in features or has_vnni(features):
        return None
    return (
        "this CPU has no VNNI: its sums of 8-bit products saturate, which moves matches more than on CPUs that have "
        "it; what is found holds for this one; --weight-bits 7 avoids most of it, --exact-sums judges for the others"
    )
