"""Points and pairs as files, for matching and for data sets (numpy only)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cats.core.errors import InputError
from cats.core.geometry import Floats, as_points

_MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class PairRow:
    """One row of a pairs CSV.

    Attributes:
        a, b: image files, made absolute or relative to the working directory.
        cells: column -> text without surrounding blanks, ``""`` where the row has none.
        line: line number in the file, from 1.
        folder: folder of the CSV, to which paths in it are relative.
    """

    a: Path
    b: Path
    cells: Mapping[str, str]
    line: int
    folder: Path

    def read_points(self, *columns: str) -> Floats | None:
        """What :func:`parse_points` makes of the first of these columns that is filled; None where none is."""
        texts = (self.cells.get(column) for column in columns)
        return next((parse_points(text, self.folder) for text in texts if text), None)

    def points_of_a(self) -> Floats | None:
        """Points of a, (N, 2) in pixels, of the column ``points`` or ``points_a``; None without."""
        points = self.read_points("points", "points_a")
        return None if points is None else points[:, :2]


def read_pairs(path: str | Path) -> list[PairRow]:
    """Read a pairs CSV: columns ``a``, ``b`` and optionally ``points``; other columns are kept as text.

    Raises:
        InputError: unreadable, without those columns or without rows, or a row lacks a path or has too many fields.
    """
    file = Path(path)
    try:
        reader = csv.DictReader(io.StringIO(_read_text(file), newline=""), skipinitialspace=True, strict=True)
        columns = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = columns
        missing = {"a", "b"} - set(columns)
        if missing:
            raise InputError(f"{file} has no column {' and '.join(sorted(missing))} (its first line is {columns})")
        rows = []
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if None in row:
                raise InputError(f"{where} has more fields than the header; put points in quotes")
            cells = {name: (text or "").strip() for name, text in row.items()}
            if not cells["a"] or not cells["b"]:
                raise InputError(f"{where}: a row needs both a and b")
            rows.append(
                PairRow(file.parent / cells["a"], file.parent / cells["b"], cells, reader.line_num, file.parent)
            )
    except csv.Error as error:
        raise InputError(f"{file} is not a CSV file: {error}") from error
    if not rows:
        raise InputError(f"{file} holds no pairs")
    return rows


def parse_points(text: str, folder: Path) -> Floats:
    """Points from the text of a table's cell: ``x,y;x,y;...``, ``xa,ya,xb,yb;...``, or the name of a file.

    Args:
        text: as above; what ends in ``.json`` or ``.csv`` is read by :func:`read_points`.
        folder: where the name begins.

    Returns:
        (N, 2) float64 in pixels, or (N, 4): corresponding points of a and b.

    Raises:
        InputError: none of these, or the file cannot be read.
    """
    if text.lower().endswith((".json", ".csv")):
        return read_points(folder / text)
    try:
        return _points([[float(value) for value in point.split(",")] for point in text.split(";") if point.strip()])
    except (ValueError, InputError) as error:
        raise InputError(f"points {text[:80]!r} are not x,y;x,y;... nor xa,ya,xb,yb;...: {error}") from error


def read_points(path: str | Path) -> Floats:
    """Read points from JSON ``[[x, y], ...]``, from the JSON of ``cats-run --json``, or from CSV ``x,y``.

    Both may have four numbers a row, ``xa, ya, xb, yb``; a CSV may begin with a line of names.

    Returns:
        (N, 2) float64 in pixels, or (N, 4): corresponding points of a and b.

    Raises:
        InputError: unreadable, no points, or not in one of these forms; names the line of a CSV.
    """
    file = Path(path)
    text = _read_text(file)
    try:
        points = _points(_json_rows(text) if file.suffix.lower() == ".json" else _csv_rows(text))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON: {error}") from error
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    if not len(points):
        raise InputError(f"{file} holds no points")
    return points


def _points(rows: Any) -> Floats:
    """(N, 2) or (N, 4) float64, checked as :func:`cats.core.geometry.as_points` does."""
    try:
        array = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError("points must be numbers, two or four in every row") from error
    if array.ndim == 2 and array.shape[1] == 4:
        return np.concatenate([as_points(array[:, :2]), as_points(array[:, 2:])], axis=1)
    return as_points(array)


def _json_rows(text: str) -> Any:
    document = json.loads(text)
    if not isinstance(document, dict):
        return document
    try:
        return [[*match["a"], *match["b"]] for match in document["matches"]]
    except (KeyError, TypeError) as error:
        raise InputError("an object without the matches that cats-run --json writes") from error


def _csv_rows(text: str) -> list[list[float]]:
    rows: list[list[float]] = []
    named = False
    for number, line in enumerate(text.splitlines(), start=1):
        cells = [cell.strip() for cell in line.split(",")]
        if cells == [""]:
            continue
        try:
            row = [float(cell) for cell in cells]
        except ValueError as error:
            if not rows and not named and all(cell.isidentifier() for cell in cells):
                named = True
                continue
            raise InputError(f"line {number}: {line[:80]!r} is not x,y") from error
        if len(row) not in (2, 4) or (rows and len(row) != len(rows[0])):
            raise InputError(f"line {number}: {line[:80]!r} is not x,y, nor xa,ya,xb,yb throughout")
        rows.append(row)
    return rows


def _read_text(file: Path) -> str:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise InputError(f"{file} is larger than {_MAX_BYTES >> 20} MiB")
        return file.read_text("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a text file in UTF-8") from error
