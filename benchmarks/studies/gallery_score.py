"""Which score of a match retrieves photos of the same category: precision at 1 and mean rank on Caltech-101.

Usage: python -m cats.benchmarks.studies.gallery_score MODEL [OUT.json]   (a split model)
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np

from cats.benchmarks.record import SHARED, describe_run, write_record
from cats.core.photos import list_photos
from cats.runtime import Matcher
from cats.runtime.gallery import SCORES, match_score

CATEGORIES, PER_CATEGORY, SEED = 8, 3, 5


def main() -> None:
    """Draw categories, rank each one's first photo against the others of all of them, and print the figures."""
    root = SHARED / "data" / "Caltech-101"
    folders = sorted({photo.parent for photo in list_photos(root)[0]})
    chosen = random.Random(SEED).sample(folders, CATEGORIES)
    queries = [list_photos(folder)[0][0] for folder in chosen]
    photos = [(index, photo) for index, f in enumerate(chosen) for photo in list_photos(f)[0][1 : 1 + PER_CATEGORY]]
    labels = np.array([index for index, _ in photos])
    with Matcher(sys.argv[1]) as matcher:
        gallery = [matcher.encode(photo) for _, photo in photos]
        hits: dict[str, list[bool]] = {score: [] for score in SCORES}
        precision: dict[str, list[float]] = {score: [] for score in SCORES}
        for index, query in enumerate(queries):
            matches = matcher.match_gallery(query, gallery, forward_backward=True)
            for score in SCORES:
                order = labels[np.argsort([-match_score(match, score) for match in matches], kind="stable")] == index
                hits[score].append(bool(order[0]))
                precision[score].append(float((np.cumsum(order) / np.arange(1, len(order) + 1))[order].mean()))
        result = {
            **describe_run("gallery_score", ["onnxruntime"]),
            "model": Path(sys.argv[1]).name,
            "categories": [folder.name for folder in chosen],
            "gallery": len(photos),
            "queries": len(queries),
            "precision_at_1": {score: float(np.mean(hits[score])) for score in SCORES},
            "mean_average_precision": {score: round(float(np.mean(precision[score])), 4) for score in SCORES},
        }
    print(json.dumps(result, indent=2))
    if len(sys.argv) > 2:
        write_record(sys.argv[2], result)


if __name__ == "__main__":
    main()
