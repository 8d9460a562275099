"""Label files as the tools themselves write them, and as they should not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labels import SIZES, full_annotations, make_photos
from PIL import Image

from cats.core.errors import InputError
from cats.labelling.annotations import Annotation, Annotations
from cats.labelling.formats import read_annotations, write_annotations


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_photos(tmp_path)
    return tmp_path


def read(path: Path, text: str | bytes, **options: Any) -> Annotations:
    """What is read of a file with this text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_annotations(path, **options)


def objects(annotations: Annotations) -> list[Annotation]:
    return [found for _, found in annotations.objects()]


CVAT_SKELETON = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><job><id>7</id><labels>
    <label><name>person</name><color>#c06060</color><type>skeleton</type><attributes></attributes>
      <svg>&lt;line x1="38" y1="19" x2="54" y2="49" data-type="edge" data-node-from="2" stroke="black"
        data-node-to="1"&gt;&lt;/line&gt;&lt;circle r="1.5" cx="54" cy="49" data-type="element node" data-element-id="1"
        data-node-id="1" data-label-name="hand"&gt;&lt;/circle&gt;&lt;circle r="1.5" cx="38" cy="19"
        data-type="element node" data-element-id="2" data-node-id="2" data-label-name="head"&gt;&lt;/circle&gt;</svg>
    </label>
    <label><name>head</name><type>points</type><attributes></attributes><parent>person</parent></label>
    <label><name>hand</name><type>points</type><attributes></attributes><parent>person</parent></label>
    <label><name>blurred</name><type>tag</type><attributes></attributes></label>
  </labels></job></meta>
  <image id="0" name="a.png" width="100" height="80">
    <skeleton label="person" source="manual" z_order="0">
      <points label="hand" source="manual" outside="0" occluded="1" points="20.50,30.25"></points>
      <points label="head" source="manual" outside="1" occluded="0" points="1.00,1.00"></points>
    </skeleton>
    <skeleton label="person" source="manual" z_order="0">
      <points label="head" source="manual" outside="0" occluded="0" points="60.00,10.00"></points>
    </skeleton>
    <polyline label="blurred" points="1,1;2,2"></polyline>
  </image>
