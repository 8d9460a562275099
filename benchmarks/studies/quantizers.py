"""Our Q/DQ against libraries that quantize any ONNX file: the same photos, the same comparison.

Contestants: ``cats-calibrate`` with and without its search, ``onnxruntime.quantization`` (static, QDQ, per channel,
each of its calibrators) and NNCF, which runs in an environment of its own (``--nncf PYTHON``). The libraries get the
graph without functions, with every weight a float32 initializer, and the names of what must stay float32 (L2 norm,
mutual filter, resizing, soft-argmax): all but one each, which says what that list is worth. NNCF's control of accuracy
is given the same figure as our search, the 99th percentile of the flow's difference, and the same bound.

Each is judged by the flow's difference from the float model on the photos of ``--images``, by PCK@0.1 on PF-WILLOW, by
its size, by its speed in ONNX Runtime and OpenVINO beside the float model (alone on the machine), and by whether
TensorRT-RTX builds an engine of it.

Usage: python benchmarks/studies/quantizers.py make FOLDER [--model MODEL.onnx | resnet101] [--nncf PYTHON]
       python benchmarks/studies/quantizers.py time FOLDER     alone on the machine
       python benchmarks/studies/quantizers.py report FOLDER   benchmarks/results/quantizers-NAME.json and .md
``make`` goes on where it was ended: a contestant with a file of figures is left as it is, one with a model only judged.
It sums products of 8 bits as CPUs with VNNI do (:func:`cats.calibration.sessions.exact_sums`), for all contestants.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnx.inliner
import typer

from cats.assets import asset
from cats.benchmarks.exports import Exports
from cats.benchmarks.models import tamed_resnet101
from cats.benchmarks.record import RESULTS, SHARED, describe_run, write_record
from cats.calibration.calibrate import FloatModel, load_float_model, measure_drift, measure_ranges
from cats.calibration.graph import QUANTIZABLE, Graph, name_nodes
from cats.calibration.quantize import quantize
from cats.calibration.search import Bound, search
from cats.calibration.sessions import ProbeSession, SessionMatcher, exact_sums, fixed_batch
from cats.calibration.timing import compare_speed
from cats.calibration.variants import Variants
from cats.core.console import execute, new_app, note
from cats.core.errors import CatsError
from cats.core.files import write_bytes, write_text
from cats.core.metadata import write_model
from cats.data import open_dataset
from cats.data.photo_pairs import PhotoPairs, photos_from_folder
from cats.data.samples import PairDataset
from cats.evaluation.evaluate import evaluate
from cats.evaluation.parity import FRAME
from cats.export.modules import is_inside, module_of

app = new_app()

Folder = Annotated[Path, typer.Argument(help="Where the models are.")]
Only = Annotated[str, typer.Option(help="Numbers of the contestants, with commas.", show_default="all")]
TOLERANCE = 2.0

SPARED = ("feature_extraction", "proj", "decoder")
"""Modules outside of which everything stays float32."""

_NNCF = """
import json, sys, numpy as np, onnx, onnxruntime, nncf
source, feeds, output, settings = sys.argv[1:]
opened = onnxruntime.InferenceSession

def exact(model, sess_options=None, *more, **named):
    sess_options = sess_options or onnxruntime.SessionOptions()
    sess_options.add_session_config_entry("session.disable_quant_qdq", "1")
    return opened(model, sess_options, *more, **named)

onnxruntime.InferenceSession = exact
settings, data = json.loads(settings), np.load(feeds)
rows = [{name: data[name][k : k + 1] for name in data.files} for k in range(len(data[data.files[0]]))]
model = onnx.load(source)
ignored = nncf.IgnoredScope(names=settings["ignored"]) if settings["ignored"] else None
how = dict(subset_size=len(rows), preset=nncf.QuantizationPreset(settings["preset"]), ignored_scope=ignored,
    target_device=nncf.TargetDevice.CPU, model_type=nncf.ModelType.TRANSFORMER)

def flows(model, rows):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["flow"], row)[0] for row in rows])

def judge(model, items):
    items = list(items)
    distance = np.linalg.norm(flows(model, [row for row, _ in items]) - np.concatenate([f for _, f in items]), axis=1)
    return 1000 - settings["pixels"] * float(np.quantile(distance, 0.99)), None  # nncf divides by the float model's

