"""``cats triton``: repositories that Triton's own configuration parser takes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from commands import Command, runner
from tiny_onnx import save_model, tiny_metadata, tiny_model
from triton_server import need, run_python

from cats import cli
from cats.assets import asset
from cats.core.metadata import read_onnx_metadata
from cats.runtime.tensorrt.sidecar import sidecar_text
from cats.serving.triton import write_repository
from cats.serving.triton_containers import find_container

PARSE = """
import glob, json, sys
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton
for path in sorted(glob.glob(sys.argv[1] + "/*/config.pbtxt")):
    config = text_format.Parse(open(path).read(), triton.ModelConfig())
    assert path.split("/")[-2] == config.name
    document = json.loads(config.parameters["cats"].string_value)
    warm = {name: list(item.dims) for run in config.model_warmup for name, item in run.inputs.items()}
    groups = [(triton.ModelInstanceGroup.Kind.Name(item.kind), item.count) for item in config.instance_group]
    values = [config.max_batch_size, list(config.dynamic_batching.preferred_batch_size), groups, warm]
    tensors = [*config.input, *config.output]
    types = {item.name: (triton.DataType.Name(item.data_type), list(item.dims)) for item in tensors}
    print(json.dumps([config.name, config.backend, document.get("kind"), *values, types]))
"""


@pytest.fixture
def cats(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return runner(cli.main, "cats", monkeypatch, capsys)


def parse(repository: Path) -> dict[str, dict[str, Any]]:
    """What Triton's parser reads from each configuration."""
    need("tritonclient.grpc.model_config_pb2")
    keys = ("backend", "kind", "max_batch", "preferred", "groups", "warm_up", "tensors")
    lines = map(json.loads, run_python(PARSE, repository).splitlines())
    return {name: dict(zip(keys, values, strict=True)) for name, *values in lines}


def plan(folder: Path, name: str, *, kind: str = "pair", profile: dict[str, Any] | None = None, **engine: Any) -> Path:
    """A file that passes for an engine of cats-build where nobody runs it, with its sidecar."""
    path = folder / name
    data = b"ftrt" + bytes(64)
    path.write_bytes(data)
    shape = {"min": [1, 3, 256, 256], "opt": [4, 3, 256, 256], "max": [16, 3, 256, 256]}
    described = {
        "flavour": "tensorrt",
        "version": "10.13.3.9",
        "targets": ["sm86"],
        "version_compatible": False,
        "profiles": [{"image_a": shape, "image_b": shape} if profile is None else profile],
        "sha256": hashlib.sha256(data).hexdigest(),
        "source": "cats-tiny.onnx",
        **engine,
    }
    metadata = read_onnx_metadata(asset("cats-tiny.onnx")).with_(kind=kind, engine=described)
    (folder / f"{name}.json").write_text(sidecar_text(metadata))
    return path


def end_to_end_plan(folder: Path) -> Path:
    image = {"min": [1, 200, 200, 3], "opt": [1, 640, 480, 3], "max": [1, 1024, 1024, 3]}
    points = {"min": [1, 1, 2], "opt": [1, 32, 2], "max": [1, 512, 2]}
    profile = {"image_a": image, "image_b": image, "points_a": points}
    return plan(folder, "best.e2e.plan", kind="end-to-end", profile=profile)


def split_plans(folder: Path) -> Path:
    """An encoder and its matcher; one of the two is enough to name both."""
    image, features = [3, 256, 256], [64, 256]
    profiles = {
        "encoder": {"image": image},
        "matcher": {f"features_0_{side}": features for side in "ab"},
    }
    for kind, inputs in profiles.items():
        profile = {name: {"min": [1, *dims], "opt": [2, *dims], "max": [8, *dims]} for name, dims in inputs.items()}
        path = plan(folder, f"best.{kind}.plan", kind=kind, profile=profile)
    return path


