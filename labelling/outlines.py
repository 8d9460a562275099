"""Boxes, outlines and masks, carried from the references to a photo."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from cats.core.geometry import Floats, Size, pixels_to_cells, sample_grid, transfer_points
from cats.labelling.annotations import Box, Mask
from cats.labelling.passes import Finding

_STEPS = 10
_SMOOTHING = 5  # pixels of the median filter that cleans a mask, at MASK_SIDE
MASK_SIDE = 256


def carry_box(finding: Finding) -> Box | None:
    """Where the references' boxes lie in the photo.

    A box has no corner on the object, so its corners cannot be matched. Each reference's box moves and stretches as the
    points and anchors inside it do (robust fit of one scale and shift for each axis); the median of all is taken.

    Returns:
        x, y, width, height in pixels, within the photo; None where no reference has a box.
    """
    found = []
    for item, weight in zip(finding.carried, finding.last_weights, strict=True):
        if item.reference.annotation.box is None:
            continue
        x, y, width, height = item.reference.annotation.box
        edges = np.array([[x, y], [x + width, y + height]])
        targets = item.reference.targets
        known = (weight > 0) & np.isfinite(finding.places).all(axis=1)
        found.append(
            [_fit_line(targets[known, d], finding.places[known, d], weight[known], edges[:, d]) for d in range(2)]
        )
    if not found:
        return None
    (left, right), (top, bottom) = np.median(np.array(found), axis=0)
    width, height = finding.size
    left, right = sorted(np.clip((left, right), -0.5, width - 0.5))
    top, bottom = sorted(np.clip((top, bottom), -0.5, height - 0.5))
    return float(left), float(top), float(right - left), float(bottom - top)


def _fit_line(start: Floats, end: Floats, weight: Floats, edges: Floats) -> Floats:
    """``end = scale * start + shift``, robust by re-weighting, at ``edges``; a shift where the points do not spread."""
    robust = weight
    scale, shift = 1.0, 0.0
    for _ in range(_STEPS):
        total = max(robust.sum(), 1e-12)
        mean_start, mean_end = (robust * start).sum() / total, (robust * end).sum() / total
        variance = (robust * (start - mean_start) ** 2).sum() / total
        covariance = (robust * (start - mean_start) * (end - mean_end)).sum() / total
        scale = max(covariance / variance, 0.1) if variance > 1 else 1.0
        shift = mean_end - scale * mean_start
        residual = np.abs(end - scale * start - shift)
        robust = weight / (1 + (residual / max(np.median(residual), 1.0)) ** 2)
    return scale * edges + shift


def carry_polygons(finding: Finding) -> tuple[Floats, ...]:
    """The outlines of the best reference in the photo, each corner moved by the flow; within the photo."""
    best = finding.best()
    start, end = best.reference.window, finding.window
    result = []
    limit = np.asarray(finding.size) - 1.0
    for polygon in best.reference.annotation.polygons:
        moved = transfer_points(start.to_window(polygon), best.flow, start.size, end.size)
        result.append(np.clip(end.to_photo(moved), 0, limit))
    return tuple(result)


def carry_mask(finding: Finding) -> Mask | None:
    """The object in the photo, where at least half of the references' masks say so.

    Every pixel of the last look goes back to each reference, which says inside or outside; votes count by the
    confidence of the backward match. A median filter cleans the edge.

    Returns:
        None where no reference has a mask.
    """
    masked = [item for item in finding.carried if item.reference.annotation.mask is not None]
    if not masked:
        return None
    window = finding.window
    size: Size = (min(MASK_SIDE, window.size[0]), min(MASK_SIDE, window.size[1]))
    x, y = np.meshgrid(*((np.arange(side) + 0.5) / side for side in size))
    points = np.stack([x.ravel(), y.ravel()], axis=1) * window.size - 0.5
    inside, total = np.zeros(len(points)), np.full(len(points), 1e-12)
    for item in masked:
        mask = item.reference.annotation.mask
        assert mask is not None  # of those chosen above
        array = mask.to_array()
        there = item.reference.window
        back = transfer_points(points, item.backward_flow, window.size, there.size)
        place = np.rint(there.to_photo(back)).astype(int)
        column, row = np.clip(place[:, 0], 0, array.shape[1] - 1), np.clip(place[:, 1], 0, array.shape[0] - 1)
        confidence = item.backward_confidence
        cells = pixels_to_cells(points, window.size, confidence.shape[-1])
        weight = sample_grid(confidence[None], cells)[:, 0] + 0.02
        inside += weight * array[row, column]
        total += weight
    picture = Image.fromarray(((inside / total).reshape(size[::-1]) * 255).astype(np.uint8))
    picture = picture.filter(ImageFilter.MedianFilter(_SMOOTHING)).resize(window.size, Image.Resampling.BILINEAR)
    whole = np.zeros((finding.size[1], finding.size[0]), bool)
    whole[window.top : window.bottom, window.left : window.right] = np.asarray(picture) >= 128
    return Mask.from_array(whole)
