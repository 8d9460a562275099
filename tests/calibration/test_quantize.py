"""Q/DQ graphs: what is quantized and what is not, what libraries make of them, how far from float they are."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from cats.calibration.balance import balance_channels
from cats.calibration.distribution import METHODS
from cats.calibration.graph import Graph, quantizable_modules
from cats.calibration.quantize import quantize
from cats.calibration.sessions import ProbeSession
from cats.core.errors import InputError, ModelFileError
from cats.evaluation.parity import flow_distance
from cats.export.modules import module_of
from cats.export.storage import inline_functions, store_as_half
from cats.runtime.backends.openvino import shared_core

FLOAT_ONLY = ("Correlation", "Softmax", "LayerNormalization", "Gelu", "ReduceMean", "Exp")


@pytest.fixture(scope="session")
def quantized(source, ranges):
    """(precision, target) -> model."""
    kinds = [("int8", "tensorrt"), ("int8", "cpu"), ("fp8", "tensorrt")]
    return {kind: quantize(source.model, ranges, precision=kind[0], target=kind[1]) for kind in kinds}


def drift(source, model, feeds):
    expected, actual = (ProbeSession(m)(feeds)["flow"] for m in (source.model, model))
    return flow_distance(expected, actual)


def test_modules_are_named_as_in_pytorch(source):
    found = quantizable_modules(source.model)
    assert "feature_extraction.backbone.conv_stem" in found
    assert {"proj.0", "decoder.blocks.0.attn.q", "decoder.blocks.0.mlp2.fc1", "decoder.proj"} <= set(found)
    assert found["decoder.proj"] == [
        "decoder.proj/MatMul",
        "decoder.proj/MatMul_1",
    ]  # both passes of swapping attention
    assert not any(name.startswith(("resize", "soft_argmax", "correlation")) for name in found)


@pytest.mark.parametrize("kind", [("int8", "tensorrt"), ("int8", "cpu"), ("fp8", "tensorrt")])
def test_everything_quantizable_and_nothing_else(source, quantized, kind):
    model = quantized[kind]
    onnx.checker.check_model(model, full_check=True)
    graph = Graph(model)
    count = 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul") and module_of(node) in quantizable_modules(source.model):
            for name in node.input[:2]:
                assert graph.producer[name].op_type == "DequantizeLinear", node.name
            count += 1
        elif node.op_type in FLOAT_ONLY and kind[1] == "tensorrt":
            assert all(
                name not in graph.producer or graph.producer[name].op_type != "DequantizeLinear" for name in node.input
            ), node.name
    assert count == sum(len(names) for names in quantizable_modules(source.model).values())


def test_placement_for_tensorrt(quantized):
    graph = Graph(quantized["int8", "tensorrt"])
    for node in graph.model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert not numpy_helper.to_array(graph.initializers[node.input[2]]).any()  # TensorRT has no zero points
            assert graph.initializers[node.input[2]].data_type == TensorProto.INT8
        if node.op_type == "Clip":  # fused with its convolution
            assert graph.producer[node.input[0]].op_type == "Conv"
        if node.op_type == "Conv" and len(node.input) > 2:
            assert node.input[2] in graph.initializers  # TensorRT refuses integer biases
    sums = [
        n for n in graph.model.graph.node if n.op_type == "Add" and graph.producer.get(n.input[0], n).op_type == "Conv"
    ]
    assert sums
    for node in sums:
        assert graph.producer[node.input[1]].op_type == "DequantizeLinear"


def test_names_carry_the_module(quantized):
    for model in quantized.values():
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names)
        for node in model.graph.node:
            if node.name.endswith("/DequantizeLinear.weight"):
                assert node.input[0] == f"{module_of(node)}.weight.{'fp8' if 'fp8' in node.input[0] else 'int8'}"


def test_weights_are_symmetric_per_channel_and_shared(source, ranges, quantized):
    graph = Graph(quantized["int8", "cpu"])
    before = Graph(balance_channels(source.model, ranges.balance))
    for module, nodes in quantizable_modules(source.model).items():
        weight = before.constant(f"{module}.weight")
        stored = numpy_helper.to_array(graph.initializers[f"{module}.weight.int8"]).astype(np.float32)
        scale = numpy_helper.to_array(graph.initializers[f"{module}.weight.scale"])
        axis = 0 if weight.ndim == 4 else 1
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        assert len(scale) == weight.shape[axis]
        assert 120 <= np.abs(stored).max() <= 127
        # Some go farther than to the nearest integers, to make up for others.
        assert np.abs(stored * scale.reshape(shape) - weight).mean() <= scale.max()
        assert len(graph.consumers[f"{module}.weight.dequantized"]) == len(nodes)
    assert not [
        name
        for name in graph.initializers
        if name.endswith(".weight") and name[: -len(".weight")] in quantizable_modules(source.model)
    ]


def test_weights_of_seven_bits(source, ranges, feeds):
    model = quantize(source.model, ranges, target="cpu", weight_bits=7)
    graph = Graph(model)
    largest = [
        np.abs(numpy_helper.to_array(graph.initializers[f"{m}.weight.int8"])).max()
        for m in quantizable_modules(source.model)
    ]
    assert set(largest) == {63}
    assert np.median(drift(source, model, feeds)) < 12


def test_integer_bias_has_the_scale_of_its_products(quantized):
    graph = Graph(quantized["int8", "cpu"])
    for node in graph.model.graph.node:
        if node.op_type == "Conv":
            image, weight, bias = (graph.producer[name] for name in node.input)
            scales = [numpy_helper.to_array(graph.initializers[part.input[1]]) for part in (image, weight, bias)]
            assert graph.initializers[bias.input[0]].data_type == TensorProto.INT32
            assert scales[2] == pytest.approx(scales[0] * scales[1])


def test_onnxruntime_computes_in_integers(quantized, tmp_path):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    model = quantized["int8", "cpu"]
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = count_kinds(tmp_path / "optimised.onnx")
    plain = Counter(node.op_type for node in model.graph.node)
    linears = sum(len(nodes) for name, nodes in modules_of_linears(model).items())
    assert kinds["QLinearConv"] == plain["Conv"]
    assert kinds["Clip"] == kinds["Conv"] == kinds["FusedConv"] == 0
    assert kinds["MatMulIntegerToFloat"] + kinds["QLinearMatMul"] >= linears  # and products of attention
    assert kinds["QLinearAdd"] > 0


def test_products_of_attention_follow_their_layers(source, ranges, quantized):
    def products(model):
        graph = Graph(model)
        nodes = [n for n in model.graph.node if n.op_type == "MatMul" and module_of(n).endswith(".attn")]
        reads = [[graph.producer[name].op_type == "DequantizeLinear" for name in n.input] for n in nodes]
        assert all(len(set(flags)) == 1 for flags in reads)  # both inputs or none
        return [flags[0] for flags in reads]

    def kept(part):
        return products(quantize(source.model, ranges, target="cpu", keep=[f"decoder.blocks.0.attn.{part}"]))

    assert products(quantized["int8", "cpu"]) == [True, True] * 2  # scores and values, both passes
    assert products(quantized["int8", "tensorrt"]) == [False, False] * 2
    assert kept("k") == kept("q") == [False, True] * 2
    assert kept("v") == [True, False] * 2


def test_onnxruntime_leaves_kept_convolutions_alone(source, ranges, tmp_path):
    import onnxruntime as ort

    kept = [name for name in quantizable_modules(source.model) if name.startswith("feature_extraction")][1::2]
    model = quantize(source.model, ranges, target="cpu", keep=kept)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = count_kinds(tmp_path / "optimised.onnx")
    convolutions = [name for name in quantizable_modules(source.model) if name.startswith("feature_extraction")]
    assert kinds["QLinearConv"] == len(convolutions) - len(kept)
    assert kinds["Conv"] + kinds["FusedConv"] == len(kept)


def count_kinds(path):
    """Of operators; a product that gives channels of a residual sum their size back becomes a convolution."""
    return Counter(node.op_type for node in onnx.load(path).graph.node if "restored" not in node.name)


def modules_of_linears(model):
    graph = Graph(model)
    found = {}
    for node in model.graph.node:
        if (
            node.op_type == "MatMul"
            and node.input[1] in graph.producer
            and node.input[1].endswith("weight.dequantized")
        ):
            found.setdefault(module_of(node), []).append(node.name)
    return found


@pytest.mark.parametrize("kind", [("int8", "tensorrt"), ("int8", "cpu"), ("fp8", "tensorrt")])
def test_the_flow_stays_near(source, quantized, feeds, kind):
    distance = drift(source, quantized[kind], feeds)
    assert 0 < np.median(distance) < 12  # of random weights, whose soft-argmax exaggerates; a wrong scale gives 60


@pytest.mark.parametrize("method", METHODS)
def test_every_method_works(source, ranges, feeds, method):
    model = quantize(source.model, ranges, method=method)
    assert np.median(drift(source, model, feeds)) < 60


def test_kept_modules_are_untouched(source, ranges, feeds):
    names = list(quantizable_modules(source.model))
    model = quantize(source.model, ranges, keep=["feature_extraction", "decoder.blocks.0.attn"])
    graph = Graph(model)
    assert "feature_extraction.backbone.conv_stem.weight" in graph.initializers
    assert "decoder.blocks.0.attn.q.weight" in graph.initializers
    assert "decoder.blocks.0.attn_multiscale.q.weight" not in graph.initializers
    most = drift(source, quantize(source.model, ranges, keep=names[:-1]), feeds)
    assert np.median(most) < np.median(drift(source, quantize(source.model, ranges), feeds))


def test_weights_stored_as_half_give_the_same_integers(source, ranges, copy):
    stored, _ = store_as_half(source.model)
    assert quantizable_modules(stored) == quantizable_modules(source.model)
    model = quantize(stored, ranges)
    graph, before = Graph(model), Graph(balance_channels(stored, ranges.balance))
    for module in quantizable_modules(source.model):
        half = before.constant(f"{module}.weight")
        scale = numpy_helper.to_array(graph.initializers[f"{module}.weight.scale"])
        shape = [-1] + [1] * (half.ndim - 1) if half.ndim == 4 else [1, -1]
        integers = numpy_helper.to_array(graph.initializers[f"{module}.weight.int8"])
        assert np.abs(half - integers * scale.reshape(shape)).mean() <= scale.max()
    assert model.ByteSize() < 0.7 * stored.ByteSize(), (model.ByteSize(), stored.ByteSize())


def test_a_batch_of_any_size(source, quantized, feeds):
    for model in quantized.values():
        session = ProbeSession(model)
        whole = session(feeds)["flow"]
        one = session({name: value[:1] for name, value in feeds.items()})["flow"]
        assert flow_distance(whole[:1], one).max() < 30  # sums of another order may round to another integer
        assert np.median(flow_distance(whole[:1], one)) < 0.5


@pytest.mark.parametrize("kind", [("int8", "tensorrt"), ("fp8", "tensorrt")])
def test_tensorrt_rtx_parses(quantized, kind):
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(quantized[kind].SerializeToString()), [
        str(parser.get_error(i)) for i in range(parser.num_errors)
    ]


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_openvino_computes_the_same(quantized, feeds, target):
    pytest.importorskip("openvino")
    model, core = inline_functions(quantized["int8", target]), shared_core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    expected, actual = ProbeSession(model)(feeds), compiled(feeds)
    flow = next(actual[output] for output in compiled.outputs if output.get_any_name() == "flow")
    assert np.median(flow_distance(expected["flow"], flow)) < 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "int4"),
        ({"method": "magic"}, "magic"),
        ({"target": "tpu"}, "tpu"),
        ({"weight_bits": 4}, "4 bits"),
        ({"weight_bits": 7, "precision": "fp8"}, "7 bits"),
        ({"precision": "fp8", "target": "cpu"}, "float8"),
        ({"keep": ["decoder.nothing"]}, "decoder.nothing"),
        ({"keep": ["feature_extraction", "proj", "decoder"]}, "nothing is left"),
    ],
)
def test_wrong_options(source, ranges, options, message):
    with pytest.raises(InputError, match=message):
        quantize(source.model, ranges, **options)


def test_quantized_models_are_refused(quantized, ranges):
    with pytest.raises(ModelFileError, match="already"):
        quantize(quantized["int8", "tensorrt"], ranges)


def test_missing_ranges_are_named(source, ranges):
    few = type(ranges)(ranges.weights_sha256, dict(list(ranges.tensors.items())[:3]), 1)
    with pytest.raises(InputError, match="the ranges lack"):
        quantize(source.model, few)
