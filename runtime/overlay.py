"""Image b laid over image a as the match bends it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from cats.core.errors import InputError
from cats.runtime.result import Match


def overlay(match: Match, a: Image.Image, warped: Image.Image, *, strength: float = 0.65) -> Image.Image:
    """Blend the warped image b over a, weighted by the confidence of each place.

    Args:
        match: gives the confidence.
        a: upright RGB image a.
        warped: :meth:`cats.runtime.result.Match.warp` of the same size.
        strength: weight of b in [0, 1] where the confidence is 1; where it is 0, only a is seen.

    Returns:
        RGB image of the size of a.
    """
    if a.size != warped.size or a.size != match.size_a:
        raise InputError(f"overlay of {warped.size} over {a.size}: both must have the size of image a, {match.size_a}")
    # Bilinear enlarging about cell centres, clamped at the border: the sampling of cats.core.geometry.sample_grid.
    weight = Image.fromarray((match.confidence * (255 * strength) + 0.5).clip(0, 255).astype(np.uint8))
    return Image.composite(warped, a, weight.resize(a.size, Image.Resampling.BILINEAR))
