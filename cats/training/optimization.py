"""Parts of the optimisation: parameter groups, learning rate, averaged weights, precision."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import timm.optim
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cats.model import CATs
from cats.training.configs import TrainConfig


def autocast(device: torch.device, amp: str) -> contextlib.AbstractContextManager[Any]:
    """Run what is inside in the precision ``amp``: ``off``, ``bf16`` where :func:`has_bf16`, or ``fp16``."""
    if amp == "bf16" and not has_bf16(device):
        amp = "off"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def has_bf16(device: torch.device) -> bool:
    """False for a CPU without instructions for bfloat16, which takes ten times as long as in float32."""
    if device.type != "cpu":
        return True
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and bool(supported())


def parameter_groups(module: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW groups: the backbone has its own rate, vectors are not decayed.

    Args:
        module: holds everything learnt; parameters below a ``feature_extraction`` are the backbone's.
    """
    backbone = {id(p) for name, p in module.named_parameters() if "feature_extraction." in name}
    groups = []
    for decay in timm.optim.param_groups_weight_decay(module, config.weight_decay):
        for inside, rate in ((True, config.lr_backbone), (False, config.lr)):
            parameters = [p for p in decay["params"] if (id(p) in backbone) == inside]
            if parameters:
                groups.append({**decay, "params": parameters, "lr": rate})
    return groups


def learning_rate_factor(config: TrainConfig, steps: int, step: int) -> float:
    """Factor on the learning rates at update ``step`` of ``steps``: the schedule's times the warm-up's."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    done = min(1.0, step / steps)
    if config.schedule == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * done))
    return warm * 0.5 ** sum(done >= milestone for milestone in config.milestones)


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of weights and statistics, in evaluation mode.

    The decay grows with the number of updates, ``min(decay, n / (n + 9))``, so that the start is soon forgotten.
    """

    def average(mean: Tensor, value: Tensor, updates: Tensor | int) -> Tensor:
        n = int(updates)
        return torch.lerp(mean, value, 1 - min(decay, n / (n + 9))) if mean.is_floating_point() else value

    averaged = AveragedModel(model, avg_fn=average, use_buffers=True).eval()
    averaged.n_averaged.fill_(1)  # at 0 the first update would copy the model
    return averaged


def interpolate_weights(start: CATs, trained: CATs, share: float) -> None:
    """Move ``trained`` in place so that it lies ``share`` of the way from ``start`` to where it was."""
    with torch.no_grad():
        for value, first in zip(trained.state_dict().values(), start.state_dict().values(), strict=True):
            if value.is_floating_point():
                value.lerp_(first, 1 - share)
            else:
                value.copy_(first)
