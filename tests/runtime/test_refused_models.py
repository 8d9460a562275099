"""Files that a matcher refuses, and outputs that are not what a file says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_onnx import save_model, tiny_metadata, tiny_model

from cats.core.errors import BackendError, ModelFileError
from cats.runtime import Matcher


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"document": {"kind": "encoder"}}, "kind encoder"),
        ({"document": {"format": 2}}, "metadata format 2 is newer"),
        ({"document": {"direction": "b->a"}}, "direction"),
        ({"document": "{"}, "not JSON"),
        ({"document": None}, "without CATs metadata"),
        ({"document": {"grid": [8, 8]}}, r"flow has shape .*16, 16.*8, 8"),
        (
            {"document": {"preprocessing": {**tiny_metadata().preprocessing.to_dict(), "size": [128, 128]}}},
            "image_a has",
        ),
        ({"grid": 8}, r"image_a has shape \(\?, 3, 128, 128\)"),
    ],
)
def test_refused_models(make_model: Callable[..., Path], options: dict, text: str) -> None:
    path = make_model("odd.onnx", **options)
    with pytest.raises(ModelFileError, match=text) as caught:
        Matcher(path)
    assert "odd.onnx" in str(caught.value)


def test_models_with_other_tensors_are_refused(tmp_path: Path) -> None:
    import onnx

    renamed = tiny_model()
    renamed.graph.input[0].name = "left"
    for node in renamed.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = "left" if name == "image_a" else name
    path = save_model(tmp_path / "renamed.onnx", renamed, tiny_metadata())
    with pytest.raises(ModelFileError, match=r"no input image_a \(it has left, image_b\)"):
        Matcher(path)

    double = tiny_model()
    for tensor in (double.graph.input[0], double.graph.input[1]):
        tensor.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    double.graph.node.insert(0, onnx.helper.make_node("Cast", ["image_b"], ["wide_b"], to=onnx.TensorProto.FLOAT))
    double.graph.node.insert(0, onnx.helper.make_node("Cast", ["image_a"], ["wide_a"], to=onnx.TensorProto.FLOAT))
    double.graph.node[2].input[0], double.graph.node[3].input[0] = "wide_a", "wide_b"
    path = save_model(tmp_path / "half.onnx", double, tiny_metadata())
    with pytest.raises(ModelFileError, match="image_a is float16, expected float32"):
        Matcher(path)


def test_outputs_of_another_shape_are_caught(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((32, 32, 3), np.uint8)
    with Matcher(model_file, threads=1) as matcher:
        run = matcher.backend.run
        monkeypatch.setattr(matcher.backend, "run", lambda feeds: {**run(feeds), "flow": np.zeros((1, 4, 16, 16))})
        with pytest.raises(ModelFileError, match=r"gave flow \(4, 16, 16\)"):
            matcher.match(images, images)


def test_values_that_are_not_numbers_are_caught(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((32, 32, 3), np.uint8)
    with Matcher(model_file, threads=1) as matcher:
        run = matcher.backend.run
        monkeypatch.setattr(matcher.backend, "run", lambda feeds: {k: v * np.nan for k, v in run(feeds).items()})
        with pytest.raises(BackendError, match="not numbers"):
            matcher.match(images, images)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("none.onnx", None, "does not exist"),
        ("photo.jpg", b"\xff\xd8", "a model file ends in one of .engine, .onnx, .plan"),
        ("best.pt", b"PK", "is a checkpoint: export it first, cats-export --ckpt"),
        ("noise.onnx", b"certainly not a protobuf", "not an ONNX file"),
        ("empty.onnx", b"", "not an ONNX file"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, name: str, content: bytes | None, text: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=text):
        Matcher(path)


def test_truncated_model(model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(model_file.read_bytes()[:-40])
    with pytest.raises(ModelFileError, match=r"cut\.onnx"):
        Matcher(path)
