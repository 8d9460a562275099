"""Whether two images show the same kind of object."""

from __future__ import annotations

import numpy as np
import pytest

from cats.assets import asset
from cats.core.geometry import identity_cells
from cats.runtime import Matcher
from cats.runtime.same_kind import descriptor, feature_likeness, flow_shape, same_kind_probability

FLAT = np.zeros((2, 16, 16), np.float32)


def test_a_confident_smooth_match_is_more_likely_one_kind() -> None:
    rough = np.random.default_rng(0).normal(0, 3, FLAT.shape).astype(np.float32)
    sure, unsure = np.full((16, 16), 0.8), np.full((16, 16), 0.2)
    assert same_kind_probability(FLAT, sure) > 0.9 > same_kind_probability(rough, sure)
    assert same_kind_probability(FLAT, sure) > 0.5 > same_kind_probability(FLAT, unsure)
    assert same_kind_probability(FLAT, sure, 0.9) > same_kind_probability(FLAT, sure, 0.1)


def test_a_quarter_of_the_image_is_enough() -> None:
    confidence = np.zeros((16, 16))
    confidence[:8, :8] = 0.8
    assert same_kind_probability(FLAT, confidence) == same_kind_probability(FLAT, np.full((16, 16), 0.8))


def test_the_shape_of_an_affine_flow_is_no_bend() -> None:
    roughness, bend = flow_shape((0.25 * identity_cells(16)).astype(np.float32))
    assert bend == pytest.approx(0, abs=1e-6)
    assert roughness == pytest.approx(0.25)
    assert flow_shape(FLAT) == (0.0, pytest.approx(0.0, abs=1e-9))


def test_likeness_is_of_the_last_features_alone() -> None:
    rng = np.random.default_rng(1)
    a = {f"features_{n}": rng.normal(size=(8, 4)).astype(np.float32) for n in (0, 9, 10)}
    b = {**a, "features_9": -a["features_9"]}
    assert feature_likeness(a, b) == pytest.approx(1)
    assert np.linalg.norm(descriptor(a)) == pytest.approx(1)
    assert feature_likeness(a, {**a, "features_10": -a["features_10"]}) == pytest.approx(-1)


@pytest.mark.parametrize("model", ["cats-tiny.onnx", "cats-tiny.encoder.onnx"])
def test_two_portraits_are_more_alike_than_a_portrait_and_noise(model: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    with Matcher(asset(model), threads=1) as matcher:
        portraits = matcher.match(asset("astronaut.jpg"), asset("grace_hopper.jpg"))
        other = matcher.match(asset("astronaut.jpg"), noise)
        twice = matcher.match(asset("astronaut.jpg"), asset("grace_hopper.jpg"), looks=2)
    assert portraits.same_kind > 0.4 > 0.15 > other.same_kind
    assert (portraits.likeness is None) == (model == "cats-tiny.onnx")
    assert twice.second_look is not None
    assert twice.same_kind == twice.second_look.match.same_kind
