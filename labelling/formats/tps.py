"""TPS files of landmarks, as tpsDig writes them and morphometric programs read them.

y runs upwards from the lower edge of the photo: ``y = height - y of the image``. A landmark that is not there is
``-1 -1``. The format knows no categories; ours stands in the line ``COMMENT=category: NAME``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

import numpy as np

from cats.core.errors import InputError
from cats.core.files import write_text
from cats.labelling.annotations import AnnotatedPhoto, Annotation, Annotations, Category
from cats.labelling.formats.common import UNNAMED, PhotoFolder, name_of, naming, number, read_text, what_is_lost

_CATEGORY = "category: "
_MISSING = ("-1", "-1")


@dataclass
class _Specimen:
    """One block of the file: landmarks as they are written, and the lines ``KEY=value`` after them."""

    line: int
    landmarks: list[tuple[str, str]] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)


def read(path: Path, root: Path, notes: list[str]) -> Annotations:
    """Read a file; see :func:`cats.labelling.formats.read_annotations`."""
    folder = PhotoFolder(root)
    photos: dict[Path, list[Annotation]] = {}
    lengths: dict[str, int] = {}
    for specimen in _specimens(read_text(path), notes):
        with naming(f"specimen of line {specimen.line}"):
            name = specimen.keys.get("IMAGE", "")
            if not name:
                raise InputError("it has no line IMAGE=")
            if PureWindowsPath(name).is_absolute():
                name = PureWindowsPath(name).name  # tpsDig writes where the photo was on the machine that made the file
            file = folder.find(name)
            height = folder.measure(file)[1]
            objects = photos.setdefault(file, [])
            comment = specimen.keys.get("COMMENT", "")
            category = comment[len(_CATEGORY) :] if comment.startswith(_CATEGORY) else UNNAMED
            if not specimen.landmarks:
                continue
            if lengths.setdefault(category, len(specimen.landmarks)) != len(specimen.landmarks):
                raise InputError(f"{len(specimen.landmarks)} landmarks, the ones before have {lengths[category]}")
            points = np.array([_place(*landmark) for landmark in specimen.landmarks])
            points[:, 1] = height - points[:, 1]
            objects.append(Annotation(category, points))
    categories = [Category(name, tuple(map(str, range(1, count + 1)))) for name, count in lengths.items()]
    return Annotations(
        tuple(categories),
        tuple(AnnotatedPhoto(file, folder.measure(file), tuple(objects)) for file, objects in photos.items()),
    )


def write(annotations: Annotations, path: Path, root: Path) -> list[str]:
    """Write a file; see :func:`cats.labelling.formats.write_annotations`."""
    lines: list[str] = []
    count = 0
    for photo in annotations.photos:
        name = name_of(photo.path, root)
        for annotation in photo.annotations or (None,):
            points = [] if annotation is None else zip(annotation.points, annotation.labelled, strict=True)
            marks = [
                (repr(max(float(x), 0.0)), repr(max(photo.size[1] - float(y), 0.0))) if known else _MISSING
                for (x, y), known in points
            ]
            lines += [f"LM={len(marks)}", *(f"{x} {y}" for x, y in marks), f"IMAGE={name}", f"ID={count}"]
            if annotation is not None:
                lines.append(f"COMMENT={_CATEGORY}{annotation.category}")
            count += 1
    write_text(path, "\n".join(lines) + "\n")
    notes = what_is_lost(annotations)
    if any(not annotation.labelled.any() for _, annotation in annotations.objects()):
        notes.append("an object without landmarks is a specimen with none")
    return notes


def _specimens(text: str, notes: list[str]) -> Iterator[_Specimen]:
    """Blocks of the file; curves and outlines are left aside."""
    specimen: _Specimen | None = None
    wanted = aside = 0
    curves = False
    for number_, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line:
            continue
        key, equals, value = line.partition("=")
        key, value = key.strip().upper(), value.strip()
        if equals and key in ("LM", "LM3"):
            if specimen is not None:
                yield specimen
            if key == "LM3":
                raise InputError(f"line {number_}: landmarks in three dimensions")
            specimen, wanted, aside = _Specimen(number_), _count(value, number_), 0
        elif specimen is None:
            raise InputError(f"line {number_}: {line[:40]!r} before the first LM=")
        elif equals and key == "POINTS":
            aside, curves = _count(value, number_), True
        elif equals:
            specimen.keys.setdefault(key, value)
        elif aside:
            aside -= 1
        elif len(specimen.landmarks) < wanted and len(parts := line.split()) == 2:
            specimen.landmarks.append((parts[0], parts[1]))
        else:
            raise InputError(f"line {number_}: {line[:40]!r} is neither a landmark x y nor KEY=value")
        if equals and key == "IMAGE" and len(specimen.landmarks) < wanted:
            raise InputError(f"line {number_}: {len(specimen.landmarks)} landmarks where {wanted} were announced")
    if specimen is None:
        raise InputError("no LM= in it: not a TPS file")
    yield specimen
    if curves:
        notes.append("left aside the curves and outlines: landmarks are read")


def _count(text: str, line: int) -> int:
    if not text.isdecimal() or len(text) > 6:
        raise InputError(f"line {line}: {text[:40]!r} is not a count")
    return int(text)


def _place(x: str, y: str) -> tuple[float, float]:
    if "NA" in (x.upper(), y.upper()) or "NAN" in (x.upper(), y.upper()):
        return (np.nan, np.nan)
    place = (number(x, "landmark"), number(y, "landmark"))
    return (np.nan, np.nan) if min(place) < 0 else place
