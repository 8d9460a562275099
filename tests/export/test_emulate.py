"""The rounding that verification makes explicit is float16's: PyTorch, which has float16 arithmetic, agrees."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_models import image_pair

from cats.benchmarks.onnx_on_torch import OnnxOnTorch
from cats.core.errors import InputError
from cats.export.exported import PeakSession
from cats.export.fp16.assign import to_fp16
from cats.export.fp16.emulate import PEAKS, emulate_fp16


@pytest.fixture(scope="module")
def feeds(model, forms):
    """Inputs of each kind."""
    a, b = (x.numpy() for x in image_pair(model, 2))
    encoder = PeakSession(forms["encoder"])
    encoded = {f"{n}_{s}": v for s, x in (("a", a), ("b", b)) for n, v in encoder({"image": x}).items()}
    return {"pair": {"image_a": a, "image_b": b}, "encoder": {"image": a}, "matcher": encoded}


def by_torch(model, feeds):
    results = OnnxOnTorch(model)({name: torch.from_numpy(value) for name, value in feeds.items()})
    return {name: value.numpy() for name, value in results.items()}


@pytest.mark.parametrize("kind", ["pair", "encoder", "matcher"])
def test_pytorch_computes_the_file(forms, feeds, kind):
    expected, actual = PeakSession(forms[kind])(feeds[kind]), by_torch(forms[kind], feeds[kind])
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, atol=2e-4 * np.abs(value).max(), err_msg=name)


@pytest.mark.parametrize("kind", ["pair", "encoder", "matcher"])
def test_explicit_rounding_is_as_large_as_that_of_float16_arithmetic(forms, feeds, kind):
    exact, typed = PeakSession(forms[kind])(feeds[kind]), to_fp16(forms[kind])
    arithmetic, explicit = by_torch(typed, feeds[kind]), PeakSession(emulate_fp16(typed)[0])(feeds[kind])
    for name in exact.keys() - {"confidence"}:
        theirs, ours = (np.sqrt(np.mean((x[name] - exact[name]) ** 2)) for x in (arithmetic, explicit))
        assert 0.6 < ours / theirs < 1.6, (name, ours, theirs)
        assert np.sqrt(np.mean((arithmetic[name] - explicit[name]) ** 2)) < 1.2 * theirs, name


def test_peaks_are_of_the_values_before_rounding(forms, feeds):
    typed = to_fp16(forms["pair"])
    model, names = emulate_fp16(typed, peaks=True)
    results = PeakSession(model)(feeds["pair"])
    without = PeakSession(emulate_fp16(typed)[0])(feeds["pair"])
    np.testing.assert_array_equal(results["flow"], without["flow"])
    peaks = dict(zip(names, results[PEAKS], strict=True))
    assert len(peaks) == len(names)
    assert min(peaks.values()) >= 0
    assert any(name.startswith("feature_extraction.backbone.") for name in peaks)
    assert any(name.startswith("decoder.blocks.0.mlp.fc1/") for name in peaks)
    products = [value for name, value in peaks.items() if name.startswith("correlation/") and "matmul" in name]
    assert len(products) == 3
    assert 0.1 < max(products) <= 1.001  # of features of unit length


CHAIN = """
import pathlib, re, numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from cats.export.exported import PeakSession
from cats.export.fp16.emulate import emulate_fp16
names = [f"v{i}" for i in range(26)]
nodes = [helper.make_node("Cast", ["x"], ["v0"], "chain/x", to=TensorProto.FLOAT16)]
nodes += [helper.make_node("Add", [a, "one"], [b], f"chain/{b}") for a, b in zip(names, names[1:])]
nodes += [helper.make_node("Cast", [names[-1]], ["y"], "chain/y", to=TensorProto.FLOAT)]
values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1 << 11, 1 << 11]) for n in ("x", "y")]
one = numpy_helper.from_array(np.ones(1, np.float16), "one")
graph = helper.make_graph(nodes, "chain", values[:1], values[1:], [one])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
session = PeakSession(*emulate_fp16(model, peaks=True))
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak until now
before = peak()
session({"x": np.zeros((1 << 11, 1 << 11), np.float32)})
assert session.peaks.tolist() == list(range(26)), session.peaks
print(peak() - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no peak of a process to read here")
def test_values_are_measured_while_they_are_there_anyway():
    """25 values of 16 MB in float32: few at once, not all until the end."""
    grown = int(subprocess.run([sys.executable, "-c", CHAIN], check=True, capture_output=True, text=True).stdout)
    assert grown < 200 << 10, f"{grown >> 10} MB"


def test_operators_that_are_not_known_are_named(forms):
    with pytest.raises(InputError, match="GridSample"):
        OnnxOnTorch(forms["end-to-end"])
