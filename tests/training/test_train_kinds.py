"""Every kind of training data through ``cats-train``, each with other settings of backbone, precision and start."""

from __future__ import annotations

import copy
import csv
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from commands import Command
from datasets import make_image, make_pfpascal, make_spair
from tiny_models import TRAINING
from torch import Tensor

from cats.checkpoints import load_checkpoint
from cats.data.folders import CategoryFolder, PhotoFolder
from cats.data.warps import CategoryTriplets, WarpPairs
from cats.training import cli as train_cli
from cats.training import optimization
from cats.training.configs import TrainConfig, find_config
from cats.training.objectives import FlowObjective
from cats.training.optimization import autocast, learning_rate_factor
from cats.training.processes import load_batches
from cats.training.trainer import Trainer

SMALL = {**TRAINING, "epochs": 4, "warmup": 0}


def settings(**changes: object) -> list[str]:
    return [f"{key}={value}" for key, value in {**SMALL, **changes}.items()]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for category in ("cat", "dog"):
        for number in range(3):
            make_image(tmp_path / "photos" / category / f"{number}.jpg", (90, 80), seed=number)
    return tmp_path / "photos"


@dataclass
class Watch:
    """The trainer that a command made, and its weights before the first update."""

    trainer: Trainer | None = None
    before: dict[str, Tensor] = field(default_factory=dict)

    def moved(self, *parts: str) -> bool:
        """Whether any tensor whose name has all the parts changed; every one of them must be there."""
        assert self.trainer is not None
        after = self.trainer.model.state_dict()
        names = [name for name in after if all(part in name for part in parts)]
        assert names
        return any(not torch.equal(after[name], self.before[name]) for name in names)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    seen = Watch()
    run = Trainer.run

    def watched(self: Trainer, **options: bool) -> Path:
        seen.trainer, seen.before = self, copy.deepcopy(self.model.state_dict())
        return run(self, **options)

    monkeypatch.setattr(Trainer, "run", watched)
    return seen


def make_pairs(folder: Path) -> Path:
    for name in ("one", "two"):
        make_image(folder / f"{name}.png", (120, 90), seed=len(name))
    (folder / "pairs.csv").write_text('a,b,points\none.png,two.png,"20,30,25,30;60,40,66,41;90,80,80,70"\n')
    return folder / "pairs.csv"


def run_of(kind: str, tmp_path: Path, photos: Path) -> tuple[str, str]:
    """``KIND:PATH`` of small data, and the metric that validation must show."""
    if kind == "spair":
        return f"spair:{make_spair(tmp_path / kind, splits=('trn', 'val'))}", "PCK@0.1 (corrected)"
    if kind == "pfpascal":
        (tmp_path / kind).mkdir()
        return f"pfpascal:{make_pfpascal(tmp_path / kind)}", "PCK@0.1 (corrected)"
    if kind == "pairs":
        (tmp_path / kind).mkdir()
        return f"pairs:{make_pairs(tmp_path / kind)}", "PCK@0.1 (corrected)"
    return f"{kind}:{photos}", "EPE (px)"


