"""Who imports whom: the contracts of pyproject.toml hold, and break where somebody breaks them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from clone import copy_clone

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("importlinter") is None, reason="import-linter is not installed: make dev"
)


def check_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """``make imports`` in a copy of the clone, by the tools of this environment."""
    command = ["make", "-C", str(folder), "-o", ".venv/done", "imports", f"BIN={Path(sys.executable).parent}"]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_clone(tmp_path_factory.mktemp("clone"), without=(".onnx", ".pt", ".jpg"))
    (folder / ".venv").mkdir()
    (folder / ".venv/done").touch()
    return folder


def test_the_clone_keeps_every_contract(clone: Path) -> None:
    done = check_imports(clone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("cats/core/geometry.py", "import torch", "cats.core is not allowed to import torch"),
        ("runtime/result.py", "import cats.export.forms", "cats.runtime is not allowed to import cats.export"),
        ("cats/model.py", "import cats.training.losses", "cats.model is not allowed to import cats.training"),
    ],
)
def test_a_planted_import_is_found(clone: Path, file: str, line: str, broken: str) -> None:
    path = clone / file
    text = path.read_text()
    path.write_text(f"{text}\n\n{line}\n")
    try:
        done = check_imports(clone)
    finally:
        path.write_text(text)
    assert done.returncode != 0
    assert broken in done.stdout
