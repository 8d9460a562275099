"""Readers of the published layouts: every field, wherever images may lie, and what they say when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import (
    PASCAL_KEYPOINTS,
    WILLOW_A,
    WILLOW_B,
    make_image,
    make_pfpascal,
    make_spair,
    make_tss,
    make_willow,
)
from PIL import Image
from reference import shared

from cats.core.errors import InputError
from cats.core.images import image_size
from cats.core.pck import pck_table, preset, score_flow
from cats.data import open_dataset
from cats.data.flow_files import read_flow, write_flow
from cats.data.samples import mirror


def test_missing_images_are_named_on_opening(tmp_path: Path) -> None:
    root = make_spair(tmp_path)
    (root / "JPEGImages/cat/2008_000002.jpg").unlink()
    with pytest.raises(
        InputError, match=r"1 of 6 listed files are missing: JPEGImages/cat/2008_000002.jpg; SPair-71k.tar"
    ):
        open_dataset(f"spair:{root}")


def test_an_image_of_another_size_is_noticed(tmp_path: Path) -> None:
    root = make_spair(tmp_path)
    make_image(root / "JPEGImages/cat/2008_000002.jpg", (101, 60))
    with pytest.raises(InputError, match=r"has 101x60 pixels, the annotation of .* says 100x60"):
        open_dataset(f"spair:{root}")[0].read("b")


@pytest.mark.parametrize("nested", [False, True])
def test_willow_in_both_layouts(tmp_path: Path, nested: bool) -> None:
    if nested:
        (tmp_path / "PF-dataset").mkdir()
    data = open_dataset(f"willow:{make_willow(tmp_path)}")
    sample = data[1]
    assert (len(data), data.categories, sample.category) == (2, ["car(G)", "duck(S)"], "car(G)")
    assert sample.image_a.is_file()
    assert ("PF-dataset" in sample.image_a.parts) == nested
    assert (sample.size_a, sample.size_b) == ((120, 80), (90, 64))
    np.testing.assert_allclose(sample.points_a, WILLOW_A)
    np.testing.assert_allclose(sample.points_b, WILLOW_B)
    assert (sample.box_a, sample.box_b) == (None, None)


def test_willow_of_the_shared_images_has_the_known_floor() -> None:
    data = open_dataset(f"willow:{shared('data', 'PF-WILLOW')}")
    assert (len(data), data.categories) == (360, ["car(G)", "car(M)", "car(S)", "duck(S)"])
    protocol = preset("corrected", data.kind)
    scores = [score_flow(sample.keypoints, np.zeros((2, 16, 16)), protocol) for sample in data]
    assert pck_table(scores, [0.1])[0.1] == pytest.approx(22.611, abs=1e-3)


def test_an_error_has_its_file_and_line(tmp_path: Path) -> None:
    root = make_willow(tmp_path / "willow")
    lines = (root / "test_pairs.csv").read_text().splitlines()
    lines[2] = lines[2].replace("10.5", "1e7", 1)
    (root / "test_pairs.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"test_pairs\.csv, line 3: broken annotation of car\(G\)/x_1\.png"):
        open_dataset(f"willow:{root}")[1]


def test_willow_list_problems(tmp_path: Path) -> None:
    root = make_willow(tmp_path)
    path = root / "test_pairs.csv"
    text = path.read_text()
    path.write_text(text.replace("10.5", "ten", 1))
    with pytest.raises(InputError, match=r"test_pairs.csv, line 2: .*ten"):
        open_dataset(f"willow:{root}")
    path.write_text(text.replace("YB10", "YB"))
    with pytest.raises(InputError, match="lacks the column YB10"):
        open_dataset(f"willow:{root}")
    path.write_text("\n".join([text.splitlines()[0], "PF-dataset/duck(S)/x_1.png,PF-dataset/duck(S)/x_2.png,1"]))
    with pytest.raises(InputError, match="line 2 has not the 42 fields"):
        open_dataset(f"willow:{root}")
    path.unlink()
    with pytest.raises(InputError, match=r"lacks test_pairs.csv .*PF-dataset.zip.*www.di.ens.fr"):
        open_dataset(f"willow:{root}")


@pytest.mark.parametrize("nested", [False, True])
def test_pfpascal_all_splits(tmp_path: Path, nested: bool) -> None:
    root = make_pfpascal(tmp_path, nested)
    common_a = [PASCAL_KEYPOINTS["2008_000001"][k] for k in (0, 2)]
    common_b = [PASCAL_KEYPOINTS["2008_000002"][k] for k in (0, 2)]
    for split in ("train", "val", "test"):
        data = open_dataset(f"pfpascal:{root}", split)
        sample = data[0]
        assert (data.categories, sample.category) == (["cat"], "cat")
        assert sample.points_a.tolist() == common_a
        assert sample.points_b.tolist() == common_b
        assert (sample.box_a, sample.box_b) == ((2, 3, 116, 75), (2, 3, 96, 55))
        assert sample.keypoint_ids == (() if split == "test" else ("0", "2"))
        assert (sample.mirror_a, sample.mirror_b) == (False, False)


def test_pfpascal_flipped_pair_shows_the_same_pixels_at_its_points(tmp_path: Path) -> None:
    data = open_dataset(f"pfpascal:{make_pfpascal(tmp_path)}", "train")
    plain, flipped = data[0], data[1]
    assert (flipped.mirror_a, flipped.mirror_b) == (True, True)
    assert flipped.points_a.tolist() == [[109, 20], [58.5, 40]]  # 120 - 1 - x
    assert flipped.box_b == (3, 3, 97, 55)  # 100 - 1 - x, x_min and x_max exchanged
    assert flipped.keypoint_ids == ()
    x, y = plain.points_a[0].astype(int)
    u, v = flipped.points_a[0].astype(int)
    assert plain.read("a").getpixel((x, y)) == flipped.read("a").getpixel((u, v))


def test_mirroring_twice_is_the_identity_and_names_follow_a_permutation(tmp_path: Path) -> None:
    sample = open_dataset(f"spair:{make_spair(tmp_path)}")[0]
    swap = {"0": "3", "3": "0", "8": "8"}
    once = mirror(sample, permutation=swap)
    assert once.keypoint_ids == ("3", "0", "8")
    twice = mirror(once, permutation=swap)
    assert (twice.mirror_a, twice.box_a, twice.keypoint_ids) == (False, sample.box_a, sample.keypoint_ids)
    np.testing.assert_array_equal(twice.points_b, sample.points_b)
    with pytest.raises(InputError, match="keypoint '8'"):
        mirror(sample, permutation={"0": "3", "3": "0"})


def test_pfpascal_real_lists(tmp_path: Path) -> None:
    lists = shared("data", "pf-pascal-lists")
    lines = (lists / "test_pairs.csv").read_text().splitlines()[:3]
    (tmp_path / "test_pairs.csv").write_text("\n".join(lines))
    for name in ("2011_001407", "2010_004184", "2009_002432", "2010_004312"):
        make_image(tmp_path / "JPEGImages" / f"{name}.jpg", (320, 180))
    data = open_dataset(f"pfpascal:{tmp_path}")
    sample = data[0]
    assert (len(data), sample.category, len(sample.points_a)) == (2, "aeroplane", 11)
    assert sample.points_b[0].tolist() == pytest.approx([272.801888, 65.2755428571429])
    assert sample.box_a is None
    with pytest.raises(InputError, match="no object box: use the threshold 'keypoints' or 'image'"):
        score_flow(sample.keypoints, np.zeros((2, 16, 16)), preset("corrected", "pfpascal"))


def test_pfpascal_problems(tmp_path: Path) -> None:
    root = make_pfpascal(tmp_path)
    annotation = root / "PF-dataset-PASCAL/Annotations/cat/2008_000002.mat"
    annotation.write_bytes(b"not a MATLAB file")
    with pytest.raises(InputError, match=r"cannot read annotation .*2008_000002.mat"):
        open_dataset(f"pfpascal:{root}", "val")[0]
    annotation.unlink()
    with pytest.raises(InputError, match=r"missing: PF-dataset-PASCAL/Annotations/cat/2008_000002.mat"):
        open_dataset(f"pfpascal:{root}", "val")
    (root / "PF-dataset-PASCAL/Annotations").rename(root / "elsewhere")
    with pytest.raises(InputError, match="lacks Annotations"):
        open_dataset(f"pfpascal:{root}", "val")
    assert open_dataset(f"pfpascal:{root}", "test")[0].annotated
    (root / "test_pairs.csv").write_text((root / "test_pairs.csv").read_text().replace(",8,", ",21,"))
    with pytest.raises(InputError, match="class '21' is not a number from 1 to 20"):
        open_dataset(f"pfpascal:{root}", "test")


def test_tss_both_directions(tmp_path: Path) -> None:
    data = open_dataset(f"tss:{make_tss(tmp_path)}")
    there, back = data
    assert (len(data), data.categories) == (2, ["PASCAL"])
    assert (there.image_a.name, there.image_b.name, back.image_a.name) == ("image1.png", "image2.png", "image2.png")
    truth = there.dense()
    assert truth.flow[truth.valid].tolist() == [[4, -2]] * 20 * 28
    assert truth.valid[10:30, 12:40].all()
    assert back.dense().valid[8:28, 16:44].all()
    assert not there.mirror_b


def test_tss_mirrors_the_second_image_where_the_ground_truth_is_for_that(tmp_path: Path) -> None:
    sample = open_dataset(f"tss:{make_tss(tmp_path, flip='1')}")[0]
    assert (sample.mirror_a, sample.mirror_b) == (False, True)
    stored = np.asarray(Image.open(sample.image_b))
    np.testing.assert_array_equal(np.asarray(sample.read("b")), stored[:, ::-1])


def test_tss_of_the_shared_pair_agrees_with_its_sparse_correspondences() -> None:
    """``corr.txt`` holds the annotators' matches, normalised to the images: the dense flow must lead there."""
    root = shared("data", "TSS")
    normalised = np.loadtxt(root / "JODS/car_01_02/corr.txt")
    for sample, columns in zip(open_dataset(f"tss:{root}"), ([0, 1, 2, 3], [2, 3, 0, 1]), strict=True):
        at, to = (normalised[:, columns[k : k + 2]] * size for k, size in ((0, sample.size_a), (2, sample.size_b)))
        truth = sample.dense()
        column, row = np.clip(np.rint(at - 0.5).astype(int), 0, np.array(sample.size_a) - 1).T
        known = truth.valid[row, column]
        error = np.linalg.norm(at + truth.flow[row, column] - to, axis=1)[known]
        assert known.sum() > 50
        assert np.median(error) < 0.5


