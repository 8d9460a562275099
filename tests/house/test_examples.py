"""Every example runs as a user would start it, and prints what it says."""

from __future__ import annotations

import importlib.util
import json
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
    "hf_pipeline": r"\{'keypoint_image_0': \{'x': .*\}, 'keypoint_image_1': \{.*\}, 'score': 0\.[5-9]\d*\}\n",
    "opencv_loop": r"frame: \(\d+, \d+\), \(\d+, \d+\)\n",
}
SHOWS = {
    "match": (r"\[203, 101\] -> \[23\d\.\d 20\d\.\d\] 0\.\d\d\n", "<iframe"),
    "label": (r"nose: \[2\d\d\. 2\d\d\.\], 0\.\d\d\n(.*\n)+\d keypoints of grace_hopper\.jpg\n", "PNG image"),
}
"""Of notebooks: what their cells print, and what one of them shows."""
CELLS = """
import ast, json, sys
space = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, sys.argv[1], "exec"), space)
        value = None if last is None else eval(compile(ast.Expression(last.value), sys.argv[1], "eval"), space)
        if hasattr(value, "_repr_html_"):
            print("SHOWN", value._repr_html_()[:200])
        elif hasattr(value, "_repr_png_"):
            print("SHOWN PNG image", len(value._repr_png_()))
"""
"""Runs the cells of a notebook as Jupyter does, in one namespace, and has the last value of each show itself."""
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


@pytest.mark.parametrize("name", sorted(SHOWS))
def test_notebook(name: str, tmp_path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", CELLS, str(REPOSITORY / "examples" / f"{name}.ipynb")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed, shown = SHOWS[name]
    assert re.search(printed, done.stdout), done.stdout
    assert any(shown in line for line in done.stdout.splitlines() if line.startswith("SHOWN")), done.stdout
    assert not list(tmp_path.iterdir())


def test_notebooks_hold_no_outputs() -> None:
    found = sorted((REPOSITORY / "examples").glob("*.ipynb"))
    assert {path.stem for path in found} == set(SHOWS)
    for path in found:
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            assert not cell.get("outputs"), path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(path) -> None:
    assert len(path.read_text().splitlines()) <= 40
