"""Our Q/DQ against libraries that quantize any ONNX file: the same photos, the same comparison.

Contestants: ``cats-calibrate`` with and without its search, ``onnxruntime.quantization`` (static, QDQ, per channel,
each of its calibrators) and NNCF, which pins old packages and so runs in an environment of its own (``--nncf PYTHON``).
Each is judged by the flow's difference from the float model on the photos of ``--images``, by PCK@0.1 on PF-WILLOW, by
its size, by its speed in ONNX Runtime and OpenVINO beside the float model (alone on the machine), and by whether
TensorRT-RTX builds an engine of it.

Usage: python benchmarks/studies/quantizers.py make FOLDER [--model MODEL.onnx] [--nncf PYTHON]
       python benchmarks/studies/quantizers.py time FOLDER     alone on the machine
       python benchmarks/studies/quantizers.py report FOLDER   benchmarks/results/quantizers-NAME.json and .md
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer

from cats.assets import asset
from cats.benchmarks.record import RESULTS, SHARED, describe_run, write_record
from cats.calibration.calibrate import FloatModel, load_float_model, measure_drift, measure_ranges
from cats.calibration.inputs import photos_from_folder
from cats.calibration.quantize import quantize
from cats.calibration.search import Bound, search
from cats.calibration.timing import compare_speed
from cats.calibration.variants import Variants
from cats.core.console import execute, new_app, note
from cats.core.errors import CatsError
from cats.core.files import write_bytes, write_text
from cats.core.metadata import write_model

app = new_app()

Folder = Annotated[Path, typer.Argument(help="Where the models are.")]
TOLERANCE = 2.0

_NNCF = """
import sys, numpy as np, onnx, nncf
source, feeds, output, preset = sys.argv[1:]
data = np.load(feeds)
rows = [{name: data[name][k : k + 1] for name in data.files} for k in range(len(data[data.files[0]]))]
model = nncf.quantize(
    onnx.load(source), nncf.Dataset(rows), subset_size=len(rows), preset=nncf.QuantizationPreset(preset),
    target_device=nncf.TargetDevice.CPU, model_type=nncf.ModelType.TRANSFORMER if preset == "mixed" else None,
)
onnx.save(model, output)
"""


@app.command()
def make(
    folder: Folder,
    model: Annotated[Path | None, typer.Option(help="Float32 export.", show_default="the shipped cats-tiny")] = None,
    images: Annotated[Path, typer.Option(help="Photos, to measure and to judge.")] = SHARED / "data" / "photos",
    nncf: Annotated[Path | None, typer.Option(help="Python of an environment with nncf and onnx.")] = None,
    pck: Annotated[bool, typer.Option("--pck/--no-pck", help="Also PCK on PF-WILLOW; trained weights only.")] = True,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
) -> None:
    """Write every contestant's file and what it loses."""
    folder.mkdir(parents=True, exist_ok=True)
    float_file = folder / "float.onnx"
    write_bytes(float_file, Path(model or asset("cats-tiny.onnx")).read_bytes())
    source, pairs = load_float_model(float_file), photos_from_folder(images)
    items = list(pairs.feeds(source.metadata.preprocessing))
    feeds = {name: np.concatenate([item[name] for item in items]) for name in items[0]}
    ranges = measure_ranges(source, pairs, threads=threads)

    def ours(target: str, searched: bool) -> onnx.ModelProto:
        options: dict[str, Any] = {"target": target, "method": "mse"}
        variants = Variants(source, ranges, pairs, options=options, threads=threads)
        keep = search(variants, Bound(TOLERANCE)).keep if searched else ()
        return quantize(source.model, ranges, keep=keep, **options)

    contestants: dict[str, Callable[[], onnx.ModelProto]] = {
        "cats-calibrate --for cpu": lambda: ours("cpu", True),
        "cats-calibrate --for cpu --as-is": lambda: ours("cpu", False),
        "cats-calibrate --for tensorrt": lambda: ours("tensorrt", True),
        "cats-calibrate --for tensorrt --as-is": lambda: ours("tensorrt", False),
        **{
            f"onnxruntime.quantization {method}": partial(_by_onnxruntime, float_file, feeds, method)
            for method in ("MinMax", "Entropy", "Percentile", "MinMax, smooth quant")
        },
    }
    if nncf is not None:
        for preset in ("performance", "mixed"):
            contestants[f"nncf {preset}"] = partial(_by_nncf, nncf, float_file, feeds, preset)
    data = f"willow:{SHARED / 'data' / 'PF-WILLOW'}" if pck else None
    for number, (name, run) in enumerate(contestants.items()):
        figures = _judge(source, run, folder / f"{number}.onnx", pairs, data, threads)
        note(f"{name}: {figures}")
        write_text(folder / f"{number}.json", json.dumps({"name": name, **figures}, indent=1) + "\n")


