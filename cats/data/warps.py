"""Training pairs without keypoints: a photo and a random warp of it, with exact flow and visibility.

A :class:`Warp` maps pixels of the warped image to pixels of the photo, so that warping is one ``cv2.remap`` and the
ground truth of the direction warped -> photo is read off the same map. Everything is a function of a seed and an
index, whatever worker computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cats.core.errors import InputError
from cats.core.geometry import cells_to_pixels, identity_cells, pixels_to_cells
from cats.core.images import read_image, resize
from cats.data.folders import CategoryFolder, PhotoFolder

UInt8Image = NDArray[np.uint8]
_LATTICE = 33  # points per side at which the smooth part of a map is computed before it is interpolated


@dataclass(frozen=True)
class WarpConfig:
    """Distribution of random warps. Lengths are in half image sides (the image spans -1..1), angles in degrees.

    Attributes:
        rotation, shear: largest angle.
        scale: largest factor (its inverse is the smallest); log-uniform.
        translation: largest shift.
        perspective: largest coefficient of the homography's last row.
        bend: standard deviation of the thin-plate spline's control points.
        homography: share of warps with perspective; the others are affine.
        spline: share of warps with a thin-plate spline on top.
        occlusion: probability of a random rectangle pasted into the warped image.
        flip: probability of a mirrored photo (both images alike).
        zoom: smallest side of the part of a photo that is shown, as a share of 8/9 of the photo's; log-uniform up to 1.
        aspect: largest factor between the shares of its two sides.
    """

    rotation: float = 20.0
    shear: float = 10.0
    scale: float = 1.4
    translation: float = 0.2
    perspective: float = 0.15
    bend: float = 0.06
    homography: float = 0.3
    spline: float = 0.7
    occlusion: float = 0.2
    flip: float = 0.5
    zoom: float = 1.0
    aspect: float = 1.0

    def __post_init__(self) -> None:
        bounds = {
            **dict.fromkeys(("homography", "spline", "occlusion", "flip"), (0, 1)),
            **dict.fromkeys(("rotation", "shear"), (0, 80)),
            "scale": (1, 10),
            "translation": (0, 2),
            "perspective": (0, 0.4),  # beyond it the horizon comes into the image
            "bend": (0, 1),
            "zoom": (0.1, 1),
            "aspect": (1, 4),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and low <= value <= high):
                raise InputError(f"warp.{name} is {value!r}, it must lie in [{low}, {high}]")


@dataclass(frozen=True)
class Warp:
    """A map from the warped image to the photo.

    Attributes:
        positions: (H, W, 2) float32, pixel of the photo that each warped pixel shows, x first.
        visible: (H, W) bool: inside the photo and not occluded.
    """

    positions: NDArray[np.float32]
    visible: NDArray[np.bool_]

    def flow(self, grid: int = 16) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Flow (2, G, G) in cells, warped -> photo, and the visibility (G, G) at the cells' centres."""
        height, width = self.visible.shape
        size = (width, height)
        cells = identity_cells(grid)
        at = cells_to_pixels(cells.reshape(2, -1).T, size, grid).astype(np.float32)
        x, y = at[:, 0].reshape(grid, grid), at[:, 1].reshape(grid, grid)
        sampled = cv2.remap(self.positions, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        target = pixels_to_cells(sampled.reshape(-1, 2), size, grid).T.reshape(2, grid, grid)
        visible = self.visible[np.clip(np.rint(y).astype(int), 0, height - 1), np.rint(x).astype(int)]
        return (target - cells).astype(np.float32), visible


def random_warp(rng: np.random.Generator, size: tuple[int, int], config: WarpConfig | None = None) -> Warp:
    """Draw a warp for images of ``size`` (width, height)."""
    config = config or WarpConfig()
    side = np.linspace(-1, 1, _LATTICE)
    lattice = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    if rng.random() < config.spline:
        lattice = lattice + _spline_displacement(rng, lattice, config.bend)
    projected = _project(lattice, _random_matrix(rng, config)).reshape(_LATTICE, _LATTICE, 2).astype(np.float32)
    width, height = size
    # The lattice spans pixel centres, so that bilinear interpolation of it is exact for the affine part.
    rows, columns = _interpolation(height), _interpolation(width)
    normalised = np.stack([rows @ projected[..., axis] @ columns.T for axis in (0, 1)], axis=-1)
    positions = (normalised + 1) * np.array([(width - 1) / 2, (height - 1) / 2], np.float32)
    inside = (positions >= -0.5) & (positions <= np.array([width - 0.5, height - 0.5], np.float32))
    return Warp(positions.astype(np.float32), inside[..., 0] & inside[..., 1])


def _interpolation(count: int) -> NDArray[np.float32]:
    """Linear interpolation weights (count, lattice) of evenly spaced places that span the lattice."""
    places = np.linspace(0, _LATTICE - 1, count)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(_LATTICE))).astype(np.float32)


