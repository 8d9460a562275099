"""Whether a match tells pairs of one kind from others: ROC area of each measure on Caltech-101, and the fits of
``cats.runtime.same_kind``. For every category PAIRS pairs of it and as many of it with another one; each fold of
categories is predicted by a fit on the other four.

Usage: python -m cats.benchmarks.studies.same_kind [OUT.json]
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import numpy as np

from cats.assets import asset
from cats.benchmarks.record import SHARED, describe_run, write_record
from cats.benchmarks.studies.logistic import auc, calibration_error, fit_logistic
from cats.core.geometry import Floats
from cats.core.photos import list_photos
from cats.runtime import Match, Matcher
from cats.runtime.same_kind import flow_shape

PAIRS, FOLDS = 3, 5
MEASURES = ("mean confidence", "confidence of the best quarter", "roughness", "bend", "likeness")
FITS = {"of a match": (1, 2, 3), "of features": (4, 1)}


def measure(match: Match) -> tuple[float, ...]:
    """The measures of one match, in the order of :data:`MEASURES`."""
    best = np.sort(match.confidence, axis=None)[::-1][: match.confidence.size // 4]
    assert match.likeness is not None  # of a split model
    return (float(match.confidence.mean()), float(best.mean()), *flow_shape(match.flow), match.likeness)


def main() -> None:
    """Match, fit and print."""
    folders = sorted({photo.parent for photo in list_photos(SHARED / "data" / "Caltech-101")[0]})
    photos = {folder.name: list_photos(folder)[0] for folder in folders}
    rng = random.Random(0)
    rows: list[tuple[float, ...]] = []
    same: list[bool] = []
    names: list[str] = []
    with Matcher(asset("cats-tiny.encoder.onnx"), threads=1) as matcher:
        for name, files in photos.items():
            for _ in range(PAIRS):
                a, b = rng.sample(files, 2)
                other = rng.choice(photos[rng.choice([known for known in photos if known != name])])
                first = matcher.encode(a)
                for second, is_same in ((b, True), (other, False)):
                    rows.append(measure(matcher.match(first, second)))
                    same.append(is_same)
                    names.append(name)
    result = {**describe_run("same_kind", ["onnxruntime"]), **report(np.array(rows), np.array(same), np.array(names))}
    print(json.dumps(result, indent=1))
    if len(sys.argv) > 1:
        write_record(sys.argv[1], result)


def report(measures: Floats, same: np.ndarray, names: np.ndarray) -> dict[str, Any]:
    """ROC area of each measure (N, 5) and of the fits."""
    signs = np.array([1, 1, -1, -1, 1])
    fits: dict[str, Any] = {}
    categories = np.unique(names)
    for title, columns in FITS.items():
        used, held_out = measures[:, columns], np.zeros(len(same))
        for fold in range(FOLDS):
            inside = np.isin(names, categories[fold::FOLDS])
            held_out[inside] = fit_logistic(used[~inside], same[~inside])(used[inside])
        fits[title] = {
            "measures": [MEASURES[column] for column in columns],
            "auc": round(auc(held_out, same), 4),
            **calibration_error(held_out, same),
            **fit_logistic(used, same).to_dict(),
        }
    return {
        "pairs": len(same),
        "categories": len(categories),
        "auc": {
            name: round(auc(sign * measures[:, n], same), 4)
            for n, (name, sign) in enumerate(zip(MEASURES, signs, strict=True))
        },
        "fits": fits,
    }


if __name__ == "__main__":
    main()
