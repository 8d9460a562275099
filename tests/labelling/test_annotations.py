"""Annotations check themselves, and masks are runs of pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cats.core.errors import InputError
from cats.labelling.annotations import AnnotatedPhoto, Annotation, Annotations, Category, Mask

DUCK = Category("duck", ("beak", "tail", "eye"), ((0, 2), (2, 1)))


def photo(*annotations: Annotation, name: str = "a.jpg") -> AnnotatedPhoto:
    return AnnotatedPhoto(Path(name), (100, 80), annotations)


def test_points_without_visibility_are_visible_where_known() -> None:
    annotation = Annotation("duck", np.array([[1, 2], [np.nan, np.nan], [3, 4]]))
    assert annotation.visibility.tolist() == [2, 0, 2]
    assert annotation.extent() == (1, 2, 2, 2)


def test_the_extent_is_the_box_then_outlines_then_the_mask() -> None:
    triangle = np.array([[10, 10], [20, 10], [20, 40]])
    mask = Mask.from_array(np.pad(np.ones((4, 5), bool), ((2, 74), (3, 92))))
    assert Annotation("duck", box=(1, 2, 3, 4), polygons=(triangle,)).extent() == (1, 2, 3, 4)
    assert Annotation("duck", polygons=(triangle,), mask=mask).extent() == (10, 10, 10, 30)
    assert Annotation("duck", mask=mask).extent() == (3, 2, 5, 4)
    assert Annotation("duck").extent() is None


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_a_mask_keeps_every_pixel(height: int, width: int, seed: int) -> None:
    inside = np.random.default_rng(seed).random((height, width)) < 0.5
    mask = Mask.from_array(inside)
    assert mask.size == (width, height)
    assert mask.area == inside.sum()
    np.testing.assert_array_equal(mask.to_array(), inside)


BAD = {
    "no category name": (lambda: Category(" "), "without a name"),
    "keypoint twice": (lambda: Category("duck", ("eye", "eye")), "two keypoints are named eye"),
    "bone to nowhere": (lambda: Category("duck", ("eye",), ((0, 1),)), r"keypoints \[1, 2\]"),
    "visible without a place": (lambda: Annotation("duck", [[np.nan, 1]], [2]), "keypoint 1 is labelled"),
    "visibility 3": (lambda: Annotation("duck", [[1, 1]], [3]), "0, 1 or 2"),
    "two visibilities": (lambda: Annotation("duck", [[1, 1]], [2, 2]), "1 values 0, 1 or 2"),
    "words": (lambda: Annotation("duck", [["x", "y"]]), "not made of numbers"),
    "negative box": (lambda: Annotation("duck", box=(1, 1, -5, 2)), "box"),
    "line": (lambda: Annotation("duck", polygons=([[1, 1], [2, 2]],)), "fewer than 3"),
    "probability 2": (lambda: Annotation("duck", [[1, 1]], probability=[2]), "from 0 to 1"),
    "score 2": (lambda: Annotation("duck", score=2), "score 2"),
    "mask too short": (lambda: Mask((4, 4), (3, 4)), "4x4 pixels"),
    "point outside": (lambda: photo(Annotation("duck", [[150, 1]])), r"keypoint 1 at \(150, 1\) lies outside"),
    "mask of another photo": (lambda: photo(Annotation("duck", mask=Mask((4, 4), (16,)))), "a mask of"),
    "category twice": (lambda: Annotations((DUCK, DUCK), ()), "two categories"),
    "photo twice": (lambda: Annotations((DUCK,), (photo(), photo())), "listed twice"),
    "unknown category": (lambda: Annotations((DUCK,), (photo(Annotation("car")),)), "no category 'car'"),
    "too few points": (lambda: Annotations((DUCK,), (photo(Annotation("duck", [[1, 1]])),)), "category duck has 3"),
    "asked for another": (lambda: Annotations((DUCK,), ()).category("car"), "no category 'car'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused(case: str) -> None:
    make, text = BAD[case]
    with pytest.raises(InputError, match=text):
        make()


def test_a_point_on_the_border_is_inside() -> None:
    assert photo(Annotation("duck", [[100, 80]])).annotations
    hidden = Annotation("duck", [[500, 500]], [0])
    assert photo(hidden).annotations, "a guess that is not labelled may lie anywhere"


def test_objects_of_a_category() -> None:
    duck, car = Annotation("duck", np.zeros((3, 2))), Annotation("car")
    annotations = Annotations((DUCK, Category("car")), (photo(duck, car), photo(name="b.jpg")))
    assert [found for _, found in annotations.objects()] == [duck, car]
    assert [found for _, found in annotations.objects("car")] == [car]
