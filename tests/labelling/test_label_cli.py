"""``cats label``: what it promises around the labelling itself, whose results a stand-in makes up; once the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_images import truncated_jpeg
from commands import Command
from labeller import NAMES, StandIn
from labels import DUCK, SIZES, full_annotations
from PIL import Image

from cats.assets import asset
from cats.core.images import image_size
from cats.labelling.annotations import AnnotatedPhoto, Annotation, Annotations, Category
from cats.labelling.formats import read_annotations, write_annotations
from cats.labelling.journal import Journal
from cats.labelling.label import Labeller
from cats.labelling.through import Through


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_coco_in_coco_out(label: Command, work: Path, stand_in: StandIn) -> None:
    done = label("refs/refs.json", "photos/", "-o", "out.json")
    assert done.code == 0, done.err
    assert "3 labelled objects of car, duck; 4 photos" in done.err
    assert "of 4 from the references that fit best" in done.err
    found = read_annotations("out.json")
    assert found.categories == (DUCK, full_annotations(work).categories[1])
    assert [photo.path.name for photo in found.photos] == NAMES
    assert [[a.category for a in photo.annotations] for photo in found.photos] == [["car"], ["duck"], ["duck"], []]
    assert found.photos[1].annotations[0].visibility.tolist() == [0, 2, 2]
    assert "not this object: 1 photo\n  photos/other_1.png" in done.out
    assert "points not labelled: 3 photos\n  photos/car_1.png: wheel 0.30" in done.out
    assert files(work).keys() == {
        *(f"refs/{name}" for name in (*SIZES, "refs.json")),
        *(f"photos/{name}" for name in NAMES),
        "out.json",
    }
    assert stand_in.settings == {"looks": 2, "through": None, "min_probability": 0.5, "streams": None}


def test_with_the_model_that_ships(label: Command, tmp_path: Path) -> None:
    for folder in ("refs", "photos"):
        (tmp_path / folder).mkdir()
    shutil.copy(asset("astronaut.jpg"), tmp_path / "refs")
    for name in ("grace_hopper.jpg", "astronaut.jpg"):
        shutil.copy(asset(name), tmp_path / "photos")
    points = np.array(json.loads(asset("astronaut.json").read_text()))
    category = Category("face", tuple(f"p{k}" for k in range(len(points))))
    photo = AnnotatedPhoto(
        tmp_path / "refs/astronaut.jpg", image_size(asset("astronaut.jpg")), (Annotation("face", points),)
    )
    write_annotations(Annotations((category,), (photo,)), tmp_path / "refs/refs.json")
    output = tmp_path / "out.json"
    done = label(tmp_path / "refs/refs.json", tmp_path / "photos", "-o", output, "--min-probability", 0)
    assert done.code == 0, done.err
    itself, other = read_annotations(output).photos
    assert itself.path.name == "astronaut.jpg"
    assert other.annotations, "a portrait is the same kind as a portrait"
    distance = np.linalg.norm(itself.annotations[0].points - points, axis=1)
    assert np.median(distance) < 0.1 * np.ptp(points, axis=0).max(), "a photo is like itself"


@pytest.mark.parametrize("torn", [False, True])
def test_an_interrupted_run_goes_on(label: Command, work: Path, stand_in: StandIn, torn: bool) -> None:
    assert label("refs/refs.json", "photos", "-o", "whole.json").code == 0
    stand_in.seen, stand_in.stop_before = [], 2
    stopped = label("refs/refs.json", "photos", "-o", "out.json")
    assert stopped.code == 130
    assert "2 photos are kept in .out.json.progress: the same command goes on from there" in stopped.err
    assert not Path("out.json").exists()
    kept = work / ".out.json.progress"
    assert len(kept.read_text().splitlines()) == 3
    if torn:
        kept.write_bytes(kept.read_bytes()[:-20] + b"\n" + b"[" * 100_000 + b"\n\xff\n")
    stand_in.seen, stand_in.stop_before = [], None
    done = label("refs/refs.json", "photos", "-o", "out.json")
    assert stand_in.seen == (NAMES[1:] if torn else NAMES[2:])
    assert f"{1 if torn else 2} photos were looked at before" in done.err
    assert Path("out.json").read_bytes() == Path("whole.json").read_bytes()
    assert not kept.exists()


def test_a_run_in_which_photos_help_one_another_goes_on(
    label: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the model: stopped while photos are looked at alone, at the end of that, and while they help one another."""
    monkeypatch.chdir(tmp_path)
    photo = Image.open(asset("astronaut.jpg")).convert("RGB")
    Path("photos").mkdir()
    names = [f"{number}.png" for number in range(3)]
    for number, name in enumerate(names):
        photo.crop((20 * number, 0, 400 + 20 * number, 360)).save(f"photos/{name}")
    photo.save("a.png")
    points = np.array([[225.0, 128.0], [190.0, 60.0], [165.0, 235.0], [300.0, 215.0]])
    face = Annotation("face", points, box=(120.0, 20.0, 220.0, 300.0), polygons=(points,))
    labelled = AnnotatedPhoto(tmp_path / "a.png", photo.size, (face,))
    write_annotations(Annotations((Category("face", tuple("abcd")),), (labelled,)), tmp_path / "refs.json")
    alone = label("refs.json", "photos", "-o", "alone.json", "--streams", 1, "--through", 0)
    whole = label("refs.json", "photos", "-o", "whole.json", "--streams", 1)
    assert (alone.code, whole.code) == (0, 0), whole.err
    assert Path("alone.json").read_bytes() != Path("whole.json").read_bytes()

    looked: list[str] = []
    find, improve, keep = Labeller.find, Through.improve, Journal._add
    for stop in (2, 3, 5):
        written: list[object] = []

        def stopping(journal: Journal, *entry: Any, written: list[object] = written, stop: int = stop) -> None:
            if len(written) == stop:
                raise KeyboardInterrupt
            written.append(entry[0])
            keep(journal, *entry)

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "_add", stopping)
            stopped = label("refs.json", "photos", "-o", f"{stop}.json", "--streams", 1)
        assert stopped.code == 130
        assert f"{min(stop, 3)} photos are kept" in stopped.err
        looked.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Labeller, "find", lambda self, *item: looked.append(item[0].name) or find(self, *item))
            patch.setattr(Through, "improve", lambda self, item: looked.append(item.path.name) or improve(self, item))
            done = label("refs.json", "photos", "-o", f"{stop}.json", "--streams", 1)
        assert done.code == 0, done.err
        assert looked == [*names, *names][stop:], f"stopped at {stop}: what was done is not done again"
        assert Path(f"{stop}.json").read_bytes() == Path("whole.json").read_bytes(), stop
        assert not Path(f".{stop}.json.progress").exists()