def test_tritons_parser_takes_every_configuration(tmp_path: Path) -> None:
    fixed = save_model(tmp_path / "fixed.onnx", tiny_model(batch=1), tiny_metadata())
    four = save_model(tmp_path / "four.onnx", tiny_model(batch=4), tiny_metadata())
    files = [asset("cats-tiny.onnx"), asset("cats-tiny.encoder.onnx"), fixed, four]
    files += [plan(tmp_path, "best.plan"), end_to_end_plan(tmp_path), split_plans(tmp_path)]
    names = write_repository(tmp_path / "models", files, max_batch=6, count=2, cpu=True)
    found = parse(tmp_path / "models")
    assert list(found) == sorted(names)
    assert {name: (item["backend"], item["kind"], item["max_batch"]) for name, item in found.items()} == {
        "best": ("tensorrt", "pair", 16),
        "best_e2e": ("tensorrt", "end-to-end", 1),
        "best_e2e_points": ("python", None, 1),
        "best_encoder": ("tensorrt", "encoder", 8),
        "best_matcher": ("tensorrt", "matcher", 8),
        "best_points": ("python", None, 16),
        "best_split_points": ("python", None, 8),
        "cats-tiny": ("onnxruntime", "pair", 6),
        "cats-tiny_encoder": ("onnxruntime", "encoder", 6),
        "cats-tiny_matcher": ("onnxruntime", "matcher", 6),
        "cats-tiny_points": ("python", None, 6),
        "cats-tiny_split_points": ("python", None, 6),
        "fixed": ("onnxruntime", "pair", 0),
        "fixed_points": ("python", None, 6),
        "four": ("onnxruntime", "pair", 0),  # no points: it runs no single pair
    }
    assert found["best"]["preferred"] == [4, 16]
    assert found["cats-tiny"]["preferred"] == []
    assert found["best"]["groups"] == [["KIND_GPU", 2]]
    assert found["cats-tiny"]["groups"] == found["best_points"]["groups"] == [["KIND_CPU", 2]]
    assert found["best_e2e"]["warm_up"] == {"image_a": [640, 480, 3], "image_b": [640, 480, 3], "points_a": [32, 2]}
    assert found["fixed"]["warm_up"] == {"image_a": [1, 3, 256, 256], "image_b": [1, 3, 256, 256]}
    assert found["best_encoder"]["tensors"] == {
        "image": ["TYPE_FP32", [3, 256, 256]],
        "features_0": ["TYPE_FP32", [64, 256]],
    }
    assert found["best_e2e"]["tensors"]["image_a"] == ["TYPE_UINT8", [-1, -1, 3]]
    assert found["cats-tiny"]["tensors"]["flow"] == ["TYPE_FP32", [2, 16, 16]]


def test_a_repository_is_complete_and_says_how_to_start(cats: Command, tmp_path: Path) -> None:
    done = cats("triton", tmp_path / "models", plan(tmp_path, "best.plan"), "cats-tiny", "--cpu", "--instances", 2)
    assert done.code == 0, done.err
    assert "warning" not in done.err
    models = tmp_path / "models"
    assert (models / "best" / "1" / "model.plan").read_bytes() == (tmp_path / "best.plan").read_bytes()
    assert (models / "cats-tiny" / "1" / "model.onnx").read_bytes() == asset("cats-tiny.onnx").read_bytes()
    (entry,) = json.loads((models / "perf_analyzer.json").read_text())["data"]
    assert set(entry) == {"image_a", "image_b", "points_a"}
    assert len(entry["points_a"]["content"]) == 2 * entry["points_a"]["shape"][0]
    readme = (models / "README.md").read_text()
    assert "`best` was built by TensorRT 10.13.3.9" in readme
    assert "tritonserver:25.10-py3 sh -c" in readme
    assert "perf_analyzer -m best_points --concurrency-range 1:8 --input-data perf_analyzer.json" in readme
    assert cats("triton", models, "cats-tiny", "--force").code == 0
    assert not (models / "best").exists()
    assert "tritonserver:26.08-py3 sh -c" in (models / "README.md").read_text()


