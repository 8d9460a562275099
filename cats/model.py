"""CATs: Cost Aggregation Transformers for semantic correspondence, the whole model in one file.

Cho et al., "CATs: Cost Aggregation Transformers for Visual Correspondence", NeurIPS 2021. Sections and equations named
below are the paper's. Names of parameters are those of the published checkpoints (``feature_extraction.backbone.*``,
``proj.*``, ``decoder.*``, ``x_normal``, ``y_normal``), so that these load as they are.

Symbols: B batch, L levels (hyperpixel ids), G grid side (16), N = G * G positions, C_l channels of a level,
D = N + projection_dim width of the aggregator's tokens. The published direction is target -> source; everywhere outside
this file a = target and b = source.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cats.backbones import HyperpixelBackbone, find_backbone, normalisation
from cats.core.errors import InputError
from cats.core.metadata import Preprocessing


@dataclass(frozen=True)
class CATsConfig:
    """Everything that determines the model's structure; saved in checkpoints and model files.

    The defaults are the published model for SPair-71k. The switches are the paper's ablations (Table 2, 4 and 5):
    ``correlation=False`` replaces the correlation by zeros, ``appearance=False`` leaves the projected features out of
    the tokens, ``swapping=False`` aggregates once instead of in both directions, ``residual=False`` leaves out the
    additions of the correlation to what the aggregator makes of it.

    ``architecture="cotr"`` is :class:`cats.cotr.COTR` instead: one hyperpixel, tokens of ``projection_dim`` channels,
    ``depth`` layers each of encoder and decoder; the switches and the temperature are not its.
    """

    backbone: str = "resnet101"
    hyperpixels: tuple[int, ...] = (0, 8, 20, 21, 26, 28, 29, 30)
    image_size: int = 256  # pixels, square
    feature_size: int = 16  # G, cells
    projection_dim: int = 128  # of the appearance features
    depth: int = 1
    num_heads: int = 6
    mlp_ratio: float = 4.0
    temperature: float = 0.02  # of the soft-argmax
    correlation: bool = True
    appearance: bool = True
    swapping: bool = True
    residual: bool = True
    architecture: str = "cats"

    def __post_init__(self) -> None:
        ids = self.hyperpixels
        if not isinstance(ids, (list, tuple)) or not ids or not all(_is_count(i, 1000, least=0) for i in ids):
            raise InputError("config: hyperpixels are not a list of numbers such as 0, 8, 20")
        object.__setattr__(self, "hyperpixels", tuple(ids))
        for name, most in _MOST.items():
            value = getattr(self, name)
            if not _is_count(value, most):
                raise InputError(f"config: {name} must be a whole number, 1 to {most}{_shown(value)}")
        for name in ("mlp_ratio", "temperature"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e-6 <= value <= 1000:
                raise InputError(f"config: {name} must be a positive number up to 1000{_shown(value)}")
            object.__setattr__(self, name, float(value))
        for name in ("correlation", "appearance", "swapping"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"config: {name} must be true or false")
        if not isinstance(self.backbone, str):
            raise InputError("config: backbone must be the name of a network, such as resnet101")
        if self.architecture not in ("cats", "cotr"):
            raise InputError(f"config: architecture is {self.architecture!r}, expected cats or cotr")
        if self.architecture == "cotr":
            self._check_cotr()
        elif self.embed_dim % self.num_heads or self.embed_dim % 2:
            raise InputError(
                f"config: the tokens have {self.embed_dim} channels (feature_size^2 + projection_dim), which "
                f"num_heads = {self.num_heads} must divide, and 2 too; change projection_dim or num_heads"
            )

    def _check_cotr(self) -> None:
        if len(self.hyperpixels) != 1:
            raise InputError(f"config: architecture cotr takes one hyperpixel, not {list(self.hyperpixels)}")
        if not (self.correlation and self.appearance and self.swapping and self.residual):
            raise InputError("config: correlation, appearance, swapping and residual are switches of architecture cats")
        if self.projection_dim % 4 or self.projection_dim % self.num_heads:
            raise InputError(
                f"config: architecture cotr needs a projection_dim that 4 and num_heads divide, not "
                f"{self.projection_dim} with {self.num_heads} heads; published: 256 with 8"
            )

    @property
    def projects_appearance(self) -> bool:
        """Whether features are projected image by image, before two images meet."""
        return self.appearance and self.architecture == "cats"

    @property
    def embed_dim(self) -> int:
        """D, width of the tokens."""
        if self.architecture == "cotr":
            return self.projection_dim
        return self.feature_size**2 + (self.projection_dim if self.appearance else 0)

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become inputs of this model."""
        find_backbone(self.backbone)  # names what is known if this is not
        return Preprocessing((self.image_size, self.image_size), *normalisation(self.backbone))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**dataclasses.asdict(self), "hyperpixels": list(self.hyperpixels)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CATsConfig:
        """Inverse of :meth:`to_dict`; raises :class:`InputError` naming unknown keys or wrong values."""
        if not isinstance(values, dict):
            raise InputError("config must be a dictionary")
        unknown = set(values) - {item.name for item in dataclasses.fields(cls)}
        if unknown:
            names = sorted(str(key)[:40] for key in unknown)[:8]
            raise InputError(f"config has unknown keys {names}; is it from a newer cats-toolkit?")
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(f"config has a value of the wrong type: {error}") from error


