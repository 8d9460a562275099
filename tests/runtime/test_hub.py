"""Models on a hub: names, download, cache, digests, upload; against a server on 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Command, runner
from hub_server import Hub, Repository
from readme import code_blocks, install_commands, shell_commands

from cats import cli
from cats.assets import asset, find_model
from cats.benchmarks.record import REPOSITORY
from cats.core.errors import BackendError, InputError, ModelFileError
from cats.core.hub import HubName, check_digest, hub_source, parse_hub_name
from cats.runtime import Matcher

constants = pytest.importorskip("huggingface_hub.constants", reason="needs cats-toolkit[hub]")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one repository; this process and commands that it starts use it, with a cache of their own."""
    served = Hub()
    served.repositories["ann/model"] = Repository()
    served.repositories["ann/model"].commit(
        {"cats-tiny.onnx": asset("cats-tiny.onnx").read_bytes(), "README.md": b"hello", "best.pt": b"not looked at"}
    )
    cache = tmp_path / "hub-cache"
    for name, value in {"HF_ENDPOINT": served.address, "HF_HUB_CACHE": str(cache), "HF_TOKEN": "hf_none"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # uploads of the protocol before it
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", served.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.address + template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield served
    served.close()


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Run:
    """Run a command of the toolkit as a user does."""
    place = install_commands(tmp_path / "bin")

    def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command, *arguments = map(str, words)
        return subprocess.run(
            [sys.executable, str(place / command), *arguments],
            cwd=tmp_path, env={**os.environ, "COLUMNS": "200", **environment}, capture_output=True, text=True,
        )  # fmt: skip

    return run


@pytest.fixture
def cats(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    """``cats`` in this process, which has imported PyTorch already."""
    monkeypatch.chdir(tmp_path)
    return runner(cli.main, "cats", monkeypatch, capsys)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://ann/model", HubName("ann/model")),
        (Path("hf://ann/model@v1.0/sub/x.onnx"), HubName("ann/model", "v1.0", "sub/x.onnx")),
        ("hf://ann/model@refs%2Fpr%2F1", HubName("ann/model", "refs/pr/1")),
        ("cats-tiny", None),
        (Path("hf/ann"), None),
    ],
)
def test_names(text: str | Path, expected: HubName | None) -> None:
    assert parse_hub_name(text) == expected


@pytest.mark.parametrize(
    "text", ["hf://ann", "hf://ann/", "hf://ann/m@", "hf://ann/m/../x", "hf://a b/m", "hf://ann/m/"]
)
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="is no name on the hub"):
        parse_hub_name(text)


def test_a_model_is_fetched_once_and_says_its_commit(hub: Hub) -> None:
    (commit,) = hub.repositories["ann/model"].commits
    with Matcher("hf://ann/model", threads=1) as matcher:
        match = matcher.match(asset("astronaut.jpg"), asset("grace_hopper.jpg"))
    source = f"hf://ann/model@{commit}/cats-tiny.onnx"
    assert match.to_dict()["model"]["source"] == source == hub_source(matcher.path)
    hub.requests.clear()
    assert find_model(f"hf://ann/model@{commit}") == matcher.path
    assert Matcher.from_pretrained("ann/model", revision=commit, threads=1).path == matcher.path
    assert hub.requests == []  # a commit cannot change
    assert pickle.loads(pickle.dumps(matcher)).path == matcher.path


def test_the_cache_is_enough_without_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_model("hf://ann/model")
    hub.close()
    assert find_model("hf://ann/model") == found
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_model("hf://ann/model/cats-tiny.onnx") == found
    with pytest.raises(InputError, match="not in the cache, and the hub cannot be reached"):
        find_model("hf://ann/other")


def test_main_moves_on_and_a_revision_stays(hub: Hub) -> None:
    repository = hub.repositories["ann/model"]
    (first,) = repository.commits
    second = repository.commit({"cats-tiny.onnx": asset("cats-tiny.int8.onnx").read_bytes()})
    assert find_model("hf://ann/model").read_bytes() == asset("cats-tiny.int8.onnx").read_bytes()
    assert find_model(f"hf://ann/model@{first}").read_bytes() == asset("cats-tiny.onnx").read_bytes()
    assert hub_source(find_model("hf://ann/model")) == f"hf://ann/model@{second}/cats-tiny.onnx"


def test_a_split_model_comes_whole(hub: Hub) -> None:
    names = ("cats-tiny.encoder.onnx", "cats-tiny.matcher.onnx")
    hub.repositories["ann/split"] = Repository()
    hub.repositories["ann/split"].commit({name: asset(name).read_bytes() for name in names})
    for name in ("hf://ann/split", "hf://ann/split/cats-tiny.matcher.onnx"):
        with Matcher(name, threads=1) as matcher:
            assert matcher.encoder is not None
            assert matcher.encode(asset("astronaut.jpg")).size == (512, 512)


