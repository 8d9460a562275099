"""A small exported model, photos, and the ranges of its activations on them, made once."""

import numpy as np
import onnx
import pytest
from made_once import made_once
from PIL import Image
from tiny_models import tiny_model

from cats.assets import asset
from cats.calibration.calibrate import load_float_model, measure_ranges
from cats.data.photo_pairs import photos_from_folder
from cats.export import export_onnx


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of six photos: views of the two that come with the toolkit."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("astronaut", "grace_hopper"):
        photo = Image.open(asset(f"{name}.jpg")).convert("RGB")
        for k in range(3):
            x, y = rng.integers(0, min(photo.size) // 3, 2)
            side = min(photo.size) * 2 // 3
            photo.crop((x, y, x + side, y + side)).resize((160, 120)).save(folder / f"{name}-{k}.png")
    return folder


@pytest.fixture(scope="session")
def float_file(tmp_path_factory):
    """A small CATs as cats-export writes it; its soft-argmax is wide, so that random weights do not exaggerate,
    and sums that saturate on CPUs without VNNI neither."""

    def export(folder):
        export_onnx(tiny_model(temperature=0.9), folder / "small.onnx", verified=False)

    return made_once(tmp_path_factory, "float", export) / "small.onnx"


@pytest.fixture(scope="session")
def source(float_file):
    return load_float_model(float_file)


@pytest.fixture(scope="session")
def pairs(photos):
    return photos_from_folder(photos)


@pytest.fixture(scope="session")
def ranges(source, pairs):
    return measure_ranges(source, pairs)


@pytest.fixture(scope="session")
def feeds(source, pairs):
    """Inputs of the model for all pairs in one batch."""
    items = list(pairs.feeds(source.metadata.preprocessing))
    return {name: np.concatenate([item[name] for item in items]) for name in items[0]}


@pytest.fixture
def copy():
    """A function that copies a model, to change it."""

    def make(model):
        result = onnx.ModelProto()
        result.CopyFrom(model)
        return result

    return make