if settings["bound"] is None:
    model = nncf.quantize(model, nncf.Dataset(rows), **how)
else:
    judged = nncf.Dataset([(row, flows(model, [row])) for row in rows])
    model = nncf.quantize_with_accuracy_control(model, nncf.Dataset(rows), judged, judge,
        max_drop=settings["bound"], drop_type=nncf.DropType.ABSOLUTE, **how)
onnx.save(model, output)
"""


@app.command()
def make(
    folder: Folder,
    model: Annotated[
        str | None,
        typer.Option(
            help="Float32 export, or resnet101: the published structure, weights by formula.",
            show_default="the shipped cats-tiny",
        ),
    ] = None,
    images: Annotated[Path, typer.Option(help="Photos, to measure and to judge.")] = SHARED / "data" / "photos",
    nncf: Annotated[Path | None, typer.Option(help="Python of an environment with nncf and onnxruntime.")] = None,
    pck: Annotated[int, typer.Option(help="Pairs of PF-WILLOW for PCK; 0 where weights are not trained.")] = 360,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    only: Only = "",
) -> None:
    """Write every contestant's file and what it loses."""
    chosen = {int(number) for number in only.split(",") if number}
    folder.mkdir(parents=True, exist_ok=True)
    float_file = folder / "float.onnx"
    if model == "resnet101":
        write_bytes(float_file, Exports(tamed_resnet101("formula"), folder).pair().read_bytes())
    else:
        write_bytes(float_file, Path(model or asset("cats-tiny.onnx")).read_bytes())
    source, pairs = load_float_model(float_file), photos_from_folder(images)
    items = list(pairs.feeds(source.metadata.preprocessing))
    feeds = {name: np.concatenate([item[name] for item in items]) for name in items[0]}
    ranges = measure_ranges(source, pairs, threads=threads)
    spelt_out = spell_out(source.model)
    spared = [node.name for node in spelt_out.graph.node if not is_inside(module_of(node), SPARED)]

    def ours(target: str, searched: bool) -> onnx.ModelProto:
        options: dict[str, Any] = {"target": target, "method": "mse"}
        variants = Variants(source, ranges, pairs, options=options, threads=threads)
        keep = search(variants, Bound(TOLERANCE)).keep if searched else ()
        return quantize(source.model, ranges, keep=keep, **options)

    def ort(method: str, **options: Any) -> Callable[[], onnx.ModelProto]:
        return partial(quantize_by_onnxruntime, spelt_out, feeds, method, **{"spared": spared, **options})

    contestants: dict[str, Callable[[], onnx.ModelProto]] = {
        "cats-calibrate --for cpu --as-is": lambda: ours("cpu", False),
        "cats-calibrate --for tensorrt --as-is": lambda: ours("tensorrt", False),
        "onnxruntime MinMax, nothing spared": ort("MinMax", spared=[]),
        "onnxruntime MinMax": ort("MinMax"),
        "onnxruntime MinMax, layers alone": ort("MinMax", layers_alone=True),
        "onnxruntime MinMax, smooth quant": ort("MinMax", smooth=True),
        "onnxruntime MinMax, symmetric": ort("MinMax", symmetric=True),
        "onnxruntime Percentile": ort("Percentile"),
        "onnxruntime Entropy": ort("Entropy"),
    }
    if nncf is not None:
        pixels = FRAME / source.metadata.grid[0]

        def by_nncf(preset: str, ignored: list[str], bound: float | None = None) -> Callable[[], onnx.ModelProto]:
            settings = {"preset": preset, "ignored": ignored, "bound": bound, "pixels": pixels}
            return partial(quantize_by_nncf, nncf, spelt_out, feeds, settings)

        contestants |= {
            "nncf mixed, nothing spared": by_nncf("mixed", []),
            "nncf mixed": by_nncf("mixed", spared),
            "nncf performance": by_nncf("performance", spared),
        }
    contestants |= {  # what takes longest comes last
        "cats-calibrate --for cpu": lambda: ours("cpu", True),
        "cats-calibrate --for tensorrt": lambda: ours("tensorrt", True),
    }
    if nncf is not None:
        contestants["nncf mixed, accuracy control"] = by_nncf("mixed", spared, TOLERANCE)
    dataset = open_dataset(f"willow:{SHARED / 'data' / 'PF-WILLOW'}").select(limit=pck) if pck else None
    judge = partial(_judge, source, pairs=pairs, dataset=dataset, threads=threads)
    figures = folder / "float.json"
    if not figures.exists():
        known = {} if dataset is None else {"pck": _pck(source, source.model, dataset, threads)}
        write_text(figures, json.dumps({"name": "float32", "bytes": float_file.stat().st_size, **known}) + "\n")
    for number, (name, run) in enumerate(contestants.items()):
        figures = folder / f"{number:02d}.json"
        if chosen and number not in chosen:
            continue
        if not figures.exists():
            start = time.monotonic()
            with exact_sums():
                found = judge(run, figures.with_suffix(".onnx"))
            found = {"name": name, "seconds": round(time.monotonic() - start, 1), **found}
            write_text(figures, json.dumps(found, indent=1) + "\n")
        note(figures.read_text())


