"""Engines really built by TensorRT-RTX, and every plan that must be refused before TensorRT sees it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import runner
from made_once import made_once

from cats.assets import asset
from cats.checkpoints import save_checkpoint
from cats.core.errors import BackendError, InputError
from cats.core.metadata import read_onnx_metadata
from cats.model import CATs, CATsConfig
from cats.runtime.commands import build, run
from cats.runtime.hardware import nvidia
from cats.runtime.tensorrt.engine import _build, _load_timing_cache, _write
from cats.runtime.tensorrt.flavours import FLAVOURS
from cats.runtime.tensorrt.sidecar import read_sidecar

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'cats-toolkit[tensorrt-rtx]'")
without_gpu = pytest.mark.skipif(nvidia().problem is None, reason="this machine has a GPU")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from cats.export.export import export_onnx

    def export(folder):
        torch.manual_seed(0)
        config = CATsConfig(
            "tf_efficientnet_lite0", (2, 3), image_size=64, feature_size=4, projection_dim=16, num_heads=4
        )
        save_checkpoint(folder / "small.pt", CATs(config, zero_start=True))
        export_onnx(CATs(config, zero_start=True).eval(), folder / "small.onnx", verified=False)

    return made_once(tmp_path_factory, "engine-model", export) / "small.onnx"


@pytest.fixture
def cats_build(monkeypatch, capsys):
    return runner(build.main, "cats-build", monkeypatch, capsys)


@pytest.fixture
def cats_run(monkeypatch, capsys):
    return runner(run.main, "cats-run", monkeypatch, capsys)


@pytest.fixture(scope="module")
def engine(model, tmp_path_factory):
    from cats.runtime.tensorrt.engine import EngineOptions, build_engine

    plan = tmp_path_factory.mktemp("engine") / "small.plan"
    return build_engine(model, plan, options=EngineOptions(batch=(1, 2, 4), targets=("sm89",)))


def test_plan_and_sidecar(engine, model):
    assert engine.read_bytes()[:4] == b"vtrt"
    metadata, source = read_sidecar(engine), read_onnx_metadata(model)
    assert metadata.with_(engine=None) == source
    described = metadata.engine
    assert described["flavour"] == "tensorrt-rtx"
    assert described["targets"] == ["sm89"]
    assert described["profiles"][0]["image_a"] == {"min": [1, 3, 64, 64], "opt": [2, 3, 64, 64], "max": [4, 3, 64, 64]}


def test_engines_are_not_overwritten(engine, model, cats_build):
    before = engine.stat().st_mtime_ns
    assert "--force" in cats_build(model, "-o", engine).error
    assert engine.stat().st_mtime_ns == before
    assert cats_build(model, "-o", engine, "--force", "--target", "sm89", "--batch", "1,2,4", "--json").code == 0


def test_of_two_builds_at_once_the_second_is_refused(tmp_path):
    plan, sidecar = tmp_path / "x.plan", tmp_path / "x.plan.json"
    _write(plan, b"first", "{1}", force=False)
    with pytest.raises(InputError, match="--force"):
        _write(plan, b"second", "{2}", force=False)
    assert (plan.read_bytes(), sidecar.read_text()) == (b"first", "{1}")
    _write(plan, b"second", "{2}", force=True)
    assert (plan.read_bytes(), sidecar.read_text()) == (b"second", "{2}")
    assert sorted(tmp_path.iterdir()) == [plan, sidecar]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_build_and_reaches_the_commands_handler(number):
    seen, asked = [], []
    previous = signal.signal(number, lambda number, _: seen.append(number))
    trt = SimpleNamespace(IProgressMonitor=type("IProgressMonitor", (), {"__init__": lambda self: None}))
    config = SimpleNamespace()

    def build(network, config):
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        asked.append(monitor.step_complete("Building", 0))
        signal.raise_signal(number)
        asked.append(monitor.step_complete("Building", 1))

    try:
        with pytest.raises(KeyboardInterrupt):
            _build(trt, SimpleNamespace(build_serialized_network=build), None, config, SimpleNamespace(errors=[]))
    finally:
        signal.signal(number, previous)
    assert asked == [True, False]
    assert seen == [number]


@pytest.mark.parametrize("at", range(4))
def test_an_interrupt_while_writing_leaves_both_files_or_none(at, tmp_path, monkeypatch):
    plan, replace, calls = tmp_path / "x.plan", Path.replace, []

    def interrupted(self, target):
        calls.append(target)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _write(plan, b"engine", "{}", force=False)
    monkeypatch.undo()
    left = {path.name for path in tmp_path.iterdir()}
    assert left in (set(), {"x.plan", "x.plan.json"})
    assert bool(left) == (at > 0)  # from the first note on, the pair is completed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch", "4,2,1"), "smallest <= best <= largest"),
        (("--batch", "many"), "three numbers"),
        (("--target", "sm30"), "knows sm80"),
        (("--target", "current"), "knows sm80"),
        (("--target", "sm75"), "no float32 products for sm75"),
        (("-o", "x.onnx"), "ends in .plan or .engine"),
        (("-o", "nowhere/x.plan"), "the folder nowhere does not exist"),
        (("--timing-cache", "/"), "it is a folder"),
        (("--timing-cache", "nowhere/x.cache"), "the folder nowhere does not exist"),
        (("--timing-cache", "x.cache"), "no timing cache"),
        (("--hardware-compatible",), "--target"),
        (("--version-compatible",), "no version-compatible engines"),
        (("--flavour", "openvino"), "unknown TensorRT flavour"),
        (("--optimization", "9"), "0 to 5"),
    ],
)
def test_impossible_builds_leave_nothing(options, message, model, tmp_path, cats_build):
    assert message in cats_build(model, "-o", tmp_path / "x.plan", *options).error
    assert not list(tmp_path.iterdir())


def test_an_engine_of_the_shipped_model_lies_where_one_works(tmp_path, monkeypatch, cats_build, engine):
    given = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "build_engine", lambda *a, **k: given.append(a) or engine)
    assert cats_build("cats-tiny").code == 0
    assert [(model, str(plan)) for model, plan in given] == [(asset("cats-tiny.onnx"), "cats-tiny.plan")]


@without_gpu
@pytest.mark.parametrize("option", ["--strip-weights", "--refittable"])
def test_refittable_engines_need_a_gpu_to_build_on(option, model, tmp_path, cats_build):
    assert "on a machine with a GPU only" in cats_build(model, "-o", tmp_path / "x.plan", option).error
    assert not list(tmp_path.iterdir())


def test_several_targets(model, tmp_path, cats_build):
    assert cats_build(model, "-o", tmp_path / "x.plan", "--target", "sm86,SM89", "--target", "sm120").code == 0
    assert read_sidecar(tmp_path / "x.plan").engine["targets"] == ["sm86", "sm89", "sm120"]


def test_files_that_are_no_models(tmp_path, cats_build):
    (tmp_path / "x.onnx").write_bytes(b"not a model")
    assert "not an ONNX file" in cats_build(tmp_path / "x.onnx").error
    assert "cannot read" in cats_build(tmp_path / "none.onnx").error
    assert "cats-export --ckpt" in cats_build(tmp_path / "best.pt").error


def test_a_node_that_the_parser_refuses_is_named(model, tmp_path, cats_build):
    onnx = pytest.importorskip("onnx")
    broken = onnx.load(model)
    node = next(node for node in broken.graph.node if node.op_type == "Conv")
    node.op_type, node.domain, node.name = "Mystery", "nowhere", "the_node"
    broken.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    onnx.save(broken, tmp_path / "broken.onnx")
    error = cats_build(tmp_path / "broken.onnx").error
    assert "the_node" in error
    assert "Mystery" in error


def test_timing_cache(tmp_path):
    """TensorRT's, on a stand-in for its configuration."""
    path, given = tmp_path / "timing.cache", []
    config = SimpleNamespace(
        create_timing_cache=lambda data: given.append(data) or data,
        set_timing_cache=lambda cache, ignore_mismatch: cache != b"of another GPU",
    )
    assert _load_timing_cache(FLAVOURS["tensorrt"], config, None) is None
    assert _load_timing_cache(FLAVOURS["tensorrt"], config, path) == b""
    path.write_bytes(b"times")
    assert _load_timing_cache(FLAVOURS["tensorrt"], config, path) == b"times"
    path.write_bytes(b"of another GPU")
    with pytest.raises(BackendError, match="remove it or give another file"):
        _load_timing_cache(FLAVOURS["tensorrt"], config, path)


