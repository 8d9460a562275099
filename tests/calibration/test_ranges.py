"""Ranges: histograms that merge exactly, the four methods, the file."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from cats.calibration.balance import balance_channels
from cats.calibration.distribution import METHODS, TensorRange
from cats.calibration.ranges import Ranges, collect_ranges, observed_tensors
from cats.core.errors import InputError, ModelFileError

FLOATS = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)  # those fall into the bin of zero or the one beside it
ARRAYS = npst.arrays(np.float32, st.integers(1, 30), elements=FLOATS)


def same(a, b):
    fields = ("minimum", "maximum", "width", "first")
    return all(getattr(a, name) == getattr(b, name) for name in fields) and np.array_equal(a.counts, b.counts)


@given(ARRAYS, ARRAYS)
def test_merged_ranges_are_those_of_all_values(a, b):
    merged = TensorRange.of(a).merge(TensorRange.of(b))
    whole = TensorRange.of(np.concatenate([a, b]))
    assert merged.counts.sum() == len(a) + len(b)
    assert (merged.minimum, merged.maximum, merged.width) == (whole.minimum, whole.maximum, whole.width)
    dense = [np.zeros(4096, np.int64) for _ in range(2)]
    for item, counts in zip((merged, whole), dense, strict=True):
        counts[2048 + item.first : 2048 + item.first + len(item.counts)] = item.counts
    assert np.array_equal(*dense)


@given(ARRAYS)
def test_bins_hold_their_values(values):
    measured = TensorRange.of(values)
    for value in values:
        index = int(np.floor(np.float32(value) * np.float32(1 / measured.width))) - measured.first
        assert measured.counts[index] > 0
    assert len(measured.counts) <= 2048


@pytest.mark.parametrize("method", METHODS)
def test_methods_treat_a_lone_outlier_as_they_should(method):
    rng = np.random.default_rng(0)
    values = np.append(rng.standard_normal(100_000), 1000).astype(np.float32)
    low, high = TensorRange.of(values).limits(method)
    if method == "minmax":
        assert (low, high) == (values.min(), values.max())
    else:
        steps = (high - low) / 255
        error = np.clip(np.round(values / steps) * steps, low, high) - values
        whole = (values.max() - values.min()) / 255
        assert np.square(error).sum() <= np.square(np.round(values / whole) * whole - values).sum()
        assert high <= 1000
    assert low <= 0 <= high


def test_mse_clips_a_long_tail_that_costs_more_than_it_holds():
    values = np.random.default_rng(0).laplace(size=200_000).astype(np.float32)
    limit = TensorRange.of(values).symmetric_limit("mse", steps=7)
    assert limit < 0.7 * np.abs(values).max()


def test_symmetric_limit_covers_the_larger_side():
    assert TensorRange.of(np.float32([-1, 5])).symmetric_limit("minmax") == 5
    assert TensorRange.of(np.float32([-7, 5])).symmetric_limit("minmax") == 7


def test_zero_is_always_inside():
    assert TensorRange.of(np.float32([3, 4])).limits("minmax") == (0, 4)
    assert TensorRange.of(np.zeros(5, np.float32)).limits("mse") == (0, 0)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ModelFileError, match="not finite"):
        TensorRange.of(np.float32([1, np.nan]))


def test_file_round_trip(ranges, tmp_path):
    ranges.save(tmp_path / "r.json")
    again = Ranges.load(tmp_path / "r.json")
    assert list(again.tensors) == list(ranges.tensors)
    assert all(same(again.tensors[name], value) for name, value in ranges.tensors.items())
    assert (again.pairs, again.sources, again.weights_sha256) == (ranges.pairs, ranges.sources, ranges.weights_sha256)
    text = (tmp_path / "r.json").read_text()
    assert len(text.splitlines()) == len(ranges.tensors) + 9  # one tensor a line


def test_two_halves_merge_to_the_whole(source, pairs, ranges):
    parts = []
    for half in (pairs.pairs[:2], pairs.pairs[2:]):
        feeds = type(pairs)("half", half).feeds(source.metadata.preprocessing)
        sha, factors = source.metadata.weights_sha256, ranges.balance
        parts.append(collect_ranges(source.model, feeds, weights_sha256=sha, balance=factors))
    merged = parts[0].merge(parts[1])
    assert merged.pairs == ranges.pairs == len(pairs)
    for name, value in merged.tensors.items():
        # The sums inside one run differ by rounding between batches only.
        assert value.maximum == pytest.approx(ranges.tensors[name].maximum, rel=1e-4), name
        assert value.counts.sum() == ranges.tensors[name].counts.sum()
        if value.channels is not None:
            assert value.channels.mean == pytest.approx(ranges.tensors[name].channels.mean, rel=1e-3, abs=1e-5), name


def test_what_is_observed_is_what_the_model_computes(source, ranges, feeds):
    from cats.calibration.sessions import ProbeSession

    values = ProbeSession(balance_channels(source.model, ranges.balance), outputs=list(ranges.tensors))(feeds)
    assert set(values) == set(observed_tensors(source.model))
    for name, array in values.items():
        measured = ranges.tensors[name]
        assert measured.minimum == pytest.approx(array.min(), rel=1e-3, abs=1e-4), name
        axis = observed_tensors(source.model)[name]
        assert (measured.channels is None) == (axis is None)
        if measured.channels is not None:
            flat = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
            assert measured.channels.largest == pytest.approx(np.abs(flat).max(axis=0), rel=1e-3, abs=1e-4)
            assert measured.channels.mean == pytest.approx(flat.mean(axis=0), rel=1e-3, abs=1e-4)
            assert measured.channels.square == pytest.approx(np.square(flat).mean(axis=0), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON: nested"),
        ('{"format": NaN}', "NaN is not a finite number"),
        ("[]", "not a file of ranges"),
        ('{"format": 2}', "upgrade"),
        (
            '{"format": 1, "tensors": {"x": {"min": 0, "max": 1, "bin_width": 0.3, "first_bin": 0, "counts": [1]}}}',
            "two",
        ),
    ],
)
def test_wrong_files_are_refused(tmp_path, text, message):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match=message):
        Ranges.load(tmp_path / "r.json")


def test_ranges_of_another_model_do_not_merge(ranges):
    other = Ranges("0" * 64, ranges.tensors, 1)
    with pytest.raises(InputError, match="different models"):
        ranges.merge(other)


def test_nothing_to_measure(source):
    with pytest.raises(InputError, match="two photos"):
        collect_ranges(source.model, [], weights_sha256="x")


def test_the_file_is_readable_json(ranges, tmp_path):
    ranges.save(tmp_path / "r.json")
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["format"] == 1
    assert set(next(iter(document["tensors"].values()))) >= {"min", "max", "bin_width", "first_bin", "counts"}
