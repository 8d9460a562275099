"""Compiled programs that use libcats."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cats.benchmarks import libcats


def program(*command: str | Path, status: int = 0) -> str:
    """What a program prints, or with another exit status than 0 its errors."""
    words = list(map(str, command))
    done = subprocess.run(words, env=libcats.environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr
