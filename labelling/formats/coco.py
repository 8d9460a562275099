"""COCO annotations in JSON: keypoints with skeletons, boxes, polygons and run-length masks of several categories.

Two keys are added that other readers pass over: ``keypoint_probabilities`` and, as in COCO's results, ``score``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cats.core.errors import InputError
from cats.core.files import write_text
from cats.core.geometry import Size
from cats.labelling.annotations import AnnotatedPhoto, Annotation, Annotations, Category, Mask
from cats.labelling.formats.common import (
    PhotoFolder,
    box_or_extent,
    check_schema,
    name_of,
    naming,
    polygon_area,
    read_json,
    which_boxes_are_made,
)


def read(path: Path, root: Path, notes: list[str]) -> Annotations:
    """Read a file; see :func:`cats.labelling.formats.read_annotations`."""
    return parse(read_json(path), root)


def parse(document: Any, root: Path) -> Annotations:
    """Annotations out of a COCO document; raises :class:`InputError` for what is none."""
    check_schema(document, "coco")
    categories = {entry["id"]: _category(entry, document["annotations"]) for entry in document["categories"]}
    if len(categories) < len(document["categories"]):
        raise InputError("two categories have the same id")
    found: dict[Any, list[Any]] = {image["id"]: [] for image in document["images"]}
    if len(found) < len(document["images"]):
        raise InputError("two images have the same id")
    for number, entry in enumerate(document["annotations"]):
        for key, known in (("image_id", found), ("category_id", categories)):
            if entry[key] not in known:
                raise InputError(f"annotations[{number}]: there is no {key[:-3]} {entry[key]!r}")
        found[entry["image_id"]].append(entry)
    folder = PhotoFolder(root)
    photos = []
    for image in document["images"]:
        file = folder.find(image["file_name"])
        said = (image["width"], image["height"]) if "width" in image and "height" in image else None
        size = folder.measure(file, said)
        annotations: list[Annotation] = []
        for entry in found[image["id"]]:
            with naming(f"{image['file_name']}, annotation {entry.get('id', len(annotations) + 1)}"):
                annotations.append(_annotation(entry, categories[entry["category_id"]], size))
        photos.append(AnnotatedPhoto(file, size, tuple(annotations)))
    return Annotations(tuple(categories.values()), tuple(photos))


def write(annotations: Annotations, path: Path, root: Path) -> list[str]:
    """Write a file; see :func:`cats.labelling.formats.write_annotations`."""
    document, notes = build(annotations, root)
    write_text(path, json.dumps(document, allow_nan=False, ensure_ascii=False, indent=1) + "\n")
    return notes


def build(annotations: Annotations, root: Path) -> tuple[dict[str, Any], list[str]]:
    """The COCO document of annotations, and what it does not hold of them."""
    ids = {category.name: number for number, category in enumerate(annotations.categories, start=1)}
    images: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    for number, photo in enumerate(annotations.photos, start=1):
        width, height = photo.size
        images.append({"id": number, "file_name": name_of(photo.path, root), "width": width, "height": height})
        for annotation in photo.annotations:
            head = {"id": len(entries) + 1, "image_id": number, "category_id": ids[annotation.category]}
            entries.append({**head, **_entry(annotation)})
    document = {
        "info": {"description": "made by cats label", "version": "1.0"},
        "licenses": [],
        "images": images,
        "annotations": entries,
        "categories": [
            {
                "id": ids[category.name],
                "name": category.name,
                "supercategory": category.name,
                "keypoints": list(category.keypoints),
                "skeleton": [[a + 1, b + 1] for a, b in category.skeleton],
            }
            for category in annotations.categories
        ],
    }
    objects = [annotation for _, annotation in annotations.objects()]
    notes = []
    if any(annotation.polygons and annotation.mask is not None for annotation in objects):
        notes.append("holds one outline of an object: the mask is written, the polygons are not")
    notes += which_boxes_are_made(annotations)
    return document, notes


def _category(entry: dict[str, Any], annotations: list[dict[str, Any]]) -> Category:
    names = tuple(entry.get("keypoints", ()))
    if not names:  # detection files have none, and some tools leave the names out
        of_it = (item.get("keypoints", ()) for item in annotations if item["category_id"] == entry["id"])
        names = tuple(str(number) for number in range(1, max((len(item) // 3 for item in of_it), default=0) + 1))
    skeleton = tuple((int(a) - 1, int(b) - 1) for a, b in entry.get("skeleton", ()))
    return Category(entry["name"], names, skeleton)


def _annotation(entry: dict[str, Any], category: Category, size: Size) -> Annotation:
    values = entry.get("keypoints") or [0] * (3 * len(category.keypoints))
    if len(values) != 3 * len(category.keypoints):
        expected = len(category.keypoints)
        raise InputError(f"{len(values)} numbers of keypoints, not x, y, v for the {expected} of {category.name}")
    try:
        table = np.array(values, np.float64).reshape(-1, 3)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError("its keypoints are not numbers") from error
    points = np.where(table[:, 2:] > 0, table[:, :2], np.nan)
    outline = entry.get("segmentation")
    return Annotation(
        category.name,
        points,
        table[:, 2],
        box=entry.get("bbox") or None,
        polygons=tuple(outline) if isinstance(outline, list) else (),
        mask=_mask(outline, size) if isinstance(outline, dict) else None,
        probability=entry.get("keypoint_probabilities"),
        score=entry.get("score"),
    )


def _entry(annotation: Annotation) -> dict[str, Any]:
    labelled = annotation.labelled
    points = np.where(labelled[:, None], annotation.points, 0)
    box = box_or_extent(annotation)
    entry: dict[str, Any] = {
        "keypoints": [
            value
            for (x, y), v in zip(points.tolist(), annotation.visibility.tolist(), strict=True)
            for value in (x, y, v)
        ],
        "num_keypoints": int(labelled.sum()),
        "bbox": list(box),
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": [polygon.ravel().tolist() for polygon in annotation.polygons],
    }
    if annotation.polygons:
        entry["area"] = sum(polygon_area(polygon) for polygon in annotation.polygons)
    if annotation.mask is not None:
        entry["area"] = annotation.mask.area
        width, height = annotation.mask.size
        entry["segmentation"] = {"size": [height, width], "counts": list(annotation.mask.counts)}
    if annotation.probability is not None:
        entry["keypoint_probabilities"] = annotation.probability.tolist()
    if annotation.score is not None:
        entry["score"] = annotation.score
    return entry


def _mask(outline: dict[str, Any], size: Size) -> Mask:
    height, width = outline["size"]
    if (width, height) != size:
        raise InputError(f"a mask of {width}x{height} pixels, but the photo has {size[0]}x{size[1]}")
    counts = outline["counts"]
    return Mask(size, tuple(_unpack(counts) if isinstance(counts, str) else counts))


def _unpack(text: str) -> list[int]:
    """Runs out of COCO's compressed text: five bits and a sign of continuation a character, from the third run on as
    differences to the run before the last (``rleFrString`` of pycocotools' maskApi.c)."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise InputError("a mask whose counts are not COCO's compressed runs")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise InputError("a mask whose compressed runs are cut off")
    return runs
