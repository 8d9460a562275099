"""Seeds and readers of label files and of labelling's journal, for :mod:`cats.benchmarks.studies.fuzz_readers`."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cats.labelling.annotations import AnnotatedPhoto, Annotation, Annotations, Category, Mask
from cats.labelling.formats import FORMATS, read_annotations, write_annotations
from cats.labelling.journal import Journal, _decode
from cats.labelling.label import LabelledPhoto

_SIZE = (48, 40)
_PHOTOS = ("a.png", "b.png")
_RUN = {"references": "0" * 64}


def _make_photos(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in _PHOTOS:
        if not (folder / name).exists():
            Image.new("RGB", _SIZE).save(folder / name)


def _annotations(folder: Path, *, masks: bool) -> Annotations:
    """Two photos with two objects: points, boxes, and outlines or a mask."""
    category = Category("duck é", ("beak", "tail", "foot"), ((0, 1), (1, 2)))
    points = np.array([[3.5, 4.25], [40, 30], [np.nan, np.nan]])
    mask = Mask(_SIZE, (100, 20, 28, 20, 48 * 40 - 168)) if masks else None
    outline = (np.array([[2.0, 2.0], [30.0, 3.0], [20.0, 30.0]]),)
    found = Annotation(category.name, points, box=(2, 3, 40, 30), polygons=() if masks else outline, mask=mask)
    bare = Annotation(category.name, points[::-1].copy(), probability=np.array([0.5, 0.25, 1.0]))
    photos = tuple(AnnotatedPhoto(folder / name, _SIZE, (found, bare)) for name in _PHOTOS)
    return Annotations((category,), photos)


@functools.cache
def label_seeds() -> list[tuple[str, bytes]]:
    """Label files of every format; the suffix begins with the name of the format."""
    seeds = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _make_photos(folder)
        for name, kind in FORMATS.items():
            for masks in (False, True):
                output = folder / f"{name}-{masks}{kind.suffixes[0]}"
                write_annotations(_annotations(folder, masks=masks), output, format=name, root=folder)
                if output.is_dir():
                    seeds.append((f".{name}.yaml", (output / "data.yaml").read_bytes()))
                    seeds.append((f".{name}.txt", (output / "labels" / "a.txt").read_bytes()))
                else:
                    seeds.append((f".{name}{kind.suffixes[0]}", output.read_bytes()))
    return seeds


def read_labels(path: Path) -> None:
    """Read it as its format, and as whatever it looks like."""
    name = path.suffixes[-2][1:]
    if name == "yolo":
        base = path.parent / "yolo"
        _make_photos(base / "images")
        (base / "labels").mkdir(exist_ok=True)
        parts = {".yaml": base / "data.yaml", ".txt": base / "labels" / "a.txt"}
        good = {suffix[5:]: data for suffix, data in label_seeds() if suffix.startswith(".yolo")}
        for suffix, file in parts.items():
            file.write_bytes(path.read_bytes() if suffix == path.suffix else good[suffix])
        read_annotations(base)
        return
    _make_photos(path.parent)
    read_annotations(path, format=name)
    read_annotations(path)


def journal_seeds() -> list[tuple[str, bytes]]:
    """The journal of two photos, one of them labelled with an outline."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _make_photos(folder)
        journal = Journal(folder / "labels.json", _RUN)
        points = np.array([[3.5, 4.25], [np.nan, np.nan]])
        outline = (np.array([[2.0, 2.0], [30.0, 3.0], [20.0, 30.0]]),)
        sure = np.array([0.5, 0.25])
        seen = np.array([2, 0])
        for name, polygons in zip(_PHOTOS, ((), outline), strict=True):
            result = LabelledPhoto(folder / name, _SIZE, "duck", points, sure, seen, 0.5, (2, 3, 4, 5), polygons)
            journal.add(result, "duck")
        journal.close()
        return [(".progress", journal.path.read_bytes())]


def read_journal(path: Path) -> None:
    """Begin with it as the journal of a run, and ask for all that it holds."""
    output = path.parent / "labels.json"
    (output.parent / f".{output.name}.progress").write_bytes(path.read_bytes())
    for entry in Journal(output, _RUN)._kept.values():  # its keys are of photos that are no longer there
        result = _decode(entry, path)
        if result is not None and result.error is None and result.category is not None:
            result.annotation()


LABEL_READERS: dict[str, tuple[Callable[[], list[tuple[str, bytes]]], Callable[[Path], Any]]] = {
    "labels": (label_seeds, read_labels),
    "journal": (journal_seeds, read_journal),
}
"""Name -> seeds and reader."""
