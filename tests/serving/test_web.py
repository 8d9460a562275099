"""``cats web``: what is written, what is refused, and where other people's JavaScript comes from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import Command, runner
from PIL import Image

from cats import cli
from cats.assets import asset
from cats.core.errors import BackendError
from cats.core.files import sha256_file
from cats.core.onnx_file import with_probabilities
from cats.core.onnx_summary import read_onnx_summary
from cats.serving import npm
from cats.serving.npm import Package, fetch

A, B = asset("astronaut.jpg"), asset("grace_hopper.jpg")


@pytest.fixture
def cats(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return runner(cli.main, "cats", monkeypatch, capsys)


def test_a_site_is_complete_and_replaced_as_a_whole(cats: Command, site: Path, tmp_path: Path) -> None:
    Image.open(A).resize((2048, 1024)).save(tmp_path / "wide.jpg")
    (tmp_path / "pairs.csv").write_text(f'a,b,points,label\nwide.jpg,{B},"1023.5,511.5",Wide\n')
    folder = tmp_path / "site"
    done = cats("web", folder, "--pairs", tmp_path / "pairs.csv", "--no-webgpu", "--no-service-worker")
    assert done.code == 0, done.err
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"index.html", "page.css", "main.js", "cats-tiny.onnx", "ort/ort.wasm.min.mjs", "LICENCES.txt"} <= names
    assert not {name for name in names if "webgpu" in name or "asyncify" in name or "coi" in name}
    settings = json.loads((folder / "cats-web.json").read_text())
    (sample,) = settings["samples"]
    assert sample["label"] == "Wide"
    np.testing.assert_allclose(sample["points"], [[511.5, 255.5]])
    assert Image.open(folder / sample["a"]).size == (1024, 512)
    assert settings["webgpu"] is False
    (folder / "old.txt").write_text("of an earlier version")
    assert "give --force" in cats("web", folder, "--no-webgpu").error
    assert (folder / "old.txt").exists()
    assert cats("web", folder, "--no-webgpu", "--force").code == 0
    assert not (folder / "old.txt").exists()
    assert (folder / "coi-serviceworker.js").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.csv", "site", "wide.jpg"]


def test_refusals_leave_nothing(cats: Command, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "is not empty" in cats("web", tmp_path / "full").error
    assert "does not exist" in cats("web", tmp_path / "no" / "site").error
    assert "not a folder" in cats("web", A).error
    assert "astronaut.jpg" in cats("web", tmp_path / "site", "--model", A).error
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "cats-web.json").write_text("{}")
    (tmp_path / "site" / "own.onnx").write_bytes(asset("cats-tiny.onnx").read_bytes())
    inside = cats("web", tmp_path / "site", "--model", tmp_path / "site" / "own.onnx")
    assert "give another folder" in inside.error
    assert (tmp_path / "site" / "own.onnx").exists()
    (tmp_path / "site" / "a.jpg").write_bytes(A.read_bytes())
    (tmp_path / "pairs.csv").write_text(f"a,b\nsite/a.jpg,{B}\n")
    sample = cats("web", tmp_path / "site", "--pairs", tmp_path / "pairs.csv", "--force")
    assert "a.jpg in it is read" in sample.error
    assert (tmp_path / "site" / "a.jpg").exists()


def test_a_further_output_changes_no_byte_of_the_file(tmp_path: Path) -> None:
    model = asset("cats-tiny.onnx")
    before = sha256_file(model)
    data = with_probabilities(model)
    assert data is not None
    assert data.startswith(model.read_bytes())
    (tmp_path / "m.onnx").write_bytes(data)
    outputs = {item.name: item.shape for item in read_onnx_summary(tmp_path / "m.onnx").outputs}
    assert outputs["probabilities"] == ("batch", 256, 256)
    assert sha256_file(model) == before
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"))


def test_an_attention_is_not_taken_for_the_soft_argmax(tmp_path: Path) -> None:
    """A model that regresses its flow has softmaxes too, of other shapes."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Softmax", ["x"], ["weights"]),
        helper.make_node("Relu", ["weights"], ["hidden"]),
        helper.make_node("Identity", ["hidden"], ["flow"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x", "flow")]
    graph = helper.make_graph(nodes, "other", values[:1], values[1:])
    onnx.save(helper.make_model(graph), tmp_path / "other.onnx")
    assert with_probabilities(tmp_path / "other.onnx") is None


def test_packages_are_checked_against_their_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(npm.shutil, "which", lambda name: None)
    package = Package("some", "1.0.0", "sha512-AAAA", "MIT")
    kept = tmp_path / "cats-toolkit" / "npm" / "some-1.0.0.tgz"
    with pytest.raises(BackendError, match=r"npm is needed to fetch some@1\.0\.0"):
        fetch(package, ["x.js"])
    kept.write_bytes(b"changed in the cache")
    with pytest.raises(BackendError, match="npm is needed"):
        fetch(package, ["x.js"])

    def pack(command: list[str], cwd: str, **_: object) -> object:
        Path(cwd, "some-1.0.0.tgz").write_bytes(b"another archive")
        return npm.subprocess.CompletedProcess(command, 0, "[]", "")

    monkeypatch.setattr(npm.shutil, "which", lambda name: name)
    monkeypatch.setattr(npm.subprocess, "run", pack)
    with pytest.raises(BackendError, match="sha512 differs"):
        fetch(package, ["x.js"])
    assert kept.read_bytes() == b"changed in the cache"
