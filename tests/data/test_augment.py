"""Augmentation: keypoints stay on the same pixels, the object stays in the crop, and seeds decide everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import make_pfpascal, make_spair, make_willow
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cats.core.errors import InputError
from cats.data import open_dataset
from cats.data.augment import Photometric, crop_window, training_view
from cats.data.samples import Sample, mirror


@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(st.integers(16, 300), st.integers(16, 300)),
    corners=st.lists(st.tuples(st.floats(-0.2, 1.2), st.floats(-0.2, 1.2)), min_size=2, max_size=2),
    seed=st.integers(0, 1000),
)
def test_crop_keeps_box_and_points(size: tuple[int, int], corners: list[tuple[float, float]], seed: int) -> None:
    box = np.sort(np.array(corners) * size, axis=0).ravel()
    points = np.random.default_rng(seed).uniform(0, 1, (3, 2)) * (np.array(size) - 1)
    left, top, right, bottom = crop_window(np.random.default_rng(seed), size, points, tuple(box))
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    kept = np.clip(np.vstack([points, box.reshape(2, 2)]), 0, np.array(size) - 1)
    assert (kept >= [left, top]).all()
    assert (kept <= [right - 1, bottom - 1]).all()


def test_crop_reaches_every_side_and_leaves_images_without_object_alone() -> None:
    rng = np.random.default_rng(0)
    windows = np.array([crop_window(rng, (100, 80), np.zeros((0, 2)), (40, 30, 60, 50)) for _ in range(3000)])
    assert windows.min(axis=0).tolist() == [0, 0, 61, 51]
    assert windows.max(axis=0).tolist() == [40, 30, 100, 80]
    assert crop_window(rng, (100, 80), np.zeros((0, 2)), None) == (0, 0, 100, 80)


@pytest.fixture
def spots(tmp_path: Path) -> Sample:
    """A pair whose keypoints are white squares of 9 pixels on black."""
    points = np.array([[40, 30], [150, 60], [90, 110]])
    for name, size in (("a.png", (200, 150)), ("b.png", (240, 140))):
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        for x, y in points:
            pixels[y - 4 : y + 5, x - 4 : x + 5] = 255
        Image.fromarray(pixels).save(tmp_path / name)
    box = (36, 26, 155, 115)
    return Sample(tmp_path / "a.png", tmp_path / "b.png", (200, 150), (240, 140), points, points, box, box)


def test_keypoints_follow_crop_resize_and_mirroring(spots: Sample) -> None:
    rng = np.random.default_rng(4)
    moved = set()
    for sample in (spots, mirror(spots)):
        for side in ("a", "b"):
            for _ in range(20):
                view = training_view(rng, sample, side, augment=False, crop=1.0)
                moved.add(tuple(view.points[0]))
                lit = view.image[..., 0] > 127
                for x, y in view.points:
                    column, row = round(x), round(y)
                    assert view.image[row, column, 0] > 200
                    # The keypoint is the centre of its white square.
                    across = np.flatnonzero(_run(lit[row], column))
                    down = np.flatnonzero(_run(lit[:, column], row))
                    assert across.mean() == pytest.approx(x, abs=0.75)
                    assert down.mean() == pytest.approx(y, abs=0.75)
    assert len(moved) > 40


def _run(lit: np.ndarray, at: int) -> np.ndarray:
    """The part of a row around ``at`` that is lit without a gap."""
    dark = np.flatnonzero(~lit)
    mask = np.zeros_like(lit)
    mask[max([-1, *dark[dark < at]]) + 1 : min([len(lit), *dark[dark > at]])] = True
    return mask


def test_views_are_a_function_of_the_generator(tmp_path: Path) -> None:
    sample = open_dataset(f"spair:{make_spair(tmp_path)}")[0]
    first, again, other = (training_view(np.random.default_rng(seed), sample, "a") for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.points, again.points)
    assert (first.image != other.image).any()


def test_without_crop_and_colours_a_view_is_the_model_input(tmp_path: Path) -> None:
    sample = open_dataset(f"spair:{make_spair(tmp_path)}")[0]
    view = training_view(np.random.default_rng(0), sample, "b", size=64, augment=False, crop=False)
    expected = sample.read("b").resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(view.image, np.asarray(expected))
    np.testing.assert_allclose(view.points, (sample.points_b + 0.5) * [64 / 100, 64 / 60] - 0.5)


def test_crop_probability(tmp_path: Path) -> None:
    sample = open_dataset(f"spair:{make_spair(tmp_path)}")[0]
    rng = np.random.default_rng(0)
    plain = training_view(rng, sample, "a", size=32, augment=False, crop=False).points
    views = [training_view(rng, sample, "a", size=32, augment=False).points for _ in range(300)]
    assert np.mean([(points != plain).any() for points in views]) == pytest.approx(0.5, abs=0.1)


def test_every_photometric_change_happens_with_its_probability() -> None:
    """With p = 0.2 each, an image stays as it is with probability 0.8^7 = 0.21."""
    image = np.random.default_rng(1).integers(30, 220, (32, 32, 3), dtype=np.uint8)
    rng = np.random.default_rng(2)
    changed, never, always = Photometric(), Photometric(p=0), Photometric(p=1)
    same = np.mean([(changed(rng, image) == image).all() for _ in range(600)])
    assert same == pytest.approx(0.8**7, abs=0.05)
    np.testing.assert_array_equal(never(rng, image), image)
    result = always(rng, image)
    assert (result.shape, result.dtype) == (image.shape, np.uint8)
    assert (result != image).mean() > 0.9


def test_pfpascal_training_view_of_a_flipped_pair(tmp_path: Path) -> None:
    plain, flipped = open_dataset(f"pfpascal:{make_pfpascal(tmp_path)}", "train")
    one, two = (
        training_view(np.random.default_rng(0), sample, "a", size=64, augment=False, crop=False)
        for sample in (plain, flipped)
    )
    # Pillow mirrors and resizes in either order up to rounding.
    assert np.abs(one.image[:, ::-1].astype(int) - two.image).max() <= 1
    np.testing.assert_allclose(two.points[:, 0], 63 - one.points[:, 0])


def test_pairs_without_keypoints_are_refused(tmp_path: Path) -> None:
    sample = open_dataset(f"willow:{make_willow(tmp_path)}")[0]
    bare = Sample(sample.image_a, sample.image_b, sample.size_a, sample.size_b)
    with pytest.raises(InputError, match=r"x_1.png -> x_2.png has no keypoints"):
        training_view(np.random.default_rng(0), bare, "a")