def test_results_that_cannot_be_kept_end_the_run(label: Command, work: Path, stand_in: StandIn) -> None:
    (work / ".out.json.progress").mkdir()
    assert (
        "cannot write .out.json.progress: Is a directory" in label("refs/refs.json", "photos", "-o", "out.json").error
    )
    assert not Path("out.json").exists()


@pytest.mark.parametrize("change", ["option", "references", "photo"])
def test_results_of_another_run_are_not_used(label: Command, work: Path, stand_in: StandIn, change: str) -> None:
    """``--through 0``: else the results of all photos depend on the one that has changed."""
    stand_in.stop_before = 3
    options: list[object] = ["--through", 0]
    label("refs/refs.json", "photos", "-o", "out.json", *options)
    stand_in.seen, stand_in.stop_before = [], None
    if change == "option":
        options += ["--min-probability", 0.9]
    elif change == "references":
        document = json.loads(Path("refs/refs.json").read_text())
        document["annotations"][0]["keypoints"][0] += 1
        Path("refs/refs.json").write_text(json.dumps(document))
    else:
        Image.new("RGB", (90, 60), "red").save("photos/duck_1.png")
    label("refs/refs.json", "photos", "-o", "out.json", *options)
    assert stand_in.seen == (["duck_1.png", "other_1.png"] if change == "photo" else NAMES)


def test_bad_photos_are_named_and_the_others_go_on(label: Command, work: Path, stand_in: StandIn) -> None:
    (work / "photos" / "a_cut.jpg").write_bytes(truncated_jpeg())
    (work / "photos" / "notes.txt").write_text("no photo")
    done = label("refs/refs.json", "photos", "-o", "out.json")
    assert "1 of 5 photos could not be labelled" in done.error
    assert "a_cut.jpg" in done.err
    assert "1 other files skipped" in done.err
    assert [photo.path.name for photo in read_annotations("out.json").photos] == NAMES


