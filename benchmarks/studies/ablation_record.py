"""The record of the study of ablations: runs of several processes or machines in one file, and the table of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cats.benchmarks.record import RESULTS, describe_run
from cats.benchmarks.studies.ablation_rows import ROWS
from cats.core.errors import InputError
from cats.core.json_text import parse_json

RECORD, TABLE = RESULTS / "ablations.json", RESULTS / "ablations.md"
SETTING = (
    "Frozen EfficientNet-Lite0 (blocks 11, 12, 15; single level and COTR 15), aggregator of depth 1, 4 heads, "
    "feed-forward ratio 1 (COTR 8 heads, 4), temperature 0.02, random start (in rows `from zero` the aggregator adds "
    "nothing at first); AdamW at 3e-4, on the GPU in bfloat16; trained on photos of Caltech-101 without keypoints, "
    "every fifth category held out, judged by PCK (`corrected`) on pairs of PF-WILLOW."
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
