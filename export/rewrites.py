"""Rewrites of single modules for deployment: each computes what the module it replaces computes, with fewer operations.

Every function works in place on a copy of the model in evaluation mode; :mod:`cats.export.graph` applies them. What
involves several modules at once (order of the level mean, layout of the cost volume) is written there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from cats.model import Attention, Mlp, MultiscaleBlock


class Linear(nn.Module):
    """``x @ weight + bias`` with the weight stored (in, out): a plain MatMul, no Transpose of a weight in the graph."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone().contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    @classmethod
    def of(cls, layer: nn.Linear) -> Linear:
        """The same map as a torch layer."""
        return cls(layer.weight.t(), layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        x = x @ self.weight
        return x if self.bias is None else x + self.bias


def fold_batch_norm(network: nn.Module, example: Tensor) -> int:
    """Fold every BatchNorm2d that reads a convolution's output into that convolution; returns how many were folded.

    Which convolution feeds which norm is found by running ``network(example)`` once, so that it does not depend on
    names. A norm with its own activation (timm's BatchNormAct2d) leaves the activation in its place.
    """
    producers: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: dict[nn.Module, nn.Conv2d] = {}

    def after_conv(module: nn.Module, _: object, output: Tensor) -> None:
        producers[id(output)] = (module, output)  # type: ignore[assignment]  # the tensor is kept, so its id is its own

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in producers:
            pairs[module] = producers[id(inputs[0])][0]

    hooks = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(before_norm))
    with torch.no_grad():
        network(example)
    for hook in hooks:
        hook.remove()
    for norm, conv in pairs.items():
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child in pairs:
                setattr(parent, name, getattr(child, "act", nn.Identity()))
    return len(pairs)


def interpolation_matrix(size: int, grid: int) -> Tensor:
    """Weights (grid, size) of bilinear interpolation along one axis with ``align_corners=True``; float32."""
    position = torch.linspace(0, size - 1, grid, dtype=torch.float64)
    return (1 - (position[:, None] - torch.arange(size, dtype=torch.float64)).abs()).clamp(min=0).float()


class Resize(nn.Module):
    """Bilinear resize with ``align_corners=True`` from a known size to (grid, grid), by one matrix on either side."""

    def __init__(self, height: int, width: int, grid: int):
        super().__init__()
        self.register_buffer("rows", interpolation_matrix(height, grid))
        self.register_buffer("columns", interpolation_matrix(width, grid).t().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, height, width) -> (B, C, grid, grid)."""
        return self.rows @ (x @ self.columns)


class Interpolate(nn.Module):
    """The same as :class:`Resize` by the framework's own operator."""

    def __init__(self, grid: int):
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, grid, grid)."""
        return F.interpolate(x, (self.grid, self.grid), mode="bilinear", align_corners=True)


class HeadAttention(nn.Module):
    """Self-attention with one weight per query, key and value and the scale folded into the query's.

    Args:
        attention: the module it replaces.
        levels: 0 for attention among the tokens of a sequence; otherwise the number L of levels, and attention runs
            among the levels of a position: the regrouping of tokens is part of the transposes that heads need anyway.
    """

    def __init__(self, attention: Attention, levels: int = 0):
        super().__init__()
        self.heads, self.levels = attention.num_heads, levels
        weight, bias = attention.qkv.weight, attention.qkv.bias
        dim = weight.shape[1]
        self.width = dim // self.heads
        factors = (self.width**-0.5, 1.0, 1.0)
        self.q, self.k, self.v = (
            Linear((w * factor).t(), b * factor)
            for w, b, factor in zip(weight.split(dim), bias.split(dim), factors, strict=True)
        )
        self.proj = Linear.of(attention.proj)

    def forward(self, x: Tensor) -> Tensor:
        """(S, T, D) -> (S, T, D)."""
        tokens, dim = x.shape[1:]
        shape: tuple[int, ...] = (-1, tokens, self.heads, self.width)
        order: tuple[int, ...] = (0, 2, 1, 3)
        key_order: tuple[int, ...] = (0, 2, 3, 1)
        back: tuple[int, ...] = (0, 2, 1, 3)
        if self.levels:
            shape = (-1, self.levels, *shape[1:])
            order, key_order, back = (0, 2, 3, 1, 4), (0, 2, 3, 4, 1), (0, 3, 1, 2, 4)
        q = self.q(x).reshape(shape).permute(order)
        k = self.k(x).reshape(shape).permute(key_order)
        v = self.v(x).reshape(shape).permute(order)
        x = ((q @ k).softmax(dim=-1) @ v).permute(back).reshape(-1, tokens, dim)
        return self.proj(x)


def split_heads(block: MultiscaleBlock, levels: int) -> None:
    """Replace both attentions of a block by :class:`HeadAttention`."""
    block.attn = HeadAttention(block.attn)
    block.attn_multiscale = HeadAttention(block.attn_multiscale, levels)


def store_transposed(module: nn.Module) -> None:
    """Replace the nn.Linear layers inside a module by :class:`Linear`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Linear.of(child))
        else:
            store_transposed(child)


def mlp_hidden(mlp: Mlp, x: Tensor) -> Tensor:
    """The first half of an MLP, up to where its second linear layer begins: (..., D) -> (..., hidden)."""
    return F.gelu(mlp.fc1(x))
