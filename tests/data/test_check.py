"""``cats data check``: a whole data set has no problem, and each kind of damage is named once, by file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Command, runner
from datasets import SPAIR_PAIR, make_image, make_pfpascal, make_spair, make_tss, make_willow

from cats.data import open_dataset
from cats.data.check import check_dataset
from cats.data.cli import main

CAT = SPAIR_PAIR["filename"]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return runner(main, "cats data", monkeypatch, capsys)


def make_pairs(folder: Path) -> Path:
    for name in "ab":
        make_image(folder / f"{name}.png", (40, 30), seed=ord(name))
    (folder / "pairs.csv").write_text('a,b,points\na.png,b.png,"1,2,3,4;5,6,7,8"\n')
    return folder / "pairs.csv"


MAKERS = {"spair": make_spair, "pfpascal": make_pfpascal, "willow": make_willow, "tss": make_tss, "pairs": make_pairs}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_missing_file_is_named(kind: str, tmp_path: Path) -> None:
    spec = f"{kind}:{MAKERS[kind](tmp_path)}"
    assert check_dataset(spec, "test" if kind != "pairs" else None)[0].problems == []
    dataset = open_dataset(spec)
    files = {path for index in range(len(dataset)) for path in dataset.files_of(index)}
    assert {sample.image_a for sample in dataset} | {sample.image_b for sample in dataset} <= files
    for index, sample in enumerate(dataset):
        assert dataset.files_of(index)[-2:] == (sample.image_a, sample.image_b)
    whole = check_dataset(spec)[-1].total
    for path in files:
        if not path.name.endswith(("1.png", ".flo")):  # by which pairs of TSS are found
            aside = path.rename(path.with_suffix(".aside"))
            problems = check_dataset(spec)[-1].problems
            assert problems == [f"missing: {path.relative_to(tmp_path)}"]
            aside.rename(path)
    assert check_dataset(spec)[-1].total == whole


def test_counts_of_lists_and_categories(tmp_path: Path) -> None:
    reports = check_dataset(f"spair:{make_spair(tmp_path, ('trn', 'val', 'test'))}")
    assert [report.split for report in reports] == ["train", "val", "test"]
    assert [report.published for report in reports] == [53340, 5384, 12234]
    for report in reports:
        assert (report.total.pairs, report.total.photos, report.total.keypoints) == (2, 4, 6)
        assert {name: count.photos for name, count in report.categories.items()} == {"cat": 2, "dog": 2}
        assert report.problems == []
        assert report.notes == [f"2 pairs are listed, {report.published} are published"]


def test_a_list_that_lacks_is_a_problem_of_its_own(tmp_path: Path) -> None:
    train, val, test = check_dataset(f"spair:{make_spair(tmp_path)}")
    assert "lacks PairAnnotation/trn" in train.problems[0]
    assert len(val.problems) == 1
    assert test.problems == []


def test_damage_is_named_once_and_the_rest_counted(tmp_path: Path, check: Command) -> None:
    outside = [[20, 30], [60, 40], [125, 65]]
    root = make_spair(tmp_path, src_kps=outside)
    photo = root / "JPEGImages" / "dog" / "2008_000003.jpg"
    photo.write_bytes(photo.read_bytes()[:200])
    done = check("check", f"spair:{root}", "--split", "test", "--json")
    report = json.loads(done.out)
    assert done.code == 1
    assert report["whole"] is False
    problems = report["lists"][0]["problems"]
    assert len(problems) == 1
    assert str(photo) in problems[0]
    assert report["lists"][0]["total"] == {"pairs": 2, "photos": 4, "keypoints": 2, "outside": 1, "bare": 0}
    assert "1 keypoints lie outside" in report["lists"][0]["notes"][1]


def test_a_photo_of_another_size_and_a_broken_annotation(tmp_path: Path, check: Command) -> None:
    root = make_spair(tmp_path)
    make_image(root / "JPEGImages" / "cat" / "2008_000001.jpg", (60, 40))
    (root / "PairAnnotation" / "test" / "000008-2008_000003-2008_000001:dog.json").write_text("{")
    done = check("check", f"spair:{root}", "--split", "test", "--categories")
    assert done.code == 1
    assert "has 60x40 pixels, the annotation of" in done.err
    assert "000008-2008_000003-2008_000001:dog.json" in done.err
    assert "not whole" in done.err
    assert "dog" in done.out


def test_dense_truth_is_read(tmp_path: Path) -> None:
    root = make_tss(tmp_path)
    flow = root / "PASCAL" / "boat_1_2" / "flow2.flo"
    flow.write_bytes(flow.read_bytes()[:-8])
    problems = check_dataset(f"tss:{root}")[0].problems
    assert len(problems) == 1
    assert "flow2.flo" in problems[0]


def test_folders_of_photos(tmp_path: Path, check: Command) -> None:
    for name in ("duck/1.jpg", "duck/2.jpg", "car/1.jpg", "loose.jpg"):
        make_image(tmp_path / name, (40, 30))
    (tmp_path / "duck" / "notes.txt").write_text("ducks")
    done = check("check", f"categories:{tmp_path}", "--categories")
    assert done.code == 0
    for text in ("1 other files", "left out: car", "1 photos lie in no category"):
        assert text in done.err
    (tmp_path / "duck" / "2.jpg").write_bytes(b"no photo")
    done = check("check", f"categories:{tmp_path}")
    assert done.code == 1
    assert "2.jpg" in done.err
    assert "no sub-folder with two photos" in done.err
    assert check("check", f"warps:{tmp_path}").code == 1


def test_only_some_problems_are_printed(tmp_path: Path, check: Command) -> None:
    rows = "".join(f"{number}.png,b.png\n" for number in range(30))
    (tmp_path / "pairs.csv").write_text(f"a,b\n{rows}")
    done = check("check", f"pairs:{tmp_path / 'pairs.csv'}")
    assert done.err.count("missing: ") == 20
    assert "11 more; --all names them" in done.err
    assert check("check", f"pairs:{tmp_path / 'pairs.csv'}", "--all").err.count("missing: ") == 31


def test_refusals(tmp_path: Path, check: Command) -> None:
    assert "does not exist" in check("check", f"spair:{tmp_path / 'nothing'}").error
    assert "is not KIND:DIR" in check("check", str(tmp_path)).error
    assert "has no splits" in check("check", f"warps:{tmp_path}", "--split", "val").error
    assert "unknown split" in check("check", f"spair:{make_spair(tmp_path)}", "--split", "all").error
