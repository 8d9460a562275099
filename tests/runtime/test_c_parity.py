"""libcats gives the numbers of the Python runtime."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from tiny_onnx import save_model, tiny_metadata, tiny_model

from cats.benchmarks import libcats
from cats.benchmarks.libcats import BGR, BGRA, GREY, RGB, RGBA, CatsStatusError, CMatcher, Library, image
from cats.core.images import preprocess, read_image
from cats.core.metadata import Preprocessing
from cats.runtime import Matcher

pytestmark = pytest.mark.skipif(not libcats.HAVE_COMPILER, reason="no C compiler")


SIZES = [(16, 16), (17, 300), (256, 256), (255, 257), (640, 33), (1000, 701), (300, 3000), (256, 99), (77, 256)]


@pytest.mark.parametrize("size", SIZES)
def test_preprocessing_is_bit_equal(matcher: CMatcher, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), np.uint8)
    assert np.array_equal(matcher.preprocess(image(pixels)), preprocess(pixels, Preprocessing()))


def test_every_format_and_stride(matcher: CMatcher) -> None:
    rng = np.random.default_rng(3)
    rgba = rng.integers(0, 256, (123, 77, 4), np.uint8)
    rgba[:60, :, 3] = 255
    rgb, grey = np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 0])
    padded = np.zeros((123, 100, 3), np.uint8)
    padded[:, :77] = rgb

    def expected(array: np.ndarray) -> np.ndarray:
        return preprocess(read_image(array), Preprocessing())

    plain = expected(rgb)
    assert np.array_equal(matcher.preprocess(image(rgb, stride=0)), plain)
    assert np.array_equal(matcher.preprocess(image(np.ascontiguousarray(rgb[..., ::-1]), BGR)), plain)
    assert np.array_equal(matcher.preprocess(image(padded[:, :77], RGB)), plain)
    assert np.array_equal(matcher.preprocess(image(rgb[::-1].copy()[::-1], RGB)), plain)  # negative stride
    assert np.array_equal(matcher.preprocess(image(grey, GREY)), expected(grey))
    over_white = expected(rgba)
    assert not np.array_equal(over_white, plain)
    assert np.array_equal(matcher.preprocess(image(rgba, RGBA)), over_white)
    assert np.array_equal(matcher.preprocess(image(np.ascontiguousarray(rgba[..., [2, 1, 0, 3]]), BGRA)), over_white)


def pictures(texture: np.ndarray) -> list[np.ndarray]:
    """Crops of odd sizes."""
    boxes = [(100, 292, 100, 420), (64, 257, 140, 461), (0, 480, 0, 640), (7, 330, 11, 214), (200, 480, 300, 333)]
    return [np.ascontiguousarray(texture[top:bottom, left:right]) for top, bottom, left, right in boxes]


def test_matches_equal_python(matcher: CMatcher, python: Matcher, texture: np.ndarray) -> None:
    crops = pictures(texture)
    for a, b in zip(crops, crops[1:] + crops[:1], strict=True):
        expected = python.match(a, b)
        matcher.match(image(a), image(np.ascontiguousarray(b[..., ::-1]), BGR))
        assert np.abs(matcher.flow() - expected.flow).max() < 1e-4
        assert np.abs(matcher.confidence() - expected.confidence).max() < 1e-4
        points = np.random.default_rng(0).uniform(-0.5, 1, (50, 2)) * np.array(a.shape[1::-1]) * [0.9, 0.9]
        points = np.clip(points, -0.5, np.array(a.shape[1::-1]) - 0.5)
        assert np.abs(matcher.transfer(points) - expected.transfer(points)).max() < 1e-2
        assert np.abs(matcher.confidence_at(points) - expected.confidence_at(points)).max() < 1e-4
        size = a.shape[1], a.shape[0]
        assert np.abs(matcher.dense_flow(size) - expected.dense_flow()).max() < 1e-2
        scaled = matcher.dense_flow((31, 57), (31, 57, 90, 45))
        assert np.abs(scaled - expected.dense_flow((31, 57), (90, 45))).max() < 1e-2


def test_geometry_equals_python_on_the_same_flow(matcher: CMatcher, texture: np.ndarray) -> None:
    from cats.core.geometry import transfer_points

    a, b = pictures(texture)[:2]
    matcher.match(image(a), image(b))
    size_a, size_b = (a.shape[1], a.shape[0]), (b.shape[1], b.shape[0])
    points = np.array([[-0.5, -0.5], [size_a[0] - 0.5, size_a[1] - 0.5], [0, 0], [3.25, 7.75], [160, 96]])
    assert np.abs(matcher.transfer(points) - transfer_points(points, matcher.flow(), size_a, size_b)).max() < 1e-9


@pytest.mark.parametrize("sizes", [(17, 31, 999, 16), (333, 77, 45, 801), (16, 16, 16, 16), (1, 1, 3, 5), (2, 7, 1, 1)])
def test_dense_flow_equals_python_on_the_same_flow(
    matcher: CMatcher, texture: np.ndarray, sizes: tuple[int, int, int, int]
) -> None:
    from cats.core.geometry import dense_flow

    matcher.match(image(texture), image(texture[:200, :301]))
    expected = dense_flow(matcher.flow(), sizes[:2], sizes[2:])
    assert np.abs(matcher.dense_flow(sizes[:2], sizes) - expected).max() < 1e-4


def test_everything_is_read_from_the_metadata(library: Library, tmp_path: Path, texture: np.ndarray) -> None:
    """Another side, another grid, another normalisation."""
    own = Preprocessing(size=(128, 128), mean=(0.1, 0.52, 0.3), std=(0.31, 0.17, 1.25))
    metadata = tiny_metadata(preprocessing=own, grid=(8, 8), precision="mixed")
    path = save_model(tmp_path / "m.onnx", tiny_model(grid=8), metadata)
    opened, python = library.open(path), Matcher(path, threads=2)
    info = opened.info
    assert (info.image_width, info.image_height, info.grid, info.precision) == (128, 128, 8, b"mixed")
    assert np.allclose([*info.mean, *info.std], [*own.mean, *own.std])
    assert np.array_equal(opened.preprocess(image(texture)), preprocess(texture, own))
    a, b = pictures(texture)[:2]
    opened.match(image(a), image(b))
    expected = python.match(a, b)
    assert np.abs(opened.flow() - expected.flow).max() < 1e-4
    assert np.abs(opened.transfer([[3.5, 100]]) - expected.transfer([[3.5, 100]])).max() < 1e-2
    assert np.abs(opened.dense_flow((a.shape[1], a.shape[0])) - expected.dense_flow()).max() < 1e-2
    opened.close()


WIDE = """
<ir_version: 10, opset_import: ["": 18]>
wide (float[N,3,96,160] image_b, float[N,3,96,160] image_a) => (float[N,8,8] confidence, float[N,2,8,8] flow) {
  mean_a = AveragePool<kernel_shape=[12,20], strides=[12,20]>(image_a)
  mean_b = AveragePool<kernel_shape=[12,20], strides=[12,20]>(image_b)
  red_a = Slice(mean_a, zero, one, one)
  green_b = Slice(mean_b, one, two, one)
  flow = Concat<axis=1>(red_a, green_b)
  blue_b = Slice(mean_b, two, three, one)
  flat = Squeeze(blue_b, one)
  confidence = Sigmoid(flat)
}
"""


def test_inputs_go_by_name_and_need_not_be_square(library: Library, tmp_path: Path, texture: np.ndarray) -> None:
    model = onnx.parser.parse_model(WIDE)
    for number, name in enumerate(("zero", "one", "two", "three")):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.int64([number]), name))
    metadata = tiny_metadata(preprocessing=Preprocessing(size=(160, 96)), grid=(8, 8))
    path = save_model(tmp_path / "wide.onnx", model, metadata)
    opened, python = library.open(path), Matcher(path, threads=2)
    crops = pictures(texture)
    opened.match_batch([image(x) for x in crops[:2]], [image(x) for x in crops[2:4]])
    for index in range(2):
        expected = python.match(crops[index], crops[index + 2])
        assert np.abs(opened.flow(index) - expected.flow).max() < 1e-4
        assert np.abs(opened.confidence(index) - expected.confidence).max() < 1e-4
    opened.close()


def test_calibrated_confidence_equals_python(library: Library, tmp_path: Path, texture: np.ndarray) -> None:
    mapping = {"confidence": [0.2, 0.3, 0.3, 0.7, 0.9], "probability": [0.05, 0.1, 0.4, 0.4, 0.97]}
    metadata = tiny_metadata(calibration={"precision": None, "confidence": {"alpha": 0.1, "mapping": mapping}})
    path = save_model(tmp_path / "m.onnx", tiny_model(), metadata)
    opened, python = library.open(path), Matcher(path, threads=2)
    assert opened.info.calibrated == 1
    a, b = pictures(texture)[:2]
    opened.match(image(a), image(b))
    expected = python.match(a, b)
    assert np.ptp(expected.calibrated_confidence) > 0.5
    # The mapping has a step: what lies at it may fall on either side.
    calm = np.abs(expected.confidence - 0.3) > 1e-4
    assert np.abs(opened.calibrated_confidence() - expected.calibrated_confidence)[calm].max() < 1e-3
    opened.close()


@pytest.mark.parametrize("fixed", [None, 1, 3])
def test_batches(
    library: Library, tmp_path: Path, python: Matcher, texture: np.ndarray, fixed: int | None, model_file: Path
) -> None:
    path = save_model(tmp_path / "m.onnx", tiny_model(fixed), tiny_metadata()) if fixed else model_file
    crops = pictures(texture)
    opened = library.open(path)
    assert opened.info.max_batch == (fixed or 0)
    others = crops[1:] + crops[:1]
    opened.match_batch([image(a) for a in crops], [image(b) for b in others])
    assert library.raw.cats_pair_count(opened.context) == len(crops)
    for index, (a, b) in enumerate(zip(crops, others, strict=True)):
        expected = python.match(a, b)
        assert np.abs(opened.flow(index) - expected.flow).max() < 1e-4
        assert np.abs(opened.transfer([[3, 4]], index) - expected.transfer([[3, 4]])).max() < 1e-2
    opened.close()


@pytest.mark.parametrize("run_pairs", [0, 1, 4])
def test_large_batches_run_in_parts(
    library: Library, split: tuple[Path, Path], model_file: Path, python: Matcher, texture: np.ndarray, run_pairs: int
) -> None:
    """Eleven pairs: 8 and 3, one by one, or 4, 4 and 3."""
    crops = [np.ascontiguousarray(texture[k : 200 + 3 * k, 2 * k : 301]) for k in range(11)]
    expected = [python.match(crops[0], b) for b in crops]
    pair, halves = (library.open(file, run_pairs=run_pairs) for file in (model_file, split[0]))
    pair.match_batch([image(crops[0])] * 11, [image(b) for b in crops])
    reference, frames = halves.encode(image(crops[0])), [halves.encode(image(b)) for b in crops]
    halves.match_features([reference] * 11, frames)
    for opened in (pair, halves):
        for index, match in enumerate(expected):
            assert np.abs(opened.flow(index) - match.flow).max() < 1e-4
            assert np.abs(opened.transfer([[30, 40]], index) - match.transfer([[30, 40]])).max() < 1e-2
    for features in (reference, *frames):
        library.raw.cats_features_destroy(features)
    pair.close()
    halves.close()


def test_split_model_by_either_file_and_in_memory(
    library: Library, split: tuple[Path, Path], python: Matcher, texture: np.ndarray
) -> None:
    crops = pictures(texture)
    expected = [python.match(crops[0], b) for b in crops[1:]]
    data = [path.read_bytes() for path in split]
    opened = [
        library.open(split[0]),
        library.open(split[1]),
        library.open(split[0], partner_path=str(split[1]).encode()),
        library.open(data[0], partner_data=data[1], partner_size=len(data[1])),
    ]
    for one in opened:
        assert one.info.split == 1
        reference = one.encode(image(crops[0]))
        frames = [one.encode(image(b)) for b in crops[1:]]
        one.match_features([reference] * len(frames), frames)
        for index, match in enumerate(expected):
            assert np.abs(one.flow(index) - match.flow).max() < 1e-4
            assert np.abs(one.transfer([[30, 40]], index) - match.transfer([[30, 40]])).max() < 1e-2
        one.match_features([reference], frames[:1])
        assert np.abs(one.flow() - expected[0].flow).max() < 1e-4
        one.match(image(crops[0]), image(crops[2]))
        assert np.abs(one.flow() - expected[1].flow).max() < 1e-4
        for features in [reference, *frames]:
            library.raw.cats_features_destroy(features)
        one.close()


def test_half_precision_outputs(library: Library, tmp_path: Path, python: Matcher, texture: np.ndarray) -> None:
    model = tiny_model()
    for output in model.graph.output:
        for node in model.graph.node:
            node.output[:] = [f"{name}_32" if name == output.name else name for name in node.output]
        model.graph.node.append(onnx.helper.make_node("Cast", [f"{output.name}_32"], [output.name], to=10))
        output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    path = save_model(tmp_path / "half.onnx", model, tiny_metadata())
    a, b = pictures(texture)[:2]
    opened = library.open(path)
    opened.match(image(a), image(b))
    expected = python.match(a, b)
    assert np.array_equal(opened.flow(), expected.flow.astype(np.float16).astype(np.float32))
    opened.close()


def test_device_tensors_on_the_cpu_provider(matcher: CMatcher, python: Matcher, texture: np.ndarray) -> None:
    """The same code as with device pointers: IoBinding over memory of the caller."""
    crops = pictures(texture)[:2]
    a, b = (np.stack([preprocess(x, Preprocessing())] * 2) for x in crops)
    flow, confidence = np.zeros((2, 2, 16, 16), np.float32), np.zeros((2, 16, 16), np.float32)
    batch = libcats.DeviceBatch(
        ctypes.sizeof(libcats.DeviceBatch), *(x.ctypes.data for x in (a, b, flow, confidence)), 2, None
    )
    matcher.library.call("cats_match_device", matcher.context, ctypes.byref(batch))
    expected = python.match(*crops)
    assert np.abs(flow - expected.flow).max() < 1e-4
    assert np.abs(confidence - expected.confidence).max() < 1e-4
    batch.stream = 1
    with pytest.raises(CatsStatusError, match="no use for"):
        matcher.library.call("cats_match_device", matcher.context, ctypes.byref(batch))


@pytest.mark.gpu
def test_device_tensors_on_a_gpu(library: Library, model_file: Path, python: Matcher, texture: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if "CUDAExecutionProvider" not in pytest.importorskip("onnxruntime").get_available_providers():
        pytest.skip("this onnxruntime is the build for CPUs")
    crops = pictures(texture)[:2]
    a, b = (torch.from_numpy(preprocess(x, Preprocessing())[None]).cuda() for x in crops)
    flow, confidence = torch.zeros(1, 2, 16, 16, device="cuda"), torch.zeros(1, 16, 16, device="cuda")
    stream, expected = torch.cuda.Stream(), python.match(*crops)
    for mine in (None, stream.cuda_stream):
        opened = library.open(model_file, provider=b"cuda", stream=mine)
        batch = libcats.DeviceBatch(
            ctypes.sizeof(libcats.DeviceBatch),
            *(x.data_ptr() for x in (a, b, flow, confidence)),
            1,
            stream.cuda_stream,
        )
        torch.cuda.synchronize()
        library.call("cats_match_device", opened.context, ctypes.byref(batch))
        stream.synchronize()
        assert np.abs(flow.cpu().numpy()[0] - expected.flow).max() < 1e-2
        opened.close()


def photos() -> list[Image.Image]:
    """The demo photos, cut to odd sizes."""
    from importlib import resources

    folder = Path(str(resources.files("cats.assets")))
    files = [folder / "astronaut.jpg", folder / "grace_hopper.jpg"]
    if not all(path.is_file() for path in files):
        pytest.skip("no demo photos in cats.assets")
    a, b = (Image.open(path).convert("RGB") for path in files)
    return [a.crop((3, 5, a.width - 8, a.height - 1)), b.crop((0, 0, b.width - 3, b.height - 7))]


def equal_on_photos(opened: CMatcher, python: Matcher) -> None:
    a, b = photos()
    for one, two in ((a, b), (b, a), (a.resize((611, 97)), b.crop((40, 30, 57, 90)))):
        expected = python.match(one, two)
        other = np.asarray(two.convert("RGBA"))
        padded = np.zeros((one.height, one.width + 5, 3), np.uint8)
        padded[:, : one.width] = np.asarray(one)[..., ::-1]
        opened.match(image(padded[:, : one.width], BGR), image(other, RGBA))
        assert np.abs(opened.flow() - expected.flow).max() < 1e-4
        assert np.abs(opened.confidence() - expected.confidence).max() < 1e-4
        points = np.random.default_rng(1).uniform(0, 1, (200, 2)) * (np.array(one.size) - 1)
        assert np.abs(opened.transfer(points) - expected.transfer(points)).max() < 1e-2


def test_photos_with_the_shipped_model(library: Library) -> None:
    from importlib import resources

    model = Path(str(resources.files("cats.assets"))) / "cats-tiny.onnx"
    if not model.is_file():
        pytest.skip("no cats-tiny.onnx in cats.assets")
    opened = library.open(model)
    equal_on_photos(opened, Matcher(model, threads=2))
    opened.close()


@pytest.mark.slow
def test_photos_with_an_exported_split_model(library: Library, tmp_path: Path) -> None:
    """The files of cats-export itself: encoder and matcher against the shipped pair model of the same weights."""
    from importlib import resources

    assets = Path(str(resources.files("cats.assets")))
    pytest.importorskip("torch")
    if not (assets / "cats-tiny.pt").is_file():
        pytest.skip("no cats-tiny.pt in cats.assets")
    command = [sys.executable, "-m", "cats.cli", "export", "--ckpt", str(assets / "cats-tiny.pt"), "--split"]
    done = subprocess.run([*command, "-o", str(tmp_path / "t.onnx")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    opened = library.open(tmp_path / "t.encoder.onnx")
    a, b = (image(np.asarray(photo)) for photo in photos())
    pair = Matcher(assets / "cats-tiny.onnx", threads=2).match(*photos())
    opened.match(a, b)
    assert np.abs(opened.flow() - pair.flow).max() < 1e-2  # two exports of one model
    one, two = opened.encode(a), opened.encode(b)
    single = opened.flow()
    opened.match_features([one, two, one], [two, one, two])
    assert np.abs(opened.flow(0) - single).max() < 1e-3
    assert np.abs(opened.flow(2) - single).max() < 1e-3
    assert np.abs(opened.flow(1) - single).max() > 0.1
    opened.match_features([one], [two])
    assert np.abs(opened.flow() - single).max() < 1e-4
    for features in (one, two):
        library.raw.cats_features_destroy(features)
    opened.close()
