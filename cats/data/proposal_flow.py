"""PF-WILLOW and PF-PASCAL (Ham et al., Proposal Flow), with the pair lists that everybody evaluates on."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cats.core.errors import InputError, require
from cats.core.geometry import Floats
from cats.core.images import image_size
from cats.data.samples import (
    Box,
    PairDataset,
    Sample,
    mirror,
    normal_split,
    parse_box,
    require_files,
)

WHERE_WILLOW = (
    "the images (PF-dataset.zip) are at www.di.ens.fr/willow/research/proposalflow, test_pairs.csv comes with the "
    "published evaluation code of CNNGeometric and its successors"
)
WHERE_PASCAL = (
    "images and annotations (PF-dataset-PASCAL.zip) are at www.di.ens.fr/willow/research/proposalflow, the pair lists "
    "come with the published code of NCNet and SCNet"
)

PASCAL_CATEGORIES = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
"""The list's class numbers count these from 1."""

_PUBLISHED = {"train": 2_940, "val": 308, "test": 299}  # pairs of PF-PASCAL's lists
_WILLOW_PUBLISHED = 900
_WILLOW_POINTS = 10
_WILLOW_COLUMNS = [
    "imageA",
    "imageB",
    *(f"{axis}{k}" for axis in ("XA", "YA", "XB", "YB") for k in range(1, _WILLOW_POINTS + 1)),
]


class PFWillow(PairDataset):
    """All pairs of ``test_pairs.csv``; ten keypoints, no boxes, no splits. Categories are the folders, as ``car(G)``.

    The paths in the list begin with ``PF-dataset/``; images are found with that folder and without it.

    Args:
        root: folder with ``test_pairs.csv`` and the images.
        split: ``test`` or ``None``.
        incomplete: open it although files of pairs are missing.

    Raises:
        InputError: files are missing (named, with where to get them) or the list is malformed.
    """

    kind = "willow"

    def __init__(self, root: str | Path, split: str | None = None, *, incomplete: bool = False) -> None:
        root = Path(root)
        normal_split(split, ("test",), "test")
        self._list = _find_list(root, ("test_pairs.csv", "test_pairs_pf.csv"), WHERE_WILLOW)
        rows = _read_rows(self._list, _WILLOW_COLUMNS, WHERE_WILLOW)
        self._rows = []
        base = _image_base(root, [row["imageA"] for row in rows], "PF-dataset", WHERE_WILLOW)
        for number, row in enumerate(rows, start=2):
            points = _numbers([row[name] for name in _WILLOW_COLUMNS[2:]], f"{self._list.name}, line {number}")
            a, b = (base(row[name]) for name in ("imageA", "imageB"))
            self._rows.append((a, b, points.reshape(4, _WILLOW_POINTS)))
        super().__init__(root, "test", f"PF-WILLOW, {len(self._rows)} pairs", _WILLOW_PUBLISHED)
        if not incomplete:
            require_files(self, root, WHERE_WILLOW)

    def __len__(self) -> int:
        return len(self._rows)

    def category_of(self, index: int) -> str:
        """Name of the image's folder."""
        return self._rows[index][0].parent.name

    def files_of(self, index: int) -> tuple[Path, ...]:
        """The two images: keypoints are in the list."""
        return self._rows[index][:2]

    def __getitem__(self, index: int) -> Sample:
        a, b, points = self._rows[index]
        with _named(f"{self._list.name}, line {index + 2}"):
            return Sample(
                image_a=a,
                image_b=b,
                size_a=image_size(a),
                size_b=image_size(b),
                points_a=points[:2].T,
                points_b=points[2:].T,
                category=self.category_of(index),
                keypoint_ids=tuple(str(k) for k in range(1, _WILLOW_POINTS + 1)),
                name=f"{a.parent.name}/{a.name} -> {b.name}",
            )


