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
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cats.assets import asset
from cats.benchmarks.record import describe_run, write_record
from cats.core.console import execute, new_app, note, stdout, table
from cats.core.errors import CatsError, InputError, VerificationError
from cats.core.images import read_image
from cats.core.photos import list_photos

app = new_app(extra="export")

WAYS = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT", "full disk")
_SLOWEST = 300.0  # seconds after which a command hangs
_CODES = {"SIGKILL": (-signal.SIGKILL,), "SIGTERM": (143, -signal.SIGTERM), "SIGHUP": (129, -signal.SIGHUP)}
_CODES |= {"SIGINT": (130, -signal.SIGINT), "full disk": (2,)}
_TINY = {
    "model.image_size": 64,
    "model.feature_size": 4,
    "model.hyperpixels": "[2,3]",
    "model.projection_dim": 16,
    "model.num_heads": 4,
    "backbone_weights": "none",
    "batch_size": 2,
    "validate_every": 2,
    "steps": 6,
}


@dataclass(frozen=True)
class Job:
    """A command whose end is tried.

    Attributes:
        name: of the command.
        arguments: for a folder of outputs, whether it runs again there.
        check: raises where what is in the folder is not whole.
        wrong: exit status of verified work that differs too much; random weights do.
    """

    name: str
    arguments: Callable[[Path, bool], list[str]]
    check: Callable[[Path], None]
    wrong: bool = False


def jobs(inputs: Path) -> dict[str, Job]:
    """All of them; ``inputs`` holds ``photos``, ``old.pt``, ``new.pt`` and ``small.onnx``."""
    photos = inputs / "photos"
    a, b = sorted(photos.iterdir())[:2]
    settings = [f"--set={key}={value}" for key, value in _TINY.items()]

    def run(folder: Path, again: bool) -> list[str]:
        outputs = ["-o", str(folder / "x.png"), "--flow", str(folder / "x.npy"), "--warp", str(folder / "w.png")]
        return [str(asset("cats-tiny.onnx")), str(a), str(b), *outputs, "--force", "--threads", "1"]

    def export(folder: Path, again: bool) -> list[str]:
        return ["--ckpt", str(inputs / "new.pt"), "--split", "-o", str(folder / "x.onnx"), "--force"]

    def calibrate(folder: Path, again: bool) -> list[str]:
        kept = ["--ranges", str(folder / "r.json"), "-o", str(folder / "x.int8.onnx"), "--threads", "1"]
        return [str(inputs / "small.onnx"), "--images", str(photos), *kept, "--force"]

    def build(folder: Path, again: bool) -> list[str]:
        return [str(inputs / "small.onnx"), "-o", str(folder / "x.plan"), "--optimization", "0", "--force"]

    def train(folder: Path, again: bool) -> list[str]:
        resume = ["--resume"] if again and (folder / "run" / "resume.pt").exists() else []
        data = ["--data", f"warps:{photos}", "--workers", "0", "--config", "tiny-warps"]
        return [*data, "--output", str(folder / "run"), *settings, *resume]

    return {
        "run": Job("run", run, _check_pictures),
        "calibrate": Job("calibrate", calibrate, _check_models, wrong=True),
        "export": Job("export", export, _check_models, wrong=True),
        "build": Job("build", build, _check_engines),
        "train": Job("train", train, _check_run),
    }


def prepare(inputs: Path) -> None:
    """Make the inputs: photos, two checkpoints of one structure, and a small export."""
    photos = inputs / "photos"
    photos.mkdir(parents=True)
    for number, name in enumerate(("astronaut.jpg", "grace_hopper.jpg") * 3):
        read_image(asset(name)).resize((200 + 10 * number, 160)).save(photos / f"{number}.jpg")
    settings = [f"--set={key}={value}" for key, value in _TINY.items()]
    for number, name in enumerate(("old", "new")):
        data = ["--data", f"warps:{photos}", "--workers", "0", "--config", "tiny-warps", f"--set=seed={number}"]
        _expect(_run("train", [*data, "--output", str(inputs / name), *settings]), (0,))
        (inputs / name / "best.pt").rename(inputs / f"{name}.pt")
    _expect(_run("export", ["--ckpt", str(inputs / "new.pt"), "-o", str(inputs / "small.onnx")]), (0, 1))


