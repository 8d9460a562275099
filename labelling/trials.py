"""References tried on one another: what their votes usually miss by.

Where several photos are labelled, each can be matched to the others, and there the truth is known. The flow of a model
errs alike for one reference, towards the middle of smooth parts or the nearest edge, and half of that can be taken off.
"""

from __future__ import annotations

import numpy as np

from cats.core.ahead import map_ahead
from cats.labelling.consensus import extent
from cats.labelling.passes import cast_votes
from cats.labelling.references import LookStore, Reference, References
from cats.runtime import Matcher

TRIALS = 6
"""Others that a reference is tried on, those that look most like it: each costs a match."""

SHRINKAGE = 2.0
"""n trials say n / (n + 2) of the bias: 1 and 4 gave 0.1 less PCK."""


def try_references(matcher: Matcher, store: LookStore, references: References, streams: int) -> None:
    """Set the bias of every reference: the median miss over its trials, in extents, shrunk towards 0."""
    items = references.items

    def measure(item: Reference) -> None:
        others = [other for other in references.nearest(item.kind, TRIALS + 1) if other is not item][:TRIALS]
        misses = [trial_miss(matcher, store, item, other) for other in others]
        if misses:
            item.bias = shrunk_median(np.stack(misses))

    for _ in map_ahead(measure, items if len(items) > 1 else [], streams):
        pass


def trial_miss(matcher: Matcher, store: LookStore, item: Reference, other: Reference) -> np.ndarray:
    """Vote of one reference for another minus the truth, (K + A, 2) in extents; NaN where a point is unknown."""
    shown, here = store.look(item.path, item.window), store.look(other.path, other.window)
    votes, _ = cast_votes(matcher, [item], [shown], here, both_ways=False)
    return (votes.points[0] - np.concatenate([other.points, np.full_like(other.anchors, np.nan)])) / extent(
        other.points
    )


def shrunk_median(misses: np.ndarray) -> np.ndarray:
    known = np.isfinite(misses).all(axis=2)
    count = known.sum(axis=0)
    tried = count > 0
    result = np.zeros(misses.shape[1:])
    result[tried] = np.nanmedian(misses[:, tried], axis=0)
    return result * (count / (count + SHRINKAGE))[:, None]
