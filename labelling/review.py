"""The review sheet: one HTML page with every labelled photo, on which points are corrected and labels downloaded.

The page holds the photos (smaller, as JPEG), the label file as it was written, and a script that writes the reviewer's
corrections into it. It loads nothing, so that it opens from disk on a machine without network.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cats.core.errors import InputError
from cats.core.files import write_text
from cats.core.images import MAX_PIXELS, read_image
from cats.labelling.annotations import Annotation, Annotations, Category
from cats.labelling.formats import Format
from cats.labelling.formats.common import name_of

_SIDE, _REFERENCE_SIDE = 960, 640  # longer side of the photos in the page, in pixels
_QUALITY = 82


@dataclass(frozen=True, eq=False)
class Reviewed:
    """One photo of the sheet.

    Attributes:
        path, size: the photo and its (width, height) in pixels.
        annotation: its labels; points below the limit have visibility 0 and may still have a place. None where it was
            not labelled.
        reference: the labelled photo that is shown beside it.
        same_kind: probability that it shows the same kind of object, or None.
        why: the reason where it was not labelled.
    """

    path: Path
    size: tuple[int, int]
    annotation: Annotation | None
    reference: Path | None = None
    same_kind: float | None = None
    why: str = "not this object"


def write_sheet(
    path: Path,
    photos: Sequence[Reviewed],
    references: Annotations,
    categories: Sequence[Category],
    labels: Path,
    format: Format,
    root: Path,
    *,
    max_pixels: int = MAX_PIXELS,
    on_photo: Callable[[], None] | None = None,
) -> None:
    """Write the review sheet of a label file.

    Args:
        path: the page, ``.html``.
        photos: in the order of the label file, one object each.
        references: the labelled photos; of each photo the one it names is shown.
        categories: of the label file.
        labels: the label file (of YOLO the folder), which the page gives back with corrections.
        format: of that file.
        root: folder in which the names of its photos begin.
        max_pixels: limit of :func:`cats.core.images.read_image`.
        on_photo: called after each photo.

    Raises:
        InputError: a photo cannot be read, or the page cannot be written.
    """
    shown = {photo.reference for photo in photos if photo.annotation is not None}
    kept = [photo for photo in references.photos if photo.path in shown and photo.annotations]
    numbers = {photo.path: index for index, photo in enumerate(kept)}
    items = []
    serial = 0
    for number, photo in enumerate(photos):
        place = {"photo": number, "object": 0, "serial": serial, "ofKind": 0}
        serial += photo.annotation is not None
        item = _item(photo, categories, place, numbers.get(photo.reference) if photo.reference else None)
        item |= {"name": name_of(photo.path, root), "image": _embed(photo.path, _SIDE, max_pixels)}
        items.append(item)
        if on_photo is not None:
            on_photo()
    content = _labels(labels, format)
    digest = hashlib.sha256(
        "".join([str(labels), *content.get("files", {}).values(), content.get("text", "")]).encode()
    )
    sheet = {
        "id": digest.hexdigest()[:16],
        "file": labels.name,
        "labels": content,
        "categories": [{"name": c.name, "keypoints": list(c.keypoints), "skeleton": c.skeleton} for c in categories],
        "references": [
            {
                "name": photo.path.name,
                "size": photo.size,
                "image": _embed(photo.path, _REFERENCE_SIDE, max_pixels),
                "points": _points(photo.annotations[0]),
                "category": [c.name for c in categories].index(photo.annotations[0].category),
            }
            for photo in kept
        ],
        "items": sorted(items, key=_worst_first),
    }
    write_text(path, _render(sheet))


def _worst_first(item: dict[str, Any]) -> tuple[bool, float]:
    """What was not labelled, then by the least sure point."""
    sure = [point["p"] for point in item["points"]]
    return (bool(sure), min(sure, default=0.0))


def _item(
    photo: Reviewed, categories: Sequence[Category], place: dict[str, int], reference: int | None
) -> dict[str, Any]:
    annotation = photo.annotation
    item: dict[str, Any] = {
        "size": photo.size,
        "place": place,
        "sameKind": photo.same_kind,
        "why": photo.why,
        "reference": reference,
        "points": [],
        "category": None,
        "categoryName": None,
        "polygons": [],
        "box": None,
    }
    if annotation is not None:
        item |= {
            "points": _points(annotation),
            "category": [category.name for category in categories].index(annotation.category),
            "categoryName": annotation.category,
            "polygons": [np.round(polygon, 2).ravel().tolist() for polygon in annotation.polygons],
            "box": annotation.box,
        }
    return item


def _points(annotation: Annotation) -> list[dict[str, Any]]:
    """Each keypoint as x, y (null without a place), v, p: its probability, 1 where a person set it."""
    sure = annotation.probability if annotation.probability is not None else np.ones(len(annotation.points))
    return [
        {
            "x": float(x) if np.isfinite(x) else None,
            "y": float(y) if np.isfinite(y) else None,
            "v": int(v),
            "p": round(float(p), 4),
        }
        for (x, y), v, p in zip(annotation.points, annotation.visibility, sure, strict=True)
    ]


def _embed(path: Path, side: int, max_pixels: int) -> str:
    """A photo as a data URL, its longer side at most ``side`` pixels."""
    image = read_image(path, max_pixels=max_pixels)
    scale = min(1.0, side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    buffer = io.BytesIO()
    small = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3) if scale < 1 else image
    small.save(buffer, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _labels(path: Path, format: Format) -> dict[str, Any]:
    """The label file for the page: its text, or of a folder the texts in it."""
    try:
        if not path.is_dir():
            return {"format": format.name, "text": path.read_text("utf-8")}
        texts = sorted(file for file in path.rglob("*") if file.suffix in (".txt", ".yaml"))
        return {"format": format.name, "files": {f.relative_to(path).as_posix(): f.read_text("utf-8") for f in texts}}
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _render(sheet: dict[str, Any]) -> str:
    from markupsafe import Markup

    parts = {"css": "review.css", "patch": "patch.js", "script": "review.js"}
    texts = {key: Markup(_template_text(name)) for key, name in parts.items()}
    return str(_environment().get_template("review.html.j2").render(sheet=sheet, **texts))


@functools.cache
def _environment() -> Any:
    import jinja2

    loader = jinja2.FunctionLoader(_template_text)
    return jinja2.Environment(loader=loader, autoescape=True, keep_trailing_newline=True)


def _template_text(name: str) -> str:
    return resources.files("cats.labelling").joinpath("templates", name).read_text("utf-8")
