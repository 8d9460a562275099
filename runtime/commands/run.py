"""``cats-run``: match two photos, or a table of pairs, with an exported model."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, Any

import typer

from cats.core.console import execute, new_app, note, print_json, progress, stderr, stdout, table
from cats.core.errors import InputError
from cats.core.images import MAX_PIXELS, quiet_pillow
from cats.core.metadata import trust_warning
from cats.core.outputs import OutputPlan
from cats.core.tables import read_points
from cats.runtime.backends import BACKENDS, choose_backend
from cats.runtime.backends.ort_providers import PROVIDERS, choose_provider
from cats.runtime.backends.ort_session import import_onnxruntime
from cats.runtime.document import matches_document, model_document
from cats.runtime.gallery import rank_gallery
from cats.runtime.hardware import physical_cores, usable_cpus
from cats.runtime.match_files import PICTURES, Outputs, Report, Selection, run, run_pairs
from cats.runtime.matcher import Matcher
from cats.runtime.split import find_split

app = new_app()

EXAMPLES = """
Examples:

- `cats-run cats.onnx a.jpg b.jpg` writes a-b.png: lines from a to b, coloured by confidence

- `cats-run cats.onnx a.jpg b.jpg --points nose.csv --json` prints where the points lie in b

- `cats-run cats.onnx a.jpg b.jpg -o match.png --warp b-as-a.png --flow flow.npy --min-confidence 0.5`

- `cats-run cats.encoder.onnx a.jpg --gallery photos/ --features photos.npz -o best.png` ranks a folder

