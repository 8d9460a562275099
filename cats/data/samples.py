"""One annotated pair of images, :class:`Sample`, and what all readers of data sets share. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cats.core.errors import InputError
from cats.core.geometry import Floats, Size, as_points
from cats.core.images import read_image
from cats.core.pck import PairKeypoints

Box = tuple[float, float, float, float]
"""Object box (x_min, y_min, x_max, y_max) in pixels."""

DIFFICULTIES = ("viewpoint", "scale", "truncation", "occlusion")
"""Difficulty flags of SPair-71k. Viewpoint and scale: 0 easy, 1 medium, 2 hard; truncation and occlusion: 0 none,
1 source, 2 target, 3 both (a and b here)."""

# The furthest that an annotation may lie outside its image, in sides of the image; beyond it belongs to another one.
_OUTSIDE = 0.25
_SLACK = 1  # pixels, of annotations that count from 1 or give the border of the last pixel


@dataclass(frozen=True)
class DenseTruth:
    """Ground-truth flow of every pixel.

    Attributes:
        flow: (H, W, 2) float32, x first: position in b minus position in a, in pixels, for each pixel of a.
        valid: (H, W) bool: pixels with a known partner that count in evaluation.
    """

    flow: NDArray[np.float32]
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class Sample:
    """One pair of images and its annotation. Points, boxes and flow are in pixels of the images **as shown**: upright
    and, where ``mirror_a`` or ``mirror_b`` says so, mirrored left to right.

    Attributes:
        image_a, image_b: files.
        size_a, size_b: (width, height).
        points_a, points_b: (N, 2) corresponding keypoints; of a pair without annotation (0, 2). Those that lie outside
            their image, by more than a pixel, or are padded with -1, are left out on both sides.
        box_a, box_b: object boxes, where the data set has them.
        category: of the object.
        difficulty: :data:`DIFFICULTIES` -> level, where the data set has them.
        keypoint_ids: name of each keypoint within its category, where the data set has them.
        mirror_a, mirror_b: the image is shown mirrored.
        dense: loads the dense ground truth, where the data set has one.
        name: for messages and reports.
        left_out: number of keypoints left out.
    """

    image_a: Path
    image_b: Path
    size_a: Size
    size_b: Size
    points_a: Floats = field(default_factory=lambda: np.zeros((0, 2)))
    points_b: Floats = field(default_factory=lambda: np.zeros((0, 2)))
    box_a: Box | None = None
    box_b: Box | None = None
    category: str | None = None
    difficulty: Mapping[str, int] = field(default_factory=dict)
    keypoint_ids: tuple[str, ...] = ()
    mirror_a: bool = False
    mirror_b: bool = False
    dense: Callable[[], DenseTruth] | None = None
    name: str = ""
    left_out: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", f"{self.image_a.name} -> {self.image_b.name}")
        for side in ("a", "b"):
            object.__setattr__(self, f"points_{side}", self._checked_points(side))
        if len(self.points_a) != len(self.points_b):
            raise InputError(
                f"broken annotation of {self.name}: {len(self.points_a)} keypoints in a, {len(self.points_b)} in b"
            )
        if self.keypoint_ids and len(self.keypoint_ids) != len(self.points_a):
            raise InputError(
                f"broken annotation of {self.name}: {len(self.keypoint_ids)} names for {len(self.points_a)} keypoints"
            )
        inside = self._inside("a") & self._inside("b")
        if not inside.all():
            for side in ("a", "b"):
                object.__setattr__(self, f"points_{side}", getattr(self, f"points_{side}")[inside])
            names = tuple(name for name, kept in zip(self.keypoint_ids, inside, strict=False) if kept)
            object.__setattr__(self, "keypoint_ids", names)
            object.__setattr__(self, "left_out", int((~inside).sum()))
        for side in ("a", "b"):
            self._check_box(side)

    @property
    def annotated(self) -> bool:
        """Whether the pair has corresponding keypoints."""
        return len(self.points_a) > 0

    @property
    def keypoints(self) -> PairKeypoints:
        """The part of the annotation that PCK is computed from."""
        return PairKeypoints(self.points_a, self.points_b, self.size_a, self.size_b, self.box_a, self.box_b, self.name)

    def read(self, side: str) -> Image.Image:
        """Decode image ``"a"`` or ``"b"`` as shown: RGB, upright, mirrored where the sample says so.

        Raises:
            InputError: the file is missing or unreadable, or has another size than its annotation says.
        """
        path, size = (self.image_a, self.size_a) if side == "a" else (self.image_b, self.size_b)
        image = read_image(path)
        if image.size != size:
            raise InputError(
                f"{path} has {image.size[0]}x{image.size[1]} pixels, the annotation of {self.name} says "
                f"{size[0]}x{size[1]}: the data set is mixed up, unpack it again"
            )
        mirrored = self.mirror_a if side == "a" else self.mirror_b
        return ImageOps.mirror(image) if mirrored else image

    def _checked_points(self, side: str) -> Floats:
        try:
            points = as_points(getattr(self, f"points_{side}"))
        except InputError as error:
            raise InputError(f"broken annotation of {self.name}, image {side}: {error}") from error
        width, height = getattr(self, f"size_{side}")
        margin = _OUTSIDE * max(width, height)
        outside = ((points < -margin) | (points > np.array([width, height]) + margin)).any(axis=1)
        if outside.any():
            row = int(np.flatnonzero(outside)[0])
            raise InputError(
                f"broken annotation of {self.name}: keypoint {row} at {points[row].tolist()} lies far outside image "
                f"{side}, which has {width}x{height} pixels"
            )
        return points

    def _inside(self, side: str) -> NDArray[np.bool_]:
        """(N,) bool: keypoints on the image of a side."""
        points = getattr(self, f"points_{side}")
        return ((points > -_SLACK) & (points < np.add(getattr(self, f"size_{side}"), _SLACK))).all(axis=1)

    def _check_box(self, side: str) -> None:
        box = getattr(self, f"box_{side}")
        if box is None:
            return
        x_min, y_min, x_max, y_max = box
        if not (np.isfinite(box).all() and x_max > x_min and y_max > y_min):
            raise InputError(
                f"broken annotation of {self.name}: box {list(box)} of image {side} is not x_min, y_min, x_max, y_max"
            )


def mirror(sample: Sample, *, permutation: Mapping[str, str] | None = None) -> Sample:
    """The pair with both images mirrored left to right: ``x' = width - 1 - x``, pixel centres being at integers.

    Both images of a pair are mirrored together: what was a left wing is then a right wing in both, so corresponding
    points still correspond and no keypoint changes its partner. Only their names change.

    Args:
        sample: a pair without dense ground truth.
        permutation: name of a keypoint -> its name in the mirrored object (left wing -> right wing). Without it the
            mirrored sample has no names, because the old ones would be wrong.

    Raises:
        InputError: the sample has a dense ground truth, or the permutation lacks a keypoint.
    """
    if sample.dense is not None:
        raise InputError(f"{sample.name} has a dense ground truth; only pairs with keypoints can be mirrored")
    ids: tuple[str, ...] = ()
    if permutation is not None:
        missing = [name for name in sample.keypoint_ids if name not in permutation]
        if missing:
            raise InputError(
                f"{sample.name}: the permutation does not say what mirroring makes of keypoint {missing[0]!r}"
            )
        ids = tuple(permutation[name] for name in sample.keypoint_ids)
    mirrored = replace(
        sample,
        points_a=mirror_points(sample.points_a, sample.size_a[0]),
        points_b=mirror_points(sample.points_b, sample.size_b[0]),
        box_a=_mirror_box(sample.box_a, sample.size_a[0]),
        box_b=_mirror_box(sample.box_b, sample.size_b[0]),
        mirror_a=not sample.mirror_a,
        mirror_b=not sample.mirror_b,
        keypoint_ids=ids,
    )
    object.__setattr__(mirrored, "left_out", sample.left_out)
    return mirrored


def mirror_points(points: Floats, width: int) -> Floats:
    """Points (N, 2) of an image of ``width`` pixels in its mirror image."""
    return np.column_stack([width - 1 - points[:, 0], points[:, 1]])


def _mirror_box(box: Box | None, width: int) -> Box | None:
    return None if box is None else (width - 1 - box[2], box[1], width - 1 - box[0], box[3])


class PairDataset:
    """A list of pairs with lazily read annotation; readers derive from it.

    Attributes:
        kind: name of the reader in ``KIND:DIR``.
        root: folder or file it was opened on.
        split: ``train``, ``val``, ``test``, or ``None`` where the data set has no splits.
        description: what was opened, one line.
        published: number of pairs of the published list, where it is known.
    """

    kind = "pairs"
    splits: tuple[str | None, ...] = (None,)
    """Names of the published lists; ``None`` of a data set without splits."""

    def __init__(self, root: Path, split: str | None, description: str, published: int | None = None) -> None:
        self.root, self.split, self.description, self.published = root, split, description, published

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError

    def category_of(self, index: int) -> str | None:
        """Category of a pair without reading its annotation."""
        return self[index].category

    def files_of(self, index: int) -> tuple[Path, ...]:
        """Every file that a pair needs, without reading one: annotations, then image a and image b."""
        raise NotImplementedError

    def missing_files(self) -> list[Path]:
        """Files of the pairs that do not exist, each once."""
        return missing_files(path for index in range(len(self)) for path in self.files_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    @property
    def categories(self) -> list[str]:
        """Names of all categories, sorted."""
        found = {self.category_of(index) for index in range(len(self))}
        return sorted(name for name in found if name is not None)

    def select(self, *, categories: Sequence[str] | None = None, limit: int | None = None) -> Subset:
        """Pairs of some categories; ``limit`` of them, spread evenly over the list.

        Raises:
            InputError: a category that the data set does not have, or a limit below 1.
        """
        indices = list(range(len(self)))
        if categories:
            unknown = sorted(set(categories) - set(self.categories))
            if unknown:
                raise InputError(f"{self.root} has no category {unknown[0]!r}; it has {', '.join(self.categories)}")
            indices = [index for index in indices if self.category_of(index) in set(categories)]
        if limit is not None:
            if limit < 1:
                raise InputError(f"a limit of {limit} pairs: at least 1 is needed")
            if limit < len(indices):
                indices = [indices[k * len(indices) // limit] for k in range(limit)]
        return Subset(self, indices)


class Subset(PairDataset):
    """Some pairs of a data set, in the given order."""

    def __init__(self, dataset: PairDataset, indices: Iterable[int]) -> None:
        self.indices = list(indices)
        self.dataset = dataset
        super().__init__(dataset.root, dataset.split, f"{len(self.indices)} of {dataset.description}")
        self.kind = dataset.kind

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.indices[index]]

    def category_of(self, index: int) -> str | None:
        """See :meth:`PairDataset.category_of`."""
        return self.dataset.category_of(self.indices[index])

    def files_of(self, index: int) -> tuple[Path, ...]:
        """See :meth:`PairDataset.files_of`."""
        return self.dataset.files_of(self.indices[index])


def require_entries(root: Path, entries: Mapping[str, str], where: str) -> None:
    """Check that a data set's folder holds what its reader needs.

    Args:
        root: the folder.
        entries: relative path -> what it is.
        where: where the data set can be had, for the message.

    Raises:
        InputError: naming everything that is missing.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; {where}")
    missing = [f"{path} ({what})" for path, what in entries.items() if not (root / path).exists()]
    if missing:
        raise InputError(f"{root} lacks {', '.join(missing)}; {where}")


