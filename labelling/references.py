"""The labelled photos of one category, ready to be matched: their windows, features and looks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cats.core.errors import InputError
from cats.core.geometry import Floats, Size
from cats.core.images import read_image
from cats.labelling.annotations import Annotation, Annotations, Category
from cats.runtime import Matcher, same_kind
from cats.runtime.features import Features
from cats.runtime.windows import Window, object_window

GRID = 5
"""Anchors a side."""

_KEPT = 128  # looks whose features stay in memory, of 0.7 MB each with cats-tiny


@dataclass(frozen=True, eq=False)
class Look:
    """An image as the matcher takes it, and the part of its photo that it shows.

    Attributes:
        source: features of a split model, else the cut image.
        window: what it shows; the whole photo is a window too.
    """

    source: Features | Image.Image
    window: Window


def look_at(matcher: Matcher, image: Image.Image, window: Window | None = None) -> Look:
    """Encode a window of a photo, or all of it; with a model that is not split, only cut it."""
    whole = Window(0, 0, *image.size)
    window = window or whole
    part = image if window == whole else window.crop(image)
    return Look(matcher.encode(part) if matcher.encoder is not None else part, window)


def descriptor(look: Look) -> Floats | None:
    """What kind of thing a look shows, see :func:`cats.runtime.same_kind.descriptor`; None without features."""
    if not isinstance(look.source, Features):
        return None
    return same_kind.descriptor(look.source.arrays)


@dataclass(eq=False)
class Reference:
    """One labelled object.

    Attributes:
        path: of its photo.
        annotation: what is known of it.
        points: (K, 2) keypoints in pixels of its photo, NaN where not labelled.
        anchors: (GRID^2, 2) an even grid inside its box or outline, which says where an object without keypoints is,
            and how its box moves; NaN where it has neither.
        window: what is matched of its photo: the object with some room around it, in the first look at a photo too.
        trust: (K + GRID^2,) factor of its votes' weights: 1 where a person labelled it.
        kind: see :func:`descriptor`.
    """

    path: Path
    annotation: Annotation
    points: Floats
    anchors: Floats
    window: Window
    trust: Floats
    kind: Floats | None = None

    @property
    def targets(self) -> Floats:
        """(K + GRID^2, 2) everything that is looked for in a photo: points, then anchors."""
        return np.concatenate([self.points, self.anchors])


class LookStore:
    """Looks at windows of photos, those used last kept; for several threads."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher, self._lock = matcher, threading.Lock()
        self._looks: OrderedDict[tuple[Path, Window], Look] = OrderedDict()

    def look(self, path: Path, window: Window) -> Look:
        """A window of a photo, encoded; raises :class:`InputError` where it cannot be read."""
        key = (path, window)
        with self._lock:
            if key in self._looks:
                self._looks.move_to_end(key)
                return self._looks[key]
        found = look_at(self._matcher, read_image(path, max_pixels=self._matcher.max_pixels), window)
        with self._lock:
            self._looks[key] = found
            while len(self._looks) > _KEPT:
                self._looks.popitem(last=False)
        return found


class References:
    """The references of one category.

    Args:
        store: of the matcher that will match them.
        category: their category.
        items: at least one.

    Raises:
        InputError: a photo cannot be read.
    """

    def __init__(self, store: LookStore, category: Category, items: Sequence[Reference]) -> None:
        self.category, self.items = category, list(items)
        for item in self.items:  # finds unreadable photos before any work is done, too
            item.kind = descriptor(store.look(item.path, item.window))

    def likeness(self, kind: Floats) -> float:
        """Cosine of a photo's kind and that of the nearest reference."""
        return max(float(kind @ item.kind) for item in self.items if item.kind is not None)

    def nearest(self, kind: Floats | None, count: int) -> list[Reference]:
        """The references that look most like a photo, at most ``count``; the first where the model is not split."""
        if kind is None or len(self.items) <= count:
            return self.items[:count]
        likeness = [float(kind @ item.kind) if item.kind is not None else 0.0 for item in self.items]
        return [self.items[index] for index in np.argsort(likeness)[::-1][:count]]


def collect_references(store: LookStore, annotations: Annotations) -> dict[str, References]:
    """The labelled objects by category; categories without any are left out.

    Raises:
        InputError: no category has an object with a keypoint, box or outline, or a photo cannot be read.
    """
    result: dict[str, References] = {}
    for category in annotations.categories:
        items = [
            make_reference(photo.path, photo.size, annotation)
            for photo, annotation in annotations.objects(category.name)
            if annotation.labelled.any() or annotation.extent() is not None
        ]
        if items:
            result[category.name] = References(store, category, items)
    if not result:
        raise InputError("the references label nothing: at least one photo needs keypoints, a box or an outline")
    return result


def make_reference(path: Path, size: Size, annotation: Annotation) -> Reference:
    """A reference of an object that has at least one keypoint, a box or an outline."""
    points = np.where(annotation.labelled[:, None], annotation.points, np.nan)
    anchors = _anchors(annotation)
    window = object_window(spanning(points, anchors), size)
    return Reference(path, annotation, points, anchors, window, np.ones(len(points) + len(anchors)))


def spanning(points: Floats, anchors: Floats) -> Floats:
    """Points that say where an object lies: its keypoints, and the middle 90 % of its anchors where it has them."""
    known = points[np.isfinite(points).all(axis=1)]
    inside = anchors[np.isfinite(anchors).all(axis=1)]
    return np.concatenate([known, np.percentile(inside, (5, 95), axis=0)]) if len(inside) else known


def _anchors(annotation: Annotation) -> Floats:
    steps = (np.arange(GRID) + 0.5) / GRID
    grid = np.stack(np.meshgrid(steps, steps), axis=2).reshape(-1, 2)
    box = annotation.box
    if box is None and (annotation.polygons or annotation.mask is not None):
        box = annotation.extent()
    if box is None:
        return np.full_like(grid, np.nan)
    x, y, width, height = box
    return np.array([x, y]) + grid * (width, height) - 0.5
