"""Medians and ratios of interleaved runs, with bootstrap confidence intervals."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
PAUSE = 0.2
_RESAMPLES = 2000


def median_interval(values: ArrayLike, seed: int = 0) -> dict[str, float]:
    """Median of a sample (n,) and its percentile-bootstrap interval: ``median``, ``low``, ``high``."""
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError(f"a sample of shape {sample.shape}: (n,) with at least one value is needed")
    median = float(np.median(sample))
    if len(sample) == 1:  # which scipy refuses
        return {"median": median, "low": median, "high": median}
    interval = scipy.stats.bootstrap(
        (sample,), np.median, n_resamples=_RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=seed
    ).confidence_interval
    return {"median": median, "low": float(interval.low), "high": float(interval.high)}


def ratio_interval(values: ArrayLike, baseline: ArrayLike) -> dict[str, float]:
    """Median of the ratios within each round and its interval; both (rounds,), measured in the same rounds."""
    return median_interval(np.asarray(values, np.float64) / np.asarray(baseline, np.float64))


def interleave(
    calls: Mapping[str, Callable[[], float]], rounds: int, warm_up: int, pause: float = PAUSE
) -> dict[str, NDArray[np.float64]]:
    """Run all calls once in every round, each round beginning with another one, and keep what they return.

    Whatever disturbs the machine disturbs all of them alike, and none always follows the same neighbour.

    Args:
        calls: each returns its own duration.
        warm_up: rounds before those that are kept.
        pause: seconds of rest before each call. Thread pools spin for a while after a run, waiting for the next one:
            without a rest, ONNX Runtime takes a core from whatever follows it.

    Returns:
        (rounds,) for each call.
    """
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            time.sleep(pause)
            value = calls[name]()
            if number >= warm_up:
                times[name].append(value)
    return {name: np.array(values) for name, values in times.items()}


def regressions(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Where a new result is worse than an old one beyond the intervals of both, one line each.

    Compared are ratios to the baseline of the same run, never milliseconds of different runs; and accuracy: a flow
    drift (p99) that grew by more than 0.05 px, or a PCK that fell by more than 0.3.

    Args:
        old, new: documents of :func:`cats.benchmarks.bench.bench`.
    """
    found = []
    before = {row["name"]: row for row in old["contestants"]}
    for row in new["contestants"]:
        name = row["name"]
        if name not in before:
            continue
        a, b = before[name], row
        if a["ratio"] and b["ratio"] and b["ratio"]["low"] > a["ratio"]["high"]:
            found.append(f"{name}: {a['ratio']['median']:.3f} -> {b['ratio']['median']:.3f} of the baseline's time")
        if a.get("drift") and b.get("drift") and b["drift"]["p99_px"] > a["drift"]["p99_px"] + 0.05:
            found.append(f"{name}: flow drift p99 {a['drift']['p99_px']:.3f} -> {b['drift']['p99_px']:.3f} px")
        if a.get("pck") is not None and b.get("pck") is not None and b["pck"] < a["pck"] - 0.3:
            found.append(f"{name}: PCK@0.1 {a['pck']:.2f} -> {b['pck']:.2f}")
    gone = set(before) - {row["name"] for row in new["contestants"]}
    found += [f"{name}: no longer runs" for name in sorted(gone)]
    return found
