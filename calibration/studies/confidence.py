"""Soft-argmax temperature and the meaning of the confidence, fitted on pairs whose true flow is known.

A cell's match is *right* where its error is at most :data:`ALPHA` of the image's side. The mapping from confidence to
the probability of being right is monotone (isotonic regression over quantile bins, Zadrozny and Elkan, KDD 2002); the
expected calibration error is that of Guo et al., ICML 2017, with 15 bins of equal width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from cats.calibration.calibrate import FloatModel
from cats.calibration.graph import Graph
from cats.calibration.inputs import pair_feeds
from cats.calibration.sessions import Session, fixed_batch
from cats.calibration.studies.known_pairs import KnownPair
from cats.core.console import progress
from cats.core.errors import ModelFileError
from cats.core.geometry import identity_cells, sample_grid
from cats.core.metadata import Metadata
from cats.evaluation.figures import save_figure
from cats.evaluation.parity import FRAME
from cats.export.modules import module_of

ALPHA = 0.1
BINS = 15

_CAP = 32.0  # pixels at 256; errors beyond count alike when the temperature is fitted: the match is lost
_KNOTS = 20
_FACTORS = np.geomspace(0.25, 4.0, 33)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Refined scores of one pair before the soft-argmax: (cells of a, cells of b), and the true matches."""

    values: NDArray[np.float32]
    cells: Floats
    truth: Floats


@dataclass(frozen=True)
class Predictions:
    """Matches at known places, pooled over pairs: ``error`` in pixels at 256 x 256, ``confidence`` in [0, 1]."""

    error: Floats
    confidence: Floats

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each is within :data:`ALPHA` of the side."""
        return self.error <= ALPHA * FRAME


@dataclass(frozen=True)
class ConfidenceFit:
    """What was fitted, and how it does on held-out pairs.

    Attributes:
        temperature, old_temperature: of the soft-argmax.
        mapping: ``confidence`` -> ``probability`` of being right and ``error_px``, as knots to interpolate between.
        before, after: held-out figures: ``ece``, ``mean_error_px``, ``right``; after with temperature and mapping.
        bins_before, bins_after: reliability on held-out pairs: (confidence, share right, count) of each filled bin.
    """

    temperature: float
    old_temperature: float
    mapping: dict[str, list[float]]
    before: dict[str, float]
    after: dict[str, float]
    bins_before: list[tuple[float, float, int]]
    bins_after: list[tuple[float, float, int]]
    fitted_on: int
    held_out: int
    source: str

    def to_dict(self) -> dict[str, Any]:
        """The part ``confidence`` of the metadata's ``calibration``."""
        return {
            "temperature": self.temperature,
            "old_temperature": self.old_temperature,
            "alpha": ALPHA,
            "mapping": self.mapping,
            "before": self.before,
            "after": self.after,
            "pairs": self.fitted_on,
            "held_out": self.held_out,
            "source": self.source,
        }


def fit_confidence(
    source: FloatModel, fit_on: list[KnownPair], held_out: list[KnownPair], what: str, *, threads: int | None = None
) -> ConfidenceFit:
    """Fit temperature and mapping on some pairs and judge both on others.

    The temperature minimises the mean error, each error capped at 32 pixels; the old one stays unless the fitted one
    is better on the fitted pairs by more than half a percent.

    Raises:
        ModelFileError: the graph's soft-argmax is not as cats-export writes it.
    """
    graph = Graph(source.model)
    scores_name, old = _temperature_node(graph)[0].input[0], temperature_of(source.model)
    session = Session(source.model, outputs=[scores_name], threads=threads)
    with progress() as bar:
        task = bar.add_task("matching, pairs", total=len(fit_on) + len(held_out))

        def collect(pairs: list[KnownPair]) -> list[Scores]:
            return [_scores(session, source, pair, lambda: bar.advance(task)) for pair in pairs]

        fitting, judging = collect(fit_on), collect(held_out)
    side = source.metadata.grid[0]

    def loss(temperature: float) -> float:
        return float(np.minimum(predict(fitting, temperature, side).error, _CAP).mean())

    losses = {float(old * factor): loss(float(old * factor)) for factor in _FACTORS}
    best = min(losses, key=lambda value: (losses[value], value))
    temperature = round(best, 6) if losses[best] < 0.995 * loss(old) else old
    mapping = fit_mapping(predict(fitting, temperature, side))
    raw, tempered = predict(judging, old, side), predict(judging, temperature, side)
    mapped = np.interp(tempered.confidence, mapping["confidence"], mapping["probability"])
    return ConfidenceFit(
        temperature,
        old,
        mapping,
        _figures(raw, raw.confidence),
        _figures(tempered, mapped),
        reliability(raw.confidence, raw.right),
        reliability(mapped, tempered.right),
        len(fit_on),
        len(held_out),
        what,
    )


def _scores(session: Session, source: FloatModel, pair: KnownPair, done: Callable[[], None]) -> Scores:
    feeds = pair_feeds(pair.image_a, pair.image_b, source.metadata.preprocessing, fixed_batch(source.model))
    values = next(iter(session(feeds).values()))[0]
    cells = source.metadata.grid[0] * source.metadata.grid[1]
    done()
    if values.shape != (cells, cells):
        raise ModelFileError(f"{source.path}: its scores have shape {values.shape}: export it again")
    return Scores(values, pair.cells, pair.truth)


