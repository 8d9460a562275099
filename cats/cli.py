"""``cats``: every command of the toolkit as a sub-command, imported only when it is the one that runs."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from cats import __version__
from cats.core.console import execute, missing, new_app
from cats.core.errors import BackendError, InputError


@dataclass(frozen=True)
class Room:
    """Where a sub-command is: a module with a typer ``app``, one line of help, and the extra that its imports need."""

    module: str
    help: str
    extra: str


COMMANDS = {
    "run": Room("cats.runtime.commands.run", "Match two photos, or a table of pairs, with an exported model.", "cpu"),
    "rank": Room("cats.runtime.commands.rank", "Rank the photos of a folder by how well one photo matches.", "cpu"),
    "data": Room("cats.data.cli", "Check that a data set is whole.", "train"),
    "train": Room("cats.training.cli", "Train a CATs.", "train"),
    "eval": Room("cats.evaluation.cli", "Measure PCK of a checkpoint, ONNX file or engine on a data set.", "train"),
    "compare": Room("cats.evaluation.compare_cli", "Compare two models on photos without labels.", "cpu"),
    "export": Room("cats.export.cli", "Write a checkpoint as ONNX, verified against PyTorch.", "export"),
    "convert": Room("cats.export.convert", "Write a checkpoint as .safetensors or .pt.", "export"),
    "calibrate": Room("cats.calibration.cli", "Quantize an ONNX file to int8 or fp8 with photos.", "calibrate"),
    "sensitivity": Room(
        "cats.calibration.studies.sensitivity_cli", "Rank a model's modules by what lower precision does.", "calibrate"
    ),
    "divergence": Room(
        "cats.calibration.studies.divergence_cli", "Name the first node where two precisions part.", "calibrate"
    ),
    "fit-confidence": Room(
        "cats.calibration.studies.confidence_cli", "Fit what a confidence says about being right.", "calibrate"
    ),
    "label": Room("cats.labelling.cli", "Carry the labels of a few photos to many others.", "cpu"),
    "label-studio": Room("cats.labelling.adapters.cli", "Label inside Label Studio, as its backend.", "serve"),
    "build": Room("cats.runtime.commands.build", "Build a TensorRT engine from an ONNX file.", "tensorrt-rtx"),
    "bench": Room("cats.benchmarks.cli", "Measure every backend side by side: speed, memory, accuracy.", "bench"),
    "view": Room("cats.serving.commands.view", "Match two photos into one HTML page to click through.", "cpu"),
    "serve": Room("cats.serving.commands.serve", "Serve the page and an HTTP API on this machine's backend.", "serve"),
    "triton": Room("cats.serving.commands.triton", "Write a model repository for NVIDIA Triton.", "cpu"),
    "web": Room("cats.serving.commands.web", "Write a page that matches in the browser, as static files.", "cpu"),
    "c-sdk": Room("cats.runtime.c.sdk", "Write the C library as a folder for C and C++ projects.", "cpu"),
    "pull": Room("cats.runtime.commands.pull", "Fetch a model from a hub.", "hub"),
    "push": Room("cats.runtime.commands.push", "Put a model on a hub, with its card.", "hub"),
    "inspect": Room("cats.runtime.commands.inspect", "Show what is in a checkpoint, ONNX file or engine.", "cpu"),
    "completion": Room("cats.completion", "Print what makes a shell complete these commands.", "cpu"),
    "doctor": Room("cats.runtime.commands.doctor", "Show what works on this machine, and how to fix the rest.", "cpu"),
}

SCRIPTS = ("run", "train", "eval", "export", "calibrate", "build", "bench")
"""Sub-commands that are also commands of their own, ``cats-run`` and so on."""


class LazyGroup(TyperGroup):
    """A command group that knows its commands by name and imports the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order in which one works."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in that has the help text, which is all that listings need."""
        room = COMMANDS.get(cmd_name)
        return TyperCommand(cmd_name, help=room.help) if room else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is called, imported now."""
        if args and args[0] in COMMANDS:
            return args[0], load(args[0]), args[1:]
        if args and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0].removeprefix("cats-"), COMMANDS, n=2, cutoff=0.5)
            meant = f"did you mean cats {' or cats '.join(near)}?" if near else "cats --help lists all"
            raise InputError(f"there is no command cats {args[0]}: {meant}")
        return super().resolve_command(ctx, args)


def load(name: str) -> Any:
    """Import a sub-command.

    Raises:
        BackendError: something that it imports is not installed; the message names the extra.
    """
    room = COMMANDS[name]
    try:
        module = importlib.import_module(room.module)
    except ModuleNotFoundError as error:
        if error.name == room.module:
            raise BackendError(f"cats {name} is not part of this installation of cats-toolkit {__version__}") from error
        raise missing(f"cats {name}", error, room.extra) from error
    return typer.main.get_command(module.app)


app = new_app(cls=LazyGroup, no_args_is_help=True)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"cats-toolkit {__version__}")
        raise typer.Exit


@app.callback()
def cats(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """CATs toolkit: semantic correspondence with Cost Aggregation Transformers, from training to the fastest engine."""


def main() -> None:
    """Entry point of ``cats``."""
    execute(app)


if __name__ == "__main__":
    main()