def test_tss_problems(tmp_path: Path) -> None:
    root = make_tss(tmp_path)
    folder = root / "PASCAL" / "boat_1_2"
    (folder / "flip_gt.txt").write_text("yes")
    with pytest.raises(InputError, match="'yes' is neither 0 nor 1"):
        open_dataset(f"tss:{root}")[0]
    (folder / "flip_gt.txt").write_text("0")
    make_image(folder / "mask1.png", (10, 10))
    with pytest.raises(InputError, match=r"mask1.png has 10x10 pixels, its image 64x48"):
        open_dataset(f"tss:{root}")[0].dense()
    (folder / "flow2.flo").unlink()
    with pytest.raises(InputError, match=r"missing: PASCAL/boat_1_2/flow2.flo; TSS_CVPR2016.zip"):
        open_dataset(f"tss:{root}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pair of TSS"):
        open_dataset(f"tss:{tmp_path / 'empty'}")


def test_flow_files(tmp_path: Path) -> None:
    flow = np.random.default_rng(0).normal(size=(5, 7, 2)).astype(np.float32)
    known = np.random.default_rng(1).random((5, 7)) < 0.5
    path = tmp_path / "x.flo"
    write_flow(path, flow, known)
    assert path.read_bytes()[:12] == b"PIEH\x07\0\0\0\x05\0\0\0"
    again, mask = read_flow(path)
    np.testing.assert_array_equal(mask, known)
    np.testing.assert_array_equal(again[known], flow[known])
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match="has 288 bytes, 292 expected for 7x5"):
        read_flow(path)
    path.write_bytes(b"PIEX" + b"\0" * 8)
    with pytest.raises(InputError, match="does not begin with 'PIEH'"):
        read_flow(path)
    path.write_bytes(b"PIEH" + b"\xff" * 8)
    with pytest.raises(InputError, match="-1x-1"):
        read_flow(path)


