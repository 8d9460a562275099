"""Files of other tools, damaged models and damaged documents: calibrated, or refused in one line."""

import json

import numpy as np
import onnx
import pytest
from commands import runner
from onnx import TensorProto, helper, numpy_helper

from cats.calibration.calibrate import load_float_model
from cats.calibration.cli import main
from cats.calibration.graph import Graph, quantizable_modules
from cats.calibration.ranges import Ranges
from cats.calibration.sessions import ProbeSession
from cats.core.errors import InputError, ModelFileError

AS_IS = ("--as-is", "--no-time", "--from-ranges", "r.json", "-o", "q.onnx")


@pytest.fixture
def calibrate(monkeypatch, capsys, tmp_path, ranges):
    monkeypatch.chdir(tmp_path)
    ranges.save("r.json")
    return runner(main, "cats-calibrate", monkeypatch, capsys)


def first(model, kind):
    return next(node for node in model.graph.node if node.op_type == kind)


@pytest.mark.parametrize("names", ["none", "all alike", "half"])
def test_names_of_nodes_are_found_again(calibrate, source, float_file, copy, names, tmp_path):
    model = copy(onnx.load(float_file))
    for index, node in enumerate(model.graph.node):
        if names != "half" or index % 2:
            node.name = "node" if names == "all alike" else ""
    onnx.save(model, tmp_path / "other.onnx")
    loaded = load_float_model(tmp_path / "other.onnx")
    assert list(quantizable_modules(loaded.model)) == list(quantizable_modules(source.model))
    named = [node.name for node in loaded.model.graph.node]
    assert len(set(named)) == len(named)
    done = calibrate("other.onnx", *AS_IS)
    assert done.code in (0, 1), done.err
    from_names = onnx.load("q.onnx")
    written = [node.name for node in from_names.graph.node]
    assert len(set(written)) == len(written)
    calibrate(float_file, *AS_IS)
    kinds = [[node.op_type for node in model.graph.node] for model in (from_names, onnx.load("q.onnx"))]
    assert kinds[0] == kinds[1]


def test_a_file_that_a_library_optimised_for_itself_is_named(calibrate, float_file, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(tmp_path / "optimised.onnx")
    ort.InferenceSession(str(float_file), options, providers=["CPUExecutionProvider"])
    assert "operators of com.microsoft" in calibrate("optimised.onnx", *AS_IS).error


def test_renamed_weights_are_named(calibrate, source, float_file, tmp_path):
    model = onnx.load(float_file)
    graph = Graph(model)
    for node in graph.quantizable():
        value = graph.constant(node.input[1])
        if f"w{node.input[1]}".replace(".", "_") not in {item.name for item in model.graph.initializer}:
            model.graph.initializer.append(numpy_helper.from_array(value, f"w{node.input[1]}".replace(".", "_")))
        node.input[1] = f"w{node.input[1]}".replace(".", "_")
    onnx.save(model, tmp_path / "renamed.onnx")
    assert "another tool renamed them" in calibrate("renamed.onnx", *AS_IS).error


def remove_initializer(model):
    name = first(model, "Conv").input[1]
    kept = [item for item in model.graph.initializer if item.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def unknown_operator(model):
    first(model, "Conv").op_type = "Nonsense"


def dangling_weight(model):
    first(model, "Conv").input[1] = "gone"


def no_weight(model):
    del first(model, "Conv").input[1:]


def untyped_input(model):
    model.graph.input[0].type.Clear()


def new_opset(model):
    model.opset_import[0].version = 99


def flow_twice(model):
    model.graph.output[1].name = "flow"


def odd_weight(model):
    node = first(model, "Conv")
    model.graph.initializer.append(helper.make_tensor("odd", TensorProto.FLOAT, [2], [0.0, 1.0]))
    node.input[1] = "odd"


def weights_not_finite(model):
    node = first(model, "Conv")
    value = np.asarray(Graph(model).constant(node.input[1])).copy()
    value[0] = np.nan
    model.graph.initializer.append(numpy_helper.from_array(value, "nan"))
    node.input[1] = "nan"


@pytest.mark.parametrize(
    "damage",
    [
        remove_initializer,
        unknown_operator,
        dangling_weight,
        no_weight,
        untyped_input,
        new_opset,
        flow_twice,
        odd_weight,
        weights_not_finite,
    ],
)
@pytest.mark.parametrize("with_photos", [False, True])
def test_damaged_models_are_refused_in_one_line(calibrate, source, photos, damage, with_photos, tmp_path):
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    damage(model)
    (tmp_path / "damaged.onnx").write_bytes(model.SerializeToString())
    given = ("--as-is", "--no-time", "--images", photos, "-o", "q.onnx") if with_photos else AS_IS
    assert calibrate("damaged.onnx", *given).error
    assert not (tmp_path / "q.onnx").exists()


def change(path, value):
    def do(document):
        part = document
        for key in path[:-1]:
            part = part[key]
        if value is KeyError:
            del part[path[-1]]
        else:
            part[path[-1]] = value
        return document

    return do


@pytest.mark.parametrize(
    "value", [KeyError, None, "x", [], {}, -1, 0, 1e400, float("nan"), 10**400, True, [[1]], ["a"]]
)
@pytest.mark.parametrize("path", ["min", "bin_width", "first_bin", "counts", "channels", "largest", "pairs", "sources"])
def test_damaged_ranges_are_refused(ranges, tmp_path, path, value):
    ranges.save(tmp_path / "r.json")
    document = json.loads((tmp_path / "r.json").read_text())
    tensor = next(name for name, item in document["tensors"].items() if "channels" in item)
    where = {"largest": ["tensors", tensor, "channels", path], "pairs": [path], "sources": [path]}
    steps = where.get(path, ["tensors", tensor, path])
    (tmp_path / "d.json").write_text(json.dumps(change(steps, value)(document)))
    harmless = [
        ("first_bin", -1),
        ("first_bin", 0),
        ("min", -1),
        ("min", 0),
        ("channels", KeyError),
        ("channels", None),
    ]
    harmless += [("sources", []), ("sources", ["a"])]
    if any(path == name and value is not True and value == fine for name, fine in harmless):
        Ranges.load(tmp_path / "d.json")
        return
    with pytest.raises(InputError, match=r"d\.json"):
        Ranges.load(tmp_path / "d.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 10000, '{"format": 2}', "\x00", '{"tensors": 3}'])
def test_what_is_no_ranges_is_refused(tmp_path, text):
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(InputError, match=r"d\.json"):
        Ranges.load(tmp_path / "d.json")


def test_missing_external_data_is_one_line(source, tmp_path):
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    onnx.save(model, tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    assert ProbeSession(load_float_model(tmp_path / "e.onnx").model)
    (tmp_path / "e.data").unlink()
    with pytest.raises(ModelFileError, match=r"e\.onnx"):
        load_float_model(tmp_path / "e.onnx")
