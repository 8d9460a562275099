"""A plain table: one row for each keypoint of each object in each photo.

Columns, of which only ``photo`` must be there: ``photo``, ``width``, ``height`` (pixels), ``object`` (number in the
photo), ``category``, ``score``, ``box_x``, ``box_y``, ``box_width``, ``box_height``, ``keypoint`` (name), ``x``, ``y``,
``visibility`` (0, 1, 2), ``probability``. An object without keypoints has one row without a keypoint, a photo without
objects one row with nothing but the photo.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cats.core.errors import InputError
from cats.core.files import write_text
from cats.core.geometry import Size
from cats.labelling.annotations import VISIBLE, AnnotatedPhoto, Annotation, Annotations, Box, Category
from cats.labelling.formats.common import (
    UNNAMED,
    PhotoFolder,
    name_of,
    naming,
    number,
    place_points,
    read_rows,
    what_is_lost,
    write_rows,
)

_BOX = ("box_x", "box_y", "box_width", "box_height")
COLUMNS: tuple[str, ...] = ("photo", "width", "height", "object", "category", "score", *_BOX)
COLUMNS += ("keypoint", "x", "y", "visibility", "probability")

_Row = dict[str, str]


def read(path: Path, root: Path, notes: list[str]) -> Annotations:
    """Read a file; see :func:`cats.labelling.formats.read_annotations`."""
    rows = read_rows(path)
    if not rows or "photo" not in rows[0]:
        raise InputError(f"no column photo; the columns are {', '.join(COLUMNS)}")
    header = rows[0]
    if len(set(header)) < len(header):
        raise InputError("two columns have the same name")
    unknown = [name for name in header if name not in COLUMNS]
    if unknown:
        notes.append(f"left aside the columns {', '.join(unknown)}")
    photos: dict[str, dict[tuple[str, str], list[_Row]]] = {}
    keypoints: dict[str, dict[str, None]] = {}
    for line, cells in enumerate(rows[1:], start=2):
        if len(cells) > len(header):
            raise InputError(f"row {line} has more cells than there are columns")
        row = dict(zip(header, cells, strict=False))
        objects = photos.setdefault(row.get("photo", ""), {})
        if not any(row.get(name) for name in ("object", "category", "keypoint", *_BOX)):
            continue  # a photo without objects
        category = row.get("category") or UNNAMED
        names = keypoints.setdefault(category, {})
        if row.get("keypoint"):
            names[row["keypoint"]] = None
        objects.setdefault((row.get("object", ""), category), []).append(row)
    folder = PhotoFolder(root)
    categories = tuple(Category(name, tuple(names)) for name, names in keypoints.items())
    found = []
    for name, objects in photos.items():
        file = folder.find(name)
        first = next((rows[0] for rows in objects.values()), {})
        with naming(name):
            size = folder.measure(file, _size(first))
            for (number_, category), of in objects.items():
                _check_rows(number_ or "1", category, keypoints[category], of)
            annotations = [
                _annotation(category, tuple(keypoints[category]), of) for (_, category), of in objects.items()
            ]
        found.append(AnnotatedPhoto(file, size, tuple(annotations)))
    return Annotations(categories, tuple(found))


def write(annotations: Annotations, path: Path, root: Path) -> list[str]:
    """Write a file; see :func:`cats.labelling.formats.write_annotations`."""
    rows: list[list[object]] = [list(COLUMNS)]
    for photo in annotations.photos:
        head = [name_of(photo.path, root), *photo.size]
        if not photo.annotations:
            rows.append(head)
        for index, annotation in enumerate(photo.annotations, start=1):
            box = list(annotation.box) if annotation.box is not None else [None] * 4
            start = [*head, index, annotation.category, annotation.score, *box]
            names = annotations.category(annotation.category).keypoints
            rows += [start + _cells(annotation, names, k) for k in range(len(names))] or [start]
    write_text(path, write_rows(rows))
    lost = what_is_lost(annotations, "keypoint names", "hidden points", "boxes", "probabilities", "scores")
    used = {annotation.category for _, annotation in annotations.objects()}
    unused = [category.name for category in annotations.categories if category.name not in used]
    return lost + ([f"cannot hold categories without objects: {', '.join(unused)}"] if unused else [])


def _cells(annotation: Annotation, names: tuple[str, ...], k: int) -> list[object]:
    x, y = annotation.points[k].tolist() if annotation.labelled[k] else (None, None)
    probability = None if annotation.probability is None else float(annotation.probability[k])
    return [names[k], x, y, int(annotation.visibility[k]), probability]


def _size(row: _Row) -> Size | None:
    width, height = (row.get(name) for name in ("width", "height"))
    return (int(number(width, "width")), int(number(height, "height"))) if width and height else None


def _annotation(category: str, names: tuple[str, ...], rows: list[_Row]) -> Annotation:
    found: dict[str, tuple[float, float, int]] = {}
    sure: dict[str, float] = {}
    for row in rows:
        name = row.get("keypoint")
        if not name:
            continue
        if name in found:
            raise InputError(f"object {row.get('object') or 1} has two rows of the keypoint {name}")
        if row.get("x") or row.get("y"):
            visibility = number(row.get("visibility") or VISIBLE, "visibility")
            found[name] = (number(row.get("x"), "x"), number(row.get("y"), "y"), int(visibility))
        if row.get("probability"):
            sure[name] = number(row["probability"], "probability")
    score = rows[0].get("score")
    return Annotation(
        category,
        **place_points(names, found),
        box=_box(rows[0]),
        probability=np.array([sure.get(name, 0.0) for name in names]) if sure else None,
        score=number(score, "score") if score else None,
    )


def _check_rows(number_: str, category: str, names: Iterable[str], rows: list[_Row]) -> None:
    """An object has a row of every keypoint or of none: with other names it is labelled for something else."""
    listed = {row["keypoint"] for row in rows if row.get("keypoint")}
    missing = [name for name in names if name not in listed]
    if listed and missing:
        raise InputError(
            f"object {number_} ({category}) has no row of the keypoint {missing[0]}, which others have; "
            "where it cannot be seen, x and y are empty"
        )


def _box(row: _Row) -> Box | None:
    if not any(row.get(name) for name in _BOX):
        return None
    x, y, width, height = (number(row.get(name), name) for name in _BOX)
    return (x, y, width, height)