def try_once(job: Job, inputs: Path, way: str, chance: random.Random, usual: float) -> str | None:
    """One trial; returns what is wrong, None where nothing is."""
    before = _digest(inputs)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if job.name == "export" and chance.random() < 0.7:  # there is an older pair
            old = ["--ckpt", str(inputs / "old.pt"), "--split", "-o", str(folder / "x.onnx")]
            _expect(_run("export", old), (0, 1))
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
            return f"exit status {code}"
        left = [path.name for path in folder.rglob(".*")]
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
            return f"again: exit status {code}"
        left = [path.name for path in folder.rglob(".*")]
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
        for handle in (0, 1) if os.environ.get("CATS_TRIALS_LOUD") else (0, 1, 2):
            os.dup2(silent, handle)
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
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def _final(folder: Path, pattern: str) -> list[Path]:
    """Files under their final names."""
    return [path for path in folder.glob(pattern) if not path.name.startswith(".")]


def _temporary(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from folder.rglob(".*")


def _check_pictures(folder: Path) -> None:
    import numpy as np

    for path in _final(folder, "*.png"):
        read_image(path)
    for path in _final(folder, "*.npy"):
        np.load(path, allow_pickle=False)


def _check_models(folder: Path) -> None:
    """In a fork: ONNX Runtime's threads must not be in the process that forks."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            from cats.calibration.ranges import Ranges
            from cats.runtime import Matcher

            for path in _final(folder, "r.json"):
                Ranges.load(path)
            # A half of a split model, or two halves of different weights, is refused.
            for path in _final(folder, "*.onnx"):
                Matcher(path, threads=1).close()
            code = 0
        finally:
            os._exit(code)
    _expect(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), (0,))


def _check_engines(folder: Path) -> None:
    from cats.runtime.tensorrt.sidecar import read_sidecar

    for path in {*_final(folder, "*.plan"), *(found.with_suffix("") for found in _final(folder, "*.plan.json"))}:
        read_sidecar(path)


def _check_run(folder: Path) -> None:
    from cats.checkpoints import load_checkpoint

    for path in _final(folder / "run", "*.pt"):
        if path.name == "resume.pt":
            import torch

            torch.load(path, weights_only=True)
        else:
            load_checkpoint(path)


def _expect(code: int, allowed: tuple[int, ...]) -> None:
    if code not in allowed:
        raise CatsError(f"exit status {code}")


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
    import cats.runtime.commands.build
    import cats.runtime.commands.run
    import cats.training.cli
    import cats.training.trainer  # noqa: F401


@app.command()
def main_command(
    trials: Annotated[int, typer.Option(help="Trials in all.", min=5)] = 200,
    command: Annotated[
        list[str] | None, typer.Option(help="run, calibrate, export, build, train; repeatable. Default: all.")
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
            elif index % 10 == 9:
                note(f"{index + 1} of {trials}, {len(failures)} wrong")
    rows = [[job.name, *(str(counts[job.name, way]) for way in WAYS)] for job in chosen]
    stdout.print(table(f"trials; {len(failures)} left something wrong", ["command", *WAYS], rows))
    if output is not None:
        done = {job.name: {way: counts[job.name, way] for way in WAYS} for job in chosen}
        write_record(output, {**describe_run("kill_trials"), "trials": done, "wrong": failures})
    if failures:
        raise VerificationError(f"{len(failures)} of {trials} trials left something wrong")


def _time(job: Job) -> float:
    """Seconds that the whole command takes."""
    folder = Path(tempfile.mkdtemp())
    start = time.monotonic()
    try:
        _expect(_run(job.name, job.arguments(folder, False)), (0, 1) if job.wrong else (0,))
        return time.monotonic() - start
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    execute(app)
