"""Encoding once, matching features, and ranking a folder, with a small split model that needs no torch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from PIL import Image
from tiny_onnx import crops, save_model, tiny_metadata, tiny_model

pytest.importorskip("onnxruntime")

from cats.core.errors import InputError, ModelFileError
from cats.runtime import Features, Matcher
from cats.runtime.gallery import rank_gallery

ENCODER = """
<ir_version: 10, opset_import: ["": 18]>
encoder (float[N,3,256,256] image) => (float[N,3,256,256] features_0) { features_0 = Identity(image) }
"""


def split_files(folder, batch=None, **metadata):
    """``tiny.encoder.onnx``, which hands the image on, and ``tiny.matcher.onnx``, the tiny matcher."""
    encoder = onnx.parser.parse_model(ENCODER.replace("N,", f"{batch or 'N'},"))
    matcher = tiny_model(batch)
    for node in matcher.graph.node:
        for index, name in enumerate(node.input):
            if name.startswith("image_"):
                node.input[index] = name.replace("image", "features_0")
    for value in matcher.graph.input:
        value.name = value.name.replace("image", "features_0")
    save_model(folder / "tiny.encoder.onnx", encoder, tiny_metadata(kind="encoder", **metadata))
    save_model(folder / "tiny.matcher.onnx", matcher, tiny_metadata(kind="matcher", **metadata))
    return folder / "tiny"


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("name", ["tiny", "tiny.onnx", "tiny.encoder.onnx", "tiny.matcher.onnx"])
def test_the_split_model_gives_what_the_pair_gives(tmp_path, model_file, texture, name, batch):
    a, b, _ = crops(texture)
    split_files(tmp_path, batch)
    with Matcher(tmp_path / name) as split, Matcher(model_file) as whole:
        expected = whole.match(a, b, forward_backward=True)
        saved = tmp_path / "b.npz"
        split.encode(b).save(saved)
        gallery = [Features.load(saved), b, a]
        for match in [
            split.match(a, b, forward_backward=True),
            *split.match_gallery(a, gallery, forward_backward=True),
        ][:3]:
            np.testing.assert_allclose(match.flow, expected.flow, atol=1e-4)
            np.testing.assert_allclose(match.backward_flow, expected.backward_flow, atol=1e-4)
            assert match.size_b == expected.size_b


@pytest.mark.parametrize(
    ("gpu", "given", "expected"), [(False, None, [1] * 9), (True, None, [8, 1]), (False, 4, [4, 4, 1])]
)
def test_a_gallery_runs_in_batches_where_they_are_faster(tmp_path, texture, monkeypatch, gpu, given, expected):
    with Matcher(split_files(tmp_path)) as matcher:
        features, sizes, run = matcher.encode(texture), [], matcher.backend.run
        assert matcher.backend.prefers_batches is False  # ONNX Runtime on a CPU
        monkeypatch.setattr(matcher.backend, "prefers_batches", gpu)
        monkeypatch.setattr(
            matcher.backend, "run", lambda feeds: (sizes.append(len(next(iter(feeds.values())))), run(feeds))[1]
        )
        assert len(matcher.match_gallery(features, [features] * 9, batch_size=given)) == 9
    assert sizes == expected


def test_features_of_other_weights_are_refused(tmp_path, texture, model_file):
    with Matcher(split_files(tmp_path)) as matcher:
        features = matcher.encode(texture)
    features.save(tmp_path / "a.npz")
    (tmp_path / "other").mkdir()
    with Matcher(split_files(tmp_path / "other", weights_sha256="1" * 64)) as other:
        with pytest.raises(InputError, match="other weights"):
            other.match(texture, features)
        with pytest.raises(InputError, match="other weights"):
            Features.load(tmp_path / "a.npz", other.metadata.weights_sha256)
    with Matcher(model_file) as whole, pytest.raises(InputError, match="--split"):
        whole.match(texture, features)


def test_files_that_are_no_features_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "plain.npz", x=np.zeros(3))
    for name in ("text.npz", "plain.npz", "missing.npz"):
        with pytest.raises(InputError, match=name):
            Features.load(tmp_path / name)


def test_half_of_a_split_model_is_named(tmp_path):
    split_files(tmp_path)
    (tmp_path / "tiny.encoder.onnx").unlink()
    with pytest.raises(ModelFileError, match=r"tiny\.encoder\.onnx is missing"):
        Matcher(tmp_path / "tiny")


@pytest.mark.parametrize("score", ["confidence", "forward-backward"])
def test_a_folder_is_ranked_and_its_features_kept(tmp_path, texture, score):
    model, photos, cache = split_files(tmp_path), tmp_path / "photos", tmp_path / "cache.npz"
    photos.mkdir()
    a, b, _ = crops(texture)
    noise = np.random.default_rng(3).integers(0, 255, b.shape, np.uint8)
    for name, image in {"a": a, "b": b, "noise": noise}.items():
        Image.fromarray(image).save(photos / f"{name}.png")
    (photos / "bad.jpg").write_text("text")
    (photos / "notes.txt").write_text("text")
    with Matcher(model) as matcher:
        first = rank_gallery(matcher, photos / "a.png", photos, score=score, cache=cache)
        again = rank_gallery(matcher, photos / "a.png", photos, score=score, cache=cache)
    assert first.ranked[0][1].stem == "a"
    assert [photo for _, photo, _ in again.ranked] == [photo for _, photo, _ in first.ranked]
    assert [item[0] for item in again.ranked] == pytest.approx([item[0] for item in first.ranked])
    assert (first.cached, again.cached, first.skipped, len(first.failures)) == (0, 3, 1, 1)
    assert first.failures[0][0].name == "bad.jpg"
