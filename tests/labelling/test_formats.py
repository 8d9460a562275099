"""Every format gives back what it can hold, says what it cannot, and refuses what it cannot read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from labels import CAR, DUCK, SIZES, assert_same, full_annotations, make_photos

from cats.labelling.annotations import AnnotatedPhoto, Annotation, Annotations, Category, Mask
from cats.labelling.formats import FORMATS, read_annotations, recognise, write_annotations

FILES = {
    "coco": "labels.json",
    "csv": "labels.csv",
    "label-studio": "labels.json",
    "cvat": "labels.xml",
    "yolo": "labels",
    "tps": "labels.tps",
    "deeplabcut": "labels.csv",
}

HOLDS = {
    "coco": {"hidden", "box", "outline", "bones", "names", "probability", "score", "unlabelled", "categories"},
    "csv": {"hidden", "box", "names", "probability", "score", "unlabelled", "categories", "no box"},
    "label-studio": {
        "hidden",
        "box",
        "outline",
        "mask",
        "bones",
        "names",
        "probability",
        "score",
        "unlabelled",
        "categories",
    },
    "cvat": {"hidden", "box", "outline", "mask", "bones", "names", "categories", "no box"},
    "yolo": {"hidden", "box", "bones", "names", "unlabelled", "categories"},
    "tps": {"no box"},
    "deeplabcut": {"names", "categories", "no box", "in columns"},
}
"""What the hypothesis test gives each format: a shorter list than what it holds is a defect of the test."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("photos")
    make_photos(made)
    return made


@st.composite
def annotations_for(draw: st.DrawFn, holds: set[str], folder: Path) -> Annotations:
    """Annotations within what a format holds."""
    names = st.text("abcü '\"<&,;_", min_size=1, max_size=5).map(lambda text: f"k{text}k")
    categories = []
    kinds = draw(st.integers(1, 2)) if "categories" in holds else 1
    for index in range(kinds):
        count = draw(st.integers(1, 4))
        keypoints = tuple(map(str, range(1, count + 1)))
        if "names" in holds:
            keypoints = tuple(draw(st.lists(names, min_size=count, max_size=count, unique=True)))
        if "in columns" in holds:  # of all categories together
            keypoints = tuple(f"{name}{index}" for name in keypoints)
        ends = st.integers(0, count - 1)
        bones = draw(st.lists(st.tuples(ends, ends), max_size=3)) if "bones" in holds else []
        name = "object" if kinds == 1 and not {"unlabelled", "bones"} & holds else f"{draw(names)}{'xy'[index]}"
        categories.append(Category(name, keypoints, tuple(bones)))
    photos = []
    seen: set[tuple[str, int]] = set()
    for name, size in SIZES.items():
        objects = [
            draw(object_for(holds, category, size))
            for category in draw(st.lists(st.sampled_from(categories), max_size=3))
        ]
        seen |= {(found.category, k) for found in objects for k in np.flatnonzero(found.labelled)}
        photos.append(AnnotatedPhoto(folder / name, size, tuple(objects)))
    if "bones" not in holds:  # then a category is what its objects show
        last = photos[-1]
        missing = [c for c in categories if any((c.name, k) not in seen for k in range(len(c.keypoints)))]
        more = [
            Annotation(c.name, np.ones((len(c.keypoints), 2)), box=None if "no box" in holds else (0, 0, 1, 1))
            for c in missing
        ]
        photos[-1] = dataclasses.replace(last, annotations=(*last.annotations, *more))
        if "in columns" in holds:
            photos = [dataclasses.replace(p, annotations=_in_columns(p, categories)) for p in photos]
            return Annotations(tuple(categories), tuple(photos))
        order = list(dict.fromkeys(found.category for photo in photos for found in photo.annotations))
        categories.sort(key=lambda category: order.index(category.name))
    return Annotations(tuple(categories), tuple(photos))


def _in_columns(photo: AnnotatedPhoto, categories: list[Category]) -> tuple[Annotation, ...]:
    order = [category.name for category in categories]
    return tuple(sorted(photo.annotations, key=lambda found: order.index(found.category)))


@st.composite
def object_for(draw: st.DrawFn, holds: set[str], category: Category, size: tuple[int, int]) -> Annotation:
    width, height = size
    x, y = (st.floats(0, side - 1, allow_subnormal=False) for side in size)
    count = len(category.keypoints)
    points = np.array(draw(st.lists(st.tuples(x, y), min_size=count, max_size=count)))
    states = [0, 2] + [1] * ("hidden" in holds)
    visibility = np.array(draw(st.lists(st.sampled_from(states), min_size=count, max_size=count)))
    if "unlabelled" not in holds:
        visibility[draw(st.integers(0, count - 1))] = 2
    probability = None
    if "probability" in holds and draw(st.booleans()):
        probability = np.array(draw(st.lists(st.floats(0, 1), min_size=count, max_size=count)))
        probability = np.where(visibility > 0, probability, 0)
        probability = probability if (visibility > 0).any() else None
    box = draw(st.tuples(x, y, x, y)) if "box" in holds and ("no box" not in holds or draw(st.booleans())) else None
    polygons: list[np.ndarray] = []
    mask = None
    if "outline" in holds:
        polygons = [np.array(p) for p in draw(st.lists(st.lists(st.tuples(x, y), min_size=3, max_size=5), max_size=2))]
        if (not polygons or "mask" in holds) and draw(st.booleans()):
            seed = draw(st.integers(0, 99))
            mask = Mask.from_array(np.random.default_rng(seed).random((height, width)) < 0.3)
    score = draw(st.none() | st.floats(0, 1)) if "score" in holds else None
    return Annotation(category.name, points, visibility, box, tuple(polygons), mask, probability, score)


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_format_holds_comes_back(name: str, folder: Path) -> None:
    path = folder / f"{name}-{FILES[name]}"

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(annotations_for(HOLDS[name], folder))
    def check(annotations: Annotations) -> None:
        write_annotations(annotations, path, format=name)
        assert_same(read_annotations(path, format=name), annotations)

    check()


@pytest.mark.parametrize("name", FORMATS)
def test_everything_is_written_or_named_as_lost(name: str, folder: Path, tmp_path: Path) -> None:
    annotations = full_annotations(folder)
    path = folder / f"full-{name}-{FILES[name]}"
    notes = " ".join(write_annotations(annotations, path, format=name))
    found = read_annotations(path)
    assert recognise(path).name == name
    first, expected = found.photos[0].annotations[0], annotations.photos[0].annotations[0]
    points = first.points[first.labelled]
    np.testing.assert_allclose(points, expected.points[expected.labelled], atol=1e-9)
    lost = {
        "hidden points": not (first.visibility == 1).any(),
        "bones": not any(category.skeleton for category in found.categories),
        "boxes": first.box is None,
        "outlines": not any(found_.polygons for _, found_ in found.objects()),
        "masks": first.mask is None,
        "probabilities": first.probability is None,
        "scores": first.score is None,
    }
    for what, is_lost in lost.items():
        assert (what in notes) == is_lost, (what, notes)


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_file_of_labels(name: str, folder: Path) -> None:
    photos = tuple(AnnotatedPhoto(folder / file, size) for file, size in SIZES.items())
    path = folder / f"empty-{name}-{FILES[name]}"
    write_annotations(Annotations((DUCK, CAR), photos), path, format=name)
    found = read_annotations(path)
    assert [len(photo.annotations) for photo in found.photos] == [0, 0, 0]
