"""Label Studio tasks in JSON: regions in percent of the upright photo, the points of an object below its rectangle.

The parts of an object are tied together as Label Studio's own YOLO converter reads them, by ``parentID`` (relations are
read too). Keypoints without a place are not written; their names, their order and the bones stand in each task's
``meta``, which Label Studio keeps. A hidden point carries the text ``hidden``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np

from cats.core.errors import InputError
from cats.core.files import write_text
from cats.core.geometry import Floats, Size
from cats.labelling.annotations import HIDDEN, VISIBLE, AnnotatedPhoto, Annotation, Annotations, Box, Category, Mask
from cats.labelling.formats import brush
from cats.labelling.formats.common import (
    UNNAMED,
    PhotoFolder,
    box_or_extent,
    check_schema,
    corners_box,
    name_of,
    naming,
    place_points,
    read_json,
    what_is_lost,
    which_boxes_are_made,
)

_LOCAL = "/data/local-files/"
_UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)")
_HIDDEN = "hidden"

_Region = dict[str, Any]


def read(path: Path, root: Path, notes: list[str]) -> Annotations:
    """Read a file; see :func:`cats.labelling.formats.read_annotations`."""
    return parse(read_json(path), root, notes)


def parse(document: Any, root: Path, notes: list[str]) -> Annotations:
    """Annotations out of a list of tasks; raises :class:`InputError` for what is none."""
    check_schema(document, "label_studio")
    folder = PhotoFolder(root)
    categories: dict[str, Category] = {}
    tasks = []
    aside: set[str] = set()
    for number, task in enumerate(document, start=1):
        for entry in (task.get("meta") or {}).get("categories", ()):
            bones = tuple((a, b) for a, b in entry["skeleton"])
            categories.setdefault(entry["name"], Category(entry["name"], tuple(entry["keypoints"]), bones))
        with naming(f"task {task.get('id', number)}"):
            file = find_photo(task["data"], folder)
            regions = _regions(task)
            size = folder.measure(file, _said(regions))
            tasks.append((file, size, _objects(regions, size, aside)))
    names: dict[str, dict[str, None]] = {name: dict.fromkeys(c.keypoints) for name, c in categories.items()}
    for _, _, objects in tasks:
        for found in objects:
            names.setdefault(found.category, {}).update(dict.fromkeys(found.points))
    for name, keypoints in names.items():
        bones = categories[name].skeleton if name in categories else ()
        categories[name] = Category(name, tuple(keypoints), bones)
    if aside:
        notes.append(f"left aside regions of the types {', '.join(sorted(aside))}")
    photos = [
        AnnotatedPhoto(file, size, tuple(found.finish(categories[found.category].keypoints) for found in objects))
        for file, size, objects in tasks
    ]
    return Annotations(tuple(categories.values()), tuple(photos))


def write(annotations: Annotations, path: Path, root: Path) -> list[str]:
    """Write a file; see :func:`cats.labelling.formats.write_annotations`."""
    categories = describe_categories(annotations.categories)
    tasks = []
    for number, photo in enumerate(annotations.photos, start=1):
        regions = [
            region
            for index, a in enumerate(photo.annotations)
            for region in build_regions(a, photo.size, annotations.category(a.category), f"{number}-{index + 1}")
        ]
        tasks.append(
            {
                "id": number,
                "data": {"image": f"{_LOCAL}?d={quote(name_of(photo.path, root))}"},
                "meta": {"categories": categories},
                "annotations": [{"id": number, "was_cancelled": False, "result": regions}],
            }
        )
    write_text(path, json.dumps(tasks, allow_nan=False, ensure_ascii=False, indent=1) + "\n")
    holds = ("keypoint names", "hidden points", "bones", "boxes", "outlines", "masks", "probabilities", "scores")
    notes = what_is_lost(annotations, *holds)
    notes += which_boxes_are_made(annotations)
    return notes


def describe_categories(categories: tuple[Category, ...]) -> list[dict[str, Any]]:
    """Names, keypoints and bones for a task's ``meta``."""
    return [
        {"name": c.name, "keypoints": list(c.keypoints), "skeleton": [list(bone) for bone in c.skeleton]}
        for c in categories
    ]


