"""What the readers and writers of label files share: bounded reading, names of photos, checked numbers."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from cats.core import json_text
from cats.core.errors import InputError
from cats.core.files import read_bytes
from cats.core.geometry import Floats, Size
from cats.core.images import image_size
from cats.labelling.annotations import Annotation, Annotations, Box

MAX_BYTES = 64 << 20
"""Largest label file that is read: COCO's own keypoints of 118,000 photos would be four times that."""

_MAX_VALUES = 2_000_000

UNNAMED = "object"
"""The category where a format has none."""


def read_text(path: Path, *, limit: int = MAX_BYTES, separator: bytes = b"\n") -> str:
    """The text of a label file.

    Args:
        limit: bytes that are read at most.
        separator: what stands between its values: millions of them would take gigabytes of memory.

    Raises:
        InputError: missing, not UTF-8, or over a limit.
    """
    data = read_bytes(path, limit=limit, what="label file")
    if data.count(separator) > _MAX_VALUES:
        raise InputError(f"{path} holds more than {_MAX_VALUES:,} values: too many for a label file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8") from error


def read_json(path: Path) -> Any:
    """The document in a JSON label file, bounded and finite; raises :class:`InputError` for others."""
    return json_text.read_json(path, limit=MAX_BYTES)


def check_schema(document: Any, name: str) -> None:
    """Check a document by ``schemas/NAME.schema.json``; raises :class:`InputError` that names the first fault."""
    import jsonschema

    error = jsonschema.exceptions.best_match(_validator(name).iter_errors(document))
    if error is not None:
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
        raise InputError(f"{place.lstrip('.') or 'the document'}: {error.message[:200]}")


def read_rows(path: Path) -> list[list[str]]:
    """Rows of a CSV file without blank ones; raises :class:`InputError` as :func:`read_text`."""
    try:
        reader = csv.reader(io.StringIO(read_text(path, separator=b","), newline=""), strict=True)
        return [[cell.strip() for cell in row] for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file: {error}") from error


def write_rows(rows: Iterable[Iterable[object]]) -> str:
    """CSV text of rows; None becomes an empty cell, numbers keep all their digits."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
    return text.getvalue()


@contextmanager
def naming(place: object) -> Iterator[None]:
    """Put ``place`` before the message of an :class:`InputError` that leaves the block."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error) if str(place) in str(error) else f"{place}: {error}") from error


class PhotoFolder:
    """The photos that a label file names.

    Args:
        root: folder in which the names begin.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, name: str) -> Path:
        """The file of that name.

        Raises:
            InputError: no such file, or the name is absolute or leads out of the folder.
        """
        parts = PurePosixPath(name).parts
        if not parts or "\0" in name or ".." in parts or name.startswith("/") or PureWindowsPath(name).drive:
            raise InputError(
                f"the file name {name!r} does not lead into {self.root}: names are relative to the label file, "
                "or to the folder that is given as --root"
            )
        for candidate in (name, name.replace("\\", "/")):
            path = self.root / candidate
            if path.is_file() and ".." not in PurePosixPath(candidate).parts:
                return path
        raise InputError(f"the photo {name} is not in {self.root} (is it in another folder? --root)")

    def measure(self, path: Path, said: Size | None = None) -> Size:
        """(width, height) of the upright photo, compared with what the label file says.

        Raises:
            InputError: not an image, or of another size than the labels were made for.
        """
        size = image_size(path)
        if said is not None and said != size:
            hint = (
                "they were made on the photo as it is stored, without the rotation that its EXIF data ask for"
                if said == size[::-1]
                else "they are of another version of this photo"
            )
            raise InputError(f"the labels of {path} are for {_text(said)} pixels, the photo has {_text(size)}: {hint}")
        return size


def name_of(path: Path, root: Path) -> str:
    """The name of a photo in a label file: relative to ``root``, with ``/``.

    Raises:
        InputError: it does not lie below ``root``.
    """
    relative = Path(os.path.relpath(path, root))
    if ".." in relative.parts or relative.is_absolute():
        raise InputError(f"the photo {path} does not lie below {root}, to which file names are relative (--root)")
    return relative.as_posix()


def number(value: Any, what: str) -> float:
    """A finite float out of a number or text; raises :class:`InputError` that names ``what``."""
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if not math.isfinite(result):
        raise InputError(f"{what} {str(value)[:40]!r} is not a number")
    return result


def numbers(text: str, what: str) -> Floats:
    """Points (N, 2) out of ``x,y;x,y;...``."""
    rows = [[number(cell, what) for cell in pair.split(",")] for pair in text.split(";") if pair.strip()]
    if any(len(row) != 2 for row in rows):
        raise InputError(f"{what} {text[:40]!r} are not x,y;x,y;...")
    return np.array(rows, np.float64).reshape(-1, 2)


def corners_box(left: float, top: float, right: float, bottom: float) -> Box:
    """A box of two corners."""
    return (left, top, right - left, bottom - top)


def polygon_area(polygon: Floats) -> float:
    """Area of a polygon (N, 2) in square pixels."""
    x, y = polygon.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def what_is_lost(annotations: Annotations, *holds: str) -> list[str]:
    """One line that says what of these annotations a format cannot hold.

    Args:
        holds: what it can: any of ``keypoint names``, ``hidden points``, ``bones``, ``boxes``, ``outlines``, ``masks``,
            ``probabilities``, ``scores``.
    """
    objects = [annotation for _, annotation in annotations.objects()]

    def some(test: Any) -> bool:
        return any(test(annotation) for annotation in objects)

    numbered = all(c.keypoints == tuple(map(str, range(1, len(c.keypoints) + 1))) for c in annotations.categories)
    there = {
        "keypoint names": not numbered,
        "hidden points": some(lambda a: (a.visibility == 1).any()),
        "bones": any(category.skeleton for category in annotations.categories),
        "boxes": some(lambda a: a.box is not None),
        "outlines": some(lambda a: a.polygons),
        "masks": some(lambda a: a.mask is not None),
        "probabilities": some(lambda a: a.probability is not None),
        "scores": some(lambda a: a.score is not None),
    }
    lost = [name for name, present in there.items() if present and name not in holds]
    return [f"cannot hold {', '.join(lost)}"] if lost else []


def which_boxes_are_made(annotations: Annotations) -> list[str]:
    """One line where a format that demands boxes, see :func:`box_or_extent`, is given objects without."""
    if all(annotation.box is not None for _, annotation in annotations.objects()):
        return []
    return ["needs a box for each object: where there is none, the extent of its points or outline is written"]


def place_points(names: tuple[str, ...], found: dict[str, tuple[float, float, int]]) -> dict[str, Any]:
    """``points`` and ``visibility`` of an :class:`Annotation` out of keypoint name -> x, y, visibility."""
    points = np.full((len(names), 2), np.nan)
    visibility = np.zeros(len(names), np.int64)
    for index, name in enumerate(names):
        if name in found:
            points[index], visibility[index] = found[name][:2], found[name][2]
    return {"points": points, "visibility": visibility}


def box_or_extent(annotation: Annotation) -> Box:
    """The box of an object for a format that demands one; 0, 0, 0, 0 where nothing of it has a place."""
    return annotation.extent() or (0.0, 0.0, 0.0, 0.0)


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


@functools.cache
def _validator(name: str) -> Any:
    import jsonschema

    text = resources.files("cats.labelling.formats").joinpath("schemas", f"{name}.schema.json").read_text("utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))
