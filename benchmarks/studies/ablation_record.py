"""The record of the study of ablations: runs of several processes or machines in one file, and the table of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from cats.benchmarks.record import RESULTS, describe_run
from cats.benchmarks.studies.ablation_rows import ROWS
from cats.core.errors import InputError
from cats.core.json_text import parse_json

RECORD, TABLE = RESULTS / "ablations.json", RESULTS / "ablations.md"
SETTING = (
    "Frozen EfficientNet-Lite0 (blocks 11, 12, 15; single level and COTR 15), aggregator of depth 1, 4 heads, "
    "feed-forward ratio 1 (COTR 8 heads, 4), random start, temperature 0.02; trained on photos of Caltech-101 without "
    "keypoints, every fifth category held out, judged by PCK (corrected) on pairs of PF-WILLOW."
)
KEYS = ("objective", "row", "seed", "steps", "batch", "pool", "pairs", "device", "amp")
"""What tells runs apart."""


def key_of(run: dict[str, Any]) -> tuple[Any, ...]:
    """The identity of a run."""
    return tuple(run[name] for name in KEYS)


def describe() -> dict[str, Any]:
    """When and on what something was measured."""
    head = describe_run("ablations", ["torch", "timm"])
    return {name: head[name] for name in ("date", "machine", "versions")}


def read_record(path: Path = RECORD) -> dict[str, Any]:
    """What is recorded, or an empty record."""
    if path.is_file():
        return parse_json(path.read_text("utf-8"), path.name)
    return {"study": "ablations", "setting": SETTING, "runs": []}


def append_run(path: Path, run: dict[str, Any]) -> None:
    """Append one line, in one piece, so that several processes may share the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (json.dumps(run, allow_nan=False) + "\n").encode())
    finally:
        os.close(descriptor)


def merge_runs(document: dict[str, Any], files: list[Path]) -> dict[str, Any]:
    """The record with the runs of files that :func:`append_run` wrote; of runs that are there already, the first stays.

    Raises:
        InputError: a line is not a run.
    """
    runs = {key_of(run): run for run in document["runs"]}
    for file in files:
        for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1):
            run = parse_json(line, f"{file.name}, line {number}")
            missing = [name for name in (*KEYS, "pck") if not isinstance(run, dict) or name not in run]
            if missing:
                raise InputError(f"{file.name}, line {number} is not a run of this study: {', '.join(missing)} missing")
            runs.setdefault(key_of(run), run)
    names = list(ROWS)
    ordered = sorted(runs.values(), key=lambda r: (r["objective"], r["steps"], names.index(r["row"]), r["seed"]))
    return {**document, "runs": ordered}


def table(document: dict[str, Any]) -> str:
    """The record as Markdown: PCK as mean and range over the seeds, losses as means."""
    runs = document["runs"]
    machines = sorted({f"{run['date']}, {run['machine']}" for run in runs if "machine" in run})
    lines = ["# Ablations and COTR in one setting", "", f"{document['setting']} Measured: {'; '.join(machines)}.", ""]
    lines += ["| row | objective | updates | items of one | pairs | seeds | PCK@0.1 | range | PCK@0.05 | the paper |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|---:|---|"]
    groups: dict[tuple[str, str, int, int, int], list[dict[str, Any]]] = {}
    for run in runs:
        group = (run["objective"], run["row"], run["steps"], run["batch"], run["pairs"])
        groups.setdefault(group, []).append(run["pck"])
    for (objective, row, *sizes), scores in groups.items():
        coarse, fine = ([pck[alpha] for pck in scores] for alpha in ("0.1", "0.05"))
        spread = f"{min(coarse):.1f} to {max(coarse):.1f}" if len(coarse) > 1 else ""
        means = f"{np.mean(coarse):.1f} | {spread} | {np.mean(fine):.1f}"
        setting = " | ".join(map(str, sizes))
        lines.append(f"| {row} | {objective} | {setting} | {len(scores)} | {means} | {ROWS[row].paper} |")
    if document.get("costs"):
        lines += ["", "| row | time of a single level | GFLOP | learnt parameters |", "|---|---:|---:|---:|"]
        for row, cost in document["costs"]["rows"].items():
            ratio = cost["ratio"]
            interval = f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
            lines.append(f"| {row} | {interval} | {cost['GFLOP']:.2f} | {cost['parameters'] / 1e6:.2f} M |")
    return "\n".join([*lines, ""])