def _judge(
    source: FloatModel,
    run: Callable[[], onnx.ModelProto],
    path: Path,
    *,
    pairs: PhotoPairs,
    dataset: PairDataset | None,
    threads: int | None,
) -> dict[str, Any]:
    """Figures of one contestant, or why there are none."""
    try:
        if not path.exists():
            write_model(run(), source.metadata.with_(precision="int8"), path)
        model = onnx.load(path)
        drift = measure_drift(source, source.take_apart(model), pairs, tolerance=TOLERANCE, threads=threads)
    except Exception as error:  # what a library of others raises is a result too
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    figures: dict[str, Any] = {"bytes": path.stat().st_size, "median_px": drift.median_px, "p99_px": drift.p99_px}
    if dataset is not None:
        figures["pck"] = _pck(source, model, dataset, threads)
    return {**figures, "tensorrt_rtx": _build(path)}


def _pck(source: FloatModel, model: onnx.ModelProto, dataset: PairDataset, threads: int | None) -> float:
    """PCK@0.1 in percent."""
    session = ProbeSession(model, threads=threads)
    matcher = SessionMatcher(session, source.metadata.preprocessing, fixed_batch(source.model))
    return round(evaluate(matcher, dataset, ("corrected",), (0.1,)).pck(0.1), 3)


def _build(path: Path) -> str:
    try:
        from cats.runtime.tensorrt.engine import EngineOptions, build_engine

        with tempfile.TemporaryDirectory() as folder:
            build_engine(path, Path(folder) / "x.plan", options=EngineOptions(batch=(1, 1, 2), targets=("sm89",)))
    except CatsError as error:
        return f"no: {' '.join(str(error).split())[:200]}"
    return "builds"


