"""The recipe of docs/paper.md on a small copy of the published layout: check, train, evaluate, draw, export, run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Command, runner
from datasets import make_spair

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from tiny_models import TRAINING

from cats import cli


@pytest.fixture
def cats(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return runner(cli.main, "cats", monkeypatch, capsys)


def test_from_a_download_to_matches(cats: Command, tmp_path: Path) -> None:
    root = make_spair(tmp_path / "SPair-71k", ("trn", "val", "test"))
    assert cats("data", "check", f"spair:{root}", "--categories").code == 0
    small = {**TRAINING, "model.backbone": "tf_efficientnet_lite0", "epochs": 2}
    settings = [word for key, value in small.items() if key != "steps" for word in ("--set", f"{key}={value}")]
    runs = {}
    for config, extra in (("spair", ["model.correlation=false"]), ("spair-cotr", ["model.hyperpixels=[3]"])):
        output = tmp_path / config
        more = [word for item in extra for word in ("--set", item)]
        done = cats("train", "--data", f"spair:{root}", "--config", config, *settings, *more, "-o", output)
        assert done.code == 0, done.err
        runs[config] = output / "best.pt"
    figures = tmp_path / "figures"
    data = ("--data", f"spair:{root}", "--protocol", "cats2021", "--protocol", "corrected")
    drawn = ("--figures", figures, "--beside", runs["spair-cotr"], "--pick", "differ", "--figure-pairs", 1)
    done = cats("eval", runs["spair"], *data, *drawn, "--json")
    assert done.code == 0, done.err
    trained = json.loads(done.out)["protocols"]
    assert (figures / "transfers-cats2021.png").is_file()
    done = cats("export", "--ckpt", runs["spair"], "-o", tmp_path / "best.onnx")
    assert done.code == 0, done.err
    exported = json.loads(cats("eval", tmp_path / "best.onnx", *data, "--json").out)["protocols"]
    assert {name: entry["pck"] for name, entry in exported.items()} == {
        name: entry["pck"] for name, entry in trained.items()
    }
    a, b = (root / "JPEGImages" / "cat" / f"2008_00000{number}.jpg" for number in (1, 2))
    done = cats("run", tmp_path / "best.onnx", a, b, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["matches"]
