"""The rounding that verification makes explicit is float16's: PyTorch, which has float16 arithmetic, agrees."""

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


def test_operators_that_are_not_known_are_named(forms):
    with pytest.raises(InputError, match="GridSample"):
        OnnxOnTorch(forms["end-to-end"])
