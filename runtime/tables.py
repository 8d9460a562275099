"""Points and pairs as files, and the JSON document of a match."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cats.errors import InputError
from cats.geometry import Floats, as_points
from cats.runtime.matcher import Matcher
from cats.runtime.result import Match

_MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class PairRow:
    """One row of a pairs CSV.

    Attributes:
        a, b: image files, made absolute or relative to the working directory.
        points: as written in the row, see :meth:`read_points`; empty without that column.
        line: line number in the file, from 1.
        folder: folder of the CSV, to which paths in it are relative.
    """

    a: Path
    b: Path
    points: str
    line: int
    folder: Path

    def read_points(self) -> Floats | None:
        """Points of a, (N, 2) in pixels, from ``x,y;x,y;...`` or a JSON or CSV file; None without points.

        Of correspondences as data sets have them, ``xa,ya,xb,yb;...``, the points of a are taken.
        """
        try:
            return parse_points(self.points, self.folder)
        except InputError as error:
            raise InputError(f"line {self.line}: {error}") from error


def parse_points(text: str, folder: Path) -> Floats | None:
    """Points of a, (N, 2) in pixels, from the text of a ``points`` column, see :meth:`PairRow.read_points`.

    Args:
        text: ``x,y;x,y;...``, ``xa,ya,xb,yb;...`` or the name of a JSON or CSV file; empty gives None.
        folder: where the name begins.

    Raises:
        InputError: none of these, or the file cannot be read.
    """
    if not text:
        return None
    if text.lower().endswith((".json", ".csv")):
        return read_points(folder / text)
    try:
        rows = [[float(value) for value in point.split(",")] for point in text.split(";")]
        annotated = all(len(row) == 4 for row in rows)
        return as_points([row[:2] for row in rows] if annotated else rows)
    except (ValueError, InputError) as error:
        raise InputError(f"points {text[:80]!r} are not x,y;x,y;...") from error


def read_points(path: str | Path) -> Floats:
    """Read points from JSON ``[[x, y], ...]`` or CSV ``x,y`` (a header line is optional).

    Returns:
        (N, 2) float64, in pixels.

    Raises:
        InputError: unreadable, no points, or not in one of the two forms; names the line of a CSV.
    """
    file = Path(path)
    text = _read_text(file)
    if file.suffix.lower() == ".json":
        try:
            points = as_points(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file} is not JSON: {error}") from error
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
    else:
        points = _csv_points(file, text)
    if not len(points):
        raise InputError(f"{file} holds no points")
    return points


def read_pairs(path: str | Path) -> list[PairRow]:
    """Read a pairs CSV: columns ``a``, ``b`` and optionally ``points``; other columns are left alone.

    Raises:
        InputError: unreadable, without those columns or without rows, or a row lacks a path.
    """
    file = Path(path)
    try:
        reader = csv.DictReader(io.StringIO(_read_text(file), newline=""), skipinitialspace=True, restval="")
        columns = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = columns
        missing = {"a", "b"} - set(columns)
        if missing:
            raise InputError(f"{file} has no column {' and '.join(sorted(missing))} (its first line is {columns})")
        rows = []
        for row in reader:
            a, b = row["a"].strip(), row["b"].strip()
            if not a or not b:
                raise InputError(f"{file}, line {reader.line_num}: a row needs both a and b")
            points = (row.get("points") or "").strip()
            rows.append(PairRow(file.parent / a, file.parent / b, points, reader.line_num, file.parent))
    except csv.Error as error:
        raise InputError(f"{file} is not a CSV file: {error}") from error
    if not rows:
        raise InputError(f"{file} holds no pairs")
    return rows


def model_document(matcher: Matcher) -> dict[str, Any]:
    """The ``model`` part of a matches document."""
    metadata = matcher.metadata
    return {
        "file": str(matcher.path),
        "precision": metadata.precision,
        "verified": metadata.verified,
        "weights_sha256": metadata.weights_sha256,
        "backend": matcher.backend.describe(),
    }


def matches_document(
    match: Match, points: ArrayLike, *, a: str | Path, b: str | Path, model: dict[str, Any]
) -> dict[str, Any]:
    """A match at points of a as plain JSON types; coordinates in original pixels, to a thousandth.

    Args:
        points: (N, 2) in pixels of a.
        a, b: names of the images.
        model: see :func:`model_document`.

    Returns:
        ``{"a", "b", "size_a", "size_b", "model", "matches": [{"a", "b", "confidence"}, ...], "time_ms"}``; each match
        has ``forward_backward`` (pixels of a) too where the match knows it.
    """
    start = as_points(points)
    places, confidence = match.transfer(start), match.confidence_at(start)
    matches: list[dict[str, Any]] = [
        {"a": _rounded(p), "b": _rounded(q), "confidence": round(float(c), 4)}
        for p, q, c in zip(start, places, confidence, strict=True)
    ]
    if match.backward_flow is not None:
        for entry, error in zip(matches, match.forward_backward_error(start), strict=True):
            entry["forward_backward"] = round(float(error), 3)
    return {
        "a": str(a),
        "b": str(b),
        "size_a": list(match.size_a),
        "size_b": list(match.size_b),
        "model": model,
        "matches": matches,
        "time_ms": {stage: round(value, 3) for stage, value in match.times.items()},
    }


def _rounded(point: Floats) -> list[float]:
    return [round(float(value), 3) for value in point]


def _read_text(file: Path) -> str:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise InputError(f"{file} is larger than {_MAX_BYTES >> 20} MiB")
        return file.read_text("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a text file in UTF-8") from error


def _csv_points(file: Path, text: str) -> Floats:
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        cells = [cell.strip() for cell in line.split(",")]
        if cells == [""] or (not rows and [cell.lower() for cell in cells] == ["x", "y"]):
            continue
        try:
            x, y = map(float, cells)
        except ValueError as error:
            raise InputError(f"{file}, line {number}: {line[:80]!r} is not x,y") from error
        rows.append([x, y])
    try:
        return as_points(np.asarray(rows).reshape(-1, 2))
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
