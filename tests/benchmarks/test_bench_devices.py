"""cats-bench on two devices: which contestants run, and what their ratios refer to."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
from tiny_models import tiny_model

from cats.assets import asset
from cats.benchmarks import bench as module
from cats.benchmarks import contestants as contestants_module
from cats.benchmarks.bench import Plan, Running
from cats.benchmarks.cli import show
from cats.benchmarks.contestants import BASELINES, contestants, device_of
from cats.benchmarks.exports import Exports
from cats.benchmarks.report import html_report
from cats.benchmarks.statistics import regressions
from cats.core.errors import BackendError
from cats.export.pairs import demo_pairs
from cats.runtime.hardware import Gpu, Nvidia

CPU, GPU = BASELINES["cpu"], BASELINES["gpu"]
ONE_GPU = Nvidia((13, 0), (Gpu(0, "Test GPU", (9, 0), 80 << 30),), None)


class FakeProcess:
    """A contestant that takes ``ms`` for each pair."""

    def __init__(self, spec: dict[str, Any], ms: float = 1.0) -> None:
        self.ms = spec.get("ms", ms)
        self.ready = {"description": "fake", "load_ms": 1.0, "ready_ms": 2.0, "first_ms": 1.0, "peak_mb": 1.0}

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        if do == "flows":
            with np.load(arguments["inputs"]) as inputs:
                np.save(arguments["output"], np.zeros((len(inputs["a"]), 2, 8, 8), np.float32))
        return {"run": {"ms": self.ms}, "stages": {"model": self.ms}}.get(do, {})

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def test_ratios_are_within_one_device(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cats.benchmarks.bench.PAUSE", 0)
    times = {CPU: (40.0, "cpu"), "ONNX Runtime": (20.0, "cpu"), GPU: (8.0, "gpu"), "ONNX Runtime CUDA": (2.0, "gpu")}
    running = {name: Running(FakeProcess({}, ms), None, device) for name, (ms, device) in times.items()}
    rows = module._measure(running, model, Plan(rounds=3, warm_up=0), demo_pairs(), tmp_path)
    found = {row["name"]: (row["device"], row["baseline"], row["ratio"]["median"]) for row in rows}
    assert found == {
        CPU: ("cpu", CPU, 1.0),
        "ONNX Runtime": ("cpu", CPU, 0.5),
        GPU: ("gpu", GPU, 1.0),
        "ONNX Runtime CUDA": ("gpu", GPU, 0.25),
    }
    del running[GPU]
    rows = module._measure(running, model, Plan(rounds=3, warm_up=0), demo_pairs(), tmp_path)
    assert [row["ratio"] for row in rows if row["device"] == "gpu"] == [None]  # never to the CPU's
    assert regressions({"contestants": rows}, {"contestants": rows}) == []


def test_the_gpus_baseline_runs_beside_any_other_row_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Process", FakeProcess)
    monkeypatch.setattr(contestants_module, "nvidia", lambda: ONE_GPU)
    monkeypatch.setattr(contestants_module.torch.cuda, "is_available", lambda: True)
    exports: Any = SimpleNamespace(pair=lambda options: tmp_path / "pair.onnx", checkpoint=lambda: tmp_path / "x.pt")
    started, _ = module._start(exports, Plan(only=("ONNX Runtime CUDA",)), 1)
    assert {name: item.device for name, item in started.items()} == {CPU: "cpu", GPU: "gpu", "ONNX Runtime CUDA": "gpu"}
    started, _ = module._start(exports, Plan(only=("PyTorch eager, ours",)), 1)
    assert set(started) == {CPU, "PyTorch eager, ours"}


def test_files_run_on_both_devices(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exports = Exports(model, tmp_path / "work")
    exports.keep(Path(asset("cats-tiny.onnx")))
    file = exports.pair()
    made = contestants(exports, 1, files=[file])
    assert f"ONNX Runtime, {file.name}" in made
    assert f"ONNX Runtime CUDA, {file.name}" not in made
    with pytest.raises(BackendError, match="no NVIDIA"):
        made["ONNX Runtime CUDA"]()
    monkeypatch.setattr(contestants_module, "nvidia", lambda: ONE_GPU)
    made = contestants(exports, 1, files=[file, tmp_path / "x.plan"])
    devices = {name: device_of(made[name]()) for name in made if name.endswith((file.name, "x.plan"))}
    assert devices == {
        f"ONNX Runtime, {file.name}": "cpu", f"ONNX Runtime CUDA, {file.name}": "gpu", "TensorRT, x.plan": "gpu",
    }  # fmt: skip


def test_tables_and_reports_name_each_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads(_results())
    schema = json.loads((Path(module.__file__).parent / "bench.schema.json").read_text())
    jsonschema.validate(results, schema)
    show(results)
    assert f"ratios within one device, to CPU: {CPU}; GPU: {GPU}" in capsys.readouterr().out
    text = html_report(results)
    assert f"to {CPU} and {GPU}." in text
    assert text.count("<tr class=base>") == 2


def _results() -> str:
    interval = {"median": 1.0, "low": 0.5, "high": 2.0}
    row = {
        "description": "d", "ms": interval, "load_ms": 1.0, "ready_ms": 2.0, "first_ms": 1.0, "peak_mb": 1.0,
        "file_mb": None, "stages_ms": {"model": 1.0}, "pck": None, "gflops": 1.0, "peak_share": None,
        "drift": {"median_px": 0.0, "p99_px": 0.0, "max_px": 0.0, "argmax": False},
    }  # fmt: skip
    rows = [
        {**row, "name": CPU, "device": "cpu", "baseline": CPU, "ratio": interval},
        {**row, "name": GPU, "device": "gpu", "baseline": GPU, "ratio": interval},
        {**row, "name": "TensorRT", "device": "gpu", "baseline": GPU, "ratio": None},
    ]
    model = {"name": "m", "description": "d", "config": {}, "parameters": 1}
    roofline = {"gflop": 1.0, "weights_mb": 1.0, "unfused_mb": 1.0, "fp32_gflops": 1.0, "bf16_gflops": None}
    return json.dumps(
        {
            "format": 1, "date": "2026-11-27", "model": model, "machine": {"CPU": "c"}, "threads": 1, "rounds": 3,
            "baseline": CPU, "contestants": rows, "missing": [], "roofline": {**roofline, "copy_gbs": 1.0},
            "batch_curve": {}, "one_to_many": {}, "stages_split": {},
        }
    )  # fmt: skip
