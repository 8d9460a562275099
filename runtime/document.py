"""The JSON document of a match."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from cats.core.geometry import Floats, as_points
from cats.core.hub import hub_source

if TYPE_CHECKING:
    from cats.runtime.matcher import Matcher
    from cats.runtime.result import Match


def model_document(matcher: Matcher) -> dict[str, Any]:
    """The ``model`` part of a matches document; ``source`` is of a file of a hub: ``hf://user/repo@commit/file``."""
    metadata, source = matcher.metadata, hub_source(matcher.path)
    return {
        "file": str(matcher.path),
        **({"source": source} if source else {}),
        "precision": metadata.precision,
        "verified": metadata.verified,
        "weights_sha256": metadata.weights_sha256,
        "backend": matcher.backend.describe(),
    }


def matches_document(
    match: Match, points: ArrayLike, *, a: str | Path | None, b: str | Path | None, model: dict[str, Any]
) -> dict[str, Any]:
    """A match at points of a as plain JSON types; coordinates in original pixels, to a thousandth.

    Args:
        points: (N, 2) in pixels of a.
        a, b: names of the images; None where they are no files.
        model: see :func:`model_document`.

    Returns:
        ``{"a", "b", "size_a", "size_b", "model", "matches": [{"a", "b", "confidence"}, ...], "time_ms"}``; each match
        has ``probability`` of being right too where the model's confidence was fitted, and ``forward_backward`` (pixels
        of a) where the match knows it.
    """
    start = as_points(points)
    places, confidence = match.transfer(start), match.confidence_at(start)
    matches: list[dict[str, Any]] = [
        {"a": _rounded(p), "b": _rounded(q), "confidence": round(float(c), 4)}
        for p, q, c in zip(start, places, confidence, strict=True)
    ]
    if match.is_calibrated:
        for entry, probability in zip(matches, match.probability_at(start), strict=True):
            entry["probability"] = round(float(probability), 4)
    if match.backward_flow is not None:
        for entry, error in zip(matches, match.forward_backward_error(start), strict=True):
            entry["forward_backward"] = round(float(error), 3)
    return {
        "a": None if a is None else str(a),
        "b": None if b is None else str(b),
        "size_a": list(match.size_a),
        "size_b": list(match.size_b),
        "model": model,
        "matches": matches,
        "time_ms": {stage: round(value, 3) for stage, value in match.times.items()},
    }


def _rounded(point: Floats) -> list[float]:
    return [round(float(value), 3) for value in point]
