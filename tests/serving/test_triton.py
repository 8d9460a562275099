"""``cats triton``: repositories that Triton's own configuration parser and server take."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from commands import Command, runner
from http_server import ROOT

from cats import cli
from cats.assets import asset
from cats.core.metadata import read_onnx_metadata
from cats.runtime import Match
from cats.runtime.tensorrt.sidecar import sidecar_text
from cats.serving.triton import write_repository

A, B = asset("astronaut.jpg"), asset("grace_hopper.jpg")
ENVIRONMENT = os.environ.get("TRITON_PYTHON", sys.executable)
"""A Python with nvidia-pytriton, tritonclient[http,grpc] and onnxruntime, whose dependencies fit beside no others."""


@pytest.fixture
def cats(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return runner(cli.main, "cats", monkeypatch, capsys)


def need(module: str) -> None:
    if subprocess.run([ENVIRONMENT, "-c", f"import {module}"], capture_output=True, check=False).returncode:
        pytest.skip(f"needs {module}: name a Python that has it in TRITON_PYTHON")


def plan(folder: Path, name: str) -> Path:
    """A file that passes for an engine of cats-build where nobody runs it, with its sidecar."""
    path = folder / name
    data = b"ftrt" + bytes(64)
    path.write_bytes(data)
    shape = {"min": [1, 3, 256, 256], "opt": [4, 3, 256, 256], "max": [16, 3, 256, 256]}
    engine = {
        "flavour": "tensorrt",
        "version": "10.13.3.9",
        "targets": ["sm86"],
        "version_compatible": False,
        "profiles": [{"image_a": shape, "image_b": shape}],
        "sha256": hashlib.sha256(data).hexdigest(),
        "source": "cats-tiny.onnx",
    }
    metadata = read_onnx_metadata(asset("cats-tiny.onnx")).with_(engine=engine)
    (folder / f"{name}.json").write_text(sidecar_text(metadata))
    return path


def test_tritons_parser_takes_every_configuration(tmp_path: Path) -> None:
    need("tritonclient.grpc.model_config_pb2")
    engine = plan(tmp_path, "best.plan")
    write_repository(tmp_path / "models", [asset("cats-tiny.onnx"), asset("cats-tiny.encoder.onnx"), engine])
    script = """
import sys, glob
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
for path in sorted(glob.glob(sys.argv[1] + "/*/config.pbtxt")):
    config = text_format.Parse(open(path).read(), model_config_pb2.ModelConfig())
    assert path.split("/")[-2] == config.name
    print(config.name, config.backend, config.max_batch_size, list(config.dynamic_batching.preferred_batch_size))
"""
    done = subprocess.run([ENVIRONMENT, "-c", script, tmp_path / "models"], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "best tensorrt 16 [4, 16]",
        "best_points python 0 []",
        "cats-tiny onnxruntime 8 []",
        "cats-tiny_encoder onnxruntime 8 []",
        "cats-tiny_matcher onnxruntime 8 []",
        "cats-tiny_points python 0 []",
        "cats-tiny_split_points python 0 []",
    ]


def test_a_repository_is_complete_and_says_how_to_start(cats: Command, tmp_path: Path) -> None:
    done = cats("triton", tmp_path / "models", plan(tmp_path, "best.plan"), "cats-tiny", "--cpu", "--count", 2)
    assert done.code == 0, done.err
    models = tmp_path / "models"
    assert (models / "best" / "1" / "model.plan").read_bytes() == (tmp_path / "best.plan").read_bytes()
    assert (models / "cats-tiny" / "1" / "model.onnx").read_bytes() == asset("cats-tiny.onnx").read_bytes()
    text = (models / "cats-tiny" / "config.pbtxt").read_text()
    assert "count: 2 kind: KIND_CPU" in text
    assert "KIND_GPU" in (models / "best" / "config.pbtxt").read_text()
    readme = (models / "README.md").read_text()
    assert "10.13.3.9" in readme
    assert "exactly this TensorRT" in readme
    assert cats("triton", models, "cats-tiny").code == 0
    assert not (models / "best").exists()


def test_refusals(cats: Command, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    assert "is not empty" in cats("triton", tmp_path / "full", "cats-tiny").error
    assert "two of the files" in cats("triton", tmp_path / "m", "cats-tiny", copy(tmp_path)).error
    assert "none.onnx" in cats("triton", tmp_path / "m", tmp_path / "none.onnx").error
    rtx = plan(tmp_path, "rtx.plan")
    text = Path(f"{rtx}.json").read_text().replace('"flavour": "tensorrt"', '"flavour": "tensorrt-rtx"')
    Path(f"{rtx}.json").write_text(text)
    assert "tensorrt-rtx" in cats("triton", tmp_path / "m", rtx).error
    assert not (tmp_path / "m").exists()


def copy(folder: Path) -> Path:
    path = folder / "cats-tiny.onnx"
    shutil.copyfile(asset("cats-tiny.onnx"), path)
    return path


@contextmanager
def running(repository: Path, folder: Path) -> Iterator[str]:
    """The real Triton server of nvidia-pytriton, with a stand-in for its ONNX Runtime backend; yields host:port."""
    find = "import pytriton, sys, site; print(pytriton.__path__[0]); print(f'3.{sys.version_info[1]}')"
    package, version = subprocess.check_output([ENVIRONMENT, "-c", find], text=True).split()
    packages = Path(package).parent
    backends = folder / "backends"
    shutil.copytree(Path(package) / "tritonserver" / "backends", backends)
    stub = Path(package) / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")
    (backends / "python" / stub.name).chmod(0o755)
    (backends / "onnxruntime").mkdir()
    shutil.copy(Path(__file__).with_name("triton_onnxruntime.py"), backends / "onnxruntime" / "model.py")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [Path(package) / "tritonserver" / "bin" / "tritonserver", f"--model-repository={repository}"]
    command += [f"--backend-directory={backends}", "--http-address=127.0.0.1", f"--http-port={port}"]
    command += ["--allow-grpc=false", "--allow-metrics=false"]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
        "CATS_TRITON_PATH": os.pathsep.join([str(ROOT), str(packages)]),
    }
    with open(folder / "triton.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(1200):
                assert server.poll() is None, (folder / "triton.log").read_text()[-3000:]
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready")
                    break
                except (urllib.error.URLError, OSError):
                    time.sleep(0.25)
            yield f"127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


@pytest.mark.slow
def test_triton_gives_pythons_points(match: Match, tmp_path: Path) -> None:
    need("pytriton")
    repository = tmp_path / "models"
    write_repository(repository, [asset("cats-tiny.onnx"), asset("cats-tiny.encoder.onnx")], cpu=True)
    with running(repository, tmp_path) as host:
        for name in ("cats-tiny_points", "cats-tiny_split_points"):
            command = [ENVIRONMENT, ROOT / "examples" / "triton_client.py", host, name, A, B, "203,101;247,103"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (done.stderr[-2000:], (tmp_path / "triton.log").read_text()[-3000:])
            found = [json.loads(line.split(" -> ")[1].split(" confidence")[0]) for line in done.stdout.splitlines()]
            np.testing.assert_allclose(found, match.transfer([[203, 101], [247, 103]]), atol=0.05)
        outside = subprocess.run([*command[:-1], "9000,1"], capture_output=True, text=True, check=False)
        assert "outside image a" in outside.stderr
