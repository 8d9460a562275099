"""Training losses: end-point error for keypoints and warps, probabilistic warp consistency for photos by category.

Flows are in cells, (B, 2, G, G), a -> b; probabilities are (B, N, N) with rows source (b) and columns target (a), as
:meth:`cats.model.CATs.probabilities` returns them, so that P(a -> b) and P(b -> c) compose to ``P_bc @ P_ab``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def endpoint_error(flow: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean Euclidean distance over the valid cells, in cells; 0 where no cell is valid.

    Args:
        flow, truth: (B, 2, G, G).
        valid: (B, G, G) bool. For keypoints, the cells of the sparse ground truth that hold one (Sec. 3.5); for warps,
            the visible cells.
    """
    distance = (flow - truth).square().sum(dim=1).clamp_min(1e-12).sqrt()
    return (distance * valid).sum() / valid.sum().clamp_min(1)


def gaussian_targets(flow: Tensor, sigma: float) -> Tensor:
    """Distribution around the true place of each cell: flow (B, 2, G, G) -> (B, N, N), columns sum to 1.

    Args:
        sigma: standard deviation in cells.
    """
    grid = flow.shape[-1]
    cells = torch.arange(grid, device=flow.device, dtype=flow.dtype)
    x = flow[:, 0] + cells[None, None, :]
    y = flow[:, 1] + cells[None, :, None]
    # Separable: the distribution over rows times the one over columns of the source.
    along_x = torch.softmax(-((cells[:, None] - x.flatten(1)[:, None]) ** 2) / (2 * sigma**2), dim=1)  # (B, G, N)
    along_y = torch.softmax(-((cells[:, None] - y.flatten(1)[:, None]) ** 2) / (2 * sigma**2), dim=1)
    return (along_y[:, :, None] * along_x[:, None]).flatten(1, 2)


def probabilistic_cross_entropy(
    probability: Tensor, flow: Tensor, visible: Tensor, *, sigma: float = 0.7, keep: float = 1.0
) -> Tensor:
    """Cross-entropy of a matching distribution with a known warp (Truong et al., CVPR 2022, Eq. 7 and 8).

    Args:
        probability: (B, N, N), columns are distributions of the warp's cells (they may sum to less than 1 where an
            unmatched state took the rest).
        flow: (B, 2, G, G) the warp in cells.
        visible: (B, G, G) bool, cells whose true place lies inside the photo and is not occluded.
        sigma: of the target distribution, in cells.
        keep: share of each pair's visible cells with the lowest loss that count. Background has no partner in another
            photo, so the composed term keeps only the part that agrees best.
    """
    loss = -(gaussian_targets(flow, sigma) * (probability + 1e-8).log()).sum(dim=1)  # (B, N)
    mask = visible.flatten(1)
    if keep < 1:
        mask = mask & _lowest(loss.detach(), mask, keep)
    return (loss * mask).sum() / mask.sum().clamp_min(1)


def _lowest(loss: Tensor, mask: Tensor, keep: float) -> Tensor:
    """Mask (B, N) of the ``keep`` share of each row's masked entries with the lowest loss."""
    ranks = loss.masked_fill(~mask, torch.inf).argsort(dim=1).argsort(dim=1)
    return ranks < (mask.sum(dim=1, keepdim=True) * keep).ceil()


def add_unmatched_state(refined: Tensor, temperature: float, score: Tensor) -> tuple[Tensor, Tensor]:
    """Matching distribution with one more state, "has no partner", whose score is learnt.

    Args:
        refined: refined correlation (B, N, N).
        score: scalar, in units of the correlation.

    Returns:
        probabilities of the N places (B, N, N), columns sum to at most 1, and of the unmatched state (B, N).
    """
    logits = refined.float() / temperature
    extra = (score.float() / temperature).expand(logits.shape[0], 1, logits.shape[2])
    probability = torch.cat([logits, extra], dim=1).softmax(dim=1)
    return probability[:, :-1], probability[:, -1]


def unmatched_loss(unmatched: Tensor) -> Tensor:
    """Binary cross-entropy that pairs of different categories have no partners; ``unmatched`` (B, N) probabilities."""
    return F.binary_cross_entropy(unmatched.clamp(1e-6, 1 - 1e-6), torch.ones_like(unmatched))


def divergence_from_even(logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of matching distributions from the even one, mean over cells; 0 where all are even.

    Args:
        logits: (B, N, N), columns become distributions over the source.
    """
    return (-logits.float().log_softmax(dim=1).mean(dim=1) - math.log(logits.shape[1])).mean()
