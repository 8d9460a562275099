"""Looking at all photos and annotations before a long run: what cannot be read is left out, counted and named.

One broken photo among thousands would otherwise end a training hours after its start.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cats.core.console import note, progress
from cats.core.errors import InputError
from cats.data.folders import CategoryFolder, PhotoFolder
from cats.data.samples import PairDataset, Sample, Subset
from cats.data.warps import read_square

_SIDE = 64  # pixels; the photo is decoded as for training, only made smaller
_NAMED = 3
_BARE = "has no keypoints in both images"


def check_photos(folder: PhotoFolder) -> PhotoFolder:
    """The folder without the photos that cannot be read; raises :class:`InputError` where none is left."""
    bad = find_unreadable(folder.paths)
    if len(bad) == len(folder.paths):
        raise InputError(f"{folder.root}: none of its {len(bad)} photos can be read; {next(iter(bad.values()))}")
    _say(bad, len(folder.paths), "photos")
    paths = tuple(path for path in folder.paths if path not in bad)
    return PhotoFolder(folder.root, paths, folder.skipped + len(bad))


def check_categories(folder: CategoryFolder) -> CategoryFolder:
    """The folder without the photos that cannot be read, and without categories that then have fewer than two.

    Raises:
        InputError: no category is left.
    """
    bad = find_unreadable(path for paths in folder.categories.values() for path in paths)
    _say(bad, len(folder), "photos")
    good = {name: tuple(p for p in paths if p not in bad) for name, paths in folder.categories.items()}
    usable = {name: paths for name, paths in good.items() if len(paths) > 1}
    if not usable:
        reason = f"; {next(iter(bad.values()))}" if bad else ""
        raise InputError(f"{folder.root}: no category has two photos that can be read{reason}")
    return CategoryFolder(folder.root, usable, (*folder.dropped, *sorted(set(good) - set(usable))))


def check_pairs(dataset: PairDataset) -> PairDataset:
    """The data set without pairs whose annotation is broken, whose keypoints are missing, or whose photos cannot be
    read.

    Raises:
        InputError: no pair is left.
    """
    bad: dict[object, str] = {}
    samples: dict[int, Sample] = {}
    bar = progress()
    with bar:
        for index in bar.track(range(len(dataset)), description="reading annotations"):
            try:
                sample = dataset[index]
            except InputError as error:
                bad[index] = str(error)
                continue
            if sample.annotated:
                samples[index] = sample
            else:
                bad[index] = f"{sample.name} {_BARE}"
    unreadable = find_unreadable({path: None for s in samples.values() for path in (s.image_a, s.image_b)})
    for index, sample in samples.items():
        reason = unreadable.get(sample.image_a) or unreadable.get(sample.image_b)
        if reason:
            bad[index] = reason
    if len(bad) == len(dataset) and all(text.endswith(_BARE) for text in bad.values()):
        raise InputError(f"{dataset.root}: no pair has keypoints in both images; training and validation need some")
    if len(bad) == len(dataset):
        raise InputError(f"{dataset.root}: none of its {len(bad)} pairs can be used; {next(iter(bad.values()))}")
    _say(bad, len(dataset), "pairs")
    outside = sum(sample.left_out for sample in samples.values())
    if outside:
        _note_once(f"{dataset.root}: left out {outside} keypoints that lie outside their images")
    return Subset(dataset, [i for i in range(len(dataset)) if i not in bad]) if bad else dataset


def find_unreadable(paths: Iterable[Path]) -> dict[Path, str]:
    """Each photo that cannot be decoded, with the reason, in the order of the paths."""
    files = list(paths)

    def reason(path: Path) -> str | None:
        try:
            stamp = path.stat()
        except OSError as error:
            return f"cannot read {path}: {error.strerror}"
        return _reason(path, stamp.st_size, stamp.st_mtime_ns)

    bar = progress()
    with bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoders work outside Python's lock
        found = list(bar.track(pool.map(reason, files), total=len(files), description="looking at the photos"))
    return {path: text for path, text in zip(files, found, strict=True) if text is not None}


@functools.lru_cache(maxsize=1 << 18)
def _reason(path: Path, size: int, changed: int) -> str | None:
    """Why a photo cannot be read; remembered, because training and validation often look at the same folder."""
    try:
        read_square(path, _SIDE)
    except InputError as error:
        return str(error)
    return None


@functools.cache
def _note_once(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        note(text)


def _say(bad: dict[Path, str] | dict[object, str], count: int, what: str) -> None:
    if bad:
        reasons = list(bad.values())
        more = f"; and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
        _note_once(f"left out {len(bad)} of {count} {what}: {'; '.join(reasons[:_NAMED])}{more}")
