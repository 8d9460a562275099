"""``cats-bench``: everything that runs a model here, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from cats.core.console import CHECK, Force, execute, new_app, note, print_json, stdout, table
from cats.core.errors import InputError, VerificationError, require
from cats.core.files import write_text
from cats.core.json_text import read_json
from cats.core.outputs import OutputPlan
from cats.core.text import plain

app = new_app(extra="bench")

EXAMPLES = """
Examples:

- `cats-bench --quick` the shipped model, in under a minute

- `cats-bench best.pt --check willow:PF-WILLOW --int8 photos/ --html report.html --output new.json`

- `cats-bench best.pt --images photos/` the drift of every backend on your photos

- `cats-bench resnet101 --file model.int8.onnx --only onnx` the published structure, chosen contestants

- `cats-bench --compare old.json new.json` exit status 1 where new is slower or less accurate beyond the intervals
"""


@app.command(epilog=EXAMPLES)
def main_command(
    model: Annotated[
        str, typer.Argument(help="Checkpoint, or cats-tiny, resnet101, lite0 (see the list in the report).")
    ] = "cats-tiny",
    rounds: Annotated[int, typer.Option(help="Measured rounds.", min=3)] = 21,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of every contestant.", min=1, show_default="physical cores")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Run only contestants whose name holds this; repeatable.", metavar="TEXT")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="Leave out contestants whose name holds this; repeatable.", metavar="TEXT")
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            "--file", help="Also run this .onnx or .plan (INT8 files in OpenVINO too); repeatable.", metavar="FILE"
        ),
    ] = None,
    int8: Annotated[
        Path | None,
        typer.Option(
            help="Folder of photos: calibrate INT8 on some and run that too.", show_default=False, metavar="DIR"
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(*CHECK, help="Annotated pairs: also compare PCK of all.", show_default=False, metavar="KIND:DIR"),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of photos: measure the drift on up to 16 pairs of them.", show_default=False, metavar="DIR"
        ),
    ] = None,
    batches: Annotated[
        str, typer.Option(help="Sizes of the batch curve, empty for none.", metavar="N,N,...")
    ] = "1,2,4,8",
    many: Annotated[
        str, typer.Option(help="Sizes of the one-to-many curve, empty for none.", metavar="N,N,...")
    ] = "1,4,16,64",
    quick: Annotated[bool, typer.Option("--quick", help="5 rounds, no curves, no torch.compile.")] = False,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps exported files for the next run.", show_default=False, metavar="DIR"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the results as JSON.", show_default=False, metavar="FILE"),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="One HTML file with the report and its plots.", show_default=False, metavar="FILE"),
    ] = None,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            help="Compare two result files, OLD NEW, instead of measuring.", show_default=False, metavar="OLD NEW"
        ),
    ] = None,
) -> None:
    """Measure latency, memory, size and accuracy of all backends in interleaved runs. Nothing else may run beside."""
    if compare is not None:
        return _compare(*compare)
    from cats.benchmarks.bench import Plan, bench

    for path in file or ():
        if not path.is_file():
            raise InputError(f"model {path} does not exist")
    if int8 is not None and not int8.is_dir():
        raise InputError(f"--int8 {int8}: there is no such folder of photos")
    if images is not None and not images.is_dir():
        raise InputError(f"--images {images}: there is no such folder of photos")
    outputs = OutputPlan(force=force).reads(*(file or ()), int8, images).reads_data(data)
    outputs.writes(output, html).check()
    if html is not None:
        require("matplotlib", extra="bench", purpose="draw the report's plots")
    plan = Plan(
        rounds=5 if quick else rounds,
        warm_up=1 if quick else 3,
        threads=threads,
        only=tuple(only or ()),
        skip=(*(skip or ()), *(("compiled",) if quick else ())),
        batches=() if quick else _sizes(batches, "--batches"),
        many=() if quick else _sizes(many, "--many"),
        data=data,
        files=tuple(file or ()),
        images=images,
        int8=int8,
        work=work,
    )
    results = bench(model, plan)
    if output is not None:
        write_text(output, json.dumps(results, indent=1) + "\n")
    if html is not None:
        from cats.benchmarks.report import html_report

        write_text(html, html_report(results))
    if as_json:
        print_json(results)
    else:
        show(results)
    return None


def show(results: dict[str, Any]) -> None:
    """The results as tables on stdout."""
    rows = []
    for row in results["contestants"]:
        ms, ratio, drift = row["ms"], row["ratio"], row["drift"]
        cells = [
            row["name"],
            f"{ms['median']:.1f}",
            f"{ms['low']:.1f}-{ms['high']:.1f}",
            "" if ratio is None else f"{ratio['median']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})",
            f"{row['ready_ms'] / 1000:.2f}",
            "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
            "" if row["file_mb"] is None else f"{row['file_mb']:.1f}",
            f"{drift['p99_px']:.3f}",
            "" if row["pck"] is None else f"{row['pck']:.2f}",
            "" if row["peak_share"] is None else f"{row['peak_share']:.0%}",
        ]
        rows.append(cells)
    columns = ["", "ms", "95 %", "ratio", "ready s", "peak MB", "file MB", "drift p99 px", "PCK@0.1", "of peak"]
    title = f"{results['model']['name']}, one pair, {results['threads']} threads"
    if not stdout.is_terminal:
        stdout.width = max(stdout.width, 160)  # redirected, nothing is cut
    stdout.print(table(title, columns, rows))
    baselines = {row["baseline"]: row["device"].upper() for row in results["contestants"] if "device" in row}
    if len(baselines) > 1:
        text = "; ".join(f"{device}: {name}" for name, device in baselines.items())
        stdout.print(Text(plain(f"ratios within one device, to {text}")), soft_wrap=True)
    if "drift_on" in results:
        stdout.print(Text(plain(f"drift: from PyTorch in float32, on {results['drift_on']}")), soft_wrap=True)
    if results.get("load", {}).get("busy"):
        load = results["load"]
        stdout.print(
            f"the machine was busy at the start (load average {load['average']:.2f} on {load['cores']} cores): "
            "run this again when nothing else runs"
        )
    for item in results["missing"]:
        stdout.print(Text(plain(f"not run: {item['name']}: {item['reason']}")), soft_wrap=True)
    cost = results["roofline"]
    stdout.print(
        f"graph: {cost['gflop']:.1f} GFLOP, {cost['weights_mb']:.0f} MB of weights; machine: "
        f"{cost['fp32_gflops']:.0f} GFLOP/s fp32, {cost['bf16_gflops'] or 0:.0f} bf16, {cost['copy_gbs']:.0f} GB/s"
    )
    many = results["one_to_many"]
    if many:
        text = ", ".join(
            f"{n}: {many['encoded_before'][n]:.2f} ({many['with_encoding'][n]:.2f})" for n in many["with_encoding"]
        )
        stdout.print(f"one against N, cost per pair / a pair alone (with the gallery's encoding): {text}")


def read_results(path: Path) -> dict[str, Any]:
    """Read and check a result file.

    Raises:
        InputError: missing, or not a result of this command.
    """
    from importlib import resources

    import jsonschema

    document = read_json(path)
    schema = json.loads(resources.files("cats.benchmarks").joinpath("bench.schema.json").read_text("utf-8"))
    problem = next(jsonschema.Draft202012Validator(schema).iter_errors(document), None)
    if problem is not None:
        raise InputError(f"{path} is not a result of cats-bench: {problem.message[:200]}")
    result: dict[str, Any] = document
    return result


def _compare(old: Path, new: Path) -> None:
    from cats.benchmarks.statistics import regressions

    before, after = read_results(old), read_results(new)
    for key, name in (("model", "name"), ("machine", "CPU"), ("machine", "GPU")):
        old_one, new_one = before[key].get(name), after[key].get(name)
        if old_one != new_one and (name != "GPU" or _has_gpu_rows(before, after)):
            what = name if key == "machine" else key
            note(f"note: different {what}s, {old_one} and {new_one}: ratios may differ by that")
    previous = {row["name"]: row for row in before["contestants"]}
    rows = [
        [
            row["name"],
            *("" if r is None else f"{r['median']:.3f}" for r in (previous[row["name"]]["ratio"], row["ratio"])),
        ]
        for row in after["contestants"]
        if row["name"] in previous
    ]
    stdout.print(table("ratio to the baseline of the same run", ["", "old", "new"], rows))
    found = regressions(before, after)
    if found:
        raise VerificationError("\n".join([f"{len(found)} regressions:", *found]))


def _has_gpu_rows(*documents: dict[str, Any]) -> bool:
    return any(row.get("device") == "gpu" for document in documents for row in document["contestants"])


def _sizes(text: str, option: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        sizes = (0,)
    if any(size < 1 for size in sizes):
        raise InputError(f"{option} {text!r}: give positive numbers with commas, as 1,2,4")
    return sizes


def main() -> None:
    """Entry point of ``cats-bench``."""
    execute(app)


if __name__ == "__main__":
    main()
