"""Winograd's minimal filtering for 3x3 convolutions, in operators that every inference library has.

F(4, 3) along the rows of a map: four neighbouring outputs take 6 multiplications instead of 12 (Lavin and Gray, *Fast
Algorithms for Convolutional Neural Networks*, 2016, section 4.1). Only one axis: with both the products would be halved
once more, but would wait for four times the weights to come from memory. The transforms along a row are products with
constant matrices, which hold the padding and the tiling too; between them stands a grouped convolution, one group for
each of the 6 points. On a CPU this is faster than what ONNX Runtime and OpenVINO do with the convolution itself; GPU
libraries choose such algorithms on their own.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

TILE = 4
"""Outputs of a tile; a tile reads and multiplies ``TILE + 2`` values."""

MIN_CHANNELS = 128
"""With 64 the transforms take as long as they save."""

_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0)  # and infinity


class WinogradConv2d(nn.Module):
    """A convolution of :func:`applies` for maps of one width: (B, C, H, W) to (B, D, H, W).

    Args:
        conv: is not changed.
        width: W, in cells.

    Attributes:
        weight: (3, D, C, 3): the convolution's with its last axis, along which the transform works, first.
    """

    def __init__(self, conv: nn.Conv2d, width: int):
        super().__init__()
        outputs, weights, inputs = (torch.from_numpy(matrix) for matrix in transforms())
        self.tiles = -(-width // TILE)
        # Row t * n + p: value p of tile t, from the cells of a row; and the cells of a row from those of all tiles.
        into = torch.zeros(self.tiles, len(weights), width, dtype=torch.float64)
        out = torch.zeros(width, self.tiles, len(weights), dtype=torch.float64)
        for tile in range(self.tiles):
            for offset in range(len(weights)):
                cell = tile * TILE + offset - 1
                if 0 <= cell < width:
                    into[tile, :, cell] = inputs[:, offset]
            for offset in range(min(TILE, width - tile * TILE)):
                out[tile * TILE + offset, tile] = outputs[offset]
        weight = conv.weight.detach().permute(3, 0, 1, 2).contiguous()  # columns of the filter first
        self.weight = nn.Parameter(weight, requires_grad=False)
        # Some values that the output transform takes to one in each cell, so that the convolution can add the bias.
        ones = torch.linalg.lstsq(outputs, torch.ones(TILE, 1, dtype=torch.float64)).solution
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.register_buffer("bias", (ones * bias).flatten().float())
        self.register_buffer("into", into.flatten(0, 1).float())
        self.register_buffer("points", weights.float())
        self.register_buffer("out", out.flatten(1).float())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H, W)."""
        height = x.shape[2]
        d, c = self.weight.shape[1:3]
        points = len(self.points)
        # Libraries compute this when they load the file, in which the weight is as small as it was.
        weight = (self.points @ self.weight.reshape(3, -1)).reshape(points * d, c, 1, 3)
        x = self.into @ x.permute(0, 2, 3, 1)
        # Rows and tiles as one axis, along which the rows above and below are as many cells away as there are tiles.
        x = x.reshape(-1, 1, height * self.tiles, points * c).permute(0, 3, 1, 2)
        x = F.conv2d(x, weight, self.bias, padding=(0, self.tiles), dilation=(1, self.tiles), groups=points)
        x = x.permute(0, 2, 3, 1).reshape(-1, height, self.tiles * points, d)
        return (self.out @ x).permute(0, 3, 1, 2)


def transforms() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Matrices A^T (4, 6), G (6, 3) and B^T (6, 6) of F(4, 3): the four correlations of six values d with a filter g of
    three are ``A^T ((G g) * (B^T d))``.

    A^T and G evaluate polynomials at the points; B^T is what is then left. Its rows are scaled to a largest entry of 1,
    G's against it, so that what is rounded is about as large as the map itself.
    """
    size, taps = TILE + 2, 3
    outputs, weights = (np.vstack([np.vander(_POINTS, n, increasing=True), np.eye(n)[-1:]]) for n in (TILE, taps))
    system = np.einsum("pi,pk->ikp", outputs, weights).reshape(-1, size)
    wanted = np.stack([np.eye(size)[i + k] for i in range(TILE) for k in range(taps)])
    inputs = np.linalg.lstsq(system, wanted, rcond=None)[0]
    scale = np.abs(inputs).max(axis=1, keepdims=True)
    return outputs.T.copy(), weights * scale, inputs / scale


def applies(conv: nn.Conv2d) -> bool:
    """Whether a convolution is one that gets faster."""
    square = conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.padding_mode == "zeros"
    plain = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.groups == 1
    return square and plain and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS


def use_winograd(network: nn.Module, example: Tensor) -> list[str]:
    """Replace every convolution of :func:`applies` in place.

    Args:
        example: input of the network, from which the widths of the maps are known.

    Returns:
        Names of the replaced modules; none where the network has no such convolution.
    """
    widths: dict[nn.Module, int] = {}

    def note_width(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        widths[module] = inputs[0].shape[-1]

    found = {name: conv for name, conv in network.named_modules() if isinstance(conv, nn.Conv2d) and applies(conv)}
    hooks = [conv.register_forward_pre_hook(note_width) for conv in found.values()]
    with torch.no_grad():
        network(example)
    for hook in hooks:
        hook.remove()
    replaced = []
    for name, conv in found.items():
        if conv in widths:  # a layer that the network never reaches keeps its convolution
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, WinogradConv2d(conv, widths[conv]))
            replaced.append(name)
    return replaced
