"""The folder of a training run: what it holds, how it is written, and what a later run finds in it.

``best.pt`` (the best weights by validation), ``last.pt`` (the weights where a run was stopped), ``resume.pt``
(everything needed to go on), ``log.csv``, ``config.json`` and TensorBoard events.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cats.checkpoints import save_checkpoint, save_document
from cats.core.console import note
from cats.core.errors import CheckpointError, InputError
from cats.core.files import atomic_paths, open_regular, settle, write_text
from cats.core.json_text import read_json
from cats.core.outputs import OutputPlan, make_folder
from cats.model import CATs
from cats.tensor_files import open_tensor_file

RESUME_KEYS = {"config", "steps", "state", "model", "averaged", "objective", "optimizer", "scaler", "rng"}
_DIGITS = 18  # of a step in the log


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

    @property
    def config_file(self) -> Path:
        """Settings of the run."""
        return self.path / "config.json"

    def create(self) -> None:
        """Make the folder for a new run.

        Raises:
            InputError: it holds a run already, or cannot be created.
        """
        settle(self.resume)
        if self.resume.exists():
            raise InputError(f"{self.path} already holds a run; go on with --resume or give another --output")
        if self.best.exists():
            raise InputError(
                f"{self.best} is there, but no resume.pt to go on from: give another --output, and --init {self.best} "
                "to start from its weights"
            )
        make_folder(self.path)

    def check(self, data: Iterable[str | None] = (), init: str | None = None) -> None:
        """Refuse a folder in which the run would replace what it reads or what is of no run, before any work.

        Args:
            data: data sets ``KIND:DIR``.
            init: checkpoint to start from.

        Raises:
            InputError: a file of the run is read, is none that a run writes, or cannot be written.
        """
        if not self.path.exists():
            return
        files = (self.best, self.last, self.resume, self.log_file, self.config_file)
        OutputPlan().reads(init).reads_data(*data).writes(*files, updates=True).check()
        if not self.resume.exists() and self.log_file.exists() and not _is_log(self.log_file):
            raise InputError(f"cannot write {self.log_file}: it is not the log of a run; give another --output")
        if not self.resume.exists() and self.config_file.exists() and not _is_config(self.config_file):
            raise InputError(f"cannot write {self.config_file}: it is not of a run; give another --output")

    def save_config(self, config: dict[str, Any]) -> None:
        """Write ``config.json``."""
        write_text(self.config_file, json.dumps(config, indent=2) + "\n")

    def save_best(
        self, model: CATs, metrics: dict[str, float], training: dict[str, Any], document: dict[str, Any]
    ) -> None:
        """Write ``best.pt`` (see :func:`cats.checkpoints.save_checkpoint`) and the ``resume.pt`` that belongs to it, as
        :meth:`save_resume`: both or neither, so that no run is left with weights and no state to go on from."""
        with atomic_paths(self.best, self.resume) as (best, resume):
            try:
                save_checkpoint(best, model, metrics=metrics, training=training)
                save_document(resume, document)
            except InputError as error:
                text = str(error).replace(str(best), str(self.best)).replace(str(resume), str(self.resume))
                raise InputError(text) from error

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
        settle(self.resume)
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


def _is_log(path: Path) -> bool:
    """Whether a file begins as a log does, or is empty."""
    with open_regular(path, "log") as handle:
        start = handle.read(5)
    return start in (b"", b"step,")


def _is_config(path: Path) -> bool:
    try:
        settings = read_json(path)
    except InputError:
        return False
    return isinstance(settings, dict) and {"model", "batch_size", "lr"} <= set(settings)


def _step_of(line: str) -> int | None:
    """Number of a row of the log; None for what is no complete row."""
    number = line.partition(",")[0]
    return int(number) if number.isdecimal() and len(number) < _DIGITS and line.endswith("\n") else None
