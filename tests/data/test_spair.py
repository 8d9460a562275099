"""SPair-71k: annotations, splits and layouts, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import (
    SPAIR_PAIR,
    make_image,
    make_spair,
)
from reference import shared

from cats.core.errors import InputError
from cats.data import open_dataset
from cats.data.samples import mirror


def test_spair_all_fields(tmp_path: Path) -> None:
    data = open_dataset(f"spair:{make_spair(tmp_path)}")
    sample = data[0]
    assert (len(data), data.categories, data.split, data.kind) == (2, ["cat", "dog"], "test", "spair")
    assert sample.image_a == tmp_path / "JPEGImages/cat/2008_000001.jpg"
    assert sample.image_b == tmp_path / "JPEGImages/cat/2008_000002.jpg"
    assert (sample.size_a, sample.size_b) == ((120, 80), (100, 60))
    assert sample.points_a.tolist() == SPAIR_PAIR["src_kps"]
    assert sample.points_b.tolist() == SPAIR_PAIR["trg_kps"]
    assert (sample.box_a, sample.box_b) == ((10, 12, 90, 70), (5, 6, 95, 50))
    assert sample.difficulty == {"viewpoint": 2, "scale": 1, "truncation": 3, "occlusion": 0}
    assert sample.keypoint_ids == ("0", "3", "8")
    assert sample.read("a").size == (120, 80)
    assert sample.read("b").mode == "RGB"


def test_spair_of_the_real_annotation_files(tmp_path: Path) -> None:
    source = shared("data", "SPair-71k-format-sample")
    for name in ("Layout", "PairAnnotation"):
        (tmp_path / name).symlink_to(source / name)
    make_image(tmp_path / "JPEGImages" / "aeroplane" / "2008_001546.jpg", (500, 297))
    make_image(tmp_path / "JPEGImages" / "aeroplane" / "2008_005078.jpg", (500, 334))
    data = open_dataset(f"spair:{tmp_path}", "val")
    assert "small" in data.description
    sample = data[0]
    assert sample.category == data.category_of(0) == "aeroplane"
    assert sample.points_b[0].tolist() == [484, 146]
    assert sample.difficulty == {"viewpoint": 2, "scale": 0, "truncation": 2, "occlusion": 0}
    assert sample.read("b").size == (500, 334)


def test_spair_splits_and_layouts(tmp_path: Path) -> None:
    root = make_spair(tmp_path)
    with pytest.raises(InputError, match=r"PairAnnotation/trn \(annotations\).*cvlab.postech.ac.kr"):
        open_dataset(f"spair:{root}", "train")
    with pytest.raises(InputError, match=r"lacks Layout/small/test.txt"):
        open_dataset(f"spair:{root}", layout="small")
    with pytest.raises(InputError, match="unknown split 'dev'; known: train, val, test"):
        open_dataset(f"spair:{root}", "dev")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"src_kps": [[20, 30], [60, 40]]}, "2 keypoints in a, 3 in b"),
        ({"src_kps": [[20, 30], [60, None], [1, 2]]}, r"image a: point 1 is \[60.0, nan\]"),
        ({"src_kps": "none"}, "broken annotation"),
        ({"trg_kps": [[15, 20], [50, 30], [9000, 45]]}, "keypoint 2 at .* lies far outside image b"),
        ({"trg_bndbox": [95, 6, 5, 50]}, "box .* of image b"),
        ({"trg_bndbox": [1, 2, 3]}, "3 numbers instead of four"),
        ({"kps_ids": ["0"]}, "1 names for 3 keypoints"),
        ({"viewpoint_variation": "often"}, "broken annotation"),
        ({"src_imsize": 500}, "broken annotation"),
    ],
)
def test_spair_broken_annotation(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_dataset(f"spair:{make_spair(tmp_path, **changes)}")[0]


@pytest.mark.parametrize("bad", [[-1, -1], [-1, 40], [-7, 30], [101.5, 20], [50, 61]])
def test_keypoints_outside_or_padded_are_never_counted(tmp_path: Path, bad: list[float]) -> None:
    sample = open_dataset(f"spair:{make_spair(tmp_path, trg_kps=[[15, 20], bad, [100, 60]])}")[0]
    assert sample.points_a.tolist() == [[20, 30], [85, 65]]
    assert sample.points_b.tolist() == [[15, 20], [100, 60]]  # as counted from 1
    assert sample.keypoint_ids == ("0", "8")
    assert sample.left_out == mirror(sample).left_out == 1
    empty = open_dataset(f"spair:{make_spair(tmp_path / 'none', trg_kps=[bad, bad, bad])}")[0]
    assert not empty.annotated


def test_spair_damaged_files(tmp_path: Path) -> None:
    root = make_spair(tmp_path)
    path = root / "PairAnnotation" / "test" / f"{SPAIR_PAIR['filename']}.json"
    path.write_text('{"category": "cat"')
    with pytest.raises(InputError, match=rf"broken annotation .*{path.name}"):
        open_dataset(f"spair:{root}")[0]
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match=rf"broken annotation .*{path.name}: it is not JSON: nested"):
        open_dataset(f"spair:{root}")[0]
    path.write_text(json.dumps({"category": "cat"}))
    with pytest.raises(InputError, match="it lacks 'src_imname'"):
        open_dataset(f"spair:{root}")[0]
    path.unlink()
    with pytest.raises(InputError, match="1 of 6 listed files are missing: PairAnnotation/test/000007"):
        open_dataset(f"spair:{root}")


@pytest.mark.parametrize(("content", "message"), [(b"", "lists no pairs"), (b"\xff\xfe", "cannot read the list")])
def test_spair_list_problems(tmp_path: Path, content: bytes, message: str) -> None:
    root = make_spair(tmp_path)
    (root / "Layout/large/test.txt").write_bytes(content)
    with pytest.raises(InputError, match=rf"{message}.*test.txt|test.txt {message}"):
        open_dataset(f"spair:{root}")
