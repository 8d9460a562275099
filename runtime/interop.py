"""A match in the types of other libraries: methods of :class:`cats.runtime.Match`, which import those when called.

All take ``points`` (N, 2) in pixels of a, by default the even grid of ``cats-run``, and leave out those of less
confidence than ``min_confidence``. Coordinates are pixels with centres at integers, as in all of these libraries;
points of b are not clamped to the image.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from cats.core.errors import require
from cats.core.geometry import GRID_POINTS, Floats, as_points, grid_points
from cats.runtime.document import matches_document

if TYPE_CHECKING:
    from cats.runtime.result import Match


def to_opencv(match: Match, points: ArrayLike | None = None, *, min_confidence: float = 0.0) -> tuple[Any, Any, Any]:
    """The match as OpenCV's feature matchers give it, for ``cv2.drawMatches``, ``cv2.findHomography`` and others.

    Args:
        points: (N, 2) in pixels of a; None takes an even grid of 10 x 10.
        min_confidence: in [0, 1]; points of less are left out.

    Returns:
        Two lists of ``cv2.KeyPoint`` (``size``: side of a cell of the flow in pixels, ``response``: the confidence) and
        a list of ``cv2.DMatch`` (query a, train b, ``distance``: 1 - confidence, so that the smallest is the best).

    Raises:
        BackendError: OpenCV is not installed.
        InputError: as :meth:`Match.transfer`.
    """
    cv2 = require("cv2", extra="interop", purpose="give keypoints of OpenCV")
    start, places, confidence = _chosen(match, points, min_confidence)
    sides = [float(np.mean(size)) / match.grid for size in (match.size_a, match.size_b)]
    keypoints_a, keypoints_b = (
        [cv2.KeyPoint(float(x), float(y), side, -1, float(c)) for (x, y), c in zip(where, confidence, strict=True)]
        for where, side in zip((start, places), sides, strict=True)
    )
    return keypoints_a, keypoints_b, [cv2.DMatch(i, i, 1 - float(c)) for i, c in enumerate(confidence)]


def to_supervision(match: Match, points: ArrayLike | None = None, *, min_confidence: float = 0.0) -> tuple[Any, Any]:
    """The match as two ``supervision.KeyPoints`` of one object each: of a, and of b in the same order.

    Args:
        points: (N, 2) in pixels of a; None takes an even grid of 10 x 10.
        min_confidence: in [0, 1]; points of less are left out.

    Raises:
        BackendError: supervision is not installed.
        InputError: as :meth:`Match.transfer`.
    """
    supervision = require("supervision", extra="interop", purpose="give its KeyPoints")
    start, places, confidence = _chosen(match, points, min_confidence)
    kept = confidence[None].astype(np.float32)
    a, b = (supervision.KeyPoints(where[None].astype(np.float32), None, kept) for where in (start, places))
    return a, b


def to_kornia(match: Match, points: ArrayLike | None = None, *, min_confidence: float = 0.0) -> dict[str, Any]:
    """The match as matchers of kornia (``kornia.feature.LoFTR``) give it: tensors of torch, on the CPU.

    Args:
        points: (N, 2) in pixels of a; None takes an even grid of 10 x 10.
        min_confidence: in [0, 1]; points of less are left out.

    Returns:
        ``keypoints0`` (N, 2) in pixels of a and ``keypoints1`` (N, 2) in pixels of b, ``confidence`` (N,), all float32,
        ``batch_indexes`` (N,) int64, all 0.

    Raises:
        BackendError: torch, which kornia needs, is not installed.
        InputError: as :meth:`Match.transfer`.
    """
    torch = require("torch", extra="interop", purpose="give tensors as kornia takes them")
    start, places, confidence = _chosen(match, points, min_confidence)
    tensors = {"keypoints0": start, "keypoints1": places, "confidence": confidence}
    return {
        **{name: torch.from_numpy(values.astype(np.float32)) for name, values in tensors.items()},
        "batch_indexes": torch.zeros(len(start), dtype=torch.int64),
    }


def to_dict(match: Match, points: ArrayLike | None = None, *, min_confidence: float = 0.0) -> dict[str, Any]:
    """The match as plain JSON types, as ``cats-run --json`` prints it.

    Args:
        points: (N, 2) in pixels of a; None takes an even grid of 10 x 10.
        min_confidence: in [0, 1]; points of less are left out.

    Returns:
        See :func:`cats.runtime.document.matches_document`; ``a`` and ``b`` are None where images were no files.

    Raises:
        InputError: as :meth:`Match.transfer`.
    """
    names = [str(image) if isinstance(image, (str, Path)) else None for image in (match.image_a, match.image_b)]
    start, _, _ = _chosen(match, points, min_confidence)
    return matches_document(match, start, a=names[0], b=names[1], model=match.model or {})


def _chosen(match: Match, points: ArrayLike | None, min_confidence: float) -> tuple[Floats, Floats, Floats]:
    """Points of a that are confident enough, where they lie in b, and their confidence."""
    start = grid_points(match.size_a, GRID_POINTS) if points is None else as_points(points)
    confidence = match.confidence_at(start)
    keep = confidence >= min_confidence
    return start[keep], match.transfer(start[keep]), confidence[keep]
