"""The consensus of references' votes, on votes made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cats.labelling.consensus import Votes, agreement, extent, find_consensus, shape_votes, spread

SQUARE = np.array([[0.0, 0.0], [100.0, 0.0], [100.0, 80.0], [0.0, 80.0]])
OTHER = SQUARE + np.array([40.0, 0.0])


def votes(points: list[np.ndarray], error: float | list[float] = 0.0, confidence: float | list[float] = 0.5) -> Votes:
    shape = (len(points), len(points[0]))
    grow = [np.broadcast_to(np.reshape(value, (-1, 1)), shape).astype(float) for value in (error, confidence)]
    return Votes(np.stack(points), *grow, np.ones(shape), np.full((*shape, 2), np.nan))


def test_votes_that_agree_are_the_result() -> None:
    assert np.allclose(find_consensus(votes([SQUARE, SQUARE, SQUARE])), SQUARE)


def test_one_reference_alone_is_believed() -> None:
    assert np.allclose(find_consensus(votes([SQUARE])), SQUARE)


def test_a_minority_far_away_moves_nothing() -> None:
    near = [SQUARE + shift for shift in ([1.0, 0.0], [-1.0, 0.0], [0.0, 1.0])]
    found = find_consensus(votes([*near, SQUARE + 60, SQUARE - 50]))
    assert np.linalg.norm(found - SQUARE, axis=1).max() < 3


def test_between_two_places_the_one_with_more_weight_is_taken() -> None:
    """Left and right headlight: the mean of both would be neither."""
    found = find_consensus(votes([SQUARE, SQUARE, OTHER, OTHER], confidence=[0.8, 0.7, 0.5, 0.45]))
    assert np.linalg.norm(found - SQUARE, axis=1).max() < 4


def test_a_vote_that_does_not_lead_back_counts_less() -> None:
    weights = votes([SQUARE, SQUARE], error=[0.0, 0.02]).weights()
    assert np.allclose(weights[0] / weights[1], 1.5)


def test_a_reference_of_another_view_is_left_out_even_by_a_majority() -> None:
    """Two of three references are mirrored: their votes agree, but hardly lead back."""
    mirrored = (100, 0) + SQUARE * (-1, 1)
    found = find_consensus(votes([SQUARE, mirrored, mirrored + 3], error=[0.01, 0.15, 0.15]))
    assert np.allclose(found, SQUARE, atol=0.1)


def test_where_only_a_left_out_reference_has_a_point_it_is_believed() -> None:
    missing = SQUARE.copy()
    missing[2] = np.nan
    found = find_consensus(votes([missing, SQUARE + 4], error=[0.0, 0.3]))
    assert np.allclose(found[2], SQUARE[2] + 4)
    assert np.allclose(found[0], SQUARE[0], atol=0.1)


def test_predicted_labels_count_as_far_as_they_are_trusted() -> None:
    both = votes([SQUARE, SQUARE])
    half = replace(both, trust=both.trust * np.array([[1.0], [0.5]]))
    assert np.allclose(half.weights()[1] * 2, half.weights()[0])


def test_points_that_a_reference_does_not_have_get_no_vote() -> None:
    missing = SQUARE.copy()
    missing[1] = np.nan
    found = find_consensus(votes([missing, SQUARE + 2]))
    assert np.allclose(found[1], SQUARE[1] + 2)
    nobody = find_consensus(votes([missing, missing]))
    assert np.isnan(nobody[1]).all()
    assert np.isfinite(nobody[[0, 2, 3]]).all()


HOUSE = np.array([[0.0, 0.0], [100.0, 0.0], [100.0, 80.0], [0.0, 80.0], [30.0, 40.0], [70.0, 40.0]])


def turned(points: np.ndarray) -> np.ndarray:
    """As the points lie in another photo: turned by 20 degrees, twice as large, elsewhere."""
    angle = np.deg2rad(20)
    return 2 * points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + (300, 50)


def test_a_point_on_the_wrong_one_of_two_like_parts_is_drawn_to_the_right_one() -> None:
    """Two of four references mistake the left window for the right one; all know the shape."""
    wrong = turned(HOUSE)
    wrong[4] = wrong[5]
    both = votes([turned(HOUSE), turned(HOUSE), wrong, wrong], confidence=[0.5, 0.5, 0.52, 0.52])
    away = lambda found: np.linalg.norm(found - turned(HOUSE), axis=1)  # noqa: E731
    assert away(find_consensus(both))[4] > 60
    shaped = replace(both, shape=np.stack([HOUSE] * 4))
    assert away(find_consensus(shaped)).max() < 8


def test_a_shape_of_another_view_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    given = votes([HOUSE, HOUSE + 1])
    other = replace(given, shape=rng.uniform(0, 100, (2, 6, 2)))
    assert np.allclose(find_consensus(other), find_consensus(given), atol=2)


def test_a_shape_needs_three_points() -> None:
    two = votes([HOUSE, HOUSE])
    shape = np.full((2, 6, 2), np.nan)
    shape[:, :2] = HOUSE[:2] * (1, 5)
    places, weights = shape_votes(replace(two, shape=shape), two.weights(), HOUSE)
    assert not weights.any()
    agreed = replace(votes([turned(HOUSE)] * 2), shape=np.stack([HOUSE, HOUSE / 3]))
    places, weights = shape_votes(agreed, agreed.weights(), turned(HOUSE))
    assert np.allclose(places, turned(HOUSE))
    assert (weights > 0).all()


def test_agreement_is_the_weight_of_the_votes_that_are_near() -> None:
    three = votes([SQUARE, SQUARE + 2, SQUARE + 50])
    assert np.allclose(agreement(three, SQUARE), 2 / 3)
    assert np.allclose(spread(three, SQUARE), (np.hypot(2, 2) + np.hypot(50, 50)) / 3 / 100)


def test_the_extent_is_the_longer_side_and_never_nothing() -> None:
    assert extent(SQUARE) == 100
    assert extent(SQUARE[:1]) == 1
    assert extent(np.full((3, 2), np.nan)) == 1
