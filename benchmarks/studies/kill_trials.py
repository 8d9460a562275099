"""What is left when a command is killed, asked to end, or runs out of disk at a random moment?

Small runs of the commands that write are ended by SIGKILL, SIGTERM, SIGHUP, SIGINT, or by a limit on the size of files
that stands for a full disk; half of the time in the middle of a write. After each trial: every file under its final
name is whole and of one state, old or new; nothing that was left is taken for a photo; inputs are untouched; and the
same command again ends well and cleans up. Commands run in forks of a process that has imported everything, so that
the time goes into their work.

Usage: python -m cats.benchmarks.studies.kill_trials [--trials 200] [--command export] [--output NAME.json]
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cats.assets import asset
from cats.benchmarks.record import describe_run
from cats.benchmarks.studies.kill_jobs import TINY, Job, expect, jobs
from cats.core.console import execute, new_app, note, stdout, table
from cats.core.errors import CatsError, InputError, VerificationError
from cats.core.files import write_text
from cats.core.images import read_image
from cats.core.photos import list_photos
from cats.labelling.annotations import VISIBLE, AnnotatedPhoto, Annotation, Annotations, Category
from cats.labelling.formats import write_annotations

app = new_app(extra="export")

WAYS = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT", "full disk")
_LOG = Path(tempfile.gettempdir(), f"cats-kill-trials-{os.getpid()}.log")  # what the last command said
_SLOWEST = 900.0  # seconds after which a command hangs, also beside other work
_CODES = {"SIGKILL": (-signal.SIGKILL,), "SIGTERM": (143, -signal.SIGTERM), "SIGHUP": (129, -signal.SIGHUP)}
_CODES |= {"SIGINT": (130, -signal.SIGINT), "full disk": (2,)}


def prepare(inputs: Path) -> None:
    """Make the inputs: photos, two checkpoints of one structure, and a small export."""
    photos = inputs / "photos"
    photos.mkdir(parents=True)
    for number, name in enumerate(("astronaut.jpg", "grace_hopper.jpg") * 3):
        read_image(asset(name)).resize((200 + 10 * number, 160)).save(photos / f"{number}.jpg")
    settings = [f"--set={key}={value}" for key, value in TINY.items()]
    for number, name in enumerate(("old", "new")):
        data = ["--data", f"warps:{photos}", "--workers", "0", "--config", "tiny-warps", f"--set=seed={number}"]
        expect(_run("train", [*data, "--output", str(inputs / name), *settings]), (0,))
        (inputs / name / "best.pt").rename(inputs / f"{name}.pt")
    expect(_run("export", ["--ckpt", str(inputs / "new.pt"), "-o", str(inputs / "small.onnx")]), (0, 1))
    points = np.array([[60.0, 40.0], [120.0, 50.0], [90.0, 110.0]])
    face = Category("face", ("left", "right", "chin"))
    labelled = AnnotatedPhoto(photos / "0.jpg", (200, 160), (Annotation("face", points, np.full(3, VISIBLE)),))
    write_annotations(Annotations((face,), (labelled,)), inputs / "refs.json")


def try_once(job: Job, inputs: Path, way: str, chance: random.Random, usual: float) -> str | None:
    """One trial; returns what is wrong, None where nothing is."""
    try:
        return _try(job, inputs, way, chance, usual)
    except CatsError as error:  # a command that hangs
        return str(error)


def _try(job: Job, inputs: Path, way: str, chance: random.Random, usual: float) -> str | None:
    before = _digest(inputs)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if job.name == "export" and chance.random() < 0.7:  # there is an older pair
            old = ["--ckpt", str(inputs / "old.pt"), "--split", "-o", str(folder / "x.onnx")]
            expect(_run("export", old), (0, 1))
        limit = chance.randrange(200_000) if way == "full disk" else None
        code = _run(
            job.name,
            job.arguments(folder, False),
            number=None if way == "full disk" else getattr(signal, way),
            after=chance.random() * usual,
            writing=folder if chance.random() < 0.5 else None,
            limit=limit,
        )
        done = (0, 1) if job.wrong else (0,)
        if code not in (*done, *_CODES[way]):
            return f"exit status {code}: {_last_words()}"
        left = job.left(folder, interrupted=True)
        if left and way != "SIGKILL":
            return f"left behind: {', '.join(left)}"
        if any(photo.name.startswith(".") for photo in list_photos(folder)[0]):
            return f"taken for photos: {', '.join(left)}"
        try:
            job.check(folder)
        except Exception as error:
            return f"not whole: {type(error).__name__}: {error}"
        code = _run(job.name, job.arguments(folder, True))
        if code not in done:
            return f"again: exit status {code}: {_last_words()}"
        left = job.left(folder, interrupted=False)
        if left:
            return f"left behind by the second run: {', '.join(left)}"
        try:
            job.check(folder)
        except Exception as error:
            return f"not whole after the second run: {type(error).__name__}: {error}"
    return None if _digest(inputs) == before else "an input changed"


def _run(
    command: str,
    arguments: list[str],
    *,
    number: int | None = None,
    after: float = 0.0,
    writing: Path | None = None,
    limit: int | None = None,
) -> int:
    """Run a command in a fork and end it by a signal, ``after`` seconds after its start or after it begins to write
    below ``writing``; or with a limit on the bytes of a file. Returns the exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        _be_a_command(command, arguments, limit)
    start, asked = time.monotonic(), False
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        passed = time.monotonic() - start
        if number is not None and not asked:
            if writing is not None and passed <= _SLOWEST / 2:
                due = any(True for _ in _temporary(writing))
                time.sleep(after % 0.004 if due else 0)
            else:
                due = passed >= after
            if due:
                os.kill(child, number)
                asked = True
        if passed > _SLOWEST:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise CatsError(f"cats {command} did not end within {_SLOWEST:.0f} s")
        time.sleep(0.0005 if writing is not None else 0.005)


