"""Starting points of training: what the aggregator computes before the first update."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cats.core.errors import InputError
from cats.model import CATs

STARTS = ("random", "zero", "consensus", "checkpoint")
_NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0))  # (y, x) in cells, one per head


def start_as_consensus(model: CATs, *, gain: float = 0.5, weight: float = 0.05, sharpness: float = 5.0) -> None:
    """Let the untrained aggregator average every match with those of its neighbours, in place.

    If a position matches another, their left neighbours should match too (neighbourhood consensus, Rocco et al.,
    NeurIPS 2018). Four heads of every intra-correlation attention look at one neighbour each, by positional embedding
    alone: they read the low spatial frequencies of the neighbour's row of the cost volume and add them moved back by
    one cell; the output projection hands the rows through. All other branches start at zero, and the appearance small,
    as LayerNorm divides by the whole token. Unlike with a projection of zeros, gradients reach every layer at the first
    update, and the flow already lies between cells instead of on them.

    Args:
        model: any with appearance; its other weights as :class:`cats.model.CATs` draws them.
        gain: of the aggregated rows beside the correlation itself.
        weight: of one neighbour's row (divided by the token's standard deviation) beside a position's own.
        sharpness: of the attention on the neighbour.

    Raises:
        InputError: too few heads or channels for the positional code.
    """
    config, decoder = model.config, model.decoder
    grid, dim, cells = config.feature_size, config.embed_dim, config.feature_size**2
    width = dim // config.num_heads
    fits = config.appearance and grid <= config.projection_dim <= cells
    if not fits or config.num_heads < len(_NEIGHBOURS) or width < 2 * grid:
        raise InputError(
            f"start=consensus needs appearance=true, projection_dim from {grid} to {cells}, at least "
            f"{len(_NEIGHBOURS)} heads, and {2 * grid} channels in each; the model has projection_dim "
            f"{config.projection_dim} and {config.num_heads} heads of {width}. Change these, or use start=zero"
        )
    with torch.no_grad():
        code_x, code_y = _positional_codes(grid, dim)
        decoder.pos_embed_x.copy_(code_x[: dim // 2].T.reshape(1, 1, 1, grid, -1))
        decoder.pos_embed_y.copy_(code_y[dim // 2 :].T.reshape(1, 1, grid, 1, -1))
        for layer in model.proj:
            layer.weight.mul_(0.1)
            layer.weight[:grid] = 0  # these channels carry the code of y
            layer.bias[:grid] = 0
        rows = torch.eye(cells, dim) - code_x[:cells] @ code_x.T  # token -> row of the cost volume, without the code
        low = _modes(grid, grid)[:width]
        decoder.proj.weight.copy_(gain * rows)
        decoder.proj.bias.zero_()
        for block in decoder.blocks:
            for branch in (block.attn.proj, block.attn_multiscale.proj, block.mlp.fc2, block.mlp2.fc2):
                nn.init.zeros_(branch.weight)
                nn.init.zeros_(branch.bias)
            query, key, value = block.attn.qkv.weight.chunk(3)
            for head, (dy, dx) in enumerate(_NEIGHBOURS):
                channels = slice(head * width, (head + 1) * width)
                for part in (query, key):
                    part[channels] = 0
                query[channels][:grid] = sharpness * _moved(grid, dx) @ code_x.T
                query[channels][grid : 2 * grid] = sharpness * _moved(grid, dy) @ code_y.T
                key[channels][:grid] = code_x.T
                key[channels][grid : 2 * grid] = code_y.T
                value[channels] = low @ rows
                block.attn.proj.weight[:cells, channels] = weight * _shifted(low, grid, dy, dx).T


def _modes(height: int, width: int) -> Tensor:
    """Orthonormal 2-D cosine modes (height * width, height * width), one per row, low frequencies first."""
    vertical, horizontal = _cosines(height), _cosines(width)
    order = sorted(
        ((y / height) ** 2 + (x / width) ** 2, y, x) for y in range(height) for x in range(width)
    )  # ties by y, so that the order is the same everywhere
    return torch.stack([torch.outer(vertical[y], horizontal[x]).flatten() for _, y, x in order])


def _cosines(n: int) -> Tensor:
    """Orthonormal DCT-II basis (n, n), one mode per row."""
    at = torch.arange(n)
    basis = torch.cos(math.pi / n * at[:, None] * (at[None, :] + 0.5)) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis


def _positional_codes(grid: int, dim: int) -> tuple[Tensor, Tensor]:
    """Orthonormal codes (D, G) of x and y in the halves of the token that the positional embedding gives them.

    The first half holds nothing but correlations: x takes their highest frequencies, which carry the least. The second
    half ends with the appearance, whose first G channels are left to y.
    """
    rows = dim // 2 // grid
    code_x, code_y = torch.zeros(dim, grid), torch.zeros(dim, grid)
    code_x[: rows * grid] = _modes(rows, grid)[-grid:].T
    code_y[grid**2 : grid**2 + grid] = torch.eye(grid)
    return code_x, code_y


def _moved(grid: int, by: int) -> Tensor:
    """(G, G): code of a coordinate -> code of the coordinate ``by`` further, the border staying where it is."""
    move = torch.zeros(grid, grid)
    at = torch.arange(grid)
    move[(at + by).clamp(0, grid - 1), at] = 1
    return move


def _shifted(modes: Tensor, grid: int, dy: int, dx: int) -> Tensor:
    """Rows of images (n, G * G) with the value at (y + dy, x + dx) at (y, x), zeros from outside."""
    image = modes.view(-1, grid, grid)
    y, x = torch.arange(grid) + dy, torch.arange(grid) + dx
    inside = ((y >= 0) & (y < grid))[:, None] & ((x >= 0) & (x < grid))[None]
    return (image[:, y.clamp(0, grid - 1)][:, :, x.clamp(0, grid - 1)] * inside).flatten(1)