def build_regions(annotation: Annotation, size: Size, category: Category, identity: str) -> list[_Region]:
    """The regions of one object, its rectangle first; ``identity`` begins their ids."""
    percent = 100 / np.asarray(size, np.float64)
    head = {"original_width": size[0], "original_height": size[1], "image_rotation": 0, "to_name": "image"}

    def region(kind: str, name: str, label: str, value: dict[str, Any], **more: Any) -> _Region:
        value = {**value, kind: [label]}
        return {**head, "id": f"{identity}-{name}", "type": kind, "from_name": kind[:-6], "value": value, **more}

    x, y, width, height = box_or_extent(annotation)
    corner, sides = percent * (x, y), percent * (width, height)
    place = {"x": corner[0], "y": corner[1], "width": sides[0], "height": sides[1], "rotation": 0}
    score = {} if annotation.score is None else {"score": annotation.score}
    regions = [region("rectanglelabels", "box", annotation.category, _plain(place), **score)]
    parent = {"parentID": f"{identity}-box"}
    for k, name in enumerate(category.keypoints):
        if not annotation.labelled[k]:
            continue
        at = percent * annotation.points[k]
        more: dict[str, Any] = dict(parent)
        if annotation.visibility[k] == HIDDEN:
            more["meta"] = {"text": [_HIDDEN]}
        if annotation.probability is not None:
            more["score"] = float(annotation.probability[k])
        regions.append(
            region("keypointlabels", f"{k + 1}", name, _plain({"x": at[0], "y": at[1], "width": 0.5}), **more)
        )
    for number, polygon in enumerate(annotation.polygons, start=1):
        points = {"points": (percent * polygon).tolist(), "closed": True}
        regions.append(region("polygonlabels", f"outline-{number}", annotation.category, points, **parent))
    if annotation.mask is not None:
        packed = {"format": "rle", "rle": brush.pack(annotation.mask)}
        regions.append(region("brushlabels", "mask", annotation.category, packed, **parent))
    return regions


def label_config(categories: tuple[Category, ...]) -> str:
    """The labelling interface of a Label Studio project for these categories, as XML."""
    keypoints = list(dict.fromkeys(name for category in categories for name in category.keypoints))
    kinds = {
        "Rectangle": [category.name for category in categories],
        "KeyPoint": keypoints,
        "Polygon": [category.name for category in categories],
        "Brush": [category.name for category in categories],
    }
    lines = ["<View>", '  <Image name="image" value="$image"/>']
    for kind, labels in kinds.items():
        if not labels:
            continue
        lines.append(f'  <{kind}Labels name="{kind.lower()}" toName="image">')
        for index, label in enumerate(labels):
            order = f' model_index="{index}"' if kind == "KeyPoint" else ""
            lines.append(f"    <Label value={quoteattr(label)}{order}/>")
        lines.append(f"  </{kind}Labels>")
    return "\n".join([*lines, "</View>", ""])


class _Object:
    """One object while its regions are read."""

    def __init__(self, category: str, box: Box | None = None, score: float | None = None) -> None:
        self.category, self.box, self.score = category, box, score
        self.points: dict[str, tuple[float, float, int]] = {}
        self.sure: dict[str, float] = {}
        self.polygons: list[Floats] = []
        self.mask: Mask | None = None

    def finish(self, names: tuple[str, ...]) -> Annotation:
        probability = np.array([self.sure.get(name, 0.0) for name in names]) if self.sure else None
        placed = place_points(names, self.points)
        return Annotation(
            self.category, **placed, box=self.box, polygons=tuple(self.polygons), mask=self.mask,
            probability=probability, score=self.score,
        )  # fmt: skip


def find_photo(data: dict[str, Any], folder: PhotoFolder) -> Path:
    """The photo of a task, whose name is a URL of Label Studio's, a name in a bucket, or a plain one.

    Raises:
        InputError: the task names none, or one that is not in the folder.
    """
    texts = [value for value in data.values() if isinstance(value, str)]
    with_suffix = [text for text in texts if PurePosixPath(unquote(text)).suffix]
    text = data["image"] if isinstance(data.get("image"), str) else next(iter(with_suffix or texts), "")
    fault: InputError | None = None
    for name in _names(text):
        try:
            return folder.find(name)
        except InputError as error:
            fault = fault or error
    raise fault or InputError("the task names no photo")


def _names(text: str) -> Iterator[str]:
    """Names that a task's image may have below the root, the likeliest first."""
    url = urlsplit(text)
    if url.path.endswith("local-files/") and (inside := parse_qs(url.query).get("d")):
        yield inside[0].lstrip("/")
    elif (url.scheme and url.netloc) or url.path.startswith("/data/upload/"):
        name = PurePosixPath(unquote(url.path)).name
        yield name
        yield unquote(url.path).lstrip("/").removeprefix("data/")  # in Label Studio's media folder, or in the bucket
        if found := _UPLOAD.fullmatch(name):
            yield found[1]
    else:
        yield text
        yield unquote(text)


