"""The wheel that users get: built by ``make wheels``, installed into a fresh environment, run there."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from clone import copy_clone

from cats.assets import asset

pytestmark = pytest.mark.slow  # minutes, and an index of packages

LOAD = """
import ctypes, pathlib, cats.runtime.c
library = ctypes.CDLL(str(pathlib.Path(cats.runtime.c.__file__).with_name("libcats.so")))
library.cats_version.restype = ctypes.c_char_p
print(library.cats_version().decode())
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Output of a command that must end well; nothing of this process's paths is seen."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clone = copy_clone(tmp_path_factory.mktemp("clone"))
    said = run("make", "wheels", f"PYTHON={sys.executable}", cwd=clone)
    assert "is consistent with the following platform tag" in said
    assert said.count("PASSED") == 3
    return clone / "dist"


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commands of a fresh environment with the wheel for this system."""
    place = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", place, cwd=place)
    (wheel,) = dist.glob("*manylinux*.whl")
    run(place / "bin/python", "-m", "pip", "install", "--quiet", f"cats-toolkit[cpu] @ {wheel.as_uri()}", cwd=place)
    return place / "bin"


def test_names_of_what_is_built(dist: Path) -> None:
    names = sorted(path.name.partition("-")[2].partition("-")[2] for path in dist.glob("*.whl"))
    assert len(names) == 2
    assert names[0].startswith("py3-none-any")
    assert names[1].startswith("py3-none-manylinux")
    assert "manylinux2014" in names[1]
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "LICENSE", "runtime/c/include/cats.h", "assets/cats-tiny.onnx"} <= held


def test_wheel_runs_in_a_fresh_environment(installed: Path, tmp_path: Path) -> None:
    photos = [asset(name) for name in ("astronaut.jpg", "grace_hopper.jpg")]
    run(installed / "cats-run", "cats-tiny", *photos, "-o", "match.png", cwd=tmp_path)
    assert (tmp_path / "match.png").stat().st_size > 10_000
    assert "cats-toolkit" in run(installed / "cats", "--version", cwd=tmp_path)
    shown = run(installed / "python", "-c", "import cats.runtime; print(cats.runtime.__file__)", cwd=tmp_path)
    assert str(installed.parent) in shown
    assert run(installed / "python", "-c", LOAD, cwd=tmp_path).strip()
