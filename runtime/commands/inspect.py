"""``cats inspect``: what is in a checkpoint, an ONNX file or an engine, without running it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from cats.assets import find_model
from cats.core.console import execute, new_app, print_json, stdout
from cats.core.errors import ModelFileError, require
from cats.core.files import sha256_file
from cats.core.json_text import read_json
from cats.core.metadata import KEY, Metadata, read_onnx_metadata, write_metadata
from cats.core.onnx_summary import OnnxSummary, TensorInfo, read_onnx_summary
from cats.core.text import plain
from cats.runtime.backends import ENGINE_SUFFIXES

app = new_app()

_OPERATORS_SHOWN = 12


def inspect(path: str | Path) -> dict[str, Any]:
    """Describe a model file as plain JSON types.

    ONNX files are read without the onnx package and without their weights, engines through their sidecar (an engine
    is machine code, so nothing of it is executed), checkpoints through :mod:`cats.checkpoints`, which needs torch.

    Args:
        path: ``.onnx``, ``.plan`` or ``.engine``, or a checkpoint: file, or the authors' folder.

    Returns:
        ``file``, ``type`` (onnx | engine | checkpoint), ``bytes``, and the parts of that kind.

    Raises:
        ModelFileError, CheckpointError: missing, unreadable, or of none of these kinds.
    """
    file = find_model(path)
    if not file.exists():
        raise ModelFileError(f"{file} does not exist")
    suffix = file.suffix.lower()
    if suffix == ".onnx":
        return _onnx(file)
    if suffix in ENGINE_SUFFIXES:
        return _engine(file)
    if suffix == ".json":
        raise ModelFileError(f"{file} is a sidecar; give the engine beside it")
    return _checkpoint(file)


def _onnx(file: Path) -> dict[str, Any]:
    summary = read_onnx_summary(file)
    metadata = read_onnx_metadata(file) if KEY in summary.metadata else None
    found: dict[str, Any] = {"file": str(file), "type": "onnx", "bytes": file.stat().st_size}
    if metadata is not None and metadata.changed:
        found["changed"] = "since it was verified: what it computes and how exactly is not known"
    return {**found, "metadata": metadata.to_dict() if metadata else None, "graph": _graph(summary)}


def restore_metadata(path: str | Path, other: str | Path) -> None:
    """Write the metadata document of ``other`` into ``path``, in place of its own; its graph and weights stay.

    Raises:
        ModelFileError: one of the two is not an ONNX file, ``other`` has no metadata, or the inputs and outputs of the
            two have other names.
        InputError: ``path`` cannot be written.
    """
    metadata = read_onnx_metadata(other)
    own, theirs = (
        {port.name for port in (*found.inputs, *found.outputs)} for found in map(read_onnx_summary, (path, other))
    )
    if own != theirs:
        names = ", ".join(sorted(own ^ theirs)[:4])
        raise ModelFileError(f"{path} has other inputs and outputs than {other} ({names}): not made from it")
    if metadata.changed:
        raise ModelFileError(f"{other} was changed itself: give the file that cats-export wrote")
    write_metadata(path, metadata, path)


def _graph(summary: OnnxSummary) -> dict[str, Any]:
    def tensor(info: TensorInfo) -> dict[str, Any]:
        return {"name": info.name, "dtype": info.dtype, "shape": list(info.shape)}

    return {
        "ir_version": summary.ir_version,
        "opsets": summary.opsets,
        "producer": summary.producer,
        "inputs": [tensor(info) for info in summary.inputs],
        "outputs": [tensor(info) for info in summary.outputs],
        "nodes": summary.operators.total(),
        "operators": dict(summary.operators.most_common()),
        "functions": summary.functions,
        "weights": {name: {"tensors": n, "bytes": size} for name, (n, size) in sorted(summary.weights.items())},
    }


def _engine(file: Path) -> dict[str, Any]:
    sidecar = file.with_name(f"{file.name}.json")
    if not sidecar.is_file():
        raise ModelFileError(
            f"{file} has no readable sidecar {sidecar.name} beside it, and an engine does not describe itself: "
            "build it again with cats-build"
        )
    metadata = Metadata.from_dict(read_json(sidecar, error=ModelFileError), sidecar)
    digest = sha256_file(file)
    recorded = (metadata.engine or {}).get("sha256")
    return {
        "file": str(file),
        "type": "engine",
        "bytes": file.stat().st_size,
        "sha256": digest,
        "sidecar_fits": recorded == digest,
        "metadata": metadata.to_dict(),
    }


def _checkpoint(file: Path) -> dict[str, Any]:
    require("torch", extra="train", purpose="read checkpoints")
    checkpoints = require("cats.checkpoints", extra="train", purpose="read checkpoints")
    checkpoint = checkpoints.load_checkpoint(file)
    parts: dict[str, int] = {}
    for name, value in checkpoint.model.named_parameters():
        part = name.partition(".")[0]
        parts[part] = parts.get(part, 0) + value.numel()
    return {
        "file": str(file),
        "type": "checkpoint",
        "bytes": (file / "model_best.pth" if file.is_dir() else file).stat().st_size,
        "origin": checkpoint.origin,
        "config": checkpoint.model.config.to_dict(),
        "parameters": parts,
        "weights_sha256": checkpoints.weights_sha256(checkpoint.model),
        "metrics": checkpoint.metrics,
        "training": checkpoint.training,
        "unused_tensors": len(checkpoint.ignored),
    }


@app.command(name="inspect")
def main_command(
    file: Annotated[
        Path, typer.Argument(help="Checkpoint (file or the authors' folder), .onnx or .plan.", metavar="FILE")
    ],
    metadata_from: Annotated[
        Path | None,
        typer.Option(
            help="Put the metadata of this ONNX file into FILE, whose own another tool lost; then show FILE. It counts "
            "as verified only where its graph and weights are the same.",
            show_default=False,
            metavar="OTHER",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON document.")] = False,
) -> None:
    """Show what is in a checkpoint, ONNX file or engine, without running it."""
    if metadata_from is not None:
        restore_metadata(file, metadata_from)
    found = inspect(file)
    if as_json:
        print_json(found)
        return
    table = Table.grid(padding=(0, 2))
    for name, value in found.items():
        _add(table, name, value)
    stdout.print(table)


def _add(table: Table, name: str, value: Any) -> None:
    """Rows for one entry of what was found; the parts of a metadata document as they are, whatever they are called."""
    if name == "metadata":
        if value is None:
            lost = "none: not a file of this toolkit, or lost; --metadata-from OTHER puts that of another file back"
            _row(table, name, lost)
        for key, part in (value or {}).items():
            _add_plain(table, key, part)
    elif name == "graph":
        for key, part in value.items():
            _add_graph(table, key, part)
    elif name == "bytes":
        _row(table, "size", _size(value))
    elif name == "parameters":
        parts = [f"{part} {count:,}" for part, count in value.items()]
        _row(table, name, f"{sum(value.values()):,}: " + ", ".join(parts))
    else:
        _add_plain(table, name, value)


def _add_graph(table: Table, name: str, value: Any) -> None:
    """Rows for one part of a graph: counts and sizes with their units."""
    if name in ("inputs", "outputs"):
        for info in value:
            shape = ", ".join("?" if size is None else str(size) for size in info["shape"])
            _row(table, name[:-1], f"{info['name']}: {info['dtype']} ({shape})")
    elif name == "operators":
        shown = list(value.items())[:_OPERATORS_SHOWN]
        more = f", {len(value) - len(shown)} more kinds" if len(value) > len(shown) else ""
        _row(table, name, ", ".join(f"{count} {kind}" for kind, count in shown) + more)
    elif name == "weights":
        parts = [f"{part['tensors']} {kind} ({_size(part['bytes'])})" for kind, part in value.items()]
        _row(table, name, ", ".join(parts) or "none")
    else:
        _add_plain(table, name, value)


def _add_plain(table: Table, name: str, value: Any) -> None:
    """Rows for JSON: dictionaries unfolded one level, nothing for what is empty."""
    if value in ("", [], {}):
        return
    if isinstance(value, dict):
        for index, (key, part) in enumerate(value.items()):
            _row(table, name if index == 0 else "", f"{key}: {_text(part)}")
    else:
        _row(table, name, _text(value))


def _row(table: Table, name: str, text: str) -> None:
    """One row; what comes from a file is text, never markup."""
    table.add_row(Text(plain(name)), Text(plain(text)))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def main() -> None:
    """Entry point of ``python -m cats.runtime.commands.inspect``."""
    execute(app)


if __name__ == "__main__":
    main()
