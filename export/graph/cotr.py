"""The deployment graph of :class:`cats.cotr.COTR` after its backbone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cats.cotr import COTR, Layer
from cats.export.graph import rewrites


class AddPosition(nn.Module):
    """Tokens with the encoded places of their cells added; stays in float32, as sums of many sines do."""

    def __init__(self, table: Tensor):
        super().__init__()
        self.register_buffer("table", table.detach().float().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return x + self.table


class LayerGraph(nn.Module):
    """:class:`cats.cotr.Layer` with plain products, the scale of attention in the weight of the query."""

    def __init__(self, layer: Layer):
        super().__init__()
        attention = layer.attn
        self.heads = attention.num_heads
        scale = (attention.q.out_features // self.heads) ** -0.5
        self.q = rewrites.Linear(attention.q.weight.t() * scale, attention.q.bias * scale)
        self.k, self.v, self.proj = (rewrites.Linear.of(x) for x in (attention.k, attention.v, attention.proj))
        self.fc1, self.fc2 = rewrites.Linear.of(layer.fc1), rewrites.Linear.of(layer.fc2)
        self.norm1, self.norm2 = layer.norm1, layer.norm2

    def forward(self, x: Tensor | None, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As :class:`cats.cotr.Layer`, with the weights of each head (B, heads, Q, K); ``x`` None stands for zeros."""
        q, k, v = (
            layer(tokens).reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)
            for layer, tokens in ((self.q, query), (self.k, key), (self.v, value))
        )
        weights = (q @ k.transpose(-1, -2)).softmax(dim=-1)
        attended = self.proj((weights @ v).transpose(1, 2).flatten(2))
        x = self.norm1(attended if x is None else x + attended)
        return self.norm2(x + self.fc2(F.relu(self.fc1(x)))), weights


class FlowHead(nn.Module):
    """The last norm and the MLP, and from places to flow; stays in float32."""

    def __init__(self, model: COTR):
        super().__init__()
        self.grid = model.config.feature_size
        cells = self.grid**2
        self.norm = model.norm
        self.fc1, self.fc2 = rewrites.Linear.of(model.head.fc1), rewrites.Linear.of(model.head.fc2)
        # In cells of b, from the cell of a: the frame is 2 G cells wide and G high.
        scale = torch.tensor([2.0 * self.grid, self.grid])
        last = model.head.fc3
        self.fc3 = rewrites.Linear(last.weight.t() * scale, last.bias * scale)
        own = (model.places[:cells] + torch.tensor([0.5, 0.0])) * scale
        self.register_buffer("own", own)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to flow (B, 2, G, G) in cells."""
        places = self.fc3(F.relu(self.fc2(F.relu(self.fc1(self.norm(x))))))
        return (places - self.own).transpose(1, 2).reshape(-1, 2, self.grid, self.grid)


class Spread(nn.Module):
    """How far attention over b is spread; see :meth:`cats.cotr.COTR.confidence`. Stays in float32."""

    def __init__(self, model: COTR):
        super().__init__()
        self.grid = model.config.feature_size
        cells = self.grid**2
        # Relative to the middle of the grid, where squares are smallest.
        at = (model.places[:cells] - torch.tensor([0.25, 0.5])) * torch.tensor([2.0 * self.grid, self.grid])
        ones = torch.ones(cells, 1)
        self.register_buffer("moments", torch.cat([at, at.square().sum(dim=1, keepdim=True), ones], dim=1))

    def forward(self, weights: Tensor) -> Tensor:
        """(B, heads, N, 2 N) to confidence (B, G, G)."""
        over_b = weights.mean(dim=1)[..., self.grid**2 :] @ self.moments
        mass = over_b[..., 3:].clamp(min=1e-9)
        mean, square = over_b[..., :2] / mass, over_b[..., 2] / mass[..., 0]
        variance = (square - mean.square().sum(dim=-1)).clamp(min=0)
        return torch.exp(-variance / 2).reshape(-1, self.grid, self.grid)


class CotrMatcherGraph(nn.Module):
    """Features of two images to flow and confidence."""

    def __init__(self, model: COTR):
        super().__init__()
        self.config = model.config
        cells = self.config.feature_size**2
        self.proj = rewrites.Linear.of(model.proj)
        self.positions = AddPosition(model.positions)
        self.register_buffer("query", model.positions[None, :cells].clone())
        self.query_positions = AddPosition(model.positions[:cells])
        self.encoder_layers = nn.ModuleList(map(LayerGraph, model.encoder_layers))
        self.decoder_layers = nn.ModuleList(map(LayerGraph, model.decoder_layers))
        self.head = FlowHead(model)
        self.spread = Spread(model)

    def forward(self, a: list[Tensor], b: list[Tensor], *_: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features (B, C, N) of each image to flow (B, 2, G, G) in cells and confidence (B, G, G)."""
        x = self.proj(torch.cat([a[0], b[0]], dim=-1).transpose(1, 2))
        for layer in self.encoder_layers:
            placed = self.positions(x)
            x, _weights = layer(x, placed, placed, x)
        key = self.positions(x)
        found, weights = self.decoder_layers[0](None, self.query, key, x)
        for layer in list(self.decoder_layers)[1:]:
            found, weights = layer(found, self.query_positions(found), key, x)
        return self.head(found), self.spread(weights)
