"""Every kind of backbone that the registry lists: its maps are timm's, its images are normalised as timm's weights want
them, it trains."""

from __future__ import annotations

import pytest
import timm
import torch

from cats.backbones import REGISTRY, HyperpixelBackbone, find_backbone, normalisation
from cats.core.errors import InputError
from cats.model import CATs, CATsConfig

SMALL = {
    "resnet101": "resnet101",
    "resnet50": "resnet50",
    "tf_efficientnet_lite0": "tf_efficientnet_lite0",
    "mobilenetv2_100": "mobilenetv2_100",
    "deit_base_patch16_*": "deit_base_patch16_224",
    "deit3_*": "deit3_small_patch16_224",
    "vit_*dino": "vit_small_patch16_224.dino",
    "vit_*dinov2*": "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_*dinov3*": "vit_small_patch16_dinov3.lvd1689m",
    "convnext_tiny*": "convnext_tiny",
    "convnext_[sblx]*": "convnext_small",
    "convnext*": "convnextv2_atto",
}
"""A small one of each entry."""


def test_each_entry_has_an_example():
    assert list(SMALL) == list(REGISTRY)
    assert all(find_backbone(name) is REGISTRY[pattern] for pattern, name in SMALL.items())


@pytest.mark.parametrize("name", [name for name in SMALL.values() if "small" in name or "conv" in name])
@torch.no_grad()
def test_maps_are_those_of_timm(name, tmp_path):
    entry = find_backbone(name)
    torch.manual_seed(0)
    options = {} if name.startswith("conv") else {"img_size": entry.image_size}
    theirs = timm.create_model(name, **options).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = HyperpixelBackbone(name, (1, 3, 4), entry.image_size, tmp_path / "weights.pth").eval()
    image = torch.randn(2, 3, entry.image_size, entry.image_size)
    maps = ours(image)
    if name.startswith("conv"):
        x = theirs.stem(image)
        expected, count = [], 0
        for stage in theirs.stages:
            x = stage.downsample(x)
            for block in stage.blocks:
                x, count = block(x), count + 1
                if count in (1, 3, 4):
                    expected.append(x)
    else:
        expected = theirs.forward_intermediates(image, indices=[0, 2, 3], norm=False, intermediates_only=True)
        assert maps[0].shape[2:] == (16, 16)
    for actual, wanted in zip(maps, expected, strict=True):
        assert actual.std() > 0
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pattern", REGISTRY)
def test_all_that_timm_has_are_found_and_normalised_as_their_weights_want(pattern):
    names = timm.list_models(pattern, pretrained=True)
    assert names
    for name in names:
        entry = find_backbone(name)
        config = CATsConfig(name, entry.hyperpixels, entry.image_size)
        wanted = timm.get_pretrained_cfg(name)
        assert (config.preprocessing.mean, config.preprocessing.std) == (wanted.mean, wanted.std) == normalisation(name)


@pytest.mark.parametrize("name", [name for name in SMALL.values() if "base" not in name and "resnet" not in name])
def test_two_steps_change_backbone_and_aggregator(name):
    torch.manual_seed(0)
    entry = find_backbone(name)
    ids = entry.hyperpixels[:2]
    model = CATs(CATsConfig(name, ids, entry.image_size, projection_dim=32)).train()
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images = torch.randn(2, 2, 3, entry.image_size, entry.image_size)
    for _ in range(2):
        loss = model(images[0], images[1]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.isfinite(loss)
    for part in ("feature_extraction.", "decoder.", "proj."):
        assert any(not torch.equal(v, before[k]) for k, v in model.named_parameters() if k.startswith(part))


def test_images_that_patches_do_not_divide_are_refused():
    with pytest.raises(InputError, match=r"image_size 256 is no multiple of 14 pixels, .*; 224 gives 16x16"):
        HyperpixelBackbone("vit_small_patch14_dinov2", (1,), 256)


def test_an_unknown_backbone_is_refused_with_the_list():
    with pytest.raises(InputError, match=r"unknown backbone 'swin_tiny'; known: resnet101, .*vit_\*dinov3\*, convnext"):
        CATsConfig("swin_tiny", (1,)).preprocessing  # noqa: B018
