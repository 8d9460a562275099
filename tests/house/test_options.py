"""Options of all commands against one table: what two commands share has one name, unit, meaning and default."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pytest
from typer.models import OptionInfo

from cats.cli import COMMANDS, load


@dataclass(frozen=True)
class Shared:
    """What an option is wherever it is: the word for its value in ``--help``, and how its help begins.

    ``metavar`` is None for numbers and switches; ``begins`` is a regular expression.
    """

    metavar: str | None
    begins: str


TABLE = {
    "--backend": Shared("NAME", r"onnxruntime, .*\. Default: by the file\."),
    "--balance": Shared(None, "Even out the channels"),
    "--batch": Shared(None, r"Pairs of one run of the model\."),
    "--by": Shared("NAME", "Vary each module"),
    "--cache": Shared("DIR", "Folder for the engines"),
    "--calibrated": Shared(None, "Give confidences as the probabilities"),
    "--check": Shared("KIND:DIR", "Annotated pairs: also compare PCK"),
    "--ckpt": Shared("FILE", "Checkpoint"),
    "--count": Shared(None, "Points that the picture shows"),
    "--data": Shared("KIND:DIR", "Data set "),
    "--device": Shared("N", "Index of the GPU"),
    "--for": Shared("NAME", "What will run the file: "),
    "--force": Shared(None, r"Replace (existing files|the folder of an earlier cats \w+)\."),
    "--from-ranges": Shared("FILE", "Ranges of an earlier run"),
    "--hint": Shared("NAME", "With openvino: "),
    "--host": Shared("ADDRESS", "Address to listen on"),
    "--html": Shared("FILE", "One HTML file "),
    "--hyperpixels": Shared("IDS", "Ids of hyperpixels, as 0,8,20: "),
    "--images": Shared("DIR", "Folder of photos"),
    "--json": Shared(None, "Print .*JSON"),
    "--limit": Shared(None, r"Pairs at most, spread evenly over the list\."),
    "--looks": Shared(None, "Times that photos are matched, "),
    "--max-batch": Shared(None, "Pairs of one run of the model at most"),
    "--max-delay-ms": Shared(None, "Milliseconds that a request waits"),
    "--max-megapixels": Shared(None, r"Refuse larger images before decoding\."),
    "--method": Shared("NAME", "Interval of each int8 activation"),
    "--min-confidence": Shared(None, "Leave out matches"),
    "--min-probability": Shared(None, "Points less likely to be right"),
    "--model": Shared("FILE", "ONNX file of cats-export"),
    "--output": Shared("FILE", "[A-Z]"),
    "--pairs": Shared("FILE", "CSV with columns a,b"),
    "--plot": Shared("FILE", ".*: .png, .svg or .pdf"),
    "--points": Shared("FILE", "Points of a to "),
    "--port": Shared(None, "Port"),
    "--precision": Shared("NAME", "With openvino: fp32 "),
    "--print-config": Shared(None, "Print .* and stop"),
    "--provider": Shared("NAME", "ONNX Runtime's provider: .* Default: cuda where it can run, else cpu"),
    "--quiet": Shared(None, "No notes"),
    "--root": Shared("DIR", "Folder of the photos that REFERENCES names"),
    "--split": Shared("NAME", ".*train, val or test"),
    "--state": Shared("FILE", "JSON file with which a killed run goes on"),
    "--streams": Shared(None, ".*side by side"),
    "--threads": Shared(None, "CPU threads"),
    "--time": Shared(None, "Time |Show the time "),
    "--verbose": Shared(None, "Also what libraries log"),
    "--weight-bits": Shared(None, "8, or 7 for x86"),
    "--weights": Shared("NAME", "fp32, or fp16-storage"),
    "--workers": Shared(None, "(Threads|Processes) that read images"),
}

OTHER_THINGS = {
    ("--batch", "export"): "the batch that the file is written for",
    ("--batch", "build"): "smallest, best and largest, as --sides and --points",
    ("--points", "build"): "how many points the engine takes",
    ("--ckpt", "pull"): "a switch: which of the hub's files",
    ("--output", "train"): "a folder",
    ("--output", "pull"): "a folder",
    ("--output", "push"): "a folder",
    ("--precision", "calibrate"): "of the file that is written",
    ("--precision", "sensitivity"): "of the file that would be written",
    ("--split", "export"): "two files in place of one, as the split form is called",
}
"""Where a name stands for something else, and what."""

OTHER_DEFAULTS = {
    ("--batch", "rank"): "one photo against many gains from batches on a GPU",
    ("--by", "sensitivity"): "a ranking is of modules, a search is quicker over blocks",
    ("--count", "rank"): "several pictures on one sheet",
    ("--device", "train"): "PyTorch's: the CPU",
    ("--for", "export"): "a float file runs anywhere, an 8-bit one does not",
    ("--limit", "eval"): "a benchmark is whole",
    ("--looks", "label"): "labels are worth the time of a second look",
    ("--max-batch", "triton"): "a file for any device",
    ("--max-megapixels", "serve"): "photos of strangers",
    ("--min-probability", "label"): "a label is more likely right than wrong",
    ("--min-probability", "label-studio"): "a label is more likely right than wrong",
    ("--port", "label-studio"): "where Label Studio looks for a backend",
    ("--time", "run"): "a warm-up run that was not asked for",
    ("--workers", "train"): "processes, each with its own memory",
}

OLD_NAMES = {
    "--checkpoint": "--ckpt",
    "--photos": "--images",
    "--folder": "--images",
    "--out": "--output",
    "--gpu": "--device",
    "--overwrite": "--force",
    "--max-pairs": "--limit",
    "--val-data": "--val",
}
"""What must have another name, unless it stands beside it."""


@pytest.fixture(scope="module")
def options() -> dict[str, dict[str, Any]]:
    """Option -> command -> its parameter."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for command in COMMANDS:
        loaded = load(command)
        for parameter in loaded.get_params(loaded.context_class(loaded)):
            if parameter.param_type_name == "option" and not parameter.hidden and "--help" not in parameter.opts:
                found[next(name for name in parameter.opts if name.startswith("--"))][command] = parameter
    return found