def test_pairs_csv(tmp_path: Path) -> None:
    make_image(tmp_path / "p" / "one.png", (120, 80))
    make_image(tmp_path / "p" / "two.png", (90, 64))
    (tmp_path / "points.json").write_text("[[1, 2], [3, 4.5]]")
    matches = [{"a": [5, 6], "b": [7, 8], "confidence": 0.5}]
    (tmp_path / "run.json").write_text(json.dumps({"a": "x", "b": "y", "matches": matches}))
    path = tmp_path / "pairs.csv"
    path.write_text(
        "a,b,points,points_b,box_b,category,remark\n"
        'p/one.png,p/two.png,"1,2;3,4","5,6;7,8.5","0,1,50,60",cup,first\n'
        'p/two.png,p/one.png,"1,2,3,4;5,6,7,8",,,,\n'
        'p/one.png,p/two.png,points.json,"9,9;8,8",,,\n'
        "p/one.png,p/two.png,run.json,,,,\n"
        'p/one.png,p/two.png,"1,2",,,,only queries\n'
        "p/one.png,p/two.png,,,,,\n"
    )
    data = open_dataset(f"pairs:{path}")
    assert (len(data), data.categories) == (6, ["cup"])
    assert data[0].points_b.tolist() == [[5, 6], [7, 8.5]]
    assert (data[0].box_a, data[0].box_b, data[0].size_b) == (None, (0, 1, 50, 60), (90, 64))
    assert (data[1].points_a.tolist(), data[1].points_b.tolist()) == ([[1, 2], [5, 6]], [[3, 4], [7, 8]])
    assert data[2].points_a.tolist() == [[1, 2], [3, 4.5]]
    assert data[3].points_b.tolist() == [[7, 8]]
    assert not data[4].annotated
    assert not data[5].annotated


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("left,right\n1,2\n", "has no column a and b"),
        ("a,b\nnone.png,one.png\n", "missing: none.png"),
        ('a,b,points\none.png,one.png,"1,2,3;4,5,6"\n', "pairs.csv, line 2: points '1,2,3;4,5,6' are not"),
        ('a,b,points\none.png,one.png,"1,x"\n', "line 2: points '1,x'"),
        ("a,b,points\none.png,one.png,none.json\n", "cannot read .*none.json"),
        ('a,b,points,points_b\none.png,one.png,"1,2,3,4","1,2"\n', "points_b is given too"),
        ('a,b,points,points_b\none.png,one.png,"1,2","1,2;3,4"\n', "1 points and 2 points_b"),
        ('a,b,box_b\none.png,one.png,"1,2"\n', "2 numbers instead of four"),
    ],
)
def test_pairs_csv_problems(tmp_path: Path, text: str, message: str) -> None:
    make_image(tmp_path / "one.png", (64, 64))
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        open_dataset(f"pairs:{path}")[0]


