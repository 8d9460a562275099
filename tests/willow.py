"""PF-WILLOW of the shared folder as a user would have it: a few photos with labels, others without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from reference import shared

from cats.core.images import image_size

BONES = {"duck(S)": [(0, 1), (1, 2), (2, 3), (3, 5), (3, 4)], "car(G)": [(0, 1), (1, 2), (2, 3)]}
"""Category -> bones between its ten keypoints, for pictures."""


def read_points(photo: Path) -> np.ndarray:
    """The ten keypoints of a photo, (10, 2) in pixels, out of the ``.mat`` file beside it."""
    from scipy.io import loadmat

    points = loadmat(photo.with_suffix(".mat"))["pts_coord"]
    return np.asarray(points, np.float64).T


def make_task(folder: Path, category: str, *, labelled: int, photos: int) -> dict[str, np.ndarray]:
    """Write ``refs/refs.json`` (COCO) with its photos, and ``photos/`` without labels.

    Args:
        category: a folder of PF-WILLOW, as ``duck(S)``.
        labelled, photos: how many of each; in the order of their names, the labelled ones first.

    Returns:
        Name -> keypoints (10, 2) of the photos without labels.
    """
    source = shared("data", "PF-WILLOW", category)
    files = sorted(file for file in source.iterdir() if file.suffix in (".png", ".jpg"))[: labelled + photos]
    for name in ("refs", "photos"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    names = [str(k) for k in range(1, 11)]
    bones = [[a + 1, b + 1] for a, b in BONES.get(category, [])]
    document: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": category, "keypoints": names, "skeleton": bones}],
    }
    truth = {}
    for number, file in enumerate(files, start=1):
        points = read_points(file)
        shutil.copy(file, folder / ("refs" if number <= labelled else "photos"))
        if number > labelled:
            truth[file.name] = points
            continue
        width, height = image_size(file)
        document["images"].append({"id": number, "file_name": file.name, "width": width, "height": height})
        low, extent = points.min(axis=0), np.ptp(points, axis=0)
        document["annotations"].append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "keypoints": [value for x, y in points.tolist() for value in (x, y, 2)],
                "num_keypoints": 10,
                "bbox": [*low.tolist(), *extent.tolist()],
                "area": float(extent.prod()),
                "iscrowd": 0,
            }
        )
    (folder / "refs" / "refs.json").write_text(json.dumps(document))
    return truth
