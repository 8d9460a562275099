"""Running this package in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

import cats

_ROOT = str(Path(cats.__file__).resolve().parent.parent)


def child_environment(**variables: str) -> dict[str, str]:
    """The environment for ``python -m cats.MODULE``: the same ``cats`` as here, and nothing of the working folder."""
    path = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", **variables}