def _be_a_command(command: str, arguments: list[str], limit: int | None) -> None:
    """Become the command; does not return."""
    code = 70
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        silent = os.open(os.devnull, os.O_RDWR)
        for handle in (0, 1):
            os.dup2(silent, handle)
        log = os.open(_LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(log if limit is None else silent, 2)  # the limit holds for the log too
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        sys.argv = ["cats", command, *arguments]
        from cats.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def _last_words() -> str:
    """The end of what the last command said."""
    return " / ".join(_LOG.read_text("utf-8", errors="replace").splitlines()[-3:])[-300:]


def _temporary(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from folder.rglob(".*")


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _import_everything() -> None:
    """So that forks begin with their work."""
    import cats.calibration.cli
    import cats.cli
    import cats.export.cli
    import cats.export.export
    import cats.labelling.cli
    import cats.runtime.commands.build
    import cats.runtime.commands.run
    import cats.training.cli
    import cats.training.trainer  # noqa: F401


@app.command()
def main_command(
    trials: Annotated[int, typer.Option(help="Trials in all.", min=5)] = 200,
    command: Annotated[
        list[str] | None, typer.Option(help="run, label, calibrate, export, build, train; repeatable. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the record.", show_default=False)] = None,
) -> None:
    """End commands at random moments; exit status 1 where something was not whole."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _import_everything()
    with tempfile.TemporaryDirectory() as temporary:
        inputs = Path(temporary, "inputs")
        prepare(inputs)
        known = jobs(inputs)
        if unknown := set(command or ()) - set(known):
            raise InputError(f"no trials of {', '.join(sorted(unknown))}: choose {', '.join(known)}")
        chosen = [known[name] for name in command or known]
        usual = {job.name: _time(job) for job in chosen}
        failures: list[dict[str, Any]] = []
        counts: Counter[tuple[str, str]] = Counter()
        for index in range(trials):
            job, way = chosen[index % len(chosen)], WAYS[index // len(chosen) % len(WAYS)]
            chance = random.Random(f"{seed} {index}")
            wrong = try_once(job, inputs, way, chance, usual[job.name])
            counts[job.name, way] += 1
            if wrong is not None:
                failures.append({"trial": index, "command": job.name, "way": way, "wrong": wrong})
                note(f"warning: trial {index}, {job.name}, {way}: {wrong}")
            if index % 10 == 9:
                note(f"{index + 1} of {trials}, {len(failures)} wrong")
            if output is not None:
                _record(output, chosen, counts, failures)
    rows = [[job.name, *(str(counts[job.name, way]) for way in WAYS)] for job in chosen]
    stdout.print(table(f"trials; {len(failures)} left something wrong", ["command", *WAYS], rows))
    if failures:
        raise VerificationError(f"{len(failures)} of {trials} trials left something wrong")


def _record(output: Path, chosen: list[Job], counts: Counter[tuple[str, str]], failures: list[dict[str, Any]]) -> None:
    """Write what was found so far: a run of hours may itself be ended."""
    done = {job.name: {way: counts[job.name, way] for way in WAYS} for job in chosen}
    record = {**describe_run("kill_trials"), "trials": done, "wrong": failures}
    write_text(output, json.dumps(record, indent=1) + "\n")


def _time(job: Job) -> float:
    """Seconds that the whole command takes."""
    folder = Path(tempfile.mkdtemp())
    start = time.monotonic()
    try:
        expect(_run(job.name, job.arguments(folder, False)), (0, 1) if job.wrong else (0,))
        return time.monotonic() - start
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    execute(app)
