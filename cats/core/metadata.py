"""The metadata document: what a model file says about itself, so that running it needs no flags.

One JSON document under the key ``cats`` of an ONNX file's ``metadata_props``; the sidecar of a TensorRT engine holds
the same document with an ``engine`` part. Tools that rewrite a model read it, add their part and write it back;
keys this version does not know are kept. ``metadata.schema.json`` beside this file is its schema.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cats.core.errors import ModelFileError
from cats.core.files import write_bytes
from cats.core.geometry import DIRECTION
from cats.core.onnx_file import read_onnx_entry

if TYPE_CHECKING:
    import onnx  # which a machine that only runs models has not

KEY = "cats"
FORMAT = 1


@dataclass(frozen=True)
class Preprocessing:
    """How an RGB uint8 image becomes a model input: ``(resized / 255 - mean) / std`` at ``size`` (width, height)."""

    size: tuple[int, int] = (256, 256)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def to_dict(self) -> dict[str, Any]:
        """The ``preprocessing`` part of the document."""
        return {
            "size": list(self.size),
            "resize": "pillow-bilinear",
            "scale": "0..1",
            "mean": list(self.mean),
            "std": list(self.std),
        }


@dataclass(frozen=True)
class Metadata:
    """The parsed document; the fields are its keys (see design of the toolkit and ``metadata.schema.json``).

    ``parity``, ``accuracy``, ``calibration`` and ``engine`` are the parts that the export, evaluation, calibration and
    engine building stages add. ``extra`` holds unknown keys, written back as they came.
    """

    kind: str
    config: dict[str, Any]
    preprocessing: Preprocessing
    precision: str
    opset: int
    weights_sha256: str
    grid: tuple[int, int] = (16, 16)
    tools: dict[str, str] = field(default_factory=dict)
    verified: bool = False
    parity: dict[str, Any] | None = None
    accuracy: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    engine: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The document as plain JSON types; ``None`` parts are left out."""
        document: dict[str, Any] = {"format": FORMAT, "direction": DIRECTION}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "extra" or value is None:
                continue
            if item.name == "preprocessing":
                value = value.to_dict()
            document[item.name] = list(value) if isinstance(value, tuple) else value
        return {**self.extra, **document}

    def to_json(self) -> str:
        """The document as JSON with sorted keys, so that equal metadata are equal bytes."""
        return json.dumps(self.to_dict(), sort_keys=True, allow_nan=False)

    def with_(self, **changes: Any) -> Metadata:
        """A copy with some fields changed."""
        return replace(self, **changes)

    @classmethod
    def from_dict(cls, document: Any, source: str | Path = "metadata") -> Metadata:
        """Check a document against the schema and parse it.

        Args:
            document: decoded JSON.
            source: name of the file for messages.

        Raises:
            ModelFileError: not valid, or written by a newer version of the toolkit.
        """
        version = document.get("format") if isinstance(document, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise ModelFileError(
                f"{source}: metadata format {version} is newer than this toolkit reads ({FORMAT}); "
                "upgrade cats-toolkit or export the model again"
            )
        problem = _first_schema_error(document)
        if problem:
            raise ModelFileError(f"{source}: invalid CATs metadata: {problem}; export the model again")
        known = {item.name for item in fields(cls)} - {"extra", "preprocessing"}
        values = {key: value for key, value in document.items() if key in known}
        values["grid"] = tuple(values["grid"])
        pre = document["preprocessing"]
        values["preprocessing"] = Preprocessing(tuple(pre["size"]), tuple(pre["mean"]), tuple(pre["std"]))
        skipped = known | {"preprocessing", "format", "direction"}
        return cls(**values, extra={key: value for key, value in document.items() if key not in skipped})

    @classmethod
    def from_json(cls, text: str | bytes, source: str | Path = "metadata") -> Metadata:
        """Parse JSON text; raises :class:`ModelFileError` as :meth:`from_dict` does."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelFileError(f"{source}: CATs metadata is not JSON ({error}); export the model again") from error
        return cls.from_dict(document, source)


def _first_schema_error(document: Any) -> str | None:
    error = next(_validator().iter_errors(document), None)
    if error is None:
        return None
    where = "/".join(str(part) for part in error.absolute_path)
    return f"{where}: {error.message[:200]}" if where else error.message[:200]


@functools.cache
def _validator() -> Any:
    import jsonschema  # here, because it takes longer to import than the rest of the core together

    schema = json.loads(resources.files("cats.core").joinpath("metadata.schema.json").read_text("utf-8"))
    return jsonschema.Draft202012Validator(schema)


def read_onnx_metadata(path: str | Path) -> Metadata:
    """Read the metadata of an ONNX file without the onnx package, skipping over graph and weights.

    Raises:
        ModelFileError: unreadable, not a protobuf, or without CATs metadata.
    """
    text = read_onnx_entry(path, KEY)
    if text is None:
        raise ModelFileError(f"{path}: an ONNX file without CATs metadata; write it with cats-export")
    return Metadata.from_json(text, path)


def write_model(model: onnx.ModelProto, metadata: Metadata, path: str | Path) -> None:
    """Write a model with its metadata, in place of those it has, in one piece; equal models give equal bytes.

    Raises:
        InputError: the file cannot be written.
    """
    others = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    for key, value in [*others, (KEY, metadata.to_json())]:
        model.metadata_props.add(key=key, value=value)
    write_bytes(path, model.SerializeToString(deterministic=True))