class PFPascal(PairDataset):
    """One official list of pairs. Keypoints of the test list are in it; those of train and val, boxes and names of all
    are in ``Annotations``.

    Pairs that the training list marks with ``flip`` are shown mirrored, both images together (see
    :func:`cats.data.samples.mirror`).

    Args:
        root: folder with ``train_pairs.csv``, ``val_pairs.csv``, ``test_pairs.csv`` (or ``trn_pairs.csv``; also looked
            for in ``image_pairs``), ``JPEGImages`` and ``Annotations`` (also looked for in ``PF-dataset-PASCAL``).
        split: ``train``, ``val`` or ``test`` (default).
        incomplete: open it although files of pairs are missing.

    Raises:
        InputError: files are missing (named, with where to get them) or the list is malformed.
    """

    kind = "pfpascal"
    splits = tuple(_PUBLISHED)

    def __init__(self, root: str | Path, split: str | None = None, *, incomplete: bool = False) -> None:
        root = Path(root)
        split = normal_split(split, tuple(_PUBLISHED), "test")
        names = ("train_pairs.csv", "trn_pairs.csv") if split == "train" else (f"{split}_pairs.csv",)
        self._list = _find_list(root, names, WHERE_PASCAL)
        self._rows = _read_rows(self._list, ["source_image", "target_image", "class"], WHERE_PASCAL)
        base = _image_base(root, [row["source_image"] for row in self._rows], "PF-dataset-PASCAL", WHERE_PASCAL)
        self._images = [(base(row["source_image"]), base(row["target_image"])) for row in self._rows]
        self._categories = [
            _category(row["class"], f"{self._list.name}, line {number}")
            for number, row in enumerate(self._rows, start=2)
        ]
        folders = (root / "PF-dataset-PASCAL" / "Annotations", root / "Annotations")
        self._annotations = next((folder for folder in folders if folder.is_dir()), None)
        if self._annotations is None and self._rows and "XA" not in self._rows[0]:
            raise InputError(f"{root} lacks Annotations (keypoints of the {split} pairs); {WHERE_PASCAL}")
        super().__init__(root, split, f"PF-PASCAL {split}, {len(self._rows)} pairs", _PUBLISHED[split])
        if not incomplete:
            require_files(self, root, WHERE_PASCAL)

    def __len__(self) -> int:
        return len(self._rows)

    def category_of(self, index: int) -> str:
        """From the list."""
        return self._categories[index]

    def files_of(self, index: int) -> tuple[Path, ...]:
        """Annotations, where the data set lies here with them, and images."""
        images, folder = self._images[index], self._annotations
        if folder is None:
            return images
        return (*(folder / self._categories[index] / f"{image.stem}.mat" for image in images), *images)

    def __getitem__(self, index: int) -> Sample:
        row, (a, b), category = self._rows[index], self._images[index], self._categories[index]
        where = f"{self._list.name}, line {index + 2}"
        annotations = [self._annotation(image, category) for image in (a, b)]
        ids: tuple[str, ...] = ()
        if "XA" in row:
            points_a, points_b = (_listed_points(row[f"X{side}"], row[f"Y{side}"], where) for side in "AB")
        else:
            points_a, points_b, ids = _common_points(annotations[0][0], annotations[1][0], where)
        with _named(where):
            sample = Sample(
                image_a=a,
                image_b=b,
                size_a=image_size(a),
                size_b=image_size(b),
                points_a=points_a,
                points_b=points_b,
                box_a=annotations[0][1],
                box_b=annotations[1][1],
                category=category,
                keypoint_ids=ids,
                name=f"{category}/{a.stem} -> {b.stem}",
            )
        return mirror(sample) if row.get("flip", "0").strip() == "1" else sample

    def _annotation(self, image: Path, category: str) -> tuple[Floats, Box | None]:
        """Keypoints and box; empty where the data set lies here without ``Annotations``."""
        if self._annotations is None:
            return np.zeros((0, 2)), None
        return _read_annotation(self._annotations / category / f"{image.stem}.mat")


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Errors about a pair begin with its place in the list."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _find_list(root: Path, names: tuple[str, ...], where: str) -> Path:
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; {where}")
    candidates = [root / folder / name for folder in ("", "image_pairs") for name in names]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise InputError(f"{root} lacks {names[0]} (the list of pairs); {where}")
    return found


def _read_rows(path: Path, columns: list[str], where: str) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, strict=True)
            rows = list(reader)
            header = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the list of pairs {path}: {error}") from error
    missing = [name for name in columns if name not in header]
    if missing:
        raise InputError(f"{path} lacks the column {missing[0]} (it has {', '.join(header[:6])}, ...); {where}")
    for number, row in enumerate(rows, start=2):
        if None in row.values() or None in row:
            raise InputError(f"{path}, line {number} has not the {len(header)} fields of the header; {where}")
    if not rows:
        raise InputError(f"{path} lists no pairs; {where}")
    return rows


def _image_base(root: Path, listed: list[str], folder: str, where: str) -> Any:
    """A function from a listed path to the file: as listed, or with ``folder`` left out."""
    first = PurePosixPath(listed[0])
    short = first.relative_to(folder) if first.parts[0] == folder else first
    if (root / first).parent.is_dir():
        return lambda name: root / PurePosixPath(name)
    if (root / short).parent.is_dir():
        return lambda name: root / PurePosixPath(name.removeprefix(f"{folder}/"))
    raise InputError(f"{root} lacks {first.parent} (images; also looked for in {short.parent}); {where}")


def _numbers(values: list[str], where: str) -> Floats:
    try:
        return np.array([float(value) for value in values])
    except ValueError as error:
        raise InputError(f"broken annotation, {where}: {error}") from error


def _listed_points(x: str, y: str, where: str) -> Floats:
    """Points (N, 2) from ``x;x;...`` and ``y;y;...``."""
    columns = [_numbers(text.split(";"), where) for text in (x, y)]
    if len(columns[0]) != len(columns[1]):
        raise InputError(f"broken annotation, {where}: {len(columns[0])} x and {len(columns[1])} y coordinates")
    return np.column_stack(columns)


def _common_points(a: Floats, b: Floats, where: str) -> tuple[Floats, Floats, tuple[str, ...]]:
    """Keypoints visible in both images, and their names."""
    if len(a) != len(b):
        raise InputError(f"broken annotation, {where}: {len(a)} keypoints in one image and {len(b)} in the other")
    both = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    return a[both], b[both], tuple(str(k) for k in np.flatnonzero(both))


def _category(text: str, where: str) -> str:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= len(PASCAL_CATEGORIES):
        raise InputError(f"{where}: class {text!r} is not a number from 1 to {len(PASCAL_CATEGORIES)}")
    return PASCAL_CATEGORIES[number - 1]


def _read_annotation(path: Path) -> tuple[Floats, Box | None]:
    """Keypoints (N, 2), NaN where invisible, and the box of a PF-PASCAL ``.mat`` file."""
    io = require("scipy.io", extra="train", purpose="read the annotations of PF-PASCAL")
    try:
        values = io.loadmat(path)
    except Exception as error:  # scipy raises many types for files that are not MATLAB's
        raise InputError(f"cannot read annotation {path}: {error}") from error
    points = values.get("kps")
    if points is None or np.ndim(points) != 2 or np.shape(points)[1] != 2 or not np.issubdtype(points.dtype, np.number):
        raise InputError(f"broken annotation {path}: 'kps' is not an array (N, 2) of numbers")
    box = values.get("bbox")
    return np.asarray(points, np.float64), None if box is None else parse_box(box, str(path))
