"""The package as users have it: from a wheel, from an editable installation, and from a clone as it lies."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from clone import copy_clone, product_files

from cats.benchmarks.record import REPOSITORY

SETUPTOOLS = next((d.version for d in importlib.metadata.distributions(name="setuptools")), "0")
needs_setuptools = pytest.mark.skipif(int(SETUPTOOLS.split(".")[0]) < 77, reason="no setuptools, or one before 77")
NOT_IN_THE_PACKAGE = ("runtime/c/fuzz/", "runtime/c/abi/", "examples/")
SHOW = "import cats, cats.assets, cats.export, cats.runtime.commands.run as run; print(cats.__file__, run.__file__)"


def run_python(*arguments: str, cwd: Path, **environment: str) -> str:
    """Standard output of Python in ``cwd``, which must end well; nothing of this process's paths is seen."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=clean | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_clone(tmp_path_factory.mktemp("clone"), without=(".pt",))


def test_a_clone_runs_as_it_lies(clone: Path) -> None:
    assert run_python("-c", SHOW, cwd=clone).split() == [
        str(clone / "cats/__init__.py"), str(clone / "runtime/commands/run.py")
    ]  # fmt: skip
    assert "Match image A to image B" in run_python("-m", "cats.runtime.commands.run", "--help", cwd=clone)


def test_pytest_in_a_clone_tests_that_clone(clone: Path) -> None:
    (clone / "tests").mkdir(exist_ok=True)
    (clone / "tests/test_it.py").write_text(
        "import cats.core.pck\n\ndef test_file():\n    print(cats.core.pck.__file__)\n"
    )
    assert str(clone / "cats/core/pck.py") in run_python("-m", "pytest", "-q", "-s", "tests/test_it.py", cwd=clone)


@needs_setuptools
def test_wheel_holds_every_file_and_runs_elsewhere(clone: Path, tmp_path: Path) -> None:
    build = "import setuptools.build_meta as b; print(b.build_wheel('out'))"
    run_python("-c", build, cwd=clone, CATS_NO_NATIVE="1")
    (wheel,) = (clone / "out").glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    held = {str(path.relative_to(site / "cats")) for path in (site / "cats").rglob("*") if path.is_file()}
    wanted = {
        name.removeprefix("cats/")
        for name in product_files()
        if name.endswith((".py", ".json", ".html", ".js", ".css", ".onnx", ".jpg"))
        and "/" in name
        and not name.startswith(NOT_IN_THE_PACKAGE)
    }
    assert not wanted - held, "not in the wheel: add it to packages or package-data of pyproject.toml"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert all(name.startswith(str(site)) for name in run_python("-c", SHOW, cwd=empty, PYTHONPATH=str(site)).split())
    assert "Match image A" in run_python("-m", "cats.runtime.commands.run", "--help", cwd=empty, PYTHONPATH=str(site))


@needs_setuptools
def test_editable_installation_runs_the_files_of_the_clone(clone: Path, tmp_path: Path) -> None:
    build = "import setuptools.build_meta as b; print(b.build_editable('editable'))"
    run_python("-c", build, cwd=clone, CATS_NO_NATIVE="1")
    (wheel,) = (clone / "editable").glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # This environment may have an editable installation of its own, whose finder has the same name.
    others = (
        "import site, sys; sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in repr(finder)]; "
        "[sys.modules.pop(name) for name in list(sys.modules) if name.startswith('__editable__')]"
    )
    shown = run_python(
        "-c", f"{others}; sys.path.insert(0, {str(site)!r}); site.addsitedir({str(site)!r}); {SHOW}", cwd=tmp_path
    )
    assert shown.split() == [str(clone / "cats/__init__.py"), str(clone / "runtime/commands/run.py")]


def test_packages_lie_where_their_names_say() -> None:
    tomllib = pytest.importorskip("tomllib")
    setuptools = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert setuptools["package-dir"].pop("cats") == "cats"
    assert {name: f"cats.{folder}" for name, folder in setuptools["package-dir"].items()} == {
        name: name for name in setuptools["package-dir"]
    }
