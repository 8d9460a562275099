"""Whether a data set is whole: what its lists name is there, every photo can be decoded, every annotation fits."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cats.core.console import progress
from cats.core.errors import InputError
from cats.core.geometry import Size
from cats.core.images import image_size
from cats.data import KINDS, find_reader, open_dataset, parse_data
from cats.data.checked import find_unreadable
from cats.data.folders import PhotoFolder
from cats.data.samples import PairDataset, Sample, short_name

FOLDERS = ("categories", "warps")
"""Kinds without annotation: photos sorted by category, any photos."""


@dataclass
class Counts:
    """What one list, or one category of it, holds.

    Attributes:
        pairs: listed.
        photos: different ones.
        keypoints: corresponding ones of pairs that can be read.
        outside: keypoints that the readers leave out, because they lie outside their image or are padding.
        bare: pairs without any keypoint that counts.
    """

    pairs: int = 0
    photos: int = 0
    keypoints: int = 0
    outside: int = 0
    bare: int = 0


@dataclass
class ListReport:
    """One list of pairs, or one folder of photos.

    Attributes:
        split: ``train``, ``val``, ``test``, or ``None``.
        description: what was opened; of a list that cannot be opened, empty.
        published: number of pairs of the published list, where it is known.
        total: of all categories.
        categories: by name.
        problems: everything that makes a pair or a photo unusable, one line each.
        notes: what a reader leaves out or what differs from the published data set, without harm.
    """

    split: str | None
    description: str = ""
    published: int | None = None
    total: Counts = field(default_factory=Counts)
    categories: dict[str, Counts] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


def check_dataset(spec: str, split: str | None = None) -> list[ListReport]:
    """Look at everything that a data set's lists name.

    Args:
        spec: ``KIND:DIR`` of :func:`cats.data.open_dataset`, or of :data:`FOLDERS`.
        split: only this one; default: every published one, where one that cannot be opened is a problem of its own.

    Raises:
        InputError: unknown kind; the folder or file does not exist; ``split`` cannot be opened.
    """
    kind, root = parse_data(spec, (*KINDS, *FOLDERS))
    if not root.exists():
        raise InputError(f"{root} does not exist")
    if kind in FOLDERS:
        if split is not None:
            raise InputError(f"{spec} has no splits; leave out the split {split!r}")
        return [_check_folder(kind, root)]
    if split is not None:
        return [_check_pairs(open_dataset(spec, split, incomplete=True))]
    reports = []
    for name in find_reader(kind).splits:
        try:
            dataset = open_dataset(spec, name, incomplete=True)
        except InputError as error:
            reports.append(ListReport(name, problems=[str(error)]))
        else:
            reports.append(_check_pairs(dataset))
    return reports


def _check_pairs(dataset: PairDataset) -> ListReport:
    base = dataset.root if dataset.root.is_dir() else dataset.root.parent
    missing = dataset.missing_files()
    problems = dict.fromkeys(f"missing: {short_name(path, base)}" for path in missing)
    photos: dict[str, dict[Path, None]] = {}  # of each category
    for index in range(len(dataset)):
        photos.setdefault(dataset.category_of(index) or "", {}).update(dict.fromkeys(dataset.files_of(index)[-2:]))
    every = dict.fromkeys(path for paths in photos.values() for path in paths)
    absent = set(missing)
    unreadable = find_unreadable(path for path in every if path not in absent)
    problems.update(dict.fromkeys(unreadable.values()))
    absent.update(unreadable)
    total = Counts(pairs=len(dataset), photos=len(every))
    categories = {name: Counts(photos=len(paths)) for name, paths in sorted(photos.items())}
    sizes: dict[Path, Size] = {}
    with progress() as bar:
        for index in bar.track(range(len(dataset)), description="reading annotations"):
            count = categories[dataset.category_of(index) or ""]
            count.pairs += 1
            if not absent.isdisjoint(dataset.files_of(index)):
                continue
            try:
                sample = dataset[index]
                if sample.dense is not None:
                    sample.dense()
            except InputError as error:
                problems[str(error)] = None
                continue
            problems.update(dict.fromkeys(_wrong_sizes(sample, sizes)))
            for counts in (total, count):
                counts.keypoints += len(sample.points_a)
                counts.outside += sample.left_out
                counts.bare += not sample.annotated and sample.dense is None
    return ListReport(
        dataset.split,
        dataset.description,
        dataset.published,
        total,
        {} if list(categories) == [""] else categories,
        list(problems),
        _notes(total, dataset.published),
    )


def _wrong_sizes(sample: Sample, sizes: dict[Path, Size]) -> list[str]:
    """Photos whose size is not the one that their annotation was made on; ``sizes`` are those known already."""
    found = []
    for path, size in ((sample.image_a, sample.size_a), (sample.image_b, sample.size_b)):
        if path not in sizes:
            sizes[path] = image_size(path)
        if sizes[path] != size:
            (width, height), (w, h) = sizes[path], size
            found.append(f"{path} has {width}x{height} pixels, the annotation of {sample.name} says {w}x{h}")
    return found


def _notes(total: Counts, published: int | None) -> list[str]:
    notes = []
    if published is not None and published != total.pairs:
        notes.append(f"{total.pairs} pairs are listed, {published} are published")
    if total.outside:
        notes.append(f"{total.outside} keypoints lie outside their image or are padding, and are left out")
    if total.bare:
        notes.append(f"{total.bare} pairs have no keypoints, and are left out of training and evaluation")
    return notes


def _check_folder(kind: str, root: Path) -> ListReport:
    try:
        folder = PhotoFolder.open(root)
    except InputError as error:
        return ListReport(None, problems=[str(error)])
    report = ListReport(None, f"{len(folder)} photos", total=Counts(photos=len(folder)))
    bad = find_unreadable(folder.paths)
    report.problems += list(bad.values())
    if folder.skipped:
        report.notes.append(f"{folder.skipped} other files are skipped")
    if kind == "categories":
        usable: dict[str, int] = {}
        loose = 0
        for path in folder.paths:
            first, *rest = path.relative_to(root).parts
            if not rest:
                loose += 1
                continue
            report.categories.setdefault(first, Counts()).photos += 1
            usable[first] = usable.get(first, 0) + (path not in bad)
        few = [name for name, count in usable.items() if count < 2]
        if len(few) == len(usable):
            report.problems.append(f"{root} has no sub-folder with two photos; expected {root}/CATEGORY/photo.jpg")
        elif few:
            report.notes.append(f"categories with fewer than two photos are left out: {', '.join(sorted(few))}")
        if loose:
            report.notes.append(f"{loose} photos lie in no category's folder and are left out")
    return report
