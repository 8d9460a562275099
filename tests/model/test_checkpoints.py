"""Checkpoints of ours and the authors': what loads, what is refused, and how it is said."""

import argparse
import collections
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import golden_images, golden_shapes, shared

from cats.benchmarks.models import formula_weight
from cats.checkpoints import load_checkpoint, save_checkpoint, save_document, weights_sha256
from cats.core.errors import CheckpointError, InputError
from cats.model import CATs, CATsConfig

SMALL = CATsConfig(
    backbone="tf_efficientnet_lite0", hyperpixels=(2, 3), image_size=64, feature_size=4, projection_dim=16, num_heads=4
)


@pytest.fixture(scope="session")
def authors_folder(tmp_path_factory):
    """A folder as the authors' training writes it, with the weights of the goldens."""
    folder = tmp_path_factory.mktemp("authors")
    state = {k: torch.from_numpy(np.asarray(formula_weight(k, s))) for k, s in golden_shapes().items()}
    training = {"optimizer": {"lr": 1e-3}, "scheduler": {"milestones": collections.Counter([70])}, "epoch": 3}
    torch.save({"state_dict": state, "best_loss": np.float64(0.5), **training}, folder / "model_best.pth")
    arguments = argparse.Namespace(hyperpixel="[0,8,20,21,26,28,29,30]", num_heads=6, feature_size=16, freeze=False)
    (folder / "args.pkl").write_bytes(pickle.dumps(arguments))
    return folder


@torch.no_grad()
def test_authors_folder_loads_and_gives_the_golden_flow(authors_folder):
    golden = np.load(shared("goldens", "spair.npz"))
    checkpoint = load_checkpoint(authors_folder)
    assert checkpoint.origin == "authors"
    assert checkpoint.model.config == CATsConfig()
    assert "feature_extraction.backbone.fc.weight" in checkpoint.ignored
    target, source = map(torch.from_numpy, golden_images(int(golden["seed"]), int(golden["batch"])))
    assert np.quantile(np.abs(checkpoint.model(target, source).numpy() - golden["flow"]), 0.99) < 1e-3


def test_authors_file_alone_needs_the_hyperpixels(authors_folder, tmp_path):
    file = tmp_path / "model_best.pth"
    file.symlink_to(authors_folder / "model_best.pth")
    with pytest.raises(CheckpointError, match="--hyperpixels"):
        load_checkpoint(file)
    assert load_checkpoint(file, hyperpixels=(0, 8, 20, 21, 26, 28, 29, 30)).model.config == CATsConfig()
    with pytest.raises(CheckpointError, match="8 hyperpixels, 2 given"):
        load_checkpoint(file, hyperpixels=(1, 2))


class Malicious:
    def __reduce__(self):
        return (exec, ("import builtins; builtins.executed = True",))


def test_pickled_code_is_not_executed(authors_folder, tmp_path):
    (tmp_path / "model_best.pth").symlink_to(authors_folder / "model_best.pth")
    (tmp_path / "args.pkl").write_bytes(pickle.dumps(argparse.Namespace(hyperpixel=Malicious())))
    with pytest.raises(CheckpointError, match=r"args\.pkl.*builtins\.exec"):
        load_checkpoint(tmp_path)
    torch.save({"format": 1, "config": Malicious()}, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match=r"runs code: it refers to (builtins\.)?exec$"):
        load_checkpoint(tmp_path / "best.pt")
    import builtins

    assert not hasattr(builtins, "executed")


def test_round_trip(tmp_path):
    model = CATs(SMALL)
    save_checkpoint(tmp_path / "best.pt", model, metrics={"pck": 0.5}, training={"seed": 1})
    loaded = load_checkpoint(tmp_path / "best.pt")
    assert loaded.model.config == SMALL
    assert (loaded.metrics, loaded.training, loaded.origin) == ({"pck": 0.5}, {"seed": 1}, "cats-toolkit")
    assert weights_sha256(loaded.model) == weights_sha256(model)
    assert not loaded.model.training