def _judge(
    source: FloatModel,
    run: Callable[[], onnx.ModelProto],
    path: Path,
    pairs: Any,
    data: str | None,
    threads: int | None,
) -> dict[str, Any]:
    """Figures of one contestant, or why there are none."""
    try:
        model = run()
        write_model(model, source.metadata.with_(precision="int8"), path)
        drift = measure_drift(source, model, pairs, tolerance=TOLERANCE, data=data, threads=threads)
    except Exception as error:  # what a library of others raises is a result too
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    figures: dict[str, Any] = {"bytes": path.stat().st_size, "median_px": drift.median_px, "p99_px": drift.p99_px}
    if drift.pck is not None:
        figures["pck"] = drift.pck
    return {**figures, "tensorrt_rtx": _build(path)}


def _build(path: Path) -> str:
    try:
        from cats.runtime.tensorrt.engine import EngineOptions, build_engine

        with tempfile.TemporaryDirectory() as folder:
            build_engine(path, Path(folder) / "x.plan", options=EngineOptions(batch=(1, 1, 2), targets=("sm89",)))
    except CatsError as error:
        return f"no: {' '.join(str(error).split())[:200]}"
    return "builds"


def _by_onnxruntime(path: Path, feeds: dict[str, Any], method: str) -> onnx.ModelProto:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Photos(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter([{name: v[k : k + 1] for name, v in feeds.items()} for k in range(len(feeds["image_a"]))])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rows, None)

    calibrator, _, smooth = method.partition(",")
    with tempfile.TemporaryDirectory() as folder:
        prepared, output = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            output,
            Photos(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=getattr(CalibrationMethod, calibrator),
            extra_options={"SmoothQuant": True} if smooth else {},
        )
        return onnx.load(output)


def _by_nncf(python: Path, path: Path, feeds: dict[str, Any], preset: str) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        inlined, arrays, output = (Path(folder) / name for name in ("inlined.onnx", "feeds.npz", "quantized.onnx"))
        onnx.save(onnx.inliner.inline_local_functions(onnx.load(path)), inlined)
        np.savez(arrays, **feeds)
        done = subprocess.run(
            [python, "-c", _NNCF, inlined, arrays, output, preset], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
        return onnx.load(output)


@app.command("time")
def time_files(
    folder: Folder,
    rounds: Annotated[int, typer.Option(help="Measured rounds.", min=1)] = 25,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 2,
) -> None:
    """Time every file beside the float model; run it alone."""
    for file in sorted(folder.glob("[0-9]*.onnx")):
        figures = json.loads(file.with_suffix(".json").read_text())
        speeds = compare_speed(folder / "float.onnx", file, threads=threads, rounds=rounds)
        figures["speed"] = [asdict(speed) for speed in speeds]
        write_text(file.with_suffix(".json"), json.dumps(figures, indent=1) + "\n")
        note(f"{figures['name']}: {[(s.library, round(s.times, 2)) for s in speeds]}")


@app.command()
def report(folder: Folder, name: Annotated[str, typer.Option(help="Of the model.")] = "cats-tiny") -> None:
    """Put the figures together."""
    rows = [json.loads(file.read_text()) for file in sorted(folder.glob("[0-9]*.json"), key=lambda f: int(f.stem))]
    record = {
        **describe_run("quantizers", ("onnxruntime", "openvino", "onnx", "tensorrt-rtx-cu13")),
        "model": name,
        "pairs": "photos of the shared folder, all to measure and to judge",
        "contestants": json.loads(json.dumps(rows).replace(str(SHARED), "shared")),
    }
    write_record(RESULTS / f"quantizers-{name}.json", record)
    lines = [
        f"# Quantizers on {name}",
        "",
        f"{record['date']}, {record['machine']}; written by `benchmarks/studies/quantizers.py`.",
        "",
        "| | MB | p99, px | median, px | PCK@0.1 lost | ONNX Runtime | OpenVINO | TensorRT-RTX |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in record["contestants"]:
        if "failed" in row:
            lines.append(f"| `{row['name']}` | failed: {row['failed'][:120]} | | | | | | |")
            continue
        speed = {item["library"]: f"{item['times']:.2f}x" for item in row.get("speed", [])}
        lost = f"{-row['pck']['drift']:.2f}" if "pck" in row else ""
        lines.append(
            f"| `{row['name']}` | {row['bytes'] / 1e6:.1f} | {row['p99_px']:.2f} | {row['median_px']:.2f} | {lost} "
            f"| {speed.get('onnxruntime', '')} | {speed.get('openvino', '')} | {row['tensorrt_rtx'].split(':')[0]} |"
        )
    write_text(RESULTS / f"quantizers-{name}.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    execute(app)
