"""Latency, memory, size and accuracy of everything that runs a model here, side by side; see :func:`bench`."""

from __future__ import annotations

import datetime
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cats.assets import asset
from cats.benchmarks.contestants import BASELINES, contestants, device_of
from cats.benchmarks.exports import OURS, Exports
from cats.benchmarks.models import load_model
from cats.benchmarks.process import Process
from cats.benchmarks.roofline import graph_cost, machine_peaks
from cats.benchmarks.statistics import CONFIDENCE, PAUSE, interleave, median_interval, ratio_interval
from cats.core.console import note
from cats.core.errors import BackendError, CatsError
from cats.data.photo_pairs import PhotoPairs, alike_photos
from cats.export.pairs import demo_pairs
from cats.export.verify import compare
from cats.model import CATs
from cats.runtime.commands.doctor import doctor
from cats.runtime.hardware import physical_cores, usable_cpus

FORMAT = 1
BASELINE = BASELINES["cpu"]
SWEPT = ("ONNX Runtime", "ONNX Runtime int8", "OpenVINO fp32", "OpenVINO bf16", "ONNX Runtime CUDA")
"""Contestants of the batch curve."""

_STAGE_ROUNDS = 5
_BUSY = 0.5  # load average over cores from which other work is in the figures


@dataclass(frozen=True)
class Running:
    """A contestant that runs: its process, its file where it is one, and ``cpu`` or ``gpu``."""

    process: Process
    file: Path | None
    device: str


@dataclass(frozen=True)
class Plan:
    """What a benchmark does.

    Attributes:
        rounds, warm_up: of the interleaved runs.
        threads: of every contestant on the CPU; None takes the physical cores that may be used.
        only, skip: parts of contestants' names; the baseline always runs, that of the GPU with any other one there.
        batches: sizes of the batch curve; empty for none.
        many: sizes of the one-to-many curve; empty for none.
        curve_rounds: rounds of each curve.
        data: annotated pairs ``KIND:DIR`` for PCK.
        files: further model files (.onnx, .plan), such as one of ``cats-calibrate``.
        images: folder of photos, on pairs of which drift is measured; None takes the verification pairs.
        int8: folder of photos to calibrate on; None runs no INT8 of its own making.
        work: folder that keeps exported files.
    """

    rounds: int = 21
    warm_up: int = 3
    threads: int | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1, 2, 4, 8)
    many: tuple[int, ...] = (1, 4, 16, 64)
    curve_rounds: int = 3
    data: str | None = None
    files: tuple[Path, ...] = ()
    images: Path | None = None
    int8: Path | None = None
    work: Path | None = None

    def wants(self, name: str) -> bool:
        """Whether a contestant runs."""
        text = name.lower()
        chosen = not self.only or any(part.lower() in text for part in self.only)
        return name == BASELINE or (chosen and not any(part.lower() in text for part in self.skip))


