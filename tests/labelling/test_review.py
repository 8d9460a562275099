"""The review sheet in a browser: drag a point, reject one, reject a photo, download, compare the file."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import open_page
from labels import DUCK, SIZES, assert_same, make_photos

from cats.labelling.annotations import AnnotatedPhoto, Annotation, Annotations, Category
from cats.labelling.formats import FORMATS, read_annotations, write_annotations
from cats.labelling.review import Reviewed, write_sheet

FILES = {
    "coco": "out.json",
    "csv": "out.csv",
    "label-studio": "out.json",
    "cvat": "out.xml",
    "yolo": "out",
    "tps": "out.tps",
}
FILES |= {"deeplabcut": "out.csv"}
NOTHING = "other.png"


def predictions(folder: Path, category: Category) -> Annotations:
    """One object in each photo but the last; the least sure points are in the second photo."""
    objects = [
        Annotation(
            category.name,
            np.array([[20.0, 20.0], [70.0, 30.0], [40.0, 60.0]]) * size / (100, 80),
            np.array([2, 2, 2]),
            box=(5, 5, 20, 20),
            probability=np.array([0.9, 0.8, 0.55]) - 0.2 * index,
        )
        for index, size in enumerate(SIZES.values())
    ]
    photos = [
        AnnotatedPhoto(folder / name, size, (found,))
        for (name, size), found in zip(SIZES.items(), objects, strict=True)
    ]
    return Annotations((category,), (photos[0], AnnotatedPhoto(folder / NOTHING, (50, 40)), *photos[1:]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from PIL import Image

    make_photos(tmp_path)
    Image.new("RGB", (50, 40), "grey").save(tmp_path / NOTHING)
    return tmp_path


def make_sheet(folder: Path, name: str, labels: Annotations) -> Path:
    """A label file and its sheet, in which the first photo is the reference of all."""
    path = folder / FILES[name]
    write_annotations(labels, path, format=name)
    references = replace(labels, photos=labels.photos[:1])
    shown = [
        Reviewed(photo.path, photo.size, next(iter(photo.annotations), None), labels.photos[0].path, 0.9)
        for photo in labels.photos
    ]
    sheet = folder / "sheet.html"
    write_sheet(sheet, shown, references, labels.categories, path, FORMATS[name], folder)
    return sheet


def download(page: Any, folder: Path, name: str) -> Annotations:
    """Press the button and read what comes, in the place of the file that was written."""
    with page.expect_download() as waiting:
        page.click("#download")
    content = Path(waiting.value.path()).read_bytes()
    if name != "yolo":
        assert waiting.value.suggested_filename == FILES[name]
        (folder / FILES[name]).write_bytes(content)
    else:
        assert waiting.value.suggested_filename == "out.zip"
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert archive.testzip() is None
            archive.extractall(folder / FILES[name])
    return read_annotations(folder / FILES[name], format=name)


@pytest.fixture
def opened(chromium: Any, folder: Path) -> Iterator[Any]:
    labels = predictions(folder, DUCK)
    with open_page(chromium, make_sheet(folder, "coco", labels).as_uri()) as watched:
        yield watched
        watched.check("file:")


@pytest.mark.parametrize("name", FORMATS)
def test_corrections_come_back_in_the_same_format(chromium: Any, folder: Path, name: str) -> None:
    category = {"tps": Category("object", ("1", "2", "3")), "deeplabcut": Category("object", DUCK.keypoints)}.get(
        name, DUCK
    )
    labels = predictions(folder, category)
    sheet = make_sheet(folder, name, labels)
    before = read_annotations(folder / FILES[name], format=name)
    with open_page(chromium, sheet.as_uri(), width=1280) as watched:
        page = watched.page
        assert_same(download(page, folder, name), before)
        card = page.locator("article", has=page.get_by_role("heading", name="a.png", exact=True))
        card.locator(".photo .grip").nth(1).scroll_into_view_if_needed()
        image = card.locator(".photo img").bounding_box()
        grip = card.locator(".photo .grip").nth(1).bounding_box()
        at = (grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2)
        scale = image["width"] / 100
        page.mouse.move(*at)
        page.mouse.down()
        page.mouse.move(at[0] - 10 * scale, at[1] + 5 * scale, steps=4)
        page.mouse.up()
        card.get_by_role("button", name=category.keypoints[2]).click()
        page.keyboard.press("x")
        other = page.locator("article", has=page.get_by_role("heading", name="ü.jpg", exact=True))
        other.get_by_role("button", name="Reject").click()
        found = download(page, folder, name)
        watched.check("file:")
    first = before.photos[0].annotations[0]
    points, visibility = first.points.copy(), np.array([2, 2, 0])
    points[1] += (-10, 5)
    corrected = replace(first, points=points, visibility=visibility)
    expected = replace(
        before,
        photos=(
            replace(before.photos[0], annotations=(corrected,)),
            *before.photos[1:3],
            replace(before.photos[3], annotations=()),
        ),
    )
    if name == "label-studio":  # probabilities are those of the points that there are
        corrected = replace(corrected, probability=np.where(visibility > 0, first.probability, 0))
        expected = replace(expected, photos=(replace(before.photos[0], annotations=(corrected,)), *expected.photos[1:]))
    assert_same(found, expected, atol=0.06)


def test_worst_first_with_the_reference_beside(opened: Any) -> None:
    page = opened.page
    assert page.locator("article h2").all_inner_texts() == ["other.png", "ü.jpg", "sub/b c.png", "a.png"]
    assert "not labelled: not this object" in page.locator("article").first.inner_text()
    assert page.locator("article").nth(1).locator(".reference figcaption").inner_text() == "reference a.png"
    assert "3 to review" in page.locator("#counts").inner_text()


def test_filters(opened: Any) -> None:
    page = opened.page
    shown = lambda: page.locator("article:visible h2").all_inner_texts()  # noqa: E731
    page.fill("#below", "0.4")
    assert shown() == ["other.png", "ü.jpg", "sub/b c.png"]
    page.select_option("#category", "duck")
    assert shown() == ["ü.jpg", "sub/b c.png"]
    page.select_option("#state", "accepted")
    assert shown() == []
    assert page.locator("#none").is_visible()


def test_keys(opened: Any, folder: Path) -> None:
    page = opened.page
    press = page.keyboard.press
    press("j")  # to ü.jpg
    press("]")
    press("Shift+ArrowRight")
    press("ArrowUp")
    press("h")
    press("a")  # accepts it and goes on to sub/b c.png
    press("x")
    press("u")
    press("r")
    press("u")
    press("]")
    press("x")
    found = download(page, folder, "coco")
    before = predictions(folder, DUCK)
    last = found.photos[3].annotations[0]
    np.testing.assert_allclose(last.points[1], before.photos[3].annotations[0].points[1] + (10, -1), atol=0.01)
    assert last.visibility.tolist() == [2, 1, 2]
    assert found.photos[2].annotations[0].visibility.tolist() == [2, 0, 2]
    assert "1 accepted, 0 rejected" in page.locator("#counts").inner_text()


def test_a_point_without_a_place_is_set_by_a_click(chromium: Any, folder: Path) -> None:
    labels = predictions(folder, DUCK)
    first = labels.photos[0].annotations[0]
    points = first.points.copy()
    points[0] = np.nan
    blank = replace(labels.photos[0], annotations=(replace(first, points=points, visibility=np.array([0, 2, 2])),))
    labels = replace(labels, photos=(blank, *labels.photos[1:]))
    with open_page(chromium, make_sheet(folder, "coco", labels).as_uri()) as watched:
        page = watched.page
        card = page.locator("article", has=page.get_by_role("heading", name="a.png", exact=True))
        card.get_by_role("button", name="beak").click()
        image = card.locator(".photo img").bounding_box()
        page.mouse.click(image["x"] + 0.5 * image["width"], image["y"] + 0.25 * image["height"])
        found = download(page, folder, "coco")
        watched.check("file:")
    assert found.photos[0].annotations[0].visibility.tolist() == [2, 2, 2]
    np.testing.assert_allclose(found.photos[0].annotations[0].points[0], [49.5, 19.5], atol=0.5)


def test_the_review_outlives_a_reload(opened: Any) -> None:
    page = opened.page
    page.keyboard.press("j")
    page.keyboard.press("a")
    page.once("dialog", lambda dialog: dialog.accept())
    page.reload()
    assert "1 accepted" in page.locator("#counts").inner_text()


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits(chromium: Any, folder: Path, width: int, scheme: str) -> None:
    sheet = make_sheet(folder, "coco", predictions(folder, DUCK))
    with open_page(chromium, sheet.as_uri(), width=width, height=740, color_scheme=scheme) as watched:
        wide, tall = watched.page.evaluate("[document.documentElement.scrollWidth, document.body.scrollHeight]")
        assert wide <= width
        assert tall > 740
        background = watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(20, 22, 26)") == (scheme == "dark")
        watched.check("file:")


def test_names_are_never_markup(chromium: Any, folder: Path) -> None:
    trap = "<img src=x onerror=document.title='owned'>"
    evil = Category(f"</script>{trap}", (trap, "'\"", "a\u2028b"))
    sheet = make_sheet(folder, "coco", predictions(folder, evil))
    with open_page(chromium, sheet.as_uri()) as watched:
        assert watched.page.title() == "Review of out.json"
        assert trap in watched.page.locator("article").nth(1).inner_text()
        watched.check("file:")
