"""Looking at one photo: every chosen reference is matched to it, and votes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cats.core.geometry import Floats, Size, pixels_to_cells, sample_grid, transfer_points
from cats.labelling.consensus import Votes, extent, find_consensus
from cats.labelling.references import Look, LookStore, Reference, References, descriptor, look_at, spanning
from cats.runtime import Match, Matcher
from cats.runtime.windows import Window, object_window


@dataclass(frozen=True, eq=False)
class Carried:
    """One reference matched to a photo in the last look.

    Attributes:
        reference: that was matched, its window.
        flow: (2, G, G) float32 in cells, reference -> photo, between the two windows.
        backward_flow, backward_confidence: (2, G, G) and (G, G) float32, photo -> reference.
    """

    reference: Reference
    flow: NDArray[np.float32]
    backward_flow: NDArray[np.float32]
    backward_confidence: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Finding:
    """What the references say about one photo; without its features, so that thousands can be kept.

    Attributes:
        path, size: of the photo.
        references: all of its category.
        votes: for the keypoints and anchors, those of the last look last.
        places: (K + A, 2) their consensus, in pixels of the photo.
        window: what the last look showed of the photo.
        carried: what was matched in the last look.
        kind, seen: descriptors of the whole photo and of the last look, None where the model is not split.
    """

    path: Path
    size: Size
    references: References
    votes: Votes
    places: Floats
    window: Window
    carried: list[Carried]
    kind: Floats | None
    seen: Floats | None

    @property
    def keypoints(self) -> int:
        """K."""
        return len(self.references.category.keypoints)

    @property
    def likeness(self) -> float:
        """Cosine of the kinds of the object, as the last look shows it, and of the nearest reference; NaN without."""
        if self.seen is None:
            return float("nan")
        return max(float(self.seen @ item.reference.kind) for item in self.carried if item.reference.kind is not None)

    @property
    def last_weights(self) -> Floats:
        """(R, K + A) weights of the votes of the last look, a row for each of :attr:`carried`."""
        return self.votes.weights()[-len(self.carried) :]

    def best(self) -> Carried:
        """The reference whose votes lie nearest to the consensus."""
        weights = self.last_weights
        away = np.nan_to_num(self.votes.points[-len(self.carried) :] - self.places)
        mean = (np.linalg.norm(away, axis=2) * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-12)
        return self.carried[int(np.argmin(np.where(weights.sum(axis=1) > 0, mean, np.inf)))]


def look_for(
    matcher: Matcher,
    store: LookStore,
    path: Path,
    image: Image.Image,
    whole: Look,
    references: References,
    chosen: Sequence[Reference],
    looks: int,
) -> Finding:
    """Find the references' object in a photo.

    The first look shows the whole photo and only has to find the object, so it runs one way. Each later one is cut to
    it; the last one runs both ways, for the forward-backward error, and its votes count.

    Args:
        whole: look at the whole photo.
        chosen: the references to be matched, of ``references``.
        looks: see :func:`cats.labelling.label.label_photos`.
    """
    keypoints = len(references.category.keypoints)
    shown = [store.look(item.path, item.window) for item in chosen]
    here = whole
    votes, carried = cast_votes(matcher, chosen, shown, here, both_ways=looks == 1)
    for number in range(1, looks):
        places = find_consensus(votes)
        here = look_at(matcher, image, object_window(spanning(places[:keypoints], places[keypoints:]), image.size))
        votes, carried = cast_votes(matcher, chosen, shown, here, both_ways=number == looks - 1)
    places = find_consensus(votes)
    kind, seen = descriptor(whole), descriptor(here)
    return Finding(path, image.size, references, votes, places, here.window, carried, kind, seen)


def cast_votes(
    matcher: Matcher, references: Sequence[Reference], shown: Sequence[Look], photo: Look, *, both_ways: bool
) -> tuple[Votes, list[Carried]]:
    """Match every reference to a photo.

    Returns:
        the votes for keypoints and anchors in pixels of the photo; and, with ``both_ways``, the matches.
    """
    pairs = [(look.source, photo.source) for look in shown]
    if both_ways:
        pairs += [(b, a) for a, b in pairs]
    step = matcher.backend.gallery_batch  # on CPUs batches are slower
    matches = [m for first in range(0, len(pairs), step) for m in matcher.match_batch(pairs[first : first + step])]
    votes, carried = [], []
    for index, (reference, look) in enumerate(zip(references, shown, strict=True)):
        backward = matches[index + len(references)] if both_ways else None
        votes.append(_vote(reference, look, photo, matches[index], backward))
        if backward is not None:
            carried.append(Carried(reference, matches[index].flow, backward.flow, backward.confidence))
    return Votes.join(votes), carried


def _vote(reference: Reference, look: Look, photo: Look, forward: Match, backward: Match | None) -> Votes:
    targets = reference.targets
    known = np.isfinite(targets).all(axis=1)
    start = look.window.to_window(targets[known])
    size_a, size_b = look.window.size, photo.window.size
    there = transfer_points(start, forward.flow, size_a, size_b)
    confidence = _sample(forward, start, size_a)
    error = np.full(len(start), np.nan)
    if backward is not None:
        back = transfer_points(there, backward.flow, size_b, size_a)
        error = np.linalg.norm(back - start, axis=1) / extent(spanning(reference.points, reference.anchors))
        confidence = np.sqrt(confidence * _sample(backward, there, size_b))
    places = np.full((len(targets), 2), np.nan)
    errors, confidences = np.full(len(targets), np.nan), np.zeros(len(targets))
    places[known], errors[known], confidences[known] = photo.window.to_photo(there), error, confidence
    return Votes(places[None], errors[None], confidences[None], reference.trust[None], targets[None])


def _sample(match: Match, points: Floats, size: Size) -> Floats:
    """Confidence (N,) at pixels of the match's image a; clamped at its border."""
    return sample_grid(match.confidence[None], pixels_to_cells(points, size, match.grid))[:, 0]
