"""The aggregator's blocks for deployment; see :class:`cats.model.MultiscaleBlock`.

Every kind maps the tokens x (B * L, N, D) to the residual stream and its last norm, ``(x, norm2(x))``; the block's last
MLP follows in :mod:`cats.export.graph.deployment`, which may take the mean over the levels inside it.
"""

from __future__ import annotations

from torch import Tensor, nn

from cats.export.graph.rewrites import Linear, store_transposed
from cats.model import Attention, MultiscaleBlock


def make_block(block: MultiscaleBlock, levels: int, *, split_heads: bool) -> nn.Module:
    """A block for deployment, with the weights of ``block`` (which it takes over).

    Args:
        levels: L.
        split_heads: see :class:`cats.export.graph.deployment.DeploymentOptions`.
    """
    kind = Block if split_heads else PublishedBlock
    result = kind(block, levels)
    store_transposed(result)
    return result


class PublishedBlock(nn.Module):
    """As :mod:`cats.model` writes it."""

    def __init__(self, block: MultiscaleBlock, levels: int):
        super().__init__()
        self.levels = levels
        self.norm1, self.attn = block.norm1, block.attn
        self.norm2, self.mlp = block.norm2, block.mlp
        if levels > 1:
            self.norm4, self.mlp2 = block.norm4, block.mlp2
            self.norm3, self.attn_multiscale = block.norm3, block.attn_multiscale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B * L, N, D) to two of that shape: the residual stream, and its last norm."""
        x = x + self.attn(self.norm1(x))
        if self.levels > 1:
            x = x + self.mlp2(self.norm4(x))
            x = self.attend_levels(x)
        return x, self.norm2(x)

    def attend_levels(self, x: Tensor) -> Tensor:
        """Attention among the levels of each position, with its residual."""
        positions, dim = x.shape[1:]
        x = x.reshape(-1, self.levels, positions, dim).transpose(1, 2).reshape(-1, self.levels, dim)
        x = x + self.attn_multiscale(self.norm3(x))
        return x.reshape(-1, positions, self.levels, dim).transpose(1, 2).reshape(-1, positions, dim)


class Block(PublishedBlock):
    """With :class:`HeadAttention`."""

    def __init__(self, block: MultiscaleBlock, levels: int):
        super().__init__(block, levels)
        self.attn = HeadAttention(block.attn)
        if levels > 1:
            self.attn_multiscale = HeadAttention(block.attn_multiscale, levels)

    def attend_levels(self, x: Tensor) -> Tensor:
        """As in the published block."""
        return x + self.attn_multiscale(self.norm3(x))


class HeadAttention(nn.Module):
    """Self-attention with one weight per query, key and value and the scale folded into the query's.

    Only the query has a bias: the key's adds the same to all scores of a query, which the softmax takes away, and the
    value's, whose weights sum to one, is part of the bias of the output projection.

    Args:
        attention: the module it replaces.
        levels: 0 for attention among the tokens of a sequence; otherwise the number L of levels, and attention runs
            among the levels of a position: the regrouping of tokens is part of the transposes that heads need anyway.
    """

    def __init__(self, attention: Attention, levels: int = 0):
        super().__init__()
        self.heads, self.levels = attention.num_heads, levels
        q, k, v = attention.qkv.weight.detach().chunk(3)
        q_bias, _, v_bias = attention.qkv.bias.detach().chunk(3)
        self.width = len(q) // self.heads
        scale = self.width**-0.5
        self.q, self.k, self.v = Linear(q.t() * scale, q_bias * scale), Linear(k.t(), None), Linear(v.t(), None)
        weight, bias = attention.proj.weight.detach(), attention.proj.bias.detach()
        self.proj = Linear(weight.t(), bias + weight @ v_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(S, T, D) -> (S, T, D)."""
        tokens, dim = x.shape[1:]
        shape: tuple[int, ...] = (-1, tokens, self.heads, self.width)
        order: tuple[int, ...] = (0, 2, 1, 3)
        back: tuple[int, ...] = (0, 2, 1, 3)
        if self.levels:
            shape = (-1, self.levels, *shape[1:])
            order, back = (0, 2, 3, 1, 4), (0, 3, 1, 2, 4)
        q, k, v = (layer(x).reshape(shape).permute(order) for layer in (self.q, self.k, self.v))
        # Keys are turned by themselves, so that ONNX Runtime leaves that to the product.
        x = ((q @ k.transpose(-1, -2)).softmax(dim=-1) @ v).permute(back).reshape(-1, tokens, dim)
        return self.proj(x)
