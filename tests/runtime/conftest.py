"""Fixtures of the runtime's tests: the tiny matcher as a file, a texture to match, libcats."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_once import made_once
from PIL import Image
from split_onnx import save_split
from tiny_onnx import save_model, tiny_metadata, tiny_model

from cats.benchmarks import libcats
from cats.benchmarks.libcats import CMatcher, Library
from cats.core.onnx_file import content_digest
from cats.runtime import Matcher


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny matcher with dynamic batch."""
    return save_model(tmp_path_factory.mktemp("model") / "tiny.onnx", tiny_model(), tiny_metadata())


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Make a variant: ``make_model(name, batch=, grid=, document={changed keys} | text | None, **metadata)``."""

    def make(name: str = "model.onnx", *, batch: int | None = None, grid: int = 16, **options: Any) -> Path:
        changed = options.pop("document", {})
        text = changed
        model = tiny_model(batch, grid)
        if isinstance(changed, dict):
            content = content_digest(model.SerializeToString(deterministic=True))
            text = json.dumps({**tiny_metadata(**options).to_dict(), "content": content, **changed})
        return save_model(tmp_path / name, model, text)

    return make


@pytest.fixture(scope="session")
def texture() -> np.ndarray:
    """A photo-like image (480, 640, 3) uint8 in which every patch is different: noise of several scales."""
    rng = np.random.default_rng(11)
    total = np.zeros((480, 640, 3))
    for side in (5, 10, 20, 40):
        noise = rng.standard_normal((480 // side + 1, 640 // side + 1, 3))
        total += noise.repeat(side, axis=0).repeat(side, axis=1)[:480, :640]
    total = (total - total.min()) / (total.max() - total.min())
    return (total * 255).astype(np.uint8)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(made_once(tmp_path_factory, "libcats", libcats.build_library) / "libcats.so")


@pytest.fixture(scope="session")
def matcher(library: Library, model_file: Path) -> Iterator[CMatcher]:
    opened = library.open(model_file)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def split(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_split(tmp_path_factory.mktemp("split"))


@pytest.fixture(scope="session")
def python(model_file: Path) -> Matcher:
    return Matcher(model_file, threads=2)


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory, texture: np.ndarray) -> Path:
    """A folder with the tiny models and pictures in PPM and JPEG."""
    folder = tmp_path_factory.mktemp("scene")
    save_split(folder)
    Image.fromarray(texture[100:292, 100:420]).save(folder / "a.ppm")
    Image.fromarray(texture[64:257, 140:461]).save(folder / "b.ppm")
    Image.fromarray(texture[60:257, 130:461]).save(folder / "c.jpg", quality=95)
    return folder
