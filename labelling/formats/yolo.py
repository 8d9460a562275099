"""YOLO pose data sets, as Ultralytics trains on them: a folder with ``data.yaml``, ``images/`` and ``labels/``.

A line of a label file is ``class cx cy width height`` and ``x y visibility`` for each keypoint, in shares of the photo.
All categories have as many keypoints as the longest. ``data.yaml`` names the keypoints (``kpt_names``) and, in a key
that only this program reads, the bones (``skeleton``).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from cats.core.errors import InputError
from cats.core.files import write_text
from cats.core.folders import replaced_folder
from cats.core.geometry import Size
from cats.labelling.annotations import AnnotatedPhoto, Annotation, Annotations, Category
from cats.labelling.formats.common import (
    PhotoFolder,
    box_or_extent,
    name_of,
    naming,
    number,
    read_text,
    what_is_lost,
    which_boxes_are_made,
)

MARK = ".cats-label"
"""A file of data sets that ``cats label`` wrote, and may replace."""
_MAX_YAML = 1 << 20
_SPLITS = ("train", "val", "test")
_SUFFIXES = (".bmp", ".dng", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp", ".pfm", ".heic", ".avif")


def read(path: Path, root: Path, notes: list[str]) -> Annotations:
    """Read a data set, given its folder or its ``data.yaml``; see :func:`cats.labelling.formats.read_annotations`."""
    config = path / "data.yaml" if path.is_dir() else path
    settings = _read_yaml(config)
    categories, shape = _categories(settings)
    base = config.parent
    photos = []
    for file in _photos(settings, PhotoFolder(base), base):
        size = PhotoFolder(base).measure(file)
        labels = _labels_of(file.relative_to(base), base)
        annotations = []
        if labels.is_file():
            for line, text in enumerate(read_text(labels).splitlines(), start=1):
                if text.strip():
                    with naming(f"{labels}, line {line}"):
                        annotations.append(_annotation(text.split(), size, categories, shape))
        photos.append(AnnotatedPhoto(file, size, tuple(annotations)))
    return Annotations(tuple(categories), tuple(photos))


def write(annotations: Annotations, path: Path, root: Path) -> list[str]:
    """Write a data set with copies of the photos; see :func:`cats.labelling.formats.write_annotations`.

    Raises:
        InputError: the folder exists and was not written by this function, or a photo lies in it.
    """
    names = {photo.path: name_of(photo.path, root) for photo in annotations.photos}
    stems: dict[str, str] = {}
    for name in names.values():
        other = stems.setdefault(str(Path(name).with_suffix("")), name)
        if other != name:
            raise InputError(f"the photos {other} and {name} would share a label file: YOLO drops the suffix")
    with replaced_folder(path, MARK, reads=names) as folder:
        (folder / MARK).write_text("A data set that cats label may replace.\n")
        _fill(folder, annotations, names)
    notes = what_is_lost(annotations, "keypoint names", "hidden points", "bones", "boxes")
    notes += which_boxes_are_made(annotations)
    return notes


def _fill(folder: Path, annotations: Annotations, names: dict[Path, str]) -> None:
    count = max((len(category.keypoints) for category in annotations.categories), default=0)
    ids = {category.name: index for index, category in enumerate(annotations.categories)}
    for photo in annotations.photos:
        image, labels = folder / "images" / names[photo.path], folder / "labels" / names[photo.path]
        image.parent.mkdir(parents=True, exist_ok=True)
        labels.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo.path, image)
        lines = [_line(annotation, ids[annotation.category], photo.size, count) for annotation in photo.annotations]
        labels.with_suffix(".txt").write_text("".join(f"{line}\n" for line in lines))
    (folder / "images").mkdir(exist_ok=True)
    settings = {
        "path": ".",
        "train": "images",
        "val": "images",
        "names": {index: category.name for index, category in enumerate(annotations.categories)},
        "kpt_shape": [count, 3],
        "kpt_names": {index: list(category.keypoints) for index, category in enumerate(annotations.categories)},
        "skeleton": {
            index: [list(bone) for bone in category.skeleton] for index, category in enumerate(annotations.categories)
        },
    }
    import yaml

    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, default_flow_style=None)
    write_text(folder / "data.yaml", text)


def _line(annotation: Annotation, category: int, size: Size, count: int) -> str:
    scale = np.asarray(size, np.float64)
    x, y, width, height = box_or_extent(annotation)
    centre, sides = (np.array([x, y]) + np.array([width, height]) / 2) / scale, np.array([width, height]) / scale
    values: list[object] = [category, *centre.tolist(), *sides.tolist()]
    for k in range(count):
        known = k < len(annotation.points) and annotation.labelled[k]
        values += [*(annotation.points[k] / scale).tolist(), int(annotation.visibility[k])] if known else [0, 0, 0]
    return " ".join(map(str, values))


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    class Plain(yaml.SafeLoader):
        """Safe YAML without aliases, with which a few lines can name billions of items."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it has aliases, which label files do not need")
            return super().compose_node(parent, index)

    try:
        settings = yaml.load(read_text(path, limit=_MAX_YAML), Loader=Plain)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict) or "names" not in settings:
        raise InputError(f"{path} has no names: it is not the data.yaml of a YOLO data set")
    return settings