def bench(model: str = "cats-tiny", plan: Plan | None = None) -> dict[str, Any]:
    """Measure a model in everything that runs it here.

    Args:
        model: checkpoint, or a name of :data:`cats.benchmarks.models.NAMES`.

    Returns:
        Plain JSON types, as ``bench.schema.json`` beside this module describes them.

    Raises:
        InputError, CheckpointError: no such model, or no two photos in ``plan.images``.
        BackendError: the baseline does not run.
    """
    plan = plan or Plan()
    threads = plan.threads or min(physical_cores(), usable_cpus())
    chosen = load_model(model)
    pairs = demo_pairs() if plan.images is None else alike_photos(plan.images)
    load = machine_load()
    if load["busy"]:
        note(
            f"warning: the machine is busy (load average {load['average']:.2f} on {load['cores']} cores): "
            "other work is in these figures"
        )
    with tempfile.TemporaryDirectory(prefix="cats-bench-") as temporary:
        folder = plan.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        exports = Exports(chosen.model, folder)
        running, missing = _start(exports, plan, threads)
        try:
            rows = _measure(running, chosen.model, plan, pairs, Path(temporary))
            curves = _curves(running, exports, plan, threads, missing)
        finally:
            for item in running.values():
                item.process.close()
        cost = graph_cost(exports.pair(OURS))
    peaks = machine_peaks(threads)
    for row in rows:
        bf16 = "bf16" in row["name"] and peaks["bf16_gflops"]
        row["gflops"] = cost["gflop"] / row["ms"]["median"] * 1000
        peak = peaks["bf16_gflops"] if bf16 else peaks["fp32_gflops"]
        cpu_float = row["device"] == "cpu" and "int8" not in row["name"]
        row["peak_share"] = row["gflops"] / peak if cpu_float else None
    found = doctor()
    return {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "model": {
            "name": chosen.name,
            "description": chosen.description,
            "config": chosen.model.config.to_dict(),
            "parameters": sum(value.numel() for value in chosen.model.parameters()),
        },
        "machine": {**found["machine"], **found["toolkit"]},
        "packages": {name: version for name, version in found["packages"].items() if version},
        "threads": threads,
        "rounds": plan.rounds,
        "confidence": CONFIDENCE,
        "baseline": BASELINE,
        "data": plan.data,
        "drift_on": f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''} of {pairs.name}",
        "load": load,
        "contestants": rows,
        "missing": missing,
        "roofline": {**cost, **peaks},
        **curves,
    }


def _start(exports: Exports, plan: Plan, threads: int) -> tuple[dict[str, Running], list[dict[str, str]]]:
    """Start every contestant that is wanted: by name, and the others with the reason."""
    running: dict[str, Running] = {}
    missing: list[dict[str, str]] = []
    makers = contestants(exports, threads, files=plan.files, int8=plan.int8)
    on_gpu = any(plan.wants(name) for name in makers if "CUDA" in name or "TensorRT" in name)
    for name, make in makers.items():
        if not (plan.wants(name) or (name == BASELINES["gpu"] and on_gpu)):
            continue
        note(f"starting {name}")
        try:
            spec = make()
            process = Process({**spec, **_images()})
            running[name] = Running(process, Path(spec["path"]) if spec["kind"] == "file" else None, device_of(spec))
        except CatsError as error:
            if name == BASELINE:
                for item in running.values():
                    item.process.close()
                raise BackendError(f"the baseline does not run: {error}") from error
            missing.append({"name": name, "reason": str(error)})
    return running, missing


def _images() -> dict[str, str]:
    return {"a": str(asset("astronaut.jpg")), "b": str(asset("grace_hopper.jpg"))}


def _measure(
    running: dict[str, Running], model: CATs, plan: Plan, pairs: PhotoPairs, folder: Path
) -> list[dict[str, Any]]:
    note(f"{plan.rounds} interleaved rounds of {len(running)} contestants")
    calls = {name: _timed(item.process) for name, item in running.items()}
    times = interleave(calls, plan.rounds, plan.warm_up)
    laps: dict[str, list[dict[str, float]]] = {name: [] for name in running}
    for _round in range(_STAGE_ROUNDS):
        for name, item in running.items():
            time.sleep(PAUSE)
            laps[name].append(item.process.ask("stages"))
    inputs, expected = _expected(model, pairs, folder)
    rows = []
    for name, item in running.items():
        process, file, baseline = item.process, item.file, BASELINES[item.device]
        flows = folder / "flows.npy"
        process.ask("flows", inputs=str(inputs), output=str(flows))
        drift = _drift(expected, np.load(flows))
        rows.append(
            {
                "name": name,
                "description": process.ready["description"],
                "ms": median_interval(times[name]),
                "device": item.device,
                "baseline": baseline,
                "ratio": ratio_interval(times[name], times[baseline]) if baseline in times else None,
                "load_ms": process.ready["load_ms"],
                "ready_ms": process.ready["ready_ms"],
                "first_ms": process.ready["first_ms"],
                "peak_mb": process.ready["peak_mb"],
                "file_mb": file.stat().st_size / 1e6 if file else None,
                "stages_ms": {key: float(np.median([lap[key] for lap in laps[name]])) for key in laps[name][0]},
                "drift": drift,
                "pck": process.ask("pck", data=plan.data)["pck"] if plan.data else None,
            }
        )
    return rows