</annotations>
"""


def test_skeletons_of_cvat(folder: Path) -> None:
    notes: list[str] = []
    found = read(folder / "annotations.xml", CVAT_SKELETON, notes=notes)
    person = found.category("person")
    assert person.keypoints == ("head", "hand")
    assert person.skeleton == ((0, 1),)
    first, second = objects(found)
    assert first.visibility.tolist() == [0, 1]
    assert first.points[1].tolist() == [20.5, 30.25]
    assert second.visibility.tolist() == [2, 0]
    assert notes == ["left aside shapes of the types polyline"]


def cvat(shapes: str) -> str:
    image = f'<image id="0" name="a.png" width="100" height="80">{shapes}</image>'
    return f"<annotations><version>1.1</version>{image}</annotations>"


def test_points_of_cvat_without_a_skeleton(folder: Path) -> None:
    (found,) = objects(read(folder / "a.xml", cvat('<points label="hand" points="1,2;3,4"/>')))
    assert found.category == "hand"
    assert found.points.tolist() == [[1, 2], [3, 4]]
    loose = '<points label="eye" points="1,2"/><points label="nose" points="3,4" occluded="1"/>'
    annotations = read(folder / "a.xml", cvat(loose))
    (found,) = objects(annotations)
    assert annotations.category(found.category).keypoints == ("eye", "nose")
    assert found.visibility.tolist() == [2, 1]


def test_masks_of_cvat(folder: Path) -> None:
    shape = '<mask label="car" rle="1, 2, 1, 2" left="10" top="20" width="3" height="2"/>'
    (found,) = objects(read(folder / "a.xml", cvat(shape)))
    assert found.mask is not None
    rows, columns = np.nonzero(found.mask.to_array())
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [(20, 11), (20, 12), (21, 11), (21, 12)]


def label_studio(*regions: dict[str, Any], image: str = "a.png", **task: Any) -> str:
    annotations = [{"id": 1, "was_cancelled": False, "result": list(regions)}]
    return json.dumps([{"id": 5, "data": {"image": image}, "annotations": annotations, **task}])


def region(kind: str, label: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": kind, "value": {**value, kind: [label]}, "original_width": 100, "original_height": 80, **more}


EYE = region("keypointlabels", "eye", {"x": 10.0, "y": 25.0, "width": 0.4}, id="k1")
CAR = region("rectanglelabels", "car", {"x": 50, "y": 0, "width": 10, "height": 50, "rotation": 0}, id="r1")


@pytest.mark.parametrize(
    ("image", "file"),
    [
        ("a.png", "a.png"),
        ("/data/upload/3/0a1b2c3d-a.png", "a.png"),
        ("/data/upload/3/0a1b2c3d-a.png", "upload/3/0a1b2c3d-a.png"),
        ("/data/local-files/?d=sub%2Fb%20c.png", "sub/b c.png"),
        ("https://example.org/photos/a.png?token=x", "a.png"),
        ("s3://bucket/sub/b%20c.png", "sub/b c.png"),
    ],
)
def test_photos_of_label_studio(folder: Path, image: str, file: str) -> None:
    if file.startswith("upload"):
        (folder / file).parent.mkdir(parents=True)
        (folder / "a.png").rename(folder / file)
    found = read(folder / "tasks.json", label_studio(image=image))
    assert [photo.path for photo in found.photos] == [folder / file]


def test_points_of_label_studio_find_their_object(folder: Path) -> None:
    inside = region("keypointlabels", "lamp", {"x": 55.0, "y": 25.0}, id="k2")
    other = region("rectanglelabels", "duck", {"x": 0, "y": 0, "width": 100, "height": 100}, id="r2")
    relation = {"type": "relation", "from_id": "k1", "to_id": "r1", "direction": "right"}
    found = objects(read(folder / "t.json", label_studio(CAR, other, inside, EYE, relation)))
    assert [(a.category, len(a.points[a.labelled])) for a in found] == [("car", 2), ("duck", 0)]
    (loose,) = objects(read(folder / "t.json", label_studio(EYE)))
    assert loose.points.tolist() == [[10, 20]]
    assert loose.box is None


def test_a_turned_rectangle_of_label_studio_gives_the_box_around_it(folder: Path) -> None:
    turned = region("rectanglelabels", "car", {"x": 50, "y": 25, "width": 20, "height": 10, "rotation": 90}, id="r")
    (found,) = objects(read(folder / "t.json", label_studio(turned)))
    np.testing.assert_allclose(found.box, [50 - 8, 20, 8, 20])


def test_cancelled_annotations_and_predictions_of_label_studio(folder: Path) -> None:
    cancelled = [{"was_cancelled": True, "result": [CAR]}]
    text = label_studio(annotations=cancelled, predictions=[{"result": [EYE], "score": 0.5}])
    assert [a.category for a in objects(read(folder / "t.json", text))] == ["object"]
    assert objects(read(folder / "t.json", label_studio(annotations=cancelled))) == []


def test_deeplabcut_as_its_own_gui_saves(folder: Path) -> None:
    made = folder / "labeled-data" / "video"
    make_photos(made)
    text = (
        "scorer,,,me,me,me,me\nbodyparts,,,snout,snout,tail,tail\ncoords,,,x,y,x,y\n"
        "labeled-data,video,a.png,10.5,20.25,,\nlabeled-data,video,ü.jpg,,,5,6\n"
    )
    found = read(made / "CollectedData_me.csv", text)
    assert [photo.path for photo in found.photos] == [made / "a.png", made / "ü.jpg"]
    assert found.categories[0].keypoints == ("snout", "tail")
    assert [a.visibility.tolist() for a in objects(found)] == [[2, 0], [0, 2]]
    one_cell = text.replace(",,,", ",").replace("labeled-data,video,", "labeled-data/video/")
    assert len(objects(read(made / "other.csv", one_cell))) == 2


def test_tps_of_tpsdig(folder: Path) -> None:
    text = (
        "LM=3\r\n10.00000 60.00000\r\n-1 -1\r\n99.5 0.5\r\nCURVES=1\r\nPOINTS=2\r\n1 2\r\n3 4\r\n"
        "IMAGE=C:\\Users\\me\\a.png\r\nID=0\r\nSCALE=0.001\r\nLM=0\r\nIMAGE=ü.jpg\r\nID=1\r\n"
    )
    notes: list[str] = []
    found = read(folder / "a.tps", text, notes=notes)
    (fish,) = objects(found)
    assert fish.points[0].tolist() == [10, 20]
    assert fish.points[2].tolist() == [99.5, 79.5]
    assert fish.visibility.tolist() == [2, 0, 2]
    assert len(found.photos) == 2
    assert "curves" in notes[0]


def test_coco_of_detectors(folder: Path) -> None:
    document = {
        "images": [{"id": "x", "file_name": "a.png"}],
        "categories": [{"id": 7, "name": "car"}],
        "annotations": [
            {"image_id": "x", "category_id": 7, "bbox": [1, 2, 3, 4], "segmentation": [[1, 1, 9, 1, 9, 9]]}
        ],
    }
    (found,) = objects(read(folder / "a.json", json.dumps(document)))
    assert found.box == (1, 2, 3, 4)
    assert found.polygons[0].tolist() == [[1, 1], [9, 1], [9, 9]]
    document["annotations"][0]["keypoints"] = [5, 6, 2, 0, 0, 0]  # type: ignore[index]
    annotations = read(folder / "a.json", json.dumps(document))
    assert annotations.categories[0].keypoints == ("1", "2")


def test_yolo_of_ultralytics(folder: Path) -> None:
    data = folder / "set"
    make_photos(data / "images" / "train")
    (data / "labels" / "train").mkdir(parents=True)
    (data / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.2 0.5 0.25 0.5 0 0\n")
    (data / "list.txt").write_text("./images/train/a.png\n./images/train/ü.jpg\n")
    text = "# comment\npath: .\ntrain: list.txt\nval:\nkpt_shape: [2, 2]\nflip_idx: [1, 0]\nnames: [duck]\n"
    found = read(data / "data.yaml", text)
    (duck,) = objects(found)
    assert duck.box == (40, 20, 20, 40)
    assert duck.points[0].tolist() == [25, 40]
    assert duck.visibility.tolist() == [2, 0]
    assert len(found.photos) == 2
    assert len(read(data / "data.yaml", text.replace("list.txt", "images/train")).photos) == len(SIZES)


@pytest.mark.parametrize("name", ["coco", "label-studio", "csv"])
def test_sizes_are_those_of_the_upright_photo(folder: Path, name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(folder / "a.png") as image:
        image.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif)
    annotations = full_annotations(folder)
    photo = annotations.photos[0]
    (folder / "a.png").unlink()
    (folder / "turned.jpg").rename(folder / "a.png")
    only = Annotations(annotations.categories, (photo,))
    path = folder / ("labels.csv" if name == "csv" else "labels.json")
    write_annotations(only, path, format=name)
    assert read_annotations(path).photos[0].size == (100, 80)
    text = path.read_text()
    swap = {"coco": ('"width": 100,\n   "height": 80', '"width": 80,\n   "height": 100')}
    swap["label-studio"] = (
        '"original_width": 100,\n      "original_height": 80',
        '"original_width": 80,\n      "original_height": 100',
    )
    swap["csv"] = ("a.png,100,80", "a.png,80,100")
    assert swap[name][0] in text
    path.write_text(text.replace(*swap[name]))
    with pytest.raises(InputError, match="made on the photo as it is stored"):
        read_annotations(path)


def coco(**values: Any) -> dict[str, str]:
    """A file with one annotation."""
    annotation = {"image_id": 1, "category_id": 1, **values}
    images = [{"id": 1, "file_name": "a.png"}]
    document = {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": [annotation]}
    return {"a.json": json.dumps(document)}


def yolo(line: str = "", settings: str = "") -> dict[str, str]:
    return {"set/data.yaml": f"train: images\nnames: [a]\n{settings}", "set/labels/a.txt": line}


BAD: dict[str, tuple[dict[str, str], str]] = {
    "turned in Label Studio": ({"t.json": label_studio({**EYE, "image_rotation": 90})}, "turned by 90 degrees"),
    "other size in Label Studio": ({"t.json": label_studio({**EYE, "original_width": 50})}, "for 50x80 pixels"),
    "two sizes in Label Studio": ({"t.json": label_studio(EYE, {**CAR, "original_width": 50})}, "different sizes"),
    "twice the same point": ({"t.json": label_studio(CAR, EYE, EYE)}, "two keypoints eye of the same car"),
    "percent of a million": ({"t.json": label_studio(region("keypointlabels", "a", {"x": 1e6, "y": 1}))}, "value.x"),
    "brush cut off": ({"t.json": label_studio(region("brushlabels", "a", {"rle": [0, 0]}))}, "brush mask"),
    "task of words": ({"t.json": '[{"data": "x"}]'}, "[0].data"),
    "box of words": (coco(bbox=["a", 1, 2, 3]), "its box is not made of numbers"),
    "box of three": (coco(bbox=[1, 2, 3]), "is not x, y, width, height"),
    "odd polygon": (coco(segmentation=[[1, 2, 3]]), "polygon are not pairs x, y"),
    "polygon of words": (coco(segmentation=[["a", "b"]]), "its polygon is not made of numbers"),
    "polygon of lists": (coco(segmentation=[[1, [2]]]), "its polygon is not made of numbers"),
    "runs of words": (coco(segmentation={"size": [80, 100], "counts": ["a"]}), "runs are not whole numbers"),
    "runs of parts": (coco(segmentation={"size": [80, 100], "counts": [8000.0]}), "runs are not whole numbers"),
    "mask of another size": (coco(segmentation={"size": [8, 8], "counts": [64]}), "mask of 8x8 pixels, but the photo"),
    "packed runs cut off": (coco(segmentation={"size": [80, 100], "counts": "o"}), "cut off"),
    "packed runs of other letters": (coco(segmentation={"size": [80, 100], "counts": "~~"}), "compressed runs"),
    "score of words": (coco(score="high"), "annotations[0].score"),
    "video of CVAT": ({"a.xml": "<annotations><track/></annotations>"}, "CVAT for video"),
    "turned box of CVAT": (
        {"a.xml": cvat('<box label="a" rotation="5" xtl="1" ytl="1" xbr="2" ybr="2"/>')},
        "turned box",
    ),
    "mask outside": (
        {"a.xml": cvat('<mask label="a" rle="4" left="99" top="0" width="2" height="2"/>')},
        "in the photo",
    ),
    "mask too long": (
        {"a.xml": cvat('<mask label="a" rle="0,9" left="0" top="0" width="2" height="2"/>')},
        "do not add up",
    ),
    "points of words": ({"a.xml": cvat('<points label="a" points="x,y"/>')}, "points 'x' is not a number"),
    "infinite box": (
        {"a.xml": cvat('<box label="a" xtl="inf" ytl="1" xbr="2" ybr="2"/>')},
        "xtl 'inf' is not a number",
    ),
    "no photo column": ({"a.csv": "image,x,y\n"}, "no column photo"),
    "row too long": ({"a.csv": "photo,keypoint,x,y\na.png,k,1,2,3\n"}, "row 2 has more cells"),
    "keypoint twice": ({"a.csv": "photo,keypoint,x,y\na.png,k,1,2\na.png,k,1,2\n"}, "two rows of the keypoint k"),
    "DeepLabCut predictions": (
        {"a.csv": "scorer,a,a,a\nbodyparts,k,k,k\ncoords,x,y,likelihood\n"},
        "x, y for each body part",
    ),
    "TPS in three dimensions": ({"a.tps": "LM3=1\n1 2 3\nIMAGE=a.png\n"}, "three dimensions"),
    "TPS too short": ({"a.tps": "LM=3\n1 2\nIMAGE=a.png\n"}, "1 landmarks where 3 were announced"),
    "TPS of billions": ({"a.tps": "LM=9999999999\nIMAGE=a.png\n"}, "is not a count"),
    "no TPS": ({"a.tps": "hello\n"}, "before the first LM="),
    "YOLO without names": ({"set/data.yaml": "train: images\n"}, "has no names"),
    "YOLO leads out": ({"set/data.yaml": "train: ../images\nnames: [a]\n"}, "leads out of"),
    "YOLO of another shape": (yolo("0 0.5 0.5 1 1 0.1\n"), "6 values, not 5"),
    "YOLO of another class": (yolo("3 0.5 0.5 1 1\n"), "there is no class 3"),
    "YOLO of many keypoints": (yolo(settings="kpt_shape: [1000000000, 3]\n"), "so many keypoints"),
    "YOLO of objects": (yolo(settings="x: !!python/object/apply:os.system [ls]\n"), "is not YAML"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(folder: Path, case: str) -> None:
    texts, message = BAD[case]
    make_photos(folder / "set" / "images")
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with pytest.raises(InputError) as caught:
        read_annotations(folder / next(iter(texts)))
    assert message in str(caught.value)
    assert str(folder) in str(caught.value), "it names the file"
