"""The real cuda-core under the TensorRT backend, on a CUDA driver whose GPU is the host; TensorRT is a stand-in.

The stand-ins of fake_cuda.py accept what they are given. Here every call goes through cuda-core's own code, down to a
driver library that is compiled for the purpose and refuses wrong use.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent / "cuda_core"


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_backend_on_cuda_core(tmp_path):
    pytest.importorskip("cuda.core", reason="needs cuda-core")
    library = tmp_path / "libcuda.so.1"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wno-unused-parameter", "-o", library, HERE / "driver.c"]
    built = subprocess.run([*command, "-Wl,-soname,libcuda.so.1", "-ldl"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert not built.stderr, built.stderr
    paths = [str(tmp_path), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(filter(None, paths)),
        "CATS_DRIVER_LOG": str(tmp_path / "log"),
    }
    checks = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "checks.py")]
    done = subprocess.run(checks, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "24 passed" in done.stdout, done.stdout[-2000:]
