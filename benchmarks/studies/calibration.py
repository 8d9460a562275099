"""INT8 models against their float originals on the CPU: latency in ONNX Runtime, drift in pixels, PCK, size.

cats-tiny is calibrated on photos of Caltech-101 and judged on pairs of PF-WILLOW: in the form for CPUs with the modules
in float32 that its 99th percentile of drift demands (``cats-calibrate --keep``), and with every module in integers; and
in the form for GPUs. The ResNet-101 model has the goldens' structure with random weights: its speed is compared with
PyTorch eager computed as the authors do.

Every contestant rests before it is timed and runs twice untimed first, because ONNX Runtime's idle threads spin for a
while and would disturb the next one; contestants alternate within a round, figures are medians over the rounds with
the central half as spread, ratios are medians of the ratios within a round. Nothing else may run beside it.

Usage: python -m cats.benchmarks.studies.calibration all FOLDER         everything below, alone on the machine
       python -m cats.benchmarks.studies.calibration make FOLDER        write the models into FOLDER, with drift and PCK
       python -m cats.benchmarks.studies.calibration make-resnet101 FOLDER
       python -m cats.benchmarks.studies.calibration time FOLDER [--resnet]   time them, alone on the machine
       python -m cats.benchmarks.studies.calibration report FOLDER      benchmarks/results/calibration.json and .md
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import typer

from cats.assets import asset
from cats.calibration.calibrate import calibrate, load_float_model, measure_ranges
from cats.core.console import execute, new_app, note
from cats.core.files import write_bytes, write_text
from cats.data.photo_pairs import photos_from_data

app = new_app()


RESULTS = Path(__file__).parent / "results"
SHARED = Path(os.environ.get("CATS_SHARED", "../shared"))
_BACKBONE = "feature_extraction.backbone"
_EARLY = ("conv_stem", *(f"blocks.{k}" for k in range(5)), "blocks.5.0")
KEEP = (*(f"{_BACKBONE}.{name}" for name in _EARLY), "decoder.proj")
"""Modules of cats-tiny that stay float32 so that p99 of the drift stays within 2 px: what all levels are made of."""

AUTHORS = "PyTorch eager, as the authors compute"
Folder = Annotated[Path, typer.Argument(help="Where the models are.")]


@app.command("all")
def everything(folder: Folder) -> None:
    """Make, time and report; run it alone."""
    make(folder)
    make_resnet101(folder)
    time_models(folder)
    time_models(folder, resnet=True)
    report(folder)


@app.command()
def make(
    folder: Folder,
    model: Annotated[
        Path | None, typer.Option(help="Float32 export of that structure.", show_default="the shipped cats-tiny")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Pairs of photos to measure ranges on.", min=2)] = 48,
) -> None:
    """Write the quantized models and what they lose."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {}
    willow = f"willow:{SHARED / 'data' / 'PF-WILLOW'}"
    photos = photos_from_data(f"categories:{SHARED / 'data' / 'Caltech-101'}").spread(pairs)
    judged = photos_from_data(willow).spread(36)
    copied = folder / "cats-tiny.onnx"
    write_bytes(copied, Path(model or asset("cats-tiny.onnx")).read_bytes())
    source = load_float_model(copied)
    ranges = measure_ranges(source, photos)
    ranges.save(folder / "cats-tiny.ranges.json")
    recipes: dict[str, dict[str, Any]] = {
        # The whole range suits the 99th percentile, which the rarest values decide; mse suits the median.
        "cats-tiny.int8": {"target": "cpu", "keep": KEEP, "method": "minmax"},
        "cats-tiny.int8-all": {"target": "cpu"},
        "cats-tiny.int8-tensorrt": {"target": "tensorrt", "keep": KEEP, "method": "minmax"},
    }
    for name, recipe in recipes.items():
        data = willow if name == "cats-tiny.int8" else None
        report = calibrate(source, ranges, folder / f"{name}.onnx", pairs=judged, data=data, **recipe)
        figures[name] = {
            "bytes": report.path.stat().st_size,
            "calibration": report.metadata.calibration,
            "parity": report.metadata.parity,
            "verified": report.drift.passed,
        }
        note(f"{name}: p99 {report.drift.p99_px:.2f} px, {report.drift.pck}")
    write_text(folder / "figures-cats-tiny.json", json.dumps(figures, indent=1) + "\n")


@app.command("make-resnet101")
def make_resnet101(folder: Folder) -> None:
    """Write the tamed ResNet-101 model of the latency benchmark, float and quantized; of random weights, speed only."""
    from cats.benchmarks.studies.latency import tamed_resnet101
    from cats.export.export import export_onnx

    folder.mkdir(parents=True, exist_ok=True)
    photos = photos_from_data(f"categories:{SHARED / 'data' / 'Caltech-101'}").spread(2)
    export_onnx(tamed_resnet101(), folder / "resnet101.onnx", verified=False)
    source = load_float_model(folder / "resnet101.onnx")
    report = calibrate(
        source, measure_ranges(source, photos), folder / "resnet101.int8.onnx", target="cpu", pairs=photos.spread(1)
    )
    figures = {report.path.stem: {"bytes": report.path.stat().st_size, "calibration": report.metadata.calibration}}
    write_text(folder / "figures-resnet101.json", json.dumps(figures, indent=1) + "\n")


