"""``cats-train``: train a CATs on keypoints, on warps of photos, or on photos sorted by category."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cats.core.console import execute, new_app, note
from cats.core.errors import BackendError, InputError
from cats.data import open_dataset, parse_data
from cats.training.configs import CONFIGS, TrainConfig, find_config

app = new_app()

SUPERVISED = ("spair", "pfpascal", "pairs")
_TRAINING_SEEDS = 1 << 32  # warps of smaller seeds are for validation, here and in cats-eval
KINDS = (*SUPERVISED, "warps", "categories")

EXAMPLES = """
Examples:

- `cats-train --data categories:photos/ --config tiny --val willow:PF-WILLOW` photos sorted into folders, no keypoints

- `cats-train --data spair:SPair-71k --config spair-frozen --device cuda` the paper's recipe

- `torchrun --nproc-per-node 4 -m cats.training.cli --data spair:SPair-71k --config spair --device cuda` four GPUs

- `cats-train --data warps:photos/ --config tiny-warps` any photos, known warps of them, minutes on a CPU

- `cats-train --config tiny --set model.depth=2 --print-config`
"""


def train(
    data: str,
    config: TrainConfig,
    output: Path,
    *,
    validation: str | None = None,
    resume: bool = False,
    device: str = "cpu",
    workers: int = 1,
) -> Path:
    """Train a model; the Python function behind ``cats-train``.

    Args:
        data: ``KIND:DIR`` with KIND one of :data:`KINDS`.
        config: settings.
        output: folder of the run.
        validation: ``KIND:DIR`` of annotated pairs or ``warps:DIR``. Default: the ``val`` split where the data set has
            one, the training pairs of a CSV file, warps of the training photos that training does not draw.
        resume: go on where the run in ``output`` stopped.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        workers: loader processes.

    Returns:
        Path of the best checkpoint.
    """
    from cats.training.trainer import Trainer

    _check_device(device)
    dataset, objective, steps = _training_data(data, config)
    return Trainer(
        config,
        dataset,
        objective,
        _validation(validation, data, config),
        output,
        steps=steps,
        device=device,
        workers=workers,
        description={"data": _described(data), "validation": _described(validation or data)},
    ).run(resume=resume)


def _check_device(device: str) -> None:
    """Raise :class:`InputError` for what is no device, :class:`BackendError` for a GPU that is not there."""
    import torch

    kind, _, index = device.partition(":")
    if device != "cpu" and not (kind == "cuda" and (index.isdecimal() or device == "cuda")):
        raise InputError(f"--device {device}: expected cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"--device {device}: PyTorch {torch.__version__} sees no GPU here; use --device cpu")
    if index and int(index) >= torch.cuda.device_count():
        raise BackendError(f"--device {device}: PyTorch sees {torch.cuda.device_count()} GPUs here, counted from 0")


def _training_data(data: str, config: TrainConfig) -> tuple[Any, Any, int]:
    """Data set, objective and number of updates for one kind of data."""
    from cats.data.folders import CategoryFolder, PhotoFolder
    from cats.data.supervised import SupervisedPairs
    from cats.data.warps import CategoryTriplets, WarpPairs
    from cats.training.objectives import FlowObjective, WarpConsistencyObjective

    kind, path = parse_data(data, KINDS)
    model = config.model
    drawn = {"size": model.image_size, "grid": model.feature_size, "seed": config.seed}
    if kind == "categories":
        folder = CategoryFolder.open(path)
        _say(
            f"{len(folder)} photos in {len(folder.categories)} categories"
            + (f"; with one photo only, left out: {', '.join(folder.dropped)}" if folder.dropped else "")
        )
        return CategoryTriplets(folder, config=config.warp, **drawn), WarpConsistencyObjective(config), config.steps
    if kind == "warps":
        photos = PhotoFolder.open(path)
        _say(f"{len(photos)} photos ({photos.skipped} other files skipped)")
        drawn["seed"] += _TRAINING_SEEDS
        return WarpPairs(photos, config=config.warp, **drawn), FlowObjective(), config.steps
    pairs = open_dataset(data, None if kind == "pairs" else "train")
    _say(pairs.description)
    dataset = SupervisedPairs(pairs, augment=config.augment, crop=config.crop, **drawn)
    update = config.batch_size * config.accumulate
    return dataset, FlowObjective(), config.epochs * max(1, len(pairs) // update)


def _validation(validation: str | None, data: str, config: TrainConfig) -> Any:
    import torch

    from cats.data.folders import PhotoFolder
    from cats.data.warps import WarpPairs
    from cats.training.validation import KeypointValidation, WarpValidation

    amp = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.amp)
    kind, path = parse_data(validation or data, (*KINDS, "willow"))
    if kind in ("warps", "categories"):
        size, grid = config.model.image_size, config.model.feature_size
        return WarpValidation(WarpPairs(PhotoFolder.open(path), size=size, grid=grid, config=config.warp), amp=amp)
    split = "val" if kind in ("spair", "pfpascal") else None
    if validation is None and split is None:
        _say(f"{path} has no val split: validating on the pairs of the training itself, give others with --val")
    return KeypointValidation(open_dataset(validation or data, split), amp=amp)


def _say(text: str) -> None:
    """A line on stderr, of one process where torchrun started several."""
    if os.environ.get("RANK", "0") == "0":
        note(text)


def _described(data: str) -> str:
    """Kind and name of a data set, without the path of the machine it lay on."""
    kind, _, path = data.partition(":")
    return f"{kind}:{Path(path).resolve().name}"


@app.command(epilog=EXAMPLES)
def main_command(
    data: Annotated[
        str | None,
        typer.Option(help=f"Training data, KIND:DIR with KIND one of {', '.join(KINDS)}.", show_default=False),
    ] = None,
    config: Annotated[str, typer.Option(help=f"Named configuration: {', '.join(CONFIGS)}.")] = "spair",
    val: Annotated[
        str | None,
        typer.Option(
            help="Validation data: KIND:DIR of annotated pairs (willow too), or warps:DIR. Default: the val split of "
            "spair and pfpascal, the training pairs themselves of pairs, other warps of the training photos.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")] = Path("runs/cats"),
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: key=value, dotted.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on where the run in --output stopped.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Loader processes.", min=0)] = 1,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the settings as JSON and stop.")] = False,
) -> None:
    """Train a CATs on keypoints, on warps of photos, or on photos sorted by category.

    Writes best.pt, resume.pt, log.csv, config.json and TensorBoard events into the folder of the run.
    """
    settings = find_config(config).override(assignments or [])
    if print_config:
        sys.stdout.write(json.dumps(settings.to_dict(), indent=2) + "\n")
        return
    if data is None:
        raise InputError(f"--data is missing: KIND:DIR with KIND one of {', '.join(KINDS)}")
    _say(f"cats-train {shlex.join(sys.argv[1:])}")
    train(data, settings, output, validation=val, resume=resume, device=device, workers=workers)


def main() -> None:
    """Entry point of ``cats-train``."""
    execute(app)


if __name__ == "__main__":
    main()
