"""How likely a predicted point is right, and how likely a photo shows the references' kind of object at all.

Both are logistic regressions on a few measures of the votes. ``benchmarks/studies/labelling.py`` fits the coefficients
in ``probability.json`` beside this file, which also says on what, and measures them on photos not used to fit.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from cats.core.geometry import Floats
from cats.labelling.consensus import agreement, spread
from cats.labelling.passes import Finding

FILE = Path(__file__).with_name("probability.json")

POINT_MEASURES = ("error", "confidence", "spread", "agreement", "votes", "labelled")
KIND_MEASURES = ("error", "confidence", "spread", "likeness")


def point_measures(found: Finding) -> Floats:
    """(K + A, 6) of each point, in the order of :data:`POINT_MEASURES`.

    Logarithms of the forward-backward error (in extents) and the confidence, averaged by the votes' weights, and of
    the votes' distance from the consensus; the share of the votes' weight that agrees; how many votes there are in
    effect: one alone cannot disagree; and the share of the weight that is of photos that a person labelled: the others
    got their labels from these, and err with them.
    """
    votes = found.votes
    weights = votes.weights()
    total = np.maximum(weights.sum(axis=0), 1e-12)
    error = np.nan_to_num(votes.error, nan=0.0)
    known = weights * np.isfinite(votes.error)
    mean_error = (error * known).sum(axis=0) / np.maximum(known.sum(axis=0), 1e-12)
    confidence = (votes.confidence * weights).sum(axis=0) / total
    effective = total**2 / np.maximum((weights**2).sum(axis=0), 1e-12)
    several = 1 - 1 / np.maximum(effective, 1.0)
    labelled = (weights * (votes.trust >= 1)).sum(axis=0) / total
    return np.stack(
        [
            np.log(mean_error + 0.02),
            np.log(confidence + 0.02),
            several * np.log(spread(votes, found.places) + 0.02),
            several * agreement(votes, found.places),
            several,
            labelled,
        ],
        axis=1,
    )


def point_probability(found: Finding) -> Floats:
    """(K + A,) that each point lies within a tenth of the object's extent of the truth; 0 where nobody voted."""
    model = _models()["point"]
    odds = point_measures(found) @ np.asarray(model["coefficients"]) + model["intercept"]
    return np.where(np.isfinite(found.places).all(axis=1), _logistic(odds), 0.0)


def kind_measures(found: Finding) -> Floats:
    """(4,) of a photo, in the order of :data:`KIND_MEASURES`; the likeness is NaN where the model is not split.

    Means over the points of the first three point measures, and the likeness of the photo to its nearest reference.
    """
    voted = np.isfinite(found.places).all(axis=1)
    measures = point_measures(found)[voted, :3].mean(axis=0) if voted.any() else np.zeros(3)
    return np.append(measures, found.likeness)


def same_kind_probability(found: Finding) -> float:
    """Probability that the photo shows the same kind of object as the references."""
    measures = kind_measures(found)
    split = bool(np.isfinite(measures[-1]))
    model = _models()["same_kind" if split else "same_kind_without_likeness"]
    used = measures if split else measures[:-1]
    return float(_logistic(used @ np.asarray(model["coefficients"]) + model["intercept"]))


@functools.cache
def _models() -> dict[str, Any]:
    return json.loads(FILE.read_text())


def _logistic(odds: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(odds, -30, 30)))
