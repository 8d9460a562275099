"""What all commands share: options, errors as one line, exit codes, and progress on stderr."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from typing import Annotated, Any

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
from rich.text import Text
from typer.completion import completion_init
from typer.core import TyperCommand

from cats.core.errors import BackendError, CatsError
from cats.core.files import discard_drafts
from cats.core.text import plain

_PIPE = 240  # columns of a table that no terminal limits
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_quiet = _verbose = False
_signal: int | None = None  # that ended the command

for _name in ("stdout", "stderr"):  # closed by the caller, as some services do
    if getattr(sys, _name) is None:
        setattr(sys, _name, open(os.devnull, "w"))  # noqa: SIM115

# Without emoji, which rich would put for the ":x:" of a path or a message.
stderr = Console(stderr=True, highlight=False, emoji=False)
stdout = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPE)


def note(message: str) -> None:
    """Print one line for the person at the terminal, on stderr so that stdout stays machine-readable.

    ``--quiet`` leaves out all but those that begin with ``warning:``.
    """
    if not _quiet or message.startswith("warning:"):
        _say(message)


def _say(message: str) -> None:
    stderr.print(Text(plain(message)), soft_wrap=True)


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
        disable=_quiet or not stderr.is_terminal,  # into a file it would write an empty line
        redirect_stdout=sys.stdout.isatty(),  # rich would send what goes to a file or pipe to the terminal too
    )


def describe_duration(seconds: float) -> str:
    """A duration as people say it: ``45 s``, ``12 min``, ``2 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Say what takes seconds while the block runs, with the time that has passed; on stderr, only on a terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True, disable=_quiet or not stderr.is_terminal) as bar:
        bar.add_task(what, total=None)
        yield


def print_json(document: Any) -> None:
    """Print one JSON document on one line of stdout."""
    sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """A small table; the first column is text, the others are right-aligned numbers.

    The first column is not broken where it takes at most half of a terminal; what is too wide goes on below.
    """
    result = Table(title=Text(plain(title)), title_justify="left")
    whole = max((len(row[0]) for row in rows), default=0) <= max(stdout.width, 80) // 2
    for index, column in enumerate(columns):
        first = index == 0
        result.add_column(
            Text(plain(column)), justify="left" if first else "right", overflow="fold", no_wrap=first and whole
        )
    for row in rows:
        result.add_row(*(Text(plain(cell)) for cell in row))
    return result


def _set_quiet(value: bool) -> None:
    global _quiet
    _quiet = _quiet or value


def _set_verbose(value: bool) -> None:
    global _verbose
    if value:
        _verbose = True
        logging.getLogger().setLevel(logging.INFO)


def _shared_options() -> list[Any]:
    """``--quiet`` and ``--verbose`` as every command has them."""
    shared = typer.Typer(add_completion=False)

    @shared.command()
    def options(
        quiet: Annotated[
            bool,
            typer.Option("--quiet", "-q", help="No notes and no progress; warnings stay.", callback=_set_quiet),
        ] = False,
        verbose: Annotated[
            bool,
            typer.Option(
                "--verbose", "-v", help="Also what libraries log, and where an error began.", callback=_set_verbose
            ),
        ] = False,
    ) -> None: ...

    params = [param for param in typer.main.get_command(shared).params if param.name in ("quiet", "verbose")]
    for param in params:
        param.expose_value = False
        param.is_eager = True
    return params