def test_categories_from_folders_and_a_table(label: Command, work: Path, stand_in: StandIn) -> None:
    for name, folder in (("car_1.png", "Car"), ("other_1.png", "mixed/duck/big")):
        (work / "photos" / folder).mkdir(parents=True)
        (work / "photos" / name).rename(work / "photos" / folder / name)
    (work / "kinds.csv").write_text("photo,category\nphotos/duck_1.png,car\n")
    done = label("refs/refs.json", "photos", "-o", "out.json", "--categories", "kinds.csv", "--json")
    assert "of 1 photos from the table, of 2 from their folder, of 1 from the references" in done.err
    summary = {entry["photo"]: entry["category"] for entry in json.loads(done.out)["photos"]}
    assert summary == {
        "photos/Car/car_1.png": "car",
        "photos/duck_1.png": "car",
        "photos/duck_2.png": "duck",
        "photos/mixed/duck/big/other_1.png": "duck",
    }


def test_photos_that_are_references_keep_their_labels(label: Command, work: Path, stand_in: StandIn) -> None:
    shutil.copytree("refs", "all")
    shutil.copytree("photos", "all/new")
    done = label("all/refs.json", "all", "-o", "all/out.json")
    assert done.code == 0, done.err
    assert "2 of the photos are references" in done.err
    found = {photo.path.name: photo for photo in read_annotations("all/out.json").photos}
    assert found["a.png"].annotations[0].points[0].tolist() == [10.5, 20.25]
    assert set(stand_in.seen) == {*NAMES, "ü.jpg"}


def test_photos_elsewhere_need_a_root(label: Command, work: Path, stand_in: StandIn) -> None:
    (work / "results").mkdir()
    done = label("refs/refs.json", "photos", "-o", "results/out.json")
    assert f"file names in it are relative to {work / 'photos'}" in done.err
    assert read_annotations("results/out.json", root="photos").photos[0].path.name == NAMES[0]
    again = label("results/out.json", "photos", "-o", "results/more.json", "--root", "photos")
    assert "3 of the photos are references" in again.err


def test_lists_of_photos(label: Command, work: Path, stand_in: StandIn) -> None:
    (work / "list.txt").write_text("# two of them\nphotos/duck_2.png\n\nphotos/car_1.png\n")
    assert label("refs/refs.json", "list.txt", "photos/duck_1.png", "-o", "out.json").code == 0
    assert stand_in.seen == ["duck_2.png", "car_1.png", "duck_1.png"]


@pytest.mark.parametrize("output", ["out.csv", "out.xml", "out.tps", "out"])
def test_the_suffix_says_the_format(label: Command, work: Path, stand_in: StandIn, output: str) -> None:
    done = label("refs/refs.json", "photos", "-o", output, "--review", "sheet.html")
    assert done.code == 0, done.err
    assert len(read_annotations(output).photos) == 4
    assert "cannot hold" in done.err
    assert "duck_1.png" in Path("sheet.html").read_text()
    assert "exists already" in label("refs/refs.json", "photos", "-o", output).error
    assert label("refs/refs.json", "photos", "-o", output, "--force").code == 0


def test_the_format_of_the_references_is_kept(label: Command, work: Path, stand_in: StandIn) -> None:
    write_annotations(full_annotations(work / "refs"), work / "refs" / "tasks.json", format="label-studio")
    label("refs/tasks.json", "photos", "-o", "out.json")
    assert json.loads(Path("out.json").read_text())[0]["data"]["image"].startswith("/data/local-files/?d=")
    label("refs/tasks.json", "photos", "-o", "out.json", "--format", "coco", "--force")
    assert "images" in json.loads(Path("out.json").read_text())


def test_help_has_examples(label: Command) -> None:
    done = label("--help")
    assert done.code == 0
    for text in (
        "--review",
        "--backend",
        "--force",
        "--min-probability",
        "--categories",
        "cats label refs/refs.json photos/ -o labels.json",
    ):
        assert text in done.out
