"""The sidecar ``X.plan.json`` of an engine: the model's metadata with what the engine was built with."""

from __future__ import annotations

import json
from pathlib import Path

from cats.core.errors import ModelFileError
from cats.core.files import settle, sha256_file
from cats.core.json_text import read_json
from cats.core.metadata import Metadata
from cats.runtime.tensorrt.flavours import FLAVOURS

_PLAN_MAGIC = (b"ftrt", b"vtrt")  # TensorRT, TensorRT-RTX


def sidecar_path(plan: str | Path) -> Path:
    """``X.plan`` -> ``X.plan.json``."""
    return Path(f"{plan}.json")


def read_sidecar(plan: Path) -> Metadata:
    """Read the sidecar of a plan and check that the two belong together, before TensorRT sees a byte of the plan.

    Raises:
        ModelFileError: the plan or the sidecar is missing, truncated, of another model, or not one of ours.
    """
    settle(plan)
    path = sidecar_path(plan)
    if not path.is_file():
        raise ModelFileError(
            f"{plan} has no sidecar {path.name} beside it: copy it there, or build again: "
            f"cats-build MODEL.onnx -o {plan}"
        )
    metadata = Metadata.from_dict(read_json(path, error=ModelFileError), path)
    engine = metadata.engine
    if not engine or not {"sha256", "flavour", "version", "source"} <= set(engine) or engine["flavour"] not in FLAVOURS:
        raise ModelFileError(f"{path} does not describe an engine; build again with cats-build")
    with open(plan, "rb") as handle:
        if handle.read(4) not in _PLAN_MAGIC:
            raise ModelFileError(f"{plan} is not a TensorRT engine; build one with cats-build MODEL.onnx")
    if sha256_file(plan) != engine["sha256"]:
        raise ModelFileError(
            f"{plan} is not the engine that {path.name} describes (other sha256): it is truncated, changed, or the "
            f"sidecar of another engine; build again with cats-build {engine['source']}"
        )
    return metadata


def sidecar_text(metadata: Metadata) -> str:
    """The document as indented JSON."""
    return json.dumps(metadata.to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n"
