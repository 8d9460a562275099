"""The models by the name of their architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cats.cotr import COTR
from cats.model import CATs, CATsConfig

_MODELS: dict[str, Any] = {"cats": CATs, "cotr": COTR}


def build_model(
    config: CATsConfig, *, backbone_weights: str | Path | None = None, zero_start: bool = False
) -> CATs | COTR:
    """An untrained model of ``config.architecture``; arguments and errors as of :class:`cats.model.CATs`."""
    return _MODELS[config.architecture](config, backbone_weights=backbone_weights, zero_start=zero_start)
