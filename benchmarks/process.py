"""A contestant's process from the outside, see :mod:`cats.benchmarks.worker`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from cats.core.errors import BackendError
from cats.core.process import child_environment


class Process:
    """A running contestant.

    Attributes:
        ready: what it said of itself after its first match: ``description``, ``load_ms``, ``first_ms``, ``peak_mb``,
            and ``ready_ms``, from the start of the process to there.

    Raises:
        BackendError: it does not run; the message is the reason.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        threads = str(spec.get("threads") or 1)
        environment = child_environment(OMP_NUM_THREADS=threads, PYTHONWARNINGS="ignore")
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cats.benchmarks.worker", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        try:
            self.ready = self._answer()
        except BackendError:
            self.close()
            raise
        self.ready["ready_ms"] = (time.perf_counter() - start) * 1000

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Run one command of the worker."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise BackendError(f"its process ended with status {self._process.poll()}") from error
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BackendError(f"its process ended with status {self._process.wait()}")
        document: dict[str, Any] = json.loads(line)
        if "error" in document:
            raise BackendError(document["error"])
        return document
