"""The rows of the study of ablations: what of the model or of its training each changes, and what the paper says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from cats.architectures import build_model
from cats.model import CATs, CATsConfig
from cats.training.configs import TrainConfig
from cats.training.optimization import parameter_groups

IDS = (11, 12, 15)
# Four heads, because 6 do not divide the 256 channels that are left without appearance; feed-forward layers as wide as
# the tokens, as in cats-tiny, because an update then takes half as long.
FULL = CATsConfig("tf_efficientnet_lite0", IDS, num_heads=4, mlp_ratio=1.0)


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        model: settings of :class:`CATsConfig` that differ from :data:`FULL`.
        zero: the aggregator's output projection begins at zero, so that nothing is added to the correlation.
        projection: factor on the random start of the projections of appearance.
        projection_rate: factor on their learning rate.
        weight_decay: of AdamW, the training's where it is None.
        paper: PCK@0.1 on SPair-71k as published, where the paper has such a row.
    """

    model: dict[str, Any] = field(default_factory=dict)
    zero: bool = False
    projection: float = 1.0
    projection_rate: float = 1.0
    weight_decay: float | None = None
    paper: str = ""

    @property
    def config(self) -> CATsConfig:
        """The model's structure."""
        return CATsConfig(**{**FULL.to_dict(), **self.model})

    def build(self, backbone: CATs) -> CATs:
        """The untrained model, with the frozen backbone of another one; random numbers are PyTorch's global ones."""
        model: Any = build_model(self.config, zero_start=self.zero)
        model.feature_extraction.load_state_dict(backbone.feature_extraction.state_dict())
        model.feature_extraction.freeze()
        if self.projection != 1:
            with torch.no_grad():
                for layer in model.proj:
                    layer.weight.mul_(self.projection)
                    layer.bias.mul_(self.projection)
        return model

    def groups(self, model: CATs, config: TrainConfig) -> list[dict[str, Any]]:
        """AdamW's groups; each says in ``factor`` which share of the learning rate is its own."""
        slow = {id(p) for p in model.proj.parameters()} if self.projection_rate != 1 else set()
        found = []
        for group in parameter_groups(model, config):
            if self.weight_decay is not None and group["weight_decay"]:
                group["weight_decay"] = self.weight_decay
            for inside, factor in ((True, self.projection_rate), (False, 1.0)):
                parameters = [p for p in group["params"] if (id(p) in slow) == inside]
                if parameters:
                    found.append({**group, "params": parameters, "factor": factor})
        return found


ROWS: dict[str, Row] = {
    "full": Row(paper="49.9 (frozen 42.4)"),
    "no correlation": Row({"correlation": False}, paper="37.3"),
    "no appearance": Row({"appearance": False}),
    "no swapping": Row({"swapping": False}),
    "single level": Row({"hyperpixels": (15,)}, paper="37.4 (frozen), 39.1 ms"),
    "no residual": Row({"residual": False}),
    "cotr": Row(
        {"architecture": "cotr", "hyperpixels": (15,), "projection_dim": 256, "num_heads": 8, "mlp_ratio": 4.0},
        paper="22.1, 56.1 ms",
    ),
    # Why appearance costs in short trainings: how loud it is at the start, how fast it is learnt, how freely.
    "appearance begins at 1/10": Row(projection=0.1),
    "projection at 1/10 of the rate": Row(projection_rate=0.1),
    "weight decay 0.5": Row(weight_decay=0.5),
    # The random start favours rows whose tokens are quiet; this one favours none that has a correlation.
    "full from zero": Row(zero=True),
    "no appearance from zero": Row({"appearance": False}, zero=True),
    "no correlation from zero": Row({"correlation": False}, zero=True),
    "no swapping from zero": Row({"swapping": False}, zero=True),
    "single level from zero": Row({"hyperpixels": (15,)}, zero=True),
}
ABLATIONS = tuple(ROWS)[:7]
