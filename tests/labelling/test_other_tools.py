"""The files that are written load in the programs they are for, and say there what they say here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labels import CAR, DUCK, SIZES, full_annotations, make_photos
from other_tools import run_elsewhere

from cats.labelling.annotations import Annotations, Category, Mask
from cats.labelling.formats import read_annotations, write_annotations
from cats.labelling.formats.label_studio import label_config

NAMES = list(SIZES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_photos(tmp_path)
    return tmp_path


@pytest.fixture
def annotations(folder: Path) -> Annotations:
    return full_annotations(folder)


def only(annotations: Annotations, category: Category) -> Annotations:
    """The objects of one category."""
    photos = (
        replace(photo, annotations=tuple(a for a in photo.annotations if a.category == category.name))
        for photo in annotations.photos
    )
    return Annotations((category,), tuple(photos))


def test_coco_loads_in_pycocotools(folder: Path, annotations: Annotations) -> None:
    coco_ = pytest.importorskip("pycocotools.coco", reason="needs pycocotools: pip install 'cats-toolkit[dev]'")
    write_annotations(annotations, folder / "labels.json")
    coco = coco_.COCO(str(folder / "labels.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["duck", "car"]
    assert len(coco.getAnnIds(catIds=[1])) == 2
    for entry, (_, annotation) in zip(coco.loadAnns(coco.getAnnIds()), annotations.objects(), strict=True):
        assert entry["num_keypoints"] == annotation.labelled.sum()
        if annotation.mask is not None:
            np.testing.assert_array_equal(coco.annToMask(entry) > 0, annotation.mask.to_array())
            assert entry["area"] == annotation.mask.area
    polygons = coco.loadAnns(3)[0]
    assert coco.annToMask(polygons).sum() == pytest.approx(polygons["area"], rel=0.1)


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 1.0), (200, 0.0)])
def test_coco_evaluates_with_oks(folder: Path, annotations: Annotations, shift: float, expected: float) -> None:
    coco_ = pytest.importorskip("pycocotools.coco", reason="needs pycocotools: pip install 'cats-toolkit[dev]'")
    from pycocotools.cocoeval import COCOeval

    write_annotations(only(annotations, DUCK), folder / "labels.json")
    truth = coco_.COCO(str(folder / "labels.json"))
    results = []
    for entry in truth.loadAnns(truth.getAnnIds()):
        points = np.array(entry["keypoints"], float).reshape(-1, 3) + np.array([shift, 0, 0])
        results.append({**entry, "keypoints": points.ravel().tolist(), "score": 0.9})
    evaluation = COCOeval(truth, truth.loadRes(results), "keypoints")
    evaluation.params.kpt_oks_sigmas = np.full(3, 0.1)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[1] == pytest.approx(expected)  # AP at an OKS of 0.5


def test_compressed_masks_of_pycocotools_are_read(folder: Path, annotations: Annotations) -> None:
    mask_ = pytest.importorskip("pycocotools.mask", reason="needs pycocotools: pip install 'cats-toolkit[dev]'")
    write_annotations(annotations, folder / "labels.json")
    document = json.loads((folder / "labels.json").read_text())
    rng = np.random.default_rng(0)
    for _ in range(20):
        inside = rng.random((80, 100)) < rng.random()
        packed = mask_.encode(np.asfortranarray(inside.astype(np.uint8)))
        document["annotations"][0]["segmentation"] = {"size": packed["size"], "counts": packed["counts"].decode()}
        (folder / "labels.json").write_text(json.dumps(document))
        found = read_annotations(folder / "labels.json").photos[0].annotations[0].mask
        assert found is not None
        np.testing.assert_array_equal(found.to_array(), inside)


DATUMARO = """
import json, sys
from datumaro.components.dataset import Dataset
items = []
for item in Dataset.import_from(sys.argv[1], "cvat"):
    labels = item.media
    found = []
    for a in item.annotations:
        entry = {"type": a.type.name, "group": a.group}
        if a.type.name == "mask": entry["area"] = int(a.image.sum())
        elif a.type.name != "label": entry["points"] = [float(v) for v in a.points]
        entry["occluded"] = bool(a.attributes.get("occluded", False))
        found.append(entry)
    items.append({"id": item.id, "size": list(item.media.size), "annotations": found})
