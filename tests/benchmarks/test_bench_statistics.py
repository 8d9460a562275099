"""Statistics of interleaved runs against values worked out by hand."""

import copy

import numpy as np
import pytest

from cats.benchmarks.statistics import interleave, median_interval, ratio_interval, regressions


def test_median_of_a_constant_has_no_width():
    assert median_interval([4.0] * 9) == {"median": 4.0, "low": 4.0, "high": 4.0}


def test_interval_of_three_values():
    # Of 27 equally likely resamples, 7 have the smallest value as median and 7 the largest: both are inside 95 %.
    assert median_interval([1.0, 2.0, 9.0]) == {"median": 2.0, "low": 1.0, "high": 9.0}


def test_interval_narrows_and_holds_the_truth():
    rng = np.random.default_rng(1)
    widths = []
    for count in (10, 1000):
        found = median_interval(rng.normal(100, 10, count))
        assert found["low"] <= 100 <= found["high"]
        widths.append(found["high"] - found["low"])
    # The error of a normal median is 1.2533 sigma / sqrt(n): 1.96 of it to either side.
    assert widths[1] == pytest.approx(2 * 1.96 * 1.2533 * 10 / 1000**0.5, rel=0.35)
    assert widths[1] < widths[0] / 3


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="at least one value"):
        median_interval([])


def test_ratios_are_of_the_same_round():
    # The machine slows down eightfold; the ratio within each round stays one half, that of pooled times would not.
    baseline = np.array([1.0, 2.0, 4.0, 8.0, 2.0])
    found = ratio_interval(baseline / 2, baseline)
    assert found == {"median": 0.5, "low": 0.5, "high": 0.5}


def test_interleaved_calls_take_turns_and_warm_up_is_dropped():
    order = []

    def call(name):
        def run():
            order.append(name)
            return float(len(order))

        return run

    times = interleave({name: call(name) for name in "abc"}, rounds=2, warm_up=1, pause=0)
    assert "".join(order) == "abcbcacab"
    assert times["a"].tolist() == [6.0, 8.0]
    assert times["b"].tolist() == [4.0, 9.0]
    assert times["c"].tolist() == [5.0, 7.0]


def row(name, low, median, high, p99=0.01, pck=70.0):
    return {"name": name, "ratio": {"low": low, "median": median, "high": high}, "drift": {"p99_px": p99}, "pck": pck}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (row("x", 0.58, 0.60, 0.62), None),  # overlaps the old interval
        (row("x", 0.61, 0.63, 0.65), "0.600 -> 0.630"),
        (row("x", 0.30, 0.32, 0.35), None),
        (row("x", 0.59, 0.60, 0.60, p99=0.2), "flow drift"),
        (row("x", 0.59, 0.60, 0.60, pck=69.0), "PCK"),
        (row("y", 0.59, 0.60, 0.60), "x: no longer runs"),
    ],
)
def test_regressions(changed, words):
    old = {"contestants": [row("x", 0.59, 0.60, 0.605)]}
    found = regressions(old, {"contestants": [changed]})
    assert (len(found) == 0) if words is None else (len(found) == 1 and words in found[0])


def test_a_result_is_no_regression_of_itself():
    document = {"contestants": [row("x", 0.5, 0.6, 0.7)]}
    assert regressions(document, copy.deepcopy(document)) == []
