"""A newcomer's two commands: label the photos of PF-WILLOW from three of them, and open the sheet."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import open_page
from labels import assert_same
from other_tools import run_elsewhere
from willow import make_task

from cats.labelling.annotations import Annotations
from cats.labelling.formats import read_annotations, write_annotations
from cats.labelling.formats.label_studio import label_config

ARGUMENTS = ["refs/refs.json", "photos/", "-o", "labels.json", "--review", "sheet.html", "--min-probability", "0"]


@dataclass(frozen=True)
class Run:
    """A folder in which the command ran, and where the keypoints of its photos truly are."""

    folder: Path
    truth: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("willow")
    truth = make_task(folder, "duck(S)", labelled=3, photos=4)
    command = [sys.executable, "-m", "cats.cli", "label", *ARGUMENTS]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "wrote labels.json (COCO keypoints)" in done.stderr
    return Run(folder, truth)


def test_the_labels_are_right(run: Run) -> None:
    shares = []
    for photo in read_annotations(run.folder / "labels.json").photos:
        (duck,) = photo.annotations
        points = run.truth[photo.path.name]
        distance = np.linalg.norm(duck.points - points, axis=1)
        shares.append((distance <= 0.1 * np.ptp(points, axis=0).max()).mean())
        assert duck.box is not None
    assert len(shares) == 4
    assert np.mean(shares) >= 0.8, "PCK@0.1 of four ducks from three"


def test_the_sheet_opens(run: Run, chromium: Any) -> None:
    sheet = run.folder / "sheet.html"
    with open_page(chromium, sheet.as_uri()) as watched:
        assert watched.page.locator("article").count() == 4
        assert watched.page.locator("article .grip").count() == 40
        assert watched.page.locator("article .reference").count() == 4
        watched.check("file:")
    assert sheet.stat().st_size < 2 << 20, "it can be sent"


def test_the_labels_load_in_pycocotools(run: Run) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="needs pycocotools: pip install 'cats-toolkit[dev]'")
    assert len(coco.COCO(str(run.folder / "labels.json")).getAnnIds()) == 4


def test_the_labels_load_in_datumaro(run: Run) -> None:
    annotations = read_annotations(run.folder / "labels.json")
    write_annotations(annotations, run.folder / "labels.xml")
    assert_same(drop(read_annotations(run.folder / "labels.xml")), drop(annotations), atol=1e-6)
    count = run_elsewhere("cvat", "datumaro", DATUMARO, "labels.xml", cwd=run.folder)
    assert count == {"points": 40, "bbox": 4}


def test_the_labels_load_in_the_converter_of_label_studio(run: Run) -> None:
    annotations = read_annotations(run.folder / "labels.json")
    write_annotations(annotations, run.folder / "tasks.json", format="label-studio")
    (run.folder / "config.xml").write_text(label_config(annotations.categories))
    assert run_elsewhere("ls", "label_studio_sdk", LABEL_STUDIO, cwd=run.folder) == [10] * 4


def drop(annotations: Annotations) -> Annotations:
    """Without what CVAT does not hold."""
    photos = [
        replace(p, annotations=tuple(replace(a, probability=None, score=None) for a in p.annotations))
        for p in annotations.photos
    ]
    return replace(annotations, photos=tuple(photos))


DATUMARO = """
import collections, json, sys
from datumaro.components.dataset import Dataset
items = Dataset.import_from(sys.argv[1], "cvat")
print(json.dumps(collections.Counter(a.type.name for item in items for a in item.annotations)))
"""

LABEL_STUDIO = """
import json
from label_studio_sdk.converter import Converter
Converter(open("config.xml").read(), project_dir=None, download_resources=False).convert_to_coco(
    "tasks.json", "coco", is_dir=False)
found = json.load(open("coco/result.json"))["annotations"]
print(json.dumps([entry["num_keypoints"] for entry in found if "keypoints" in entry]))
"""
