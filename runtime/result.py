"""What a match gives: :class:`Match`."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from cats.core.errors import InputError
from cats.core.geometry import (
    Floats,
    Size,
    as_points,
    dense_flow,
    pixels_to_cells,
    sample_grid,
    transfer_points,
)
from cats.core.images import MAX_PIXELS, ImageSource, read_image
from cats.runtime import interop
from cats.runtime.same_kind import same_kind_probability

if TYPE_CHECKING:
    from cats.runtime.second_look import SecondLook

_PIXELS_AT_ONCE = 1 << 19


@dataclass(frozen=True)
class Match:
    """Correspondence of two images, a -> b.

    Attributes:
        flow: (2, G, G) float32 in cells of the grid, channel 0 = x: where each cell of a lies in b, relative to itself.
        confidence: (G, G) float32 in [0, 1] for each cell of a.
        size_a, size_b: (width, height) of the upright images in pixels.
        backward_flow: the same as ``flow`` for b -> a, where it was asked for.
        times: milliseconds by stage: ``read``, ``preprocess``, ``model``; of a batch, this pair's share.
        image_a, image_b: the images as they were given; read again where pixels are needed.
        calibration: ``calibration`` part of the model's metadata, for :attr:`calibrated_confidence`.
        raw_confidence: what the model gave, where ``confidence`` is calibrated (``Matcher(..., calibrated=True)``).
        probabilities: (G * G, G * G) float32, row by row the distribution of a cell of a over the cells of b, where the
            model file has this further output (:func:`cats.core.onnx_file.with_probabilities`).
        model: of the JSON document, see :func:`cats.runtime.document.model_document`.
        likeness: cosine in [-1, 1] of what both images show, by the features of a split model; else None.
        second_look: of a match with ``looks=2``: points that it covers are transferred by it, at its finer scale.
    """

    flow: NDArray[np.float32]
    confidence: NDArray[np.float32]
    size_a: Size
    size_b: Size
    backward_flow: NDArray[np.float32] | None = None
    times: dict[str, float] = field(default_factory=dict)
    image_a: ImageSource | None = field(default=None, repr=False)
    image_b: ImageSource | None = field(default=None, repr=False)
    calibration: dict[str, Any] | None = field(default=None, repr=False)
    raw_confidence: NDArray[np.float32] | None = field(default=None, repr=False)
    probabilities: NDArray[np.float32] | None = field(default=None, repr=False)
    second_look: SecondLook | None = field(default=None, repr=False)
    likeness: float | None = None
    model: dict[str, Any] | None = field(default=None, repr=False)

    to_opencv = interop.to_opencv
    to_supervision = interop.to_supervision
    to_kornia = interop.to_kornia
    to_dict = interop.to_dict

    def __repr__(self) -> str:
        (wa, ha), (wb, hb) = self.size_a, self.size_b
        both = ", both ways" if self.backward_flow is not None else ""
        sure = f"mean confidence {float(self.confidence.mean()):.2f}"
        return f"Match(a {wa}x{ha} -> b {wb}x{hb}, grid {self.grid}, {sure}{both})"

    @property
    def grid(self) -> int:
        """Cells per side, G."""
        return self.flow.shape[-1]

    def transfer(self, points: ArrayLike) -> Floats:
        """Where points of a lie in b.

        Args:
            points: (N, 2) x, y in pixels of a, pixel centres at integers.

        Returns:
            (N, 2) float64 in pixels of b, not clamped to the image.

        Raises:
            InputError: not (N, 2) finite numbers, or a point lies outside a.
        """
        return self._moved(self._inside(points))

    @property
    def calibrated_confidence(self) -> NDArray[np.float32]:
        """Probability (G, G) in [0, 1] that each cell's match is within a tenth of the image's side of the truth.

        Raises:
            InputError: the model has no fitted mapping.
        """
        return self._mapped("probability")

    @property
    def same_kind(self) -> float:
        """Probability in [0, 1] that both images show the same kind of object.

        Fitted on Caltech-101 with ``cats-tiny``: its ROC area on categories not fitted on is 0.91, with a split model
        0.93, see :mod:`cats.runtime.same_kind`.
        """
        if self.second_look is not None:
            return self.second_look.match.same_kind
        raw = self.confidence if self.raw_confidence is None else self.raw_confidence
        return same_kind_probability(self.flow, raw, self.likeness)

    @property
    def expected_error(self) -> NDArray[np.float32]:
        """Mean error (G, G) of matches of each cell's confidence, in pixels of images scaled to 256 x 256.

        Raises:
            InputError: the model has no fitted mapping.
        """
        return self._mapped("error_px")

    def _mapped(self, what: str) -> NDArray[np.float32]:
        mapping = confidence_mapping(self.calibration)
        raw = self.confidence if self.raw_confidence is None else self.raw_confidence
        return np.interp(raw, mapping["confidence"], mapping[what]).astype(np.float32)

    def confidence_at(self, points: ArrayLike) -> Floats:
        """Confidence (N,) in [0, 1] at points of a (pixels), bilinear between cells; raises as :meth:`transfer`."""
        array = self._inside(points)
        values = sample_grid(self.confidence[None], pixels_to_cells(array, self.size_a, self.grid))[:, 0]
        if self.second_look is not None:
            covered = self.second_look.covers(array)
            values[covered] = self.second_look.confidence_at(array[covered])
        return values

    @property
    def is_calibrated(self) -> bool:
        """Whether the model has a fitted mapping, so that :meth:`probability_at` and the others give something."""
        return bool((self.calibration or {}).get("confidence"))

    def probability_at(self, points: ArrayLike) -> Floats:
        """Probability (N,) in [0, 1] that the match of each point of a is right: :attr:`calibrated_confidence` there.

        Raises:
            InputError: as :meth:`transfer`, or the model has no fitted mapping.
        """
        mapping = confidence_mapping(self.calibration)
        values = self.confidence_at(points)
        if self.raw_confidence is not None:
            return values
        probability: Floats = np.interp(values, mapping["confidence"], mapping["probability"])
        return probability

    def shown_at(self, points: ArrayLike) -> Floats:
        """What pictures colour points of a by: :meth:`probability_at`, or the confidence of a model without it."""
        return self.probability_at(points) if self.is_calibrated else self.confidence_at(points)

    def forward_backward_error(self, points: ArrayLike) -> Floats:
        """How far a -> b -> a leads away from points of a: (N,) in pixels of a; small where the match is consistent.

        Raises:
            InputError: as :meth:`transfer`, or the match was made without ``forward_backward=True``.
        """
        if self.backward_flow is None:
            raise InputError("this match has no backward flow: make it with match(a, b, forward_backward=True)")
        start = self._inside(points)
        there = transfer_points(start, self.flow, self.size_a, self.size_b)
        back = transfer_points(there, self.backward_flow, self.size_b, self.size_a)
        errors: Floats = np.linalg.norm(back - start, axis=1)
        if self.second_look is not None:
            covered = self.second_look.covers(start)
            errors[covered] = self.second_look.forward_backward_error(start[covered])
        return errors

    def dense_flow(self, size_a: Size | None = None, size_b: Size | None = None) -> NDArray[np.float32]:
        """Displacement of every pixel of a, in pixels.

        Args:
            size_a, size_b: (width, height) to which the images are thought to be scaled; default: their own.

        Returns:
            (height of a, width of a, 2) float32, position in b minus position in a, channel 0 = x.
        """
        for size in (size_a, size_b):
            if size is not None and min(size) < 1:
                raise InputError(f"a flow of size {size}: width and height must be at least 1")
        return dense_flow(self.flow, size_a or self.size_a, size_b or self.size_b)

    def warp(self, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """Image b bent into the frame of a: each pixel shows what the match says lies there in b.

        Args:
            max_pixels: limit for reading the images, see :func:`cats.core.images.read_image`.

        Returns:
            RGB image of ``size_a``.

        Raises:
            InputError: the match was made without images, or b can no longer be read.
        """
        if self.image_b is None:
            raise InputError("this match was made without images: there is nothing to warp")
        source = np.asarray(read_image(self.image_b, max_pixels=max_pixels))
        width, height = self.size_a
        result = np.empty((height, width, 3), np.uint8)
        rows = max(1, _PIXELS_AT_ONCE // width)  # in strips, so that memory stays bounded for large photos
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            y, x = np.mgrid[top:bottom, 0:width]
            points = np.stack([x.ravel(), y.ravel()], axis=1)
            places = self._moved(points.astype(np.float64))
            result[top:bottom] = _sample_pixels(source, places).reshape(bottom - top, width, 3)
        return Image.fromarray(result)

    def _repr_png_(self) -> bytes | None:
        """The picture of ``cats-run`` in a notebook that shows no pages; None where there are no images to show."""
        from cats.runtime.draw import draw_match  # which imports this module

        try:
            picture = draw_match(self)
        except InputError:
            return None
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()

    def _repr_html_(self) -> str | None:
        """The match to click through in a notebook; None where there are no images to show."""
        from cats.runtime.viewer import notebook_html  # which imports this module

        try:
            return notebook_html(self)
        except InputError:
            return None

    def _moved(self, points: Floats) -> Floats:
        """Points (N, 2) of a in b, by the second look where it covers them."""
        places = transfer_points(points, self.flow, self.size_a, self.size_b)
        if self.second_look is not None:
            covered = self.second_look.covers(points)
            places[covered] = self.second_look.transfer(points[covered])
        return places

    def _inside(self, points: ArrayLike) -> Floats:
        """Points as (N, 2), refused where one lies outside image a, which spans [-0.5, W - 0.5] x [-0.5, H - 0.5]."""
        array = as_points(points)
        limit = np.asarray(self.size_a) - 0.5
        outside = np.flatnonzero(((array < -0.5) | (array > limit)).any(axis=1))
        if outside.size:
            x, y = array[outside[0]]
            width, height = self.size_a
            more = f" (and {outside.size - 1} more)" if outside.size > 1 else ""
            raise InputError(
                f"point {outside[0]} at ({x:g}, {y:g}){more} lies outside image a, which has {width}x{height} pixels"
            )
        return array


def _sample_pixels(image: NDArray[np.uint8], places: Floats) -> NDArray[np.uint8]:
    """Bilinear samples of an image (H, W, 3) at (N, 2) x, y, clamped to its border: (N, 3)."""
    height, width = image.shape[:2]
    x = np.clip(places[:, 0], 0, width - 1).astype(np.float32)
    y = np.clip(places[:, 1], 0, height - 1).astype(np.float32)
    left, top = np.minimum(x.astype(np.intp), width - 2), np.minimum(y.astype(np.intp), height - 2)
    u, v = (x - left)[:, None], (y - top)[:, None]
    pixels = image.reshape(-1, 3)
    at = top * width + left
    upper = pixels[at] * (1 - u) + pixels[at + 1] * u
    lower = pixels[at + width] * (1 - u) + pixels[at + width + 1] * u
    return (upper * (1 - v) + lower * v + np.float32(0.5)).astype(np.uint8)


def confidence_mapping(calibration: dict[str, Any] | None) -> dict[str, list[float]]:
    """Knots ``confidence``, ``probability`` and ``error_px`` out of the ``calibration`` part of a model's metadata.

    Raises:
        InputError: the model has no fitted mapping.
    """
    fit = (calibration or {}).get("confidence")
    if not fit:
        raise InputError("the confidence of this model is not calibrated: see cats fit-confidence")
    mapping: dict[str, list[float]] = fit["mapping"]
    return mapping
