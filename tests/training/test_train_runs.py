"""How a run goes: in two processes as in one that accumulates, to its end or until nothing improves, with its logs."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import make_image
from tiny_models import TRAINING

from cats.checkpoints import load_checkpoint
from cats.data.folders import PhotoFolder
from cats.data.warps import WarpPairs
from cats.training.configs import find_config
from cats.training.objectives import FlowObjective
from cats.training.trainer import Trainer, TrainingError

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from cats.training import cli as train_cli
from cats.training.trainer import Trainer, TrainingError

seen = []
run = Trainer.run
Trainer.run = lambda self, **options: seen.append(self) or run(self, **options)
sys.argv[0] = "cats-train"
try:
    train_cli.main()
except SystemExit as end:
    assert not end.code, end.code
trainer, = seen
mine = {**trainer.model.state_dict(), **{f"mean.{k}": v for k, v in trainer.averaged.state_dict().items()}}
everyone = [None] * dist.get_world_size()
dist.all_gather_object(everyone, (mine, trainer.state.step))
assert len(everyone) == 2 and everyone[0][1] == everyone[1][1]
assert all(torch.equal(value, everyone[1][0][key]) for key, value in everyone[0][0].items())
if dist.get_rank() == 0:
    print("equal after", trainer.state.step)
dist.destroy_process_group()
"""
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


def test_two_processes_are_one_that_accumulates(photos: Path, tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no distributed package")
    script = tmp_path / "both.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    both = subprocess.run(
        [*launch, *arguments(photos, tmp_path / "two", accumulate=2)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert both.returncode == 0, both.stderr[-3000:]
    assert "equal after 4\n" in both.stdout
    assert both.stderr.count("start: EPE (px)") == both.stderr.count("cats-train --data") == 1
    assert steps(tmp_path / "two") == [1, 2, 3, 4]

    alone = [sys.executable, "-m", "cats.training.cli", *arguments(photos, tmp_path / "one", accumulate=4)]
    done = subprocess.run(alone, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
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
        config, dataset, FlowObjective(), lambda model: {"score": next(left)}, folder, steps=config.steps, workers=0
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
    run._tensorboard().flush()
    events = accumulator.EventAccumulator(str(tmp_path / "run")).Reload()
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").open()))
    for name in ("loss", "epe", "lr"):
        scalars = events.Scalars(name)
        assert [event.step for event in scalars] == [int(row["step"]) for row in rows]
        assert [event.value for event in scalars] == pytest.approx([float(row[name]) for row in rows], rel=1e-6)
    scores = events.Scalars("validation/score")
    assert [(event.step, event.value) for event in scores] == [(0, 0.5), (2, 1), (4, 2)]
    assert load_checkpoint(tmp_path / "run" / "best.pt").training["start"] == {"score": 0.5}


def test_an_unreadable_photo_in_a_worker_is_one_line(tmp_path: Path, photos: Path) -> None:
    held_out = tmp_path / "held-out"
    photos.rename(held_out)
    make_image(photos / "good.jpg", (90, 80))
    (photos / "broken.jpg").write_bytes(b"junk")
    words = [
        sys.executable,
        "-m",
        "cats.training.cli",
        *arguments(photos, tmp_path / "run"),
        "--val",
        f"warps:{held_out}",
    ]
    words[words.index("--workers") + 1] = "1"
    done = subprocess.run(words, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith("error: cannot read the photo ")
    assert "broken.jpg" in line
    assert "Traceback" not in done.stderr


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