def require_files(dataset: PairDataset, root: Path, where: str) -> None:
    """Check that the files of all pairs exist.

    Raises:
        InputError: with the number of missing files and the first three.
    """
    missing = dataset.missing_files()
    if missing:
        count = len({path for index in range(len(dataset)) for path in dataset.files_of(index)})
        first = ", ".join(short_name(path, root) for path in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(f"{root}: {len(missing)} of {count} listed files are missing: {first}; {where}")


def missing_files(files: Iterable[Path]) -> list[Path]:
    """Those that do not exist, each once; every folder is read once."""
    listed: dict[Path, frozenset[str]] = {}
    missing = []
    for path in dict.fromkeys(files):
        names = listed.get(path.parent)
        if names is None:
            names = frozenset(item.name for item in path.parent.iterdir()) if path.parent.is_dir() else frozenset()
            listed[path.parent] = names
        if path.name not in names:
            missing.append(path)
    return missing


def short_name(path: Path, root: Path) -> str:
    """A file's path below the data set's folder."""
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def parse_box(values: Any, name: str) -> Box:
    """Four numbers as a box; raises :class:`InputError` naming the annotation."""
    try:
        box = tuple(float(value) for value in np.asarray(values, dtype=np.float64).ravel())
    except (TypeError, ValueError) as error:
        raise InputError(f"broken annotation of {name}: box {values!r} is not four numbers") from error
    if len(box) != 4:
        raise InputError(f"broken annotation of {name}: a box of {len(box)} numbers instead of four")
    return box


def normal_split(split: str | None, known: Sequence[str], default: str) -> str:
    """A split by any of its usual names; raises :class:`InputError` with the known ones."""
    name = {"trn": "train", "training": "train", "validation": "val"}.get(split or default, split or default)
    if name not in known:
        raise InputError(f"unknown split {split!r}; known: {', '.join(known)}")
    return name
