"""Looking into model files without the libraries that wrote them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import Command, runner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import tiny_metadata

from cats.assets import asset
from cats.core.errors import CatsError, ModelFileError
from cats.core.files import sha256_file
from cats.core.onnx_summary import read_onnx_summary
from cats.runtime.commands.inspect import inspect, main


@pytest.fixture
def cats_inspect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return runner(main, "cats-inspect", monkeypatch, capsys)


def test_summary_agrees_with_the_onnx_package(model_file: Path) -> None:
    model = onnx.load(model_file)
    summary = read_onnx_summary(model_file)
    assert summary.ir_version == model.ir_version
    assert summary.opsets == {"ai.onnx": 18}
    assert summary.operators.total() == len(model.graph.node)
    assert summary.operators["MatMul"] == sum(node.op_type == "MatMul" for node in model.graph.node)
    assert [(info.name, info.dtype, info.shape) for info in summary.inputs] == [
        ("image_a", "float32", ("N", 3, 256, 256)),
        ("image_b", "float32", ("N", 3, 256, 256)),
    ]
    assert [info.shape for info in summary.outputs] == [("N", 2, 16, 16), ("N", 16, 16)]
    arrays = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    floats = [array for array in arrays if array.dtype == np.float32]
    assert summary.weights["float32"] == (len(floats), sum(array.nbytes for array in floats))
    assert set(summary.metadata) == {"cats"}


def test_summary_of_functions_types_and_domains(tmp_path: Path) -> None:
    function = helper.make_function(
        "cats", "Double", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], [helper.make_opsetid("", 18)]
    )
    values = [
        numpy_helper.from_array(np.zeros((3, 5), np.float16), "half"),
        helper.make_tensor("bytes", TensorProto.INT8, [7], [0] * 7),
        helper.make_tensor("brain", TensorProto.BFLOAT16, [4], [0.0] * 4),
    ]
    graph = helper.make_graph(
        [helper.make_node("Double", ["x"], ["y"], domain="cats")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [None, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [None, 2])],
        values,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("cats", 1)]
    path = tmp_path / "functions.onnx"
    onnx.save(helper.make_model(graph, functions=[function], opset_imports=opsets, producer_name="test"), path)
    summary = read_onnx_summary(path)
    assert summary.functions == ["cats::Double"]
    assert summary.operators == {"cats::Double": 1, "Add": 1}
    assert summary.opsets == {"ai.onnx": 18, "cats": 1}
    assert summary.weights == {"float16": (1, 30), "int8": (1, 7), "bfloat16": (1, 8)}
    assert summary.inputs[0].shape == (None, 2)
    assert summary.inputs[0].dtype == "float16"
    assert summary.producer == "test"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_or_read_never_more(model_file: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(model_file.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) :]
    path = tmp_path / "damaged.onnx"
    path.write_bytes(bytes(content))
    for read in (read_onnx_summary, inspect):
        try:
            read(path)
        except CatsError as error:
            assert "damaged.onnx" in str(error)  # noqa: PT017  # either outcome is right, an unclear one is not


def test_inspect_onnx(cats_inspect: Command, make_model: Callable[..., Path]) -> None:
    path = make_model(parity={"p99_px": 0.01}, precision="fp16")
    found = json.loads(cats_inspect(path, "--json").out)
    assert found["type"] == "onnx"
    assert found["bytes"] == path.stat().st_size
    assert found["metadata"]["parity"] == {"p99_px": 0.01}
    assert found["graph"]["inputs"][0]["name"] == "image_a"
    shown = cats_inspect(path).out
    for text in ("fp16", "p99_px: 0.01", "image_b: float32 (N, 3, 256, 256)", "a->b", "MatMul", "ai.onnx: 18"):
        assert text in shown, shown


def test_inspect_the_shipped_model(cats_inspect: Command) -> None:
    done = cats_inspect(asset("cats-tiny.onnx"))  # whose metadata says how the weights are stored
    assert done.code == 0
    assert "fp16-storage" in done.out


def test_inspect_a_foreign_onnx_file(cats_inspect: Command, make_model: Callable[..., Path]) -> None:
    path = make_model(document=None)
    assert json.loads(cats_inspect(path, "--json").out)["metadata"] is None
    assert "not a file of this toolkit" in cats_inspect(path).out


def test_inspect_an_engine_by_its_sidecar(cats_inspect: Command, tmp_path: Path) -> None:
    plan = tmp_path / "x.plan"
    plan.write_bytes(b"pretended machine code")
    assert "x.plan.json" in cats_inspect(plan).error
    engine = {"sha256": sha256_file(plan), "flavour": "tensorrt-rtx"}
    (tmp_path / "x.plan.json").write_text(json.dumps(tiny_metadata(engine=engine).to_dict()))
    found = inspect(plan)
    assert found["type"] == "engine"
    assert found["sidecar_fits"] is True
    assert "flavour: tensorrt-rtx" in cats_inspect(plan).out
    plan.write_bytes(b"another engine")
    assert inspect(plan)["sidecar_fits"] is False
    assert "is a sidecar" in cats_inspect(tmp_path / "x.plan.json").error


def test_inspect_a_checkpoint(cats_inspect: Command, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from cats.checkpoints import save_checkpoint
    from cats.model import CATs, CATsConfig

    config = CATsConfig(backbone="mobilenetv2_100", hyperpixels=(10, 13), projection_dim=8, num_heads=2)
    path = tmp_path / "best.pt"
    save_checkpoint(path, CATs(config), metrics={"pck": 12.5}, training={"epochs": 3})
    found = json.loads(cats_inspect(path, "--json").out)
    assert found["type"] == "checkpoint"
    assert found["origin"] == "cats-toolkit"
    assert found["config"]["backbone"] == "mobilenetv2_100"
    assert found["metrics"] == {"pck": 12.5}
    assert found["parameters"]["decoder"] > 0
    assert len(found["weights_sha256"]) == 64
    shown = cats_inspect(path).out
    assert "epochs: 3" in shown
    (tmp_path / "noise.pt").write_bytes(b"noise")
    assert "noise.pt" in cats_inspect(tmp_path / "noise.pt").error


def test_inspect_without_torch_reads_onnx(model_file: Path) -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'timm', 'onnx', 'onnxruntime'): sys.modules[name] = None\n"
        "from cats.runtime.commands.inspect import inspect\n"
        "print(inspect(sys.argv[1])['graph']['nodes'])\n"
        "try: inspect(sys.argv[2])\n"
        "except Exception as error: print(error)\n"
    )
    checkpoint = model_file.with_name("some.pt")
    checkpoint.write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-c", script, str(model_file), str(checkpoint)], capture_output=True, text=True, check=True
    )
    nodes, message = done.stdout.splitlines()
    assert int(nodes) > 10
    assert "torch is needed to read checkpoints" in message


def test_missing_and_empty_files(cats_inspect: Command, tmp_path: Path) -> None:
    assert "does not exist" in cats_inspect(tmp_path / "none.onnx").error
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(ModelFileError, match="not an ONNX file"):
        inspect(tmp_path / "empty.onnx")


def test_lost_metadata_are_put_back(cats_inspect: Command, make_model: Callable[..., Path], tmp_path: Path) -> None:
    """A file whose graph stayed is the verified one again; one whose weights changed is not."""
    whole = make_model()
    model = onnx.load(whole)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "lost.onnx")
    assert "metadata-from" in cats_inspect(tmp_path / "lost.onnx").out
    found = json.loads(cats_inspect(tmp_path / "lost.onnx", "--metadata-from", whole, "--json").out)
    assert found["metadata"]["verified"] is True
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    onnx.save(model, tmp_path / "lost.onnx")
    found = json.loads(cats_inspect(tmp_path / "lost.onnx", "--metadata-from", whole, "--json").out)
    assert (found["metadata"]["verified"], found["metadata"]["precision"]) == (False, "unknown")
    assert found["changed"]
    model.graph.output[0].name = "other"
    onnx.save(model, tmp_path / "lost.onnx")
    refused = cats_inspect(tmp_path / "lost.onnx", "--metadata-from", whole)
    assert (refused.code, "other inputs and outputs" in refused.err) == (2, True)


def test_sizes_of_any_kind_are_read_or_refused(tmp_path: Path) -> None:
    """Sizes of 2^63 - 1: twenty are a number that no float holds, sixty thousand took most of a minute."""

    def varint(value: int) -> bytes:
        return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])

    def field(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content)) + content

    for count in (20, 60_000):
        tensor = field(1, varint(2**63 - 1) * count) + b"\x10\x01"
        (tmp_path / "m.onnx").write_bytes(b"\x08\x0a" + field(8, b"\x0a\x00\x10\x14") + field(7, field(5, tensor)))
        if count == 20:
            assert inspect(tmp_path / "m.onnx")["graph"]["weights"]["float32"]["bytes"] == 1 << 62
        else:
            with pytest.raises(CatsError, match="more than 64"):
                inspect(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "parts",
    [
        {"[/x]": "1"},
        {"weights": "a", "bytes": "x", "inputs": "x", "operators": 5, "parameters": [1]},
        {"graph": {"[bold]": []}, "metadata": None},
    ],
)
def test_metadata_of_any_names_are_shown_as_they_are(
    cats_inspect: Command, make_model: Callable[..., Path], parts: dict
) -> None:
    shown = cats_inspect(make_model(document=parts))
    assert shown.code == 0, shown.err
    for name in parts:
        assert name in shown.out


def test_names_in_a_graph_are_no_markup(cats_inspect: Command, tmp_path: Path) -> None:
    port = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("[/x]", ["[/x]"], ["y"])], "g", [port("[/x]", 1, [1])], [port("y", 1, [1])]
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    shown = cats_inspect(tmp_path / "m.onnx")
    assert shown.code == 0
    assert "[/x]: float32 (1)" in shown.out