def test_the_container_fits_the_engine(tmp_path: Path) -> None:
    assert find_container("11.1.0.106") == "26.07"
    assert find_container("10.13.3.9.post1") == "25.10"
    assert find_container("11.4.0.106") is None
    assert find_container("10.12.0.36") is None
    assert find_container("10.12.0.36", newer=True) == "26.04"
    assert find_container("11.4.0.106", newer=True) is None
    files = [
        plan(tmp_path, "new.plan", version="11.4.0.106"),
        plan(tmp_path, "old.plan", version="10.14.1.48"),
        plan(tmp_path, "lean.plan", version="10.12.0.36", version_compatible=True),
    ]
    write_repository(tmp_path / "models", files)
    readme = (tmp_path / "models" / "README.md").read_text()
    assert "tritonserver:TAG-py3 sh -c" in readme
    assert "serve them apart" in readme
    assert (
        "`new` was built by TensorRT 11.4.0.106, and no other TensorRT runs an engine: cats-toolkit knows no" in readme
    )
    assert "`old` was built by TensorRT 10.14.1.48" in readme
    assert "run what is built as version-compatible: **`tritonserver:26.04-py3`**" in readme
    assert "--backend-config=tensorrt,version-compatible=true" in readme


def test_what_is_not_verified_is_said(cats: Command, tmp_path: Path) -> None:
    doubtful = save_model(tmp_path / "doubtful.onnx", tiny_model(), tiny_metadata(verified=False))
    done = cats("triton", tmp_path / "models", doubtful)
    assert "was not verified" in done.err
    assert "pair, fp32 | onnxruntime | 8 | no |" in (tmp_path / "models" / "README.md").read_text()


def test_weights_beside_the_file_come_along(tmp_path: Path) -> None:
    model = save_model(tmp_path / "whole.onnx", tiny_model(), tiny_metadata())
    onnx.save(
        onnx.load(model), tmp_path / "tiny.onnx", save_as_external_data=True, location="tiny.data", size_threshold=0
    )
    write_repository(tmp_path / "models", [tmp_path / "tiny.onnx"])
    (tmp_path / "tiny.data").unlink()
    onnx.checker.check_model(tmp_path / "models" / "tiny" / "1" / "model.onnx")


def test_refusals(cats: Command, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    assert "is not empty" in cats("triton", tmp_path / "full", "cats-tiny").error
    assert "two of the files" in cats("triton", tmp_path / "m", "cats-tiny", copy(tmp_path, "cats-tiny")).error
    same = copy(tmp_path, "cats-tiny_points")
    assert "would be the model cats-tiny_points" in cats("triton", tmp_path / "m", "cats-tiny", same).error
    assert "none.onnx" in cats("triton", tmp_path / "m", tmp_path / "none.onnx").error
    rtx = plan(tmp_path, "rtx.plan", flavour="tensorrt-rtx")
    assert "tensorrt-rtx" in cats("triton", tmp_path / "m", rtx).error
    assert "no weights" in cats("triton", tmp_path / "m", plan(tmp_path, "empty.plan", stripped=True)).error
    assert "fixed shapes" in cats("triton", tmp_path / "m", plan(tmp_path, "fixed.plan", profiles=[])).error
    odd = plan(tmp_path, "odd.plan", profile={"image_a": {"min": []}})
    assert "describes no profile" in cats("triton", tmp_path / "m", odd).error
    shape = {"min": [2, 3, 256, 256], "opt": [4, 3, 256, 256], "max": [16, 3, 256, 256]}
    two = plan(tmp_path, "two.plan", profile={"image_a": shape, "image_b": shape})
    assert "no single pair" in cats("triton", tmp_path / "m", two).error
    assert not (tmp_path / "m").exists()


def test_a_model_in_the_folder_is_not_replaced_by_it(cats: Command, tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert cats("triton", models, "cats-tiny").code == 0
    inside = models / "cats-tiny" / "1" / "model.onnx"
    done = cats("triton", models, inside)
    assert done.code == 2
    assert "give another folder" in done.error
    assert inside.read_bytes() == asset("cats-tiny.onnx").read_bytes()
    assert "give --force" in cats("triton", models, "cats-tiny").error
    (models / "mine").write_text("of the earlier run")
    assert cats("triton", models, "cats-tiny", "--force").code == 0
    assert not (models / "mine").exists()


def copy(folder: Path, name: str) -> Path:
    path = folder / f"{name}.onnx"
    shutil.copyfile(asset("cats-tiny.onnx"), path)
    return path
