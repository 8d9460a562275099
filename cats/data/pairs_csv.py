"""Pairs from a CSV file of one's own: columns ``a,b`` and optionally points, boxes, category."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from cats.data.samples import Box, PairDataset, Sample, image_size, parse_box, require_files
from cats.errors import InputError
from cats.geometry import Floats, as_points

_HINT = "the first line must name the columns: a,b and optionally points, points_b, box_a, box_b, category"


class PairsCSV(PairDataset):
    """Pairs of a CSV file.

    Columns (others are ignored):

    - ``a``, ``b``: images, relative to the file.
    - ``points`` (or ``points_a``): ``x,y;x,y;...`` in pixels, or a JSON file ``[[x, y], ...]``, or a CSV file ``x,y``;
      with four numbers each, ``xa,ya,xb,yb;...``, they are correspondences. The JSON that ``cats-run --json`` writes is
      read too.
    - ``points_b``: the corresponding points of b in the same forms, where ``points`` has two numbers each.
    - ``box_a``, ``box_b``: ``x_min,y_min,x_max,y_max``. ``category``: any text.

    Pairs without points in b are good for matching and calibration, not for training or evaluation.

    Args:
        path: the CSV file.
        split: must be ``None``; a CSV file has no splits.

    Raises:
        InputError: unreadable, without the columns ``a`` and ``b``, or images are missing (named).
    """

    kind = "pairs"

    def __init__(self, path: str | Path, split: str | None = None) -> None:
        path = Path(path)
        if split is not None:
            raise InputError(f"{path} has no splits; leave out the split {split!r} or give another file")
        self._rows = _read(path)
        self._path = path
        self._images = [tuple(path.parent / row[name].strip() for name in "ab") for row in self._rows]
        require_files([image for pair in self._images for image in pair], path.parent, f"correct the paths in {path}")
        super().__init__(path, None, f"{path.name}, {len(self._rows)} pairs")

    def __len__(self) -> int:
        return len(self._rows)

    def category_of(self, index: int) -> str | None:
        """Column ``category``."""
        return (self._rows[index].get("category") or "").strip() or None

    def __getitem__(self, index: int) -> Sample:
        row, (a, b) = self._rows[index], self._images[index]
        where = f"{self._path.name}, line {index + 2}"
        points_a, points_b = _correspondences(row, self._path.parent, where)
        return Sample(
            image_a=a,
            image_b=b,
            size_a=image_size(a),
            size_b=image_size(b),
            points_a=points_a,
            points_b=points_b,
            box_a=_box(row.get("box_a"), where),
            box_b=_box(row.get("box_b"), where),
            category=self.category_of(index),
        )


def _read(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, strict=True, skipinitialspace=True)
            rows = list(reader)
            header = [name.strip() for name in reader.fieldnames or []]
    except OSError as error:
        raise InputError(f"cannot read pairs {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file: {error}") from error
    if "a" not in header or "b" not in header:
        raise InputError(f"{path} has the columns {', '.join(header) or 'none'}; {_HINT}")
    for number, row in enumerate(rows, start=2):
        if None in row:
            raise InputError(f"{path}, line {number} has more fields than the header; put points in quotes")
        if not (row["a"] or "").strip() or not (row["b"] or "").strip():
            raise InputError(f"{path}, line {number}: a or b is empty")
    if not rows:
        raise InputError(f"{path} lists no pairs; {_HINT}")
    return [{key.strip(): value or "" for key, value in row.items()} for row in rows]


def _correspondences(row: dict[str, str], folder: Path, where: str) -> tuple[Floats, Floats]:
    """Points of a and b, both empty where b has none."""
    none = np.zeros((0, 2))
    first = _numbers(row.get("points_a") or row.get("points") or "", folder, where)
    second = _numbers(row.get("points_b") or "", folder, where)
    if len(first) and first.shape[1] == 4:
        if len(second):
            raise InputError(f"{where}: points have four numbers each and points_b is given too; leave out one")
        return first[:, :2], first[:, 2:]
    if not len(second):
        return none, none
    if len(first) != len(second):
        raise InputError(f"{where}: {len(first)} points and {len(second)} points_b; they must correspond")
    return as_points(first), as_points(second)


def _numbers(text: str, folder: Path, where: str) -> Floats:
    """(N, 2) or (N, 4) from inline text or a JSON file."""
    text = text.strip()
    if not text:
        return np.zeros((0, 2))
    try:
        if text.lower().endswith(".json"):
            values = _plain(json.loads((folder / text).read_text("utf-8")))
        elif text.lower().endswith(".csv"):
            values = _table((folder / text).read_text("utf-8-sig"))
        else:
            values = [[float(number) for number in item.split(",")] for item in text.split(";") if item.strip()]
        array = np.asarray(values, dtype=np.float64)
    except OSError as error:
        raise InputError(f"{where}: cannot read points {folder / text}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"{where}: points {text[:60]!r} are not x,y;x,y;..., nor a JSON or CSV file of such: {error}"
        ) from error
    if array.ndim != 2 or array.shape[1] not in (2, 4):
        raise InputError(f"{where}: points of shape {array.shape}; two numbers (x, y) or four (xa, ya, xb, yb) each")
    return array


def _plain(document: Any) -> Any:
    """Lists of numbers from either JSON form: ``[[x, y], ...]`` or the matches of ``cats-run --json``."""
    if isinstance(document, dict):
        return [[*match["a"], *match["b"]] for match in document["matches"]]
    return document


def _table(text: str) -> list[list[float]]:
    """Rows of numbers from lines of CSV, with or without a header."""
    rows = [row for row in csv.reader(text.splitlines()) if row]
    header = 1 if rows and any(cell.strip().isidentifier() for cell in rows[0]) else 0
    return [[float(cell) for cell in row] for row in rows[header:]]


def _box(text: str | None, where: str) -> Box | None:
    if not text or not text.strip():
        return None
    return parse_box(text.split(","), where)
