"""The consensus of references' votes, on votes made by hand."""

from __future__ import annotations

import numpy as np

from cats.labelling.consensus import Votes, agreement, extent, find_consensus, spread

SQUARE = np.array([[0.0, 0.0], [100.0, 0.0], [100.0, 80.0], [0.0, 80.0]])
OTHER = SQUARE + np.array([40.0, 0.0])


def votes(points: list[np.ndarray], error: float | list[float] = 0.0, confidence: float | list[float] = 0.5) -> Votes:
    shape = (len(points), len(points[0]))
    grow = [np.broadcast_to(np.reshape(value, (-1, 1)), shape).astype(float) for value in (error, confidence)]
    return Votes(np.stack(points), *grow, np.ones(shape))


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
    half = Votes(both.points, both.error, both.confidence, both.trust * np.array([[1.0], [0.5]]))
    assert np.allclose(half.weights()[1] * 2, half.weights()[0])


def test_points_that_a_reference_does_not_have_get_no_vote() -> None:
    missing = SQUARE.copy()
    missing[1] = np.nan
    found = find_consensus(votes([missing, SQUARE + 2]))
    assert np.allclose(found[1], SQUARE[1] + 2)
    nobody = find_consensus(votes([missing, missing]))
    assert np.isnan(nobody[1]).all()
    assert np.isfinite(nobody[[0, 2, 3]]).all()


def test_agreement_is_the_weight_of_the_votes_that_are_near() -> None:
    three = votes([SQUARE, SQUARE + 2, SQUARE + 50])
    assert np.allclose(agreement(three, SQUARE), 2 / 3)
    assert np.allclose(spread(three, SQUARE), (np.hypot(2, 2) + np.hypot(50, 50)) / 3 / 100)


def test_the_extent_is_the_longer_side_and_never_nothing() -> None:
    assert extent(SQUARE) == 100
    assert extent(SQUARE[:1]) == 1
    assert extent(np.full((3, 2), np.nan)) == 1