def test_refusals_are_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["ann/two"] = Repository()
    hub.repositories["ann/two"].commit({"a.onnx": b"x", "b.onnx": b"y", "c.plan": b"z"})
    says = {
        "hf://ann/none": "no such repository, or a private one",
        "hf://ann/model@v9": "no such revision",
        "hf://ann/model/x.onnx": "no such file",
        "hf://ann/two": "has several models: name one of hf://ann/two/a.onnx, hf://ann/two/b.onnx",
    }
    for name, text in says.items():
        with pytest.raises(InputError, match=text):
            find_model(name)
    with pytest.raises(ModelFileError, match="is an engine, which is code of one machine"):
        find_model("hf://ann/two/c.plan")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BackendError, match=r"pip install 'cats-toolkit\[hub\]'"):
        find_model("hf://ann/model")


def test_another_content_than_the_hub_names_is_refused(hub: Hub) -> None:
    hub.damage = True
    with pytest.raises(ModelFileError, match="is not the file that the hub names"):
        find_model("hf://ann/model")


def test_small_files_are_checked_as_git_objects(hub: Hub) -> None:
    file = find_model("hf://ann/model/README.md")
    assert check_digest(file) == hashlib.sha256(b"hello").hexdigest()
    file.resolve().write_bytes(b"hallo")
    with pytest.raises(ModelFileError, match="is not the file"):
        check_digest(file)


def test_pull_and_run(run: Run, hub: Hub, tmp_path: Path) -> None:
    done = run("cats", "pull", "ann/model", "-o", "models", "--json")
    assert done.returncode == 0, done.stderr
    (commit,) = hub.repositories["ann/model"].commits
    file = tmp_path / "models/cats-tiny.onnx"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert json.loads(done.stdout) == {
        "source": f"hf://ann/model@{commit}/cats-tiny.onnx",
        "files": [{"file": "models/cats-tiny.onnx", "sha256": digest}],
    }
    again = run("cats", "pull", "hf://ann/model", "-o", "models")
    assert again.returncode == 2
    assert "--force" in again.stderr
    photos = [asset(name) for name in ("astronaut.jpg", "grace_hopper.jpg")]
    matched = run("cats-run", "hf://ann/model", *photos, "--json", HF_HUB_OFFLINE="1")
    assert matched.returncode == 0, matched.stderr
    assert json.loads(matched.stdout)["model"]["source"].startswith(f"hf://ann/model@{commit}")
    assert f"hf://ann/model@{commit}" in matched.stderr


def test_push_and_pull_back(cats: Command, hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="checkpoints need cats-toolkit[export]")
    arguments = ("push", "cats-tiny", "hf://bob/tiny", "--ckpt", "cats-tiny", "--license", "apache-2.0")
    done = cats(*arguments, "--json")
    assert done.code == 0, done.err
    files = hub.repositories["bob/tiny"].files("main")
    assert sorted(files) == ["README.md", "cats-tiny.onnx", "cats-tiny.safetensors", "sample.html", "sample.png"]
    commit = hub.repositories["bob/tiny"].resolve("main")
    assert json.loads(done.out)["source"] == f"hf://bob/tiny@{commit}"
    assert files["cats-tiny.onnx"] == asset("cats-tiny.onnx").read_bytes()
    card = files["README.md"].decode()
    assert "license: apache-2.0" in card
    assert hashlib.sha256(files["cats-tiny.safetensors"]).hexdigest() in card
    assert 'Matcher("hf://bob/tiny")' in card

    hub.repositories["bob/tiny"].commit({"README.md": b"my own words"})
    kept = cats(*arguments)
    assert "stays; --force replaces it" in kept.err, kept.err
    assert hub.repositories["bob/tiny"].files("main")["README.md"] == b"my own words"

    described = cats("convert", "hf://bob/tiny", "-o", "back.pt")
    assert described.code == 0, described.err
    from cats.checkpoints import load_checkpoint, weights_sha256

    digests = {weights_sha256(load_checkpoint(path).model) for path in (tmp_path / "back.pt", asset("cats-tiny.pt"))}
    assert len(digests) == 1


def test_push_refuses_what_is_no_model(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.plan").write_bytes(b"engine")
    for model, text in (("x.plan", "an engine is code of one machine"), ("missing.onnx", "missing.onnx")):
        done = run("cats", "push", model, "hf://bob/tiny", "-o", "look")
        assert done.returncode == 2, done.stderr
        assert text in done.stderr
        assert "Traceback" not in done.stderr


def test_shell_of_the_page(cats: Command) -> None:
    pytest.importorskip("torch", reason="checkpoints need cats-toolkit[export]")
    (block,) = (block for block in code_blocks(REPOSITORY / "docs/hub.md") if block.language == "sh")
    for command in shell_commands(block):
        name, *words = command.split()
        assert name == "cats"
        done = cats(*words)
        assert done.code == 0, done.err
    assert "cats-toolkit" in done.out
