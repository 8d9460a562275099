"""A model repository for NVIDIA Triton out of exported models: :func:`write_repository`.

Each file becomes a model with its configuration. A pair model, or both files of a split one, also get a model
``NAME_points`` or ``NAME_split_points`` in Triton's Python backend,
from the photos' files and points of a to points of b.
"""

from __future__ import annotations

import base64
import functools
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from cats import __version__
from cats.assets import asset
from cats.core.errors import InputError, ModelFileError
from cats.core.folders import replaced_folder
from cats.core.metadata import Metadata, read_onnx_metadata
from cats.core.onnx_file import read_onnx_summary
from cats.core.tables import read_points
from cats.runtime.split import find_split
from cats.runtime.tensorrt.sidecar import read_sidecar

_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}
_MARK = "cats-triton.json"
_WARM_SIDE = 64  # for sides that are free, such as a photo's


@dataclass(frozen=True)
class TensorConfig:
    """A tensor of a model: Triton's type name, and dimensions without the batch; -1 is free."""

    name: str
    datatype: str
    dims: tuple[int, ...]


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
    def document(self) -> str:
        """The metadata as JSON, escaped for a text field."""
        return json.dumps(self.metadata.to_json())

    def warm_up(self) -> list[tuple[TensorConfig, tuple[int, ...]]]:
        """Inputs of a warm-up run, with free sides filled in."""
        return [(item, tuple(_WARM_SIDE if side < 0 else side for side in item.dims)) for item in self.inputs]


