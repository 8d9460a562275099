"""COTR in the setting of CATs: the baseline of the paper's Table 3, on one pair of feature maps, without zooming in.

Jiang et al., "COTR: Correspondence Transformer for Matching Across Images", ICCV 2021 (arXiv 2103.14167), written from
the paper; sections below are that paper's. The two feature maps lie side by side as if they were one image, a
transformer encoder attends over both, and each cell of a asks its output where it lies in b. There is no correlation.

Symbols as in :mod:`cats.model`: B batch, G grid side, N = G * G positions of one image, D = ``projection_dim`` width of
the tokens. Places are points of the *frame* that holds both images: x 0..0.5 in a, 0.5..1 in b, y 0..1. As everywhere
outside :mod:`cats.model`, a = target and b = source.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cats.backbones import HyperpixelBackbone
from cats.core.errors import InputError
from cats.model import CATsConfig

DROPOUT = 0.1
HEAD_START = 0.02
"""Factor on the Xavier start of the head's last layer. As drawn, it scatters places by more than the frame's width, 314
pixels from the truth of random warps, and all of a short training goes into coming back."""


def encode_places(places: Tensor, dim: int) -> Tensor:
    """Sines and cosines of places (..., 2) at the linear frequencies k pi, k = 1..dim / 4 (Sec. 3.3): (..., dim)."""
    angles = places[..., None] * (math.pi * torch.arange(1, dim // 4 + 1, device=places.device))
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def cell_places(grid: int) -> Tensor:
    """Places of the cells' centres, those of a, then those of b, row by row: (2 N, 2)."""
    middle = (torch.arange(grid) + 0.5) / grid
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    a = torch.stack([x / 2, y], dim=-1).flatten(0, 1)
    return torch.cat([a, a + torch.tensor([0.5, 0.0])])


class Attention(nn.Module):
    """Multi-head attention of queries over other tokens; ``weights_of`` gives its mean weights over the heads too."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Q, D), (B, K, D), (B, K, D) to (B, Q, D) and the mean weights of the heads (B, Q, K)."""
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.q, query), (self.k, key), (self.v, value))
        )
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2)), weights.mean(dim=1)


class Layer(nn.Module):
    """Attention and feed-forward with a LayerNorm after each (post-norm) and dropout; of the encoder, whose tokens ask
    themselves, and of the decoder, whose queries ask the encoder's output and not each other (Sec. 3.2)."""

    def __init__(self, config: CATsConfig):
        super().__init__()
        dim, hidden = config.projection_dim, int(config.projection_dim * config.mlp_ratio)
        self.attn = Attention(dim, config.num_heads)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Residual stream (B, Q, D) with what its attention reads, to (B, Q, D) and the attention's mean weights."""
        attended, weights = self.attn(query, key, value)
        x = self.norm1(x + self.dropout(attended))
        x = self.norm2(x + self.dropout(self.fc2(self.dropout(F.relu(self.fc1(x))))))
        return x, weights


