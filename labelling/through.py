"""Through other photos: what was just labelled says something about its neighbours too.

A reference that shows the object from the front says little about one from the side, but more about a photo in between,
whose predicted labels then help. Each vote of such a photo counts half, times its own probability.

One labelled photo cannot disagree with itself: where it errs nobody says so. Its neighbours do. More than three agree
without help, and then matching every photo again is no longer worth it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cats.labelling.annotations import Annotation
from cats.labelling.consensus import Votes, find_consensus
from cats.labelling.passes import Finding, cast_votes
from cats.labelling.probability import point_probability, same_kind_probability
from cats.labelling.references import LookStore, Reference, spanning
from cats.runtime import Matcher
from cats.runtime.windows import object_window

TRUST = 0.5
LEAST_PROBABILITY = 0.3
"""Predicted points below it are no references for others."""

FEW, NEIGHBOURS = 3, 4
"""With so many references of a category, or fewer, so many other photos help with each photo unless asked otherwise."""


def count_neighbours(references: int, through: int | None) -> int:
    """How many other photos are matched to a photo whose category has so many references.

    Args:
        through: as of :func:`cats.labelling.label.label_photos`.
    """
    if through is not None:
        return through
    return NEIGHBOURS if references <= FEW else 0


class Through:
    """The photos labelled so far, as further references of one another.

    Args:
        matcher, store: as everywhere.
        findings: first results for all photos.
        through: how many of them are matched to each photo, see :func:`count_neighbours`.
    """

    def __init__(
        self, matcher: Matcher, store: LookStore, findings: Sequence[Finding], through: int | None = None
    ) -> None:
        self._matcher, self._store, self._through = matcher, store, through
        self._items: dict[str, list[tuple[Reference, float]]] = {}
        for found in findings:
            sure = same_kind_probability(found)
            reference = as_reference(found)
            if sure >= 0.5 and np.isfinite(reference.targets).all(axis=1).sum() >= 3:
                name = found.references.category.name
                self._items.setdefault(name, []).append((reference, sure))

    def improve(self, found: Finding) -> Finding:
        """The finding with the votes of the neighbouring photos added; raises :class:`InputError` as a look does."""
        chosen = self._neighbours(found)
        if not chosen:
            return found
        here = self._store.look(found.path, found.window)
        shown = [self._store.look(item.path, item.window) for item in chosen]
        votes, _ = cast_votes(self._matcher, chosen, shown, here, both_ways=True)
        joined = Votes.join([votes, found.votes])  # the last look's stay last
        return replace(found, votes=joined, places=find_consensus(joined))

    def _neighbours(self, found: Finding) -> list[Reference]:
        """Other photos of the category, those first that look like this one and were labelled with certainty."""
        others = [
            (item, sure)
            for item, sure in self._items.get(found.references.category.name, [])
            if item.path != found.path
        ]

        def rank(entry: tuple[Reference, float]) -> float:
            item, _ = entry
            likeness = float(found.kind @ item.kind) if found.kind is not None and item.kind is not None else 0.0
            return likeness + float(item.trust.mean())

        count = count_neighbours(len(found.references.items), self._through)
        return [item for item, _ in sorted(others, key=rank, reverse=True)[:count]]


def as_reference(found: Finding) -> Reference:
    """A labelled photo as a reference: its improbable points are left out, and say nothing of the window either."""
    count = found.keypoints
    probability = point_probability(found)
    places = np.where((probability >= LEAST_PROBABILITY)[:, None], found.places, np.nan)
    return Reference(
        found.path,
        Annotation(found.references.category.name, places[:count]),
        places[:count],
        places[count:],
        object_window(spanning(found.places[:count], found.places[count:]), found.size),
        TRUST * probability,
        found.kind,
    )
