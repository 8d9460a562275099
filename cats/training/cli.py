"""``cats-train``: train a CATs on keypoints, on warps of photos, or on photos sorted by category."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cats.core.console import execute, new_app, note, progress
from cats.core.errors import BackendError, InputError
from cats.data import open_dataset, parse_data

if TYPE_CHECKING:
    from cats.training.configs import TrainConfig

app = new_app(extra="train")

SUPERVISED = ("spair", "pfpascal", "pairs")
_TRAINING_SEEDS = 1 << 32  # warps of smaller seeds are for validation, here and in cats-eval
KINDS = (*SUPERVISED, "warps", "categories")
TINY = "cats-tiny"
FINE_TUNE = "fine-tune"
CONFIG_NAMES = (
    *("spair", "spair-frozen", "spair-single-level", "spair-cotr", "spair-deit", "spair-dino", "spair-dinov2"),
    *("spair-dinov3", "pfpascal", "pfpascal-frozen", "tiny", FINE_TUNE, "tiny-warps", "tiny-cotr"),
)
"""Of :data:`cats.training.configs.CONFIGS`, whose import needs torch; ``--help`` does not."""


EXAMPLES = """
Examples:

- `cats-train --data categories:photos/ --config tiny --val willow:PF-WILLOW` photos sorted into folders, no keypoints