- `cats-run cats.plan --pairs pairs.csv --json > matches.jsonl` one line a pair, on a TensorRT engine
"""


OUTPUTS, SELECTION, TABLE, ENGINE = "Outputs", "Which matches", "Many pairs", "How it runs"


def _path(*names: str, help: str, panel: str, metavar: str = "FILE") -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar, show_default=False, readable=False)


def _number(*names: str, help: str, panel: str, default: bool | str = True, **limits: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=default, **limits)


@app.command(epilog=EXAMPLES)
def main_command(
    model: Annotated[
        Path, typer.Argument(help="ONNX file of cats-export, or .plan of cats-build.", metavar="MODEL", readable=False)
    ],
    a: Annotated[Path | None, typer.Argument(help="Image a.", metavar="A", readable=False, show_default=False)] = None,
    b: Annotated[Path | None, typer.Argument(help="Image b.", metavar="B", readable=False, show_default=False)] = None,
    output: Annotated[
        Path | None,
        _path(
            "--output",
            "-o",
            help="Picture of the match (.png, .jpg, .webp); with --pairs a folder. Default where no other output is "
            "asked for: A-B.png, or a folder named after the CSV.",
            panel=OUTPUTS,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the matches as JSON, one line a pair.", rich_help_panel=OUTPUTS)
    ] = False,
    warp: Annotated[
        Path | None, _path(help="Write b bent into the frame of a; with --pairs a folder.", panel=OUTPUTS)
    ] = None,
    overlay: Annotated[
        Path | None, _path(help="Write that laid over a, by confidence; with --pairs a folder.", panel=OUTPUTS)
    ] = None,
    flow: Annotated[
        Path | None,
        _path(
            help="Write the flow as .npy, float32 (2, 16, 16) in cells, x first; with --pairs a folder.", panel=OUTPUTS
        ),
    ] = None,
    html: Annotated[
        Path | None,
        _path(
            help="Write one page that holds photos and match, to click through in a browser; with --pairs a folder.",
            panel=OUTPUTS,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.", rich_help_panel=OUTPUTS)] = False,
    points: Annotated[
        Path | None,
        _path(
            help="Points of a to match, in its pixels: JSON [[x, y], ...] or CSV x,y. Default: an even grid.",
            panel=SELECTION,
        ),
    ] = None,
    grid: Annotated[int, _number(help="Points a side of the even grid.", panel=SELECTION, min=1, max=256)] = 10,
    min_confidence: Annotated[
        float, _number(help="Leave out matches of less confidence.", panel=SELECTION, min=0, max=1)
    ] = 0.0,
    calibrated: Annotated[
        bool,
        typer.Option(
            "--calibrated",
            help="Give confidences as the probabilities that cats fit-confidence fitted.",
            rich_help_panel=SELECTION,
        ),
    ] = False,
    max_forward_backward: Annotated[
        float | None,
        _number(
            help="Leave out points that a -> b -> a moves further than this, in pixels of a; runs the model twice.",
            panel=SELECTION,
            default=False,
            min=0,
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        _path(
            help="CSV with columns a,b (relative to it) and optionally points (a file, or x,y;x,y) "
            "in the place of A, B and --points.",
            panel=TABLE,
        ),
    ] = None,
    gallery: Annotated[
        Path | None,
        _path(help="Rank the photos of a folder by how well A matches them; no B.", panel=TABLE, metavar="DIR"),
    ] = None,
    top: Annotated[int, _number(help="With --gallery: how many to list.", panel=TABLE, min=1)] = 5,
    score: Annotated[
        str,
        _path(
            help="With --gallery: confidence (mean over A, default) or forward-backward.", panel=TABLE, metavar="NAME"
        ),
    ] = "confidence",
    features: Annotated[
        Path | None, _path(help="With --gallery and a split model: .npz that keeps the features.", panel=TABLE)
    ] = None,
    batch: Annotated[int, _number(help="Pairs of one run of the model.", panel=TABLE, min=1)] = 1,
    workers: Annotated[int, _number(help="Threads that read images, with one stream.", panel=TABLE, min=1)] = 2,
    streams: Annotated[
        int | None,
        _number(
            help="With --pairs: pairs matched side by side, on CPUs each with its share of the cores.",
            panel=TABLE,
            default="one per core on a CPU, else 1",
            min=1,
        ),
    ] = None,
    time: Annotated[
        bool, typer.Option("--time", help="Show the time of each stage, after a warm-up run.", rich_help_panel=ENGINE)
    ] = False,
    backend: Annotated[
        str | None,
        _path(help=f"{', '.join(BACKENDS)}. Default: by the file.", panel=ENGINE, metavar="NAME"),
    ] = None,
    provider: Annotated[
        str | None,
        _path(
            help=f"ONNX Runtime's provider: {', '.join(PROVIDERS)}. Default: cuda where it can run, else cpu.",
            panel=ENGINE,
            metavar="NAME",
        ),
    ] = None,
    device: Annotated[
        str | None,
        _path(help="Index of the GPU, default 0; of openvino a name: CPU (default), GPU.", panel=ENGINE, metavar="N"),
    ] = None,
    precision: Annotated[
        str | None, _path(help="With openvino: fp32 (default), bf16 or bf16-aggregator.", panel=ENGINE, metavar="NAME")
    ] = None,
    hint: Annotated[
        str | None, _path(help="With openvino: latency (default) or throughput.", panel=ENGINE, metavar="NAME")
    ] = None,
    threads: Annotated[int | None, _number(help="CPU threads.", panel=ENGINE, default="one per core", min=1)] = None,
    cache: Annotated[
        Path | None,
        _path(help="Folder for the engines that ONNX Runtime's TensorRT providers build.", panel=ENGINE, metavar="DIR"),
    ] = None,
    max_megapixels: Annotated[
        float, _number(help="Refuse larger images before decoding.", panel=ENGINE, default="89", min=0.001)
    ] = MAX_PIXELS / 1e6,
) -> None:
    """Match image A to image B (a -> b): a picture, points, a warp, the flow."""
    quiet_pillow()
    if gallery is not None and (a is None or b is not None or pairs is not None or points is not None):
        raise InputError("--gallery takes the image A alone: leave out B, --pairs and --points")
    if gallery is not None and (warp or overlay or flow or html or max_forward_backward is not None):
        raise InputError("--gallery writes a picture of the best match (-o): leave out other outputs and limits")
    if gallery is None and features is not None:
        raise InputError("--features keeps the features of a gallery: give --gallery DIR")
    if pairs is None and streams is not None:
        raise InputError("--streams matches pairs of a table side by side: give --pairs pairs.csv")
    if pairs is None and gallery is None and (a is None or b is None):
        raise InputError("give two images, A and B, or a table of pairs: --pairs pairs.csv")
    if pairs is not None and (a is not None or points is not None):
        raise InputError("--pairs takes images and points from the CSV: leave out A, B and --points")
    selection = Selection(grid, min_confidence, max_forward_backward)
    outputs = Outputs(output, warp, overlay, flow, html)
    if gallery is None and not as_json and not outputs.written():
        outputs = Outputs(picture=Path(pairs.stem if pairs is not None else f"{_stem(a)}-{_stem(b)}.png"))
    chosen = read_points(points)[:, :2] if points is not None else None
    if gallery is not None:
        plan = OutputPlan(force=force).reads(model, a, gallery)
        plan.writes(output, suffixes=PICTURES).writes(features, updates=True).check()
    elif pairs is None:
        outputs.check(model, a, b, points, force=force)
    runs_on = choose_backend((find_split(model) or (model,))[0], backend) if pairs is not None else None
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
        device=_device(device, backend),
        precision=precision,
        hint=hint,
        threads=threads,
        cache_dir=cache,
    )
    with matcher:
        note(f"{model}: {matcher.backend.describe()}")
        warning = trust_warning(matcher.metadata, model)
        if warning:
            note(warning)
        if gallery is not None:
            assert a is not None  # checked above
            _run_gallery(
                matcher, a, gallery, output, features, score, top, batch if batch > 1 else None, selection, as_json
            )
        elif pairs is not None:
            _run_table(matcher, pairs, outputs, selection, batch, workers, streams or 1, as_json, time, force)
        else:
            assert a is not None  # checked above
            assert b is not None
            if time:
                matcher.match(a, b)
            document = run(matcher, a, b, outputs, points=chosen, selection=selection)
            _report_pair(document, outputs, as_json, {"load": matcher.load_ms} if time else None)


def cpu_streams(backend: str, provider: str | None, device: str | None) -> int:
    """One stream per core for what runs on the CPU, else one."""
    if backend == "openvino":
        on_cpu = (device or "CPU").upper() == "CPU"
    elif backend == "onnxruntime":
        ort = import_onnxruntime()
        on_cpu = choose_provider(ort, provider)[0] == PROVIDERS["cpu"]
    else:
        on_cpu = False
    return min(physical_cores(), usable_cpus()) if on_cpu else 1


def _device(text: str | None, backend: str | None) -> str | int | None:
    """A GPU's index, or for OpenVINO the name of a device."""
    if text is None or backend == "openvino":
        return text
    if not text.isdecimal():
        raise InputError(f"--device {text}: give the index of a GPU (names are for --backend openvino)")
    return int(text)


