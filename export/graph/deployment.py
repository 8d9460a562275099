"""The deployment graph: what the model computes, algebraically reduced for inference.

:class:`PairGraph` takes both images and consists of :class:`EncoderGraph` and :class:`MatcherGraph`. Those two become
files of their own as :class:`EncoderFileGraph` and :class:`MatcherFileGraph`, with flat arguments and results. Each
reduction is one flag of :class:`DeploymentOptions`, so that its gain can be measured and its parity tested alone.
Modules keep the names they have in :class:`cats.model.CATs` (``feature_extraction.backbone.*``, ``proj.*``,
``decoder.*``), which become the names of the nodes in the ONNX file.

Here a = target and b = source, and the cost volume has rows a, columns b: the transpose of the published one, because
the first pass of the aggregator and the soft-argmax both read it that way.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cats.export.graph import rewrites
from cats.export.graph.blocks import make_block
from cats.export.graph.correlation import Correlation
from cats.export.graph.cotr import CotrMatcherGraph
from cats.export.graph.winograd import use_winograd
from cats.model import CATs, CATsConfig


@dataclass(frozen=True)
class DeploymentOptions:
    """The rewrites, by default all but the last; without one the graph computes that part as :mod:`cats.model`.

    Attributes:
        fold_batch_norm: batch norm becomes part of the convolution before it.
        one_backbone_pass: both images go through the backbone as one batch, so that its weights occur once.
        resize_as_matmul: bilinear resize of a level as two products with constant matrices; a level that already has
            the grid's size is not resized at all.
        fused_correlation: the operator ``cats::Correlation``: the L2 norm scales the product, and the mutual filter
            multiplies by inverse maxima, instead of dividing features and volume element by element.
        constant_position: positional embedding as a constant, its appearance half together with the projection's bias.
        split_heads: one weight each for query, key and value, the scale in the query's weight, the value's bias in the
            output projection's and none for the key; the regrouping of tokens by levels is part of the transposes that
            heads need.
        mean_first: in the last pass the mean over the levels is taken before the last two linear layers instead of
            after them, with which it commutes.
        soft_argmax_as_matmul: mean and variance of the soft-argmax by one product with constant coordinates.
        winograd: 3x3 convolutions with half the multiplications (:mod:`cats.export.graph.winograd`); off, because it is
            faster on CPUs alone, and there in float32 and bfloat16 alone.
    """

    fold_batch_norm: bool = True
    one_backbone_pass: bool = True
    resize_as_matmul: bool = True
    fused_correlation: bool = True
    constant_position: bool = True
    split_heads: bool = True
    mean_first: bool = True
    soft_argmax_as_matmul: bool = True
    winograd: bool = False


class EncoderGraph(nn.Module):
    """Normalised images to what matching needs of them, as a part of :class:`PairGraph` and :class:`EncoderFileGraph`.

    Args:
        model: is not changed; parts of it are copied.
        options: see :class:`DeploymentOptions`.

    Attributes:
        folded_factors: of :func:`cats.export.graph.rewrites.fold_batch_norm`, names relative to ``feature_extraction``.
        winograd: of :func:`cats.export.graph.winograd.use_winograd`, as relative.
    """

    def __init__(self, model: CATs, options: DeploymentOptions):
        super().__init__()
        config = model.config
        self.config = config
        self.feature_extraction = copy.deepcopy(model.feature_extraction).float().eval()
        example = torch.zeros(1, 3, config.image_size, config.image_size)
        self.folded_factors = (
            rewrites.fold_batch_norm(self.feature_extraction, example) if options.fold_batch_norm else {}
        )
        self.winograd = use_winograd(self.feature_extraction, example) if options.winograd else []
        with torch.no_grad():
            maps = self.feature_extraction(example)
        self.resize = nn.ModuleList(_resize(x, config.feature_size, options) for x in maps)
        projections = model.proj if config.projects_appearance else ()
        self.proj = nn.ModuleList(rewrites.Linear.of(layer) for layer in projections)
        self.fold_position = options.constant_position and config.projects_appearance
        if self.fold_position:
            position = model.decoder.positional_embedding().detach().float()[0]
            bias = torch.stack([layer.bias.detach().float() for layer in model.proj])[:, None]
            self.register_buffer("offset", position[..., config.feature_size**2 :] + bias)
            for layer in self.proj:
                layer.bias = None

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """(B, 3, S, S) to the resized features, (B, C_l, N) per level, and the appearance (B, L, N, P) or None.

        With ``constant_position`` the appearance has its half of the positional embedding added.
        """
        maps = self.feature_extraction(image)
        cells = self.config.feature_size**2
        features = [resize(x).reshape(-1, x.shape[1], cells) for resize, x in zip(self.resize, maps, strict=True)]
        if not self.config.projects_appearance:
            return features, None
        projected = [layer(x.transpose(1, 2)) for layer, x in zip(self.proj, features, strict=True)]
        appearance = torch.stack(projected, dim=1)
        return features, appearance + self.offset if self.fold_position else appearance


def _resize(x: Tensor, grid: int, options: DeploymentOptions) -> nn.Module:
    if not options.resize_as_matmul:
        return rewrites.Interpolate(grid)
    height, width = x.shape[2:]
    return nn.Identity() if (height, width) == (grid, grid) else rewrites.Resize(height, width, grid)


class Decoder(nn.Module):
    """The aggregator, with pass 1 in the layout of the transposed cost volume; see :class:`cats.model.Aggregator`."""

    def __init__(self, model: CATs, options: DeploymentOptions):
        super().__init__()
        config, aggregator = model.config, copy.deepcopy(model.decoder).float().eval()
        self.config, self.options = config, options
        levels, cells = len(config.hyperpixels), config.feature_size**2
        self.blocks = nn.ModuleList(
            make_block(block, levels, split_heads=options.split_heads) for block in aggregator.blocks
        )
        self.proj = rewrites.Linear.of(aggregator.proj)
        if options.constant_position:
            self.register_buffer("position", aggregator.positional_embedding().detach()[0, ..., :cells].clone())
        else:
            self.pos_embed_x, self.pos_embed_y = aggregator.pos_embed_x, aggregator.pos_embed_y

    def forward(self, corr: Tensor, appearance_a: Tensor | None, appearance_b: Tensor | None) -> Tensor:
        """Cost volume (B, L, N, N), rows a, and appearances (B, L, N, P) to refined scores (B, N, N), rows a."""
        x = corr
        if self.config.swapping:
            tokens = self._run_blocks(self._tokens(corr, appearance_a))
            # The projection works on three dimensions: TensorRT-RTX fails to compile the transposed four-dimensional.
            x = self.proj(tokens).reshape(-1, *corr.shape[1:])
            x = x + corr if self.config.residual else x
        tokens = self._tokens(x.transpose(-1, -2), appearance_b)
        refined = self._refined(tokens).transpose(-1, -2)
        return refined + corr.mean(dim=1) if self.config.residual else refined

    def _tokens(self, corr: Tensor, appearance: Tensor | None) -> Tensor:
        """(B * L, N, D) tokens of the rows of a cost volume."""
        if self.options.constant_position:
            corr = corr + self.position
        x = corr if appearance is None else torch.cat([corr, appearance], dim=-1)
        if not self.options.constant_position:
            grid = self.config.feature_size
            columns = self.pos_embed_x.expand(-1, -1, grid, -1, -1)
            rows = self.pos_embed_y.expand(-1, -1, -1, grid, -1)
            x = x + torch.cat([columns, rows], dim=-1).flatten(2, 3)
        return x.reshape(-1, *x.shape[2:])

    def _run_blocks(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x, normed = block(x)
            x = x + block.mlp(normed)
        return x

    def _refined(self, x: Tensor) -> Tensor:
        """The last pass and the mean over the levels: (B * L, N, D) to (B, N, N), rows b."""
        if not self.options.mean_first:
            return self._mean(self.proj(self._run_blocks(x)))
        for block in self.blocks[:-1]:
            x, normed = block(x)
            x = x + block.mlp(normed)
        last = self.blocks[-1]
        x, normed = last(x)
        hidden = F.gelu(last.mlp.fc1(normed))
        return self.proj(self._mean(x) + last.mlp.fc2(self._mean(hidden)))

    def _mean(self, x: Tensor) -> Tensor:
        """(B * L, N, C) to (B, N, C)."""
        return x.reshape(-1, len(self.config.hyperpixels), *x.shape[1:]).mean(dim=1)


class SoftArgmax(nn.Module):
    """Flow and confidence of refined scores; see :meth:`cats.model.CATs.soft_argmax`."""

    def __init__(self, model: CATs, options: DeploymentOptions):
        super().__init__()
        self.config, self.as_matmul = model.config, options.soft_argmax_as_matmul
        grid = self.config.feature_size
        scale = (grid - 1) / 2  # cells; coordinates are relative to the middle of the grid, where squares are smallest
        x, y = (c.detach().float() * scale for c in (model.x_normal, model.y_normal))
        x, y = x.repeat(grid), y.repeat_interleave(grid)
        self.register_buffer("coordinates", torch.stack([x, y, x.square() + y.square()], dim=1))
        cells = torch.arange(grid) - scale
        self.register_buffer("identity", torch.stack([cells.repeat(grid), cells.repeat_interleave(grid)]))

    def forward(self, refined: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, N), rows a, to flow (B, 2, G, G) in cells and confidence (B, G, G)."""
        grid = self.config.feature_size
        p = (refined / self.config.temperature).softmax(dim=-1)
        if self.as_matmul:
            sums = (p @ self.coordinates).transpose(1, 2)  # (B, 3, N)
            mean, square = sums[:, :2], sums[:, 2]
            variance = (square - mean.square().sum(dim=1)).clamp(min=0)  # of rounding, which could make it negative
        else:
            distance = self.coordinates[:, :2].t()
            mean = (p[:, None] * distance[:, None]).sum(dim=-1)
            variance = (p[:, None] * (distance[:, None] - mean[..., None]).square()).sum(dim=(1, 3))
        flow = (mean - self.identity).reshape(-1, 2, grid, grid)
        return flow, torch.exp(-variance / 2).reshape(-1, grid, grid)