def _timed(process: Process, batch: int = 1) -> Callable[[], float]:
    return lambda: float(process.ask("run", batch=batch)["ms"]) / batch


def machine_load() -> dict[str, Any]:
    """How busy the machine was before: ``average`` of runnable processes over a minute, ``cores``, and ``busy``."""
    average, cores = os.getloadavg()[0], usable_cpus()
    return {"average": round(average, 2), "cores": cores, "busy": average >= _BUSY * cores}


def _expected(model: CATs, source: PhotoPairs, folder: Path) -> tuple[Path, Any]:
    """Inputs of pairs as a file, and PyTorch's flow and confidence in float32."""
    pairs = list(source.inputs(model.config.preprocessing))
    a, b = (np.stack([pair[side] for pair in pairs]) for side in (0, 1))
    path = folder / "inputs.npz"
    np.savez(path, a=a, b=b)
    with torch.no_grad():
        flow, confidence = model.match(torch.from_numpy(a), torch.from_numpy(b))
    return path, (flow.numpy(), confidence.numpy())


def _drift(expected: Any, flow: Any) -> dict[str, Any]:
    parity = compare(expected, (flow, expected[1]), tolerance=1.0, source="", against="")
    return {"median_px": parity.median_px, "p99_px": parity.p99_px, "max_px": parity.max_px, "argmax": parity.argmax}


def _curves(
    running: dict[str, Running],
    exports: Exports,
    plan: Plan,
    threads: int,
    missing: list[dict[str, str]],
) -> dict[str, Any]:
    """The batch curve of files, and the one-to-many curve of the split form."""
    result: dict[str, Any] = {"batch_curve": {}, "one_to_many": {}, "stages_split": {}}
    swept = [name for name in SWEPT if name in running]
    if len(plan.batches) > 1:
        calls = {(name, size): _timed(running[name].process, size) for name in swept for size in plan.batches}
        named = {f"{name}|{size}": call for (name, size), call in calls.items()}
        note("batch curve")
        times = interleave(named, plan.curve_rounds, 1)
        result["batch_curve"] = {
            name: {str(size): float(np.median(times[f"{name}|{size}"])) for size in plan.batches} for name in swept
        }
    if plan.many and plan.wants("ONNX Runtime") and "ONNX Runtime" in running:
        note("one against many")
        result["one_to_many"] = _one_to_many(running["ONNX Runtime"].process, exports, plan, threads, result, missing)
    return result


def _one_to_many(
    pair: Process, exports: Exports, plan: Plan, threads: int, result: dict[str, Any], missing: list[dict[str, str]]
) -> dict[str, Any]:
    encoder, matcher = exports.split()
    spec = {
        "kind": "split",
        "encoder": str(encoder),
        "matcher": str(matcher),
        "backend": "onnxruntime",
        "threads": threads,
        "options": {"provider": "cpu", "threads": threads},
    }
    try:
        process = Process({**spec, **_images()})
    except CatsError as error:
        missing.append({"name": "one against many", "reason": str(error)})
        return {}
    try:
        rows: dict[str, Any] = {}
        single: list[float] = []
        laps: list[dict[str, float]] = []
        for number in range(plan.curve_rounds + 1):
            for count in plan.many:
                time.sleep(PAUSE)
                alone = float(pair.ask("run")["ms"])
                time.sleep(PAUSE)
                parts = process.ask("many", count=count)
                if number:
                    single.append(alone)
                    rows.setdefault(str(count), []).append(
                        (parts["match_ms"] / count / alone, (parts["match_ms"] + parts["gallery_ms"]) / count / alone)
                    )
            laps.append(process.ask("stages"))
        result["stages_split"] = {key: float(np.median([lap[key] for lap in laps[1:] or laps])) for key in laps[0]}
        return {
            "pair_ms": float(np.median(single)),
            "encoded_before": {n: float(np.median([a for a, _ in values])) for n, values in rows.items()},
            "with_encoding": {n: float(np.median([b for _, b in values])) for n, values in rows.items()},
        }
    finally:
        process.close()
