"""Metadata documents: bound to a graph and its weights, bounded, and refused in one line."""

import contextlib
import json

import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from tiny_onnx import OUT_OF_BOUNDS, save_model, tiny_metadata, tiny_model

from cats.core.errors import CatsError, ModelFileError
from cats.core.json_text import MAX_DEPTH, parse_json
from cats.core.metadata import KEY, Metadata, read_onnx_metadata, trust_warning, write_metadata, write_model
from cats.core.onnx_file import content_digest, read_onnx_entry, replace_entry


@pytest.fixture
def path(tmp_path):
    return save_model(tmp_path / "m.onnx", tiny_model(), tiny_metadata(parity={"p99_px": 0.01}))


def test_a_written_model_is_the_verified_one(path):
    metadata = read_onnx_metadata(path)
    assert metadata.verified
    assert not metadata.changed
    assert metadata.parity == {"p99_px": 0.01}
    assert trust_warning(metadata, path) is None


def test_the_stamp_falls_off_when_a_weight_changes(path):
    model = onnx.load(path)
    weight = next(item for item in model.graph.initializer if item.name == "cells")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + np.float32(1e-6), "cells"))
    onnx.save(model, path)
    metadata = read_onnx_metadata(path)
    assert (metadata.verified, metadata.changed, metadata.precision, metadata.parity) == (False, True, "unknown", None)
    assert "was changed since it was verified" in (trust_warning(metadata, path) or "")
    write_metadata(path, metadata.with_(verified=True, precision="fp32", changed=False), path)
    assert read_onnx_metadata(path).verified


def test_other_metadata_and_a_copy_leave_the_stamp(path):
    model = onnx.load(path)
    model.metadata_props.add(key="author", value="me")
    model.doc_string = "words"
    onnx.save(model, path)
    assert read_onnx_metadata(path).verified


def test_a_stamp_without_a_digest_is_not_trusted(tmp_path):
    path = save_model(tmp_path / "old.onnx", tiny_model(), tiny_metadata().to_json())
    assert read_onnx_metadata(path).changed


def test_two_documents_are_refused(path):
    data = path.read_bytes()
    entry = onnx.StringStringEntryProto(key=KEY, value=tiny_metadata().to_json()).SerializeToString()
    path.write_bytes(data + b"\x72" + _varint(len(entry)) + entry)
    with pytest.raises(ModelFileError, match="2 metadata entries"):
        read_onnx_metadata(path)
    path.write_bytes(replace_entry(path.read_bytes(), KEY, b"{}"))
    assert read_onnx_entry(path, KEY) == b"{}"


def test_replacing_an_entry_changes_nothing_else(path):
    data = path.read_bytes()
    again = replace_entry(data, KEY, read_onnx_entry(path, KEY) or b"")
    assert again == data
    changed = onnx.load_from_string(replace_entry(data, KEY, b"x"))
    assert changed.graph == onnx.load(path).graph
    assert [(entry.key, entry.value) for entry in changed.metadata_props] == [(KEY, "x")]
    assert content_digest(changed.SerializeToString()) == content_digest(data)


def test_own_fields_and_unknown_keys_are_kept(tmp_path):
    metadata = tiny_metadata(target="cpu", float32=("a", "b"), weights="fp16-storage", extra={"later": [1]})
    write_model(tiny_model(), metadata, tmp_path / "m.onnx")
    found = read_onnx_metadata(tmp_path / "m.onnx")
    assert (found.target, found.float32, found.weights) == ("cpu", ("a", "b"), "fp16-storage")
    assert found.extra == {"later": [1]}
    assert found.with_(content=None) == metadata


def _varint(value):
    return bytes([value & 127 | 128, value >> 7]) if value > 127 else bytes([value])


GOOD = tiny_metadata().to_dict()


@pytest.mark.parametrize("change", OUT_OF_BOUNDS, ids=lambda change: str(change)[:60])
def test_documents_out_of_bounds_are_one_line(change, tmp_path):
    text = json.dumps({**GOOD, **change})
    with pytest.raises(ModelFileError) as caught:
        Metadata.from_json(text, "m.onnx")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_sizes_written_as_floats_are_sizes():
    document = {**GOOD, "preprocessing": {**GOOD["preprocessing"], "size": [256.0, 128.0]}}
    assert Metadata.from_json(json.dumps(document)).preprocessing.size == (256, 128)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "NaN",
        "[Infinity]",
        "1e999",
        "9" * 400,
        '"\\ud800"',
        '"\\u0000"',
        '{"\\u0000": 1}',
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        "[" * 100_000,
        b'"\xff"',
        b"\xef\xbb\xbf{}",
        "[" + "1," * 4_000_001 + "1]",
        " " * (17 << 20),
    ],
    ids=lambda text: str(text[:12]),
)
def test_json_out_of_bounds_is_refused(text):
    with pytest.raises(CatsError, match=r"^x is not JSON: "):
        parse_json(text, "x")


TEXT = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]))


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**62), 2**62)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"])), inner)
        ),
        max_leaves=20,
    )
)
@settings(deadline=None)
def test_json_within_bounds_is_read_as_it_was_written(value):
    assert parse_json(json.dumps(value), "x") == value


@given(st.binary(max_size=100))
@settings(deadline=None)
def test_any_bytes_are_json_or_one_line(data):
    with contextlib.suppress(CatsError):
        parse_json(data, "x")
