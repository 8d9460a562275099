"""``cats-bench cats-tiny``: PyTorch eager and ONNX Runtime's CUDA provider, with ratios within the card."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from cats.assets import asset
from cats.benchmarks.exports import Exports
from cats.benchmarks.gpu.kit import DRY, MODELS, RESULTS, load, record


def main() -> None:
    work, output = MODELS / "bench", RESULTS.absolute().parent / "bench-cats-tiny.json"
    Exports(load("cats-tiny"), work).keep(Path(asset("cats-tiny.onnx")))
    command = [sys.executable, "-m", "cats.benchmarks.cli", "cats-tiny", "--quick", "--work", str(work)]
    command += ["--only", "PyTorch CUDA", *([] if DRY else ["--only", "ONNX Runtime CUDA"])]
    typed = MODELS / "cats-tiny.fp16.onnx"
    if typed.is_file() and not DRY:
        command += ["--file", str(typed)]
    done = subprocess.run([*command, "--force", "-o", str(output)], capture_output=True, text=True)
    if done.returncode:
        record("cats-bench", failed=done.stderr[-1500:])
        return
    print(done.stdout)
    results = json.loads(output.read_text())
    record("cats-bench", file=output.name, machine=results["machine"], packages=results["packages"])
    for row in results["contestants"]:
        wanted = ("description", "device", "baseline", "ms", "ratio", "drift", "ready_ms", "peak_mb")
        record(row["name"], **{key: row[key] for key in wanted})
    for item in results["missing"]:
        record(item["name"], skipped=item["reason"])


if __name__ == "__main__":
    main()
