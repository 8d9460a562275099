"""Every example runs as a user would start it, and prints what it says."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from cats.benchmarks.record import REPOSITORY

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
PRINTS = {
    "match_two_photos": r"a \(203, 101\) -> b \(\d+\.\d, \d+\.\d\), confidence 0\.\d\d\n",
    "one_against_many": r"astronaut\.jpg -> grace_hopper\.jpg: mean confidence 0\.\d\d\n",
    "export_and_check": r"verified: True\nflow differs from PyTorch by 0\.0\d+ px",
    "quantize": r"\d\.\d MB instead of 1\d\.\d\nthe flow moved by \d+\.\d\d px",
    "label_photos": r"grace_hopper\.jpg: nose at \(\d+, \d+\), probability [01]\.\d\d\n",
    "opencv_loop": r"frame: \(\d+, \d+\), \(\d+, \d+\)\n",
}
ELSEWHERE = {"http_client", "ray_serve", "triton_client"}  # need a server: run by the tests of serving
GPU = {"pycuda_caller"}


def test_every_example_is_run_somewhere() -> None:
    assert {path.stem for path in EXAMPLES} <= {*PRINTS, *ELSEWHERE, *GPU}
    for name in ELSEWHERE & {path.stem for path in EXAMPLES}:
        assert any(name in path.read_text() for path in (REPOSITORY / "tests/serving").glob("*.py"))


@pytest.mark.parametrize("name", sorted(PRINTS))
def test_example(name: str, tmp_path) -> None:
    if name == "opencv_loop" and importlib.util.find_spec("cv2") is None:
        pytest.skip("OpenCV is not installed")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(REPOSITORY / "examples" / f"{name}.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(PRINTS[name], done.stdout), done.stdout
    assert not list(tmp_path.iterdir())  # it leaves nothing behind


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(path) -> None:
    assert len(path.read_text().splitlines()) <= 40
