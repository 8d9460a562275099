"""A model repository for NVIDIA Triton out of exported models: :func:`write_repository`.

Each file becomes a model with its configuration. What runs a whole match (a model for pairs, both files of a split one,
an end-to-end one) also gets a model ``NAME_points`` (``NAME_split_points``) in Triton's Python backend, which goes from
the photos' files and points of a to points of b.
"""

from __future__ import annotations

import base64
import functools
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from cats import __version__
from cats.assets import asset
from cats.core.console import note
from cats.core.errors import InputError
from cats.core.external_data import whole_model
from cats.core.folders import replaced_folder
from cats.core.metadata import trust_warning
from cats.core.tables import read_points
from cats.runtime.split import find_split
from cats.serving import triton_containers
from cats.serving.triton_config import ModelConfig, partner, read_configs

MARK = "cats-triton.json"
"""Its presence marks a folder as one that ``cats triton`` wrote."""
_LOAD = "perf_analyzer.json"


@dataclass(frozen=True)
class PointsConfig:
    """A model from photos to points: its name, the one or two models that it calls, and how many requests it takes."""

    name: str
    parts: tuple[ModelConfig, ...]
    max_batch: int

    @property
    def settings(self) -> str:
        """What ``model.py`` has to know, as JSON."""
        return json.dumps(
            {
                "models": {part.metadata.kind: part.name for part in self.parts},
                "outputs": {part.metadata.kind: [item.name for item in part.outputs] for part in self.parts},
                "preprocessing": self.parts[0].metadata.preprocessing.to_dict(),
            }
        )


@dataclass(frozen=True)
class _Settings:
    """Of all models: see :func:`write_repository`."""

    max_delay_us: int
    cpu: bool
    count: int


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
        InputError: the folder holds other things or one of the files, two models have one name, or a number is out of
            range.
        ModelFileError: a file is not a model that Triton serves.
    """
    if max_batch < 1 or count < 1 or not max_delay_ms >= 0:
        raise InputError("max_batch and count must be at least 1, max_delay_ms at least 0")
    files = model_files(models)
    configs = read_configs(files, max_batch)
    pipelines = _pipelines(configs, max_batch)
    names = [config.name for config in configs] + [pipeline.name for pipeline in pipelines]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two of the files would be the model {twice}: rename one")
    for config in configs:
        warning = trust_warning(config.metadata, config.file)
        if warning:
            note(warning)
    settings = _Settings(round(max_delay_ms * 1000), cpu, count)
    with replaced_folder(folder, MARK, reads=files) as repository:
        for config in configs:
            _write_model(repository, config, settings)
        for pipeline in pipelines:
            _write_points(repository, pipeline, settings)
        if pipelines:
            (repository / _LOAD).write_text(json.dumps(_load_data()) + "\n")
        readme = _render("README.md", configs=configs, pipelines=pipelines, settings=settings, **_containers(configs))
        (repository / "README.md").write_text(readme, "utf-8")
        (repository / MARK).write_text(json.dumps({"cats": __version__, "models": names}) + "\n")
    return names


def model_files(models: Sequence[Path]) -> list[Path]:
    """All files of models: of a split one, given by either file, both."""
    return list(dict.fromkeys(file for model in models for file in (find_split(model) or (Path(model),))))


def _pipelines(configs: Sequence[ModelConfig], max_batch: int) -> list[PointsConfig]:
    """Models from photos to points, for all that run a whole match of a single pair."""
    by_name = {config.name: config for config in configs}
    found = []
    for config in configs:
        kind, parts, name = config.metadata.kind, [config], f"{config.name}_points"
        if kind == "encoder" and partner(config.name) in by_name:
            parts = [config, by_name[partner(config.name)]]
            name = f"{config.name.removesuffix('_encoder')}_split_points"
        elif kind not in ("pair", "end-to-end"):
            continue
        if all(part.takes_one for part in parts):
            found.append(PointsConfig(name, tuple(parts), max(part.max_batch for part in parts) or max_batch))
    return found


def _write_model(repository: Path, config: ModelConfig, settings: _Settings) -> None:
    place = repository / config.name / "1"
    place.mkdir(parents=True)
    data = whole_model(config.file) if config.backend == "onnxruntime" else None
    if data is None:
        shutil.copyfile(config.file, place / config.stored_as)
    else:
        (place / config.stored_as).write_bytes(data)
    text = _render("config.pbtxt", model=config, document=config.metadata.to_json(), settings=settings)
    (repository / config.name / "config.pbtxt").write_text(text, "utf-8")


def _write_points(repository: Path, pipeline: PointsConfig, settings: _Settings) -> None:
    place = repository / pipeline.name / "1"
    place.mkdir(parents=True)
    text = _render("points.pbtxt", model=pipeline, settings=settings)
    (repository / pipeline.name / "config.pbtxt").write_text(text, "utf-8")
    (place / "model.py").write_text(_template_text("model.py"), "utf-8")


def _containers(configs: Sequence[ModelConfig]) -> dict[str, Any]:
    """What the README says of containers: the engines' TensorRT with releases that hold it, and the one to start."""
    builds: dict[tuple[str, bool], list[str]] = {}
    for config in configs:
        engine = config.metadata.engine
        if config.backend == "tensorrt" and engine is not None:
            builds.setdefault((str(engine["version"]), bool(engine.get("version_compatible"))), []).append(config.name)
    rows = [
        {
            "version": version,
            "newer": newer,
            "names": names,
            "tag": triton_containers.find_container(version, newer=newer),
        }
        for (version, newer), names in builds.items()
    ]
    tags = {row["tag"] for row in rows} or {triton_containers.NEWEST}
    return {
        "builds": rows,
        "tag": tags.pop() if len(tags) == 1 else None,
        "onnx": [config for config in configs if config.backend == "onnxruntime"],
        "known": triton_containers,
    }


def _load_data() -> dict[str, Any]:
    """Input of perf_analyzer for the models from photos to points: the shipped portraits."""
    photos = {
        f"image_{side}": {"b64": base64.b64encode(asset(name).read_bytes()).decode()}
        for side, name in (("a", "astronaut.jpg"), ("b", "grace_hopper.jpg"))
    }
    points = read_points(asset("astronaut.json"))
    return {"data": [{**photos, "points_a": {"content": points.ravel().tolist(), "shape": list(points.shape)}}]}


def _template_text(name: str) -> str:
    return resources.files("cats.serving").joinpath("repository", name).read_text("utf-8")


def _render(template: str, /, **values: Any) -> str:
    return str(_environment().from_string(_template_text(template)).render(**values))


@functools.cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["quoted"] = json.dumps  # a JSON string is one of protobuf's text format too
    return environment
