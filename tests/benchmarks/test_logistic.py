"""Logistic regression and the figures of probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from cats.benchmarks.studies.logistic import Logistic, auc, calibration_error, fit_logistic


def test_the_fit_finds_what_drew_the_truth() -> None:
    rng = np.random.default_rng(0)
    measures = rng.normal(size=(20000, 2)) * (1, 5)
    drawn = Logistic(0.5, (2.0, -0.3))
    fitted = fit_logistic(measures, rng.random(20000) < drawn(measures))
    assert fitted(measures) == pytest.approx(drawn(measures), abs=0.05)
    assert np.sign(fitted.coefficients).tolist() == [1, -1]


def test_measures_that_always_tell_do_not_run_away() -> None:
    fitted = fit_logistic(np.array([[0.0], [1.0]] * 20), np.array([False, True] * 20))
    assert np.isfinite(fitted.coefficients).all()
    assert fitted(np.array([[0.0], [1.0]])) == pytest.approx([0, 1], abs=0.3)


def test_the_area_is_the_chance_of_the_right_order() -> None:
    truth = np.array([True, True, False, False])
    assert auc(np.array([4.0, 3.0, 2.0, 1.0]), truth) == 1
    assert auc(np.array([4.0, 1.0, 3.0, 2.0]), truth) == 0.5
    assert auc(np.ones(4), truth) == 0.5


def test_the_calibration_error_is_the_distance_of_the_bins() -> None:
    found = calibration_error(np.array([0.95, 0.95, 0.15, 1.0]), np.array([True, False, False, True]))
    assert found["reliability"] == [[0.15, 0.0, 1], [0.9667, 0.6667, 3]]
    assert found["ece"] == pytest.approx((0.15 + 3 * 0.3) / 4, abs=1e-3)
