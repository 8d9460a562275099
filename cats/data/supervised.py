"""Annotated pairs as training items: model-sized images and the sparse ground-truth flow of their keypoints."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cats.core.geometry import Floats
from cats.data.samples import PairDataset

RECEPTIVE_FIELD = 35
"""Side of the window around a cell's centre whose keypoints make its flow, in pixels of the 256x256 frame."""


def sparse_flow(
    points_a: Floats, points_b: Floats, size: int = 256, grid: int = 16
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Ground-truth flow of keypoints as published (Sec. 3.5): per cell the mean over the keypoints it covers.

    Args:
        points_a, points_b: (N, 2) in pixels of the model's input.
        size: side of the input in pixels.
        grid: cells a side.

    Returns:
        flow (2, G, G) in cells, a -> b, exactly 0 where no keypoint is, and where one is (G, G).
    """
    cell = size / grid
    half = RECEPTIVE_FIELD / 16 * cell / 2  # published for cells of 16 pixels
    centres = (np.arange(grid) + 0.5) * cell - 0.5
    near_x = np.abs(points_a[:, None, 0] - centres[None]) <= half  # (N, G)
    near_y = np.abs(points_a[:, None, 1] - centres[None]) <= half
    covered = (near_y[:, :, None] & near_x[:, None, :]).astype(np.float64)  # (N, G, G)
    count = covered.sum(axis=0)
    motion = (np.asarray(points_b) - np.asarray(points_a)) / cell
    total = np.einsum("nyx,nc->cyx", covered, motion)
    return (total / np.maximum(count, 1)).astype(np.float32), count > 0


class SupervisedPairs:
    """Endless items from annotated pairs, shuffled anew each epoch; item ``i`` is a function of ``seed`` and ``i``.

    Items are dicts: ``image_a``, ``image_b`` uint8 (S, S, 3), ``flow`` float32 (2, G, G) in cells a -> b, ``visible``
    bool (G, G).
    """

    def __init__(
        self,
        dataset: PairDataset,
        *,
        size: int = 256,
        grid: int = 16,
        seed: int = 0,
        augment: bool = True,
        crop: bool = True,
    ):
        self.dataset, self.size, self.grid, self.seed = dataset, size, grid, seed
        self.augment, self.crop = augment, crop
        self._order: tuple[int, NDArray[np.intp]] | None = None

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        from cats.data.augment import training_view

        epoch, position = divmod(index, len(self.dataset))
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng((self.seed, 1, epoch)).permutation(len(self.dataset)))
        rng = np.random.default_rng((self.seed, 2, index))
        sample = self.dataset[int(self._order[1][position])]
        view_a, view_b = (
            training_view(rng, sample, side, size=self.size, augment=self.augment, crop=self.crop) for side in "ab"
        )
        flow, visible = sparse_flow(view_a.points, view_b.points, self.size, self.grid)
        return {"image_a": view_a.image, "image_b": view_b.image, "flow": flow, "visible": visible}
