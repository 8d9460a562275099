"""Programs of others in environments of their own, because they pin old versions of what the toolkit needs.

``CATS_ENVS`` names a folder with virtual environments: ``cvat`` (datumaro, cvat-sdk), ``ls`` (label-studio-sdk),
``dlc`` (sleap-io). What is installed beside the toolkit is used as well.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run_elsewhere(environment: str, module: str, script: str, *arguments: object, cwd: Path | None = None) -> Any:
    """Run a script in the Python that has ``module``, and return the JSON that it prints last.

    Skips the test with the reason where there is none.
    """
    done = subprocess.run(
        [_python(environment, module), "-c", script, *map(str, arguments)], capture_output=True, text=True, cwd=cwd
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def _python(environment: str, module: str) -> str:
    if importlib.util.find_spec(module) is not None:
        return sys.executable
    folder = os.environ.get("CATS_ENVS")
    python = Path(folder or "", environment, "bin", "python")
    if folder is None or not python.is_file():
        pytest.skip(f"needs {module}: a virtual environment {environment} in the folder CATS_ENVS")
    return str(python)
