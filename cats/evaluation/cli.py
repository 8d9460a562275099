"""``cats-eval``: PCK and flow error of a checkpoint, ONNX file or engine on annotated pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cats.assets import find_model
from cats.core.console import Force, execute, new_app, note, print_json, progress, stdout, table
from cats.core.errors import InputError, require
from cats.core.files import write_text
from cats.core.folders import replaced_folder
from cats.core.images import quiet_pillow
from cats.core.outputs import OutputPlan
from cats.core.pck import DEFAULT_ALPHAS, PRESET_NAMES
from cats.core.protocols import ModelMatcher
from cats.data import KINDS, open_dataset, parse_data
from cats.data.folders import PhotoFolder
from cats.evaluation.evaluate import count_matches, evaluate, evaluate_warps, resolve_protocols
from cats.evaluation.figure_files import (
    CONTENTS,
    FIGURES,
    FORMATS,
    draw_figures,
    parse_pick,
    pick_pairs,
    write_contents,
)
from cats.evaluation.results import Evaluation
from cats.runtime.backends import BACKENDS, CHECKPOINT_SUFFIXES
from cats.runtime.backends.ort_providers import PROVIDERS

if TYPE_CHECKING:
    from cats.evaluation.torch_matcher import TorchMatcher

app = new_app(extra="train")

WARPS = 64
"""Pairs of ``--data warps:DIR`` without ``--limit``."""

_THRESHOLDS = ("box", "keypoints", "keypoints-padded", "image")

EXAMPLES = """
Examples:

- `cats-eval best.pt --data spair:SPair-71k --protocol corrected --protocol cats2021` both figures, by category

- `cats-eval cats.onnx --data willow:PF-WILLOW --alpha 0.05 --alpha 0.1 --json` one JSON document

- `cats-eval cats.plan --data pfpascal:PF-PASCAL --threshold image` the threshold of most papers there

- `cats-eval best.pt --data tss:TSS_CVPR2016 --alpha 0.05` end-point error and dense PCK

- `cats-eval best.pt --data warps:photos` end-point error on random warps of photos, in pixels at 256x256

- `cats-eval best.pt --data pairs:mine.csv --figures figures` with the paper's figures of a few pairs