def apply_warp(image: UInt8Image, warp: Warp) -> UInt8Image:
    """Show the photo (H, W, 3) uint8 through the warp; outside the photo it is mirrored."""
    x, y = warp.positions[..., 0], warp.positions[..., 1]
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def occlude(rng: np.random.Generator, image: UInt8Image, warp: Warp, other: UInt8Image) -> tuple[UInt8Image, Warp]:
    """Paste a random rectangle of ``other`` (same size) into the warped image; returns both with it applied."""
    height, width = warp.visible.shape
    h, w = (int(rng.uniform(0.15, 0.4) * side) for side in (height, width))
    top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    image, visible = image.copy(), warp.visible.copy()
    image[top : top + h, left : left + w] = other[top : top + h, left : left + w]
    visible[top : top + h, left : left + w] = False
    return image, Warp(warp.positions, visible)


def jitter_colours(rng: np.random.Generator, image: UInt8Image, strength: float = 0.3) -> UInt8Image:
    """Random brightness, contrast, saturation, channel gains and (one in ten) grey, as one affine map of RGB."""
    grey = np.array([0.299, 0.587, 0.114], np.float32)
    saturation = 0.0 if rng.random() < 0.1 else 1 + rng.uniform(-1, 1) * strength
    matrix = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * grey[None, :]
    gains = (1 + rng.uniform(-1, 1, 3) * strength / 3) * (1 + rng.uniform(-1, 1) * strength)
    matrix = (matrix * gains[:, None]).astype(np.float32)
    mean = float(image[::8, ::8].mean())
    offset = mean * (1 - gains.mean()) + rng.uniform(-1, 1) * strength * 60
    shifted = cv2.transform(image, np.hstack([matrix, np.full((3, 1), offset, np.float32)]))
    if rng.random() < 0.2:
        shifted = cv2.GaussianBlur(shifted, (0, 0), float(rng.uniform(0.4, 1.5)))
    return shifted


def read_square(path: Path, side: int) -> UInt8Image:
    """A photo as (side, side, 3) uint8 RGB (the aspect ratio is not kept, as in the model).

    Raises:
        InputError: as :func:`cats.core.images.read_image`.
    """
    return resize(read_image(path, at_least=2 * side), (side, side))


def random_crop(rng: np.random.Generator, image: UInt8Image, side: int) -> UInt8Image:
    """A random ``side`` x ``side`` part of a larger image."""
    top = int(rng.integers(0, image.shape[0] - side + 1))
    left = int(rng.integers(0, image.shape[1] - side + 1))
    return image[top : top + side, left : left + side]


def random_part(rng: np.random.Generator, photo: UInt8Image, size: int, config: WarpConfig) -> UInt8Image:
    """A random part of a square photo (P, P, 3) as (size, size, 3), by ``zoom`` and ``aspect``."""
    share = np.exp(rng.uniform(np.log(config.zoom), 0) + rng.uniform(-0.5, 0.5, 2) * np.log(config.aspect))
    width, height = (max(1, round(side)) for side in np.minimum(share * 8 / 9, 1) * len(photo))
    top, left = (int(rng.integers(0, len(photo) - side + 1)) for side in (height, width))
    return resize(photo[top : top + height, left : left + width], (size, size))


class WarpPairs:
    """Endless pairs (a = warped, b = photo) from a folder of photos; item ``i`` is a function of ``seed`` and ``i``.

    Items are dicts: ``image_a``, ``image_b`` uint8 (S, S, 3), ``flow`` float32 (2, G, G) in cells a -> b, ``visible``
    bool (G, G).
    """

    def __init__(
        self, folder: PhotoFolder, *, size: int = 256, grid: int = 16, seed: int = 0, config: WarpConfig | None = None
    ):
        self.folder, self.size, self.grid, self.seed = folder, size, grid, seed
        self.config = config or WarpConfig()

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        return self.make(rng, self.folder.paths[int(rng.integers(len(self.folder)))])

    def make(self, rng: np.random.Generator, path: Path) -> dict[str, Any]:
        """The pair of one photo."""
        photo = _random_view(rng, path, self.size, self.config.flip, self.config)
        warp = random_warp(rng, (self.size, self.size), self.config)
        image = jitter_colours(rng, apply_warp(photo, warp))
        if rng.random() < self.config.occlusion:
            image, warp = occlude(rng, image, warp, photo[::-1, ::-1])
        flow, visible = warp.flow(self.grid)
        return {"image_a": image, "image_b": photo, "flow": flow, "visible": visible}