def _categories(settings: dict[str, Any]) -> tuple[list[Category], tuple[int, int]]:
    """Categories by class number, and the shape of the keypoints (count, 2 or 3)."""
    shape = settings.get("kpt_shape", [0, 3])
    if not (isinstance(shape, list) and len(shape) == 2 and isinstance(shape[0], int) and shape[1] in (2, 3)):
        raise InputError(f"kpt_shape {shape!r} is not [count, 2] or [count, 3]")
    if not 0 <= shape[0] <= 10_000:
        raise InputError(f"kpt_shape {shape!r}: so many keypoints are not read")
    names = _by_number(settings["names"], "names")
    keypoints = _by_number(settings.get("kpt_names") or {}, "kpt_names")
    bones = _by_number(settings.get("skeleton") or {}, "skeleton")
    categories = []
    for index in range(len(names)):
        if index not in names:
            raise InputError(f"names has no class {index}")
        default = [str(k + 1) for k in range(shape[0])]
        listed = keypoints.get(index, default)
        of_it = bones.get(index, [])
        if not isinstance(listed, list) or not isinstance(of_it, list) or len(listed) > shape[0]:
            raise InputError(f"kpt_names and skeleton of class {index} do not fit kpt_shape {shape!r}")
        try:
            skeleton = tuple((int(a), int(b)) for a, b in of_it)
        except (TypeError, ValueError) as error:
            raise InputError(f"the skeleton of class {index} is not a list of pairs") from error
        categories.append(Category(str(names[index]), tuple(map(str, listed)), skeleton))
    return categories, (shape[0], shape[1])


def _by_number(value: Any, what: str) -> dict[int, Any]:
    """``{0: a, 1: b}``, also out of ``[a, b]``."""
    if isinstance(value, list):
        return dict(enumerate(value))
    if isinstance(value, dict) and all(isinstance(key, int) for key in value):
        return value
    raise InputError(f"{what} is neither a list nor numbered from 0")


def _photos(settings: dict[str, Any], folder: PhotoFolder, base: Path) -> list[Path]:
    """All photos of all parts of a data set: folders, lists of names, or text files of them."""
    start = settings.get("path") or "."
    entries = [entry for split in _SPLITS for entry in _as_list(settings.get(split))]
    found: dict[Path, None] = {}
    for entry in entries:
        place = os.path.normpath(Path(str(start)) / str(entry))
        if Path(place).is_absolute() or place.startswith(".."):
            raise InputError(f"{entry!r} leads out of {base}: paths of data.yaml are relative to it")
        path = base / place
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
        elif path.suffix == ".txt":
            lines = [line.strip() for line in read_text(path).splitlines()]
            files = [folder.find(os.path.normpath(line)) for line in lines if line]
        else:
            files = [folder.find(place)]
        found.update(dict.fromkeys(files))
    if not found:
        raise InputError(f"no photos: train, val and test of {base / 'data.yaml'} name none")
    return list(found)


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _labels_of(photo: Path, base: Path) -> Path:
    """The label file of a photo: the last folder ``images`` of its path is ``labels``."""
    parts = list(photo.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return (base / Path(*parts)).with_suffix(".txt")


def _annotation(cells: list[str], size: Size, categories: list[Category], shape: tuple[int, int]) -> Annotation:
    values = [number(cell, "value") for cell in cells]
    count, dimensions = shape
    if len(values) != 5 + count * dimensions:
        raise InputError(f"{len(values)} values, not 5 and {dimensions} for each of {count} keypoints")
    if not 0 <= values[0] < len(categories):
        raise InputError(f"there is no class {cells[0]}")
    category = categories[int(values[0])]
    scale = np.asarray(size, np.float64)
    centre, sides = scale * values[1:3], scale * values[3:5]
    table = np.array(values[5:], np.float64).reshape(count, dimensions)[: len(category.keypoints)]
    visibility = table[:, 2] if dimensions == 3 else np.where(table.any(axis=1), 2, 0)
    points = np.where(visibility[:, None] > 0, table[:, :2] * scale, np.nan)
    corner = centre - sides / 2
    box = (float(corner[0]), float(corner[1]), float(sides[0]), float(sides[1]))
    return Annotation(category.name, points, visibility, box=box)
