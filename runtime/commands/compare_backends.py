"""Which backend runs ONNX files fastest on this CPU, measured on a model side by side; for ``cats doctor``."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cats.core.errors import BackendError, CatsError
from cats.core.process import child_environment
from cats.runtime.backends import open_backend
from cats.runtime.hardware import cpu_features, has_vnni

CONTESTANTS: dict[str, dict[str, Any]] = {
    "onnxruntime": {"backend": "onnxruntime", "provider": "cpu"},
    "openvino": {"backend": "openvino"},
    "openvino --precision bf16": {"backend": "openvino", "precision": "bf16"},
}
"""By what follows ``--backend`` on a command line, the settings of :class:`cats.runtime.Matcher`."""

BASELINE = "onnxruntime"
_WARM_UP, _PAUSE = 2, 0.1
_TIMEOUT = 300.0  # seconds, of a machine that is busy with something else


@dataclass(frozen=True)
class Speed:
    """One backend.

    Attributes:
        name: of :data:`CONTESTANTS`.
        ms: median of one pair.
        ratio: median, over the rounds, of its time to ONNX Runtime's of the same round; None without ONNX Runtime.
        slower_rounds: share of the rounds in which it was not faster than that.
    """

    name: str
    ms: float
    ratio: float | None
    slower_rounds: float | None


def measure(model: str | Path, rounds: int = 9) -> list[Speed]:
    """Time every backend of :data:`CONTESTANTS` that runs here on one pair, by turns.

    Args:
        model: ONNX file of kind ``pair``.
        rounds: measured rounds, after two that are not.

    Returns:
        Those that run, in the order of :data:`CONTESTANTS`.
    """
    backends = {}
    for name, options in CONTESTANTS.items():
        try:
            backends[name] = open_backend(model, **options)
        except BackendError:
            continue  # the list of backends says why
    times: dict[str, list[float]] = {name: [] for name in backends}
    rng = np.random.default_rng(0)
    try:
        for number in range(_WARM_UP + rounds):
            for name, backend in backends.items():
                feeds = {
                    spec.name: rng.standard_normal([side or 1 for side in spec.shape]).astype(spec.dtype)
                    for spec in backend.inputs
                }
                time.sleep(_PAUSE)  # ONNX Runtime's threads spin for a while after a run
                start = time.perf_counter()
                backend.run(feeds)
                if number >= _WARM_UP:
                    times[name].append(1000 * (time.perf_counter() - start))
    finally:
        for backend in backends.values():
            backend.close()
    found = []
    for name, values in times.items():
        ratios = [a / b for a, b in zip(values, times[BASELINE], strict=True)] if BASELINE in times else None
        found.append(
            Speed(
                name,
                statistics.median(values),
                statistics.median(ratios) if ratios else None,
                sum(ratio >= 1 for ratio in ratios) / rounds if ratios else None,
            )
        )
    return found


def measure_apart(model: str | Path) -> list[Speed]:
    """As :func:`measure`, in a process of its own: a library that crashes does not take the caller with it.

    Raises:
        BackendError: that process failed, with how it ended.
    """
    command = [sys.executable, "-m", "cats.runtime.commands.compare_backends", os.fspath(model)]
    try:
        done = subprocess.run(
            command, env=child_environment(), capture_output=True, text=True, timeout=_TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BackendError(f"the process that measures them failed: {error}") from error
    return [Speed(**speed) for speed in json.loads(done.stdout.splitlines()[-1])]


def recommend(model: str | Path) -> dict[str, Any]:
    """What :func:`measure` finds, with advice, as plain JSON types.

    Returns:
        ``measured`` (list of :class:`Speed` as dictionaries) and ``advice`` (lines); both empty where there is no
        choice. A backend is called faster where it is so in the median and in three rounds of four.
    """
    try:
        speeds = measure_apart(model)
    except CatsError as error:
        return {"measured": [], "advice": [f"no speeds were measured: {error}"]}
    if len(speeds) < 2:
        return {"measured": [], "advice": []}
    faster = [s for s in speeds if s.ratio is not None and s.ratio < 1 and (s.slower_rounds or 0) <= 0.25]
    exact = [s for s in faster if "bf16" not in s.name]
    advice = []
    if exact:
        advice.append(f"--backend {exact[0].name} is faster here: {exact[0].ratio:.2f} of onnxruntime's time")
    elif any(s.name != BASELINE and "bf16" not in s.name for s in speeds):
        advice.append("onnxruntime, the default, is as fast here as openvino in float32, or faster")
    advice += [
        f"--backend {s.name} takes {s.ratio:.2f} of it, and moves points: compare it with float32 on your photos"
        for s in faster
        if "bf16" in s.name
    ]
    return {"measured": [vars(s) for s in speeds], "advice": [*advice, advise_precision(cpu_features())]}


def advise_precision(flags: Collection[str]) -> str:
    """What is worth trying besides float32 on a CPU with these instruction sets; docs/int8.md has the reasons."""
    quantize = "cats-calibrate MODEL.onnx --images DIR"
    if any(flag.startswith("amx") for flag in flags):
        return f"this CPU has AMX: try bf16 in OpenVINO first, nothing has to be calibrated; int8 with {quantize}"
    if has_vnni(flags):
        return f"this CPU has VNNI: int8 is worth its calibration, {quantize}"
    if "avx2" in flags:
        return f"this CPU has AVX2 without VNNI: int8 gains little, {quantize} --weight-bits 7 measures it"
    return f"what int8 gains on this CPU, {quantize} measures"


if __name__ == "__main__":
    print(json.dumps([asdict(speed) for speed in measure(sys.argv[1])]))
