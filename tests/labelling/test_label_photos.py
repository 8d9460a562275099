"""Labels carried from photos to others, with the shipped model, to pieces of the demo photo: the truth is known."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cats.assets import asset
from cats.core.errors import InputError
from cats.labelling.annotations import HIDDEN, AnnotatedPhoto, Annotation, Annotations, Category, Mask
from cats.labelling.label import MODEL, LabelledPhoto, goes_through, label_photos, open_for_labelling
from cats.labelling.through import FEW
from cats.runtime import Matcher

FACE = np.array([[225.0, 128.0], [190.0, 60.0], [165.0, 235.0], [300.0, 215.0], [240.0, 290.0]])
NAMES = ("nose", "hair", "left collar", "right collar", "badge")
BOX = (120.0, 20.0, 220.0, 300.0)


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    return open_for_labelling(asset(MODEL))


def piece(path: Path, crop: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[Path, np.ndarray]:
    """A piece of the astronaut, scaled, and where her face is in it."""
    image = Image.open(asset("astronaut.jpg")).convert("RGB").crop(crop).resize(size, Image.Resampling.LANCZOS)
    image.save(path)
    scale = np.array(size) / (crop[2] - crop[0], crop[3] - crop[1])
    return path, (FACE - crop[:2] + 0.5) * scale - 0.5


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, np.ndarray]]:
    folder = tmp_path_factory.mktemp("photos")
    crops = [(60, 0, 400, 340), (90, 0, 420, 330), (0, 0, 512, 512)]
    return [piece(folder / f"{n}.png", crop, (300, 280 + 20 * n)) for n, crop in enumerate(crops)]


def references(count: int = 2, folder: Path | None = None, **more: object) -> Annotations:
    astronaut = AnnotatedPhoto(asset("astronaut.jpg"), (512, 512), (Annotation("face", FACE, **more),))  # type: ignore[arg-type]
    others = []
    if folder is not None:
        path, points = piece(folder / "reference.png", (80, 0, 380, 320), (280, 300))
        others = [AnnotatedPhoto(path, (280, 300), (Annotation("face", points),))]
    return Annotations((Category("face", NAMES),), (astronaut, *others)[:count])


def close(found: LabelledPhoto, truth: np.ndarray) -> bool:
    return bool(np.linalg.norm(found.points - truth, axis=1).max() <= 0.15 * np.ptp(truth, axis=0).max())


def test_points_are_carried_to_every_photo_in_order(
    matcher: Matcher, photos: list[tuple[Path, np.ndarray]], tmp_path: Path
) -> None:
    ticks: list[None] = []
    results = list(
        label_photos(
            references(2, tmp_path), [p for p, _ in photos], matcher, through=0, on_photo=lambda: ticks.append(None)
        )
    )
    assert [result.path for result in results] == [path for path, _ in photos]
    assert len(ticks) == len(photos)
    for result, (path, truth) in zip(results, photos, strict=True):
        assert close(result, truth), (result.points, truth)
        assert result.size == Image.open(path).size
        assert result.found
        assert result.reference is not None
        annotation = result.annotation()
        assert annotation.category == "face"
        assert annotation.probability is not None
        assert (annotation.probability > 0.7).all()
        assert (annotation.visibility == 2).all()
        shown = Image.open(io.BytesIO(result._repr_png_() or b""))
        assert max(shown.size) == 640


def test_the_same_photos_give_the_same_labels(matcher: Matcher, photos: list[tuple[Path, np.ndarray]]) -> None:
    paths = [path for path, _ in photos]
    one = list(label_photos(references(1), paths, matcher, streams=1))
    two = list(label_photos(references(1), [*reversed(paths)], matcher, streams=2))[::-1]
    for first, second in zip(one, two, strict=True):
        assert np.array_equal(first.points, second.points)
        assert np.array_equal(first.probability, second.probability)


def test_a_second_look_is_nearer_than_the_first(matcher: Matcher, photos: list[tuple[Path, np.ndarray]]) -> None:
    errors = []
    for looks in (1, 2):
        found = list(label_photos(references(1), [path for path, _ in photos], matcher, looks=looks))
        errors.append([np.linalg.norm(f.points - t, axis=1).mean() for f, (_, t) in zip(found, photos, strict=True)])
    assert np.mean(errors[1]) < np.mean(errors[0])


def test_improbable_points_are_written_as_not_labelled(matcher: Matcher, photos: list[tuple[Path, np.ndarray]]) -> None:
    (found,) = label_photos(references(1), [photos[0][0]], matcher, min_probability=1.0)
    assert (found.visibility == 0).all()
    assert np.isfinite(found.points).all()


def test_what_is_hidden_in_the_references_is_hidden(matcher: Matcher, photos: list[tuple[Path, np.ndarray]]) -> None:
    hidden = np.array([2, 2, HIDDEN, 2, 0])
    (found,) = label_photos(references(1, visibility=hidden), [photos[0][0]], matcher)
    assert found.visibility.tolist() == [2, 2, 1, 2, 0]
    assert np.isnan(found.points[4]).all()
    assert found.probability[4] == 0
    assert found.annotation().labelled.tolist() == [True, True, True, True, False]


def test_boxes_outlines_and_masks_are_carried(matcher: Matcher, photos: list[tuple[Path, np.ndarray]]) -> None:
    x, y, width, height = BOX
    inside = np.zeros((512, 512), bool)
    inside[int(y) : int(y + height), int(x) : int(x + width)] = True
    outline = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])
    labelled = references(1, box=BOX, polygons=(outline,), mask=Mask.from_array(inside))
    path, points = photos[0]
    (found,) = label_photos(labelled, [path], matcher)
    scale = np.ptp(points, axis=0) / np.ptp(FACE, axis=0)
    corner = points[0] + (outline[0] - FACE[0]) * scale
    expected = np.array([*np.maximum(corner, 0), *(outline[2] - outline[0]) * scale])
    assert found.box is not None
    assert np.abs(np.array(found.box) - expected).max() < 0.2 * expected[2:].max()
    assert found.mask is not None
    assert 0.6 < found.mask.area / (expected[2] * expected[3]) < 1.4
    assert len(found.polygons) == 1
    assert (found.polygons[0] >= 0).all()


def test_objects_without_keypoints_have_boxes_alone(matcher: Matcher, photos: list[tuple[Path, np.ndarray]]) -> None:
    only_box = Annotations(
        (Category("face"),),
        (AnnotatedPhoto(asset("astronaut.jpg"), (512, 512), (Annotation("face", box=BOX),)),),
    )
    (found,) = label_photos(only_box, [photos[0][0]], matcher)
    assert found.points.shape == (0, 2)
    assert found.box is not None
    assert found.annotation().box == found.box


def test_a_category_is_given_or_found(matcher: Matcher, photos: list[tuple[Path, np.ndarray]], tmp_path: Path) -> None:
    stripes = tmp_path / "stripes.png"
    Image.fromarray(np.tile(np.uint8([[0, 255]]).repeat(20, axis=1), (300, 8))).convert("RGB").save(stripes)
    two = Annotations(
        (Category("face", NAMES), Category("stripes", ("end",))),
        (
            AnnotatedPhoto(asset("astronaut.jpg"), (512, 512), (Annotation("face", FACE),)),
            AnnotatedPhoto(stripes, (320, 300), (Annotation("stripes", np.array([[10.0, 10.0]])),)),
        ),
    )
    results = list(label_photos(two, [photos[1][0], (photos[1][0], "stripes"), stripes], matcher))
    assert [result.category for result in results] == ["face", "stripes", "stripes"]
    assert results[1].same_kind < results[0].same_kind


def test_a_photo_of_another_kind_is_less_likely_the_same(
    matcher: Matcher, photos: list[tuple[Path, np.ndarray]], tmp_path: Path
) -> None:
    noise = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)).save(noise)
    face, other = label_photos(references(1), [photos[0][0], noise], matcher)
    assert face.same_kind > 0.8
    assert not other.found


def test_a_photo_that_cannot_be_read_is_reported_and_the_others_go_on(
    matcher: Matcher, photos: list[tuple[Path, np.ndarray]], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    bad, good = label_photos(references(1), [broken, photos[0][0]], matcher)
    assert bad.error is not None
    assert "broken.jpg" in bad.error
    assert good.found
    assert bad._repr_png_() is None
    with pytest.raises(InputError, match="was not labelled"):
        bad.annotation()


def test_photos_help_one_another(matcher: Matcher, photos: list[tuple[Path, np.ndarray]], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    paths = [path for path, _ in photos]
    ticks: list[None] = []
    alone = list(label_photos(references(1), paths, matcher, through=0))
    together = list(
        label_photos(references(1), [*paths, broken], matcher, through=2, on_photo=lambda: ticks.append(None))
    )
    assert len(ticks) == 2 * 4
    assert together[3].error is not None
    assert all(close(result, truth) for result, (_, truth) in zip(together, photos, strict=False))
    assert any(not np.array_equal(a.points, b.points) for a, b in zip(alone, together, strict=False))


def test_few_references_are_helped_by_the_other_photos_unless_asked_otherwise() -> None:
    one = references(1)
    assert goes_through(one, None)
    many = Annotations(one.categories, tuple(replace(one.photos[0], path=Path(f"{n}.png")) for n in range(FEW + 1)))
    assert not goes_through(many, None)
    assert goes_through(many, 1)
    assert not goes_through(one, 0)


def test_a_model_that_is_not_split_labels_too(photos: list[tuple[Path, np.ndarray]]) -> None:
    (found,) = label_photos(references(1), [photos[1][0]], asset("cats-tiny.onnx"))
    assert close(found, photos[1][1])
    assert found.found


def test_bad_settings_and_references_are_refused_by_name(matcher: Matcher, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="looks 0"):
        list(label_photos(references(1), [], matcher, looks=0))
    with pytest.raises(InputError, match="min_probability 2"):
        list(label_photos(references(1), [], matcher, min_probability=2))
    with pytest.raises(InputError, match="streams 0"):
        list(label_photos(references(1), [], matcher, streams=0))
    with pytest.raises(InputError, match="no reference is of category 'dog'"):
        list(label_photos(references(1), [(asset("astronaut.jpg"), "dog")], matcher))
    nothing = AnnotatedPhoto(asset("astronaut.jpg"), (512, 512), (Annotation("face", np.full((5, 2), np.nan)),))
    with pytest.raises(InputError, match="the references label nothing"):
        list(label_photos(Annotations((Category("face", NAMES),), (nothing,)), [], matcher))
    gone = AnnotatedPhoto(tmp_path / "gone.jpg", (512, 512), (Annotation("face", FACE),))
    with pytest.raises(InputError, match=r"gone\.jpg"):
        list(label_photos(Annotations((Category("face", NAMES),), (gone,)), [], matcher))
