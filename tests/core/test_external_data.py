"""Models whose weights lie in another file: made whole from beside the model, wherever the program runs."""

import os

import numpy as np
import onnx
import pytest
from tiny_onnx import save_model, tiny_metadata, tiny_model

from cats.core.errors import ModelFileError
from cats.core.external_data import whole_model
from cats.runtime import Matcher


@pytest.fixture
def apart(tmp_path):
    """``a/m.onnx`` with its weights in ``a/m.data``, in a working folder whose own ``m.data`` is another one."""
    for name in "ab":
        (tmp_path / name).mkdir()
    path = save_model(tmp_path / "a" / "m.onnx", tiny_model(), tiny_metadata())
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "b" / "m.data").write_bytes(os.urandom((tmp_path / "a" / "m.data").stat().st_size))
    return path


def _weights(model):
    return {item.name: onnx.numpy_helper.to_array(item).tolist() for item in model.graph.initializer}


def test_the_whole_has_the_weights_inside_and_nothing_else_changes(apart, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "b")
    whole = onnx.load_from_string(whole_model(apart) or b"")
    assert _weights(whole) == _weights(tiny_model())
    assert whole.graph.node == onnx.load(apart).graph.node
    assert whole_model(save_model(tmp_path / "in.onnx", tiny_model(), None)) is None


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_backends_take_the_data_beside_the_model(apart, tmp_path, monkeypatch, backend):
    pytest.importorskip(backend)
    monkeypatch.chdir(tmp_path / "b")
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    inside = save_model(tmp_path / "in.onnx", tiny_model(), tiny_metadata())
    expected = Matcher(inside, backend=backend, threads=1).match(image, image).flow
    found = Matcher(apart, backend=backend, threads=1)
    assert found.metadata.verified is False  # nothing binds a file to another one
    np.testing.assert_array_equal(found.match(image, image).flow, expected)


def test_links_as_in_the_cache_of_a_hub(apart, tmp_path):
    (tmp_path / "snapshot").mkdir()
    for name in ("m.onnx", "m.data"):
        (tmp_path / "snapshot" / name).symlink_to(apart.parent / name)
    assert whole_model(tmp_path / "snapshot" / "m.onnx") == whole_model(apart)
    Matcher(tmp_path / "snapshot" / "m.onnx", threads=1)


def test_missing_short_and_foreign_data_are_one_line(apart, tmp_path):
    data = apart.parent / "m.data"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with pytest.raises(ModelFileError, match="too short"):
        whole_model(apart)
    data.unlink()
    with pytest.raises(ModelFileError, match="is not beside it"):
        Matcher(apart)
    os.mkfifo(data)
    with pytest.raises(ModelFileError, match=r"m\.data"):
        whole_model(apart)
    data.unlink()
    data.write_bytes(whole)
    for place in ("../a/m.data", str(data), ""):
        model = onnx.load(apart, load_external_data=False)
        for tensor in model.graph.initializer:
            next(entry for entry in tensor.external_data if entry.key == "location").value = place
        (tmp_path / "a" / "x.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ModelFileError, match="not a file beside it"):
            whole_model(tmp_path / "a" / "x.onnx")
