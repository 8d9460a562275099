"""The kit for a visit to a GPU machine, dry: every step that can run on a CPU runs, the others say why not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cats.benchmarks.gpu import kit, table
from cats.benchmarks.record import REPOSITORY
from cats.runtime.hardware import nvidia

KIT = REPOSITORY / "benchmarks" / "gpu"
pytestmark = pytest.mark.skipif(nvidia().problem is None, reason="this machine has a GPU: run the kit itself")


def run_step(folder: Path, *words: str) -> list[dict]:
    """The results of ``python -m cats.benchmarks.gpu.STEP``, dry."""
    results = folder / "results.jsonl"
    environment = {
        **os.environ, "KIT_DRY": "1", "KIT_RESULTS": str(results), "KIT_MODELS": str(folder),
        "KIT_CARRIED": str(folder),
        "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "2",
    }  # fmt: skip
    command = [sys.executable, "-m", f"cats.benchmarks.gpu.{words[0]}", *words[1:]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in results.read_text().splitlines()]


@pytest.mark.parametrize("step", ["machine", "tensorrt_backend", "layers"])
def test_a_step_without_a_gpu_says_so_and_ends_well(step: str, tmp_path: Path) -> None:
    lines = run_step(tmp_path, step)
    assert {line["step"] for line in lines} == {step}
    assert any(line.get("skipped") == "no GPU" for line in lines)
    assert not any("failed" in line for line in lines), lines


@pytest.mark.slow
def test_the_benchmark_without_a_gpu_has_the_baseline_and_the_reasons(tmp_path: Path) -> None:
    lines = {line["name"]: line for line in run_step(tmp_path, "bench")}
    assert lines["PyTorch eager, as the authors compute"]["device"] == "cpu"
    assert lines["PyTorch eager, as the authors compute"]["drift"]["p99_px"] < 0.01
    for name in ("PyTorch CUDA, as the authors compute", "PyTorch CUDA"):
        assert lines[name]["skipped"]
    assert (tmp_path / "bench-cats-tiny.json").is_file()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
def test_libcats_on_the_cpu_equals_python(tmp_path: Path) -> None:
    from cats.core.errors import CatsError
    from cats.runtime.c import get_library

    try:
        get_library()
    except CatsError as error:
        pytest.skip(str(error))
    lines = {line["name"]: line for line in run_step(tmp_path, "libcats_cuda")}
    assert lines["tensors, cpu"]["p99_px"] < 0.01
    assert lines["pictures, cpu"]["p99_px"] < 0.1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_visit_dry(tmp_path: Path) -> None:
    environment = {**os.environ, "SECONDS_IN_ALL": "3000"}
    command = ["bash", str(KIT / "run.sh"), str(tmp_path), "--dry", "main"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "results-main.jsonl").read_text().splitlines()]
    assert not [line for line in lines if "failed" in line and "installed" not in line["failed"]]


def test_a_failed_step_is_a_line_and_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results.jsonl"
    monkeypatch.setattr(kit, "RESULTS", results)

    def fail() -> None:
        raise RuntimeError("out of luck")

    kit.step("first", fail, gpu=False)
    kit.step("second", lambda: {"ms": 2.0}, gpu=False)
    found = table.lines([str(results)])
    assert [item["name"] for item in found] == ["first", "second"]
    assert found[0]["failed"] == "RuntimeError: out of luck"
    assert table.figures(found[1]) == "ms=2"


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"step": "machine", "name": "gpu", "ms": 1}\n{"step": "mach')
    assert [item["name"] for item in table.lines([str(path)])] == ["gpu"]


@pytest.mark.parametrize("script", ["run.sh", "prepare.sh"])
def test_scripts_are_bash(script: str) -> None:
    subprocess.run(["bash", "-n", str(KIT / script)], check=True)