def test_every_shared_option_is_in_the_table(options: dict[str, dict[str, Any]]) -> None:
    shared = {name for name, commands in options.items() if len(commands) > 1}
    assert shared - set(TABLE) == set()
    assert set(TABLE) - set(options) == set(), "no command has these any more"


@pytest.mark.parametrize("name", TABLE)
def test_a_name_stands_for_one_thing(options: dict[str, dict[str, Any]], name: str) -> None:
    wanted = TABLE[name]
    for command, parameter in options[name].items():
        if (name, command) in OTHER_THINGS:
            continue
        assert re.match(wanted.begins, parameter.help), (command, parameter.help)
        assert parameter.metavar == wanted.metavar, command


@pytest.mark.parametrize("name", TABLE)
def test_a_name_has_one_default(options: dict[str, dict[str, Any]], name: str) -> None:
    if name == "--output":  # of each command
        return
    alike = {
        command: parameter.default
        for command, parameter in options[name].items()
        if (name, command) not in {**OTHER_THINGS, **OTHER_DEFAULTS} and not parameter.required
    }
    assert len(set(alike.values())) <= 1, alike


def test_exceptions_are_still_needed(options: dict[str, dict[str, Any]]) -> None:
    for name, command in (*OTHER_THINGS, *OTHER_DEFAULTS):
        assert command in options[name], (name, command)
    for name, command in OTHER_THINGS:
        parameter = options[name][command]
        same = re.match(TABLE[name].begins, parameter.help) and parameter.metavar == TABLE[name].metavar
        assert not same, (name, command)
    for name, command in OTHER_DEFAULTS:
        others = [parameter.default for other, parameter in options[name].items() if (name, other) not in OTHER_THINGS]
        assert len(set(others)) > 1, (name, command)


def test_one_thing_has_one_name(options: dict[str, dict[str, Any]]) -> None:
    for commands in options.values():
        for command, parameter in commands.items():
            for old in set(OLD_NAMES) & set(parameter.opts):
                assert OLD_NAMES[old] in parameter.opts, (command, old)


def test_help_says_repeatable_and_default_in_one_way(options: dict[str, dict[str, Any]]) -> None:
    for name, commands in options.items():
        for command, parameter in commands.items():
            assert not re.search(r"may be (given|repeated)|several times|\bdefault:", parameter.help), (command, name)
            assert parameter.multiple == ("repeatable" in parameter.help), (command, name)


def test_no_name_is_left_to_typer_where_it_is_the_placeholder_too() -> None:
    """typer 0.27 took ``file`` with the placeholder ``FILE`` for the option ``--FILE``."""
    for command in COMMANDS:
        loaded = load(command)
        for name, parameter in inspect.signature(inspect.unwrap(loaded.callback), eval_str=True).parameters.items():
            for option in getattr(parameter.annotation, "__metadata__", ()):
                # In Annotated, typer takes the first name that is given for the default until it reads the signature.
                if isinstance(option, OptionInfo) and option.default is ... and not option.param_decls:
                    assert option.metavar != name.upper(), (command, name)


def test_every_command_that_writes_a_file_has_the_short_name(options: dict[str, dict[str, Any]]) -> None:
    assert [command for command, parameter in options["--output"].items() if "-o" not in parameter.opts] == []
