"""Encoding once, matching features, and ranking a folder, with a small split model that needs no torch."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile

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
    assert [photo.stem for _, photo, _ in first.ranked] == ["b", "noise"]  # not a itself
    assert first.left_out
    assert [photo for _, photo, _ in again.ranked] == [photo for _, photo, _ in first.ranked]
    assert [item[0] for item in again.ranked] == pytest.approx([item[0] for item in first.ranked])
    assert (first.cached, again.cached, first.skipped, len(first.failures)) == (0, 2, 1, 1)
    assert first.failures[0][0].name == "bad.jpg"


def test_a_photo_that_cannot_be_read_is_one_failure_with_every_model(tmp_path, texture, model_file):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(texture).save(photos / "good.png")
    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(photos / "pipe.jpg")
    Image.fromarray(texture).save(tmp_path / "a.png")
    for model in (model_file, split_files(tmp_path)):
        with Matcher(model, threads=1) as matcher:
            found = rank_gallery(matcher, tmp_path / "a.png", photos)
        assert [photo.name for _, photo, _ in found.ranked] == ["good.png"]
        assert sorted(photo.name for photo, _ in found.failures) == ["gone.jpg", "pipe.jpg"]


def test_a_query_that_cannot_be_read_is_no_fault_of_the_photos(tmp_path, texture, model_file):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(texture).save(photos / "good.png")
    for model in (model_file, split_files(tmp_path)):
        with Matcher(model, threads=1) as matcher, pytest.raises(InputError, match=r"gone\.jpg"):
            rank_gallery(matcher, tmp_path / "gone.jpg", photos)


def _entry(archive, name, header, data):
    with archive.open(f"{name}.npy", "w") as item:
        item.write(b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + data)


@pytest.mark.parametrize(
    ("arrays", "image", "text"),
    [
        ({}, {"weights_sha256": None}, "no text as its key, source or weights_sha256"),
        ({}, {"source": 3}, "no text as its key, source"),
        ({}, {"size": [0, 10]}, r"has the size \[0, 10\]"),
        ({}, {"size": [True, 10]}, "has the size"),
        ({}, {"size": [10]}, "has the size"),
        ({"0/features_0": np.zeros(3, "U3")}, {}, "holds <U3"),
        ({"0/features_0": np.zeros(3, "M8[s]")}, {}, "holds datetime64"),
        ({"0/features_0": np.zeros(3, ">f4")}, {}, "holds >f4"),
        ({"0/features_0": np.zeros((3, 2, 2), np.float32)}, {}, None),  # of another shape: the matcher refuses it
    ],
)
def test_features_files_are_data(tmp_path, texture, arrays, image, text):
    with Matcher(split_files(tmp_path), threads=1) as matcher:
        matcher.encode(texture).save(tmp_path / "f.npz")
        stored = dict(np.load(tmp_path / "f.npz"))
        head = json.loads(bytes(stored["cats"]))
        head["images"][0] |= image
        np.savez(tmp_path / "f.npz", **{**stored, **arrays, "cats": np.frombuffer(json.dumps(head).encode(), np.uint8)})
        if text is None:
            with pytest.raises(InputError, match="not the arrays that the encoder"):
                matcher.match(Features.load(tmp_path / "f.npz"), texture)
        else:
            with pytest.raises(InputError, match=text):
                Features.load(tmp_path / "f.npz")


def test_features_that_say_they_are_huge_are_refused_before_they_are_read(tmp_path, texture):
    with Matcher(split_files(tmp_path), threads=1) as matcher:
        matcher.encode(texture).save(tmp_path / "f.npz")
    head = np.load(tmp_path / "f.npz")["cats"]
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (60000000,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "big.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cats.npy", (lambda b: (np.lib.format.write_array(b, head), b.getvalue())[1])(io.BytesIO()))
        with archive.open("0/features_0.npy", "w", force_zip64=True) as item:
            item.write(b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header)
            for _ in range(240):
                item.write(bytes(1_000_000))
    assert (tmp_path / "big.npz").stat().st_size < 2_000_000
    with pytest.raises(InputError, match="would take more than 128 MiB"):
        Features.load(tmp_path / "big.npz")
    short = b"{'descr': '<f4', 'fortran_order': False, 'shape': (900,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as archive:
        archive.writestr("cats.npy", (lambda b: (np.lib.format.write_array(b, head), b.getvalue())[1])(io.BytesIO()))
        _entry(archive, "0/features_0", short, bytes(40))
    with pytest.raises(InputError, match=r"has the shape \(900,\)"):
        Features.load(tmp_path / "lies.npz")
