"""The folder of a training run: what it holds, how it is written, and what a later run finds in it.

``best.pt`` (the best weights by validation), ``last.pt`` (the weights where a run was stopped), ``resume.pt``
(everything needed to go on), ``log.csv``, ``config.json`` and TensorBoard events.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cats.checkpoints import save_checkpoint, save_document
from cats.core.console import note
from cats.core.errors import CheckpointError, InputError
from cats.core.files import write_text
from cats.model import CATs
from cats.tensor_files import open_tensor_file

RESUME_KEYS = {"config", "steps", "state", "model", "averaged", "objective", "optimizer", "scaler", "rng"}


class RunFolder:
    """Files of one run; created by :meth:`create`.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._board: Any = None
        self._board_opened = False

    @property
    def best(self) -> Path:
        """Checkpoint with the best weights so far."""
        return self.path / "best.pt"

    @property
    def last(self) -> Path:
        """Checkpoint with the weights where the run was stopped."""
        return self.path / "last.pt"

    @property
    def resume(self) -> Path:
        """Full state to go on from."""
        return self.path / "resume.pt"

    @property
    def log_file(self) -> Path:
        """One row an update."""
        return self.path / "log.csv"

    def create(self) -> None:
        """Make the folder for a new run.

        Raises:
            InputError: it holds a run already, or cannot be created.
        """
        if self.resume.exists():
            raise InputError(f"{self.path} already holds a run; go on with --resume or give another --output")
        if self.best.exists():
            raise InputError(
                f"{self.best} is there, but no resume.pt to go on from: give another --output, and --init {self.best} "
                "to start from its weights"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot create {self.path}: {error.strerror}") from error

    def save_config(self, config: dict[str, Any]) -> None:
        """Write ``config.json``."""
        write_text(self.path / "config.json", json.dumps(config, indent=2) + "\n")

    def save_best(self, model: CATs, metrics: dict[str, float], training: dict[str, Any]) -> None:
        """Write ``best.pt``; see :func:`cats.checkpoints.save_checkpoint`."""
        save_checkpoint(self.best, model, metrics=metrics, training=training)

    def save_last(self, model: CATs, training: dict[str, Any]) -> None:
        """Write ``last.pt``."""
        save_checkpoint(self.last, model, training=training)

    def drop_last(self) -> None:
        """Remove ``last.pt``: a run that goes on is past it."""
        self.last.unlink(missing_ok=True)

    def save_resume(self, document: dict[str, Any]) -> None:
        """Write ``resume.pt``, with the keys :data:`RESUME_KEYS`; the one before it is intact until it is complete."""
        save_document(self.resume, document)

    def load_resume(self) -> dict[str, Any]:
        """Read ``resume.pt``, its tensors onto the CPU.

        Raises:
            InputError: there is none.
            CheckpointError: it cannot be read, or another version of the toolkit wrote it.
        """
        if not self.resume.is_file():
            instead = (
                f"its state was not saved, only {self.best}: give another --output and --init {self.best}"
                if self.best.is_file()
                else "leave out --resume to begin"
            )
            raise InputError(f"nothing to resume: {self.resume} does not exist; {instead}")
        document = open_tensor_file(self.resume).load_all()
        missing = RESUME_KEYS - set(document) if isinstance(document, dict) else RESUME_KEYS
        if missing:
            raise CheckpointError(
                f"{self.resume} lacks {', '.join(sorted(missing))}: another version of the toolkit wrote it; "
                f"begin anew from its weights with --init {self.best} and another --output"
            )
        return document

    def cut_log(self, step: int) -> None:
        """Drop the rows of ``log.csv`` after ``step``, so that the log is that of one uninterrupted run; rows that a
        crash left half-written are dropped too."""
        if not self.log_file.is_file():
            return
        lines = self.log_file.read_text("utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines[1:] if _step_of(line) is not None and (_step_of(line) or 0) <= step]
        write_text(self.log_file, "".join(lines[:1] + kept) if step else "")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one row to ``log.csv`` and the TensorBoard events; raises :class:`InputError` where that fails."""
        new = not self.log_file.is_file() or self.log_file.stat().st_size == 0
        try:
            with open(self.log_file, "a", newline="") as handle:
                writer = csv.writer(handle)
                if new:
                    writer.writerow(["step", *values])
                writer.writerow([step, *(repr(value) for value in values.values())])
        except OSError as error:
            raise InputError(f"cannot write {self.log_file}: {error.strerror}") from error
        self.plot(step, values)

    def plot(self, step: int, values: Mapping[str, float]) -> None:
        """Add values of a step to the TensorBoard events."""
        board = self._tensorboard(step)
        if board is not None:
            try:
                for key, value in values.items():
                    board.add_scalar(key, value, step)
            except OSError as error:  # its thread could not write what came before
                raise InputError(f"cannot write TensorBoard events in {self.path}: {error.strerror}") from error

    def flush(self) -> None:
        """Write the events that TensorBoard still holds."""
        if self._board is not None:
            self._board.flush()

    def _tensorboard(self, step: int) -> Any:
        """The events from ``step`` on: later ones of an interrupted run are hidden."""
        if not self._board_opened:
            self._board_opened = True
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                note("tensorboard is not installed: logging to log.csv only")
            else:
                self._board = SummaryWriter(str(self.path), purge_step=step)
        return self._board


def _step_of(line: str) -> int | None:
    """Number of a row of the log; None for what is no complete row."""
    number = line.partition(",")[0]
    return int(number) if number.isdecimal() and line.endswith("\n") else None
