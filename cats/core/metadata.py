"""The metadata document: what a model file says about itself, so that running it needs no flags.

One JSON document under the key ``cats`` of an ONNX file's ``metadata_props``; the sidecar of a TensorRT engine holds
the same document with an ``engine`` part. Tools that rewrite a model read it, add their part and write it back;
keys this version does not know are kept. ``metadata.schema.json`` beside this file is its schema.

What a document says of precision and parity holds for one graph with one set of weights: those whose digest
(``content``) it carries. Where another tool changed the file since, the document is read as of an unverified model.
"""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cats.core.errors import ModelFileError
from cats.core.files import write_bytes
from cats.core.geometry import DIRECTION
from cats.core.json_text import parse_json
from cats.core.onnx_file import content_digest, read_bound_entry, replace_entry

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

    Attributes:
        target: kind of machine that the graph was made for, such as ``cpu``; None for any.
        float32: modules left in float32 in a file of float16.
        weights: how they are stored, such as ``fp16-storage``; None for as they are computed with.
        content: digest of the graph and weights that the document is about (:func:`content_digest`).
        changed: the file is not, or not known to be, the one that the document is about; not part of the document.
    """

    kind: str
    config: dict[str, Any]
    preprocessing: Preprocessing
    precision: str
    opset: int
    weights_sha256: str
    grid: tuple[int, int] = (16, 16)
    tools: dict[str, str] = field(default_factory=dict)
    target: str | None = None
    float32: tuple[str, ...] | None = None
    weights: str | None = None
    verified: bool = False
    content: str | None = None
    parity: dict[str, Any] | None = None
    accuracy: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    engine: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    changed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The document as plain JSON types; ``None`` parts are left out."""
        document: dict[str, Any] = {"format": FORMAT, "direction": DIRECTION}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in ("extra", "changed") or value is None:
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
        if isinstance(version, (int, float)) and version > FORMAT:
            raise ModelFileError(
                f"{source}: metadata format {version} is newer than this toolkit reads ({FORMAT}); "
                "upgrade cats-toolkit or export the model again"
            )
        problem = _first_schema_error(document)
        if problem:
            raise ModelFileError(f"{source}: invalid CATs metadata: {problem}; export the model again")
        known = {item.name for item in fields(cls)} - {"extra", "preprocessing", "changed"}
        values = {key: value for key, value in document.items() if key in known}
        values["grid"] = tuple(int(side) for side in values["grid"])  # JSON's 16.0 is 16 too
        if values.get("float32") is not None:
            values["float32"] = tuple(values["float32"])
        pre = document["preprocessing"]
        width, height = (int(side) for side in pre["size"])
        values["preprocessing"] = Preprocessing((width, height), tuple(pre["mean"]), tuple(pre["std"]))
        skipped = known | {"preprocessing", "format", "direction"}
        return cls(**values, extra={key: value for key, value in document.items() if key not in skipped})

    @classmethod
    def from_json(cls, text: str | bytes, source: str | Path = "metadata") -> Metadata:
        """Parse JSON text; raises :class:`ModelFileError` as :meth:`from_dict` does."""
        return cls.from_dict(parse_json(text, f"{source}: CATs metadata", error=ModelFileError), source)

    def bound_to(self, content: str) -> Metadata:
        """This document for a file whose graph and weights have that digest: as it is, or, where it is about others,
        without what it claims of precision, verification and parity."""
        if self.content == content:
            return self
        return self.with_(
            verified=False, changed=self.verified or self.content is not None, precision="unknown", parity=None,
            accuracy=None, content=content,
        )  # fmt: skip


def _first_schema_error(document: Any) -> str | None:
    error = next(_validator().iter_errors(document), None)
    if error is None:
        return _mapping_error(document.get("calibration"))
    where = "/".join(str(part) for part in error.absolute_path)
    return f"{where}: {error.message[:200]}" if where else error.message[:200]


def _mapping_error(calibration: Any) -> str | None:
    """What is wrong with the knots of a fitted confidence."""
    mapping = ((calibration or {}).get("confidence") or {}).get("mapping")
    if mapping is None:
        return None
    knots = [mapping["confidence"], mapping["probability"]]
    rising = all(a <= b for part in knots for a, b in itertools.pairwise(part))
    if len(knots[0]) != len(knots[1]) or not rising:
        return "calibration/confidence/mapping is not confidence and probability, rising from 0 to 1"
    return None


@functools.cache
def _validator() -> Any:
    import jsonschema  # here, because it takes longer to import than the rest of the core together

    schema = json.loads(resources.files("cats.core").joinpath("metadata.schema.json").read_text("utf-8"))
    return jsonschema.Draft202012Validator(schema)


def read_onnx_metadata(path: str | Path) -> Metadata:
    """Read the metadata of an ONNX file without the onnx package, skipping over graph and weights.

    Where another tool changed the file since it was written, ``changed`` is set, and precision and parity are not those
    of the document (:meth:`Metadata.bound_to`).

    Raises:
        ModelFileError: unreadable, not a protobuf, or without CATs metadata.
    """
    text, content = read_bound_entry(path, KEY)
    if text is None:
        raise ModelFileError(
            f"{path}: an ONNX file without CATs metadata; write it with cats-export, or, where another tool lost them, "
            f"put them back: cats inspect {path} --metadata-from THE_FILE_BEFORE"
        )
    return Metadata.from_json(text, path).bound_to(content)


def trust_warning(metadata: Metadata, name: str | Path) -> str | None:
    """What to tell the person who uses a model that is not, or no longer, verified; None where it is."""
    if metadata.changed:
        return (
            f"warning: {name} was changed since it was verified: its precision and its parity with PyTorch are not "
            f"known; cats-export --ckpt CHECKPOINT --verify {name} compares it again"
        )
    if not metadata.verified:
        return f"warning: {name} says that it was not verified, or failed; see cats inspect {name}"
    return None


def write_model(model: onnx.ModelProto, metadata: Metadata, path: str | Path) -> Metadata:
    """Write a model with its metadata, in place of those it has, in one piece; equal models give equal bytes.

    Returns:
        the document as written: bound to this graph and these weights (``content``).

    Raises:
        InputError: the file cannot be written.
    """
    others = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    bound = metadata.with_(content=content_digest(model.SerializeToString(deterministic=True)), changed=False)
    for key, value in [*others, (KEY, bound.to_json())]:
        model.metadata_props.add(key=key, value=value)
    write_bytes(path, model.SerializeToString(deterministic=True))
    return bound


def write_metadata(path: str | Path, metadata: Metadata, output: str | Path) -> None:
    """Write a file again with another document, its graph and weights to the byte as they are.

    Raises:
        ModelFileError: the file cannot be read, or is not an ONNX file.
        InputError: the file cannot be written.
    """
    try:
        data = Path(path).read_bytes()
        result = replace_entry(data, KEY, metadata.to_json().encode())
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ModelFileError(f"{path} is not an ONNX file ({error})") from error
    write_bytes(output, result)
