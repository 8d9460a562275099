"""Random warps: the flow is the one by which the picture was made, and everything follows from the seed."""

import numpy as np
import pytest
from PIL import Image

from cats.core.errors import InputError
from cats.core.geometry import cells_to_pixels, identity_cells
from cats.data.folders import CategoryFolder, PhotoFolder
from cats.data.warps import CategoryTriplets, Warp, WarpConfig, WarpPairs, apply_warp, occlude, random_part, random_warp


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for category in ("cat", "dog"):
        (tmp_path / category).mkdir()
        for number in range(3):
            noise = rng.integers(0, 256, (6, 8, 3), np.uint8)
            Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC).save(
                tmp_path / category / f"{number}.jpg"
            )
    (tmp_path / "notes.txt").write_text("not a photo")
    return tmp_path


def gradient(size: int) -> np.ndarray:
    """An image whose colour tells the place: red = x, green = y."""
    y, x = np.mgrid[0:size, 0:size]
    return np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("seed", range(6))
def test_flow_says_what_each_cell_of_the_warped_image_shows(seed):
    size, grid = 256, 16
    warp = random_warp(np.random.default_rng(seed), (size, size))
    image = apply_warp(gradient(size), warp)
    flow, visible = warp.flow(grid)
    assert visible.any()
    cells = identity_cells(grid)
    at = np.rint(cells_to_pixels(cells.reshape(2, -1).T, (size, size))).astype(int).reshape(grid, grid, 2)
    shown = image[at[..., 1], at[..., 0], :2].astype(float)
    expected = cells_to_pixels((cells + flow).reshape(2, -1).T, (size, size)).reshape(grid, grid, 2)
    assert np.abs(shown - expected)[visible].max() < 2.5  # the centre of a cell lies between pixels


def test_a_shift_has_the_right_sign():
    # The warped image shows at (x, y) what the photo has 32 pixels further right: its flow points right.
    y, x = np.mgrid[0:64, 0:64].astype(np.float32)
    warp = Warp(np.stack([x + 32, y], axis=-1), x + 32 < 64)
    flow, visible = warp.flow(4)
    assert np.abs(flow[0] - 2).max() < 1e-6
    assert np.abs(flow[1]).max() < 1e-6
    assert visible.tolist() == [[True, True, False, False]] * 4


def test_no_distortion_is_the_identity():
    still = WarpConfig(0, 0, 1, 0, 0, 0, 0, 0, 0, 0)
    flow, visible = random_warp(np.random.default_rng(0), (256, 256), still).flow()
    assert np.abs(flow).max() < 1e-4
    assert visible.all()


def test_occluded_cells_are_invisible():
    rng = np.random.default_rng(0)
    still = WarpConfig(0, 0, 1, 0, 0, 0, 0, 0, 0, 0)
    image = np.zeros((256, 256, 3), np.uint8)
    pasted, warp = occlude(rng, image, random_warp(rng, (256, 256), still), image + 255)
    assert 0 < (~warp.visible).mean() < 0.2
    assert np.array_equal(pasted[..., 0] == 255, ~warp.visible)


def test_items_depend_on_seed_and_index_only(photos):
    folder = PhotoFolder.open(photos)
    assert (len(folder), folder.skipped) == (6, 1)
    pairs = WarpPairs(folder, size=64, grid=4, seed=3)
    again = WarpPairs(folder, size=64, grid=4, seed=3)
    _ = again[0]
    for key, value in pairs[5].items():
        assert np.array_equal(value, again[5][key]), key
    assert not np.array_equal(pairs[5]["image_a"], pairs[6]["image_a"])
    assert not np.array_equal(pairs[5]["image_a"], WarpPairs(folder, size=64, grid=4, seed=4)[5]["image_a"])


def test_triplets_keep_to_a_category(photos, monkeypatch):
    seen = []
    monkeypatch.setattr("cats.data.warps.read_square", lambda path, side: seen.append(path) or gradient(side))
    item = CategoryTriplets(CategoryFolder.open(photos), size=64, grid=4)[0]
    i, j, n = seen
    assert i.parent == j.parent != n.parent
    assert i != j
    assert {key: value.shape for key, value in item.items() if value.ndim == 3} == {
        **dict.fromkeys("ijwn", (64, 64, 3)),
        "flow": (2, 4, 4),
    }


def test_parts_of_a_photo_are_as_large_and_as_wide_as_said():
    side, config, rng = 128, WarpConfig(zoom=0.5, aspect=1.5), np.random.default_rng(0)
    parts = [random_part(rng, gradient(side), 64, config) for _ in range(200)]
    assert {part.shape for part in parts} == {(64, 64, 3)}
    # The colour tells the place: a part's extent is that of its colours, but for half a pixel at each edge.
    extents = np.array([[np.ptp(part[..., axis].astype(int)) + 1 for axis in (0, 1)] for part in parts]) / side * 9 / 8
    assert 0.5 / 1.5**0.5 - 0.03 < extents.min() < 0.55
    assert 0.95 < extents.max() <= 9 / 8
    ratios = extents[:, 0] / extents[:, 1]
    assert 1 / 1.56 < ratios.min() < 0.8 < 1.2 < ratios.max() < 1.56
    corners = np.array([part[0, 0, :2] for part in parts])
    assert corners.max(axis=0).min() > 0.4 * side  # they lie everywhere


def test_triplets_show_parts_of_photos(photos, monkeypatch):
    asked = []
    monkeypatch.setattr("cats.data.warps.read_square", lambda path, side: asked.append(side) or gradient(side))
    config = WarpConfig(zoom=0.5, aspect=1.2)
    item = CategoryTriplets(CategoryFolder.open(photos), size=64, grid=4, config=config)[0]
    assert asked == [144] * 3  # so that the smallest part has a pixel for each of the view's
    assert item["i"].shape == (64, 64, 3)
    assert np.ptp(item["i"][..., 1].astype(int)) < 130


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("zoom", 0),
        ("aspect", 0.9),
        ("scale", 0.5),
        ("rotation", -1),
        ("occlusion", 1.5),
        ("perspective", 0.6),
        ("bend", float("nan")),
    ],
)
def test_distributions_that_cannot_be_drawn_are_refused(name, value):
    with pytest.raises(InputError, match=rf"warp\.{name} is"):
        WarpConfig(**{name: value})


def test_wrong_folders_are_named(photos, tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        PhotoFolder.open(tmp_path / "none")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="holds no photos"):
        PhotoFolder.open(empty)
    with pytest.raises(InputError, match="no sub-folder with two or more"):
        CategoryFolder.open(photos / "cat")
    (photos / "dog" / "0.jpg").write_text("not a picture")
    with pytest.raises(InputError, match=r"0\.jpg"):
        [WarpPairs(PhotoFolder.open(photos / "dog"), size=64, grid=4)[k] for k in range(20)]
