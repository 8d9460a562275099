"""The umbrella command: fast, complete, and whole although a part is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Command, runner

from cats import __version__, cli


@pytest.fixture
def cats(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return runner(cli.main, "cats", monkeypatch, capsys)


def test_help_lists_every_command_without_importing_any(cats: Command) -> None:
    done = cats("--help")
    assert done.code == 0
    for name, room in cli.COMMANDS.items():
        assert name in done.out
        assert room.help[:30] in done.out
    script = (
        "import sys\nfrom cats.cli import main\nsys.argv = ['cats', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('LOADED', [n for n in ('numpy', 'torch', 'PIL', 'onnx', 'onnxruntime') if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.rstrip().endswith("LOADED []")


def test_version(cats: Command) -> None:
    assert cats("--version").out.strip() == f"cats-toolkit {__version__}"


def test_sub_commands_are_the_commands(cats: Command, tmp_path: Path) -> None:
    assert "--points" in cats("run", "--help").out
    assert "does not exist" in cats("inspect", tmp_path / "none.onnx").error
    assert cats("doctor", "--json").out.startswith("{")


@pytest.mark.parametrize(
    ("redirection", "code", "error"),
    [
        ("> /dev/full", 2, "error: cannot write the output: No space left on device\n"),
        ("| true; exit ${PIPESTATUS[0]}", 1, ""),
        (">&-", 0, ""),
    ],
    ids=("full", "broken pipe", "closed"),
)
def test_output_that_goes_nowhere(redirection: str, code: int, error: str) -> None:
    script = f"(sleep 0.2; {sys.executable} -c 'from cats.cli import main; main()' --version) {redirection}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, error)


def test_results_reach_a_file_while_a_terminal_shows_progress() -> None:
    script = (
        "from cats.core.console import print_json, progress\n"
        "with progress() as bar:\n    bar.add_task('work', total=1)\n    print_json({'a': 1})\n"
    )
    terminal, end = os.openpty()
    with open(end, "wb") as stderr:
        out = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=stderr, check=True).stdout
    assert out == b'{"a": 1}\n'
    assert b"work" in os.read(terminal, 4096)
    os.close(terminal)


def test_a_missing_dependency_names_the_extra(cats: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    room = cli.Room("cats.runtime.commands.run", "help", "export")
    monkeypatch.setitem(cli.COMMANDS, "export", room)
    monkeypatch.delitem(sys.modules, "cats.runtime.commands.run", raising=False)
    monkeypatch.setitem(sys.modules, "cats.runtime.match_files", None)
    error = cats("export").error
    assert "cats export needs cats.runtime.match_files" in error
    assert "cats-toolkit[export]" in error
    assert cats("doctor", "--json").code == 0


def test_a_missing_room_is_said(cats: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "bench", cli.Room("cats.no_such_room", "help", "cpu"))
    assert "cats bench is not part of this installation" in cats("bench").error


def test_unknown_command(cats: Command) -> None:
    done = cats("fly")
    assert done.code == 2
    assert "fly" in done.err