def write_repository(
    folder: Path,
    models: Sequence[Path],
    *,
    max_batch: int = 8,
    max_delay_ms: float = 2.0,
    cpu: bool = False,
    count: int = 1,
) -> list[str]:
    """Write a repository.

    Args:
        folder: new, empty, or of an earlier call, which is then replaced as a whole.
        models: ONNX files and engines; of a split model either file.
        max_batch: of ONNX files with a free batch; engines say theirs themselves.
        max_delay_ms: how long a request waits for others.
        cpu: run ONNX files on the CPU; else on the GPU.
        count: instances of each model on each device.

    Returns:
        Names of the models, in order.

    Raises:
        InputError: the folder holds other things, two models have one name, or a number is out of range.
        ModelFileError: a file is not a model that Triton serves.
    """
    if max_batch < 1 or count < 1 or not max_delay_ms >= 0:
        raise InputError("max_batch and count must be at least 1, max_delay_ms at least 0")
    files = list(dict.fromkeys(file for model in models for file in (find_split(model) or (Path(model),))))
    configs = _with_encoder_outputs([read_config(file, max_batch) for file in files])
    names = [config.name for config in configs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two of the files would be the model {twice}: rename one")
    settings = {"max_delay_us": round(max_delay_ms * 1000), "cpu": cpu, "count": count}
    with replaced_folder(folder, _MARK) as repository:
        for config in configs:
            _write_model(repository, config, settings)
        for name, parts in _pipelines(configs):
            _write_points(repository, name, parts, count)
            names.append(name)
        if names != [config.name for config in configs]:
            (repository / "perf_analyzer.json").write_text(json.dumps(_load_data()) + "\n")
        readme = _render("README.md", configs=configs, points=_pipelines(configs), folder=folder.name, **settings)
        (repository / "README.md").write_text(readme, "utf-8")
        (repository / _MARK).write_text(json.dumps({"cats": __version__, "models": names}) + "\n")
    return names


def read_config(file: Path, max_batch: int) -> ModelConfig:
    """What a model file says of itself, as Triton wants it.

    Raises:
        ModelFileError: unreadable, or not a model that Triton serves.
    """
    if file.suffix.lower() == ".onnx":
        return _read_onnx(file, max_batch)
    return _read_plan(file)


def _read_onnx(file: Path, max_batch: int) -> ModelConfig:
    metadata, summary = read_onnx_metadata(file), read_onnx_summary(file)
    free = all(isinstance(item.shape[0], str) or item.shape[0] is None for item in summary.inputs)
    tensors = []
    for items in (summary.inputs, summary.outputs):
        for item in items:
            if item.dtype not in _TYPES or not item.shape:
                raise ModelFileError(f"{file}: {item.name} is {item.dtype}, which Triton has no type for")
        tensors.append(
            tuple(
                TensorConfig(
                    item.name,
                    _TYPES[item.dtype],
                    tuple(side if isinstance(side, int) else -1 for side in item.shape[1 if free else 0 :]),
                )
                for item in items
            )
        )
    return ModelConfig(_name(file), file, "onnxruntime", tensors[0], tensors[1], max_batch if free else 0, (), metadata)


def _read_plan(file: Path) -> ModelConfig:
    metadata = read_sidecar(file)
    engine = metadata.engine or {}
    if engine["flavour"] != "tensorrt":
        raise ModelFileError(
            f"{file} is an engine of {engine['flavour']}, which Triton does not run: cats-build with tensorrt"
        )
    profiles = engine.get("profiles") or []
    if not profiles:
        raise ModelFileError(f"{file} names no profile: build it again with cats-build MODEL.onnx --batch 1,4,8")
    profile = profiles[0]
    image = "TYPE_UINT8" if metadata.kind == "end-to-end" else "TYPE_FP32"
    inputs = tuple(
        TensorConfig(name, image if name.startswith("image") else "TYPE_FP32", _free(shape["min"], shape["max"]))
        for name, shape in profile.items()
    )
    batch = min(shape["max"][0] for shape in profile.values())
    best = tuple(sorted({min(shape["opt"][0] for shape in profile.values()), batch}))
    return ModelConfig(_name(file), file, "tensorrt", inputs, _known_outputs(metadata), batch, best, metadata)


def _free(least: Sequence[int], most: Sequence[int]) -> tuple[int, ...]:
    return tuple(low if low == high else -1 for low, high in zip(least[1:], most[1:], strict=True))


def _known_outputs(metadata: Metadata) -> tuple[TensorConfig, ...]:
    """Outputs of an engine by the kind of its model; of an encoder, see :func:`_with_encoder_outputs`."""
    flow = (
        TensorConfig("flow", "TYPE_FP32", (2, *metadata.grid)),
        TensorConfig("confidence", "TYPE_FP32", metadata.grid),
    )
    points = (TensorConfig("points_b", "TYPE_FP32", (-1, 2)), TensorConfig("points_confidence", "TYPE_FP32", (-1,)))
    return {"pair": flow, "matcher": flow, "end-to-end": points + flow}.get(metadata.kind, ())


def _with_encoder_outputs(configs: list[ModelConfig]) -> list[ModelConfig]:
    """Engines of encoders with their outputs, which are the inputs of their matchers."""
    result = []
    for config in configs:
        if not config.outputs:
            partner = next((other for other in configs if other.name == _partner(config.name)), None)
            if partner is None:
                raise ModelFileError(f"{config.file} is an encoder: its matcher must be beside it")
            outputs = tuple(
                replace(item, name=item.name.removesuffix("_a")) for item in partner.inputs if item.name.endswith("_a")
            )
            config = replace(config, outputs=outputs)
        result.append(config)
    return result


def _partner(name: str) -> str:
    return name.removesuffix("_encoder") + "_matcher"


def _pipelines(configs: Sequence[ModelConfig]) -> list[tuple[str, list[ModelConfig]]]:
    """Models from photos to points: name, and the one or two models that they call."""
    by_name = {config.name: config for config in configs}
    found: list[tuple[str, list[ModelConfig]]] = []
    for config in configs:
        kind = config.metadata.kind
        if kind == "pair":
            found.append((f"{config.name}_points", [config]))
        elif kind == "encoder" and _partner(config.name) in by_name:
            found.append(
                (f"{config.name.removesuffix('_encoder')}_split_points", [config, by_name[_partner(config.name)]])
            )
    return found


def _write_model(repository: Path, config: ModelConfig, settings: dict[str, Any]) -> None:
    place = repository / config.name / "1"
    place.mkdir(parents=True)
    shutil.copyfile(config.file, place / config.stored_as)
    (repository / config.name / "config.pbtxt").write_text(_render("config.pbtxt", model=config, **settings), "utf-8")


def _write_points(repository: Path, name: str, parts: list[ModelConfig], count: int) -> None:
    place = repository / name / "1"
    place.mkdir(parents=True)
    metadata = parts[0].metadata
    settings = {
        "models": {part.metadata.kind: part.name for part in parts},
        "batched": {part.metadata.kind: part.max_batch > 0 for part in parts},
        "preprocessing": metadata.preprocessing.to_dict(),
        "outputs": {part.metadata.kind: [item.name for item in part.outputs] for part in parts},
    }
    text = _render("points.pbtxt", name=name, settings=json.dumps(json.dumps(settings)), count=count)
    (repository / name / "config.pbtxt").write_text(text, "utf-8")
    (place / "model.py").write_text(_template_text("model.py"), "utf-8")


def _load_data() -> dict[str, Any]:
    """Input of perf_analyzer for the models from photos to points: the shipped portraits."""
    photos = {
        f"image_{side}": {"b64": base64.b64encode(asset(name).read_bytes()).decode()}
        for side, name in (("a", "astronaut.jpg"), ("b", "grace_hopper.jpg"))
    }
    points = read_points(asset("astronaut.json"))
    return {"data": [{**photos, "points_a": {"content": points.ravel().tolist(), "shape": list(points.shape)}}]}


def _name(file: Path) -> str:
    return re.sub(r"[^\w-]+", "_", file.name.removesuffix(file.suffix))


def _template_text(name: str) -> str:
    return resources.files("cats.serving").joinpath("repository", name).read_text("utf-8")


def _render(template: str, /, **values: Any) -> str:
    return str(_environment().from_string(_template_text(template)).render(**values))


@functools.cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