# The largest structure that a file may ask for; far above any that was ever trained.
_MOST = {
    "image_size": 4096, "feature_size": 128, "projection_dim": 8192, "depth": 64, "num_heads": 256
}  # fmt: skip


def _is_count(value: Any, most: int, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _shown(value: Any) -> str:
    return f", not {value!r}" if isinstance(value, float) or _is_count(value, 10**9, -(10**9)) else ""


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them, (..., D) -> (..., D)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention among the tokens of a sequence."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(S, T, D) -> (S, T, D): S sequences of T tokens."""
        weights, v = self.weights(x)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Attention weights (S, heads, T, T) (shown in Fig. 4) and values (S, heads, T, D / heads) of (S, T, D).

        Written out, because PyTorch's fused attention is slower on a CPU for sequences as short as these.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1), v


class MultiscaleBlock(nn.Module):
    """Intra-correlation attention among the positions of a level, then inter-correlation attention among the levels of
    a position (Sec. 3.3, "multi-level aggregation"); pre-norm, residual. A single level has only the first half."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.attn = Attention(dim, num_heads)
        self.attn_multiscale = Attention(dim, num_heads)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(4))
        self.mlp = Mlp(dim, hidden)
        self.mlp2 = Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, N, D) -> (B, L, N, D)."""
        batch, levels = x.shape[:2]
        x = x.flatten(0, 1)
        x = x + self.attn(self.norm1(x))
        if levels > 1:
            x = x + self.mlp2(self.norm4(x))
            x = x.unflatten(0, (batch, levels)).transpose(1, 2).flatten(0, 1)  # (B * N, L, D)
            x = x + self.attn_multiscale(self.norm3(x))
            x = x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(0, 1)
        x = x + self.mlp(self.norm2(x))
        return x.unflatten(0, (batch, levels))


class Aggregator(nn.Module):
    """Transformer aggregator with swapping self-attention (Sec. 3.3)."""

    def __init__(self, config: CATsConfig):
        super().__init__()
        grid, dim, levels = config.feature_size, config.embed_dim, len(config.hyperpixels)
        self.config = config
        self.pos_embed_x = nn.Parameter(torch.zeros(1, levels, 1, grid, dim // 2))
        self.pos_embed_y = nn.Parameter(torch.zeros(1, levels, grid, 1, dim // 2))
        self.blocks = nn.Sequential(
            *(MultiscaleBlock(dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth))
        )
        self.proj = nn.Linear(dim, grid * grid)
        self.norm = nn.LayerNorm(dim, eps=1e-6)  # in every published checkpoint, used by none
        nn.init.trunc_normal_(self.pos_embed_x, std=0.02)
        nn.init.trunc_normal_(self.pos_embed_y, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def positional_embedding(self) -> Tensor:
        """(1, L, N, D): x half first, repeated over the grid."""
        grid = self.config.feature_size
        x = self.pos_embed_x.expand(-1, -1, grid, -1, -1)
        y = self.pos_embed_y.expand(-1, -1, -1, grid, -1)
        return torch.cat([x, y], dim=-1).flatten(2, 3)

    def tokens(self, corr: Tensor, appearance: Tensor | None) -> Tensor:
        """Rows of a cost volume (B, L, N, N) with the appearance (B, L, N, P) of their positions: (B, L, N, D)."""
        x = corr if appearance is None else torch.cat([corr, appearance.to(corr.dtype)], dim=-1)
        return x + self.positional_embedding()

    def forward(self, corr: Tensor, source: Tensor | None, target: Tensor | None) -> Tensor:
        """Refine a cost volume.

        Args:
            corr: (B, L, N, N), rows source positions, columns target positions.
            source: projected source features (B, L, N, P), or None without appearance.
            target: the same of the target.

        Returns:
            (B, N, N) refined correlation, mean over the levels; rows source, columns target.
        """
        x = corr
        if self.config.swapping:
            x = self.proj(self.blocks(self.tokens(corr.transpose(-1, -2), target))).transpose(-1, -2)
            x = x + corr if self.config.residual else x
        x = self.proj(self.blocks(self.tokens(x, source)))
        x = x + corr if self.config.residual else x
        return x.mean(dim=1)


def l2_normalise(features: Tensor) -> Tensor:
    """Unit length over the channels (dim 1) as published: ``f / sqrt(sum(f^2) + 1e-6)``."""
    return features / (features.square().sum(dim=1, keepdim=True) + 1e-6).sqrt()


def correlation(source: Tensor, target: Tensor) -> Tensor:
    """Cosine similarity of all pairs of positions (Sec. 3.2): two (B, C, G, G) -> (B, N, N), rows source."""
    return l2_normalise(source).flatten(2).transpose(1, 2) @ l2_normalise(target).flatten(2)


def mutual_filter(corr: Tensor) -> Tensor:
    """Soft mutual nearest neighbour filter (Rocco et al. 2018): ``c * (c / max over target) * (c / max over source)``.

    Args:
        corr: (..., N, N) float32, rows source, columns target. Half precision would underflow the guard.
    """
    over_target = corr.amax(dim=-1, keepdim=True)
    over_source = corr.amax(dim=-2, keepdim=True)
    tiny = torch.full_like(over_target, 1e-30)
    over_target = torch.where(over_target == 0, tiny, over_target)
    over_source = torch.where(over_source == 0, tiny.transpose(-1, -2), over_source)
    return corr * (corr / over_target) * (corr / over_source)


class CATs(nn.Module):
    """The full model; see the module's docstring for symbols and direction.

    Args:
        config: structure.
        backbone_weights: see :func:`cats.backbones.load_pretrained`; ``None`` leaves the backbone random.
        zero_start: start the aggregator's output projection at zero, so that the untrained model already is the
            multi-level nearest-neighbour matcher of its backbone.
    """

    def __init__(
        self, config: CATsConfig, *, backbone_weights: str | Path | None = None, zero_start: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.feature_extraction = HyperpixelBackbone(
            config.backbone, config.hyperpixels, config.image_size, backbone_weights
        )
        channels = self.feature_extraction.channels if config.appearance else ()
        self.proj = nn.ModuleList(nn.Linear(c, config.projection_dim) for c in channels)
        self.decoder = Aggregator(config)
        coordinates = torch.linspace(-1, 1, config.feature_size)
        self.x_normal = nn.Parameter(coordinates.clone())
        self.y_normal = nn.Parameter(coordinates.clone())
        if zero_start:
            nn.init.zeros_(self.decoder.proj.weight)
            nn.init.zeros_(self.decoder.proj.bias)

    def features(self, image: Tensor) -> list[Tensor]:
        """Normalised image (B, 3, S, S) -> one map (B, C_l, G, G) per level."""
        size = (self.config.feature_size, self.config.feature_size)
        return [F.interpolate(x, size, mode="bilinear", align_corners=True) for x in self.feature_extraction(image)]

    def cost_volume(self, target: list[Tensor], source: list[Tensor]) -> Tensor:
        """Filtered correlation of two images' features: (B, L, N, N) float32, rows source, columns target."""
        with torch.autocast(target[0].device.type, enabled=False):
            levels = [correlation(s.float(), t.float()) for s, t in zip(source, target, strict=True)]
            corr = mutual_filter(torch.stack(levels, dim=1))
        return corr if self.config.correlation else torch.zeros_like(corr)

    def project(self, features: list[Tensor]) -> Tensor | None:
        """Appearance of each position: (B, L, N, P), or None without appearance."""
        if not self.config.appearance:
            return None
        flat = [x.flatten(2).transpose(1, 2) for x in features]
        return torch.stack([layer(x) for layer, x in zip(self.proj, flat, strict=True)], dim=1)

    def match_features(self, target: list[Tensor], source: list[Tensor]) -> Tensor:
        """Refined correlation (B, N, N) from the features of two images; rows source, columns target."""
        return self.decoder(self.cost_volume(target, source), self.project(source), self.project(target))

    def probabilities(self, refined: Tensor) -> Tensor:
        """For each target position (last axis) the distribution over source positions (axis 1): (B, N, N) float32."""
        return (refined.float() / self.config.temperature).softmax(dim=1)

    def soft_argmax(self, refined: Tensor) -> tuple[Tensor, Tensor]:
        """Flow and confidence of a refined correlation (Sec. 3.4).

        Returns:
            flow (B, 2, G, G) in cells, target -> source, channel 0 = x; confidence (B, G, G) in [0, 1]:
            ``exp(-(var_x + var_y) / 2)`` with the variances of the position's distribution in cells.
        """
        grid = self.config.feature_size
        p = self.probabilities(refined).unflatten(1, (grid, grid))  # (B, source y, source x, N)
        scale = (grid - 1) / 2
        moments = []
        for marginal, coordinate in ((p.sum(dim=1), self.x_normal), (p.sum(dim=2), self.y_normal)):
            at = coordinate.float()[None, :, None]
            mean = (marginal * at).sum(dim=1)
            variance = (marginal * (at - mean[:, None]).square()).sum(dim=1) * scale**2
            moments.append(((mean + 1) * scale, variance))
        (x, var_x), (y, var_y) = moments
        cells = torch.arange(grid, device=p.device, dtype=p.dtype)
        x = x.unflatten(1, (grid, grid)) - cells[None, None, :]
        y = y.unflatten(1, (grid, grid)) - cells[None, :, None]
        confidence = torch.exp(-(var_x + var_y) / 2).unflatten(1, (grid, grid))
        return torch.stack([x, y], dim=1), confidence

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """Flow (B, 2, G, G) in cells, target -> source, of two normalised image batches (B, 3, S, S)."""
        return self.match(target, source)[0]

    def match(self, target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Flow and confidence, see :meth:`soft_argmax`."""
        return self.match_encoded(self.features(target), self.features(source))

    def match_encoded(self, target: list[Tensor], source: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Flow and confidence from the features of two images."""
        return self.soft_argmax(self.match_features(target, source))