print(json.dumps(items))
"""


def test_cvat_loads_in_datumaro(folder: Path, annotations: Annotations) -> None:
    write_annotations(annotations, folder / "labels.xml")
    items = run_elsewhere("cvat", "datumaro", DATUMARO, folder / "labels.xml", cwd=folder)
    assert [item["size"] for item in items] == [[h, w] for w, h in SIZES.values()]
    for item, photo in zip(items, annotations.photos, strict=True):
        found = item["annotations"]
        masks = [entry["area"] for entry in found if entry["type"] == "mask"]
        assert masks == [a.mask.area for a in photo.annotations if a.mask is not None]
        boxes = [entry["points"] for entry in found if entry["type"] == "bbox"]
        expected = [(x, y, x + w, y + h) for x, y, w, h in (a.box for a in photo.annotations if a.box is not None)]
        np.testing.assert_allclose(np.reshape(boxes, (-1, 4)), np.reshape(expected, (-1, 4)), atol=0.01)
        points = [entry for entry in found if entry["type"] == "points"]
        wanted = [(a.points[k], a.visibility[k]) for a in photo.annotations for k in range(len(a.points))]
        assert len(points) == len(wanted)
        for entry, (place, visibility) in zip(points, wanted, strict=True):
            np.testing.assert_allclose(entry["points"], place if visibility else (0, 0), atol=0.01)
            assert entry["occluded"] == (visibility == 1)
        polygons = [entry["points"] for entry in found if entry["type"] == "polygon"]
        outlines = [polygon.ravel() for a in photo.annotations for polygon in a.polygons]
        assert len(polygons) == len(outlines)
        for entry, outline in zip(polygons, outlines, strict=True):
            np.testing.assert_allclose(entry, outline, atol=0.01)


LABEL_STUDIO = """
import json, os, sys
from label_studio_sdk.converter import Converter
from label_studio_sdk.converter.brush import decode_from_annotation
folder = sys.argv[1]
converter = Converter(open(f"{folder}/config.xml").read(), project_dir=None, download_resources=False)
converter.convert_to_coco(f"{folder}/labels.json", f"{folder}/coco", is_dir=False)
coco = json.load(open(f"{folder}/coco/result.json"))
tasks = json.load(open(f"{folder}/labels.json"))
results = [r for t in tasks for a in t["annotations"] for r in a["result"]]
regions = [{**r, **r["value"]} for r in results if r["type"] == "brushlabels"]
coco["brushes"] = [int((m > 0).sum()) for r in regions for m in decode_from_annotation("brush", [r]).values()]
print(json.dumps(coco))
"""


def test_label_studio_loads_in_its_converter(folder: Path, annotations: Annotations) -> None:
    annotations = only(annotations, DUCK)
    first = annotations.photos[0]
    annotations = replace(
        annotations, photos=(replace(first, annotations=first.annotations[:1]), *annotations.photos[1:])
    )
    write_annotations(annotations, folder / "labels.json", format="label-studio")
    (folder / "config.xml").write_text(label_config(annotations.categories))
    coco = run_elsewhere("ls", "label_studio_sdk", LABEL_STUDIO, folder)
    (duck,) = first.annotations[:1]
    boxes = [entry for entry in coco["annotations"] if "keypoints" not in entry]
    np.testing.assert_allclose([entry["bbox"] for entry in boxes], [duck.box], atol=0.01)
    (points,) = (entry["keypoints"] for entry in coco["annotations"] if "keypoints" in entry)
    expected = [
        [round(x), round(y), 2] if v else [0, 0, 0] for (x, y), v in zip(duck.points, duck.visibility, strict=True)
    ]
    assert np.reshape(points, (-1, 3)).tolist() == expected, "the converter rounds, and knows no hidden points"
    assert duck.mask is not None
    assert coco["brushes"] == [duck.mask.area]


YOLO = """
import json, os, sys
from label_studio_sdk.converter import Converter
folder = sys.argv[1]
converter = Converter(open(f"{folder}/config.xml").read(), project_dir=None, download_resources=False)
converter.convert_to_yolo(f"{folder}/labels.json", f"{folder}/yolo", is_dir=False)
texts = {name: open(f"{folder}/yolo/labels/{name}").read() for name in os.listdir(f"{folder}/yolo/labels")}
print(json.dumps({"texts": texts}))
"""


def test_points_of_several_objects_stay_together_in_label_studio(folder: Path, annotations: Annotations) -> None:
    annotations = only(annotations, DUCK)
    write_annotations(annotations, folder / "labels.json", format="label-studio")
    (folder / "config.xml").write_text(label_config(annotations.categories))
    texts = run_elsewhere("ls", "label_studio_sdk", YOLO, folder)["texts"]
    lines = next(text for name, text in texts.items() if "a" in name and text).splitlines()
    table = np.array([line.split() for line in lines], float)
    assert len(table) == 2
    for row, annotation in zip(table, annotations.photos[0].annotations, strict=True):
        points = row[5:].reshape(-1, 3)
        np.testing.assert_allclose(
            points[annotation.labelled, :2] * (100, 80), annotation.points[annotation.labelled], atol=0.01
        )


SLEAP = """
import json, sys
import numpy as np
from sleap_io.io.dlc import load_dlc
labels = load_dlc(sys.argv[1])
frames = []
for frame in labels.labeled_frames:
    points = [np.where(np.isnan(i.numpy()), -1, i.numpy()).tolist() for i in frame.instances]
    frames.append({"nodes": labels.skeletons[0].node_names, "points": points})
