"""The published computation in PyTorch, the baseline of all ratios."""

from __future__ import annotations

from torch import Tensor

from cats.backbones import HyperpixelBackbone
from cats.model import CATs

LAST_BLOCK = {"resnet50": 16, "resnet101": 33}


class AuthorsWay(CATs):
    """As the authors compute: once for each image, and with a ResNet through to its last block, whose map is unused."""

    def __init__(self, model: CATs) -> None:
        super().__init__(model.config)
        self.load_state_dict(model.state_dict())
        last = LAST_BLOCK.get(model.config.backbone)
        self.extra = last is not None and last not in model.config.hyperpixels
        if self.extra:
            assert last is not None
            ids = (*model.config.hyperpixels, last)
            full = HyperpixelBackbone(model.config.backbone, ids, model.config.image_size)
            full.load_state_dict(model.feature_extraction.state_dict(), strict=False)
            self.feature_extraction = full
        self.eval()

    def features(self, image: Tensor) -> list[Tensor]:
        """As the model's, computed through to the last block."""
        levels = super().features(image)
        return levels[:-1] if self.extra else levels
