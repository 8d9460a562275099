"""The correlation of all levels with its mutual filter: features of both images in, filtered cost volume out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cats.model import l2_normalise, mutual_filter


def correlation(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Eager definition of ``cats::Correlation``.

    Cosine similarity of all pairs of positions (Sec. 3.2 of the paper), of which the L2 norm (``eps`` 1e-6 under the
    root) is applied as a scale of the product, and the soft mutual nearest neighbour filter, whose maxima of exactly 0
    count as 1e-30.

    Args:
        a, b: one (B, C_l, N) float32 per level.

    Returns:
        (B, L, N, N) float32, rows a, columns b.
    """
    levels = []
    for x, y in zip(a, b, strict=True):
        levels.append((x.transpose(1, 2) @ y) * inverse_norm(x).transpose(1, 2) * inverse_norm(y))
    corr = torch.stack(levels, dim=1)
    return corr * (corr * inverse_maximum(corr, -1)) * (corr * inverse_maximum(corr, -2))


def inverse_norm(x: Tensor) -> Tensor:
    """``1 / sqrt(sum over C of x^2 + 1e-6)``: (B, C, N) -> (B, 1, N)."""
    return (x.square().sum(dim=1, keepdim=True) + 1e-6).sqrt().reciprocal()


def inverse_maximum(corr: Tensor, dim: int) -> Tensor:
    """Inverse of the maximum over an axis, of 1e-30 where the maximum is exactly 0."""
    maximum = corr.amax(dim=dim, keepdim=True)
    return torch.where(maximum == 0, 1e-30, maximum).reciprocal()


class Correlation(nn.Module):
    """``cats::Correlation`` as a module; with ``scaled`` false, element by element as :mod:`cats.model` writes it."""

    def __init__(self, scaled: bool = True):
        super().__init__()
        self.scaled = scaled

    def forward(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Two lists of (B, C_l, N) to (B, L, N, N), rows a, columns b."""
        if self.scaled:
            return correlation(a, b)
        levels = [l2_normalise(x).transpose(1, 2) @ l2_normalise(y) for x, y in zip(a, b, strict=True)]
        return mutual_filter(torch.stack(levels, dim=1))
