"""Bad input of ``cats label``: one line that names it, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_images import truncated_jpeg
from commands import Command
from labeller import StandIn


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change(path: str, edit: Callable[[Any], None]) -> None:
    document = json.loads(Path(path).read_text())
    edit(document)
    Path(path).write_text(json.dumps(document))


def set_keypoints(values: list[float]) -> Callable[[Any], None]:
    return lambda document: document["annotations"][0].update(keypoints=values)


BOMB = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><annotations>&b;</annotations>'


CSV = "photo,object,category,keypoint,x,y\n"


NOT_OUTPUT = ["refs/refs.json", "photos", "-o"]


USUAL = [*NOT_OUTPUT, "out.json"]


def _edit(edit: Callable[[Any], None]) -> Callable[[], None]:
    return lambda: change("refs/refs.json", edit)


def _write(path: str, text: str) -> Callable[[], None]:
    def write() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)

    return write


def _huge() -> None:
    with open("refs/refs.json", "r+b") as handle:
        handle.truncate(1 << 30)


def _no_objects(document: Any) -> None:
    document["annotations"] = []


BAD: dict[str, tuple[Callable[[], None], list[str], str]] = {
    "no references": (lambda: None, ["none.json", "photos", "-o", "out.json"], "none.json does not exist"),
    "missing photo": (lambda: Path("refs/a.png").unlink(), USUAL, "refs.json: the photo a.png is not in refs"),
    "name leads out": (
        _edit(lambda d: d["images"][0].update(file_name="../photos/duck_1.png")),
        USUAL,
        "does not lead into",
    ),
    "absolute name": (
        _edit(lambda d: d["images"][0].update(file_name="/etc/hostname")),
        USUAL,
        "does not lead into refs",
    ),
    "other size": (
        _edit(lambda d: d["images"][0].update(width=99)),
        USUAL,
        "are for 99x80 pixels, the photo has 100x80",
    ),
    "point outside": (
        _edit(set_keypoints([150, 9, 2] * 3)),
        USUAL,
        "a.png, object 1 (duck): keypoint 1 at (150, 9) lies outside",
    ),
    "point not finite": (
        _edit(set_keypoints([1e999, 9, 2] * 3)),
        USUAL,
        "refs.json is not JSON: Infinity is not a finite number",
    ),
    "too few numbers": (
        _edit(set_keypoints([1, 9, 2])),
        USUAL,
        "3 numbers of keypoints, not x, y, v for the 3 of duck",
    ),
    "without points": (_edit(set_keypoints([0] * 9)), USUAL, "a.png, object 1 (duck) is a reference without points"),
    "no labels": (_edit(_no_objects), USUAL, "no photo in it has labels"),
    "no such category": (_edit(lambda d: d["annotations"][0].update(category_id=7)), USUAL, "there is no category 7"),
    "category twice": (_edit(lambda d: d["categories"][1].update(name="duck")), USUAL, "two categories are named duck"),
    "words for numbers": (_edit(set_keypoints(["x"] * 9)), USUAL, "a.png, annotation 1: its keypoints are not numbers"),
    "other keypoints": (
        _write("refs/refs.csv", f"{CSV}a.png,1,duck,beak,1,1\nsub/b c.png,1,duck,nose,2,2\n"),
        ["refs/refs.csv", "photos", "-o", "out.csv"],
        "refs.csv: a.png: object 1 (duck) has no row of the keypoint nose",
    ),
    "other landmarks": (
        _write("refs/refs.tps", "LM=1\n1 2\nIMAGE=a.png\nID=0\nLM=2\n1 2\n3 4\nIMAGE=sub/b c.png\nID=1\n"),
        ["refs/refs.tps", "photos", "-o", "out.tps"],
        "refs.tps: specimen of line 5: 2 landmarks, the ones before have 1",
    ),
    "not JSON": (_write("refs/refs.json", "{"), USUAL, "refs.json is not JSON"),
    "deep JSON": (_write("refs/refs.json", "[" * 100_000), USUAL, "refs.json is not JSON"),
    "1 GB JSON": (_huge, USUAL, "refs.json is 1024 MiB large"),
    "not text": (
        lambda: shutil.copy("refs/a.png", "refs/refs.json"),
        USUAL,
        "refs.json is not JSON: text that is not UTF-8",
    ),
    "XML bomb": (
        _write("refs/refs.xml", BOMB),
        ["refs/refs.xml", "photos", "-o", "out.xml"],
        "refs.xml: it defines entities",
    ),
    "not CVAT": (_write("refs/refs.xml", "<a/>"), ["refs/refs.xml", "photos", "-o", "out.xml"], "its root is <a>"),
    "YAML bomb": (
        _write("set/data.yaml", "a: &a [x, x]\nnames: [*a, *a]\n"),
        ["set", "photos", "-o", "out.json"],
        "data.yaml is not YAML: it has aliases",
    ),
    "unknown suffix": (lambda: None, [*NOT_OUTPUT, "out.pickle"], "no format of label files has the suffix .pickle"),
    "unknown format": (lambda: None, [*USUAL, "--format", "voc"], "unknown format 'voc': there are coco, csv"),
    "format of another suffix": (lambda: None, [*USUAL, "--format", "cvat"], "its name must end in .xml"),
    "no photos": (lambda: shutil.rmtree("photos"), USUAL, "photos does not exist"),
    "only references": (
        lambda: shutil.rmtree("photos"),
        ["refs/refs.json", "refs/a.png", "-o", "out.json"],
        "all 1 photos are references",
    ),
    "empty folder": (lambda: [p.unlink() for p in Path("photos").iterdir()] and None, USUAL, "no photo in photos"),
    "empty list": (
        _write("list.txt", "#\n"),
        ["refs/refs.json", "list.txt", "-o", "out.json"],
        "list.txt lists no photos",
    ),
    "into the references": (
        lambda: None,
        [*NOT_OUTPUT, "refs/refs.json"],
        "cannot write refs/refs.json: it is read",
    ),
    "through a link": (
        lambda: Path("out.json").symlink_to("refs/refs.json"),
        USUAL,
        "cannot write out.json: it is read",
    ),
    "sheet over labels": (
        lambda: None,
        [*NOT_OUTPUT, "out.json", "--review", "out.json"],
        "its name must end in .html",
    ),
    "no such folder": (lambda: None, [*NOT_OUTPUT, "no/out.json"], "the folder no does not exist"),
    "another's folder": (
        lambda: None,
        [*NOT_OUTPUT, "photos", "--format", "yolo"],
        "photos is not empty and not of an earlier run",
    ),
    "among the photos": (
        lambda: None,
        [*NOT_OUTPUT, "photos/yolo", "--format", "yolo"],
        "the files of photos are read; give a folder outside of it",
    ),
    "table of others": (
        _write("kinds.csv", "photo,category\nx.png,duck\n"),
        [*USUAL, "--categories", "kinds.csv"],
        "x.png is not among",
    ),
    "table of no category": (
        _write("kinds.csv", "photo,category\nphotos/duck_1.png,cow\n"),
        [*USUAL, "--categories", "kinds.csv"],
        "kinds.csv, row 2: no reference is of the category 'cow'",
    ),
    "table without columns": (
        _write("kinds.csv", "a,b\n"),
        [*USUAL, "--categories", "kinds.csv"],
        "no columns photo and category",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(label: Command, work: Path, stand_in: StandIn, case: str) -> None:
    prepare, arguments, text = BAD[case]
    prepare()
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    done = label(*arguments)
    assert text in done.error
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.exists()}.keys() == before.keys()
    assert not stand_in.seen, "it is refused before the work"


def test_nothing_is_written_where_no_photo_could_be_labelled(label: Command, work: Path, stand_in: StandIn) -> None:
    for path in (work / "photos").iterdir():
        path.write_bytes(truncated_jpeg())
    done = label("refs/refs.json", "photos", "-o", "out.json")
    assert "none of the 4 photos could be labelled" in done.error
    assert not Path("out.json").exists()