- `cats-eval best.pt --data willow:PF-WILLOW --figures figures --beside cats.onnx --pick differ` two models beside each
other, where they differ most
"""

WHAT, OUTPUTS, PICTURES, ENGINE = "What is measured", "Outputs", "Pictures", "How it runs"


def _option(*names: str, help: str, panel: str, default: bool | str = False, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=default, **more)


@app.command(epilog=EXAMPLES)
def main_command(
    model: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint (.pt, .pth, or the authors' folder), ONNX file or engine.", metavar="MODEL", readable=False
        ),
    ],
    data: Annotated[
        str,
        _option(
            "--data",
            help=f"Data set of annotated pairs; KIND is {', '.join(KINDS)}, or warps for a folder of photos.",
            panel=WHAT,
            metavar="KIND:DIR",
        ),
    ],
    split: Annotated[
        str | None, _option(help="train, val or test.", panel=WHAT, default="test", metavar="NAME")
    ] = None,
    protocol: Annotated[
        list[str] | None,
        _option(help=f"{', '.join(PRESET_NAMES)}; repeatable.", panel=WHAT, default="corrected", metavar="NAME"),
    ] = None,
    threshold: Annotated[
        str | None,
        _option(
            help=f"What alpha multiplies, instead of the protocol's: {', '.join(_THRESHOLDS)}.",
            panel=WHAT,
            metavar="NAME",
        ),
    ] = None,
    alpha: Annotated[
        list[float] | None,
        _option(help="Share of the threshold; repeatable.", panel=WHAT, default="0.05 0.1 0.15", metavar="NUMBER"),
    ] = None,
    category: Annotated[
        list[str] | None, _option(help="Only pairs of this category; repeatable.", panel=WHAT, metavar="NAME")
    ] = None,
    limit: Annotated[int | None, _option(help="Pairs at most, spread evenly over the list.", panel=WHAT, min=1)] = None,
    as_json: Annotated[
        bool, _option("--json", help="Print one JSON document instead of tables.", panel=OUTPUTS)
    ] = False,
    output: Annotated[
        Path | None, _option("--output", "-o", help="Write that document to a file.", panel=OUTPUTS, metavar="FILE")
    ] = None,
    per_pair: Annotated[
        Path | None, _option(help="Write a CSV with one line a pair.", panel=OUTPUTS, metavar="FILE")
    ] = None,
    force: Force = False,
    figures: Annotated[
        Path | None,
        _option(
            help="Write a folder of pictures: keypoint transfers and, of checkpoints, attention and correlation maps.",
            panel=PICTURES,
            metavar="DIR",
        ),
    ] = None,
    figure: Annotated[
        list[str] | None,
        _option(help=f"Only {', '.join(FIGURES)}; repeatable.", panel=PICTURES, default="all", metavar="NAME"),
    ] = None,
    beside: Annotated[
        list[Path] | None,
        _option(help="Another model in the pictures, beside MODEL; repeatable.", panel=PICTURES, metavar="MODEL"),
    ] = None,
    pick: Annotated[
        str,
        _option(
            help="Pairs of the pictures: even (spread over the list), random, random:SEED, differ (where the models "
            "differ most), or their numbers, from 1: 3,17,40.",
            panel=PICTURES,
            default=True,
            metavar="HOW",
        ),
    ] = "even",
    figure_pairs: Annotated[
        int, _option(help="How many, unless numbered.", panel=PICTURES, default=True, min=1, max=64)
    ] = 4,
    figure_format: Annotated[
        list[str] | None,
        _option(help=f"{', '.join(FORMATS)}; repeatable.", panel=PICTURES, default="png", metavar="NAME"),
    ] = None,
    batch: Annotated[int, _option(help="Pairs of one run of the model.", panel=ENGINE, default=True, min=1)] = 1,
    backend: Annotated[
        str | None,
        _option(help=f"{', '.join(BACKENDS)}. Default: by the file.", panel=ENGINE, metavar="NAME"),
    ] = None,
    provider: Annotated[
        str | None,
        _option(
            help=f"ONNX Runtime's provider: {', '.join(PROVIDERS)}. Default: cuda where it can run, else cpu. "
            "Checkpoints take cpu and cuda.",
            panel=ENGINE,
            metavar="NAME",
        ),
    ] = None,
    device: Annotated[
        int | None, _option(help="Index of the GPU.", panel=ENGINE, default="0", min=0, metavar="N")
    ] = None,
    threads: Annotated[int | None, _option(help="CPU threads.", panel=ENGINE, default="one per core", min=1)] = None,
    hyperpixels: Annotated[
        str | None,
        _option(
            help="Ids of hyperpixels, as 0,8,20: of an authors' file without args.pkl.", panel=ENGINE, metavar="IDS"
        ),
    ] = None,
) -> None:
    """Measure PCK of MODEL on annotated pairs; the protocol is part of every figure."""
    quiet_pillow()
    outputs = OutputPlan(force=force).reads(model).reads_data(data)
    outputs.writes(output, suffixes=(".json",)).writes(per_pair, suffixes=(".csv",))
    outputs.writes_folder(figures, CONTENTS).check()
    picked, beside = parse_pick(pick), beside or []
    for asked, known, what in ((figure, FIGURES, "figure"), (figure_format, FORMATS, "figure-format")):
        if unknown := [name for name in asked or () if name not in known]:
            raise InputError(f"--{what} {unknown[0]} is not one of {', '.join(known)}")
    if figures is None and (beside or figure or figure_format or pick != "even"):
        raise InputError("--figure, --beside, --pick and --figure-format are about pictures: add --figures DIR")
    names = _names([model, *beside])
    alphas = tuple(alpha or DEFAULT_ALPHAS)
    options = {"provider": provider, "device": device, "threads": threads}
    if parse_data(data, (*KINDS, "warps"))[0] == "warps":
        given = {
            "split": split,
            "protocol": protocol,
            "threshold": threshold,
            "category": category,
            "per-pair": per_pair,
        }
        _refuse({**given, "figures": figures}, "random warps are measured by their end-point error only")
        photos = _open_photos(data)
        matcher, described = open_matcher(model, backend, hyperpixels, options)
        note(f"{model}: {described}")
        result = _evaluate_warps(matcher, photos, limit or WARPS, alphas, batch)
    else:
        dataset = open_dataset(data, split)
        if category or limit:
            dataset = dataset.select(categories=category, limit=limit)
        protocols = resolve_protocols(protocol or ["corrected"], dataset.kind)
        if threshold is not None:
            protocols = [item.with_(threshold=threshold) for item in protocols]
        matcher, described = open_matcher(model, backend, hyperpixels, options)
        note(f"{model}: {described}")
        others = [open_matcher(path, None, None, options) for path in beside]
        with progress() as bar:
            task = bar.add_task("matching", total=count_matches(dataset, protocols))
            result = evaluate(matcher, dataset, protocols, alphas, batch_size=batch, on_pair=lambda: bar.advance(task))
        if per_pair is not None:
            result.write_pairs(per_pair)
            note(f"wrote {per_pair}")
        if figures is not None:
            matchers = dict(zip(names, (matcher, *(other for other, _ in others)), strict=True))
            at = 0.1 if 0.1 in alphas else alphas[0]
            chosen = pick_pairs(dataset, picked, figure_pairs, matchers, protocols[0], at)
            kinds, formats = figure or FIGURES, figure_format or ["png"]
            with replaced_folder(figures, CONTENTS) as folder:
                drawn = draw_figures(matchers, chosen, protocols, at, folder, figures=kinds, formats=formats)
                write_contents(folder, drawn, [model, *beside], chosen)
            for path in drawn:
                note(f"wrote {figures / path.name}")
    document = {"model": {"file": str(model), "runs_on": described}, **result.to_dict()}
    if output is not None:
        write_text(output, json.dumps(document, indent=2, allow_nan=False) + "\n")
        note(f"wrote {output}")
    if as_json:
        print_json(document)
    else:
        show(result)


def open_matcher(
    model: Path, backend: str | None, hyperpixels: str | None, options: dict[str, Any]
) -> tuple[ModelMatcher | TorchMatcher, str]:
    """A matcher for a checkpoint, ONNX file or engine, and one line that says what it runs on and why."""
    if not model.is_dir() and model.suffix.lower() not in CHECKPOINT_SUFFIXES:
        from cats.runtime import Matcher

        if hyperpixels is not None:
            raise InputError(f"{model} is not a checkpoint; leave out --hyperpixels")
        given = {name: value for name, value in options.items() if value is not None}
        opened = Matcher(model, backend, **given)
        return opened, opened.backend.describe()
    model = find_model(model, ".pt")
    if backend is not None:
        raise InputError(f"{model} is a checkpoint, which runs in PyTorch; leave out --backend {backend}")
    torch = require("torch", extra="train", purpose=f"evaluate the checkpoint {model} (exported models do without)")
    from cats.backbones import parse_hyperpixels
    from cats.evaluation.torch_matcher import TorchMatcher

    provider, device, threads = (options[name] for name in ("provider", "device", "threads"))
    if provider not in (None, "cpu", "cuda"):
        raise InputError(f"{model} is a checkpoint, which runs on the provider cpu or cuda, not {provider!r}")
    if provider == "cpu" and device is not None:
        raise InputError("--device is the index of a GPU; leave it out with --provider cpu")
    reason = "as asked for"
    if provider is None:
        provider = "cuda" if torch.cuda.is_available() else "cpu"
        reason = "PyTorch sees a GPU" if provider == "cuda" else "PyTorch sees no GPU"
        if provider == "cpu" and device is not None:
            raise InputError(f"--device {device}: PyTorch sees no GPU here; leave it out")
    if threads is not None:
        torch.set_num_threads(threads)
    place = "cpu" if provider == "cpu" else f"cuda:{device or 0}"
    loaded = TorchMatcher.load(model, place, hyperpixels=parse_hyperpixels(hyperpixels) if hyperpixels else None)
    return loaded, f"PyTorch {torch.__version__} float32 on {place} ({reason})"


def _names(models: Sequence[Path]) -> list[str]:
    """Short names for the pictures: the file's, the folder's too where two are alike."""
    names = [path.stem if path.suffix else path.name for path in models]
    if len(set(names)) < len(names):
        names = [f"{path.resolve().parent.name}-{name}" for path, name in zip(models, names, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{name}-{number}" for number, name in enumerate(names, start=1)]
    return names


def _open_photos(data: str) -> PhotoFolder:
    photos = PhotoFolder.open(parse_data(data, ("warps",))[1])
    note(f"{len(photos)} photos{f', {photos.skipped} other files skipped' if photos.skipped else ''}")
    return photos


def _evaluate_warps(
    matcher: ModelMatcher | TorchMatcher, photos: PhotoFolder, count: int, alphas: tuple[float, ...], batch: int
) -> Evaluation:
    """Warps of the default distribution and seed, with the model's own grid."""
    require("cv2", extra="train", purpose="warp photos")
    from cats.data.warps import WarpPairs

    grid = matcher.metadata.grid[0] if isinstance(matcher, ModelMatcher) else matcher.model.config.feature_size
    with progress() as bar:
        task = bar.add_task("matching", total=count)
        pairs = WarpPairs(photos, grid=grid)
        return evaluate_warps(matcher, pairs, count, alphas, batch_size=batch, on_pair=lambda: bar.advance(task))


