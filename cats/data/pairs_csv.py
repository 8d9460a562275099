"""Pairs from a CSV file of one's own: columns ``a,b`` and optionally points, boxes, category."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cats.core.errors import InputError
from cats.core.geometry import Floats
from cats.core.images import image_size
from cats.core.tables import PairRow, read_pairs
from cats.data.samples import Box, PairDataset, Sample, parse_box, require_files


class PairsCSV(PairDataset):
    """Pairs of a CSV file.

    Columns (others are ignored):

    - ``a``, ``b``: images, relative to the file.
    - ``points`` (or ``points_a``): ``x,y;x,y;...`` in pixels, or a JSON file ``[[x, y], ...]``, or a CSV file ``x,y``;
      with four numbers each, ``xa,ya,xb,yb;...``, they are correspondences. The JSON that ``cats-run --json`` writes is
      read too.
    - ``points_b``: the corresponding points of b in the same forms, where ``points`` has two numbers each.
    - ``box_a``, ``box_b``: ``x_min,y_min,x_max,y_max``. ``category``: any text.

    Pairs without points in b are good for matching and calibration, not for training or evaluation.

    Args:
        path: the CSV file.
        split: must be ``None``; a CSV file has no splits.
        incomplete: open it although images are missing.

    Raises:
        InputError: unreadable, without the columns ``a`` and ``b``, or images are missing (named).
    """

    kind = "pairs"

    def __init__(self, path: str | Path, split: str | None = None, *, incomplete: bool = False) -> None:
        path = Path(path)
        if split is not None:
            raise InputError(f"{path} has no splits; leave out the split {split!r} or give another file")
        self._rows = read_pairs(path)
        super().__init__(path, None, f"{path.name}, {len(self._rows)} pairs")
        if not incomplete:
            require_files(self, path.parent, f"correct the paths in {path}")

    def __len__(self) -> int:
        return len(self._rows)

    def category_of(self, index: int) -> str | None:
        """Column ``category``."""
        return self._rows[index].cells.get("category") or None

    def files_of(self, index: int) -> tuple[Path, ...]:
        """The two images."""
        return self._rows[index].a, self._rows[index].b

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        try:
            points_a, points_b = _correspondences(row)
            return Sample(
                image_a=row.a,
                image_b=row.b,
                size_a=image_size(row.a),
                size_b=image_size(row.b),
                points_a=points_a,
                points_b=points_b,
                box_a=_box(row, "box_a"),
                box_b=_box(row, "box_b"),
                category=self.category_of(index),
            )
        except InputError as error:
            raise InputError(f"{self.root}, line {row.line}: {error}") from error


def _correspondences(row: PairRow) -> tuple[Floats, Floats]:
    """Points of a and b, both empty where b has none."""
    first, second = row.read_points("points_a", "points"), row.read_points("points_b")
    if first is not None and first.shape[1] == 4:
        if second is not None:
            raise InputError("points have four numbers each and points_b is given too; leave out one")
        return first[:, :2], first[:, 2:]
    if second is None:
        return np.zeros((0, 2)), np.zeros((0, 2))
    if first is None or len(first) != len(second) or second.shape[1] != 2:
        count = 0 if first is None else len(first)
        raise InputError(f"{count} points and {len(second)} points_b, x,y each; they must correspond")
    return first, second


def _box(row: PairRow, column: str) -> Box | None:
    text = row.cells.get(column)
    return parse_box(text.split(","), column) if text else None