def predict(scores: list[Scores], temperature: float, grid: int) -> Predictions:
    """Errors and confidences of the soft-argmax at a temperature."""
    identity = identity_cells(grid).reshape(2, -1).T
    errors, confidences = [], []
    for item in scores:
        logits = item.values.astype(np.float64) / temperature
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        mean = p @ identity
        variance = np.maximum((p @ np.square(identity)).sum(1) - np.square(mean).sum(1), 0)
        values = np.concatenate([(mean - identity).T, np.exp(-variance / 2)[None]]).reshape(3, grid, grid)
        found = sample_grid(values, item.cells)
        errors.append(np.linalg.norm(item.cells + found[:, :2] - item.truth, axis=1) * (FRAME / grid))
        confidences.append(found[:, 2])
    return Predictions(np.concatenate(errors), np.concatenate(confidences))


def fit_mapping(predictions: Predictions) -> dict[str, list[float]]:
    """Knots of the monotone mapping from confidence to probability and to expected error in pixels at 256 x 256."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(predictions.confidence, kind="stable")
    bins = [part for part in np.array_split(order, min(_KNOTS, len(order))) if len(part)]
    weights = np.array([len(part) for part in bins], float)
    confidence = np.array([predictions.confidence[part].mean() for part in bins])
    # One right and one wrong match more in each bin, so that few matches never give certainty.
    right = np.array([(predictions.right[part].sum() + 1) / (len(part) + 2) for part in bins])
    error = np.array([predictions.error[part].mean() for part in bins])
    rising = isotonic_regression(right, weights=weights).x
    falling = isotonic_regression(error, weights=weights, increasing=False).x
    values = {"confidence": confidence, "probability": rising, "error_px": falling}
    return {name: [round(float(v), 6) for v in array] for name, array in values.items()}


def reliability(confidence: Floats, right: NDArray[np.bool_]) -> list[tuple[float, float, int]]:
    """Mean confidence, share of right matches and count of each filled bin of equal width."""
    index = np.minimum((confidence * BINS).astype(int), BINS - 1)
    chosen = [index == k for k in range(BINS)]
    return [(float(confidence[at].mean()), float(right[at].mean()), int(at.sum())) for at in chosen if at.any()]


def expected_calibration_error(confidence: Floats, right: NDArray[np.bool_]) -> float:
    """Mean distance of confidence and share of right matches over the bins, weighted by their counts."""
    return float(sum(abs(c - share) * count for c, share, count in reliability(confidence, right)) / len(confidence))


def _figures(predictions: Predictions, confidence: Floats) -> dict[str, float]:
    return {
        "ece": round(expected_calibration_error(confidence, predictions.right), 6),
        "mean_error_px": round(float(predictions.error.mean()), 4),
        "right": round(float(predictions.right.mean()), 6),
    }


def temperature_of(model: onnx.ModelProto) -> float:
    """The soft-argmax's temperature as the graph computes it.

    Raises:
        ModelFileError: there is no such node.
    """
    graph = Graph(model)
    value = graph.constant(_temperature_node(graph)[0].input[1])
    assert value is not None
    return round(float(value.reshape(())), 9)


def with_temperature(model: onnx.ModelProto, temperature: float) -> onnx.ModelProto:
    """A copy whose soft-argmax has another temperature; other readers of the old constant keep it."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = Graph(result)
    node, name = _temperature_node(graph)
    value = graph.constant(node.input[1])
    assert value is not None
    used = {item.name for item in result.graph.initializer} - {node.input[1]}
    if len(graph.consumers[node.input[1]]) == 1:
        for index, item in enumerate(result.graph.initializer):
            if item.name == node.input[1]:
                del result.graph.initializer[index]
                break
    while name in used:
        name += "_"
    node.input[1] = name
    result.graph.initializer.append(numpy_helper.from_array(np.asarray(temperature, value.dtype), name))
    onnx.checker.check_model(result)
    return result


def _temperature_node(graph: Graph) -> tuple[onnx.NodeProto, str]:
    """The division in front of the soft-argmax's softmax, and a name for its constant."""
    for node in graph.model.graph.node:
        if node.op_type == "Softmax" and module_of(node) == "soft_argmax":
            before = graph.producer.get(node.input[0])
            if before is not None and before.op_type == "Div":
                value = graph.constant(before.input[1])
                if value is not None and value.size == 1:
                    return before, "soft_argmax.temperature"
    raise ModelFileError("the graph has no soft-argmax with a constant temperature: export the model again")


def with_confidence(source: FloatModel, fit: ConfidenceFit) -> tuple[onnx.ModelProto, Metadata]:
    """The model with the fitted temperature, and its metadata with the mapping.

    Figures of parity and accuracy were measured at the old temperature and go where it changed.
    """
    part = {**(source.metadata.calibration or {}), "confidence": fit.to_dict()}
    if fit.temperature == fit.old_temperature:
        return source.model, source.metadata.with_(calibration=part)
    config = {**source.metadata.config, "temperature": fit.temperature}
    metadata = source.metadata.with_(calibration=part, config=config, verified=False, parity=None, accuracy=None)
    return with_temperature(source.model, fit.temperature), metadata


def plot_reliability(fit: ConfidenceFit, path: str | Path) -> None:
    """Write the reliability diagram of the held-out pairs, before and after.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), dpi=120, layout="constrained")
    sides = (("before", fit.bins_before, fit.before), ("after", fit.bins_after, fit.after))
    for axes, (name, bins, figures) in zip(figure.subplots(1, 2), sides, strict=True):
        axes.plot([0, 1], [0, 1], "--", color="grey")
        sizes = np.array([count for _, _, count in bins], float)
        axes.plot([c for c, _, _ in bins], [share for _, share, _ in bins], color="C0")
        axes.scatter(
            [c for c, _, _ in bins],
            [share for _, share, _ in bins],
            10 + 300 * sizes / sizes.sum(),
            color="C0",
            clip_on=False,
            zorder=3,
        )
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", title=f"{name}: ECE {figures['ece']:.3f}")
        axes.set_ylabel(f"share within {ALPHA:g} of the side")
    save_figure(figure, path)