@pytest.mark.parametrize(
    ("kind", "changes", "weights_move", "statistics_move"),
    [
        ("spair", {"freeze": "authors", "amp": "off", "start": "random", "interpolate": 1}, False, True),
        ("pfpascal", {"freeze": "all", "amp": "fp16", "accumulate": 2, "clip": 0.0}, False, False),
        ("pairs", {"freeze": "none", "amp": "bf16", "lr_backbone": 1e-3, "ema": 0.0}, True, True),
        ("warps", {"freeze": "all", "amp": "bf16", "schedule": "multistep"}, False, False),
        ("categories", {"freeze": "all", "amp": "off", "unmatched": 0.2, "start": "zero"}, False, False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind(
    kind: str,
    changes: dict[str, object],
    weights_move: bool,
    statistics_move: bool,
    tmp_path: Path,
    photos: Path,
    cats_train: Command,
    watch: Watch,
) -> None:
    data, metric = run_of(kind, tmp_path, photos)
    given = [part for setting in settings(**changes) for part in ("--set", setting)]
    folder = tmp_path / "run"
    done = cats_train("--data", data, "--config", "tiny", "--workers", 0, "-o", folder, *given)
    assert done.code == 0, done.err
    rows = list(csv.DictReader((folder / "log.csv").open()))
    assert len(rows) == 4
    assert all(0 < float(row["loss"]) < 1000 for row in rows)
    checkpoint = load_checkpoint(folder / "best.pt")
    assert metric in checkpoint.metrics
    assert metric in checkpoint.training["initial_metrics"]
    assert watch.moved("decoder.")
    assert watch.moved("feature_extraction.", ".weight") == weights_move
    assert watch.moved("feature_extraction.", "running_mean") == statistics_move
    assert watch.trainer is not None
    assert (watch.trainer.averaged is None) == (changes.get("ema") == 0.0)
    noted = "validating on the pairs of the training itself" in done.err
    assert noted == (kind == "pairs")


@pytest.mark.parametrize("has", [True, False])
def test_a_cpu_without_bfloat16_computes_in_float32(
    photos: Path, tmp_path: Path, cats_train: Command, monkeypatch: pytest.MonkeyPatch, has: bool
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has, raising=False)
    assert optimization.has_bf16(torch.device("cuda"))
    with autocast(torch.device("cpu"), "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if has else torch.float32)
    given = [part for setting in settings(amp="bf16", steps=1) for part in ("--set", setting)]
    done = cats_train("--data", f"warps:{photos}", "--config", "tiny", "-o", tmp_path / "run", *given)
    assert done.code == 0, done.err
    assert ("no instructions for bfloat16: float32 takes its place" in done.err) == (not has)


def test_the_backbone_has_its_own_rate_and_vectors_do_not_decay(photos: Path, tmp_path: Path) -> None:
    config = find_config("tiny").override(settings(freeze="none", lr=1e-3, lr_backbone=1e-5, weight_decay=0.05))
    groups = trainer(config, photos, tmp_path).optimizer.param_groups
    found = {(group["initial_lr"], group["weight_decay"]): group["params"] for group in groups}
    assert set(found) == {(1e-3, 0.05), (1e-3, 0.0), (1e-5, 0.05), (1e-5, 0.0)}
    assert all((parameter.ndim > 1) == (decay > 0) for (_, decay), part in found.items() for parameter in part)


def trainer(config: TrainConfig, photos: Path, folder: Path) -> Trainer:
    dataset = WarpPairs(PhotoFolder.open(photos), size=64, grid=4)
    return Trainer(config, dataset, FlowObjective(), lambda model, bar: {"score": 0.0}, folder, steps=config.steps)


def test_schedules(photos: Path, tmp_path: Path) -> None:
    def rates(**changes: object) -> list[float]:
        run = trainer(find_config("tiny").override(settings(steps=10, **changes)), photos, tmp_path)
        return [learning_rate_factor(run.config, run.steps, step) for step in range(10)]

    steps = rates(schedule="multistep", milestones="[0.5, 0.8]")
    assert steps == [1.0] * 5 + [0.5] * 3 + [0.25] * 2
    cosine = rates(schedule="cosine", warmup=2)
    assert cosine[0] == 0.5
    assert cosine[5] == pytest.approx(0.5)
    assert cosine[9] == pytest.approx(0.0245, abs=1e-4)


@pytest.mark.parametrize("kind", ["warps", "categories"])
def test_batches_do_not_depend_on_the_number_of_workers(kind: str, photos: Path, tmp_path: Path) -> None:
    def batches(workers: int) -> list[dict[str, Tensor]]:
        size = {"size": 64, "grid": 4}
        dataset = (
            WarpPairs(PhotoFolder.open(photos), **size)
            if kind == "warps"
            else CategoryTriplets(CategoryFolder.open(photos), **size)
        )
        config = find_config("tiny").override(settings())
        cpu = torch.device("cpu")
        loaded = load_batches(dataset, config, first=0, end=4, rank=0, world=1, workers=workers, device=cpu)
        return [batch for (batch,) in loaded]

    alone, two = batches(0), batches(2)
    assert len(alone) == len(two) == 4
    for one, other in zip(alone, two, strict=True):
        assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_validation_without_keypoints_is_refused_before_training(
    photos: Path, tmp_path: Path, cats_train: Command
) -> None:
    make_image(tmp_path / "one.png", (90, 80))
    (tmp_path / "bare.csv").write_text("a,b\none.png,one.png\n")
    data = ("--data", f"warps:{photos}", "--config", "tiny", "-o", tmp_path / "run")
    given = [part for setting in settings() for part in ("--set", setting)]
    assert "no pair has keypoints" in cats_train(*data, "--val", f"pairs:{tmp_path / 'bare.csv'}", *given).error
    pairs = make_pairs(tmp_path)
    (tmp_path / "two.png").write_bytes((tmp_path / "two.png").read_bytes()[:200])
    assert "two.png" in cats_train(*data, "--val", f"pairs:{pairs}", *given).error
    assert not list(tmp_path.glob("run/*.pt"))


def test_fine_tuning_starts_from_the_checkpoint(
    tmp_path: Path, photos: Path, cats_train: Command, watch: Watch
) -> None:
    base = ("--data", f"warps:{photos}", "--workers", 0)
    small = [part for setting in settings() for part in ("--set", setting)]
    assert cats_train(*base, "--config", "tiny", "-o", tmp_path / "one", *small).code == 0
    best = tmp_path / "one" / "best.pt"
    short = ("--set", "steps=2", "--set", "validate_every=2", "--set", "batch_size=2")
    done = cats_train(*base, "--init", best, "-o", tmp_path / "two", *short)
    assert done.code == 0, done.err
    saved = load_checkpoint(best).model.state_dict()
    assert all(torch.equal(value, watch.before[key]) for key, value in saved.items())
    two = load_checkpoint(tmp_path / "two" / "best.pt")
    assert two.training["config"]["init"].startswith("best ")
    assert two.model.config == load_checkpoint(best).model.config
    assert f"cats-export --ckpt {tmp_path / 'two' / 'best.pt'}" in done.err
    own = cats_train(*base, "--resume", "--init", tmp_path / "two" / "best.pt", "-o", tmp_path / "two", *short)
    assert "it is read" in own.error  # the run would write over what it starts from
    other = shutil.copy(tmp_path / "two" / "best.pt", tmp_path / "other.pt")
    refused = cats_train(*base, "--resume", "--init", other, "-o", tmp_path / "two", *short)
    assert "init was 'best " in refused.error
    for words, text in (
        (("--init", best, "--set", "model.depth=1"), "leave out --set model"),
        (("--config", "fine-tune"), "goes on from a checkpoint: give --init cats-tiny"),
        (("--init", tmp_path / "none.pt"), "none.pt does not exist"),
        (("--config", "tiny", "--set", "start=checkpoint"), "start=checkpoint and --init CHECKPOINT belong together"),
    ):
        assert text in cats_train(*base, *words, "-o", tmp_path / "three").error


def test_yours_is_compared_with_the_shipped_model(tmp_path: Path, photos: Path, cats_train: Command) -> None:
    short = [part for text in ("steps=1", "batch_size=1", "amp=off") for part in ("--set", text)]
    done = cats_train(
        "--data", f"warps:{photos}", "--workers", 0, "--init", "cats-tiny", "-o", tmp_path / "run", *short
    )
    assert done.code == 0, done.err
    line = next(line for line in done.err.splitlines() if line.startswith("EPE (px): yours "))
    yours, shipped, before = (float(part.split()[-1]) for part in line.split(","))
    assert shipped == before > 0
    assert abs(yours - shipped) < 1


def test_broken_pairs_are_left_out_and_counted(tmp_path: Path, cats_train: Command) -> None:
    table = make_pairs(tmp_path / "pairs")
    row = "60,40,66,41"
    table.write_text(table.read_text() + f'one.png,broken.png,"{row}"\none.png,two.png,"9,9,nan,9"\none.png,two.png,\n')
    (tmp_path / "pairs" / "broken.png").write_bytes(b"junk")
    given = [part for setting in settings() for part in ("--set", setting)]
    done = cats_train("--data", f"pairs:{table}", "--config", "tiny", "--workers", 0, "-o", tmp_path / "run", *given)
    assert done.code == 0, done.err
    said = [line for line in done.err.splitlines() if line.startswith("left out 3 of 4 pairs")]
    assert len(said) == 1  # of the training and of the validation alike
    assert "broken.png" in said[0]
    assert "pairs.csv, line 4" in said[0]


def test_a_validation_looks_at_some_of_many_pairs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = make_pairs(tmp_path / "pairs")
    head, row = table.read_text().splitlines()
    table.write_text("\n".join([head, *[row] * 9]) + "\n")
    config = find_config("tiny").override(["validation_pairs=3"])
    assert len(train_cli._validation(f"pairs:{table}", "warps:photos", config).samples) == 3
    assert "validating on 3 of 9 pairs" in capsys.readouterr().err
    everything = find_config("tiny").override(["validation_pairs=0"])
    assert len(train_cli._validation(f"pairs:{table}", "warps:photos", everything).samples) == 9
