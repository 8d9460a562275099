"""``cats view``, ``cats-run --html`` and notebooks: one file with the match in it."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import open_page
from commands import Command, runner
from PIL import Image

from cats import cli
from cats.assets import asset
from cats.core.geometry import cells_to_pixels, identity_cells, pixels_to_cells
from cats.runtime import Match
from cats.runtime.commands import run as run_command
from cats.runtime.viewer import match_page

A, B = asset("astronaut.jpg"), asset("grace_hopper.jpg")


@pytest.fixture
def cats(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return runner(cli.main, "cats", monkeypatch, capsys)


@pytest.fixture
def cats_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return runner(run_command.main, "cats-run", monkeypatch, capsys)


def rows(page: Any) -> list[dict[str, Any]]:
    page.wait_for_selector("html[data-state=matched]")
    found = page.evaluate("[...document.querySelectorAll('#rows tr')].map(row => ({...row.dataset}))")
    return [{key: json.loads(value) for key, value in row.items()} for row in found]


def test_a_file_from_disk_gives_pythons_points(cats: Command, chromium: Any, match: Match, tmp_path: Path) -> None:
    done = cats("view", A, B, "-o", tmp_path / "match.html", "--points", asset("astronaut.json"))
    assert done.code == 0, done.err
    address = (tmp_path / "match.html").as_uri()
    with open_page(chromium, address) as watched:
        page = watched.page
        shown = rows(page)
        assert len(shown) == 10
        page.locator("#canvas-a").click(position={"x": 111, "y": 222})
        found = rows(page)
        start = [row["a"] for row in found]
        np.testing.assert_allclose([row["b"] for row in found], match.transfer(start), atol=1e-3)
        np.testing.assert_allclose([row["confidence"] for row in found], match.confidence_at(start), atol=1e-5)
        probability = match.probability_at(start)
        np.testing.assert_allclose([row["probability"] for row in found], probability, atol=1e-5)
        assert page.inner_text("#scale-heading") == "Probability"
        shown = page.locator("#rows td:nth-child(4)").all_inner_texts()
        np.testing.assert_allclose([float(text) for text in shown], probability, atol=0.006)
        assert page.inner_text("#confidence-name") == "probability"
        assert "model's probability" in page.inner_text("#map-kind")
        page.click("#view-morph")
        with page.expect_download() as saved:
            page.click("#export-json")
        assert json.loads(Path(saved.value.path()).read_text())["model"]["file"].endswith("cats-tiny.onnx")
        watched.check(address)


def test_cats_run_writes_it_too(cats_run: Command, chromium: Any, tmp_path: Path) -> None:
    done = cats_run(asset("cats-tiny.onnx"), A, B, "--html", tmp_path / "m.html")
    assert done.code == 0, done.err
    assert [path.name for path in tmp_path.iterdir()] == ["m.html"]
    with open_page(chromium, (tmp_path / "m.html").as_uri(), width=360, color_scheme="dark") as watched:
        assert rows(watched.page) == []
        watched.page.locator("#canvas-a").click()
        assert len(rows(watched.page)) == 1
        assert "Gaussian" in watched.page.inner_text("#map-kind")
        assert watched.page.evaluate("document.documentElement.scrollWidth") <= 360
    refused = cats_run(asset("cats-tiny.onnx"), A, B, "--html", tmp_path / "m.pdf")
    assert "must end in .html" in refused.error


def test_a_table_of_pairs_gives_a_folder_of_pages(cats_run: Command, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(f"a,b\n{A},{B}\n{B},{A}\n")
    done = cats_run(asset("cats-tiny.onnx"), "--pairs", tmp_path / "pairs.csv", "--html", tmp_path / "pages")
    assert done.code == 0, done.err
    names = sorted(path.name for path in (tmp_path / "pages").iterdir())
    assert names == ["1-astronaut-grace_hopper.html", "2-grace_hopper-astronaut.html"]


def given_match(a: Any, b: Any, size: int = 1000) -> Match:
    rng = np.random.default_rng(3)
    return Match(
        flow=rng.normal(size=(2, 16, 16)).astype(np.float32),
        confidence=rng.uniform(size=(16, 16)).astype(np.float32),
        size_a=(size, size),
        size_b=(size, size),
        image_a=a,
        image_b=b,
        probabilities=rng.dirichlet(np.full(256, 0.05), 256).astype(np.float32),
    )


def test_two_photos_of_a_megapixel_stay_below_a_mail(match: Match) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (1000, 1000, 3), np.uint8) for _ in "ab"]  # nothing compresses worse
    assert len(match_page(given_match(*noise))) < 1_500_000
    photos = [np.asarray(Image.open(path).convert("RGB").resize((1000, 1000))) for path in (A, B)]
    page = match_page(given_match(*photos))
    assert len(page) < 700_000


def test_names_are_text_and_places_of_a_photo_are_not_shared(chromium: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    Image.open(A).save(tmp_path / "a.jpg", exif=exif)
    name = '<script>document.title="taken over"</script><!--'
    page = match_page(given_match(tmp_path / "a.jpg", B, 512), names=(name, "</script>b"), model={"file": name})
    stored = [base64.b64decode(data) for data in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)]
    assert [Image.open(io.BytesIO(photo)).size for photo in stored] == [(512, 512), (512, 600)]
    assert not any(b"taken at home" in photo for photo in stored)
    (tmp_path / "m.html").write_text(page)
    with open_page(chromium, (tmp_path / "m.html").as_uri()) as watched:
        rows(watched.page)
        assert watched.page.inner_text("#name-a") == name
        assert watched.page.inner_text("#name-b") == "</script>b"
        assert watched.page.title() != "taken over"
        watched.check((tmp_path / "m.html").as_uri())


def test_notebooks_show_it_in_a_frame(chromium: Any, match: Match, tmp_path: Path) -> None:
    frame = match._repr_html_()
    assert frame is not None
    assert len(frame) < 450_000
    (tmp_path / "notebook.html").write_text(f"<!doctype html><title>notebook</title>{frame}")
    with open_page(chromium, (tmp_path / "notebook.html").as_uri()) as watched:
        inside = watched.page.frame_locator("iframe")
        inside.locator("#canvas-a").click(position={"x": 50, "y": 60})
        assert inside.locator("#rows tr").count() == 1
    assert Match(match.flow, match.confidence, match.size_a, match.size_b)._repr_html_() is None


def test_refusals(cats: Command, tmp_path: Path) -> None:
    assert "must end in .html" in cats("view", A, B, "-o", tmp_path / "x.png").error
    assert "missing.jpg" in cats("view", A, tmp_path / "missing.jpg", "-o", tmp_path / "x.html").error
    (tmp_path / "p.json").write_text("[[9000, 3]]")
    refused = cats("view", A, B, "-o", tmp_path / "x.html", "--points", tmp_path / "p.json")
    assert "outside image a" in refused.error
    assert not (tmp_path / "x.html").exists()


def test_probabilities_are_distributions_about_the_flow(site: Path) -> None:
    """What the file's further output gives belongs to its flow: rows are cells of a, columns cells of b."""
    from cats.runtime import Matcher

    with Matcher(site / "cats-tiny.onnx") as matcher:
        match = matcher.match(A, B)
    assert match.probabilities is not None
    cells = identity_cells(16).reshape(2, -1).T
    mean = match.probabilities @ cells
    shown = pixels_to_cells(match.transfer(cells_to_pixels(cells, match.size_a)), match.size_b)
    assert np.abs(mean - shown).max() < 0.2  # the model's coordinates were learnt, and are not quite the cells' own
