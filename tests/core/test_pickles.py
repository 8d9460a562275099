"""Pickles as data: what the own interpreter reads as Python does, what it refuses, and that it stays within bounds."""

import argparse
import collections
import contextlib
import pickle
import resource
import struct

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from cats.core.pickle_values import Arguments, ForeignError, PickleError, describe, plain
from cats.core.pickles import read_pickle

KEYS = st.one_of(st.text(max_size=8), st.integers(-1000, 1000), st.booleans(), st.none(), st.binary(max_size=4))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**255), 2**255) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner),
    max_leaves=20,
)


@given(VALUES, st.integers(0, 5))
@settings(deadline=None, max_examples=50)
def test_plain_data_is_read_as_python_reads_it(value, protocol):
    data = pickle.dumps(value, protocol)
    assert read_pickle(b"before" + data + b"after", 6) == (value, 6 + len(data))


@given(st.dictionaries(st.text(min_size=1), VALUES), st.integers(0, 5))
@settings(deadline=None, max_examples=20)
def test_a_namespace_becomes_its_attributes(values, protocol):
    space = argparse.Namespace()
    vars(space).update(values)
    found, _ = read_pickle(pickle.dumps(space, protocol))
    assert type(found) is Arguments
    assert found == values


@pytest.mark.parametrize("protocol", range(6))
def test_numbers_of_numpy_and_containers_of_the_library(protocol):
    value = [np.float64(0.5), np.float32(0.25), np.int64(-3), np.bool_(True), collections.Counter({70: 2})]
    assert read_pickle(pickle.dumps(value, protocol))[0] == [0.5, 0.25, -3, True, {70: 2}]
    found = read_pickle(pickle.dumps(collections.OrderedDict(a=1, b=2), max(protocol, 2)))[0]
    assert list(found.items()) == [("a", 1), ("b", 2)]


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=200)
def test_any_bytes_end_in_a_value_or_a_pickle_error(data):
    for start in (b"", b"\x80\x02", b"\x80\x04}q\x00("):
        try:
            value, end = read_pickle(start + data)
        except PickleError:
            continue
        else:
            assert end <= len(start + data)
            describe(value)


@given(VALUES, st.integers(0, 5), st.data())
@settings(deadline=None, max_examples=100)
def test_damaged_pickles_end_in_a_value_or_a_pickle_error(value, protocol, draw):
    data = bytearray(pickle.dumps([argparse.Namespace(x=value), np.float64(1)], protocol))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    with contextlib.suppress(PickleError):
        read_pickle(bytes(data))


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.", "builtins.exec"),
        (b"cnumpy\nndarray\n.", "numpy.ndarray"),
        (b"cargparse\nNamespace.__init__\n.", "argparse.Namespace.__init__"),
        (pickle.dumps(np.zeros(2)), "numpy.+_reconstruct"),
        (b"\x80\x04\x8c\x01a\x8c\x03b\n\x1b\x93.", r"a\.b\?\?$"),
    ],
)
def test_other_names_are_refused_by_name(data, name):
    with pytest.raises(ForeignError, match=name):
        read_pickle(data)


@pytest.mark.parametrize(
    "data",
    [
        b"cargparse\nNamespace\n(N(S'__setattr__'\nI5\ndtb.",  # attributes of the class
        b"cargparse\nNamespace\n.",
        b"cnumpy\ndtype\n" + _text("O8") + b"\x85R.",
        b"cnumpy\ndtype\n](" + _text("x") + b"e\x85R.",
        b"\x80\x03cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + _text("f8") + b"\x85RC\x04aaaa\x86R.",
        b"ccollections\nOrderedDict\n)\x81.",
        b"(" * 1000 + b".",
        b"}(" + b"K\x01" * 3 + b"u.",
        b"}(G" + struct.pack(">d", 1.5) + b"Nu.",  # a float as a key
        b"}(J\xff\xff\xff\x7f\x8a\x09" + b"\xff" * 8 + b"\x00Nu.",
        b"}\x8a\x09" + b"\xff" * 8 + b"\x00Ns.",  # an integer as a key that may be chosen to collide
        b"I" + b"9" * 4000 + b"\n.",
        b"\x8b\xff\xff\xff\x7f.",
        b"X\xff\xff\xff\xff.",
        b"\x80\x09N.",
        b"N",
        b"",
    ],
    ids=str,
)
def test_what_is_not_plain_data_is_refused(data):
    if data == b"ccollections\nOrderedDict\n)\x81.":
        assert read_pickle(data)[0] == {}
        return
    with pytest.raises(PickleError):
        read_pickle(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".",  # an index of the memo
        b"]" * 3_000_000,
        b"]q\x00" + b"(" + b"h\x00" * 200_000 + b"l.",
        _text("a" * 50_000) + b"q\x00(" + b"c_codecs\nencode\n(h\x00" + _text("latin1") + b"tR" * 1 + b"." ,
        _text("a" * 50_000)
        + b"q\x000c_codecs\nencode\nq\x01"
        + _text("latin1")
        + b"q\x02("
        + b"h\x01h\x00h\x02\x86R" * 60_000
        + b"l.",
        b"}(" + b"".join(_text(str(i)) + b"N" for i in range(3000)) + b"uq\x00"
        + b"cargparse\nNamespace\nq\x01" + b"h\x01)\x81h\x00b" * 100_000 + b".",
    ],
    ids=("memo", "depth", "shared", "half", "copies", "attributes"),
)  # fmt: skip
def test_memory_stays_near_the_size_of_the_file(data):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(PickleError):
        read_pickle(data)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10 < 500


def test_a_plain_copy_is_bounded():
    within: list = []
    within.append(within)
    with pytest.raises(PickleError):
        plain(within)
    doubled: list = []
    for _ in range(30):
        doubled = [doubled, doubled]
    with pytest.raises(PickleError):
        plain(doubled)
    assert plain({"a": (1, float("nan"), b"x"), 2: {3}}) == {"a": [1, "nan", "<bytes>"], "2": [3]}
