"""What all commands share: errors as one line, exit codes, and progress on stderr."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sys
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from cats.core.errors import CatsError

_PIPE = 240  # columns of a table that no terminal limits

for _name in ("stdout", "stderr"):  # closed by the caller, as some services do
    if getattr(sys, _name) is None:
        setattr(sys, _name, open(os.devnull, "w"))  # noqa: SIM115

# Without emoji, which rich would put for the ":x:" of a path or a message.
stderr = Console(stderr=True, highlight=False, emoji=False)
stdout = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPE)


def note(message: str) -> None:
    """Print one line for the person at the terminal, on stderr so that stdout stays machine-readable."""
    stderr.print(message, markup=False, soft_wrap=True)


def progress() -> Progress:
    """A progress bar on stderr with count and remaining time; only on a terminal, until the work is done."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,  # into a file it would write an empty line
        redirect_stdout=sys.stdout.isatty(),  # rich would send what goes to a file or pipe to the terminal too
    )


def print_json(document: Any) -> None:
    """Print one JSON document on one line of stdout."""
    sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """A small table; the first column is text, the others are right-aligned numbers. What is too wide goes on below."""
    result = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        result.add_row(*row)
    return result


def execute(app: typer.Typer) -> None:
    """Run a typer application as a command of the toolkit and leave the process with its exit code.

    0 done, 1 verified and failed, 2 bad input or environment (usage errors included), 130 interrupted. A
    :class:`~cats.core.errors.CatsError` becomes one line on stderr; any other exception is a bug and keeps its
    traceback.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # what cannot be written shows now, not while Python shuts down
    except CatsError as error:
        text = " ".join(str(error).split("\n")) if error.exit_code == 2 else str(error)
        stderr.print(f"error: {text}", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as end:  # typer turns an interrupt into the exit status 130
        if isinstance(end, SystemExit) and end.code != 130:
            raise
        stderr.print("interrupted; nothing was left half-written", markup=False)
        sys.exit(130)
    except BrokenPipeError:
        _drop_stdout()
        sys.exit(141)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _drop_stdout()
        stderr.print(f"error: cannot write {error.filename or 'the output'}: {error.strerror}", markup=False)
        sys.exit(CatsError.exit_code)


def _drop_stdout() -> None:
    """Send what is still buffered nowhere, or Python would complain about it at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def new_app(**options: Any) -> typer.Typer:
    """A typer application with the settings that all commands share."""
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,
    )
