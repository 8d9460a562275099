"""What ``cats label`` is given: checked references, and photos with the category that their folder or a table names."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cats.core.errors import InputError
from cats.core.photos import list_photos
from cats.labelling.annotations import AnnotatedPhoto, Annotation, Annotations
from cats.labelling.formats.common import naming, read_rows, read_text

_LISTS = (".txt",)


@dataclass
class Gathered:
    """Photos to be labelled.

    Attributes:
        photos: (file, category), the category None where neither a table nor a folder says it.
        labelled: photos that are references themselves, with the labels they have.
        skipped: other files in the folders.
        by_table, by_folder: how many have their category from there.
    """

    photos: list[tuple[Path, str | None]] = field(default_factory=list)
    labelled: list[AnnotatedPhoto] = field(default_factory=list)
    skipped: int = 0
    by_table: int = 0
    by_folder: int = 0


def check_references(references: Annotations, source: Path) -> Annotations:
    """References that can be used: photos with objects; points on the very border moved inside.

    Raises:
        InputError: no object, an object that labels nothing, or two objects of a category without a keypoint in common.
    """
    photos = [_inside(photo) for photo in references.photos if photo.annotations]
    if not photos:
        raise InputError(f"{source}: no photo in it has labels, so there is nothing to carry to others")
    for photo in photos:
        for number, annotation in enumerate(photo.annotations, start=1):
            where = f"{source}: {photo.path}, object {number} ({annotation.category})"
            if references.category(annotation.category).keypoints and not annotation.labelled.any():
                raise InputError(f"{where} is a reference without points: label one, or take the object out")
            if annotation.extent() is None:
                raise InputError(f"{where} has neither points nor a box nor an outline")
    for category in references.categories:
        _check_common(Annotations(references.categories, tuple(photos)), category.name, source)
    return Annotations(references.categories, tuple(photos))


def gather_photos(given: Sequence[Path], references: Annotations, table: Path | None = None) -> Gathered:
    """Find the photos that are to be labelled, and what is said about their categories.

    Args:
        given: folders (searched recursively), photos, and lists of photos: ``.txt`` with a name a line, relative to it.
        references: their categories are the ones there are; their photos are not labelled again.
        table: CSV with the columns ``photo`` and ``category``, names relative to it.

    Raises:
        InputError: nothing there, no photo at all, or a table that names other photos or categories.
    """
    result = Gathered()
    found: dict[Path, Path | None] = {}
    for place in given:
        if place.is_dir():
            photos, skipped = list_photos(place)
            result.skipped += skipped
            found.update(dict.fromkeys(photos, place))
        elif place.suffix.lower() in _LISTS:
            found.update(dict.fromkeys(_listed(place)))
        elif place.exists():
            found[place] = None
        else:
            raise InputError(f"{place} does not exist: give folders, photos or lists of photos")
    if not found:
        raise InputError(f"no photo in {', '.join(map(str, given))} ({result.skipped} other files)")
    names = {
        category.name for category in references.categories if any(True for _ in references.objects(category.name))
    }
    said = _read_table(table, names) if table is not None else {}
    places = {_real(path) for path in found}
    unknown = next((photo for photo in said if photo not in places), None)
    if unknown is not None:
        raise InputError(f"{table}: the photo {unknown} is not among those to be labelled")
    known = {_real(photo.path): photo for photo in references.photos}
    folded = {name.casefold(): name for name in names}
    only = next(iter(names)) if len(names) == 1 else None
    seen: set[str] = set()
    for path, folder in found.items():
        real = _real(path)
        if real in seen:
            continue
        seen.add(real)
        if real in known:
            result.labelled.append(replace(known[real], path=path))
            continue
        parts = path.relative_to(folder).parent.parts if folder is not None else path.parts[-2:-1]
        from_folder = next((folded[part.casefold()] for part in reversed(parts) if part.casefold() in folded), None)
        result.by_table += real in said
        result.by_folder += real not in said and from_folder is not None
        result.photos.append((path, said.get(real) or from_folder or only))
    return result


def common_root(paths: Iterable[Path], output: Path) -> Path:
    """The folder to which names in the label file are relative: that of the file, else the nearest one around all."""
    folders = [os.path.normpath(path.parent.absolute()) for path in paths]
    beside = os.path.normpath(output.parent.absolute())
    if all(os.path.commonpath([beside, folder]) == beside for folder in folders):
        return output.parent
    return Path(os.path.commonpath(folders))


def _inside(photo: AnnotatedPhoto) -> AnnotatedPhoto:
    """Clamp points that tools with other pixel borders put up to a pixel outside."""
    high = np.asarray(photo.size, np.float64) - 0.5

    def clamp(annotation: Annotation) -> Annotation:
        return replace(annotation, points=np.clip(annotation.points, -0.5, high))

    return replace(photo, annotations=tuple(clamp(annotation) for annotation in photo.annotations))


def _check_common(references: Annotations, name: str, source: Path) -> None:
    """Two objects of a category without a common keypoint are most likely labelled with other names."""
    objects = [(photo, found) for photo, found in references.objects(name) if found.labelled.any()]
    keypoints = np.array(references.category(name).keypoints)
    for (one, a), (other, b) in itertools.pairwise(objects):
        if not (a.labelled & b.labelled).any():
            mine, theirs = (", ".join(keypoints[found.labelled].tolist()) for found in (a, b))
            raise InputError(
                f"{source}: references of {name} with other keypoints: {one.path} has {mine}, {other.path} has {theirs}"
            )


def _listed(path: Path) -> list[Path]:
    """Photos that a list names, one a line."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    photos = [path.parent / line for line in lines if line and not line.startswith("#")]
    if not photos:
        raise InputError(f"{path} lists no photos")
    return photos


def _read_table(path: Path, names: set[str]) -> dict[str, str]:
    """Real path of a photo -> category."""
    rows = read_rows(path)
    if not rows or not {"photo", "category"} <= set(rows[0]):
        raise InputError(f"{path} has no columns photo and category")
    at = [rows[0].index(name) for name in ("photo", "category")]
    said: dict[str, str] = {}
    for line, row in enumerate(rows[1:], start=2):
        with naming(f"{path}, row {line}"):
            if len(row) <= max(at) or not row[at[0]]:
                raise InputError("it has not the cells of photo and category")
            photo, category = (row[index] for index in at)
            if category and category not in names:
                raise InputError(f"no reference is of the category {category!r}: there are {', '.join(sorted(names))}")
            if category:
                said[_real(path.parent / photo)] = category
    return said


def _real(path: Path) -> str:
    try:
        return os.path.realpath(path)
    except ValueError as error:
        raise InputError(f"{str(path)!r}: no file can have this name") from error
