"""Label files: which formats there are, which one a file has, reading and writing.

Each format is a module with ``read(path, root, notes)`` and ``write(annotations, path, root)``. Numbers are taken over
as they are, as the converters of these tools do among each other (docs/labelling-formats.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cats.core.errors import InputError
from cats.core.files import check_destination
from cats.core.folders import check_folder
from cats.labelling.annotations import Annotations
from cats.labelling.formats import coco, csv, cvat, deeplabcut, label_studio, tps, yolo
from cats.labelling.formats.common import naming

_HEAD = 4096


@dataclass(frozen=True)
class Format:
    """One kind of label file.

    Attributes:
        name: as given to ``--format``.
        title: as people call it.
        suffixes: of its files; none is a folder.
        read, write: see :func:`read_annotations`, :func:`write_annotations`.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, Path, list[str]], Annotations]
    write: Callable[[Annotations, Path, Path], list[str]]


FORMATS = {
    item.name: item
    for item in (
        Format("coco", "COCO keypoints", (".json",), coco.read, coco.write),
        Format("csv", "CSV", (".csv",), csv.read, csv.write),
        Format("label-studio", "Label Studio", (".json",), label_studio.read, label_studio.write),
        Format("cvat", "CVAT for images 1.1", (".xml",), cvat.read, cvat.write),
        Format("yolo", "YOLO pose", ("", ".yaml", ".yml"), yolo.read, yolo.write),
        Format("tps", "TPS", (".tps",), tps.read, tps.write),
        Format("deeplabcut", "DeepLabCut", (".csv",), deeplabcut.read, deeplabcut.write),
    )
}


def read_annotations(
    path: str | Path, *, format: str | None = None, root: str | Path | None = None, notes: list[str] | None = None
) -> Annotations:
    """Read a label file.

    Args:
        path: the file; of YOLO its folder or ``data.yaml``.
        format: one of :data:`FORMATS`; None looks at the suffix and the first lines.
        root: folder in which the names of photos begin; None takes that of the file.
        notes: receives a line for each kind of thing in the file that was left aside.

    Raises:
        InputError: of no or another format, unreadable, too large, with photos that are missing or that do not fit;
            the message names the file and the thing in it.
    """
    file = Path(path)
    chosen = recognise(file) if format is None else _named(format)
    with naming(file):
        return chosen.read(file, Path(root) if root is not None else file.parent, [] if notes is None else notes)


def write_annotations(
    annotations: Annotations, path: str | Path, *, format: str | None = None, root: str | Path | None = None
) -> list[str]:
    """Write a label file, whole or not at all.

    Args:
        format: one of :data:`FORMATS`; None goes by the suffix (``.json`` COCO, ``.csv`` plain table).
        root: folder in which the names of photos begin; None takes that of the file.

    Returns:
        What the format cannot hold of these annotations, as ends of the sentence "FORMAT ...".

    Raises:
        InputError: unknown format, a photo outside ``root``, or nothing can be written there.
    """
    file = Path(path)
    chosen = choose_format(file, format)
    return chosen.write(annotations, file, Path(root) if root is not None else file.parent)


def choose_format(path: Path, name: str | None = None, like: Format | None = None) -> Format:
    """The format in which a file is to be written, checked with its place.

    Args:
        name: of :data:`FORMATS`, or None.
        like: a format that is taken where the suffix is one of its own.

    Raises:
        InputError: unknown, or the suffix says another, or nothing can be written there.
    """
    suffix = path.suffix.lower()
    if name is not None:
        chosen = _named(name)
    elif like is not None and suffix in like.suffixes:
        chosen = like
    else:
        found = next((item for item in FORMATS.values() if suffix in item.suffixes), None)
        if found is None:
            raise InputError(f"{path}: no format of label files has the suffix {suffix}; give --format {_names()}")
        chosen = found
    if chosen is FORMATS["yolo"]:
        check_folder(path, yolo.MARK)
    else:
        check_destination(path, chosen.suffixes)
    return chosen


def recognise(path: Path) -> Format:
    """The format of an existing label file, by its suffix and its first lines.

    Raises:
        InputError: missing, unreadable, or no format has this suffix.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    suffix = "" if path.is_dir() else path.suffix.lower()
    fitting = [item for item in FORMATS.values() if suffix in item.suffixes]
    if not fitting or (suffix == "" and not path.is_dir()):
        raise InputError(f"{path}: no format of label files has this suffix; give --references-format {_names()}")
    if len(fitting) == 1:
        return fitting[0]
    try:
        with open(path, "rb") as handle:
            head = handle.read(_HEAD).decode("utf-8-sig", "replace").lstrip().lower()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if suffix == ".json":
        return FORMATS["label-studio" if head.startswith("[") else "coco"]
    return FORMATS["deeplabcut" if head.startswith(("scorer,", '"scorer"')) else "csv"]


def _named(name: str) -> Format:
    if name not in FORMATS:
        raise InputError(f"unknown format {name!r}: there are {_names()}")
    return FORMATS[name]


def _names() -> str:
    return ", ".join(FORMATS)