def test_ctrl_c_leaves_nothing(model, tmp_path):
    code = "from cats.runtime.commands.build import main; import tensorrt_rtx; print('ready', flush=True); main()"
    command = [sys.executable, "-c", code, str(model), "-o", str(tmp_path / "x.plan")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode in (130, 0), errors  # 0: the build was quicker
    if process.returncode == 130:
        assert not list(tmp_path.iterdir())


@without_gpu
def test_without_a_gpu_the_onnx_file_is_named(engine, cats_run):
    error = cats_run(engine, "a.jpg", "b.jpg").error
    assert "needs an NVIDIA GPU" in error
    assert "sm89" in error
    assert "small.onnx" in error


@without_gpu
def test_portable_engines_name_their_compute_capabilities(model, tmp_path, cats_build, cats_run):
    assert cats_build(model, "-o", tmp_path / "x.plan").code == 0
    assert "compute capability: 8.0, 8.6, 8.9, 12.0 or later" in cats_run(tmp_path / "x.plan", "a.jpg", "b.jpg").error


def test_two_swapped_sidecars(engine, model, tmp_path, cats_build, cats_run):
    """Of two good engines with good sidecars."""
    names = [tmp_path / "one.plan", tmp_path / "two.plan"]
    for name, batch in zip(names, ("1,1,2", "1,2,4"), strict=True):
        assert cats_build(model, "-o", name, "--target", "sm89", "--batch", batch).code == 0
    one, two = (name.with_name(f"{name.name}.json") for name in names)
    texts = one.read_text(), two.read_text()
    one.write_text(texts[1])
    two.write_text(texts[0])
    for name in names:
        assert "sidecar of another engine" in cats_run(name, "a.jpg", "b.jpg").error


def copied(engine, folder):
    plan = folder / "copy.plan"
    plan.write_bytes(engine.read_bytes())
    (folder / "copy.plan.json").write_bytes(engine.with_name("small.plan.json").read_bytes())
    return plan


@pytest.mark.parametrize(
    "damage",
    ["truncated", "changed", "foreign", "empty", "no sidecar", "other sidecar", "no json", "deep json", "large"],
)
def test_plans_that_are_refused(damage, engine, tmp_path, cats_run):
    plan = copied(engine, tmp_path)
    sidecar, data = tmp_path / "copy.plan.json", engine.read_bytes()
    if damage == "truncated":
        plan.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        plan.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "foreign":
        plan.write_bytes(b"ELF" + data)
    elif damage == "empty":
        plan.write_bytes(b"")
    elif damage == "no sidecar":
        sidecar.unlink()
    elif damage == "other sidecar":
        document = json.loads(sidecar.read_text())
        document["engine"]["sha256"] = "0" * 64
        sidecar.write_text(json.dumps(document))
    elif damage == "large":
        with open(sidecar, "wb") as file:
            file.truncate(1 << 40)  # sparse
    else:
        sidecar.write_text("{" if damage == "no json" else "[" * 100_000)
    error = cats_run(plan, "a.jpg", "b.jpg").error
    expected = {
        "foreign": "not a TensorRT engine",
        "empty": "not a TensorRT engine",
        "no sidecar": "no sidecar",
        "no json": "not JSON",
        "deep json": "not JSON: nested",
        "large": "over the limit of 16 MiB",
    }
    assert expected.get(damage, "other sha256") in error
