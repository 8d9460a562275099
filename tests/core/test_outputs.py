"""What a command may write, and that it is written whole."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from cats.core.errors import InputError
from cats.core.files import _cleaned, atomic_path, atomic_paths, settle, write_text
from cats.core.outputs import OutputPlan


def plan(*, force: bool = False) -> OutputPlan:
    return OutputPlan(force=force)


def test_existing_files_need_force(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    plan().writes(path).check()
    path.write_text("old")
    with pytest.raises(InputError, match=r"x.json exists already: give --force"):
        plan().writes(path).check()
    plan(force=True).writes(path).check()
    plan().writes(path, updates=True).check()  # a cache


@pytest.mark.parametrize("force", [False, True])
def test_an_output_is_never_an_input_or_another_output(tmp_path: Path, force: bool) -> None:
    a = tmp_path / "a.jpg"
    a.write_text("photo")
    (tmp_path / "link.jpg").symlink_to(a)
    os.link(a, tmp_path / "hard.jpg")
    for name in ("a.jpg", "link.jpg", "hard.jpg"):
        with pytest.raises(InputError, match=rf"cannot write .*{name}: it is read"):
            plan(force=force).reads(a).writes(tmp_path / name).check()
    (tmp_path / "y").mkdir()
    with pytest.raises(InputError, match="two outputs"):
        plan(force=force).writes(tmp_path / "x.png", tmp_path / "y" / ".." / "x.png").check()
    with pytest.raises(InputError, match="two outputs"):
        plan(force=force).writes(tmp_path / "new").writes(tmp_path / "." / "new").check()


def test_the_photos_of_a_folder_that_is_read_are_safe(tmp_path: Path) -> None:
    photos, store = tmp_path / "photos", tmp_path / "store"
    for folder in (photos, store):
        folder.mkdir()
    Image.new("RGB", (32, 32)).save(store / "linked.jpg")
    (photos / "more").symlink_to(store)
    for place in (photos / "new.png", store / "linked.jpg"):
        with pytest.raises(InputError, match=r"the photos of .* are read"):
            plan(force=True).reads(photos).writes(place).check()
        with pytest.raises(InputError, match=r"the photos of .* are read"):
            plan(force=True).reads_data(f"categories:{photos}").writes(place).check()
    plan().reads(photos).writes(photos / "features.npz", tmp_path / "x.png").check()


def test_devices_pipes_and_folders_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "null.png").symlink_to("/dev/null")
    for path, text in ((tmp_path / "pipe.png", "a pipe"), (tmp_path / "null.png", "a device"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=text):
            plan(force=True).writes(path).check()
        with pytest.raises(InputError, match=text):
            write_text(path, "x")
    assert stat.S_ISFIFO((tmp_path / "pipe.png").stat().st_mode)
    for path, text in (
        (tmp_path / "none" / "x.png", "does not exist"),
        (tmp_path / "x.gif", "must end in .png"),
        (tmp_path / "x\0.png", "cannot write"),
    ):
        with pytest.raises(InputError, match=text):
            plan().writes(path, suffixes=(".png",)).check()


def test_writing_follows_a_link_and_keeps_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "umask", None)  # of the whole process: other threads would see it
    (tmp_path / "link").symlink_to("file")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "x"
    monkeypatch.undo()
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "other", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o640


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert path.read_text() == "old"


KILLED = """
import os, signal, sys
from pathlib import Path
from cats.core import files
step, folder = int(sys.argv[1]), Path(sys.argv[2])
real, count = Path.replace, 0
def replace(self, target):
    global count
    count += 1
    if count == step: os.kill(os.getpid(), signal.SIGKILL)
    return real(self, target)
Path.replace = replace
with files.atomic_paths(folder / "x.plan", folder / "x.plan.json") as temporaries:
    for temporary in temporaries: temporary.write_text("new")
"""


def test_two_files_are_of_one_state_wherever_the_writer_is_killed(tmp_path: Path) -> None:
    states = set()
    for step in range(1, 8):
        folder = tmp_path / str(step)
        folder.mkdir()
        pair = folder / "x.plan", folder / "x.plan.json"
        for path in pair:
            path.write_text("old")
        done = subprocess.run([sys.executable, "-c", KILLED, str(step), str(folder)], check=False)
        assert done.returncode == (-signal.SIGKILL if step < 7 else 0)
        for path in reversed(pair):
            settle(path)
        states.add(pair[0].read_text())
        assert pair[0].read_text() == pair[1].read_text()
        write_text(folder / "next", "x")  # cleans up
        assert {entry.name for entry in folder.iterdir()} == {"next", "x.plan", "x.plan.json"}
    assert states == {"old", "new"}


def test_a_note_of_somebody_else_moves_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for text in ('[["mine", "x"]]', '[["../a.cats-partial", "x"]]', "[[1, 2]]", "{}", "nonsense"):
        (tmp_path / ".x.cats-together").write_text(text)
        settle(tmp_path / "x")
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "mine").read_text() == "mine"


def test_the_next_writer_removes_what_a_killed_one_left_but_nothing_of_a_living_one(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom cats.core.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n    print(temporary, flush=True)\n    time.sleep(60)\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, tmp_path / f"{k}.png"], stdout=subprocess.PIPE, text=True)
        for k in range(2)
    ]
    try:
        left = [Path(writer.stdout.readline().strip()) for writer in writers if writer.stdout is not None]
        assert all(path.suffix == ".png" and path.name.startswith(".") for path in left)
        writers[0].kill()
        writers[0].wait()
        _cleaned.clear()
        write_text(tmp_path / "x", "x")
        assert not left[0].exists()
        assert left[1].exists()
        _cleaned.clear()
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_signals_leave_no_temporary_file(tmp_path: Path, number: signal.Signals, code: int) -> None:
    script = (
        "import sys, time, signal\n"
        "from cats.core.console import execute, new_app\nfrom cats.core.files import atomic_path\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "app = new_app()\n"
        "@app.command()\n"
        "def main(path: str) -> None:\n"
        "    with atomic_path(path) as temporary:\n"
        "        temporary.write_text('half'); print('ready', flush=True); time.sleep(60)\n"
        "execute(app)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "x"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert error.endswith("nothing was left half-written\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("write", ["write_text(folder / 'x', 'x')", "replaced_folder(folder / 'x', None).__enter__()"])
def test_a_signal_in_the_moment_of_creation_leaves_nothing(tmp_path: Path, number: signal.Signals, write: str) -> None:
    """Between the creation of a temporary file and the block that removes it."""
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from cats.core import files\nfrom cats.core.console import execute, new_app\n"
        "from cats.core.files import write_text\nfrom cats.core.folders import replaced_folder\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "app = new_app()\n"
        "@app.command()\n"
        "def main(place: str, number: int) -> None:\n"
        "    folder = Path(place)\n"
        "    def flock(*given):\n"
        "        print(len(list(folder.iterdir())))\n"
        "        os.kill(os.getpid(), number)\n"
        "    files.fcntl.flock = flock\n"
        f"    {write}\n"
        "execute(app)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + number, "1\n")
    assert list(tmp_path.iterdir()) == []


def test_files_replaced_together_are_made_together(tmp_path: Path) -> None:
    with atomic_paths(tmp_path / "a", tmp_path / "b") as temporaries:
        for number, temporary in enumerate(temporaries):
            write_text(temporary, str(number))  # a temporary path is written as it is
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "0", "b": "1"}