def spell_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph without functions, and with every weight an initializer as it is computed with."""
    result = name_nodes(onnx.inliner.inline_local_functions(model))
    graph = Graph(result)
    folded = {
        name: value for node in result.graph.node for name in node.output if (value := graph.constant(name)) is not None
    }
    nodes = [node for node in result.graph.node if not set(node.output) <= set(folded)]
    read = {name for node in nodes for name in node.input}
    kept = [item for item in result.graph.initializer if item.name in read]
    kept += [onnx.numpy_helper.from_array(value, name) for name, value in folded.items() if name in read]
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(kept)
    onnx.checker.check_model(result)
    return result


def quantize_by_onnxruntime(
    model: onnx.ModelProto,
    feeds: dict[str, Any],
    method: str,
    *,
    spared: list[str],
    smooth: bool = False,
    symmetric: bool = False,
    layers_alone: bool = False,
) -> onnx.ModelProto:
    """As the documentation of onnxruntime says: pre-processing, then static quantization in QDQ, per channel.

    Args:
        model: of :func:`spell_out`.
        feeds: inputs of all pairs, by name.
        method: of its ``CalibrationMethod``.
        spared: nodes that stay float.
        smooth: smooth quant first; needs the package neural-compressor.
        symmetric: int8 without zero points, and biases left float, as TensorRT wants it.
        layers_alone: convolutions and linear layers, not sums and norms.
    """
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

    options: dict[str, Any] = {"SmoothQuant": True} if smooth else {}
    options |= {"ActivationSymmetric": True, "QuantizeBias": False} if symmetric else {}
    with tempfile.TemporaryDirectory() as folder:
        source, prepared, output = (Path(folder) / f"{name}.onnx" for name in ("float", "prepared", "quantized"))
        onnx.save(model, source)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        names = {node.name for node in onnx.load(prepared).graph.node}
        quantize_static(
            prepared,
            output,
            Photos(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[name for name in spared if name in names],
            calibrate_method=getattr(CalibrationMethod, method),
            op_types_to_quantize=list(QUANTIZABLE) if layers_alone else None,
            extra_options=options,
        )
        return onnx.load(output)


def quantize_by_nncf(
    python: Path, model: onnx.ModelProto, feeds: dict[str, Any], settings: dict[str, Any]
) -> onnx.ModelProto:
    """By NNCF in another environment.

    Args:
        python: of it.
        model: of :func:`spell_out`.
        feeds: inputs of all pairs, by name.
        settings: ``preset``; ``ignored``, nodes that stay float; ``bound`` of the accuracy control in pixels, None for
            none; ``pixels`` of a cell.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, arrays, output = (Path(folder) / name for name in ("float.onnx", "feeds.npz", "quantized.onnx"))
        onnx.save(model, source)
        np.savez(arrays, **feeds)
        command = [str(python), "-c", _NNCF, *map(str, (source, arrays, output)), json.dumps(settings)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
        return onnx.load(output)


@app.command("time")
def time_files(
    folder: Folder,
    rounds: Annotated[int, typer.Option(help="Measured rounds.", min=1)] = 15,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 2,
    only: Only = "",
) -> None:
    """Time every file beside the float model; run it alone."""
    chosen = {int(number) for number in only.split(",") if number}
    for file in sorted(folder.glob("[0-9][0-9].onnx")):
        if chosen and int(file.stem) not in chosen:
            continue
        made = file.with_suffix(".json")
        figures = json.loads(made.read_text()) if made.is_file() else {"failed": "broken off"}
        if "failed" in figures:
            continue
        speeds = compare_speed(folder / "float.onnx", file, threads=threads, rounds=rounds)
        figures["speed"] = [asdict(speed) for speed in speeds]
        write_text(file.with_suffix(".json"), json.dumps(figures, indent=1) + "\n")
        note(f"{figures['name']}: {[(s.library, round(s.times, 2)) for s in speeds]}")


@app.command()
def report(folder: Folder, name: Annotated[str, typer.Option(help="Of the model.")] = "cats-tiny") -> None:
    """Put the figures together."""
    rows = [json.loads(file.read_text()) for file in sorted(folder.glob("[0-9][0-9].json"))]
    record = {
        **describe_run("quantizers", ("onnxruntime", "openvino", "onnx", "tensorrt-rtx-cu13")),
        "model": name,
        "pairs": "photos of the shared folder, all to measure and to judge",
        "float": json.loads((folder / "float.json").read_text()),
        "contestants": json.loads(json.dumps(rows).replace(str(SHARED), "shared").replace(str(folder), "FOLDER")),
    }
    write_record(RESULTS / f"quantizers-{name}.json", record)
    lines = [
        f"# Quantizers on {name}",
        "",
        f"{record['date']}, {record['machine']}; written by `benchmarks/studies/quantizers.py`.",
        "",
        "Differences from the float model's flow in pixels at 256 x 256; speed beside the float model in one run.",
        "",
        "| | MB | p99, px | median, px | PCK@0.1 | ONNX Runtime | OpenVINO | TensorRT-RTX |",
        "|---|---|---|---|---|---|---|---|",
    ]
    whole = record["float"]
    lines.append(f"| float32 | {whole['bytes'] / 1e6:.1f} | | | {_percent(whole)} | 1 | 1 | builds |")
    for row in record["contestants"]:
        if "failed" in row:
            lines.append(f"| {row['name']} | failed: {row['failed'][:120]} | | | | | | |")
            continue
        speed = {item["library"]: f"{item['times']:.2f}x" for item in row.get("speed", [])}
        lines.append(
            f"| {row['name']} | {row['bytes'] / 1e6:.1f} | {row['p99_px']:.2f} | {row['median_px']:.2f} "
            f"| {_percent(row)} | {speed.get('onnxruntime', '')} | {speed.get('openvino', '')} "
            f"| {row['tensorrt_rtx'].split(':')[0]} |"
        )
    write_text(RESULTS / f"quantizers-{name}.md", "\n".join(lines) + "\n")


def _percent(row: dict[str, Any]) -> str:
    return f"{row['pck']:.1f}" if "pck" in row else ""


if __name__ == "__main__":
    execute(app)