class Head(nn.Module):
    """Three linear layers: token (..., D) to a place (..., 2)."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., 2)."""
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class COTR(nn.Module):
    """The full model, with the interface of :class:`cats.model.CATs`.

    Args:
        config: structure, ``architecture="cotr"``; ``depth`` layers each in encoder and decoder.
        backbone_weights: see :func:`cats.backbones.load_pretrained`; ``None`` leaves the backbone random.
        zero_start: must be off: there is no correlation to start from.

    Raises:
        InputError: ``zero_start``.
    """

    def __init__(
        self, config: CATsConfig, *, backbone_weights: str | Path | None = None, zero_start: bool = False
    ) -> None:
        super().__init__()
        if zero_start:
            raise InputError("architecture cotr has no correlation that an aggregator of zeros would hand through")
        self.config = config
        self.feature_extraction = HyperpixelBackbone(
            config.backbone, config.hyperpixels, config.image_size, backbone_weights
        )
        dim = config.projection_dim
        self.proj = nn.Linear(self.feature_extraction.channels[0], dim)
        self.encoder_layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.decoder_layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim)
        self.head = Head(dim)
        places = cell_places(config.feature_size)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("positions", encode_places(places, dim), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and not name.startswith("feature_extraction."):
                nn.init.xavier_uniform_(parameter)
        with torch.no_grad():  # everything begins near the middle of b
            self.head.fc3.weight.mul_(HEAD_START)
            self.head.fc3.bias.copy_(torch.tensor([0.75, 0.5]))

    def features(self, image: Tensor) -> list[Tensor]:
        """Normalised image (B, 3, S, S) -> one map (B, C, G, G)."""
        size = (self.config.feature_size, self.config.feature_size)
        return [F.interpolate(x, size, mode="bilinear", align_corners=True) for x in self.feature_extraction(image)]

    def encode_pair(self, target: list[Tensor], source: list[Tensor]) -> Tensor:
        """Features of two images to the memory (B, 2 N, D) that queries ask: those of the target, then the source's."""
        maps = torch.cat([target[0].flatten(2), source[0].flatten(2)], dim=-1)
        x = self.proj(maps.transpose(1, 2))
        for layer in self.encoder_layers:
            placed = x + self.positions
            x, _ = layer(x, placed, placed, x)
        return x

    def locate(self, memory: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Where the points of one image lie in the other.

        Args:
            memory: (B, 2 N, D) of :meth:`encode_pair`.
            query: encoded places (B, Q, D) of :func:`encode_places`.

        Returns:
            places (B, Q, 2) float32, and the last layer's attention (B, Q, 2 N), mean of its heads.
        """
        x, key = torch.zeros_like(query), memory + self.positions
        weights = x
        for layer in self.decoder_layers:
            x, weights = layer(x, x + query, key, memory)
        with torch.autocast(memory.device.type, enabled=False):
            return self.head(self.norm(x.float())), weights.float()

    def match_encoded(self, target: list[Tensor], source: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Flow (B, 2, G, G) in cells and confidence (B, G, G) from the features of two images."""
        memory = self.encode_pair(target, source)
        cells = self.config.feature_size**2
        query = self.positions[:cells].expand(len(memory), -1, -1).to(memory.dtype)
        places, weights = self.locate(memory, query)
        grid = self.config.feature_size
        moved = (places - self.places[:cells] - self.places.new_tensor([0.5, 0.0])) * grid
        flow = (moved * moved.new_tensor([2.0, 1.0])).transpose(1, 2).unflatten(2, (grid, grid))
        return flow, self.confidence(weights[..., cells:]).unflatten(1, (grid, grid))

    def confidence(self, weights: Tensor) -> Tensor:
        """``exp(-(var_x + var_y) / 2)`` with the variances, in cells, of where (B, Q, N) attention falls: (B, Q)."""
        grid = self.config.feature_size
        p = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-9)
        at = self.places[: grid**2] * self.places.new_tensor([2.0 * grid, grid])  # (N, 2) cells
        mean, square = p @ at, p @ at.square()
        return torch.exp(-(square - mean.square()).clamp_min(0).sum(dim=-1) / 2)

    def cycle_error(self, target: list[Tensor], source: list[Tensor], flow: Tensor) -> Tensor:
        """How far each cell of the target lies from where its match is found again, in cells: (B, G, G) (Sec. 3.4)."""
        grid, cells = self.config.feature_size, self.config.feature_size**2
        scale = self.places.new_tensor([2.0 * grid, grid])
        there = self.places[cells:] + flow.flatten(2).transpose(1, 2).float() / scale
        memory = self.encode_pair(target, source)
        back, _ = self.locate(memory, encode_places(there, self.config.projection_dim).to(memory.dtype))
        error = (back - self.places[:cells]) * scale
        return error.square().sum(dim=-1).clamp_min(1e-12).sqrt().unflatten(1, (grid, grid))

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """Flow (B, 2, G, G) in cells, target -> source, of two normalised image batches (B, 3, S, S)."""
        return self.match(target, source)[0]

    def match(self, target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Flow and confidence, see :meth:`match_encoded`."""
        return self.match_encoded(self.features(target), self.features(source))
