"""The umbrella command: fast, complete, and whole although a part is missing."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Command, runner

from cats import __version__, cli
from cats.assets import asset


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


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_runs_as_a_module(name: str) -> None:
    """``python -m`` of a clone without an installation: without its last lines it would do nothing and end with 0."""
    spec = importlib.util.find_spec(cli.COMMANDS[name].module)
    assert spec is not None
    assert spec.origin is not None
    last = ast.parse(Path(spec.origin).read_text()).body[-1]
    assert isinstance(last, ast.If)
    assert ast.unparse(last).startswith("if __name__ == '__main__':\n")


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


def test_names_are_text(capsys: pytest.CaptureFixture) -> None:
    from cats.core.console import note, stdout, table
    from cats.core.text import plain

    assert plain("a\x1b[31mb\x07\u202ec\udcff") == r"a\x1b[31mb\x07\u202ec\udcff"
    assert plain("кот 猫 γάτα 👩‍🚀\n") == "кот 猫 γάτα 👩‍🚀\n"
    note("\x1b[2J[bold]x[/bold] x[/b].jpg")
    stdout.print(table("[red]title[/red]", ["[b]"], [["cat [edited].jpg"], ["x[/b].jpg"], ["\x1b[31m"]]))
    out, err = capsys.readouterr()
    assert err == "\\x1b[2J[bold]x[/bold] x[/b].jpg\n"
    assert "\x1b" not in out
    for text in ("[red]title[/red]", "[b]", "cat [edited].jpg", "x[/b].jpg", r"\x1b[31m"):
        assert text in out


def test_the_first_column_of_a_table_is_not_broken_at_80_columns() -> None:
    from rich.console import Console

    from cats.core.console import table

    name = "decoder.blocks.0.attn_inter.proj"
    rows = [[name, *("0.1234",) * 8]]
    console = Console(width=80, color_system=None)
    with console.capture() as caught:
        console.print(table("", ["module", *(f"column {k}" for k in range(8))], rows))
    assert name in caught.get()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_result_that_does_not_fit_is_an_error(tmp_path: Path, unbuffered: str) -> None:
    script = (
        "from cats.core.console import execute, new_app, print_json\napp = new_app()\n"
        "@app.command()\ndef main() -> None:\n    print_json(['x' * 99] * 9999)\nexecute(app)\n"
    )
    with open(tmp_path / "out", "wb") as out:
        done = subprocess.run(
            ["bash", "-c", 'ulimit -f 300; exec "$0" -c "$1"', sys.executable, script],
            stdout=out,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == b"error: cannot write the output: File too large\n"


def test_names_that_are_no_text_are_printed(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom cats.core.console import execute, new_app, note, stdout, table\napp = new_app()\n"
        "@app.command()\ndef main(name: str) -> None:\n"
        "    note(name); stdout.print(table('', ['name'], [[name]])); print(name)\nexecute(app)\n"
    )
    for encoding in ("utf-8", "ascii"):
        done = subprocess.run(
            [sys.executable, "-c", script, b"caf\xe9.jpg"],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == b"caf\\udce9.jpg\n"
        assert done.stdout.count(b"caf\\udce9.jpg") == 2


def test_quiet_and_verbose_are_options_of_every_command(cats: Command) -> None:
    for name in cli.COMMANDS:
        inner = list(getattr(cli.load(name), "commands", {}))[:1]  # of a group
        done = cats(name, *inner, "--help")
        assert done.code == 0, done.err
        assert "--quiet" in done.out, name
        assert "--verbose" in done.out, name


def test_quiet_leaves_out_notes_and_keeps_warnings() -> None:
    script = (
        "from cats.core.console import execute, new_app, note, print_json\napp = new_app()\n"
        "@app.command()\ndef main() -> None:\n    note('wrote x'); note('warning: y'); print_json(1)\nexecute(app)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, "--quiet"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1\n", "warning: y\n")
    assert (
        "wrote x" in subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr
    )


def test_a_command_that_lacks_a_package_names_the_extra() -> None:
    script = (
        "from cats.core.console import execute, new_app\napp = new_app(extra='train')\n"
        "@app.command()\ndef main() -> None:\n    import no_such_package\nexecute(app)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("needs no_such_package, which is not installed: pip install 'cats-toolkit[train]'\n")
    assert subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, check=False).returncode == 0


def test_a_mistyped_command_is_answered_with_the_one_that_was_meant(cats: Command) -> None:
    assert "there is no command cats rnu: did you mean cats run" in cats("rnu").error
    assert "did you mean cats export" in cats("cats-export").error
    assert "cats --help lists all" in cats("zzzzzz").error


def test_the_named_configurations_are_those_that_help_lists() -> None:
    from cats.training.cli import CONFIG_NAMES
    from cats.training.configs import CONFIGS

    assert set(CONFIG_NAMES) == set(CONFIGS)


def test_the_wrong_kind_of_file_is_answered_with_what_to_type(cats: Command, tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"x")
    (tmp_path / "best.onnx").write_bytes(b"x")
    photos = ("--images", asset("astronaut.jpg").parent)
    assert "export it first, cats-export --ckpt" in cats("calibrate", tmp_path / "best.pt", *photos).error
    assert "is exported already: cats-calibrate" in cats("export", "--ckpt", tmp_path / "best.onnx").error
    error = cats("run", asset("cats-tiny.onnx"), *(asset("astronaut.jpg"),) * 2, "--json", "--precision", "bf16").error
    assert "openvino has, --backend openvino" in error
