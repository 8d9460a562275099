"""Soft-argmax temperature and the meaning of the confidence, fitted on real pairs.

A cell's match is *right* where its error is at most :data:`ALPHA` of the image's side; where no true match is known,
the way to the other image and back stands for it. The mapping from confidence to the probability of being right is
monotone (isotonic regression over quantile bins, Zadrozny and Elkan, KDD 2002) and begins at chance: a confidence of 0
is a match spread over the whole image. The expected calibration error is that of Guo et al., ICML 2017, with 15 bins of
equal width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from cats.calibration.calibrate import FloatModel
from cats.calibration.graph import Graph
from cats.calibration.sessions import ProbeSession, fixed_batch
from cats.calibration.studies.known_pairs import KnownPair, KnownPairs
from cats.calibration.studies.soft_argmax import NumpySoftArgmax, find_temperature, replace_temperature, temperature_of
from cats.core.console import progress
from cats.core.errors import ModelFileError
from cats.core.geometry import sample_grid
from cats.core.metadata import Metadata
from cats.data.photo_pairs import pair_feeds
from cats.evaluation.figures import save_figure
from cats.evaluation.parity import FRAME, TOLERANCE, measure_parity

ALPHA = 0.1
BINS = 15

_CAP = 32.0  # pixels at 256; errors beyond count alike when the temperature is fitted: the match is lost
_KNOTS = 20
_CHANCE = float(np.pi * ALPHA**2)  # probability that a match anywhere in the image is right
_ASTRAY = 0.3826 * FRAME  # mean distance of a point of the image from its centre
_FACTORS = np.geomspace(0.25, 4.0, 33)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Refined scores of one pair before the soft-argmax: ``values`` (cells of a, cells of b) and ``back`` (cells of b,
    cells of a), and what is known of its matches."""

    values: NDArray[np.float32]
    back: NDArray[np.float32]
    cells: Floats
    truth: Floats | None


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
        before, after: held-out figures: ``ece``, ``mean_error_px``, ``right``, ``mean_confidence``, and with pairs of
            other kinds ``others_confidence``, the mean confidence of their matches, which are all wrong, and
            ``ece_with_others``, over as many of these as of the others; after with temperature and mapping.
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
    annotated: bool

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
            "judged_by": "annotations" if self.annotated else "the way there and back",
        }


def fit_confidence(
    source: FloatModel, pairs: KnownPairs, *, keep_temperature: bool = False, threads: int | None = None
) -> ConfidenceFit:
    """Fit temperature and mapping on some pairs and judge both on others.

    The temperature minimises the mean error, each error capped at 32 pixels; the old one stays where no true match is
    known, unless the fitted one is better on the fitted pairs by more than half a percent, and where it is to be kept:
    then graph and matches stay as they are.

    Raises:
        ModelFileError: the graph's soft-argmax is not as cats-export writes it.
    """
    graph = Graph(source.model)
    scores_name, old = find_temperature(graph)[0].input[0], temperature_of(source.model)
    session = ProbeSession(source.model, outputs=[scores_name], threads=threads)
    with progress() as bar:
        task = bar.add_task("matching, pairs", total=len(pairs.fit_on) + len(pairs.held_out) + len(pairs.others))

        def collect(chosen: list[KnownPair]) -> list[Scores]:
            return [_scores(session, source, pair, lambda: bar.advance(task)) for pair in chosen]

        fitting, judging, others = collect(pairs.fit_on), collect(pairs.held_out), collect(pairs.others)
    head = NumpySoftArgmax.of(graph, source.metadata.grid[0])

    def loss(temperature: float) -> float:
        return float(np.minimum(predict(fitting, temperature, head).error, _CAP).mean())

    temperature = old
    if pairs.annotated and not keep_temperature:
        losses = {float(old * factor): loss(float(old * factor)) for factor in _FACTORS}
        best = min(losses, key=lambda value: (losses[value], value))
        temperature = round(best, 6) if losses[best] < 0.995 * loss(old) else old
    wrong = others[::2]  # every match of which is wrong; the rest judge
    mapping = fit_mapping(predict(fitting, temperature, head), predict(wrong, temperature, head) if wrong else None)
    raw, tempered = predict(judging, old, head), predict(judging, temperature, head)
    mapped = apply_mapping(mapping, tempered.confidence)
    before, after = _figures(raw, raw.confidence), _figures(tempered, mapped)
    if others[1::2]:
        for figures, values, own, scale in (
            (before, predict(others[1::2], old, head).confidence, raw, raw.confidence),
            (after, apply_mapping(mapping, predict(others[1::2], temperature, head).confidence), tempered, mapped),
        ):
            lost = _as_many(values, len(scale))
            figures["others_confidence"] = _mean(values)
            right = np.concatenate([own.right, np.zeros(len(lost), bool)])
            figures["ece_with_others"] = round(expected_calibration_error(np.concatenate([scale, lost]), right), 6)
    return ConfidenceFit(
        temperature,
        old,
        mapping,
        before,
        after,
        reliability(raw.confidence, raw.right),
        reliability(mapped, tempered.right),
        len(pairs.fit_on),
        len(pairs.held_out),
        pairs.source,
        pairs.annotated,
    )