def _refuse(options: dict[str, Any], reason: str) -> None:
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise InputError(f"{reason}: leave out {', '.join(given)}")


def show(result: Evaluation) -> None:
    """Print the tables of an evaluation on stdout."""
    columns = [f"@{alpha:g}" for alpha in result.alphas]
    for entry in result.protocols.values():
        rows = [["all", *_cells(entry.pck)]]
        rows += [[name, *_cells(values)] for name, values in entry.by_category.items()]
        for flag, levels in entry.by_difficulty.items():
            rows += [[f"{flag}: {level}", *_cells(values)] for level, values in levels.items()]
        title = (
            f"PCK in percent, {entry.protocol.describe()}; {entry.keypoints} keypoints of {entry.pairs} pairs; "
            f"{result.data['description']}"
        )
        _print_table(title, ["", *columns], rows)
    if result.dense is not None:
        rows = [["all", f"{result.dense.epe:.2f}", *_cells(result.dense.pck)]]
        rows += [[name, f"{epe:.2f}", *_cells(values)] for name, (epe, values) in result.dense.by_category.items()]
        title = (
            "Dense flow: end-point error in pixels of b, PCK in percent with alpha x larger side of b; "
            f"{result.data['description']}"
        )
        _print_table(title, ["", "EPE", *columns], rows)


def _print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    stdout.print(title, markup=False, soft_wrap=True)  # as a title of the table it would wrap at the table's width
    stdout.print(table("", columns, rows))


def _cells(values: dict[float, float]) -> list[str]:
    return [f"{value:.1f}" for value in values.values()]


def main() -> None:
    """Entry point of ``cats-eval``."""
    execute(app)


if __name__ == "__main__":
    main()
