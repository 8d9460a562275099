"""``cats doctor`` and what it knows of the machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
from commands import Command, runner

from cats.assets import asset
from cats.core.errors import BackendError
from cats.runtime import hardware
from cats.runtime.backends import BACKENDS, ort_providers
from cats.runtime.commands import compare_backends
from cats.runtime.commands import doctor as doctor_module
from cats.runtime.commands.doctor import READY, doctor, main
from cats.runtime.hardware import Nvidia, _cgroup_quota, physical_cores, usable_cpus

NO_GPU = Nvidia(None, (), "no NVIDIA driver (libcuda.so.1 is not found)")


@pytest.fixture
def cats_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return runner(main, "cats-doctor", monkeypatch, capsys)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (doctor_module, ort_providers):
        monkeypatch.setattr(module, "nvidia", lambda: NO_GPU)


def test_the_probe_is_a_valid_model() -> None:
    model = onnx.load_from_string(doctor_module._PROBE)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Relu"]


@pytest.mark.usefixtures("no_gpu")
def test_report_without_a_gpu(cats_doctor: Command) -> None:
    done = cats_doctor("--json", "--no-time")
    assert done.code == 0
    found = json.loads(done.out)
    status = {finding["name"]: finding for finding in found["backends"]}
    assert status["onnxruntime --provider cpu"]["status"] == READY
    for name in ("cuda", "tensorrt", "tensorrt-rtx"):
        finding = status[f"onnxruntime --provider {name}"]
        assert finding["status"] == "no"
        assert "no NVIDIA driver" in finding["detail"]
    assert set(BACKENDS) <= {name.partition(" ")[0] for name in status}
    assert found["packages"]["onnxruntime"] == onnxruntime.__version__
    assert found["choice"][".onnx"].startswith("onnxruntime, CPUExecutionProvider: ")
    assert "nothing here" in found["choice"][".plan"]
    assert found["speed"] is None
    shown = cats_doctor("--no-time").out
    for text in ("no NVIDIA driver", "CPUExecutionProvider", "instruction sets", "cats-toolkit"):
        assert text in shown


class Clock:
    """A clock that only moves when a backend runs."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        pass


class Clockwork:
    """A backend whose runs take a known time."""

    inputs = ()

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def run(self, feeds: dict) -> dict:
        self.clock.now += self.seconds
        return {}

    def close(self) -> None:
        pass


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("openvino", "bf16", "expected"),
    [
        (0.01, None, ["--backend openvino is faster here: 0.50 of onnxruntime's time"]),
        (0.04, None, ["onnxruntime, the default, is as fast here"]),
        (0.04, 0.01, ["onnxruntime, the default", "--backend openvino --precision bf16 takes 0.50 of it"]),
        (None, None, []),
    ],
)
def test_openvino_is_recommended_where_it_is_faster(
    cats_doctor: Command,
    monkeypatch: pytest.MonkeyPatch,
    openvino: float | None,
    bf16: float | None,
    expected: list[str],
) -> None:
    def opened(model: Path, backend: str, precision: str = "", provider: str = "") -> Clockwork:
        seconds = 0.02 if backend == "onnxruntime" else bf16 if precision else openvino
        if seconds is None:
            raise BackendError("not here")
        return Clockwork(clock, seconds)

    clock = Clock()
    monkeypatch.setattr(compare_backends, "open_backend", opened)
    monkeypatch.setattr(compare_backends, "time", clock)
    monkeypatch.setattr(compare_backends, "measure_apart", compare_backends.measure)
    monkeypatch.setattr(compare_backends, "cpu_features", lambda: ("avx2", "avx512_vnni"))
    expected = [*expected, "this CPU has VNNI: int8"] if expected else []
    speed, shown = json.loads(cats_doctor("--json").out)["speed"], cats_doctor().out
    assert len(speed["advice"]) == len(expected)
    for line, start in zip(speed["advice"], expected, strict=True):
        assert line.startswith(start)
        assert line in shown


def test_the_shipped_model_is_really_timed() -> None:
    (first, *_) = compare_backends.measure(asset("cats-tiny.onnx"), rounds=1)
    assert first.name == "onnxruntime"
    assert first.ms > 1
    assert first.ratio == 1


def test_a_library_that_crashes_is_said(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"junk")
    found = compare_backends.recommend(tmp_path / "broken.onnx")
    assert found["measured"] == []
    assert found["advice"][0].startswith("no speeds were measured: the process that measures them failed: ")


@pytest.mark.usefixtures("no_gpu")
def test_nothing_installed_exits_2_with_the_fix(cats_doctor: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for entry in BACKENDS.values():
        monkeypatch.setitem(sys.modules, entry.library, None)
    done = cats_doctor()
    assert "pip install 'cats-toolkit[cpu]'" in done.error
    assert "cats-toolkit[cpu]" in done.out


def test_two_onnxruntimes_are_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "installed_distributions", lambda: ["onnxruntime", "onnxruntime-gpu"])
    assert any("pip uninstall onnxruntime onnxruntime-gpu" in warning for warning in doctor()["warnings"])


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_quota_of_a_container(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert _cgroup_quota(tmp_path) == expected


def test_cpu_counts() -> None:
    assert usable_cpus() >= 1
    assert physical_cores() >= 1
    assert hardware.cpu_name()


def test_a_provider_that_raises_is_diagnosed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ONNX Runtime's TensorRT provider does, with a place in its sources and no name of the library."""

    def fail(*_: object) -> None:
        raise RuntimeError("/src/state.cc:729 Please install TensorRT libraries")

    monkeypatch.setattr(doctor_module, "choose_provider", lambda ort, wanted: ("TensorrtExecutionProvider", "as asked"))
    monkeypatch.setattr(doctor_module, "create_session", fail)
    monkeypatch.setattr(doctor_module, "diagnose", lambda ort, provider: f"{provider} misses libnvinfer.so.10")
    problem = doctor_module._provider_problem(onnxruntime, "tensorrt")
    assert problem == "TensorrtExecutionProvider misses libnvinfer.so.10"


@pytest.mark.gpu
def test_gpus_are_listed() -> None:
    state = hardware.nvidia()
    if state.problem:
        pytest.skip(state.problem)
    assert state.gpus[0].name
    assert state.gpus[0].compute_capability >= (5, 0)
    assert state.gpus[0].memory_bytes > 1 << 30


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("avx2", "avx512_vnni", "amx_int8"), "AMX"),
        (("avx2", "avx_vnni"), "has VNNI"),
        (("avx2",), "--weight-bits 7"),
        ((), "cats-calibrate"),
    ],
)
def test_the_flags_of_the_cpu_say_what_to_try(flags, word):
    assert word in compare_backends.advise_precision(flags)
