"""How likely points are right, on votes made by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cats.labelling.consensus import Votes, find_consensus
from cats.labelling.probability import POINT_MEASURES, point_measures, point_probability

SQUARE = np.array([[0.0, 0.0], [100.0, 0.0], [100.0, 80.0], [0.0, 80.0]])


def finding(trust: list[float], shift: float = 0.0, error: float = 0.02) -> Any:
    """Votes of so many photos, a photo each ``shift`` pixels further."""
    shape = (len(trust), len(SQUARE))
    points = SQUARE + shift * np.arange(len(trust))[:, None, None]
    factor = np.repeat(np.array(trust)[:, None], len(SQUARE), axis=1)
    nowhere = np.full((*shape, 2), np.nan)
    votes = Votes(points, np.full(shape, error), np.full(shape, 0.5), factor, nowhere)
    return SimpleNamespace(path=Path("photo.jpg"), votes=votes, places=find_consensus(votes))


def measure(found: Any, name: str) -> np.ndarray:
    return point_measures(found)[:, POINT_MEASURES.index(name)]


def test_labelled_is_the_share_of_the_weight_that_a_person_labelled() -> None:
    assert measure(finding([1.0, 1.0]), "labelled") == pytest.approx(1)
    assert measure(finding([1.0, 0.5, 0.5]), "labelled") == pytest.approx(0.5)


def test_photos_labelled_from_one_photo_are_not_believed_as_photos_that_a_person_labelled() -> None:
    """They agree as well with one another, and have their labels from the same photo."""
    predicted, labelled = (point_probability(finding([1.0, *[trust] * 4])) for trust in (0.5, 1.0))
    assert (predicted < labelled).all()


def test_votes_that_agree_and_lead_back_are_more_probable() -> None:
    assert (point_probability(finding([1.0] * 3, shift=20)) < point_probability(finding([1.0] * 3))).all()
    assert (point_probability(finding([1.0] * 3, error=0.3)) < point_probability(finding([1.0] * 3))).all()


def test_one_vote_alone_neither_agrees_nor_disagrees() -> None:
    alone = finding([1.0])
    assert (measure(alone, "votes"), measure(alone, "agreement"), measure(alone, "spread")) == (
        pytest.approx(0),
        pytest.approx(0),
        pytest.approx(0),
    )


def test_a_point_for_which_nobody_voted_is_not_probable() -> None:
    found = finding([1.0])
    found.places[2] = np.nan
    assert point_probability(found)[2] == 0