def test_half_checkpoint_is_half_the_size_and_loads_as_float32(tmp_path):
    model = CATs(SMALL)
    for half in (False, True):
        save_checkpoint(tmp_path / f"{half}.pt", model, half=half)
    assert (tmp_path / "True.pt").stat().st_size < 0.6 * (tmp_path / "False.pt").stat().st_size
    loaded = load_checkpoint(tmp_path / "True.pt").model
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert torch.allclose(loaded.decoder.proj.weight, model.decoder.proj.weight, atol=1e-4)


def test_wrong_tensors_are_named(tmp_path):
    model = CATs(SMALL)
    state = model.state_dict()
    del state["decoder.proj.bias"]
    state["decoder.proj.weight"] = torch.zeros(3, 3)
    state["surplus"] = torch.zeros(1)
    torch.save({"format": 1, "config": SMALL.to_dict(), "state_dict": state}, tmp_path / "best.pt")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "best.pt")
    for part in ("1 missing: decoder.proj.bias", "1 unexpected: surplus", "decoder.proj.weight (3, 3) instead of"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"format": 9, "config": {}, "state_dict": {}}, "format 9"),
        ({"format": 1}, r"lacks \['config', 'state_dict'\]"),
        ({"weights": 1}, "neither a checkpoint of this toolkit"),
        ([1, 2], "holds a list"),
        ({"state_dict": {}, "x": 1}, "holds no tensors"),
        ({"format": 1, "config": {"depth": -1}, "state_dict": {}}, "depth"),
    ],
)
def test_other_files_are_refused_clearly(document, message, tmp_path):
    torch.save(document, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "x.pt")


def test_unreadable_and_unwritable(tmp_path):
    for text in ("not a checkpoint", "junk\n", ""):
        (tmp_path / "x.pt").write_text(text)
        with pytest.raises(CheckpointError, match=r"x\.pt.* [a-z]{2}"):
            load_checkpoint(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match=r"without model_best\.pth"):
        load_checkpoint(tmp_path)
    with pytest.raises(InputError, match="cannot write"):
        save_checkpoint(tmp_path / "no" / "folder" / "x.pt", CATs(SMALL))
    assert {p.name for p in tmp_path.iterdir()} == {"x.pt"}


def test_a_full_disk_is_called_so_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch raises a RuntimeError about positions in its archive."""
    path = tmp_path / "state.pt"
    save_document(path, {"step": 1})

    def full(document: object, where: Path) -> None:
        Path(where).write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 420736 vs 420624")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 0}))
    with pytest.raises(InputError, match=r"state\.pt: No space left on device; what was there before is intact"):
        save_document(path, {"step": 2})
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def _small() -> tuple[CATs, dict]:
    model = CATs(SMALL)
    return model, {key: value.clone() for key, value in model.state_dict().items()}


@pytest.fixture(scope="session")
def authors_small():
    """A state dict of the authors' kind that is small: a ResNet-50 with two hyperpixels."""
    config = CATsConfig("resnet50", (0, 1), image_size=128, feature_size=8, projection_dim=32)
    model = CATs(config)
    return config, model.state_dict()


def _same(model: CATs, state: dict) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
        lambda state: {"model": {f"module._orig_mod.model.{key}": value for key, value in state.items()}},
        lambda state: {key.replace("extraction.", "extraction._orig_mod."): value for key, value in state.items()},
        lambda state: {"ema": {"module": {**state, "n_averaged": torch.tensor(3)}}, "epoch": 4},
        lambda state: collections.OrderedDict(state),
    ],
    ids=("parallel", "compiled", "lightning", "compiled part", "average", "bare"),
)
def test_wrapped_state_dicts_are_understood(authors_small, wrap, tmp_path):
    config, state = authors_small
    torch.save(wrap(state), tmp_path / "x.pth")
    loaded = load_checkpoint(tmp_path / "x.pth", hyperpixels=(0, 1))
    assert loaded.model.config == config
    assert _same(loaded.model, state)


