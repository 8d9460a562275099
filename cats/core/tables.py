"""Points and pairs as files, for matching and for data sets (numpy only)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cats.core.errors import InputError
from cats.core.files import read_bytes
from cats.core.geometry import Floats, as_points
from cats.core.json_text import read_json

MAX_ROWS = 1_000_000
"""Most pairs of a table, and points of a file."""

_MAX_BYTES = 128 << 20


@dataclass(frozen=True)
class PairRow:
    """One row of a pairs CSV.

    Attributes:
        a, b: image files, made absolute or relative to the working directory.
        cells: column -> text without surrounding blanks, ``""`` where the row has none.
        line: line number in the file, from 1.
        folder: folder of the CSV, to which paths in it are relative.
        problem: what is wrong with the row, where it cannot be used.
    """

    a: Path
    b: Path
    cells: Mapping[str, str]
    line: int
    folder: Path
    problem: str | None = None

    def read_points(self, *columns: str) -> Floats | None:
        """What :func:`parse_points` makes of the first of these columns that is filled; None where none is."""
        texts = (self.cells.get(column) for column in columns)
        return next((parse_points(text, self.folder) for text in texts if text), None)

    def points_of_a(self) -> Floats | None:
        """Points of a, (N, 2) in pixels, of the column ``points`` or ``points_a``; None without."""
        points = self.read_points("points", "points_a")
        return None if points is None else points[:, :2]


def read_pairs(path: str | Path, *, keep_bad: bool = False) -> list[PairRow]:
    """Read a pairs CSV: columns ``a``, ``b`` and optionally ``points``; other columns are kept as text.

    Args:
        keep_bad: keep rows that lack a path or have too many fields, with their ``problem``; else they are an error.

    Raises:
        InputError: unreadable, no CSV file, without those columns or without rows, too long, or a bad row; with its
            line.
    """
    file = Path(path)
    reader = csv.DictReader(io.StringIO(_read_text(file), newline=""), skipinitialspace=True, strict=True)
    rows: list[PairRow] = []
    try:
        columns = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = columns
        missing = {"a", "b"} - set(columns)
        if missing:
            shown = [name[:40] for name in columns[:10]]
            raise InputError(f"{file} has no column {' and '.join(sorted(missing))} (its first line is {shown})")
        for row in reader:
            if len(rows) == MAX_ROWS:
                raise InputError(f"{file} holds more than {MAX_ROWS:,} pairs: split it")
            rows.append(_read_row(row, reader.line_num, file.parent))
            if rows[-1].problem is not None and not keep_bad:
                raise InputError(f"{file}, line {reader.line_num}: {rows[-1].problem}")
    except csv.Error as error:
        raise InputError(f"{file}, line {reader.reader.line_num}: not a CSV file: {error}") from error
    if not rows:
        raise InputError(f"{file} holds no pairs")
    return rows


def _read_row(row: dict[Any, Any], line: int, folder: Path) -> PairRow:
    problem = "more fields than the header; put points in quotes" if None in row else None
    cells = {name: (text or "").strip() for name, text in row.items() if name is not None}
    if not cells["a"] or not cells["b"]:
        problem = problem or "a row needs both a and b"
    return PairRow(folder / cells["a"], folder / cells["b"], cells, line, folder, problem)


def parse_points(text: str, folder: Path) -> Floats:
    """Points from the text of a table's cell or an option: ``x,y;x,y;...``, ``xa,ya,xb,yb;...``, or the name of a file.

    Args:
        text: as above; :func:`read_points` reads what ends in ``.json`` or ``.csv``, and other files that are there.
        folder: where the name begins.

    Returns:
        (N, 2) float64 in pixels, or (N, 4): corresponding points of a and b.

    Raises:
        InputError: none of these, or the file cannot be read.
    """
    if text.lower().endswith((".json", ".csv")):
        return read_points(folder / text)
    try:
        rows = [[float(value) for value in point.split(",")] for point in text.split(";") if point.strip()]
        if not rows:
            raise InputError("there are none")
        return _points(rows)
    except (ValueError, OverflowError, InputError) as error:
        if _is_file(folder / text):
            return read_points(folder / text)
        raise InputError(
            f"points {text[:80]!r} are not x,y;x,y;... nor xa,ya,xb,yb;... nor a file (.json, .csv): {error}"
        ) from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long
        return False


def read_points(path: str | Path) -> Floats:
    """Read points from JSON ``[[x, y], ...]``, from the JSON of ``cats-run --json``, or from CSV ``x,y``.

    Both may have four numbers a row, ``xa, ya, xb, yb``; a CSV may begin with a line of names.

    Returns:
        (N, 2) float64 in pixels, or (N, 4): corresponding points of a and b.

    Raises:
        InputError: unreadable, no points, or not in one of these forms; names the line of a CSV.
    """
    file = Path(path)
    try:
        points = _points(_json_rows(file) if file.suffix.lower() == ".json" else _csv_rows(_read_text(file)))
    except InputError as error:
        raise error if str(file) in str(error) else InputError(f"{file}: {error}") from error
    if not len(points):
        raise InputError(f"{file} holds no points")
    return points


def _points(rows: Any) -> Floats:
    """(N, 2) or (N, 4) float64, checked as :func:`cats.core.geometry.as_points` does."""
    try:
        array = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError("points must be numbers, two or four in every row") from error
    if array.ndim == 2 and array.shape[1] == 4:
        return np.concatenate([as_points(array[:, :2]), as_points(array[:, 2:])], axis=1)
    return as_points(array)


def _json_rows(file: Path) -> Any:
    document = read_json(file)
    if not isinstance(document, dict):
        return document
    try:
        return [[*match["a"], *match["b"]] for match in document["matches"]]
    except (KeyError, TypeError) as error:
        raise InputError("an object without the matches that cats-run --json writes") from error


def _csv_rows(text: str) -> list[list[float]]:
    rows: list[list[float]] = []
    named = False
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        line = line.rstrip("\n")
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
        if len(rows) == MAX_ROWS:
            raise InputError(f"line {number}: more than {MAX_ROWS:,} points")
        rows.append(row)
    return rows


def _read_text(file: Path) -> str:
    try:
        return read_bytes(file, limit=_MAX_BYTES, what="table").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a text file in UTF-8") from error
