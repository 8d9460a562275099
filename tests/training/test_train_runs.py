"""How a run goes: in two processes as in one that accumulates, to its end or until nothing improves, with its logs."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Command
from datasets import make_image
from tiny_models import TRAINING

from cats.checkpoints import load_checkpoint
from cats.core import files
from cats.core.errors import InputError
from cats.data.folders import PhotoFolder
from cats.data.warps import WarpPairs
from cats.training.configs import find_config
from cats.training.objectives import FlowObjective
from cats.training.optimization import learning_rate_factor
from cats.training.run_folder import RunFolder
from cats.training.trainer import Trainer, TrainingError

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from cats.training import cli as train_cli
from cats.training.trainer import Trainer

def one_of_two():
    seen = []
    run = Trainer.run
    Trainer.run = lambda self, **options: seen.append(self) or run(self, **options)
    sys.argv[0] = "cats-train"
    try:
        train_cli.main()
    except SystemExit as end:
        assert not end.code, end.code
    trainer, = seen
    mine = {**trainer.model.state_dict(), **{f"mean.{k}": v for k, v in trainer.averaged.module.state_dict().items()}}
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (mine, trainer.state.step))
    assert len(everyone) == 2 and everyone[0][1] == everyone[1][1]
    assert all(torch.equal(value, everyone[1][0][key]) for key, value in everyone[0][0].items())
    if dist.get_rank() == 0:
        print("equal after", trainer.state.step, flush=True)
    dist.destroy_process_group()

standalone = {"run_id": "test", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
elastic_launch(LaunchConfig(1, 1, 2, start_method="fork", **standalone), one_of_two)()
"""
"""What ``torchrun --standalone --nproc-per-node 2`` does, with processes that share the imports of one."""
SETTINGS = {**TRAINING, "amp": "off", "lr": 1e-4}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(4):
        make_image(tmp_path / "photos" / f"{number}.jpg", (90, 80), seed=number)
    return tmp_path / "photos"


def arguments(photos: Path, output: Path, **changes: object) -> list[str]:
    values = {**SETTINGS, **changes}
    settings = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    data = ["--data", f"warps:{photos}", "--config", "tiny", "--workers", "0", "-o", str(output)]
    return [*data, *settings]


def steps(folder: Path) -> list[int]:
    return [int(row["step"]) for row in csv.DictReader((folder / "log.csv").open())]


def trained(folder: Path) -> torch.Tensor:
    state = torch.load(folder / "resume.pt", weights_only=True)["model"]
    learnt = [value.flatten() for key, value in state.items() if key.startswith("decoder.") and "num" not in key]
    return torch.cat(learnt).double()


