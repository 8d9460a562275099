"""Logistic regression of a few measures, and how good its probabilities are; numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cats.core.geometry import Floats

RIDGE = 1e-2
"""Weight of the squared coefficients, of measures scaled to variance 1, beside the mean loss of a row."""

BINS = 10


@dataclass(frozen=True)
class Logistic:
    """``1 / (1 + exp(-(intercept + measures @ coefficients)))``."""

    intercept: float
    coefficients: tuple[float, ...]

    def __call__(self, measures: Floats) -> Floats:
        """Probabilities (N,) of measures (N, F)."""
        return 1 / (1 + np.exp(-(measures @ np.array(self.coefficients) + self.intercept)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, to four digits."""
        return {
            "intercept": round(self.intercept, 4),
            "coefficients": [round(value, 4) for value in self.coefficients],
        }


def fit_logistic(measures: Floats, truth: NDArray[np.bool_]) -> Logistic:
    """Newton's method on measures (N, F) and what came true (N,)."""
    mean, scale = measures.mean(axis=0), measures.std(axis=0) + 1e-9
    rows = np.column_stack([np.ones(len(measures)), (measures - mean) / scale])
    ridge = RIDGE * np.diag([0.0] + [1.0] * measures.shape[1])
    weights = np.zeros(rows.shape[1])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(rows @ weights, -30, 30)))
        gradient = rows.T @ (chance - truth) / len(rows) + ridge @ weights
        curvature = (rows * (chance * (1 - chance))[:, None]).T @ rows / len(rows) + ridge + 1e-9 * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step
        if np.abs(step).max() < 1e-8:
            break
    coefficients = weights[1:] / scale
    return Logistic(float(weights[0] - coefficients @ mean), tuple(float(value) for value in coefficients))


def auc(score: Floats, truth: NDArray[np.bool_]) -> float:
    """Chance that a true one scores higher than a false one; ties count half."""
    true, false = score[truth], score[~truth]
    higher = (true[:, None] > false).mean() + 0.5 * (true[:, None] == false).mean()
    return float(higher)


def calibration_error(probability: Floats, truth: NDArray[np.bool_]) -> dict[str, Any]:
    """Expected calibration error over ten equal bins, and the reliability diagram's points.

    Returns:
        ``{"ece", "reliability": [[mean probability, share that came true, number], ...]}``.
    """
    which = np.minimum((probability * BINS).astype(int), BINS - 1)
    rows = [(probability[which == b].mean(), truth[which == b].mean(), (which == b).sum()) for b in np.unique(which)]
    error = sum(abs(p - t) * n for p, t, n in rows) / len(truth)
    return {
        "ece": round(float(error), 4),
        "reliability": [[round(float(p), 4), round(float(t), 4), int(n)] for p, t, n in rows],
    }
