"""The real Triton server of nvidia-pytriton, and Python with its packages, whose dependencies fit beside no others."""

from __future__ import annotations

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

import pytest
from http_server import ROOT

PYTHON = os.environ.get("TRITON_PYTHON", sys.executable)
"""A Python with nvidia-pytriton, tritonclient[http,grpc] and onnxruntime."""

SECONDS = 300
_STAND_IN = Path(__file__).parent / "serving" / "triton_onnxruntime.py"


def need(module: str) -> None:
    """Skip the test where :data:`PYTHON` has no such module."""
    if subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True, check=False).returncode:
        pytest.skip(f"needs {module}: name a Python that has it in TRITON_PYTHON")


def run_python(script: str, *arguments: str | Path) -> str:
    """Output of a script in that Python."""
    done = subprocess.run([PYTHON, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@contextmanager
def running(repository: Path, folder: Path) -> Iterator[str]:
    """Triton with a repository, and with a stand-in for its ONNX Runtime backend; yields host:port.

    Args:
        folder: for its backends, and its log, ``triton.log``.
    """
    find = "import pytriton, sys, site; print(pytriton.__path__[0]); print(f'3.{sys.version_info[1]}')"
    package, version = run_python(find).split()
    packages = Path(package).parent
    backends = folder / "backends"
    shutil.copytree(Path(package) / "tritonserver" / "backends", backends)
    stub = Path(package) / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")
    (backends / "python" / stub.name).chmod(0o755)
    (backends / "onnxruntime").mkdir()
    shutil.copy(_STAND_IN, backends / "onnxruntime" / "model.py")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [Path(package) / "tritonserver" / "bin" / "tritonserver", f"--model-repository={repository}"]
    command += [f"--backend-directory={backends}", "--http-address=127.0.0.1", f"--http-port={port}"]
    command += ["--allow-grpc=false", "--allow-metrics=false"]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
        "CATS_TRITON_PATH": os.pathsep.join([str(ROOT), str(packages)]),
        "ORT_DISABLE_TELEMETRY": "1",
    }
    with open(folder / "triton.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait(server, port, folder / "triton.log")
            yield f"127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


def _wait(server: subprocess.Popen, port: int, log: Path) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready")
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    raise AssertionError(f"Triton is not ready after {SECONDS} s: {log.read_text()[-3000:]}")