print(json.dumps(frames))
"""


def test_deeplabcut_loads_in_sleap(folder: Path, annotations: Annotations) -> None:
    path = folder / "labeled-data" / "sub" / "CollectedData_cats.csv"
    path.parent.mkdir(parents=True)
    make_photos(path.parent)
    ducks = only(full_annotations(path.parent), DUCK)
    ducks = replace(ducks, photos=ducks.photos[:1])
    write_annotations(ducks, path, format="deeplabcut", root=folder)
    (frame,) = run_elsewhere("dlc", "sleap_io", SLEAP, path)
    order = [DUCK.keypoints.index(name) for name in frame["nodes"]]  # it sorts them
    expected = [np.where(a.labelled[:, None], a.points, -1)[order] for a in ducks.photos[0].annotations]
    np.testing.assert_allclose(frame["points"], expected)
    assert [photo.path for photo in read_annotations(path).photos] == [path.parent / "a.png"]


def test_the_yolo_folder_is_what_ultralytics_expects(folder: Path, annotations: Annotations) -> None:
    import yaml

    write_annotations(annotations, folder / "set", format="yolo")
    settings: dict[str, Any] = yaml.safe_load((folder / "set" / "data.yaml").read_text())
    assert settings["names"] == {0: "duck", 1: "car"}
    assert settings["kpt_shape"] == [3, 3]
    images = sorted(path.relative_to(folder / "set" / "images") for path in (folder / "set" / "images").rglob("*.*"))
    assert [str(path) for path in images] == sorted(SIZES)
    for name in SIZES:
        assert (folder / "set" / "labels" / name).with_suffix(".txt").is_file()
    (line,) = (folder / "set" / "labels" / NAMES[1]).with_suffix(".txt").read_text().splitlines()
    values = [float(value) for value in line.split()]
    assert len(values) == 5 + 3 * 3
    assert values[0] == 1
    assert all(0 <= value <= 1 for value in values[1:5])
    assert values[-3:] == [0, 0, 0], f"{CAR.name} has a keypoint less"


def test_label_studio_packs_masks_as_its_library_does() -> None:
    from cats.labelling.formats import brush

    inside = np.random.default_rng(3).random((30, 41)) < 0.4
    packed = brush.pack(Mask.from_array(inside))
    np.testing.assert_array_equal(brush.unpack(packed, (41, 30)).to_array(), inside)