@app.command("time")
def time_models(
    folder: Folder,
    rounds: Annotated[int, typer.Option(help="Measured rounds.", min=1)] = 25,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 2,
    resnet: Annotated[bool, typer.Option(help="ResNet-101 against the authors' way, instead of cats-tiny.")] = False,
) -> None:
    """Time the models of ``make``; run it alone."""
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((1, 3, 256, 256)).astype(np.float32) for name in ("image_a", "image_b")}
    calls: dict[str, Callable[[], object]] = {}
    if resnet:
        import torch

        from cats.benchmarks.studies.latency import AuthorsWay, tamed_resnet101

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        authors = AuthorsWay(tamed_resnet101()).eval()
        a, b = (torch.from_numpy(feeds[name]) for name in ("image_a", "image_b"))
        calls[AUTHORS] = lambda: authors(a, b)
        files = [folder / "resnet101.onnx", folder / "resnet101.int8.onnx"]
    else:
        files = [folder / "cats-tiny.onnx", *sorted(folder.glob("cats-tiny.*.onnx"))]
    for file in files:
        calls[file.stem] = _call(file, feeds, threads)
    figures = _summary(_interleaved(calls, rounds))
    for name, values in figures.items():
        note(f"{name:40s} {values}")
    document = {"rounds": rounds, "threads": threads, "figures": figures}
    write_text(folder / f"times-{'resnet101' if resnet else 'cats-tiny'}.json", json.dumps(document, indent=1) + "\n")


def _call(file: Path, feeds: dict[str, Any], threads: int) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds)


def _interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds, (rounds,) for each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            time.sleep(0.03)
            call()
            call()
            start = time.perf_counter()
            call()
            if number:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: np.array(values) for name, values in times.items()}


def _summary(times: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Median, quartiles, and ratio to the first."""
    first = next(iter(times.values()))
    result = {}
    for name, values in times.items():
        low, median, high = np.percentile(values, (25, 50, 75))
        result[name] = {
            "median_ms": round(float(median), 2),
            "q25_ms": round(float(low), 2),
            "q75_ms": round(float(high), 2),
            "ratio": round(float(np.median(values / first)), 4),
            "speed_up": round(float(np.median(first / values)), 3),
        }
    return result


@app.command()
def report(folder: Folder) -> None:
    """Put the figures together into benchmarks/results/calibration.json and calibration.md."""
    models: dict[str, Any] = {}
    for file in sorted(folder.glob("figures-*.json")):
        models |= json.loads(file.read_text())
    times = {
        name: json.loads((folder / f"times-{name}.json").read_text())
        for name in ("cats-tiny", "resnet101")
        if (folder / f"times-{name}.json").exists()
    }
    document = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, no GPU",
        "versions": {"onnxruntime": onnxruntime.__version__, "python": platform.python_version()},
        "cats_tiny_weights_sha256": load_float_model(folder / "cats-tiny.onnx").metadata.weights_sha256,
        "models": models,
        "times": times,
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(document, indent=1).replace(
        str(SHARED), "shared"
    )  # where the data lie is this machine's business
    write_text(RESULTS / "calibration.json", text + "\n")
    write_text(RESULTS / "calibration.md", _text(document))
    note(f"wrote {RESULTS / 'calibration.json'} and calibration.md")


def _text(document: dict[str, Any]) -> str:
    lines = [
        "# INT8 calibration",
        "",
        f"{document['date']}, {document['machine']}, ONNX Runtime {document['versions']['onnxruntime']}; "
        "written by `benchmarks/studies/calibration.py`.",
        "",
        "| model | MB | modules in int8 / float | p99 drift, px at 256 | median, px | PCK@0.1 float -> int8 |",
        "|---|---|---|---|---|---|",
    ]
    for name, values in document["models"].items():
        part, parity = values["calibration"], values.get("parity")
        pck = (parity or {}).get("pck")
        lines.append(
            f"| `{name}` ({part['target']}, {part['method']}) | {values['bytes'] / 1e6:.1f} "
            f"| {part['quantized_modules']} / {len(part['kept'])} | "
            + (f"{parity['p99_px']:.2f} | {parity['median_px']:.2f} | " if parity else "random weights | | ")
            + (f"{pck['float']:.2f} -> {pck['quantized']:.2f} ({pck['drift']:+.2f}) |" if pck else "|")
        )
    for name, timed in document["times"].items():
        baseline = next(iter(timed["figures"]))
        lines += [
            "",
            f"One pair, {timed['threads']} threads, {timed['rounds']} interleaved rounds, `{name}`:",
            "",
            f"| | ms (median) | central half | ratio to {baseline} | speed-up |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {label} | {v['median_ms']:.1f} | {v['q25_ms']:.1f} to {v['q75_ms']:.1f} | {v['ratio']:.3f} "
            f"| {v['speed_up']:.2f} |"
            for label, v in timed["figures"].items()
        ]
    return "\n".join(lines) + "\n"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    execute(app)