@pytest.mark.parametrize("spec", ["PF-WILLOW", "willow:", "warp:x", ":x", "C:/x"])
def test_specs_without_a_known_kind(spec: str) -> None:
    with pytest.raises(InputError, match="KIND one of spair, pfpascal, willow, tss, pairs"):
        open_dataset(spec)


def test_selection(tmp_path: Path) -> None:
    data = open_dataset(f"willow:{make_willow(tmp_path)}")
    cars = data.select(categories=["car(G)"])
    assert ([sample.category for sample in cars], cars.kind) == (["car(G)"], "willow")
    assert len(data.select(limit=1)) == 1
    with pytest.raises(InputError, match=r"no category 'bus'; it has car\(G\), duck\(S\)"):
        data.select(categories=["bus"])
    with pytest.raises(InputError, match="a limit of 0"):
        data.select(limit=0)


def test_size_of_a_turned_photo(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 50)).save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(tmp_path / "turned.jpg") == (50, 80)
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"text.jpg is not an image"):
        image_size(tmp_path / "text.jpg")


def test_readers_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom cats.data import open_dataset\n"
        f"sample = open_dataset('willow:{make_willow(tmp_path)}')[0]\nsample.read('a')\n"
        "print([name for name in ('torch', 'timm', 'onnx', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
