"""Time and memory of ``cats-export --fp16`` and ``cats-build`` for the published structure (ResNet-101), without a GPU.

The weights are the goldens' (shared/), the last norm of each block scaled to 0.2, because random ones overflow
float16. Each command is a process of its own; memory is the largest resident size that the kernel saw.

Usage: python -m cats.benchmarks.studies.fp16_engine [--output benchmarks/results/NAME.json]
"""

from __future__ import annotations

import datetime
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cats.benchmarks.models import tamed_resnet101
from cats.benchmarks.record import RESULTS, describe_run, write_record
from cats.checkpoints import save_checkpoint
from cats.core.console import execute, new_app, print_json
from cats.core.errors import BackendError
from cats.core.metadata import read_onnx_metadata
from cats.runtime.tensorrt.sidecar import read_sidecar

app = new_app()


def measured(command: str, *arguments: object) -> dict[str, Any]:
    """Run a command of the toolkit; its seconds and its largest resident memory in MiB."""
    program = Path(sys.executable).with_name(command)
    start = time.perf_counter()
    process = subprocess.Popen([program, *map(str, arguments)])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise BackendError(f"{command} ended with {process.returncode}")
    seconds = round(time.perf_counter() - start, 1)
    return {
        "command": f"{command} {' '.join(Path(str(a)).name for a in arguments)}",
        **memory(usage),
        "seconds": seconds,
    }


def memory(usage: resource.struct_rusage) -> dict[str, float]:
    """Largest resident memory (Linux counts KiB) and processor time."""
    return {"peak_mib": round(usage.ru_maxrss / 1024), "cpu_s": round(usage.ru_utime + usage.ru_stime, 1)}


@app.command()
def main_command(
    output: Annotated[Path | None, typer.Option(help="Default: benchmarks/results/fp16-engine-DATE.json.")] = None,
) -> None:
    """Measure and write a dated results file."""
    today = datetime.date.today().isoformat()
    with tempfile.TemporaryDirectory() as folder:
        ckpt, model, plan = (Path(folder, f"resnet101.{suffix}") for suffix in ("pt", "onnx", "plan"))
        save_checkpoint(ckpt, tamed_resnet101("formula"))
        steps = [
            measured("cats-export", "--ckpt", ckpt, "--fp16", "-o", model, "--force"),
            measured("cats-build", model, "-o", plan, "--force"),
        ]
        engine = read_sidecar(plan).engine or {}
        found = {
            **describe_run("fp16_engine", ["torch", "onnx", "tensorrt-rtx-cu13"]),
            "model": "ResNet-101, 8 hyperpixels, weights of the goldens, bn3 scaled to 0.2",
            "steps": steps,
            "onnx_bytes": model.stat().st_size,
            "plan_bytes": plan.stat().st_size,
            "tensorrt": f"{engine['flavour']} {engine['version']}",
            "profiles": engine["profiles"],
            "parity": read_onnx_metadata(model).parity,
        }
    path = output or RESULTS / f"fp16-engine-{today}.json"
    write_record(path, found)
    print_json({"steps": steps})


def main() -> None:
    """Entry point."""
    execute(app)


if __name__ == "__main__":
    main()
