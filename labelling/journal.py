"""Results that are kept while photos are labelled, so that a broken run goes on where it stopped.

A text file beside the output: the first line says of what run it is, each further one holds the result of one photo, or
what was found about it before the other photos help (see through.py). A line that was cut off by a crash is left aside.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cats.core.errors import InputError
from cats.core.files import file_key
from cats.core.json_text import parse_json
from cats.labelling.annotations import Mask
from cats.labelling.consensus import Votes, find_consensus
from cats.labelling.label import LabelledPhoto
from cats.labelling.passes import Carried, Finding
from cats.labelling.references import References
from cats.runtime.windows import Window

_FORMAT = 3
_FOUND = "found"  # in the key of what was found about a photo before the others help


class Journal:
    """The kept results of one run.

    Args:
        output: the label file, ``X.json``; the journal is ``.X.json.partial`` beside it.
        run: everything that results depend on but the photo itself: a journal of another run is not used.
        together: where a result depends on the other photos too, all of them: a result among others is not used, what
            was found before the others help is.

    Attributes:
        path: the file.
        count: of how many photos it holds anything.
    """

    def __init__(self, output: Path, run: dict[str, Any], together: Iterable[tuple[Path, str | None]] = ()) -> None:
        self.path = output.parent / f".{output.name}.progress"
        text = json.dumps({"format": _FORMAT, **run}, sort_keys=True)
        self._run = _digest(text)
        self._group = _digest("\n".join(_key(*photo) or str(photo[0]) for photo in together))
        self._kept = self._read()
        self._photos = {key.split(":", 1)[0] for key in self._kept}
        self._file: IO[str] | None = None

    @property
    def count(self) -> int:
        return len(self._photos)

    def get(self, photo: Path, category: str | None) -> LabelledPhoto | None:
        """The result of an earlier run for this photo as it lies there now, or None."""
        entry = self._kept.get(f"{_key(photo, category)}:{self._group}")
        return _decode(entry, photo) if entry is not None else None

    def add(self, result: LabelledPhoto, category: str | None) -> None:
        """Keep the result of a photo; raises :class:`InputError` where nothing can be written."""
        self._add(result.path, category, self._group, _encode(result))

    def get_finding(self, photo: Path, category: str | None, references: dict[str, References]) -> Finding | None:
        """What an earlier run found about this photo before the others help, or None."""
        entry = self._kept.get(f"{_key(photo, category)}:{_FOUND}")
        return _decode_finding(entry, photo, references) if entry is not None else None

    def add_finding(self, found: Finding, category: str | None) -> None:
        """Keep what was found about a photo; raises :class:`InputError` where nothing can be written."""
        self._add(found.path, category, _FOUND, _encode_finding(found))

    def _add(self, photo: Path, category: str | None, kind: str, entry: dict[str, Any]) -> None:
        name = _key(photo, category)
        key = f"{name}:{kind}"
        if not name or key in self._kept:  # gone since it was read; or kept already
            return
        try:
            file = self._file or self._start()
            file.write(json.dumps({"key": key, **entry}, allow_nan=False) + "\n")
            file.flush()
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}") from error
        self._photos.add(name)

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
                    key = entry.pop("key") if number else None
                    if isinstance(key, str):
                        kept[key] = entry
                except (InputError, KeyError, TypeError, AttributeError):
                    continue
        return kept


def _key(photo: Path, category: str | None) -> str:
    """What tells a photo as it lies there now; "" where it is gone, which is reported where it is read."""
    try:
        return _digest(f"{file_key(photo)}:{category or ''}")
    except InputError:
        return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


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
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, InputError):
        return None


def _encode_finding(found: Finding) -> dict[str, Any]:
    window = found.window
    items = found.references.items
    flows = [np.concatenate([c.flow, c.backward_flow, c.backward_confidence[None]]) for c in found.carried]
    return {
        "size": found.size,
        "category": found.references.category.name,
        "votes": [_pack(getattr(found.votes, name.name)) for name in fields(Votes)],
        "window": [window.left, window.top, window.right, window.bottom],
        "carried": [items.index(c.reference) for c in found.carried],
        "flows": _pack(np.stack(flows)),
        "kind": None if found.kind is None else _pack(found.kind),
        "seen": None if found.seen is None else _pack(found.seen),
    }


def _decode_finding(entry: dict[str, Any], path: Path, references: dict[str, References]) -> Finding | None:
    """A finding out of its line; None where the line is not one that :func:`_encode_finding` made."""
    try:
        given = references[entry["category"]]
        chosen = [given.items[index] for index in entry["carried"]]
        votes = Votes(*map(_unpack, entry["votes"]))
        flows = _unpack(entry["flows"])
        shape = (len(chosen), len(chosen[0].targets))
        if not votes.points.shape == votes.shape.shape == (*shape, 2) or flows.shape[:2] != (len(chosen), 5):
            return None
        if any(getattr(votes, name).shape != shape for name in ("error", "confidence", "trust")):
            return None
        carried = [Carried(item, flow[:2], flow[2:4], flow[4]) for item, flow in zip(chosen, flows, strict=True)]
        size, window = (int(entry["size"][0]), int(entry["size"][1])), Window(*map(int, entry["window"]))
        kind, seen = (None if entry[name] is None else _unpack(entry[name]) for name in ("kind", "seen"))
        return Finding(path, size, given, votes, find_consensus(votes), window, carried, kind, seen)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        return None


def _pack(array: NDArray[Any]) -> dict[str, Any]:
    """An array with every bit of it, so that a run that goes on gives what one in one piece does."""
    return {
        "dtype": str(array.dtype),
        "shape": array.shape,
        "data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode(),
    }


def _unpack(packed: dict[str, Any]) -> NDArray[Any]:
    """Inverse of :func:`_pack`; raises ValueError, KeyError or TypeError for anything else."""
    if packed["dtype"] not in ("float32", "float64"):
        raise ValueError("no array of a journal")
    data = np.frombuffer(base64.b64decode(packed["data"], validate=True), packed["dtype"])
    return data.reshape(packed["shape"])
