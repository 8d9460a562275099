"""Completion in shells: the scripts, and what the commands answer them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from readme import install_commands

from cats.benchmarks.record import REPOSITORY
from cats.cli import COMMANDS, SCRIPTS
from cats.completion import completion_script


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_commands(tmp_path_factory.mktemp("bin"))


def complete(place: Path, line: str) -> tuple[list[str], str]:
    """What bash offers for the last word of a line, by the script that the command prints, and what lands on stderr."""
    words = line.split(" ")
    name = words[0]
    function = f"_{name.replace('-', '_')}_completion"
    shell = f"""{completion_script("bash")}
COMP_WORDS=({" ".join(word or "''" for word in words)}); COMP_CWORD={len(words) - 1}
{function} {name}; printf '%s\\n' "${{COMPREPLY[@]}}" """
    environment = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", shell], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


def test_every_script_is_completed(place: Path) -> None:
    installed = {path.name for path in place.iterdir()}
    assert {"cats", *(f"cats-{name}" for name in SCRIPTS)} == installed
    for shell in ("bash", "zsh", "fish"):
        assert all(name in completion_script(shell) for name in installed)


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_bash_offers_commands_and_options(place: Path) -> None:
    assert complete(place, "cats ") == (list(COMMANDS), "")
    assert complete(place, "cats doc")[0] == ["doctor"]
    assert "--report" in complete(place, "cats doctor --")[0]
    assert "--points" in complete(place, "cats-run --p")[0]
    assert complete(place, "cats completion f")[0] == ["fish"]
    assert complete(place, "cats nothing --") == ([], "")


@pytest.mark.parametrize("shell", ["zsh", "fish", "bash"])
def test_shell_reads_its_script(shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    file = tmp_path / "script"
    file.write_text(completion_script(shell))
    subprocess.run([shell, "-n", str(file)], check=True)


def test_zsh_and_fish_ask_in_their_words(place: Path) -> None:
    for shell, more in (("zsh", {}), ("fish", {"_TYPER_COMPLETE_FISH_ACTION": "get-args"})):
        environment = {"_CATS_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "cats doct", **more}
        done = subprocess.run(
            [sys.executable, str(place / "cats")],
            cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True,
        )  # fmt: skip
        assert "doctor" in done.stdout
        assert "inspect" not in done.stdout
        assert done.stderr == ""
