"""``cats-run``: match two photos, or a table of pairs, with an exported model."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, Any

import typer

from cats.core.console import execute, new_app, note, print_json, progress, stderr, table
from cats.core.errors import InputError, VerificationError
from cats.core.images import quiet_pillow
from cats.core.tables import parse_points
from cats.runtime.backends import choose_backend
from cats.runtime.commands.options import (
    ENGINE,
    MANY,
    MAX_MEGAPIXELS,
    OUTPUTS,
    SELECTION,
    Backend,
    Cache,
    Calibrated,
    Device,
    Force,
    Hint,
    Json,
    MaxMegapixels,
    MinConfidence,
    MinProbability,
    Model,
    Precision,
    Provider,
    Threads,
    check_probabilities,
    cpu_streams,
    note_model,
    number_option,
    open_matcher,
    path_option,
)
from cats.runtime.hardware import physical_cores, usable_cpus
from cats.runtime.match_files import Outputs, Report, Selection, run, run_pairs
from cats.runtime.matcher import Matcher, find_file

app = new_app()

EXAMPLES = """
Examples:

- `cats-run cats-tiny a.jpg b.jpg` writes a-b.png: the surest points of the object in a, and where they lie in b

- `cats-run cats.onnx a.jpg b.jpg --points '203,101;224,146' --json` prints where these points lie in b

- `cats-run cats.onnx a.jpg b.jpg --sheet sheet.png` shows the warp: bent photo, confidence, grid, checkerboard

- `cats-run cats.onnx a.jpg b.jpg -o match.png --warp b-as-a.png --flow flow.npy --min-probability 0.5`

