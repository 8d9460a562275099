"""The page in a browser: the same numbers as Python, and everything that a person can do with it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Watched, launch, open_page, serve
from PIL import Image

from cats.assets import asset
from cats.core.geometry import pixels_to_cells, sample_grid, transfer_points
from cats.core.images import normalise, read_image, resize
from cats.core.metadata import Preprocessing
from cats.runtime import Match, Matcher

A, B = asset("astronaut.jpg"), asset("grace_hopper.jpg")
SOFTWARE_WEBGPU = (
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-unsafe-swiftshader",
    "--enable-features=Vulkan",
    "--use-vulkan=swiftshader",
    "--disable-vulkan-surface",
)


def state(page: Any, *names: str) -> None:
    page.wait_for_function("names => names.includes(document.documentElement.dataset.state)", arg=list(names))


def rows(page: Any) -> list[dict[str, Any]]:
    found = page.evaluate("[...document.querySelectorAll('#rows tr')].map(row => ({...row.dataset}))")
    return [{key: json.loads(value) for key, value in row.items()} for row in found]


def load(page: Any, a: Path = A, b: Path = B) -> None:
    state(page, "ready", "checked", "failed")
    page.set_input_files("#file-a", a)
    page.set_input_files("#file-b", b)
    state(page, "checked")


@pytest.fixture(scope="module")
def shared(chromium: Any, address: str) -> Iterator[Watched]:
    """One page with the two portraits for all tests that put it back."""
    with open_page(chromium, f"{address}?engine=wasm&threads=1") as watched:
        load(watched.page)
        yield watched
        watched.check(address)


@pytest.fixture
def page(shared: Watched) -> Iterator[Any]:
    yield shared.page
    if shared.page.is_enabled("#clear"):
        shared.page.click("#clear")
    shared.page.click("#view-points")


def test_a_click_gives_pythons_point_at_once(page: Any, match: Match) -> None:
    times = []
    for x, y in [(60, 40), (200, 150), (330, 90), (120, 300)]:
        page.locator("#canvas-a").click(position={"x": x, "y": y})
        times.append(page.evaluate("Number(document.documentElement.dataset.answerMs)"))
    found = rows(page)
    start = [row["a"] for row in found]
    np.testing.assert_allclose([row["b"] for row in found], match.transfer(start), atol=0.05)
    np.testing.assert_allclose([row["confidence"] for row in found], match.confidence_at(start), atol=1e-3)
    np.testing.assert_allclose([row["probability"] for row in found], match.probability_at(start), atol=2e-3)
    errors = [float(text.split()[0]) for text in page.locator("#rows td:nth-child(5)").all_inner_texts()]
    np.testing.assert_allclose(errors, match.forward_backward_error(start), atol=0.06)
    assert min(times) < 30
    assert "model's probability" in page.inner_text("#map-kind")


def test_the_page_needs_no_headers_and_says_where_it_runs(chromium: Any, site: Path, match: Match) -> None:
    with serve(site) as url, open_page(chromium, url) as watched:
        page = watched.page
        page.wait_for_function("() => crossOriginIsolated")  # the service worker has taken over
        load(page)
        engine = page.inner_text("#engine")
        assert "WebAssembly" in engine
        assert "WebGPU is not used" in page.inner_text("#engine-note")
        page.locator("#canvas-a").click(position={"x": 100, "y": 100})
        (row,) = rows(page)
        np.testing.assert_allclose([row["b"]], match.transfer([row["a"]]), atol=0.05)
        watched.check(url)


def test_points_by_pointer_keyboard_and_table(page: Any) -> None:
    canvas = page.locator("#canvas-a")
    canvas.click(position={"x": 100, "y": 100})
    canvas.click(position={"x": 250, "y": 200})
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 250, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 220, steps=4)
    page.mouse.up()
    dragged = rows(page)
    assert len(dragged) == 2
    assert dragged[1]["a"][0] - dragged[0]["a"][0] > 100
    page.keyboard.press("Alt+ArrowLeft")
    assert rows(page)[1]["a"][0] < dragged[1]["a"][0]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Enter")
    third = rows(page)[2]["a"]
    assert third[1] > rows(page)[1]["a"][1]
    assert "Point 3 at" in page.inner_text("#live")
    page.keyboard.press("p")
    assert page.locator("#rows tr.selected").count() == 1
    page.keyboard.press("Delete")
    assert [row["a"] for row in rows(page)] == [dragged[0]["a"], third]
    page.keyboard.press("Control+z")
    assert len(rows(page)) == 3
    page.click("#redo")
    page.get_by_label("Remove point 1").click()
    assert [row["a"] for row in rows(page)] == [third]


def test_hover_shows_where_a_place_lies_without_leaving_a_point(page: Any) -> None:
    page.mouse.move(0, 0)
    before = picture(page, "canvas-b")
    page.locator("#canvas-a").hover(position={"x": 150, "y": 150})
    page.wait_for_function("() => document.getElementById('readout').classList.contains('on')")
    assert np.abs(picture(page, "canvas-b") - before).max() > 50
    assert not rows(page)
    page.mouse.move(0, 0)
    page.wait_for_function("() => !document.getElementById('readout').classList.contains('on')")
    np.testing.assert_allclose(picture(page, "canvas-b"), before, atol=2)


def picture(page: Any, canvas: str) -> np.ndarray:
    url = page.evaluate(f"document.getElementById('{canvas}').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")).astype(int)


def test_morph_goes_from_a_to_b_and_overlay_bends_b(page: Any, match: Match) -> None:
    page.click("#view-morph")

    def at(value: int) -> np.ndarray:
        page.locator("#mix").fill(str(value))
        page.wait_for_function(f"() => document.getElementById('mix-value').textContent == '{value} %'")
        return picture(page, "canvas-blend")

    for value, photo in ((0, A), (100, B)):
        seen = at(value)
        small = read_image(photo).resize(seen.shape[1::-1], Image.Resampling.LANCZOS)
        assert np.abs(seen - np.asarray(small).astype(int)).mean() < 4, value
    page.click("#view-overlay")
    over = at(100)
    warped = np.asarray(match.warp().resize(over.shape[1::-1], Image.Resampling.LANCZOS)).astype(int)
    sure = Image.fromarray(match.confidence).resize(over.shape[1::-1], Image.Resampling.BILINEAR)
    where = np.asarray(sure) > 0.98 * match.confidence.max()
    assert where.any()
    assert np.abs(over - warped)[where].mean() < 12  # there b covers a


def test_exports(page: Any, match: Match) -> None:
    for x, y in [(100, 100), (200, 260)]:
        page.locator("#canvas-a").click(position={"x": x, "y": y})
    start = [row["a"] for row in rows(page)]
    with page.expect_download() as saved:
        page.click("#export-json")
    assert saved.value.suggested_filename == "astronaut-grace_hopper.json"
    document = json.loads(Path(saved.value.path()).read_text())
    assert set(document) == {"a", "b", "size_a", "size_b", "model", "matches", "time_ms"}
    assert (document["size_a"], document["size_b"]) == (list(match.size_a), list(match.size_b))
    assert document["model"]["backend"].startswith("onnxruntime-web")
    np.testing.assert_allclose([entry["a"] for entry in document["matches"]], start, atol=1e-3)
    np.testing.assert_allclose([entry["b"] for entry in document["matches"]], match.transfer(start), atol=0.05)
    assert all("forward_backward" in entry for entry in document["matches"])
    with page.expect_download() as saved:
        page.click("#export-png")
    drawn = Image.open(saved.value.path())
    assert drawn.format == "PNG"
    assert drawn.height > 720 < drawn.width
    assert len(drawn.convert("RGB").resize((64, 64)).getcolors(4096)) > 500


def test_photos_are_dropped_pasted_shot_and_swapped(chromium: Any, address: str) -> None:
    give = """async ([file, kind, target]) => {
        const blob = await (await fetch(file)).blob();
        const data = new DataTransfer();
        data.items.add(new File([blob], file.split('/').pop(), {type: 'image/jpeg'}));
        const event = kind == 'drop' ? new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})
            : new ClipboardEvent('paste', {clipboardData: data, bubbles: true});
        document.querySelector(target).dispatchEvent(event);
    }"""
    with open_page(chromium, f"{address}?engine=wasm", permissions=["camera"]) as watched:
        page = watched.page
        state(page, "ready")
        page.evaluate(give, ["samples/1b/grace_hopper.jpg", "drop", "#photo-b"])
        page.wait_for_selector("#photo-b.filled")
        page.evaluate(give, ["samples/1a/astronaut.jpg", "paste", "body"])
        state(page, "checked")
        assert (page.inner_text("#name-a"), page.inner_text("#name-b")) == ("astronaut.jpg", "grace_hopper.jpg")
        page.click("#swap")
        state(page, "matching")
        assert page.inner_text("#name-a") == "grace_hopper.jpg"
        page.click("#camera-b")
        page.wait_for_function("() => document.getElementById('video').videoWidth > 0")
        page.click("#shoot")
        page.wait_for_function("() => document.getElementById('name-b').textContent == 'camera.png'")
        state(page, "checked")
        watched.check(address)


def test_samples_come_with_points(page: Any) -> None:
    page.get_by_label("Sample pair: The same, turned and enlarged").click()
    page.wait_for_function("() => document.getElementById('name-b').textContent == 'astronaut-turned.jpg'")
    state(page, "checked")
    found = rows(page)
    assert len(found) == 5
    turn = np.deg2rad(20)  # by which Pillow turned it about its centre, counter-clockwise, before it cut (60, 40) off
    start = np.array([row["a"] for row in found]) - 255.5
    turned = start @ [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]] + 255.5 - (60, 40)
    error = np.linalg.norm(np.array([row["b"] for row in found]) - turned, axis=1)
    assert np.median(error) < 25  # pixels of 400: the model's own error on a pair that is not hard
    load(page)


def test_what_is_not_a_photo_is_told(chromium: Any, address: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(A.read_bytes()[:200])
    tiny = tmp_path / "tiny.png"
    Image.new("RGB", (8, 40)).save(tiny)
    with open_page(chromium, f"{address}?engine=wasm") as watched:
        page = watched.page
        state(page, "ready")
        for file, reason in ((broken, "broken.jpg is not an image"), (tiny, "tiny.png is 8 x 40")):
            page.set_input_files("#file-a", file)
            page.wait_for_function("text => document.getElementById('engine').textContent.includes(text)", arg=reason)
        load(page)
        watched.check(address)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_no_serious_accessibility_violation(chromium: Any, address: str, axe: str, width: int, scheme: str) -> None:
    with open_page(chromium, f"{address}?engine=wasm", width=width, color_scheme=scheme, bypass_csp=True) as watched:
        page = watched.page
        state(page, "ready")
        assert_accessible(page, axe)
        page.get_by_label("Sample pair: Two portraits").click()
        state(page, "checked")
        assert_accessible(page, axe)
        page.click("#view-morph")
        assert_accessible(page, axe)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def assert_accessible(page: Any, axe: str) -> None:
    page.evaluate(axe)
    found = page.evaluate("axe.run()")["violations"]
    grave = [(item["id"], item["nodes"][0]["html"]) for item in found if item["impact"] in ("serious", "critical")]
    assert not grave


def test_preprocessing_is_pillows(shared: Watched, site: Path, address: str) -> None:
    folder = site / "photos-of-tests"
    folder.mkdir(exist_ok=True)
    photo = Image.open(A)
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "turned.jpg", exif=exif, quality=95)
    photo.resize((2600, 1700)).save(folder / "large.jpg", quality=90)
    Image.fromarray(rng.integers(0, 256, (97, 211, 3), np.uint8)).save(folder / "noise.png")
    Image.fromarray(rng.integers(0, 256, (300, 280, 4), np.uint8)).save(folder / "transparent.png")
    Image.fromarray(rng.integers(0, 256, (256, 20), np.uint8)).save(folder / "grey.png")
    run = """async (file) => {
        const { readPhoto } = await import('./photos.js');
        const { resizeBitmap } = await import('./resize.js');
        const photo = await readPhoto(await (await fetch(file)).blob(), file);
        const pixels = resizeBitmap(photo.bitmap, [256, 256]);
        let text = '';
        for (let i = 0; i < pixels.length; i += 8192) text += String.fromCharCode(...pixels.subarray(i, i + 8192));
        return [photo.size, btoa(text)];
    }"""
    for path in [*sorted(folder.iterdir()), A, B]:
        local = f"photos-of-tests/{path.name}"
        if path.parent != folder:
            (site / local).write_bytes(path.read_bytes())
        size, pixels = shared.page.evaluate(run, local)
        expected = read_image(path)
        assert tuple(size) == expected.size, path.name
        found = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(256, 256, 3)
        difference = np.abs(found.astype(int) - resize(expected, (256, 256)))
        assert difference.max() <= 1, (path.name, difference.max())
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3)
    found = shared.page.evaluate(
        """async ([pixels, how]) => [...(await import('./resize.js')).normalise(Uint8Array.from(pixels), how)]""",
        [levels.ravel().tolist(), Preprocessing().to_dict()],
    )
    np.testing.assert_array_equal(np.float32(found).reshape(3, 1, 256), normalise(levels, Preprocessing()))


def test_geometry_is_cats_core_geometry(shared: Watched) -> None:
    rng = np.random.default_rng(1)
    for grid in (1, 2, 16):
        flow = rng.normal(size=(2, grid, grid))
        size_a, size_b = (640, 331), (97, 1200)
        points = rng.uniform(-0.5, (639.5, 330.5), (50, 2))
        found = shared.page.evaluate(
            """async ([points, flow, a, b, grid]) => {
                const { transferPoint, sampleGrid, pixelsToCells } = await import('./geometry.js');
                return points.map((p) => [...transferPoint(p, flow, a, b, grid),
                    sampleGrid(flow, 1, pixelsToCells(p, a, grid), grid)]);
            }""",
            [points.tolist(), flow.ravel().tolist(), size_a, size_b, grid],
        )
        expected = transfer_points(points, flow, size_a, size_b)
        sampled = sample_grid(flow, pixels_to_cells(points, size_a, grid))[:, 1:]
        np.testing.assert_allclose(found, np.concatenate([expected, sampled], axis=1), atol=1e-9)


def test_the_heat_is_the_models_distribution(shared: Watched, site: Path) -> None:
    with Matcher(site / "cats-tiny.onnx") as matcher:
        match = matcher.match(A, B)
    assert match.probabilities is not None
    point = [[203.3, 101.9]]
    weights = sample_grid(np.eye(256).reshape(256, 16, 16), pixels_to_cells(point, match.size_a))[0]
    run = """async ([flow, confidence, probabilities, sizeA, sizeB, point]) => {
        const { Match } = await import('./match.js');
        return [...new Match({flow, confidence, probabilities, sizeA, sizeB}).distribution(point)];
    }"""
    plain = [match.flow.ravel().tolist(), match.confidence.ravel().tolist()]
    sizes = [match.size_a, match.size_b]
    found = shared.page.evaluate(run, [*plain, match.probabilities.ravel().tolist(), *sizes, point[0]])
    np.testing.assert_allclose(found, weights @ match.probabilities, atol=1e-6)
    gaussian = np.array(shared.page.evaluate(run, [*plain, None, *sizes, point[0]]))
    y, x = np.mgrid[0:16, 0:16]
    mean = [(gaussian @ x.ravel()), (gaussian @ y.ravel())]
    np.testing.assert_allclose(mean, pixels_to_cells(match.transfer(point), match.size_b)[0], atol=0.05)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_webgpu_in_software_gives_pythons_points_or_is_left(address: str, match: Match) -> None:
    """WebGPU on a software adapter, asked for by ``engine=webgpu``: it takes part only if its self-test fits."""
    with launch(*SOFTWARE_WEBGPU) as browser, open_page(browser, f"{address}?engine=webgpu") as watched:
        page = watched.page
        page.context.set_default_timeout(800_000)
        state(page, "ready", "failed")
        engine = page.inner_text("#engine")
        print(engine)
        if "WebGPU cannot be used" in engine:
            pytest.skip(engine)
        load(page)
        page.locator("#canvas-a").click(position={"x": 100, "y": 100})
        (row,) = rows(page)
        np.testing.assert_allclose([row["b"]], match.transfer([row["a"]]), atol=0.1)


def test_cats_tiny_is_what_the_site_holds(site: Path) -> None:
    """The model in the page is the shipped one with one more output."""
    with Matcher(site / "cats-tiny.onnx") as there, Matcher(asset("cats-tiny.onnx")) as here:
        found, expected = there.match(A, B), here.match(A, B)
        assert (there.metadata.verified, there.metadata.changed) == (here.metadata.verified, False)
        assert there.metadata.parity == here.metadata.parity
    np.testing.assert_allclose(found.flow, expected.flow, atol=1e-4)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-5)