def test_averaged_weights_come_first_and_are_named(authors_small, tmp_path):
    _, state = authors_small
    averaged = {key: value + 1 if value.is_floating_point() else value for key, value in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": averaged}, tmp_path / "x.pth")
    loaded = load_checkpoint(tmp_path / "x.pth", hyperpixels=(0, 1))
    assert loaded.weights == "state_dict_ema"
    assert _same(loaded.model, averaged)


@pytest.mark.parametrize("key", ["args", "hyper_parameters"])
def test_arguments_within_the_file_are_understood(authors_small, key, tmp_path):
    config, state = authors_small
    arguments = argparse.Namespace(hyperpixel="[0, 1]", num_heads=4, out=Path("runs/1"))
    torch.save({"state_dict": state, key: arguments}, tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth").model.config.num_heads == 4
    (tmp_path / "args.pkl").write_bytes(pickle.dumps(argparse.Namespace(hyperpixel=(0, 1)), protocol=0))
    assert load_checkpoint(tmp_path / "x.pth").model.config == config


def test_the_format_before_pytorch_1_6_is_read(authors_small, tmp_path):
    _, state = authors_small
    torch.save({"state_dict": state}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert _same(load_checkpoint(tmp_path / "x.pth", hyperpixels=(0, 1)).model, state)
    data = (tmp_path / "x.pth").read_bytes()
    for length in (len(data) - 1, len(data) // 2, 300):
        (tmp_path / "x.pth").write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"x\.pth: it"):
            load_checkpoint(tmp_path / "x.pth", hyperpixels=(0, 1))


@pytest.mark.parametrize("half", [False, True])
def test_safetensors_hold_the_same(half, tmp_path):
    model, state = _small()
    save_checkpoint(tmp_path / "x.safetensors", model, metrics={"pck": 0.5}, training={"seed": 1}, half=half)
    loaded = load_checkpoint(tmp_path / "x.safetensors")
    assert (loaded.model.config, loaded.metrics, loaded.training) == (SMALL, {"pck": 0.5}, {"seed": 1})
    assert half or _same(loaded.model, state)
    (tmp_path / "x.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(CheckpointError, match=r"cannot read .*x\.safetensors"):
        load_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_named(value, tmp_path):
    _, state = _small()
    state["decoder.blocks.0.mlp.fc1.weight"][3, 2] = value
    torch.save({"format": 1, "config": SMALL.to_dict(), "state_dict": state}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"1 of \d+ tensors hold values that are not finite.*mlp\.fc1\.weight"):
        load_checkpoint(tmp_path / "x.pt")


BASE = SMALL.to_dict()


@pytest.mark.parametrize(
    "config",
    [
        None,
        {**BASE, "depth": 1.5},
        {**BASE, "depth": True},
        {**BASE, "depth": 60},
        {**BASE, "mlp_ratio": float("inf")},
        {**BASE, "mlp_ratio": 999.0},
        {**BASE, "feature_size": 4.0},
        {**BASE, "feature_size": 10**9},
        {**BASE, "hyperpixels": [float("inf")]},
        {**BASE, "hyperpixels": []},
        {**BASE, "backbone": 5},
        {**BASE, "backbone": "vit_a/b_dino"},
        {**BASE, "swapping": None},
        {1: 2},
    ],
)
def test_configurations_of_any_kind_are_one_line_and_no_memory(config, tmp_path, monkeypatch):
    _, state = _small()
    torch.save({"format": 1, "config": config, "state_dict": state}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "x.pt")
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["abc", None, [1.0], torch.ones(16).to_sparse(), torch.tensor([1 + 2j])])
def test_what_stands_in_place_of_a_tensor_is_named(value, tmp_path):
    _, state = _small()
    torch.save({"format": 1, "config": BASE, "state_dict": {**state, "x_normal": value}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x_normal|_rebuild_sparse_tensor|ComplexFloatStorage"):
        load_checkpoint(tmp_path / "x.pt")


def test_views_of_one_storage_do_not_take_more_memory_than_the_file(tmp_path):
    _, state = _small()
    tiny = torch.ones(1)
    grown = {key: tiny.expand(value.shape) if value.is_floating_point() else value for key, value in state.items()}
    torch.save({"format": 1, "config": BASE, "state_dict": grown}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="larger than its storage"):
        load_checkpoint(tmp_path / "x.pt")
