"""The code blocks of a Markdown page, and the commands of the toolkit for a shell that runs them."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from cats.benchmarks.record import REPOSITORY


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page where it begins."""

    language: str
    text: str
    line: int


def code_blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text("utf-8")
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start()) + 1)
        for found in re.finditer(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]


def shell_commands(block: Block) -> list[str]:
    """The commands of a shell block, comments taken away and continued lines joined."""
    lines = re.sub(r"\\\n\s*", "", block.text).splitlines()
    commands = (re.sub(r"\s+#\s.*$|^#.*$", "", line).strip() for line in lines)
    return [command for command in commands if command]


def install_commands(folder: Path) -> Path:
    """A folder with the commands that pyproject.toml names, which run this clone by this Python."""
    folder.mkdir(parents=True, exist_ok=True)
    section = (REPOSITORY / "pyproject.toml").read_text().partition("[project.scripts]\n")[2].partition("\n\n")[0]
    for name, module, function in re.findall(r'^([\w-]+) = "([\w.]+):(\w+)"', section, re.MULTILINE):
        script = folder / name
        script.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
        script.chmod(0o755)
    return folder
