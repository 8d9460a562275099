"""Folders that are written as a whole: refusals, and one whole state wherever the writer ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cats.core import folders
from cats.core.errors import InputError
from cats.core.files import _cleaned
from cats.core.folders import replaced_folder
from cats.core.outputs import OutputPlan

MARK = "mark.json"


def write(folder: Path, text: str) -> None:
    with replaced_folder(folder, MARK) as fresh:
        (fresh / MARK).write_text("")
        (fresh / "part").mkdir()
        (fresh / "part" / "x").write_text(text)


def state(folder: Path) -> str:
    assert (folder / MARK).is_file()
    return (folder / "part" / "x").read_text()


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on file systems that cannot exchange two names."""
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)


def check(folder: Path, *reads: Path, force: bool = False, mark: str | None = MARK) -> None:
    OutputPlan(force=force).reads(*reads).writes_folder(folder, mark).check()


def test_what_is_not_of_an_earlier_run_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    check(folder)
    folder.mkdir()
    check(folder)
    check(folder, mark=None)
    (folder / "mine").write_text("mine")
    for force in (False, True):
        with pytest.raises(InputError, match="not empty and not of an earlier run"):
            check(folder, force=force)
        with pytest.raises(InputError, match="not an empty folder"):
            check(folder, force=force, mark=None)
    (folder / MARK).write_text("")
    with pytest.raises(InputError, match=r"out exists already: give --force"):
        check(folder)
    check(folder, force=True)
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="is the current folder"):
        check(Path(), force=True)
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "file").write_text("x")
    for name in ("link", "file"):
        with pytest.raises(InputError, match=rf"cannot write .*{name}: it is not a folder"):
            check(tmp_path / name, force=True)
    with pytest.raises(InputError, match="does not exist"):
        check(tmp_path / "none" / "out")


@pytest.mark.parametrize("force", [False, True])
def test_nothing_that_is_read_lies_in_the_folder_nor_around_it(tmp_path: Path, force: bool) -> None:
    folder = tmp_path / "out"
    write(folder, "old")
    (tmp_path / "link").symlink_to(folder / "part" / "x")
    for read in (folder / "part" / "x", folder / "part", folder, tmp_path / "link"):
        with pytest.raises(InputError, match="in it is read"):
            check(folder, read, force=force)
    with pytest.raises(InputError, match="give a folder outside of it"):
        check(tmp_path / "photos" / "new", *_made(tmp_path / "photos"), force=force)
    with pytest.raises(InputError, match="two outputs"):
        OutputPlan(force=force).writes_folder(tmp_path / "n", MARK).writes_folder(tmp_path / "." / "n", MARK).check()
    with pytest.raises(InputError, match="two outputs"):
        OutputPlan(force=force).writes_folder(tmp_path / "n", MARK).writes(tmp_path / "n").check()


def _made(folder: Path) -> list[Path]:
    folder.mkdir()
    return [folder]


@pytest.mark.parametrize("way", ["exchange", "no exchange"])
def test_an_error_leaves_the_former_folder(tmp_path: Path, way: str, request: pytest.FixtureRequest) -> None:
    if way == "no exchange":
        request.getfixturevalue("no_exchange")
    folder = tmp_path / "out"
    write(folder, "old")

    def fail() -> None:
        with replaced_folder(folder, MARK) as fresh:
            (fresh / "half").write_text("half")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert state(folder) == "old"
    write(folder, "new")
    assert state(folder) == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_former_folder_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, no_exchange: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    write(folder, "old")
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise PermissionError(13, "Permission denied")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(InputError, match="Permission denied"):
        write(folder, "new")
    assert state(folder) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_current_folder_stays_the_one_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(Path(), "new")
    assert state(Path(os.curdir).resolve()) == "new"
    assert Path("part/x").read_text() == "new"


KILLED = """
import os, signal, sys
from pathlib import Path
from cats.core import folders
step, way, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
count = 0
def counted(real):
    def call(*given, **named):
        global count
        count += 1
        if count == step: os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)
    return call
Path.rename = counted(Path.rename)
folders.shutil.rmtree = counted(folders.shutil.rmtree)
folders._exchange = counted(folders._exchange if way == "exchange" else lambda one, other: False)
with folders.replaced_folder(folder, "mark.json") as fresh:
    (fresh / "mark.json").write_text("")
    (fresh / "part").mkdir()
    (fresh / "part" / "x").write_text("new")
"""


@pytest.mark.parametrize(("way", "steps"), [("exchange", 2), ("no exchange", 6)])
def test_the_folder_is_of_one_state_wherever_the_writer_is_killed(tmp_path: Path, way: str, steps: int) -> None:
    states = []
    for step in range(1, steps + 2):
        place = tmp_path / str(step)
        place.mkdir()
        write(place / "out", "old")
        done = subprocess.run([sys.executable, "-c", KILLED, str(step), way, str(place / "out")], check=False)
        assert done.returncode == (-signal.SIGKILL if step <= steps else 0)
        if way == "exchange":
            states.append(state(place / "out"))
        _cleaned.clear()
        with replaced_folder(place / "other", MARK) as fresh:  # mends and cleans up
            (fresh / MARK).write_text("")
        states.append(state(place / "out"))
        assert {path.name for path in place.iterdir()} == {"out", "other"}
    assert set(states) == {"old", "new"}
    assert states[-1] == "new"


def test_the_draft_of_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    with replaced_folder(tmp_path / "out", MARK) as fresh:
        _cleaned.clear()
        script = "import sys; from cats.core.files import write_text; write_text(sys.argv[1], 'x')"
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "x")], check=True)
        (fresh / "y").write_text("y")
    assert (tmp_path / "out" / "y").read_text() == "y"