- `cats-run cats.plan --pairs pairs.csv --json > matches.jsonl` one line a pair, on a TensorRT engine
"""


@app.command(epilog=EXAMPLES)
def main_command(
    model: Model,
    a: Annotated[Path | None, typer.Argument(help="Image a.", metavar="A", readable=False, show_default=False)] = None,
    b: Annotated[Path | None, typer.Argument(help="Image b.", metavar="B", readable=False, show_default=False)] = None,
    output: Annotated[
        Path | None,
        path_option(
            "--output",
            "-o",
            help="Picture of the match (.png, .jpg, .webp); with --pairs a folder, as for the outputs below. Default "
            "where no other output is asked for: A-B.png, or a folder named after the CSV.",
            panel=OUTPUTS,
        ),
    ] = None,
    as_json: Json = False,
    warp: Annotated[Path | None, path_option(help="b bent into the frame of a.", panel=OUTPUTS)] = None,
    overlay: Annotated[Path | None, path_option(help="That laid over a, by confidence.", panel=OUTPUTS)] = None,
    sheet: Annotated[
        Path | None,
        path_option(
            help="a, b, the warp, its confidence, a bent grid and a checkerboard in one picture.", panel=OUTPUTS
        ),
    ] = None,
    flow: Annotated[
        Path | None,
        path_option(help="The flow as .npy, float32 (2, 16, 16) in cells, x first.", panel=OUTPUTS),
    ] = None,
    html: Annotated[
        Path | None,
        path_option(help="One HTML file that holds photos and match, to click through in a browser.", panel=OUTPUTS),
    ] = None,
    force: Force = False,
    points: Annotated[
        Path | None,
        path_option(
            help="Points of a to match, in its pixels: JSON [[x, y], ...], CSV x,y, or x,y;x,y;... itself. "
            "Default: an even grid.",
            panel=SELECTION,
        ),
    ] = None,
    grid: Annotated[
        int | None,
        number_option(
            help="Points a side of the even grid, all of them drawn.",
            panel=SELECTION,
            default="10; the picture shows --count others",
            min=1,
            max=256,
        ),
    ] = None,
    count: Annotated[
        int,
        number_option(
            help="Points that the picture shows without --points and --grid: sure ones on the object, that b -> a "
            "brings back; runs the model twice.",
            panel=SELECTION,
            min=1,
        ),
    ] = 10,
    min_confidence: MinConfidence = 0.0,
    min_probability: MinProbability = 0.0,
    looks: Annotated[
        int,
        number_option(
            help="Times that photos are matched, the second time cut to the object: finer, at twice the time.",
            panel=SELECTION,
            min=1,
            max=2,
        ),
    ] = 1,
    region: Annotated[
        str | None,
        typer.Option(
            help="With --looks 2: the object in A as x_min,y_min,x_max,y_max in pixels. Default: what --points span "
            "(three or more), else where the first look is confident.",
            rich_help_panel=SELECTION,
            metavar="BOX",
            show_default=False,
        ),
    ] = None,
    calibrated: Calibrated = None,
    max_forward_backward: Annotated[
        float | None,
        number_option(
            help="Leave out points that a -> b -> a moves further than this, in pixels of a; runs the model twice.",
            panel=SELECTION,
            default=False,
            min=0,
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        path_option(
            help="CSV with columns a,b (relative to it) and optionally points (a file, or x,y;x,y) "
            "in the place of A, B and --points.",
            panel=MANY,
        ),
    ] = None,
    batch: Annotated[int, number_option(help="Pairs of one run of the model.", panel=MANY, min=1)] = 1,
    workers: Annotated[int, number_option(help="Threads that read images, with one stream.", panel=MANY, min=1)] = 2,
    streams: Annotated[
        int | None,
        number_option(
            help="Pairs of --pairs matched side by side, on CPUs each with its share of the cores.",
            panel=MANY,
            default="one per core on a CPU, else 1",
            min=1,
        ),
    ] = None,
    time: Annotated[
        bool, typer.Option("--time", help="Show the time of each stage, after a warm-up run.", rich_help_panel=ENGINE)
    ] = False,
    backend: Backend = None,
    provider: Provider = None,
    device: Device = None,
    precision: Precision = None,
    hint: Hint = None,
    threads: Threads = None,
    cache: Cache = None,
    max_megapixels: MaxMegapixels = MAX_MEGAPIXELS,
    moved: Annotated[list[str] | None, typer.Option("--gallery", "--features", "--top", "--score", hidden=True)] = None,
) -> None:
    """Match image A to image B (a -> b): a picture, points, a warp, the flow."""
    quiet_pillow()
    if moved:
        raise InputError(f"ranking the photos of a folder is a command of its own: cats rank {model} {a or 'A'} DIR")
    if pairs is None and (a is None or b is None):
        raise InputError("give two images, A and B, or a table of pairs: --pairs pairs.csv")
    if pairs is None and streams is not None:
        raise InputError("--streams matches pairs of a table side by side: give --pairs pairs.csv")
    if pairs is not None and (a is not None or points is not None):
        raise InputError("--pairs takes images and points from the CSV: leave out A, B and --points")
    if region is not None and (looks == 1 or pairs is not None):
        raise InputError("--region says where the object is in the one image A, for --looks 2")
    box = _box(region) if region is not None else None
    selection = Selection(grid, min_confidence, max_forward_backward, count, min_probability)
    outputs = Outputs(output, warp, overlay, flow, html, sheet)
    if not as_json and not outputs.written():
        outputs = Outputs(picture=Path(pairs.stem if pairs is not None else f"{_stem(a)}-{_stem(b)}.png"))
    chosen = parse_points(str(points), Path())[:, :2] if points is not None else None
    if pairs is None:
        outputs.check(model, a, b, points, force=force)
    runs_on = choose_backend(find_file(model), backend) if pairs is not None else None
    if runs_on is not None and streams is None and threads is None:
        streams = cpu_streams(runs_on, provider, device)
    if streams is not None and streams > 1:
        if runs_on == "openvino":
            hint = hint or "throughput"  # it shares the cores out itself
        else:
            threads = threads or max(1, min(physical_cores(), usable_cpus()) // streams)
    matcher = open_matcher(
        model,
        backend,
        max_megapixels,
        calibrated=calibrated,
        provider=provider,
        device=device,
        precision=precision,
        hint=hint,
        threads=threads,
        cache_dir=cache,
    )
    with matcher:
        note_model(matcher, model)
        check_probabilities(matcher, min_probability)
        if pairs is not None:
            _run_table(matcher, pairs, outputs, selection, batch, workers, streams or 1, looks, as_json, time, force)
        else:
            assert a is not None  # checked above
            assert b is not None
            if time:
                matcher.match(a, b)
            document = run(matcher, a, b, outputs, points=chosen, selection=selection, looks=looks, region=box)
            loading = {"load": matcher.load_ms} if time else None
            _report_pair(document, outputs, selection, as_json, loading, points=chosen is not None)


def _box(text: str) -> list[float]:
    """Four numbers of ``--region``."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 4:
        raise InputError(f"--region {text}: give x_min,y_min,x_max,y_max in pixels of A")
    return values