class MatcherGraph(nn.Module):
    """Encoded images to flow and confidence, as a part of :class:`PairGraph` and :class:`MatcherFileGraph`."""

    def __init__(self, model: CATs, options: DeploymentOptions):
        super().__init__()
        self.config = model.config
        self.correlation = Correlation(options.fused_correlation)
        self.decoder = Decoder(model, options)
        self.soft_argmax = SoftArgmax(model, options)

    def forward(
        self, a: list[Tensor], b: list[Tensor], appearance_a: Tensor | None, appearance_b: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Features (B, C_l, N) per level and appearances of :class:`EncoderGraph` to flow and confidence."""
        if self.config.correlation:
            corr = self.correlation(a, b)
        else:
            cells = self.config.feature_size**2
            corr = a[0].new_zeros(a[0].shape[0], len(a), cells, cells)
        return self.soft_argmax(self.decoder(corr, appearance_a, appearance_b))


def make_matcher(model: CATs, options: DeploymentOptions) -> nn.Module:
    """Make what matches encoded images in a model's architecture."""
    return CotrMatcherGraph(model) if model.config.architecture == "cotr" else MatcherGraph(model, options)


class EncoderFileGraph(nn.Module):
    """An encoder's file: :class:`EncoderGraph` with flat results, the features of each level, then the appearance."""

    def __init__(self, model: CATs, options: DeploymentOptions | None = None):
        super().__init__()
        self.encoder = EncoderGraph(model, options or DeploymentOptions())

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, S, S) to L tensors (B, C_l, N) and, with appearance, (B, L, N, P)."""
        features, appearance = self.encoder(image)
        return (*features, *([] if appearance is None else [appearance]))


class MatcherFileGraph(nn.Module):
    """A matcher's file: :class:`MatcherGraph` with flat arguments, all that :class:`EncoderFileGraph` gives
    for a, then for b."""

    def __init__(self, model: CATs, options: DeploymentOptions | None = None):
        super().__init__()
        self.matcher = make_matcher(model, options or DeploymentOptions())

    def forward(self, *encoded: Tensor) -> tuple[Tensor, Tensor]:
        """To flow (B, 2, G, G) in cells and confidence (B, G, G)."""
        half, levels = len(encoded) // 2, len(self.matcher.config.hyperpixels)
        a, b = encoded[:half], encoded[half:]
        appearances = (a[levels], b[levels]) if half > levels else (None, None)
        return self.matcher(list(a[:levels]), list(b[:levels]), *appearances)


class PairGraph(nn.Module):
    """Two normalised images to flow and confidence, both a -> b."""

    def __init__(self, model: CATs, options: DeploymentOptions | None = None):
        super().__init__()
        options = options or DeploymentOptions()
        self.options = options
        self.encoder = EncoderGraph(model, options)
        self.matcher = make_matcher(model, options)

    @property
    def config(self) -> CATsConfig:
        """Structure of the model."""
        return self.encoder.config

    def forward(self, image_a: Tensor, image_b: Tensor) -> tuple[Tensor, Tensor]:
        """Two (B, 3, S, S) to flow (B, 2, G, G) in cells and confidence (B, G, G)."""
        if not self.options.one_backbone_pass:
            (a, appearance_a), (b, appearance_b) = self.encoder(image_a), self.encoder(image_b)
            return self.matcher(a, b, appearance_a, appearance_b)
        features, appearance = self.encoder(torch.cat([image_a, image_b]))
        a, b = (list(part) for part in zip(*map(_halves, features), strict=True))
        appearance_a, appearance_b = (None, None) if appearance is None else _halves(appearance)
        return self.matcher(a, b, appearance_a, appearance_b)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """(2 B, ...) to two (B, ...); torch.export would fix B if it had to divide the size by two."""
    first, second = x.reshape(2, -1, *x.shape[1:]).unbind()
    return first, second
