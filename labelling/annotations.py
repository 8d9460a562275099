"""Annotations of photos, whatever file they came from: categories, keypoints, boxes, polygons and masks.

Coordinates are pixels of the upright photo, x right, y down, pixel centres at integers. Every format of
:mod:`cats.labelling.formats` is read into these classes and written from them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cats.core.errors import InputError
from cats.core.geometry import Floats, Size

NOT_LABELLED, HIDDEN, VISIBLE = 0, 1, 2
"""Visibility of a keypoint, as COCO counts it."""

Box = tuple[float, float, float, float]
"""x, y of the upper left corner, width, height."""

OUTSIDE = 1.0
"""Pixels by which a point may lie outside its photo: tools differ in where a pixel begins."""


@dataclass(frozen=True)
class Category:
    """A kind of object.

    Attributes:
        name: unique in a file.
        keypoints: names of its keypoints, in their order; empty where it has boxes or outlines alone.
        skeleton: bones, as pairs of indices (from 0) into ``keypoints``.

    Raises:
        InputError: no name, a keypoint without a name or twice, a bone between keypoints that there are not.
    """

    name: str
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InputError("a category without a name")
        if not all(name.strip() for name in self.keypoints):
            raise InputError(f"category {self.name}: a keypoint without a name")
        twice = next((name for name in self.keypoints if self.keypoints.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"category {self.name}: two keypoints are named {twice}")
        for bone in self.skeleton:
            if len(bone) != 2 or not all(0 <= end < len(self.keypoints) for end in bone):
                raise InputError(
                    f"category {self.name}: its skeleton joins keypoints {[end + 1 for end in bone]}, "
                    f"counted from 1, but there are {len(self.keypoints)}"
                )


@dataclass(frozen=True, eq=False)
class Mask:
    """A region of a photo as runs of pixels, as COCO stores it: a photo of megapixels takes a few kilobytes.

    Attributes:
        size: (width, height) of the photo.
        counts: lengths of the runs, in turn outside and inside, the first outside (it may be 0); pixels are counted
            down the columns, from left to right.

    Raises:
        InputError: negative runs, or runs that do not add up to the photo.
    """

    size: Size
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        pixels = self.size[0] * self.size[1]
        if not all(isinstance(count, int) for count in self.counts):
            raise InputError("a mask whose runs are not whole numbers")
        if any(count < 0 for count in self.counts) or sum(self.counts) != pixels:
            raise InputError(
                f"a mask whose runs do not add up to the {self.size[0]}x{self.size[1]} pixels of its photo"
            )

    @classmethod
    def from_array(cls, inside: ArrayLike) -> Mask:
        """Runs of a bool array (height, width)."""
        array = np.asarray(inside, bool)
        line = array.ravel(order="F")
        changes = np.flatnonzero(np.diff(line)) + 1
        ends = np.concatenate([[0], changes, [line.size]])
        counts = np.diff(ends).tolist()
        if line.size and line[0]:
            counts.insert(0, 0)
        return cls((array.shape[1], array.shape[0]), tuple(counts))

    def to_array(self) -> NDArray[np.bool_]:
        """Bool array (height, width), true inside."""
        inside = np.arange(len(self.counts)) % 2 == 1
        width, height = self.size
        return np.repeat(inside, self.counts).reshape((height, width), order="F")

    @property
    def area(self) -> int:
        """Pixels inside."""
        return sum(self.counts[1::2])


@dataclass(frozen=True, eq=False)
class Annotation:
    """One object in a photo.

    Attributes:
        category: name of its :class:`Category`.
        points: (K, 2) float64 in pixels, one row for each keypoint of the category; NaN where unknown.
        visibility: (K,) int64: 0 not labelled, 1 labelled but hidden, 2 visible; None: 2 where a point is known.
        box: x, y, width, height in pixels, or None.
        polygons: outlines (N, 2) in pixels, N >= 3; the object is their union. Empty where there are none.
        mask: the object as pixels, where its source has that.
        probability: (K,) float64 in [0, 1] that a predicted point is right, or None (labelled by a person).
        score: [0, 1] how sure the whole annotation is, or None.

    Raises:
        InputError: shapes that do not fit, values out of range, a visible point that is not a finite number.
    """

    category: str
    points: Floats = field(default_factory=lambda: np.zeros((0, 2)))
    visibility: NDArray[Any] = None  # type: ignore[assignment]  # filled below
    box: Box | None = None
    polygons: tuple[Floats, ...] = ()
    mask: Mask | None = None
    probability: Floats | None = None
    score: float | None = None

    def __post_init__(self) -> None:
        points = _pairs(self.points, "points")
        known = np.isfinite(points).all(axis=1)
        visibility = np.where(known, VISIBLE, NOT_LABELLED) if self.visibility is None else np.asarray(self.visibility)
        if visibility.shape != (len(points),) or not np.isin(visibility, (NOT_LABELLED, HIDDEN, VISIBLE)).all():
            raise InputError(f"its visibility is not {len(points)} values 0, 1 or 2, one for each keypoint")
        lost = np.flatnonzero((visibility > 0) & ~known)
        if lost.size:
            raise InputError(f"its keypoint {lost[0] + 1} is labelled but has no finite place")
        _set(self, points=points, visibility=visibility.astype(np.int64))
        if self.box is not None:
            box = _floats(self.box, "box")
            if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] < 0).any():
                raise InputError(f"its box {box.tolist()} is not x, y, width, height in pixels")
            _set(self, box=tuple(box.tolist()))
        polygons = tuple(_pairs(polygon, "polygon") for polygon in self.polygons)
        if any(len(polygon) < 3 or not np.isfinite(polygon).all() for polygon in polygons):
            raise InputError("it has a polygon of fewer than 3 finite points")
        _set(self, polygons=polygons)
        if self.probability is not None:
            probability = _floats(self.probability, "probability")
            if probability.shape != (len(points),) or not ((probability >= 0) & (probability <= 1)).all():
                raise InputError(f"its probability is not {len(points)} values from 0 to 1, one for each keypoint")
            _set(self, probability=probability)
        if self.score is not None and not 0 <= self.score <= 1:
            raise InputError(f"its score {self.score} is not from 0 to 1")

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(K,) which points are labelled, hidden or visible."""
        return self.visibility > 0

    def extent(self) -> Box | None:
        """The box, else the smallest one around the labelled points, the polygons or the mask; None without any."""
        if self.box is not None:
            return self.box
        parts = [self.points[self.labelled], *self.polygons]
        corners = np.concatenate(parts)
        if len(corners):
            low, high = corners.min(axis=0), corners.max(axis=0)
            return (float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1]))
        if self.mask is None or not self.mask.area:
            return None
        rows, columns = np.nonzero(self.mask.to_array())
        left, top = int(columns.min()), int(rows.min())
        return (float(left), float(top), float(columns.max() - left + 1), float(rows.max() - top + 1))


