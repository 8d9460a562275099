"""One image against N with a split model in ONNX Runtime: cost per pair, as a ratio to a single pair of the pair file.

Usage: python -m cats.benchmarks.studies.one_to_many PAIR.onnx SPLIT OUT.json [N]   (2 threads)
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from cats.benchmarks.record import describe_run, timed, write_record
from cats.core.images import preprocess, read_image
from cats.runtime import Matcher
from cats.runtime.backends.base import Array

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
    ms: dict[str, list[float]] = {"pair": [], "encoded_before": [], "encode": [], "table": [], "model_alone": []}
    split.match_gallery(images[0], encoded[:8])
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{k}.jpg" for k in range(PHOTOS)]
        for k, file in enumerate(files):
            Image.fromarray(np.roll(images[k % 8], k, axis=1)).save(file, quality=92)
        table = list(zip(files[::2], files[1::2], strict=True))
        tensors = [preprocess(read_image(file), pair.metadata.preprocessing)[None] for file in files]
        ready: list[dict[str, Array]] = [
            {"image_a": a, "image_b": b} for a, b in zip(tensors[::2], tensors[1::2], strict=True)
        ]
        for _ in range(ROUNDS):
            ms["pair"].append(timed(lambda: [pair.match(images[0], b) for b in images], per=len(images))())
            ms["encoded_before"].append(timed(lambda: split.match_gallery(images[0], encoded), per=count)())
            ms["encode"].append(timed(lambda: [split.encode(image) for image in gallery[:8]], per=8)())
            ms["table"].append(timed(lambda: list(pair.match_many(table)), per=len(table))())
            ms["model_alone"].append(timed(lambda: [pair.backend.run(feeds) for feeds in ready], per=len(ready))())
    middle = {name: statistics.median(values) for name, values in ms.items()}
    result = {
        **describe_run("one_to_many", ["onnxruntime"], THREADS),
        "file": Path(sys.argv[1]).name,
        "file_megabytes": round(Path(sys.argv[1]).stat().st_size / 1e6, 1),
        "gallery": count,
        "rounds": ROUNDS,
        "ms": {name: round(value, 2) for name, value in middle.items()},
        "ms_all": {name: [round(value, 2) for value in values] for name, values in ms.items()},
        "load_and_first_match_s": round(first_match, 3),
        "cost_per_pair_encoded_before": round(middle["encoded_before"] / middle["pair"], 3),
        "cost_per_pair_with_encoding": round((middle["encoded_before"] + middle["encode"]) / middle["pair"], 3),
        "table_to_model_alone": round(middle["table"] / middle["model_alone"], 3),
    }
    print(json.dumps(result, indent=2))
    write_record(sys.argv[3], result)


if __name__ == "__main__":
    main()
