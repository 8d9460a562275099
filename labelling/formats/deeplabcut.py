"""DeepLabCut's table of labelled frames, ``CollectedData_SCORER.csv``.

Header rows ``scorer``, ``bodyparts``, ``coords``, with ``individuals`` before the body parts where photos show several
objects; a photo is named in one cell or in three (``labeled-data``, folder, file). An individual ``NAME_2`` is the
second object of the category ``NAME`` in its photo.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from cats.core.errors import InputError
from cats.core.files import write_text
from cats.labelling.annotations import VISIBLE, AnnotatedPhoto, Annotation, Annotations, Category
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

_SCORER = "cats"
_HEADS = ("scorer", "individuals", "bodyparts", "coords")
_INDIVIDUAL = re.compile(r"(.+?)_?(\d+)")


def read(path: Path, root: Path, notes: list[str]) -> Annotations:
    """Read a file; see :func:`cats.labelling.formats.read_annotations`.

    Names begin at the project where the file lies in one (``labeled-data/FOLDER/``), else at ``root``.
    """
    rows = read_rows(path)
    heads = {row[0].lower(): row for row in rows[:4] if row and row[0].lower() in _HEADS}
    if not {"scorer", "bodyparts", "coords"} <= set(heads):
        raise InputError("its first rows are not scorer, bodyparts and coords: not a table of DeepLabCut")
    coords = heads["coords"]
    first = next((index for index, cell in enumerate(coords) if cell == "x"), len(coords))
    columns = range(first, len(coords) - 1, 2)
    if coords[first:] != ["x", "y"] * len(columns) or len(heads["bodyparts"]) != len(coords):
        raise InputError("the row coords is not x, y for each body part (tables of predictions have a likelihood more)")
    individuals = heads.get("individuals", [UNNAMED] * len(coords))
    if len(individuals) != len(coords):
        raise InputError("the rows individuals and coords have not the same length")
    table: dict[str, dict[str, dict[str, tuple[float, float, int]]]] = {}
    for line, row in enumerate(rows[len(heads) :], start=len(heads) + 1):
        with naming(f"row {line}"):
            objects = table.setdefault("/".join(cell for cell in row[:first] if cell), {})
            for column in columns:
                x, y = (row[column + axis] if column + axis < len(row) else "" for axis in (0, 1))
                if _missing(x) or _missing(y):
                    continue
                place = (number(x, "x"), number(y, "y"), VISIBLE)
                objects.setdefault(individuals[column], {})[heads["bodyparts"][column]] = place
    parts = list(dict.fromkeys(heads["bodyparts"][column] for column in columns))
    kinds = {name: _kind(name) if "individuals" in heads else name for name in dict.fromkeys(individuals[first:])}
    used: dict[str, set[str]] = {kind: set() for kind in kinds.values()}
    for objects in table.values():
        for name, found in objects.items():
            used[kinds[name]] |= set(found)
    one = len(used) == 1
    categories = {kind: Category(kind, tuple(p for p in parts if one or p in used[kind])) for kind in used}
    folder = PhotoFolder(_project(path, root, table))
    photos = []
    for name, objects in table.items():
        file = folder.find(name)
        annotations = [
            Annotation(kinds[individual], **place_points(categories[kinds[individual]].keypoints, found))
            for individual, found in objects.items()
        ]
        photos.append(AnnotatedPhoto(file, folder.measure(file), tuple(annotations)))
    return Annotations(tuple(categories.values()), tuple(photos))


def write(annotations: Annotations, path: Path, root: Path) -> list[str]:
    """Write a file; see :func:`cats.labelling.formats.write_annotations`."""
    single = len(annotations.categories) == 1 and all(len(photo.annotations) < 2 for photo in annotations.photos)
    parts = list(dict.fromkeys(name for category in annotations.categories for name in category.keypoints))
    counts = {category.name: 0 for category in annotations.categories}
    numbered: list[dict[str, Annotation]] = []
    for photo in annotations.photos:
        objects: dict[str, Annotation] = {}
        for annotation in photo.annotations:
            index = 1 + sum(other.category == annotation.category for other in objects.values())
            objects[f"{annotation.category}_{index}"] = annotation
            counts[annotation.category] = max(counts[annotation.category], index)
        numbered.append(objects)
    individuals = [f"{name}_{index}" for name, count in counts.items() for index in range(1, max(count, 1) + 1)]
    columns = [(individual, part) for individual in individuals for part in parts]
    rows: list[list[object]] = [["scorer", *[_SCORER] * (2 * len(columns))]]
    if not single:
        rows.append(["individuals", *(individual for individual, _ in columns for _ in "xy")])
    rows.append(["bodyparts", *(part for _, part in columns for _ in "xy")])
    rows.append(["coords", *["x", "y"] * len(columns)])
    for photo, objects in zip(annotations.photos, numbered, strict=True):
        row: list[object] = [name_of(photo.path, root)]
        for individual, part in columns:
            found = objects.get(individual)
            names = annotations.category(found.category).keypoints if found is not None else ()
            known = found is not None and part in names and found.labelled[names.index(part)]
            row += found.points[names.index(part)].tolist() if known and found is not None else [None, None]
        rows.append(row)
    write_text(path, write_rows(rows))
    notes = what_is_lost(annotations, "keypoint names")
    if single and annotations.categories[0].name != UNNAMED:
        notes.append(f"cannot hold the name of the one category, {annotations.categories[0].name}")
    if any(not annotation.labelled.any() for _, annotation in annotations.objects()):
        notes.append("cannot hold objects without labelled keypoints")
    return notes


def _kind(individual: str) -> str:
    found = _INDIVIDUAL.fullmatch(individual)
    return found[1] if found else individual


def _missing(cell: str) -> bool:
    return cell.strip().lower() in ("", "nan")


def _project(path: Path, root: Path, names: Iterable[str]) -> Path:
    """The folder of a DeepLabCut project whose ``labeled-data/FOLDER`` holds the file, else ``root``."""
    folder = path.absolute().parent
    in_project = folder.parent.name == "labeled-data" and all(name.startswith("labeled-data/") for name in names)
    return folder.parent.parent if in_project and root == path.parent else root
