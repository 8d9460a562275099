"""The commands that :mod:`cats.benchmarks.studies.kill_trials` ends, and what is whole of what they leave."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cats.assets import asset
from cats.core.errors import CatsError
from cats.core.images import read_image
from cats.core.json_text import read_json

TINY = {
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
"""Settings of a training of seconds."""


@dataclass(frozen=True)
class Job:
    """A command whose end is tried.

    Attributes:
        name: of the command.
        arguments: for a folder of outputs, whether it runs again there.
        check: raises where what is in the folder is not whole.
        wrong: exit status of verified work that differs too much; random weights do.
        keeps: name of a hidden file that an interrupted run leaves on purpose, to go on from.
    """

    name: str
    arguments: Callable[[Path, bool], list[str]]
    check: Callable[[Path], None]
    wrong: bool = False
    keeps: str = ""

    def left(self, folder: Path, *, interrupted: bool) -> list[str]:
        """Hidden files below a folder that should not be there."""
        return [path.name for path in folder.rglob(".*") if not (interrupted and path.name == self.keeps)]


def jobs(inputs: Path) -> dict[str, Job]:
    """All of them; ``inputs`` holds ``photos``, ``old.pt``, ``new.pt`` and ``small.onnx``."""
    photos = inputs / "photos"
    a, b = sorted(photos.iterdir())[:2]
    settings = [f"--set={key}={value}" for key, value in TINY.items()]

    def run(folder: Path, again: bool) -> list[str]:
        outputs = ["-o", str(folder / "x.png"), "--flow", str(folder / "x.npy"), "--warp", str(folder / "w.png")]
        return [str(asset("cats-tiny.onnx")), str(a), str(b), *outputs, "--force", "--threads", "1"]

    def export(folder: Path, again: bool) -> list[str]:
        return ["--ckpt", str(inputs / "new.pt"), "--split", "-o", str(folder / "x.onnx"), "--force"]

    def calibrate(folder: Path, again: bool) -> list[str]:
        kept = ["--ranges", str(folder / "r.json"), "-o", str(folder / "x.int8.onnx"), "--threads", "1"]
        return [str(inputs / "small.onnx"), "--images", str(photos), *kept, "--as-is", "--no-time", "--force"]

    def build(folder: Path, again: bool) -> list[str]:
        return [str(inputs / "small.onnx"), "-o", str(folder / "x.plan"), "--optimization", "0", "--force"]

    def train(folder: Path, again: bool) -> list[str]:
        resume = ["--resume"] if again and (folder / "run" / "resume.pt").exists() else []
        data = ["--data", f"warps:{photos}", "--workers", "0", "--config", "tiny-warps"]
        return [*data, "--output", str(folder / "run"), *settings, *resume]

    def label(folder: Path, again: bool) -> list[str]:
        outputs = ["-o", str(folder / "labels.json"), "--review", str(folder / "x.html")]
        return [str(inputs / "refs.json"), str(photos), *outputs, "--threads", "1", "--streams", "1", "--force"]

    return {
        "run": Job("run", run, _check_pictures),
        "label": Job("label", label, _check_labels, keeps=".labels.json.progress"),
        "calibrate": Job("calibrate", calibrate, _check_models, wrong=True),
        "export": Job("export", export, _check_models, wrong=True),
        "build": Job("build", build, _check_engines),
        "train": Job("train", train, _check_run),
    }


def _final(folder: Path, pattern: str) -> list[Path]:
    """Files under their final names."""
    return [path for path in folder.glob(pattern) if not path.name.startswith(".")]


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
    expect(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), (0,))


def _check_labels(folder: Path) -> None:
    for path in _final(folder, "labels.json"):
        read_json(path)
    for path in _final(folder, "*.html"):
        if not path.read_text().rstrip().endswith("</html>"):
            raise CatsError("half a page")


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


def expect(code: int, allowed: tuple[int, ...]) -> None:
    """Raise :class:`CatsError` for another exit status than those allowed."""
    if code not in allowed:
        raise CatsError(f"exit status {code}")
