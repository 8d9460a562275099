"""The documentation site: MyST pages, and references generated from the commands, docstrings and the C header."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["COLUMNS"] = "100"

import cats  # noqa: E402

project = "CATs toolkit"
author = "the CATs toolkit authors"
version = release = cats.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
smartquotes = False  # -- of an option stays two hyphens
html_theme = "furo"
html_title = f"CATs toolkit {version}"
html_show_sphinx = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_type_aliases = {"Floats": "Floats", "Size": "Size", "ArrayLike": "ArrayLike"}
autodoc_mock_imports = ["pycuda", "tensorrt", "triton"]
napoleon_google_docstring = True
suppress_warnings = ["myst.xref_missing"]  # links to files of the repository, such as ../README.md
copybutton_prompt_text = "$ "

# Roles in docstrings name things by their place in the package; what has no page of its own stays plain text.
nitpicky = False


def write_commands() -> None:
    """``reference/commands.md``: the help of every command, as its own ``--help`` says it."""
    import typer
    from typer.cli import get_docs_for_click

    from cats.cli import COMMANDS, SCRIPTS

    parts = ["# Commands\n\nEvery command is also a sub-command of `cats`: `cats run` is `cats-run`.\n"]
    for name, room in COMMANDS.items():
        command = typer.main.get_command(importlib.import_module(room.module).app)
        shown = f"cats-{name}" if name in SCRIPTS else f"cats {name}"
        context = typer.Context(command, info_name=shown)
        text: str = get_docs_for_click(obj=command, ctx=context, name=shown)
        parts.append(text.replace("\n# ", "\n## ").replace("# `", "## `", 1) if text.startswith("# ") else text)
    target = ROOT / "docs" / "reference" / "commands.md"
    text = "\n".join(parts)
    if not target.is_file() or target.read_text() != text:
        target.write_text(text)


def setup(app: Any) -> None:
    """Sphinx's hook."""
    app.connect("builder-inited", lambda _: write_commands())
