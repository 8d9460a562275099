"""Each rewrite of a module computes what the module computed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cats.backbones import HyperpixelBackbone
from cats.export.graph.blocks import HeadAttention, make_block
from cats.export.graph.rewrites import Linear, Resize, fold_batch_norm, store_transposed
from cats.model import MultiscaleBlock


def close(actual, expected, tolerance=1e-5):
    scale = expected.abs().max()
    assert scale > 0
    assert (actual - expected).abs().max() <= tolerance * scale


@pytest.mark.parametrize(
    ("name", "ids"), [("resnet50", (0, 3, 7)), ("tf_efficientnet_lite0", (0, 3, 8)), ("mobilenetv2_100", (5,))]
)
@torch.no_grad()
def test_batch_norm_is_folded_into_the_convolution_before_it(name, ids):
    torch.manual_seed(0)
    network = HyperpixelBackbone(name, ids, 64).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1)
            module.bias.normal_(std=0.1)
    image = torch.randn(2, 3, 64, 64)
    expected = network(image)
    original = {key: value.clone() for key, value in network.state_dict().items()}
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    factors = fold_batch_norm(network, image)
    assert len(factors) == norms
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    for level, want in zip(network(image), expected, strict=True):
        close(level, want)
    for key, factor in factors.items():
        assert torch.equal(network.state_dict()[key], original[key] * factor[:, None, None, None])


@torch.no_grad()
def test_a_norm_that_reads_no_convolution_stays():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    assert fold_batch_norm(network, torch.randn(1, 3, 4, 4)) == {}
    assert isinstance(network[2], nn.BatchNorm2d)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (8, 8), (20, 13)])
@torch.no_grad()
def test_resize_by_matrices(size):
    x = torch.randn(2, 5, *size)
    expected = F.interpolate(x, (16, 16), mode="bilinear", align_corners=True)
    assert torch.allclose(Resize(*size, 16)(x), expected, atol=1e-4)


@torch.no_grad()
def test_linear_with_the_weight_transposed():
    layer, x = nn.Linear(6, 4), torch.randn(2, 3, 6)
    assert torch.allclose(Linear.of(layer)(x), layer(x), atol=1e-6)
    network = nn.Sequential(layer, nn.Sequential(nn.Linear(4, 2, bias=False)))
    expected = network(x)
    store_transposed(network)
    assert not any(isinstance(module, nn.Linear) for module in network.modules())
    assert torch.allclose(network(x), expected, atol=1e-6)


def random_block(dim=24, heads=3):
    torch.manual_seed(0)
    block = MultiscaleBlock(dim, heads, 2.0).eval()
    with torch.no_grad():
        for value in block.parameters():
            value.add_(0.3 * torch.randn_like(value))
    return block


@torch.no_grad()
def test_attention_by_heads():
    attention, x = random_block().attn, torch.randn(4, 9, 24)
    close(HeadAttention(attention)(x), attention(x))


@torch.no_grad()
def test_attention_among_levels_regroups_tokens_by_itself():
    attention, x = random_block().attn_multiscale, torch.randn(2 * 3, 9, 24)  # B * L, N, D
    by_position = x.reshape(2, 3, 9, 24).transpose(1, 2).reshape(-1, 3, 24)
    expected = attention(by_position).reshape(2, 9, 3, 24).transpose(1, 2).reshape(6, 9, 24)
    close(HeadAttention(attention, levels=3)(x), expected)


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("split_heads", [False, True])
@torch.no_grad()
def test_blocks(levels, split_heads):
    block = random_block()
    x = torch.randn(2 * levels, 9, 24)
    expected = block(x.unflatten(0, (2, levels))).flatten(0, 1)
    rewritten = make_block(copy.deepcopy(block), levels, split_heads=split_heads)
    stream, normed = rewritten(x)
    close(stream + rewritten.mlp(normed), expected)
