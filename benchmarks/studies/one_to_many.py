"""One image against N with a split model in ONNX Runtime: cost per pair, as a ratio to a single pair of the pair file.

Usage: python benchmarks/studies/one_to_many.py PAIR.onnx SPLIT OUT.json [N]   (interleaved rounds, medians, 2 threads)
"""

from __future__ import annotations

import datetime
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from cats.core.files import write_text
from cats.runtime import Matcher
from cats.runtime.hardware import cpu_name

ROUNDS, THREADS, PHOTOS = 3, 2, 32


def main() -> None:
    """Measure pair, gallery (encoded before, and with its encoding) and a table of photos; write JSON."""
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 64
    rng = np.random.default_rng(0)
    images = [np.kron(rng.integers(0, 255, (32, 40, 3), np.uint8), np.ones((16, 16, 1), np.uint8)) for _ in range(8)]
    start = time.perf_counter()
    pair = Matcher(sys.argv[1], "onnxruntime", threads=THREADS)
    pair.match(images[0], images[1])
    first_match = time.perf_counter() - start
    split = Matcher(sys.argv[2], "onnxruntime", threads=THREADS)
    gallery = [images[k % len(images)] for k in range(count)]
    features = split.encode_batch(images)
    encoded = [features[k % len(images)] for k in range(count)]
    seconds: dict[str, list[float]] = {"pair": [], "encoded_before": [], "encode": [], "table": [], "model_alone": []}
    split.match_gallery(images[0], encoded[:8])
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{k}.jpg" for k in range(PHOTOS)]
        for k, file in enumerate(files):
            Image.fromarray(np.roll(images[k % 8], k, axis=1)).save(file, quality=92)
        table = list(zip(files[::2], files[1::2], strict=True))
        tensors = [pair._prepare(file) for file in files]
        ready = list(zip(tensors[::2], tensors[1::2], strict=True))
        for _ in range(ROUNDS):
            seconds["pair"].append(_time(lambda: [pair.match(images[0], b) for b in images]) / len(images))
            seconds["encoded_before"].append(_time(lambda: split.match_gallery(images[0], encoded)) / count)
            seconds["encode"].append(_time(lambda: [split.encode(image) for image in gallery[:8]]) / 8)
            seconds["table"].append(_time(lambda: list(pair.match_many(table))) / len(table))
            seconds["model_alone"].append(_time(lambda: [pair._infer([two], False) for two in ready]) / len(ready))
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "threads": THREADS,
        "file": Path(sys.argv[1]).name,
        "file_megabytes": round(Path(sys.argv[1]).stat().st_size / 1e6, 1),
        "gallery": count,
        "rounds": ROUNDS,
        "ms": {name: round(value * 1000, 2) for name, value in middle.items()},
        "ms_all": {name: [round(value * 1000, 2) for value in values] for name, values in seconds.items()},
        "load_and_first_match_s": round(first_match, 3),
        "cost_per_pair_encoded_before": round(middle["encoded_before"] / middle["pair"], 3),
        "cost_per_pair_with_encoding": round((middle["encoded_before"] + middle["encode"]) / middle["pair"], 3),
        "table_to_model_alone": round(middle["table"] / middle["model_alone"], 3),
    }
    print(json.dumps(result, indent=2))
    write_text(sys.argv[3], json.dumps(result, indent=2) + "\n")


def _time(work) -> float:  # type: ignore[no-untyped-def]
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
