"""The kinds of timm networks that can be a backbone, and how each is walked block by block and cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """How to walk one kind of timm network: each function takes the timm model.

    ``stem(model, image)`` gives id 0, ``blocks(model)`` the blocks in order, as functions of what came before;
    ``between`` is applied to a block's output before the next block reads it, ``to_map(model, x)`` makes (B, C, H, W)
    of a block's output, ``channels(model)`` lists C per id, ``prune(model, depth)`` removes everything above the
    depth-th block in place, ``convert(state, model)`` gives a state dict of another project or image size timm's names
    and shapes, ``options(image_size)`` are those of ``timm.create_model``.
    """

    stem: Callable[[nn.Module, Tensor], Tensor]
    blocks: Callable[[nn.Module], list[Callable[[Tensor], Tensor]]]
    channels: Callable[[nn.Module], list[int]]
    prune: Callable[[nn.Module, int], None]
    between: Callable[[Tensor], Tensor] = lambda x: x
    to_map: Callable[[nn.Module, Tensor], Tensor] = lambda model, x: x
    prepare: Callable[[nn.Module], None] = lambda model: None
    convert: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] = lambda state, model: state
    options: Callable[[int], dict[str, Any]] = lambda image_size: {}


def _set_identity(modules: Iterable[nn.Module], *names: str) -> None:
    for module in modules:
        for name in names:
            if hasattr(module, name):
                setattr(module, name, nn.Identity())


def _keep_first(model: nn.Module, names: tuple[str, ...], depth: int) -> None:
    """Cut a chain of nn.Sequential stages after ``depth`` blocks; emptied stages disappear."""
    for name in names:
        stage = getattr(model, name)
        keep = min(len(stage), depth)
        depth -= keep
        setattr(model, name, nn.Sequential(*list(stage.children())[:keep]))


_RESNET_STAGES = ("layer1", "layer2", "layer3", "layer4")


def _prune_resnet(model: nn.Module, depth: int) -> None:
    _keep_first(model, _RESNET_STAGES, depth)
    _set_identity([model], "fc", "global_pool")


def _resnet_without_last_relu(model: nn.Module) -> None:
    # The published hyperpixels are taken after the residual addition and before the ReLU, which therefore moves
    # in front of the next block (Family.between).
    for block in _resnet_blocks(model):
        _set_identity([block], "act3" if hasattr(block, "act3") else "act2")


def _resnet_blocks(model: nn.Module) -> list[Any]:
    return [block for name in _RESNET_STAGES for block in getattr(model, name)]


def _resnet_channels(model: nn.Module) -> list[int]:
    last = [block.bn3 if hasattr(block, "bn3") else block.bn2 for block in _resnet_blocks(model)]
    return [model.bn1.num_features, *(norm.num_features for norm in last)]


def _efficientnet_blocks(model: nn.Module) -> list[Any]:
    return [block for stage in model.blocks for block in stage]


def _efficientnet_channels(model: nn.Module) -> list[int]:
    convolutions = [[m for m in block.modules() if isinstance(m, nn.Conv2d)] for block in _efficientnet_blocks(model)]
    return [model.conv_stem.out_channels, *(convs[-1].out_channels for convs in convolutions)]


def _prune_efficientnet(model: nn.Module, depth: int) -> None:
    stages = list(model.blocks.children())
    kept = []
    for stage in stages:
        keep = min(len(stage), depth)
        depth -= keep
        if keep:
            kept.append(nn.Sequential(*list(stage.children())[:keep]))
    model.blocks = nn.Sequential(*kept)
    _set_identity([model], "conv_head", "bn2", "global_pool", "classifier")


def _vit_tokens(model: nn.Module, image: Tensor) -> Tensor:
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(image))))


def _vit_map(model: nn.Module, tokens: Tensor) -> Tensor:
    rows, columns = model.patch_embed.grid_size
    return tokens[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(2, (rows, columns))


def _rotary_stem(model: nn.Module, image: Tensor) -> Tensor:
    tokens, _ = model._pos_embed(model.patch_embed(image))
    return model.norm_pre(tokens)


def _rotary_blocks(model: nn.Module) -> list[Any]:
    """Blocks whose attention turns queries and keys by their place."""
    rope = model.rope.get_embed()
    return [partial(block, rope=rope) for block in model.blocks]


def _prune_vit(model: nn.Module, depth: int) -> None:
    model.blocks = nn.Sequential(*list(model.blocks.children())[:depth])
    _set_identity([model], "norm", "fc_norm", "head_drop", "head")


def _convnext_blocks(model: nn.Module) -> list[Any]:
    """Blocks, the first of a stage with the downsampling before it."""

    def first(stage: nn.Module, x: Tensor) -> Tensor:
        return stage.blocks[0](stage.downsample(x))

    return [block for stage in model.stages for block in (partial(first, stage), *list(stage.blocks)[1:])]


def _convnext_channels(model: nn.Module) -> list[int]:
    stem = [module for module in model.stem.modules() if isinstance(module, nn.Conv2d)][-1]
    return [stem.out_channels, *(block.conv_dw.out_channels for stage in model.stages for block in stage.blocks)]


def _prune_convnext(model: nn.Module, depth: int) -> None:
    for stage in model.stages:
        keep = min(len(stage.blocks), depth)
        depth -= keep
        stage.blocks = nn.Sequential(*list(stage.blocks.children())[:keep])
    model.stages = nn.Sequential(*(stage for stage in model.stages if len(stage.blocks)))
    _set_identity([model], "norm_pre", "head")


FAMILIES: dict[str, Family] = {
    "resnet": Family(
        stem=lambda model, image: model.maxpool(model.act1(model.bn1(model.conv1(image)))),
        blocks=_resnet_blocks,
        channels=_resnet_channels,
        prune=_prune_resnet,
        between=torch.relu,
        prepare=_resnet_without_last_relu,
    ),
    "efficientnet": Family(
        stem=lambda model, image: model.bn1(model.conv_stem(image)),
        blocks=_efficientnet_blocks,
        channels=_efficientnet_channels,
        prune=_prune_efficientnet,
    ),
    "vit": Family(
        stem=_vit_tokens,
        blocks=lambda model: list(model.blocks),
        channels=lambda model: [model.embed_dim] * (len(model.blocks) + 1),
        prune=_prune_vit,
        to_map=_vit_map,
        convert=timm.models.vision_transformer.checkpoint_filter_fn,
        options=lambda image_size: {"img_size": image_size},
    ),
    "rotary-vit": Family(
        stem=_rotary_stem,
        blocks=_rotary_blocks,
        channels=lambda model: [model.embed_dim] * (len(model.blocks) + 1),
        prune=_prune_vit,
        to_map=_vit_map,
        convert=timm.models.eva.checkpoint_filter_fn,
        options=lambda image_size: {"img_size": image_size, "dynamic_img_size": False},
    ),
    "convnext": Family(
        stem=lambda model, image: model.stem(image),
        blocks=_convnext_blocks,
        channels=_convnext_channels,
        prune=_prune_convnext,
        convert=timm.models.convnext.checkpoint_filter_fn,
    ),
}
"""By the name that the registry of :mod:`cats.backbones` gives."""