def open_matcher(model: Path, backend: str | None, max_megapixels: float, **options: Any) -> Matcher:
    """A matcher with the settings that were given on the command line; the others stay the backend's defaults."""
    max_pixels = round(max_megapixels * 1e6)
    if max_pixels > MAX_PIXELS:
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own limit, of this process
    given = {name: value for name, value in options.items() if value is not None}
    return Matcher(model, backend, max_pixels=max_pixels, **given)


def _run_gallery(
    matcher: Matcher,
    a: Path,
    folder: Path,
    picture: Path | None,
    cache: Path | None,
    score: str,
    top: int,
    batch: int | None,
    selection: Selection,
    as_json: bool,
) -> None:
    with progress() as bar:
        task = bar.add_task("matching", total=None)
        found = rank_gallery(
            matcher, a, folder, score=score, cache=cache, batch_size=batch, on_photo=lambda: bar.advance(task)
        )
    for _, reason in found.failures:
        note(reason)
    best = found.ranked[:top]
    if as_json:
        for value, photo, match in best:
            kept = selection.choose(match, None)
            document = matches_document(match, kept, a=a, b=photo, model=model_document(matcher))
            print_json({**document, "score": round(value, 6)})
    else:
        rows = [[str(rank), f"{value:.4f}", str(photo)] for rank, (value, photo, _) in enumerate(best, 1)]
        stdout.print(table(f"best matches of {a.name}", ["rank", score, "photo"], rows))
    if picture is not None and best:
        run(matcher, a, best[0][1], Outputs(picture=picture), selection=selection)
        note(f"wrote {picture}")
    note(
        f"{len(found.ranked)} photos matched ({found.cached} from the cache), "
        f"{found.skipped} other files skipped, {len(found.failures)} unreadable"
    )
    if found.failures:
        raise InputError(f"{len(found.failures)} photos below {folder} could not be read, see above")


def _run_table(
    matcher: Matcher,
    pairs: Path,
    folders: Outputs,
    selection: Selection,
    batch: int,
    workers: int,
    streams: int,
    as_json: bool,
    show_times: bool,
    force: bool,
) -> None:
    report = Report()
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
            force=force,
            report=report,
            on_rows=lambda count: bar.update(task, total=count),
        ):
            if "error" in document:
                note(f"{pairs}, line {document['line']}: {document['error']}")
            if as_json:
                print_json(document)
            bar.advance(task)
    for folder in folders.written():
        note(f"wrote {folder}{'' if str(folder).endswith('/') else '/'}")
    note(f"{report.pairs - len(report.failures)} of {report.pairs} pairs matched in {report.seconds:.1f} s")
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


def _report_pair(document: dict[str, Any], outputs: Outputs, as_json: bool, loading: dict[str, float] | None) -> None:
    confidences = [match["confidence"] for match in document["matches"]]
    mean = f", mean confidence {statistics.fmean(confidences):.2f}" if confidences else ""
    for path in outputs.written():
        note(f"wrote {path}")
    note(f"{len(confidences)} match{'' if len(confidences) == 1 else 'es'}{mean}")
    if loading is not None:
        times = {**loading, **document["time_ms"]}
        stderr.print(table("times", ["stage", "ms"], [[stage, f"{value:.1f}"] for stage, value in times.items()]))
    if as_json:
        print_json(document)


def _stem(path: Path | None) -> str:
    return path.stem if path is not None else ""


def main() -> None:
    """Entry point of ``cats-run``."""
    execute(app)


if __name__ == "__main__":
    main()
