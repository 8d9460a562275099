"""Photos and annotations for the tests of labelling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cats.labelling.annotations import AnnotatedPhoto, Annotation, Annotations, Category, Mask

SIZES = {"a.png": (100, 80), "sub/b c.png": (64, 48), "ü.jpg": (37, 53)}
"""Photos with names that need care, and their (width, height)."""

DUCK = Category("duck", ("beak", "tail", "left eye"), ((0, 2), (2, 1)))
CAR = Category("car", ("wheel", "lamp"))


def make_photos(folder: Path) -> None:
    """Write the photos of :data:`SIZES`."""
    for seed, (name, size) in enumerate(SIZES.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)


def full_annotations(folder: Path) -> Annotations:
    """Everything that annotations can hold, in the photos of :func:`make_photos`."""
    nan = np.nan
    mask = np.zeros((80, 100), bool)
    mask[20:40, 30:70] = True
    mask[25:30, 40:50] = False
    first = Annotation(
        "duck",
        np.array([[10.5, 20.25], [nan, nan], [33.0, 44.125]]),
        np.array([2, 0, 1]),
        box=(5.5, 10, 50, 60.25),
        mask=Mask.from_array(mask),
        probability=np.array([0.9, 0.1, 0.75]),
        score=0.5,
    )
    second = Annotation("duck", np.array([[60.0, 20.0], [70.5, 30.0], [65.0, 25.0]]), box=(55, 15, 20, 20))
    square = np.array([[3.0, 4.0], [20.5, 4.0], [20.0, 30.0], [3.0, 30.0]])
    triangle = np.array([[30.0, 30.0], [50.0, 30.0], [40.0, 45.5]])
    third = Annotation("car", np.array([[4.0, 5.0], [18.0, 28.0]]), box=(3, 4, 47, 41.5), polygons=(square, triangle))
    names = list(SIZES)
    photos = (
        AnnotatedPhoto(folder / names[0], SIZES[names[0]], (first, second)),
        AnnotatedPhoto(folder / names[1], SIZES[names[1]], (third,)),
        AnnotatedPhoto(folder / names[2], SIZES[names[2]]),
    )
    return Annotations((DUCK, CAR), photos)


def assert_same(found: Annotations, expected: Annotations, **tolerance: float) -> None:
    """Compare everything of two annotations; ``tolerance`` as of numpy's assert_allclose."""
    tolerance = {"rtol": 0, "atol": 1e-9, **tolerance}
    assert found.categories == expected.categories
    assert [photo.path.name for photo in found.photos] == [photo.path.name for photo in expected.photos]
    for photo, wanted in zip(found.photos, expected.photos, strict=True):
        assert photo.size == wanted.size
        assert len(photo.annotations) == len(wanted.annotations), photo.path
        for a, b in zip(photo.annotations, wanted.annotations, strict=True):
            assert_same_object(a, b, tolerance)


def assert_same_object(a: Annotation, b: Annotation, tolerance: dict[str, float]) -> None:
    assert a.category == b.category
    np.testing.assert_array_equal(a.visibility, b.visibility)
    np.testing.assert_allclose(a.points[a.labelled], b.points[b.labelled], **tolerance)
    assert (a.box is None) == (b.box is None)
    if a.box is not None and b.box is not None:
        np.testing.assert_allclose(a.box, b.box, **tolerance)
    assert len(a.polygons) == len(b.polygons)
    for p, q in zip(a.polygons, b.polygons, strict=True):
        np.testing.assert_allclose(p, q, **tolerance)
    assert (a.mask is None) == (b.mask is None)
    if a.mask is not None and b.mask is not None:
        np.testing.assert_array_equal(a.mask.to_array(), b.mask.to_array())
    assert (a.probability is None) == (b.probability is None)
    if a.probability is not None:
        np.testing.assert_allclose(a.probability, b.probability, **tolerance)
    assert a.score == b.score
