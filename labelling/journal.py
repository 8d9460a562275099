"""Results that are kept while photos are labelled, so that a broken run goes on where it stopped.

A text file beside the output: the first line says of what run it is, each further one holds the result of one photo. A
line that was cut off by a crash is left aside.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import IO, Any

import numpy as np

from cats.core.errors import InputError
from cats.core.files import file_key
from cats.core.json_text import parse_json
from cats.labelling.annotations import Mask
from cats.labelling.label import LabelledPhoto

_FORMAT = 1


class Journal:
    """The kept results of one run.

    Args:
        output: the label file, ``X.json``; the journal is ``.X.json.partial`` beside it.
        run: everything that results depend on but the photo itself: a journal of another run is not used.

    Attributes:
        path: the file.
        count: how many results it holds.
    """

    def __init__(self, output: Path, run: dict[str, Any]) -> None:
        self.path = output.parent / f".{output.name}.progress"
        text = json.dumps({"format": _FORMAT, **run}, sort_keys=True)
        self._run = hashlib.sha256(text.encode()).hexdigest()
        self._kept = self._read()
        self.count = len(self._kept)
        self._file: IO[str] | None = None

    def get(self, photo: Path, category: str | None) -> LabelledPhoto | None:
        """The result of an earlier run for this photo as it lies there now, or None."""
        with contextlib.suppress(InputError):  # a photo that is gone is reported where it is read
            entry = self._kept.get(_key(photo, category))
            return _decode(entry, photo) if entry is not None else None
        return None

    def add(self, result: LabelledPhoto, category: str | None) -> None:
        """Keep the result of a photo; raises :class:`InputError` where nothing can be written."""
        try:
            key = _key(result.path, category)
        except InputError:  # gone since it was read
            return
        line = json.dumps({"key": key, **_encode(result)}, allow_nan=False)
        try:
            file = self._file or self._start()
            file.write(f"{line}\n")
            file.flush()
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}") from error
        self.count += 1

    def close(self, *, done: bool = False) -> None:
        """Close the file; remove it where all is done."""
        if self._file is not None:
            self._file.close()
        if done:
            self.path.unlink(missing_ok=True)

    def _start(self) -> IO[str]:
        """Begin the file anew with what is of use in it, so that a line that was cut off is not continued."""
        self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115
        self._file.write(json.dumps({"run": self._run}) + "\n")
        for key, entry in self._kept.items():
            self._file.write(json.dumps({"key": key, **entry}, allow_nan=False) + "\n")
        return self._file

    def _read(self) -> dict[str, dict[str, Any]]:
        kept: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            for number, line in enumerate(file):
                try:
                    entry = parse_json(line, self.path)
                    if number == 0 and entry["run"] != self._run:
                        return {}
                    if number:
                        kept[entry.pop("key")] = entry
                except (InputError, KeyError, TypeError, AttributeError):
                    continue
        return kept


def _key(photo: Path, category: str | None) -> str:
    return f"{file_key(photo)}:{category or ''}"


def _encode(result: LabelledPhoto) -> dict[str, Any]:
    return {
        "size": result.size,
        "category": result.category,
        "points": [[None if np.isnan(value) else value for value in point] for point in result.points.tolist()],
        "probability": result.probability.tolist(),
        "visibility": result.visibility.tolist(),
        "same_kind": result.same_kind,
        "box": result.box,
        "polygons": [polygon.tolist() for polygon in result.polygons],
        "mask": None if result.mask is None else result.mask.counts,
        "reference": None if result.reference is None else str(result.reference),
        "error": result.error,
    }


def _decode(entry: dict[str, Any], path: Path) -> LabelledPhoto | None:
    """A result out of its line; None where the line is not one that :func:`_encode` made."""
    try:
        size = (int(entry["size"][0]), int(entry["size"][1]))
        points = [[np.nan if value is None else float(value) for value in point] for point in entry["points"]]
        box = entry["box"]
        return LabelledPhoto(
            path,
            size,
            category=entry["category"],
            points=np.array(points, np.float64).reshape(-1, 2),
            probability=np.array(entry["probability"], np.float64),
            visibility=np.array(entry["visibility"], np.int64),
            same_kind=float(entry["same_kind"]),
            box=None if box is None else (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
            polygons=tuple(np.array(polygon, np.float64).reshape(-1, 2) for polygon in entry["polygons"]),
            mask=None if entry["mask"] is None else Mask(size, tuple(entry["mask"])),
            reference=None if entry["reference"] is None else Path(entry["reference"]),
            error=entry["error"],
        )
    except (KeyError, TypeError, ValueError, IndexError, InputError):
        return None