class Command(TyperCommand):
    """A command of the toolkit: with the options that all share, and one line for a part that is not installed."""

    extra = ""

    def get_params(self, ctx: Any) -> list[Any]:
        """The command's own options, the shared ones, and ``--help``."""
        *own, last = super().get_params(ctx)
        return [*own, *_shared_options(), last]

    def invoke(self, ctx: Any) -> Any:
        """As click does; raises :class:`BackendError` for an import that the extra of this command brings."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if isinstance(error, PackageNotFoundError):  # whose cause is the installation
                raise
            raise missing(str(ctx.command_path), error, self.extra) from error


def missing(command: str, error: ModuleNotFoundError, extra: str) -> BackendError:
    """What to say where a command imports what is not installed."""
    return BackendError(f"{command} needs {error.name}, which is not installed: pip install 'cats-toolkit[{extra}]'")


Force = Annotated[bool, typer.Option("--force", help="Replace existing files.", show_default=False)]
"""The option with which results of an earlier run are replaced."""

CKPT = ("--ckpt", "--checkpoint")
"""Names of the option that takes a checkpoint where a model file is another one."""

CHECK = ("--check", "--data")
"""Names of the option that takes annotated pairs, where nothing else is measured on a data set."""


class App(typer.Typer):
    """A typer application whose commands are of :class:`Command`."""

    extra = ""

    def command(self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **options: Any) -> Any:
        """As typer's; ``cls`` derives from :class:`Command`."""
        kind = cls or Command
        return super().command(name, cls=type(kind.__name__, (kind,), {"extra": self.extra}), **options)


def new_app(*, extra: str = "cpu", **options: Any) -> App:
    """A typer application with the settings that all commands share.

    Args:
        extra: of the distribution, that brings what the command imports.
    """
    app = App(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,
    )
    app.extra = extra
    return app


def execute(app: typer.Typer) -> None:
    """Run a typer application as a command of the toolkit and leave the process with its exit code.

    0 done, 1 verified and failed, 2 bad input or environment (usage errors included), 130 interrupted, 143 terminated,
    129 the terminal is gone. A :class:`~cats.core.errors.CatsError` becomes one line on stderr; any other exception is
    a bug and keeps its traceback.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    _write_whole()
    _end_on_signals()
    completing = any(name.startswith("_CATS") and name.endswith("_COMPLETE") for name in os.environ)
    if completing:
        completion_init()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # what cannot be written shows now, not while Python shuts down
    except CatsError as error:
        if completing:  # of a command that is not there, or not installed: the shell has nothing to show
            sys.exit(error.exit_code)
        if _verbose:
            traceback.print_exc()
        text = " ".join(str(error).split("\n")) if error.exit_code == 2 else str(error)
        _say(f"error: {text}")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as end:  # typer turns an interrupt into the exit status 130
        if isinstance(end, SystemExit) and end.code != 130:
            raise
        discard_drafts()
        word = {signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal is gone"}.get(_signal, "interrupted")  # type: ignore[call-overload]
        with contextlib.suppress(OSError):  # the terminal may be gone
            _say(f"{word}; nothing was left half-written")
        sys.exit(128 + (_signal or signal.SIGINT))
    except BrokenPipeError:
        _drop_stdout()
        sys.exit(141)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        _drop_stdout()
        _say(f"error: cannot write {error.filename or 'the output'}: {error.strerror}")
        sys.exit(CatsError.exit_code)


def _write_whole() -> None:
    """Let stdout write all or raise, also where ``PYTHONUNBUFFERED`` takes away the buffer, and print any file name."""
    ours = sys.stdout is sys.__stdout__  # another stream (pytest's) is for whoever put it there
    binary = getattr(sys.stdout, "buffer", None)
    if ours and isinstance(binary, io.RawIOBase):  # whose writes may end short without an error
        encoding = sys.stdout.encoding
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(binary), encoding=encoding, write_through=True)
        sys.stdout.reconfigure(line_buffering=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _end_on_signals() -> None:
    """End on SIGTERM and SIGHUP as on Ctrl-C, so that what is half-written is removed."""
    if threading.current_thread() is not threading.main_thread():
        return
    process = os.getpid()

    def end(number: int, _: Any) -> None:
        global _signal
        if os.getpid() != process:  # a forked worker
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        _signal = number
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores it
            signal.signal(number, end)


def _drop_stdout() -> None:
    """Send what is still buffered nowhere, or Python would complain about it at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
