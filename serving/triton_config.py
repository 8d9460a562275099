"""What a model file says of itself, as Triton's ``config.pbtxt`` wants it: :func:`read_configs`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cats.core.errors import ModelFileError
from cats.core.metadata import Metadata, read_onnx_metadata
from cats.core.onnx_summary import TensorInfo, read_onnx_summary
from cats.runtime.tensorrt.sidecar import read_sidecar

_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}
_TYPICAL = 64  # for sides that are free in an ONNX file, such as a photo's, and for points


@dataclass(frozen=True)
class TensorConfig:
    """A tensor of a model.

    Attributes:
        datatype: Triton's name of it, such as ``TYPE_FP32``.
        dims: without the batch where Triton batches; -1 is free.
        typical: dims of a warm-up run, with free ones filled in.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    typical: tuple[int, ...]


@dataclass(frozen=True)
class ModelConfig:
    """What ``config.pbtxt`` says of a model.

    Attributes:
        name: of the model and of its folder.
        file: that is copied.
        backend: ``onnxruntime`` or ``tensorrt``.
        max_batch: 0 where the batch is one of the file's dimensions.
        preferred: batches that are fastest.
        metadata: of the file.
    """

    name: str
    file: Path
    backend: str
    inputs: tuple[TensorConfig, ...]
    outputs: tuple[TensorConfig, ...]
    max_batch: int
    preferred: tuple[int, ...]
    metadata: Metadata

    @property
    def stored_as(self) -> str:
        """Name under which the backend looks for the file."""
        return "model.plan" if self.backend == "tensorrt" else "model.onnx"

    @property
    def takes_one(self) -> bool:
        """Whether it runs a single pair: a file with a fixed batch runs that many only."""
        return self.max_batch > 0 or all(item.dims[0] == 1 for item in self.inputs)


def read_configs(files: Sequence[Path], max_batch: int) -> list[ModelConfig]:
    """Configurations of model files.

    Args:
        max_batch: of ONNX files with a free batch; engines say theirs themselves.

    Raises:
        ModelFileError: unreadable, or not a model that Triton serves.
    """
    configs = [_read_onnx(file, max_batch) if file.suffix.lower() == ".onnx" else _read_plan(file) for file in files]
    return [config if config.outputs else _with_outputs(config, configs) for config in configs]


def partner(name: str) -> str:
    """Name of the matcher of an encoder."""
    return name.removesuffix("_encoder") + "_matcher"


def _read_onnx(file: Path, max_batch: int) -> ModelConfig:
    metadata, summary = read_onnx_metadata(file), read_onnx_summary(file)
    for item in (*summary.inputs, *summary.outputs):
        if item.dtype not in _TYPES or not item.shape:
            raise ModelFileError(
                f"{file}: {item.name} is {item.dtype} of shape {item.shape}, which Triton does not take"
            )
    free = not any(isinstance(item.shape[0], int) for item in summary.inputs)
    inputs, outputs = (
        tuple(_tensor(item, skip=1 if free else 0) for item in items) for items in (summary.inputs, summary.outputs)
    )
    return ModelConfig(_name(file), file, "onnxruntime", inputs, outputs, max_batch if free else 0, (), metadata)


def _tensor(item: TensorInfo, skip: int) -> TensorConfig:
    sides = item.shape[skip:]
    dims = tuple(side if isinstance(side, int) else -1 for side in sides)
    return TensorConfig(item.name, _TYPES[item.dtype], dims, tuple(_TYPICAL if side < 0 else side for side in dims))


def _read_plan(file: Path) -> ModelConfig:
    metadata = read_sidecar(file)
    engine = metadata.engine or {}
    if engine["flavour"] != "tensorrt":
        raise ModelFileError(
            f"{file} is an engine of {engine['flavour']}, which Triton does not run: cats-build with tensorrt"
        )
    if engine.get("stripped"):
        raise ModelFileError(f"{file} has no weights, and Triton gives it none: build without --strip-weights")
    try:
        return _engine_config(file, metadata, engine)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(f"{file}: its sidecar describes no profile that Triton can use: build it again") from error


def _engine_config(file: Path, metadata: Metadata, engine: dict[str, Any]) -> ModelConfig:
    if not engine.get("profiles"):
        raise ModelFileError(
            f"{file} has fixed shapes and so no profile: export the model without --batch and build it again"
        )
    profile = engine["profiles"][0]
    if any(shape["min"][0] > 1 for shape in profile.values()):
        raise ModelFileError(
            f"{file} runs no single pair, which Triton asks for: build it with cats-build --batch 1,4,8"
        )
    image = "TYPE_UINT8" if metadata.kind == "end-to-end" else "TYPE_FP32"
    inputs = tuple(
        TensorConfig(
            name,
            image if name.startswith("image") else "TYPE_FP32",
            tuple(low if low == high else -1 for low, high in zip(shape["min"][1:], shape["max"][1:], strict=True)),
            tuple(shape["opt"][1:]),
        )
        for name, shape in profile.items()
    )
    batch = min(shape["max"][0] for shape in profile.values())
    best = tuple(sorted({min(shape["opt"][0] for shape in profile.values()), batch}))
    return ModelConfig(_name(file), file, "tensorrt", inputs, _known_outputs(metadata), batch, best, metadata)


def _known_outputs(metadata: Metadata) -> tuple[TensorConfig, ...]:
    """Outputs of an engine by the kind of its model; of an encoder, see :func:`_with_outputs`."""
    points = {"points_b": (-1, 2), "points_confidence": (-1,)}
    flow = {"flow": (2, *metadata.grid), "confidence": metadata.grid}
    known = {"pair": flow, "matcher": flow, "end-to-end": points | flow}.get(metadata.kind, {})
    return tuple(TensorConfig(name, "TYPE_FP32", dims, dims) for name, dims in known.items())


def _with_outputs(config: ModelConfig, others: Sequence[ModelConfig]) -> ModelConfig:
    """The engine of an encoder with its outputs, which are the inputs of its matcher."""
    matcher = next((other for other in others if other.name == partner(config.name)), None)
    if matcher is None:
        raise ModelFileError(f"{config.file} is an encoder: its matcher must be beside it")
    outputs = tuple(
        replace(item, name=item.name.removesuffix("_a")) for item in matcher.inputs if item.name.endswith("_a")
    )
    return replace(config, outputs=outputs)


def _name(file: Path) -> str:
    return re.sub(r"[^\w-]+", "_", file.name.removesuffix(file.suffix))
