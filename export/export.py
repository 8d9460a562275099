"""A model to ONNX: graph, names, metadata, verification, one file."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

import cats
from cats.checkpoints import weights_sha256
from cats.errors import InputError
from cats.export.graph import DeploymentOptions, PairGraph
from cats.export.onnx_writer import DEFAULT_OPSET, to_onnx
from cats.export.pairs import PairSource, generated_pairs
from cats.export.verify import Parity, verify
from cats.files import write_bytes
from cats.metadata import KEY, Metadata
from cats.model import CATs

_TOOLS = ("torch", "timm", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the file.
        metadata: as embedded in it.
        parity: None where verification was switched off.
    """

    path: Path
    metadata: Metadata
    parity: Parity | None


def export_onnx(
    model: CATs,
    path: str | Path,
    *,
    opset: int = DEFAULT_OPSET,
    batch: int | None = None,
    options: DeploymentOptions | None = None,
    pairs: PairSource | None = None,
    verified: bool = True,
) -> ExportReport:
    """Write a pair model: ``image_a``, ``image_b`` (B, 3, S, S) to ``flow`` (B, 2, G, G), ``confidence`` (B, G, G).

    Args:
        model: is not changed.
        path: file to write; it is complete, with its figures, even where verification fails.
        opset: see :data:`cats.export.onnx_writer.OPSETS`.
        batch: fixed batch size; None leaves it dynamic.
        options: rewrites of the graph, all by default.
        pairs: images to verify with; generated ones by default.
        verified: compare the file with PyTorch.

    Raises:
        InputError: the file cannot be written, or an option is out of range.
    """
    if batch is not None and batch < 1:
        raise InputError(f"batch {batch} must be at least 1, or dynamic")
    model = model.eval()
    exported = pair_onnx(model, opset=opset, batch=batch, options=options)
    metadata = Metadata(
        kind="pair",
        config=model.config.to_dict(),
        preprocessing=model.config.preprocessing,
        precision="fp32",
        opset=opset,
        weights_sha256=weights_sha256(model),
        grid=(model.config.feature_size, model.config.feature_size),
        tools=tool_versions(),
    )
    parity = None
    if verified:
        parity = verify(exported, model, pairs or generated_pairs(), batch=batch, precision="fp32")
        metadata = metadata.with_(verified=parity.passed, parity=parity.to_dict())
    set_metadata(exported, metadata)
    write_bytes(path, exported.SerializeToString(deterministic=True))
    return ExportReport(Path(path), metadata, parity)


def pair_onnx(
    model: CATs, *, opset: int = DEFAULT_OPSET, batch: int | None = None, options: DeploymentOptions | None = None
) -> onnx.ModelProto:
    """The pair model without metadata, not yet verified."""
    side = model.config.image_size
    example = {name: torch.zeros(batch or 2, 3, side, side) for name in ("image_a", "image_b")}
    axes = {} if batch else {name: {0: "batch"} for name in example}
    return to_onnx(PairGraph(model, options), example, ["flow", "confidence"], dynamic_axes=axes, opset=opset)


def set_metadata(model: onnx.ModelProto, metadata: Metadata) -> None:
    """Write the metadata document into a model, replacing the one it has."""
    others = [entry for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    model.metadata_props.add(key=KEY, value=metadata.to_json())


def tool_versions() -> dict[str, str]:
    """Versions of what an export depends on."""
    versions = {"cats-toolkit": cats.__version__}
    for name in _TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