def test_two_processes_are_one_that_accumulates(photos: Path, tmp_path: Path, cats_train: Command) -> None:
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no distributed package")
    script = tmp_path / "both.py"
    script.write_text(SCRIPT)
    both = subprocess.run(
        [sys.executable, str(script), *arguments(photos, tmp_path / "two", accumulate=2)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert both.returncode == 0, both.stderr[-3000:]
    assert "equal after 4\n" in both.stdout
    assert both.stderr.count("start: EPE (px)") == both.stderr.count("cats-train --data") == 1
    assert steps(tmp_path / "two") == [1, 2, 3, 4]

    done = cats_train(*arguments(photos, tmp_path / "one", accumulate=4))
    assert done.code == 0, done.err
    assert steps(tmp_path / "one") == [1, 2, 3, 4]
    one, two = trained(tmp_path / "one"), trained(tmp_path / "two")
    assert (one - two).norm() < 1e-4 * one.norm()
    assert one.norm() > 0


def trainer(folder: Path, photos: Path, scores: list[float], **changes: object) -> Trainer:
    """A run whose validations give the scores one after the other."""
    config = find_config("tiny").override([f"{key}={value}" for key, value in {**SETTINGS, **changes}.items()])
    left = iter(scores)
    dataset = WarpPairs(PhotoFolder.open(photos), size=64, grid=4)
    return Trainer(
        config,
        dataset,
        FlowObjective(),
        lambda model, bar: {"score": next(left)},
        folder,
        steps=config.steps,
        workers=0,
    )


def test_a_run_stops_where_nothing_improves(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = trainer(tmp_path / "run", photos, [5, 1, 3, 2, 3, 9], steps=10, patience=2)  # the first is the start's
    run.run()
    assert steps(tmp_path / "run") == list(range(1, 9))  # validated at 2, 4 (best), 6 and 8
    assert load_checkpoint(tmp_path / "run" / "best.pt").training["step"] == 4
    assert "stopped early at step 8: no gain in 2 validations" in capsys.readouterr().err


def test_tensorboard_has_what_the_table_has(photos: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = trainer(tmp_path / "run", photos, [0.5, 1, 2])
    run.run()
    run.folder.flush()
    events = accumulator.EventAccumulator(str(tmp_path / "run")).Reload()
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").open()))
    for name in ("loss", "epe", "lr"):
        scalars = events.Scalars(name)
        assert [event.step for event in scalars] == [int(row["step"]) for row in rows]
        assert [event.value for event in scalars] == pytest.approx([float(row[name]) for row in rows], rel=1e-6)
    scores = events.Scalars("validation/score")
    assert [(event.step, event.value) for event in scores] == [(0, 0.5), (2, 1), (4, 2)]
    assert load_checkpoint(tmp_path / "run" / "best.pt").training["initial_metrics"] == {"score": 0.5}


def test_a_photo_that_breaks_during_the_run_is_one_line(photos: Path, tmp_path: Path) -> None:
    (photos / "0.jpg").write_bytes(b"junk")
    run = trainer(tmp_path / "run", photos, [0, 1, 2], steps=50)
    run.workers = 1
    with pytest.raises(InputError, match=r"^[^\n]*0\.jpg[^\n]*$"):
        run.run()


def test_what_a_run_without_a_checkpoint_says(photos: Path, tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", photos, [0, 1, 2], lr=1e20, clip=0.0)
    with pytest.raises(TrainingError, match="nothing was saved yet"):
        run.run()


def test_saved_weights_lie_between_the_start_and_the_trained(photos: Path, tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", photos, [0, 1, 2], interpolate=0.25, ema=0.0, start="zero", lr=1e-2)
    start = {key: value.clone() for key, value in run.model.state_dict().items()}
    run.run()
    saved = torch.load(tmp_path / "run" / "best.pt", weights_only=True)["state_dict"]
    ends = run.model.state_dict()
    key = "decoder.proj.weight"
    assert not torch.equal(start[key], ends[key])
    torch.testing.assert_close(saved[key], torch.lerp(start[key], ends[key], 0.25))


def test_what_is_left_of_a_run_is_resumed_or_said(photos: Path, tmp_path: Path) -> None:
    """A kill between the two files, and a line that a crash left half-written."""
    folder = tmp_path / "run"
    run = trainer(folder, photos, [0, 1, 2])
    run.run()
    with (folder / "log.csv").open("a") as handle:
        handle.write("\n5,0.3")
    longer = trainer(folder, photos, [3, 4], steps=8)
    longer.run(resume=True)
    assert steps(folder) == list(range(1, 9))
    (folder / "resume.pt").unlink()
    for resume in (False, True):
        with pytest.raises(InputError, match=r"best\.pt.* --init .*best\.pt") as caught:
            trainer(folder, photos, []).run(resume=resume)
        assert "--resume" not in str(caught.value)


@pytest.mark.parametrize("half", ["best", "resume"])
def test_weights_and_state_are_of_one_step_wherever_a_run_is_killed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: str
) -> None:
    """Between the replacement of best.pt and that of resume.pt; the next run completes it."""
    folder = tmp_path / "run"
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name == f"{half}.pt":
            raise _Killed
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(files, "settle", lambda path: None)  # a killed process settles nothing
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    with pytest.raises(_Killed):
        trainer(folder, photos, [0, 1, 2]).run()
    monkeypatch.undo()
    with pytest.raises(InputError, match="already holds a run"):
        RunFolder(folder).create()
    step = torch.load(folder / "resume.pt", weights_only=True)["state"]["best_step"]
    assert torch.load(folder / "best.pt", weights_only=True)["training"]["step"] == step > 0
    trainer(folder, photos, [3, 4, 5], steps=8).run(resume=True)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


class _Killed(BaseException):
    """Stands for SIGKILL."""


def test_a_run_writes_over_nothing_that_it_reads_or_that_is_of_no_run(tmp_path: Path) -> None:
    for name, text, problem in (
        ("log.csv", "a,b\nx.jpg,y.jpg\n", "not the log of a run"),
        ("config.json", '{"mine": 1}', "not of a run"),
        ("best.pt", None, "it is a pipe"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        if text is None:
            os.mkfifo(folder / name)
        else:
            (folder / name).write_text(text)
        with pytest.raises(InputError, match=rf"{name}: .*{problem}"):
            RunFolder(folder).check()
    (tmp_path / "log.csv" / "log.csv").write_text("step,a,b\n1,x.jpg,y.jpg\n")
    RunFolder(tmp_path / "log.csv").check()
    with pytest.raises(InputError, match=r"log.csv: it is read"):
        RunFolder(tmp_path / "log.csv").check([f"pairs:{tmp_path / 'log.csv' / 'log.csv'}"])
    (tmp_path / "log.csv" / "last.pt").write_text("weights")
    with pytest.raises(InputError, match=r"last.pt: it is read"):
        RunFolder(tmp_path / "log.csv").check([None], str(tmp_path / "log.csv" / "last.pt"))
    RunFolder(tmp_path / "none").check()


def test_a_run_is_lengthened_not_shortened(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "run"
    trainer(folder, photos, [0, 1, 2]).run()
    longer = trainer(folder, photos, [3, 4], steps=8)
    longer.run(resume=True)
    assert "the run of 4 updates goes on from 4 to 8" in capsys.readouterr().err
    rates = [float(row["lr"]) for row in csv.DictReader((folder / "log.csv").open())]
    assert rates[4] == pytest.approx(longer.config.lr * learning_rate_factor(longer.config, 8, 4))
    assert rates[4] > rates[3]
    with pytest.raises(InputError, match="steps was 8, not 4"):
        trainer(folder, photos, []).run(resume=True)


def test_ctrl_c_saves_where_it_is(photos: Path, tmp_path: Path) -> None:
    """Interrupted in the third update and resumed, a run ends in the same bits; the same in a validation."""
    trainer(tmp_path / "whole", photos, [0, 1, 2, 3], steps=6).run()
    for name, steps_before in (("update", 3), ("validation", 2)):
        run = trainer(tmp_path / name, photos, [0, 1, 2, 3], steps=6)
        update, validate = run._update, run.validate

        def interrupted(batches, run=run, update=update):
            if run.state.step == 2:
                signal.raise_signal(signal.SIGINT)
            return update(batches)

        def interrupted_validation(model, bar, run=run, validate=validate):
            if run.state.step == 2:
                signal.raise_signal(signal.SIGINT)
            return validate(model, bar)

        if name == "update":
            run._update = interrupted
        else:
            run.validate = interrupted_validation
        with pytest.raises(KeyboardInterrupt):
            run.run()
        assert load_checkpoint(tmp_path / name / "last.pt").training["step"] == steps_before
        left = [2, 3] if name == "update" else [1, 2, 3]
        trainer(tmp_path / name, photos, left, steps=6).run(resume=True)
        assert torch.equal(trained(tmp_path / "whole"), trained(tmp_path / name))
        assert steps(tmp_path / name) == list(range(1, 7))
        assert not (tmp_path / name / "last.pt").exists()


@pytest.mark.parametrize("hangs_up", [False, True], ids=["signal", "connection"])
def test_a_loader_that_the_system_ends_is_one_line(
    photos: Path, tmp_path: Path, cats_train: Command, monkeypatch: pytest.MonkeyPatch, hangs_up: bool
) -> None:
    """Its end is told by a signal, or its connection is reset and the signal comes while the state is saved."""
    words = arguments(photos, tmp_path / "run", steps=200)
    words[words.index("--workers") + 1] = "1"
    save, save_stopped = Trainer._validate_and_save, Trainer._save_stopped
    loaders: list[int] = []

    def save_and_kill(self: Trainer, bar: Any) -> None:
        save(self, bar)
        if not loaders:
            loaders.extend(process.pid for process in multiprocessing.active_children() if process.pid)
            if hangs_up:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
            os.kill(loaders[0], signal.SIGKILL)
            if hangs_up:
                raise ConnectionResetError("Connection reset by peer")

    def signalled(self: Trainer) -> None:
        if hangs_up:
            os.waitid(os.P_PID, loaders[0], os.WEXITED | os.WNOWAIT)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        save_stopped(self)

    monkeypatch.setattr(Trainer, "_validate_and_save", save_and_kill)
    monkeypatch.setattr(Trainer, "_save_stopped", signalled)
    done = cats_train(*words)
    assert len(loaders) == 1
    assert "Traceback" not in done.err
    assert "stopped after step" in done.err
    assert done.error == done.err.splitlines()[-1]
    assert done.error.startswith("error: a process that loads photos was ended by the system (")
    assert "--resume --workers 0" in done.error
    assert (tmp_path / "run" / "last.pt").is_file()


def test_bad_photos_are_left_out_and_counted(tmp_path: Path, photos: Path, cats_train: Command) -> None:
    for category in ("cat", "dog"):
        for number in range(3):
            make_image(photos / category / f"{number}.jpg", (90, 80), seed=number)
    (photos / "cat" / "broken.jpg").write_bytes(b"junk")
    words = arguments(photos, tmp_path / "run", steps=1)
    for kind, count in (("warps", 11), ("categories", 7)):
        words[words.index("--data") + 1] = f"{kind}:{photos}"
        words[words.index("-o") + 1] = str(tmp_path / kind)
        done = cats_train(*words)
        assert done.code == 0, done.err
        said = [line for line in done.err.splitlines() if line.startswith("left out 1 of")]
        assert said[0].startswith(f"left out 1 of {count} photos: ")
        assert "broken.jpg" in said[0]