@dataclass(frozen=True, eq=False)
class AnnotatedPhoto:
    """A photo and the objects in it; none is an answer too.

    Attributes:
        path: the file.
        size: (width, height) of the upright photo in pixels.
        annotations: in the order of the file.

    Raises:
        InputError: a labelled point or a mask does not fit the photo.
    """

    path: Path
    size: Size
    annotations: tuple[Annotation, ...] = ()

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise InputError(f"{self.path}: a photo of {self.size[0]}x{self.size[1]} pixels")
        for number, annotation in enumerate(self.annotations, start=1):
            where = f"{self.path}, object {number} ({annotation.category})"
            if annotation.mask is not None and annotation.mask.size != self.size:
                raise InputError(f"{where}: a mask of {annotation.mask.size}, but the photo has {self.size} pixels")
            labelled = np.where(annotation.labelled[:, None], annotation.points, 0)
            outside = ((labelled < -OUTSIDE) | (labelled > np.asarray(self.size) + OUTSIDE - 1)).any(axis=1)
            if outside.any():
                index = int(np.flatnonzero(outside)[0])
                x, y = annotation.points[index]
                raise InputError(
                    f"{where}: keypoint {index + 1} at ({x:g}, {y:g}) lies outside the photo, "
                    f"which has {self.size[0]}x{self.size[1]} pixels"
                )


@dataclass(frozen=True, eq=False)
class Annotations:
    """Everything that a label file says.

    Attributes:
        categories: in the order of the file.
        photos: in the order of the file, each path once.

    Raises:
        InputError: a category or photo twice, an annotation of no category here or with another number of points.
    """

    categories: tuple[Category, ...]
    photos: tuple[AnnotatedPhoto, ...]

    def __post_init__(self) -> None:
        names = [category.name for category in self.categories]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"two categories are named {twice}")
        seen: set[Path] = set()
        for photo in self.photos:
            if photo.path in seen:
                raise InputError(f"{photo.path} is listed twice")
            seen.add(photo.path)
            for number, annotation in enumerate(photo.annotations, start=1):
                where = f"{photo.path}, object {number}"
                if annotation.category not in self._by_name:
                    raise InputError(f"{where}: no category {annotation.category!r} (there are {', '.join(names)})")
                expected = len(self._by_name[annotation.category].keypoints)
                if len(annotation.points) != expected:
                    found = len(annotation.points)
                    raise InputError(f"{where}: {found} keypoints, but category {annotation.category} has {expected}")

    @functools.cached_property
    def _by_name(self) -> dict[str, Category]:
        return {category.name: category for category in self.categories}

    def category(self, name: str) -> Category:
        """The category of that name; raises :class:`InputError` where there is none."""
        try:
            return self._by_name[name]
        except KeyError:
            raise InputError(f"no category {name!r}: there are {', '.join(self._by_name)}") from None

    def objects(self, category: str | None = None) -> Iterator[tuple[AnnotatedPhoto, Annotation]]:
        """Every object with its photo; of one category, or of all."""
        for photo in self.photos:
            for annotation in photo.annotations:
                if category in (None, annotation.category):
                    yield photo, annotation


def _floats(values: ArrayLike, what: str) -> Floats:
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"its {what} is not made of numbers") from error


def _pairs(values: ArrayLike, what: str) -> Floats:
    """(N, 2), also out of a list x, y, x, y, ..."""
    array = _floats(values, what)
    if array.size % 2 or (array.ndim > 1 and array.shape[-1] != 2):
        raise InputError(f"its {what} are not pairs x, y")
    return array.reshape(-1, 2)


def _set(target: object, **values: object) -> None:
    """Normalise fields of a frozen data class while it is made."""
    for name, value in values.items():
        object.__setattr__(target, name, value)
