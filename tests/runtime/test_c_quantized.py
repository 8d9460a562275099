"""libcats runs what ``cats-calibrate`` makes of a split model, and says what it does not run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_once import made_once
from quantized_tiny import float_forms

from cats.benchmarks import libcats
from cats.benchmarks.libcats import CatsStatusError, Library, image
from cats.runtime import Matcher

pytestmark = pytest.mark.skipif(not libcats.HAVE_COMPILER, reason="no C compiler")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``split.encoder.onnx``, ``split.matcher.onnx`` and ``pixels.onnx`` of a small model in 8 bits."""

    def make(folder: Path) -> None:
        from cats.calibration.calibrate import calibrate, load_float_model, measure_ranges
        from cats.data.photo_pairs import demo_photos

        floats = float_forms(tmp_path_factory)
        source = load_float_model(floats / "small.matcher.onnx")
        ranges = measure_ranges(source, demo_photos())
        calibrate(source, ranges, folder / "split.onnx", target="cpu")
        calibrate(load_float_model(floats / "small.end-to-end.onnx"), ranges, folder / "pixels.onnx", target="cpu")

    return made_once(tmp_path_factory, "c-int8", make)


def test_a_split_model_in_8_bits(library: Library, quantized: Path, texture: np.ndarray) -> None:
    crops = [
        np.ascontiguousarray(texture[top : top + 190, left : left + 250])
        for top, left in ((0, 0), (60, 130), (200, 300))
    ]
    opened, python = (
        library.open(quantized / "split.encoder.onnx"),
        Matcher(quantized / "split.encoder.onnx", threads=1),
    )
    assert (opened.info.split, opened.info.precision) == (1, b"int8")
    expected = python.match_gallery(crops[0], crops[1:])
    features = [opened.encode(image(crop)) for crop in crops]
    opened.match_features([features[0]] * 2, features[1:])
    for number, match in enumerate(expected):
        # Both run ONNX Runtime on the same file; threads change sums of floats, and a step of 8 bits may go either way.
        assert np.median(np.abs(opened.flow(number) - match.flow)) < 1e-3
        assert np.median(np.abs(opened.confidence(number) - match.confidence)) < 1e-3
    opened.match(image(crops[0]), image(crops[1]))
    assert np.median(np.abs(opened.flow() - expected[0].flow)) < 1e-3
    assert np.ptp(expected[0].flow) > 0.1
    for item in features:
        library.raw.cats_features_destroy(item)
    opened.close()
    python.close()


def test_a_file_that_takes_pixels_is_refused_by_name(library: Library, quantized: Path) -> None:
    with pytest.raises(CatsStatusError, match="end-to-end"):
        library.open(quantized / "pixels.onnx")
