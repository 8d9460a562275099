"""What every study shares: the shared photos, calls that time themselves, and a record of when and where it ran."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cats.core.console import note
from cats.core.files import write_text
from cats.runtime.hardware import cpu_features, cpu_name, nvidia, usable_cpus

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
SHARED = Path(os.environ.get("CATS_SHARED", REPOSITORY.parent / "shared"))
"""Photos and keypoints that are not in the repository: ``CATS_SHARED``, else the folder ``shared`` beside the clone."""


def timed(call: Callable[[], object], per: int = 1) -> Callable[[], float]:
    """The same call, returning the milliseconds that it took for each of ``per`` pieces of work."""

    def run() -> float:
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start) / per

    return run


def spread(values: ArrayLike) -> dict[str, float]:
    """Median and quartiles of a sample (n,): ``median``, ``q25``, ``q75``."""
    low, median, high = np.percentile(np.asarray(values, np.float64), (25, 50, 75))
    return {"median": round(float(median), 4), "q25": round(float(low), 4), "q75": round(float(high), 4)}


def describe_run(study: str, packages: Iterable[str] = (), threads: int | None = None) -> dict[str, Any]:
    """The head of a record: ``study``, ``date``, ``machine`` and ``versions`` of Python and of the named packages."""
    gpus = [gpu.name for gpu in nvidia().gpus]
    used = f"{threads} of {usable_cpus()} CPUs" if threads else f"{usable_cpus()} CPUs"
    return {
        "study": study,
        "date": datetime.date.today().isoformat(),
        "machine": f"{cpu_name()} ({', '.join(cpu_features())}), {used}, {', '.join(gpus) or 'no GPU'}",
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
    }


def write_record(path: str | Path, record: dict[str, Any]) -> None:
    """Write a record as JSON and say where."""
    write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
    note(f"wrote {path}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
