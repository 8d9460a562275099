"""Rewrites of single modules for deployment: each computes what the module it replaces computes, with fewer operations.

Functions work in place on a copy of the model in evaluation mode; :mod:`cats.export.graph.deployment` applies them.
What involves several modules at once (order of the level mean, layout of the cost volume) is written there, blocks of
the aggregator in :mod:`cats.export.graph.blocks`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


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


def fold_batch_norm(network: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """Fold every BatchNorm2d that reads a convolution's output into that convolution.

    Which convolution feeds which norm is found by running ``network(example)`` once, so that it does not depend on
    names. A norm with its own activation (timm's BatchNormAct2d) leaves the activation in its place.

    Returns:
        By name of a convolution's weight, the factor of each output channel that the weight was multiplied by.
    """
    convolutions = _convolutions_before_norms(network, example)
    names = {module: name for name, module in network.named_modules()}
    factors = {}
    for norm, conv in convolutions.items():
        factors[f"{names[conv]}.weight"] = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child in convolutions:
                setattr(parent, name, getattr(child, "act", nn.Identity()))
    return factors


def _convolutions_before_norms(network: nn.Module, example: Tensor) -> dict[nn.BatchNorm2d, nn.Conv2d]:
    producers: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    found: dict[nn.BatchNorm2d, nn.Conv2d] = {}

    def after_conv(module: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        producers[id(output)] = (module, output)  # the tensor is kept, so that its id stays its own

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        if id(inputs[0]) in producers:
            found[module] = producers[id(inputs[0])][0]

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
    return found


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


def store_transposed(module: nn.Module) -> None:
    """Replace the nn.Linear layers inside a module by :class:`Linear`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Linear.of(child))
        else:
            store_transposed(child)
