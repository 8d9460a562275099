"""Raw pixels in, points out: pre-processing and keypoint transfer around the pair graph.

The resize is Pillow's antialiased bilinear filter, bit by bit: products with matrices that the graph computes from the
size of the image, in Pillow's fixed point, because an image scaled by a simple ratio is full of exact halves that
floating point rounds otherwise. The keypoint transfer is :func:`cats.core.geometry.transfer_points` by GridSample.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cats.export.graph.deployment import DeploymentOptions, PairGraph
from cats.model import CATs

_BITS = 22  # of Pillow's fixed-point weights
_HALF_BITS = _BITS // 2


def resampling_weights(size: int, out: int) -> tuple[Tensor, Tensor]:
    """Pillow's bilinear weights along one axis, in its fixed point: upper and lower 11 bits, (out, size) float32 each.

    A triangle as wide as the scale (at least one pixel to each side), every row summing to one. In units of
    ``1 / (2 out)`` pixel all distances are whole numbers, so that integer arithmetic gives Pillow's weights exactly.
    The quotient is worked out in two steps of 11 bits, as on paper: up to 8190 pixels a side no number needs more than
    32 bits, which are all that OpenVINO has.

    Args:
        size: pixels of the image, may be symbolic.
        out: pixels of the result.
    """
    pixel = torch.arange(size)
    width = (pixel[-1] + 1).clamp(min=out) * 2
    centre = (2 * torch.arange(out) + 1) * (pixel[-1] + 1)
    distance = 2 * out * pixel[None] + out - centre[:, None]
    triangle = (width - torch.maximum(distance, -distance)).clamp(min=0)
    total = triangle.sum(dim=1, keepdim=True)
    half = 2**_HALF_BITS
    upper, rest = _divide(triangle * half, total)
    lower, rest = _divide(rest * half, total)
    lower = lower + (2 * rest >= total).to(lower.dtype)  # rounded half up
    carry = (lower == half).to(lower.dtype)
    return (upper + carry).float(), (lower - carry * half).float()


def _divide(dividend: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor]:
    """Quotient, of up to 12 bits, and remainder of whole numbers from 0 on, of up to 31 bits.

    Divided in float32, as some runtimes divide whole numbers; a quotient that is off by one is seen by its remainder.
    """
    quotient = (dividend.float() / divisor.float()).floor().to(dividend.dtype)
    over = (dividend - quotient * divisor < 0).to(dividend.dtype)
    quotient = quotient - over
    under = (dividend - quotient * divisor >= divisor).to(dividend.dtype)
    quotient = quotient + under
    return quotient, dividend - quotient * divisor


def _whole(upper: Tensor, lower: Tensor) -> Tensor:
    """Grey levels from the sums over upper and lower halves of the weights, rounded half up as Pillow does; exact in
    float32 for scales up to 16."""
    half = 2**_HALF_BITS
    return ((upper + (lower / half).floor() + half / 2) / half).floor()


class Preprocess(nn.Module):
    """:func:`cats.core.images.preprocess` in the graph."""

    def __init__(self, model: CATs):
        super().__init__()
        values = model.config.preprocessing
        self.size = values.size  # (width, height)
        mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (values.mean, values.std))
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("offset", (mean / std).float())

    def resize(self, image: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to (B, 3, height, width) float32, whole grey levels."""
        width, height = self.size
        pixels = image.float().permute(0, 3, 1, 2)
        upper, lower = resampling_weights(image.shape[2], width)
        pixels = _whole(pixels @ upper.t(), pixels @ lower.t())
        upper, lower = resampling_weights(image.shape[1], height)
        return _whole(upper @ pixels, lower @ pixels)

    def forward(self, image: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to the normalised model input (B, 3, height, width)."""
        return self.resize(image) * self.scale - self.offset


class Transfer(nn.Module):
    """Points of a to b by the flow, and the confidence there; see :func:`cats.core.geometry.transfer_points`."""

    def __init__(self, grid: int):
        super().__init__()
        self.grid = grid

    def forward(
        self, points: Tensor, flow: Tensor, confidence: Tensor, image_a: Tensor, image_b: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Points (B, K, 2) in pixels of a to points (B, K, 2) in pixels of b and confidences (B, K)."""
        size_a, size_b = _size(image_a), _size(image_b)
        place = (points + 0.5) / size_a  # 0..1 over the image
        at = (place * 2 - 1)[:, :, None]
        maps = torch.cat([flow, confidence[:, None]], dim=1)
        sampled = F.grid_sample(maps, at, mode="bilinear", padding_mode="border", align_corners=False)
        sampled = sampled[..., 0].transpose(1, 2)  # (B, K, 3)
        moved = (place + sampled[..., :2] / self.grid) * size_b - 0.5
        return moved, sampled[..., 2]


def _size(image: Tensor) -> Tensor:
    """(width, height) of (B, H, W, 3) as float32 (2,)."""
    return torch.stack([torch.arange(image.shape[axis])[-1] + 1 for axis in (2, 1)]).float()


class EndToEndGraph(nn.Module):
    """Two uint8 images of any size and points of a, to points of b with confidences, flow and confidence."""

    def __init__(self, model: CATs, options: DeploymentOptions | None = None):
        super().__init__()
        self.preprocess = Preprocess(model)
        self.pair = PairGraph(model, options)
        self.transfer = Transfer(model.config.feature_size)

    def forward(self, image_a: Tensor, image_b: Tensor, points_a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images (B, H, W, 3) uint8 RGB, each of its own size, and points (B, K, 2) float32 in pixels of a.

        Returns:
            points (B, K, 2) in pixels of b, their confidences (B, K), flow (B, 2, G, G) in cells, confidence (B, G, G).
        """
        flow, confidence = self.pair(self.preprocess(image_a), self.preprocess(image_b))
        points_b, points_confidence = self.transfer(points_a, flow, confidence, image_a, image_b)
        return points_b, points_confidence, flow, confidence
