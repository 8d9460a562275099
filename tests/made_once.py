"""Files that are made once in a test run, by whichever of its processes needs them first."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that ``make`` filled, shared by the workers of pytest-xdist: the first makes it, others wait and read.

    What tests find in it they leave as it is. Where ``make`` raises, the next test that asks tries again.
    """
    base = factory.getbasetemp()
    if base.name.startswith("popen-"):  # a worker's, below that of the run
        base = base.parent
    folder, unfinished = base / f"once-{name}", base / f"once-{name}.unfinished"
    with (base / f"once-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder
