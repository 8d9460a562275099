"""Whether two images show the same kind of object, by their match.

A matcher always gives a partner. Objects of one kind are matched with confidence in some quarter of the image, and by a
smoother flow. Where the model is split the features themselves say more: their backbone was trained to tell a thousand
kinds apart.

Measured on 588 pairs of Caltech-101 (98 categories, half of the pairs of one category; five folds, each predicted by a
fit on the other categories; benchmarks/studies/same_kind.py), area under the ROC curve: mean confidence 0.896,
mean of the most confident quarter 0.902, with roughness and bend 0.909, likeness alone 0.911, with the most confident
quarter 0.935. ``cats-tiny`` itself was trained on photos of these categories, without keypoints.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cats.core.geometry import Floats, identity_cells

LIKENESS = "likeness"
"""Name of the likeness among the outputs of a split model."""

_QUARTER = 4  # the most confident cells are one in four

# Intercept and coefficients of logistic regressions, in the order of the measures named.
_OF_MATCH = (-6.7027, np.array([11.3059, -1.8618, 0.7527]))  # confidence, roughness, bend
_OF_FEATURES = (-9.2832, np.array([8.7925, 7.31]))  # likeness, confidence


def same_kind_probability(
    flow: NDArray[np.float32], confidence: NDArray[np.float32], likeness: float | None = None
) -> float:
    """Probability that a match is one of two objects of the same kind.

    Args:
        flow: (2, G, G) in cells, a -> b.
        confidence: (G, G), as the model gives it.
        likeness: see :func:`feature_likeness`, where the features are known.
    """
    sure = float(np.sort(confidence, axis=None)[::-1][: max(1, confidence.size // _QUARTER)].mean())
    if likeness is not None:
        intercept, coefficients = _OF_FEATURES
        measures = np.array([likeness, sure])
    else:
        intercept, coefficients = _OF_MATCH
        measures = np.array([sure, *flow_shape(flow)])
    return float(1 / (1 + np.exp(-(intercept + measures @ coefficients))))


def flow_shape(flow: NDArray[np.float32]) -> tuple[float, float]:
    """Roughness and bend of a flow (2, G, G), in cells.

    Returns:
        mean absolute difference of neighbours, down plus across; and mean distance from the nearest affine map.
    """
    values = np.asarray(flow, np.float64)
    roughness = float(np.abs(np.diff(values, axis=1)).mean() + np.abs(np.diff(values, axis=2)).mean())
    cells = identity_cells(values.shape[-1]).reshape(2, -1).T
    rows = np.column_stack([np.ones(len(cells)), cells])
    places = cells + values.reshape(2, -1).T
    fitted = rows @ np.linalg.lstsq(rows, places, rcond=None)[0]
    return roughness, float(np.linalg.norm(places - fitted, axis=1).mean())


def feature_likeness(a: Mapping[str, NDArray[np.generic]], b: Mapping[str, NDArray[np.generic]]) -> float:
    """Cosine in [-1, 1] of the :func:`descriptor` of two images' features, by name, (C, N) each."""
    return float(descriptor(a) @ descriptor(b))


def descriptor(features: Mapping[str, NDArray[np.generic]]) -> Floats:
    """What kind of thing an image shows: means (C,) of its last features, centred and of length 1.

    The mean over the image forgets where each part is.
    """
    levels = (name for name in features if name.startswith("features_"))
    last = max(levels, key=lambda name: int(name.rpartition("_")[2]))
    values = np.asarray(features[last], np.float64)
    mean = values.reshape(len(values), -1).mean(axis=1)  # over the cells, whatever axes they have
    mean -= mean.mean()
    return mean / max(float(np.linalg.norm(mean)), 1e-12)