- `cats-train --data categories:photos/ --init cats-tiny` fine-tune the shipped model on your photos, minutes on a CPU

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
    model: Any = None,
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
        model: a :class:`cats.model.CATs` to start from, with ``config`` of
            :func:`cats.training.configs.fine_tuning`.
        resume: go on where the run in ``output`` stopped.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        workers: loader processes.

    Returns:
        Path of the best checkpoint.
    """
    from cats.training.optimization import has_bf16
    from cats.training.run_folder import RunFolder
    from cats.training.trainer import Trainer

    _check_device(device)
    RunFolder(output).check((data, validation))
    dataset, objective, steps = _training_data(data, config)
    trainer = Trainer(
        config,
        dataset,
        objective,
        _validation(validation, data, config),
        output,
        steps=steps,
        model=model,
        device=device,
        workers=workers,
        description={"data": _described(data), "validation": _described(validation or data)},
    )
    if trainer.rank == 0 and config.amp == "bf16" and not has_bf16(trainer.device):
        _say("this CPU has no instructions for bfloat16: float32 takes its place")
    best = trainer.run(resume=resume)
    if trainer.rank == 0:
        _say_what_now(trainer, validation, data)
    return best


def load_initial(init: str) -> tuple[Any, str]:
    """The model of ``--init`` and its name with a digest, for :func:`cats.training.configs.fine_tuning`.

    Args:
        init: a checkpoint, or a name that :func:`cats.assets.find_model` knows: ``cats-tiny``, ``hf://user/repo``.

    Raises:
        CheckpointError: it cannot be read.
    """
    from cats.assets import find_model
    from cats.checkpoints import load_checkpoint, weights_sha256

    path = find_model(init, ".pt")
    model = load_checkpoint(path).model
    return model, f"{path.stem} {weights_sha256(model)[:12]}"


def _check_device(device: str) -> None:
    """Raise :class:`InputError` for what is no device, :class:`BackendError` for a GPU that is not there."""
    import torch

    kind, _, index = device.partition(":")
    if device != "cpu" and not (kind == "cuda" and (index.isdecimal() or device == "cuda")):
        raise InputError(f"--device {device}: expected the index of a GPU, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"--device {device}: PyTorch {torch.__version__} sees no GPU here; use --device cpu")
    if index and int(index) >= torch.cuda.device_count():
        raise BackendError(f"--device {device}: PyTorch sees {torch.cuda.device_count()} GPUs here, counted from 0")


def _training_data(data: str, config: TrainConfig) -> tuple[Any, Any, int]:
    """Data set, objective and number of updates for one kind of data."""
    from cats.data.checked import check_categories, check_pairs, check_photos
    from cats.data.folders import CategoryFolder, PhotoFolder
    from cats.data.supervised import SupervisedPairs
    from cats.data.warps import CategoryTriplets, WarpPairs
    from cats.training.objectives import FlowObjective, WarpConsistencyObjective

    kind, path = parse_data(data, KINDS)
    model = config.model
    drawn = {"size": model.image_size, "grid": model.feature_size, "seed": config.seed}
    if kind == "categories":
        if model.architecture == "cotr":
            raise InputError(
                f"{data}: photos by category train distributions of matches, and cotr has none: use warps:DIR"
            )
        folder = check_categories(CategoryFolder.open(path))
        _say(
            f"{len(folder)} photos in {len(folder.categories)} categories"
            + (f"; with one photo only, left out: {', '.join(folder.dropped)}" if folder.dropped else "")
        )
        return CategoryTriplets(folder, config=config.warp, **drawn), WarpConsistencyObjective(config), config.steps
    if kind == "warps":
        photos = check_photos(PhotoFolder.open(path))
        _say(f"{len(photos)} photos ({photos.skipped} other files skipped)")
        drawn["seed"] += _TRAINING_SEEDS
        return WarpPairs(photos, config=config.warp, **drawn), FlowObjective(config.cycle), config.steps
    pairs = check_pairs(open_dataset(data, None if kind == "pairs" else "train"))
    _say(pairs.description)
    dataset = SupervisedPairs(pairs, augment=config.augment, crop=config.crop, **drawn)
    update = config.batch_size * config.accumulate
    return dataset, FlowObjective(config.cycle), config.epochs * max(1, len(pairs) // update)


def _validation(validation: str | None, data: str, config: TrainConfig) -> Any:
    from cats.data.checked import check_pairs, check_photos
    from cats.data.folders import PhotoFolder
    from cats.data.warps import WarpPairs
    from cats.training.validation import KeypointValidation, WarpValidation

    kind, path = parse_data(validation or data, (*KINDS, "willow"))
    if kind in ("warps", "categories"):
        size, grid = config.model.image_size, config.model.feature_size
        pairs = WarpPairs(check_photos(PhotoFolder.open(path)), size=size, grid=grid, config=config.warp)
        return WarpValidation(pairs, amp=config.amp)
    split = "val" if kind in ("spair", "pfpascal") else None
    if validation is None and split is None:
        _say(f"{path} has no val split: validating on the pairs of the training itself, give others with --val")
    dataset = open_dataset(validation or data, split)
    if 0 < config.validation_pairs < len(dataset):
        _say(
            f"validating on {config.validation_pairs} of {len(dataset)} pairs, spread over the list "
            "(all: --set validation_pairs=0)"
        )
        dataset = dataset.select(limit=config.validation_pairs)
    return KeypointValidation(check_pairs(dataset), amp=config.amp)


def _say_what_now(trainer: Any, validation: str | None, data: str) -> None:
    """Compare what was trained with cats-tiny on the data of the validation, and print the commands that come next."""
    import torch

    from cats.assets import asset
    from cats.checkpoints import load_checkpoint, weights_sha256

    best = trainer.folder.best
    theirs = load_checkpoint(asset(f"{TINY}.pt")).model.to(trainer.device)
    ours = load_checkpoint(best)
    inputs = ("image_size", "feature_size")
    if all(getattr(theirs.config, name) == getattr(ours.model.config, name) for name in inputs):
        if trainer.config.init.endswith(weights_sha256(theirs)[:12]) and trainer.state.initial_metrics:
            reference = trainer.state.initial_metrics  # what the run began with is cats-tiny
        else:
            bar = progress()
            with bar, torch.no_grad():
                reference = trainer.validate(theirs, bar)
        for name, value in ours.metrics.items():
            if name != "score":
                started = trainer.state.initial_metrics.get(name, float("nan"))
                _say(f"{name}: yours {value:.2f}, {TINY} {reference[name]:.2f}, before training {started:.2f}")
    onnx = best.with_suffix(".onnx")
    evaluated = (validation or data).replace("categories:", "warps:", 1)
    _say("next:")
    _say(f"  cats-eval {shlex.quote(str(best))} --data {shlex.quote(evaluated)}")
    _say(f"  cats-export --ckpt {shlex.quote(str(best))} -o {shlex.quote(str(onnx))}")
    _say(f"  cats-run {shlex.quote(str(onnx))} a.jpg b.jpg")


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
        typer.Option(help=f"Data set to train on; KIND is {', '.join(KINDS)}.", metavar="KIND:DIR", show_default=False),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help=f"Named configuration: {', '.join(CONFIG_NAMES)}. Default: spair, with --init {FINE_TUNE}.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help=f"Start from the weights of this checkpoint, or of {TINY}; the model is then the checkpoint's.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(
            metavar="KIND:DIR",
            help="Annotated pairs (willow too), or warps:DIR, to validate on. Default: the val split of "
            "spair and pfpascal, the training pairs themselves of pairs, other warps of the training photos.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.", metavar="DIR")] = Path(
        "runs/cats"
    ),
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting, dotted; repeatable.", metavar="KEY=VALUE", show_default=False),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            help="Go on where the run in --output stopped, with the same options; --set steps=N or epochs=N may be "
            "more than they were, which lengthens a finished run."
        ),
    ] = False,
    device: Annotated[
        str, typer.Option(help="Index of the GPU, or cpu, cuda, cuda:N as PyTorch says.", metavar="N")
    ] = "cpu",
    workers: Annotated[int, typer.Option(help="Processes that read images.", min=0)] = 1,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the settings as JSON and stop.")] = False,
) -> None:
    """Train a CATs on keypoints, on warps of photos, or on photos sorted by category.

    Writes best.pt, resume.pt, log.csv, config.json and TensorBoard events into the folder of the run. Ctrl-C saves the
    state and the weights (last.pt).
    """
    from cats.training.configs import find_config, fine_tuning
    from cats.training.run_folder import RunFolder

    name = config or (FINE_TUNE if init else "spair")
    settings = find_config(name).override(assignments or [])
    model = None
    if init is not None:
        if settings.model != find_config(name).model:
            raise InputError("--init brings the model of its checkpoint: leave out --set model....")
        model, described = load_initial(init)
        settings = fine_tuning(settings, model.config, described)
    elif name == FINE_TUNE:
        raise InputError(f"--config {FINE_TUNE} goes on from a checkpoint: give --init {TINY}, or a file")
    if print_config:
        sys.stdout.write(json.dumps(settings.to_dict(), indent=2) + "\n")
        return
    if data is None:
        raise InputError(f"--data is missing: KIND:DIR with KIND one of {', '.join(KINDS)}")
    RunFolder(output).check((data, val), init)
    _say(f"cats-train {shlex.join(sys.argv[1:])}")
    device = f"cuda:{device}" if device.isdecimal() else device
    train(data, settings, output, validation=val, model=model, resume=resume, device=device, workers=workers)


def main() -> None:
    """Entry point of ``cats-train``."""
    execute(app)


if __name__ == "__main__":
    main()
