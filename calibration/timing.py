"""A quantized file against its float file on this machine: side by side, in the libraries that are installed."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cats.core.console import note, progress
from cats.core.errors import BackendError
from cats.runtime.backends import open_backend
from cats.runtime.backends.base import Array, TensorSpec

LIBRARIES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
ROUNDS = 15
_PAUSE = 0.03  # seconds; ONNX Runtime's idle threads spin for a while


@dataclass(frozen=True)
class SpeedUp:
    """One library.

    Attributes:
        library: of :data:`LIBRARIES`.
        float_ms, quantized_ms: medians of one pair.
        times: how often the quantized file runs while the float file runs once: median over the rounds.
        low, high: the central half of the rounds.
    """

    library: str
    float_ms: float
    quantized_ms: float
    times: float
    low: float
    high: float


def compare_speed(
    float_file: str | Path, quantized_file: str | Path, *, threads: int | None = None, rounds: int = ROUNDS
) -> list[SpeedUp]:
    """Time both files by turns on one pair of noise on the CPU, in every library that is installed and runs both.

    Args:
        float_file, quantized_file: ONNX files of one kind.
        threads: CPU threads; None takes all.
        rounds: of which each is one timed run of either file, after one that is not.
    """
    found = []
    options = {} if threads is None else {"threads": threads}
    for library in LIBRARIES:
        opened = []
        try:
            for path in (float_file, quantized_file):
                provider = {"provider": "cpu"} if library == "onnxruntime" else {}
                opened.append(open_backend(path, library, **provider, **options))
        except BackendError:
            for backend in opened:
                backend.close()
            continue
        rng = np.random.default_rng(0)
        feeds = {spec.name: _noise(spec, rng) for spec in opened[0].inputs}
        times: list[list[float]] = []
        try:
            with progress() as bar:
                task = bar.add_task(f"timing in {LIBRARIES[library]}, rounds", total=rounds)
                for number in range(rounds + 1):
                    times.append([])
                    for backend in opened:
                        time.sleep(_PAUSE)
                        backend.run(feeds)
                        start = time.perf_counter()
                        backend.run(feeds)
                        times[-1].append(1000 * (time.perf_counter() - start))
                    bar.advance(task, number > 0)
        finally:
            for backend in opened:
                backend.close()
        del times[0]
        low, median, high = np.percentile([before / after for before, after in times], (25, 50, 75))
        before, after = (statistics.median(column) for column in zip(*times, strict=True))
        found.append(SpeedUp(library, before, after, float(median), float(low), float(high)))
    return found


def _noise(spec: TensorSpec, rng: np.random.Generator) -> Array:
    """Noise for one input; pictures of an end-to-end model are 640 x 480."""
    if spec.dtype == np.uint8:
        shape = [side or free for side, free in zip(spec.shape, (1, 480, 640, 3), strict=True)]
        return rng.integers(0, 256, shape, np.uint8)
    return rng.standard_normal([side or 1 for side in spec.shape]).astype(spec.dtype)


def print_speed(speeds: list[SpeedUp], target: str, kind: str = "pair") -> None:
    """Say on stderr how fast a file is here, plainly where it is not faster.

    Args:
        target: that it was made for.
        kind: of the file.
    """
    unit = "a photo" if kind == "encoder" else "a pair"
    for speed in speeds:
        note(
            f"{LIBRARIES[speed.library]} on this CPU: {speed.times:.2f} times as fast as the float file "
            f"({speed.low:.2f} to {speed.high:.2f}), {speed.quantized_ms:.1f} ms {unit} instead of {speed.float_ms:.1f}"
        )
        if speed.times <= 1 or speed.low < 1:
            why = (
                "it is made for TensorRT; for CPUs give --for cpu"
                if target == "tensorrt"
                else "run the float file there"
            )
            note(f"warning: not faster in {LIBRARIES[speed.library]} on this CPU: {why}")