def _regions(task: dict[str, Any]) -> list[_Region]:
    """What the last annotation says that was not cancelled, else the last prediction."""
    kept = [entry for entry in task.get("annotations", ()) if not entry.get("was_cancelled")]
    chosen = kept or task.get("predictions", ())
    regions: list[_Region] = chosen[-1]["result"] if chosen else []
    turned = next((region["image_rotation"] for region in regions if region.get("image_rotation")), 0)
    if turned:
        raise InputError(f"the photo was turned by {turned:g} degrees in Label Studio: turn the file instead")
    return regions


def _said(regions: list[_Region]) -> Size | None:
    sizes = {
        (r["original_width"], r["original_height"]) for r in regions if "original_width" in r and "original_height" in r
    }
    if len(sizes) > 1:
        raise InputError(f"regions of photos of different sizes: {sorted(sizes)}")
    return next(iter(sizes), None)


def _objects(regions: list[_Region], size: Size, aside: set[str]) -> list[_Object]:
    """The objects of a photo: each rectangle is one, and so is what belongs to none."""
    scale = np.asarray(size, np.float64) / 100
    parents: dict[str, str] = {}
    for region in regions:
        if region["type"] == "relation" and "from_id" in region and "to_id" in region:
            parents[region["from_id"]] = region["to_id"]
    objects: dict[str, _Object] = {}
    for number, region in enumerate(regions):
        if region["type"] == "rectanglelabels":
            box = _rectangle(region["value"], scale)
            category = _label(region) or UNNAMED
            objects[region.get("id", f"#{number}")] = _Object(category, box, region.get("score"))
    rectangles = list(objects.values())
    for number, region in enumerate(regions):
        kind, value = region["type"], region.get("value", {})
        if kind in ("relation", "rectanglelabels"):
            continue
        if kind not in ("keypointlabels", "polygonlabels", "brushlabels"):
            aside.add(kind)
            continue
        place = scale * (value["x"], value["y"]) if kind == "keypointlabels" and {"x", "y"} <= set(value) else None
        if kind == "keypointlabels" and place is None:
            raise InputError("a keypoint without x and y")
        parent = region.get("parentID") or parents.get(region.get("id", ""))
        owner = objects.get(parent or "") or _around(rectangles, place)
        if owner is None:
            key = UNNAMED if kind == "keypointlabels" else f"#{number}"
            owner = objects.setdefault(key, _Object(UNNAMED if kind == "keypointlabels" else _label(region) or UNNAMED))
        if place is not None:
            _add_point(owner, region, place)
        elif kind == "polygonlabels":
            owner.polygons.append(scale * np.array(value.get("points", []), np.float64).reshape(-1, 2))
        else:
            owner.mask = brush.unpack(value.get("rle", []), size)
    return list(objects.values())


def _add_point(owner: _Object, region: _Region, place: Floats) -> None:
    name = _label(region)
    if not name:
        raise InputError("a keypoint without a label")
    if name in owner.points:
        raise InputError(f"two keypoints {name} of the same {owner.category}: tie points to rectangles (regions)")
    text = region.get("meta", {}).get("text", ())
    hidden = _HIDDEN in ([text] if isinstance(text, str) else text)
    owner.points[name] = (float(place[0]), float(place[1]), HIDDEN if hidden else VISIBLE)
    if region.get("score") is not None:
        owner.sure[name] = region["score"]


def _around(rectangles: list[_Object], place: Floats | None) -> _Object | None:
    """The rectangle that a loose region belongs to: the only one, or the smallest around a point."""
    if len(rectangles) == 1:
        return rectangles[0]
    if place is None:
        return None
    boxes = [(found.box, found) for found in rectangles if found.box is not None]
    inside = [
        (box[2] * box[3], index)
        for index, (box, _) in enumerate(boxes)
        if box[0] <= place[0] <= box[0] + box[2] and box[1] <= place[1] <= box[1] + box[3]
    ]
    return boxes[min(inside)[1]][1] if inside else None


def _rectangle(value: dict[str, Any], scale: Floats) -> Box:
    """The upright box around a rectangle that may be turned about its upper left corner."""
    if not {"x", "y", "width", "height"} <= set(value):
        raise InputError("a rectangle without x, y, width and height")
    corner = scale * (value["x"], value["y"])
    width, height = (scale * (value["width"], value["height"])).tolist()
    angle = math.radians(value.get("rotation", 0))
    if not angle:
        return (float(corner[0]), float(corner[1]), width, height)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    corners = corner + np.array([[0, 0], [width, 0], [width, height], [0, height]]) @ turn.T
    low, high = corners.min(axis=0), corners.max(axis=0)
    return corners_box(*low.tolist(), *high.tolist())


def _label(region: _Region) -> str:
    labels = region.get("value", {}).get(region["type"], ())
    return labels[0] if labels else ""


def _plain(values: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items()}