class CategoryTriplets:
    """Endless triplets (I, J, W) from photos sorted by category (Truong et al., CVPR 2022).

    I and J are photos of one category, W is a warp of I, N a photo of another category. Items are dicts: ``i``, ``j``,
    ``w``, ``n`` uint8 (S, S, 3), ``flow`` float32 (2, G, G) in cells W -> I, ``visible`` bool (G, G).
    """

    def __init__(
        self,
        folder: CategoryFolder,
        *,
        size: int = 256,
        grid: int = 16,
        seed: int = 0,
        config: WarpConfig | None = None,
    ):
        self.folder, self.size, self.grid, self.seed = folder, size, grid, seed
        self.config = config or WarpConfig()
        self.names = list(folder.categories)

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        name, other = (self.names[int(k)] for k in rng.choice(len(self.names), 2, replace=len(self.names) < 2))
        photos = self.folder.categories[name]
        first, second = rng.choice(len(photos), 2, replace=False)
        flip = float(rng.random() < self.config.flip)  # I and J alike, so that left stays left
        i, j = (_random_view(rng, photos[int(k)], self.size, flip, self.config) for k in (first, second))
        negatives = self.folder.categories[other]
        stranger = negatives[int(rng.integers(len(negatives)))]
        n = _random_view(rng, stranger, self.size, self.config.flip, self.config)
        warp = random_warp(rng, (self.size, self.size), self.config)
        w = jitter_colours(rng, apply_warp(i, warp))
        if rng.random() < self.config.occlusion:
            w, warp = occlude(rng, w, warp, n)
        flow, visible = warp.flow(self.grid)
        return {"i": i, "j": jitter_colours(rng, j), "w": w, "n": n, "flow": flow, "visible": visible}


def _random_view(rng: np.random.Generator, path: Path, size: int, flip: float, config: WarpConfig) -> UInt8Image:
    """A part of the photo as (size, size, 3), mirrored with probability ``flip``."""
    if config.zoom == 1 and config.aspect == 1:
        image = random_crop(rng, read_square(path, size + size // 8), size)
    else:
        image = random_part(rng, read_square(path, round((size + size // 8) / config.zoom)), size, config)
    return np.ascontiguousarray(image[:, ::-1] if rng.random() < flip else image)


def _random_matrix(rng: np.random.Generator, config: WarpConfig) -> NDArray[np.float64]:
    """Homography (3, 3) in normalised coordinates: rotation, shear, anisotropic scale, shift, perspective."""
    angle, shear = np.deg2rad(rng.uniform(-1, 1, 2) * (config.rotation, config.shear))
    scale = np.exp(rng.uniform(-1, 1) * np.log(config.scale)) * np.exp(rng.uniform(-0.5, 0.5, 2) * np.log(config.scale))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.eye(3)
    matrix[:2, :2] = rotation @ np.array([[1, np.tan(shear)], [0, 1]]) @ np.diag(scale)
    matrix[:2, 2] = rng.uniform(-1, 1, 2) * config.translation
    if rng.random() < config.homography:
        matrix[2, :2] = rng.uniform(-1, 1, 2) * config.perspective
    return matrix


def _project(points: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    homogeneous = points @ matrix[:, :2].T + matrix[:, 2]
    return homogeneous[:, :2] / homogeneous[:, 2:]


def _spline_displacement(rng: np.random.Generator, points: NDArray[np.float64], bend: float) -> NDArray[np.float64]:
    """Thin-plate spline through a 4 x 4 lattice of randomly moved control points, evaluated at points (N, 2)."""
    side = np.linspace(-1, 1, 4)
    control = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    offsets = rng.normal(0, bend, control.shape)
    ones = np.ones((len(control), 1))
    affine = np.hstack([ones, control])
    system = np.block([[_radial(control, control), affine], [affine.T, np.zeros((3, 3))]])
    weights = np.linalg.solve(system, np.vstack([offsets, np.zeros((3, 2))]))
    return _radial(points, control) @ weights[:-3] + np.hstack([np.ones((len(points), 1)), points]) @ weights[-3:]


def _radial(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    squared = ((a[:, None] - b[None]) ** 2).sum(-1)
    return 0.5 * squared * np.log(np.maximum(squared, 1e-20))