def _scores(session: ProbeSession, source: FloatModel, pair: KnownPair, done: Callable[[], None]) -> Scores:
    cells = source.metadata.grid[0] * source.metadata.grid[1]
    batch = fixed_batch(source.model)
    found = []
    for a, b in ((pair.image_a, pair.image_b), (pair.image_b, pair.image_a)):
        feeds = pair_feeds(a, b, source.metadata.preprocessing, batch)
        found.append(next(iter(session(feeds).values()))[0])
        if found[-1].shape != (cells, cells):
            raise ModelFileError(f"{source.path}: its scores have shape {found[-1].shape}: export it again")
        if pair.truth is not None:  # the way back is not needed
            found.append(found[0])
            break
    done()
    return Scores(found[0], found[1], pair.cells, pair.truth)


def predict(scores: list[Scores], temperature: float, soft_argmax: NumpySoftArgmax) -> Predictions:
    """Errors and confidences of the soft-argmax at a temperature."""
    errors, confidences = [], []
    for item in scores:
        found = sample_grid(soft_argmax(item.values, temperature), item.cells)
        there, goal = item.cells + found[:, :2], item.truth
        if goal is None:
            there = there + sample_grid(soft_argmax(item.back, temperature), there)[:, :2]
            goal = item.cells
        errors.append(np.linalg.norm(there - goal, axis=1) * (FRAME / soft_argmax.grid))
        confidences.append(found[:, 2])
    return Predictions(np.concatenate(errors), np.concatenate(confidences))


def apply_mapping(mapping: dict[str, list[float]], confidence: Floats) -> Floats:
    """Probabilities of being right."""
    return np.interp(confidence, mapping["confidence"], mapping["probability"])


def fit_mapping(predictions: Predictions, wrong: Predictions | None = None) -> dict[str, list[float]]:
    """Knots of the monotone mapping from confidence to probability and to expected error in pixels at 256 x 256.

    Args:
        predictions: matches that may be right.
        wrong: matches of pairs of different kinds, of which as many as there are at most count as wrong.
    """
    from scipy.optimize import isotonic_regression

    if wrong is not None:
        lost = _as_many(wrong.confidence, len(predictions.confidence))
        predictions = Predictions(
            np.concatenate([predictions.error, np.full(len(lost), _ASTRAY)]),
            np.concatenate([predictions.confidence, lost]),
        )
    order = np.argsort(predictions.confidence, kind="stable")
    bins = [part for part in np.array_split(order, min(_KNOTS, len(order))) if len(part)]
    weights = np.array([len(part) for part in bins], float)
    confidence = np.array([predictions.confidence[part].mean() for part in bins])
    # One right and one wrong match more in each bin, so that few matches never give certainty.
    right = np.array([(predictions.right[part].sum() + 1) / (len(part) + 2) for part in bins])
    error = np.array([predictions.error[part].mean() for part in bins])
    rising = isotonic_regression(right, weights=weights).x
    falling = isotonic_regression(error, weights=weights, increasing=False).x
    if confidence[0] > 0:  # chance, where the data say nothing
        confidence = np.concatenate([[0.0], confidence])
        rising = np.concatenate([[min(_CHANCE, rising[0])], rising])
        falling = np.concatenate([[max(_ASTRAY, falling[0])], falling])
    values = {"confidence": confidence, "probability": rising, "error_px": falling}
    return {name: [round(float(v), 6) for v in array] for name, array in values.items()}


def _as_many(values: Floats, count: int) -> Floats:
    """At most ``count`` of the values, evenly spaced."""
    return values[:: -(-len(values) // count)]


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
        "mean_confidence": _mean(confidence),
    }


def _mean(values: Floats) -> float:
    return round(float(values.mean()), 6)


def apply_fit(
    source: FloatModel, fit: ConfidenceFit, pairs: KnownPairs, *, threads: int | None = None
) -> tuple[onnx.ModelProto, Metadata]:
    """Put the fitted temperature into a copy of the model, and the mapping into its metadata.

    Where the temperature changed, figures of accuracy, measured at the old one, go; parity is measured anew: the
    graph's flow against the soft-argmax at the new temperature, in numpy, of the scores of the verified graph.
    """
    part = {**(source.metadata.calibration or {}), "confidence": fit.to_dict()}
    if fit.temperature == fit.old_temperature:
        return source.model, source.metadata.with_(calibration=part)
    model = replace_temperature(source.model, fit.temperature)
    scores = ProbeSession(source.model, outputs=[find_temperature(Graph(source.model))[0].input[0]], threads=threads)
    changed = ProbeSession(model, threads=threads)
    head, batch = NumpySoftArgmax.of(Graph(source.model), source.metadata.grid[0]), fixed_batch(source.model)
    expected, actual = [], []
    for pair in pairs.held_out:
        feeds = pair_feeds(pair.image_a, pair.image_b, source.metadata.preprocessing, batch)
        expected.append(head(next(iter(scores(feeds).values()))[0], fit.temperature).astype(np.float32))
        found = changed(feeds)
        actual.append(np.concatenate([found["flow"][0], found["confidence"][:1]]))
    parity = measure_parity(
        *((values[:, :2], values[:, 2]) for values in (np.stack(expected), np.stack(actual))),
        tolerance=TOLERANCE["fp32"],
        source=f"{len(expected)} pairs, {pairs.source}",
        against="ONNX Runtime on the CPU against the soft-argmax in numpy, of the scores at the old temperature",
    )
    config = {**source.metadata.config, "temperature": fit.temperature}
    verified = source.metadata.verified and parity.passed
    metadata = source.metadata.with_(
        calibration=part, config=config, verified=verified, parity=parity.to_dict(), accuracy=None
    )
    return model, metadata


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
