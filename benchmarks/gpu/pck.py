"""PCK of exported files on the CUDA provider, float32 beside float16, on the PF-WILLOW that the transfer brought."""

from __future__ import annotations

import time
from pathlib import Path

from cats.benchmarks.gpu.kit import CARRIED, DEVICE, DRY, record, step, wait_for
from cats.data import open_dataset
from cats.evaluation.evaluate import evaluate
from cats.runtime import Matcher


def score(path: Path, dataset) -> dict:
    """PCK of all pairs and seconds, photos read and decoded included."""
    start = time.perf_counter()
    with Matcher(path, provider=DEVICE) as matcher:
        result = evaluate(matcher, dataset, ("corrected",), (0.05, 0.1), batch_size=1 if DRY else 16)
        what = matcher.backend.describe()
    seconds = time.perf_counter() - start
    return {"what": what, "pairs": len(dataset), "pck@0.05": result.pck(0.05), "pck@0.1": result.pck(0.1), "s": seconds}


def main() -> None:
    folder = CARRIED / "PF-WILLOW"
    if not folder.is_dir():
        record("PF-WILLOW", skipped="it was not carried: give prepare.sh CATS_SHARED")
        return
    dataset = open_dataset(f"willow:{folder}")
    for precision in ("fp32", "fp16"):
        for name in ("cats-tiny", "resnet101")[: 1 if DRY else None]:
            step(
                f"{name} {precision}",
                lambda n=name, p=precision: score(wait_for(f"{n}.{p}.onnx", 1 if DRY else 100), dataset),
                gpu=not DRY,
            )


if __name__ == "__main__":
    main()
