"""Ranking the photos of a folder by how well they match one photo, with features kept between runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cats.core.errors import InputError
from cats.core.files import file_key
from cats.core.geometry import grid_points
from cats.core.images import read_image
from cats.core.photos import list_photos
from cats.runtime.features import Features, load_features, save_features
from cats.runtime.matcher import Matcher
from cats.runtime.result import Match

_AT_ONCE = 8  # photos whose features are in memory at once
SCORES = ("confidence", "forward-backward")


@dataclass
class Ranking:
    """A ranked gallery.

    Attributes:
        ranked: (score, photo, match a -> photo), best first.
        skipped: files that are no images by their name.
        failures: photos that could not be read, with the reason.
        cached: photos whose features came from the cache.
        left_out: whether the folder holds ``a`` itself, which is not ranked.
    """

    ranked: list[tuple[float, Path, Match]] = field(default_factory=list)
    skipped: int = 0
    failures: list[tuple[Path, str]] = field(default_factory=list)
    cached: int = 0
    left_out: bool = False


def rank_gallery(
    matcher: Matcher,
    a: Path,
    folder: Path,
    *,
    score: str = "confidence",
    cache: Path | None = None,
    batch_size: int | None = None,
    on_photos: Callable[[int], None] | None = None,
    on_photo: Callable[[], None] | None = None,
) -> Ranking:
    """Match ``a`` to every other photo below ``folder`` and rank them; a photo that cannot be read is one failure.

    Args:
        score: ``confidence``, its mean over a; or ``forward-backward``, minus the median distance that a -> b -> a
            moves a point, in the longer side of a, which runs the matcher twice.
        batch_size: see :meth:`cats.runtime.matcher.Matcher.match_gallery`.
        cache: ``.npz`` in which the photos' features are kept; those of changed photos are made again.
        on_photos: called with the number of photos before the first one.
        on_photo: called after each.

    Raises:
        InputError: no photo there, an unknown score, ``a`` unreadable, or a cache of another model.
    """
    if score not in SCORES:
        raise InputError(f"unknown score {score!r}: choose {', '.join(SCORES)}")
    if cache is not None and (cache.suffix != ".npz" or matcher.encoder is None):
        why = (
            "its name must end in .npz"
            if cache.suffix != ".npz"
            else "only a split model has them: cats-export --split"
        )
        raise InputError(f"cannot keep features in {cache}: {why}")
    result = Ranking()
    photos, result.skipped = list_photos(folder)
    others = [photo for photo in photos if not _same(photo, a)]
    result.left_out = len(others) < len(photos)
    photos = others
    if not photos:
        alone = " but A itself" if result.left_out else ""
        raise InputError(f"no photo below {folder}{alone} ({result.skipped} other files)")
    if on_photos is not None:
        on_photos(len(photos))
    sha = matcher.metadata.weights_sha256
    stored = load_features(cache, sha) if cache is not None and cache.exists() else {}
    kept: dict[str, Features] = {}
    first = matcher.encode(a) if matcher.encoder is not None else read_image(a, max_pixels=matcher.max_pixels)
    step = batch_size or _AT_ONCE
    for begin in range(0, len(photos), step):
        found: list[tuple[Path, Match]] = []
        encoded: list[tuple[Path, Features]] = []
        for photo in photos[begin : begin + step]:
            try:
                if matcher.encoder is None:
                    found.append((photo, matcher.match(first, photo, forward_backward=score != "confidence")))
                    continue
                key = file_key(photo)
                if key in stored:
                    result.cached += 1
                features = stored[key] if key in stored else matcher.encode(photo)
                if cache is not None:
                    kept[key] = features
                encoded.append((photo, replace(features, source=str(photo))))
            except InputError as error:
                result.failures.append((photo, str(error)))
        if encoded:
            gallery = [features for _, features in encoded]
            matches = matcher.match_gallery(
                first, gallery, batch_size=batch_size, forward_backward=score != "confidence"
            )
            found += [(photo, match) for (photo, _), match in zip(encoded, matches, strict=True)]
        result.ranked += [(match_score(match, score), photo, match) for photo, match in found]
        for _ in photos[begin : begin + step]:
            if on_photo is not None:
                on_photo()
    if cache is not None and result.cached < len(kept):
        save_features(cache, {**stored, **kept})
    result.ranked.sort(key=lambda item: -item[0])
    return result


def match_score(match: Match, score: str) -> float:
    """How well a match holds, larger is better; see :func:`rank_gallery`."""
    if score == "confidence":
        return float(match.confidence.mean())
    moved = match.forward_backward_error(grid_points(match.size_a, match.grid))
    return -float(np.median(moved)) / max(match.size_a)


def _same(photo: Path, a: Path) -> bool:
    """Whether both are one file; what is not there is no other's double."""
    try:
        return photo.samefile(a)
    except (OSError, ValueError):
        return False