def _run_table(
    matcher: Matcher,
    pairs: Path,
    folders: Outputs,
    selection: Selection,
    batch: int,
    workers: int,
    streams: int,
    looks: int,
    as_json: bool,
    show_times: bool,
    force: bool,
) -> None:
    report, empty = Report(), 0
    with progress() as bar:
        task = bar.add_task("matching", total=None)
        for document in run_pairs(
            matcher,
            pairs,
            folders=folders,
            selection=selection,
            batch_size=batch,
            workers=workers,
            streams=streams,
            looks=looks,
            force=force,
            report=report,
            on_rows=lambda count: bar.update(task, total=count),
        ):
            empty += "error" not in document and not document["matches"]
            if "error" in document:
                note(f"{pairs}, line {document['line']}: {document['error']}")
            if as_json:
                print_json(document)
            bar.advance(task)
    for folder in folders.written():
        note(f"wrote {folder}{'' if str(folder).endswith('/') else '/'}")
    note(f"{report.pairs - len(report.failures)} of {report.pairs} pairs matched in {report.seconds:.1f} s")
    if empty:
        note(f"{empty} of them without a match that is left ({selection.describe()}), and without a picture")
    if show_times and report.times:
        stages = list(report.times[0])
        rows = [
            [
                stage,
                f"{statistics.median(t[stage] for t in report.times):.1f}",
                f"{sum(t[stage] for t in report.times):.0f}",
            ]
            for stage in stages
        ]
        rate = report.pairs / report.seconds
        stderr.print(table(f"{rate:.1f} pairs/s; stages overlap", ["stage", "median ms", "sum ms"], rows))
    if report.failures:
        raise InputError(f"{len(report.failures)} of {report.pairs} pairs of {pairs} could not be matched, see above")


def _report_pair(
    document: dict[str, Any],
    outputs: Outputs,
    selection: Selection,
    as_json: bool,
    loading: dict[str, float] | None,
    *,
    points: bool,
) -> None:
    confidences = [match["confidence"] for match in document["matches"]]
    for path in outputs.written():
        if confidences or path != outputs.picture:
            note(f"wrote {path}")
    if confidences:
        mean = statistics.fmean(confidences)
        probable = [match["probability"] for match in document["matches"] if "probability" in match]
        likely = f", probability of being right {statistics.fmean(probable):.2f}" if probable else ""
        where = " on an even grid" if selection.grid is None and not points else ""
        shown = f"; the picture shows at most {selection.count}, sure ones" if where and outputs.picture else ""
        note(
            f"{len(confidences)} match{'' if len(confidences) == 1 else 'es'}{where}, mean confidence {mean:.2f}"
            f"{likely}{shown}"
        )
    if loading is not None:
        times = {**loading, **document["time_ms"]}
        stderr.print(table("times", ["stage", "ms"], [[stage, f"{value:.1f}"] for stage, value in times.items()]))
    if as_json:
        print_json(document)
    if not confidences:
        picture = "; no picture was written" if outputs.picture is not None else ""
        raise VerificationError(f"no match is left: {selection.describe()}{picture}")


def _stem(path: Path | None) -> str:
    return path.stem if path is not None else ""


def main() -> None:
    """Entry point of ``cats-run``."""
    execute(app)


if __name__ == "__main__":
    main()
