"""libcats gives the numbers of the Python runtime, and refuses what it refuses, with a text."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import c_library
import numpy as np
import onnx
import pytest
from c_library import BGR, BGRA, GREY, RGB, RGBA, CatsStatusError, CMatcher, Library, image
from PIL import Image
from split_onnx import save_split
from tiny_onnx import save_model, tiny_metadata, tiny_model

from cats.metadata import Preprocessing
from cats.runtime import Matcher
from cats.runtime.images import preprocess, read_image

pytestmark = pytest.mark.skipif(not c_library.HAVE_COMPILER, reason="no C compiler")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(c_library.build_library(tmp_path_factory.mktemp("libcats")))


@pytest.fixture(scope="session")
def matcher(library: Library, model_file: Path) -> Iterator[CMatcher]:
    opened = library.open(model_file)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def split(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_split(tmp_path_factory.mktemp("split"))


@pytest.fixture(scope="session")
def python(model_file: Path) -> Matcher:
    return Matcher(model_file, threads=2)


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
    from cats.geometry import transfer_points

    a, b = pictures(texture)[:2]
    matcher.match(image(a), image(b))
    size_a, size_b = (a.shape[1], a.shape[0]), (b.shape[1], b.shape[0])
    points = np.array([[-0.5, -0.5], [size_a[0] - 0.5, size_a[1] - 0.5], [0, 0], [3.25, 7.75], [160, 96]])
    assert np.abs(matcher.transfer(points) - transfer_points(points, matcher.flow(), size_a, size_b)).max() < 1e-9


@pytest.mark.parametrize("fixed", [None, 1, 3])
def test_batches(
    library: Library, tmp_path: Path, python: Matcher, texture: np.ndarray, fixed: int | None, model_file: Path
) -> None:
    path = save_model(tmp_path / "m.onnx", tiny_model(fixed), tiny_metadata().to_json()) if fixed else model_file
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
    path = save_model(tmp_path / "half.onnx", model, tiny_metadata().to_json())
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
    batch = c_library.DeviceBatch(
        ctypes.sizeof(c_library.DeviceBatch), *(x.ctypes.data for x in (a, b, flow, confidence)), 2, None
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
    crops = pictures(texture)[:2]
    a, b = (torch.from_numpy(preprocess(x, Preprocessing())[None]).cuda() for x in crops)
    flow, confidence = torch.zeros(1, 2, 16, 16, device="cuda"), torch.zeros(1, 16, 16, device="cuda")
    stream, expected = torch.cuda.Stream(), python.match(*crops)
    for mine in (None, stream.cuda_stream):
        opened = library.open(model_file, provider=b"cuda", stream=mine)
        batch = c_library.DeviceBatch(
            ctypes.sizeof(c_library.DeviceBatch),
            *(x.data_ptr() for x in (a, b, flow, confidence)),
            1,
            stream.cuda_stream,
        )
        torch.cuda.synchronize()
        library.call("cats_match_device", opened.context, ctypes.byref(batch))
        stream.synchronize()
        assert np.abs(flow.cpu().numpy()[0] - expected.flow).max() < 1e-2
        opened.close()


def refused(status: int, text: str, call, *arguments, **options) -> None:
    with pytest.raises(CatsStatusError, match=text) as caught:
        call(*arguments, **options)
    assert caught.value.status == status


def test_refused_images(matcher: CMatcher, texture: np.ndarray) -> None:
    good = image(texture)
    cases = {
        "struct_size": {"struct_size": 3},
        r"format is 9": {"format": 9},
        r"at least 16x16": {"width": 15},
        r"is -5x480": {"width": -5},
        r"data is NULL": {"data": None},
        r"stride is 10 bytes": {"stride": 10},
        r"stride is": {"stride": -(2**63)},
        r"over the limit": {"width": 2**31 - 1, "height": 2**31 - 1},
        r"reserved must be 0": {"reserved": 7},
    }
    for text, changes in cases.items():
        refused(c_library.ARGUMENT, text, matcher.match, good, image(texture, **changes))
        refused(c_library.ARGUMENT, text, matcher.preprocess, image(texture, **changes))
    refused(c_library.STATE, "holds no match", matcher.flow)
    matcher.match(good, good)
    refused(c_library.ARGUMENT, "pair 1: this context holds 1", matcher.flow, 1)


def test_refused_points_and_arguments(matcher: CMatcher, texture: np.ndarray) -> None:
    matcher.match(image(texture), image(texture))
    refused(c_library.ARGUMENT, r"point 1 at \(640, 3\) lies outside image a", matcher.transfer, [[3, 4], [640, 3]])
    refused(c_library.ARGUMENT, "point 0 .* finite", matcher.transfer, [[np.nan, 4]])
    refused(c_library.ARGUMENT, "all must be at least 1", matcher.dense_flow, (3, 3), (3, 3, 0, 1))
    refused(c_library.ARGUMENT, "need", matcher.dense_flow, (3, 3))
    call = matcher.library.call
    refused(c_library.ARGUMENT, "context is NULL", call, "cats_match", None, None, None)
    refused(c_library.ARGUMENT, "count is 0", matcher.match_batch, [], [])
    refused(c_library.STATE, "--split", matcher.encode, image(texture))


def test_refused_models(library: Library, tmp_path: Path, split: tuple[Path, Path], model_file: Path) -> None:
    def metadata(**changes: object) -> Path:
        document = {**tiny_metadata().to_dict(), **changes}
        return save_model(tmp_path / "m.onnx", tiny_model(), json.dumps(document))

    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"no model" * 100)
    bare = save_model(tmp_path / "bare.onnx", tiny_model(), None)
    refused(c_library.FILE, "No such file", library.open, tmp_path / "absent.onnx")
    refused(c_library.FILE, "not a file", library.open, tmp_path)
    refused(c_library.MODEL, "junk.onnx", library.open, junk)
    refused(c_library.MODEL, "in memory", library.open, b"junk")
    refused(c_library.MODEL, "without CATs metadata", library.open, bare)
    not_json = save_model(tmp_path / "not_json.onnx", tiny_model(), '{"format": 1,')
    refused(c_library.MODEL, "not JSON", library.open, not_json)
    refused(c_library.MODEL, "newer than libcats", library.open, metadata(format=2))
    refused(c_library.MODEL, "kind end-to-end", library.open, metadata(kind="end-to-end"))
    refused(c_library.MODEL, "direction", library.open, metadata(direction="b->a"))
    refused(c_library.MODEL, r"\(\?, 2, 16, 16\).*says \(batch, 2, 8, 8\)", library.open, metadata(grid=[8, 8]))
    refused(c_library.MODEL, "square", library.open, metadata(grid=[8, 16]))
    for key, value in {"mean": [0, "x", 0], "std": [1, 0, 1], "size": [256.5, 256], "resize": "opencv"}.items():
        changed = {**Preprocessing().to_dict(), key: value}
        refused(c_library.MODEL, f"preprocessing/{key}", library.open, metadata(preprocessing=changed))
    lonely = tmp_path / "lonely.onnx"
    lonely.write_bytes(split[0].read_bytes())
    refused(c_library.MODEL, "partner_path", library.open, lonely)
    other = save_split(tmp_path, weights_sha256="1" * 64)
    refused(c_library.MODEL, "weights differ", library.open, split[0], partner_path=str(other[1]).encode())
    refused(c_library.MODEL, "kind pair", library.open, split[0], partner_path=str(model_file).encode())
    refused(c_library.ARGUMENT, 'provider "tpu"', library.open, model_file, provider=b"tpu")
    refused(c_library.ARGUMENT, "threads -1", library.open, model_file, threads=-1)
    missing = str(tmp_path / "nowhere.so").encode()
    refused(c_library.RUNTIME, "nowhere.so.*CATS_ORT_LIBRARY", library.open, model_file, ort_library=missing)
    libm = b"libm.so.6"
    refused(c_library.RUNTIME, "not ONNX Runtime", library.open, model_file, ort_library=libm)


def test_cuda_is_never_replaced_by_the_cpu(library: Library, model_file: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build has CUDA")
    refused(c_library.RUNTIME, "CUDA provider did not start", library.open, model_file, provider=b"cuda")


def test_unknown_fields_of_a_newer_program_are_refused(library: Library, model_file: Path) -> None:
    class Newer(ctypes.Structure):
        _fields_ = (("known", c_library.Options), ("unknown", ctypes.c_int64))

    handle, options = ctypes.c_void_p(), Newer(library.options(), 0)
    options.known.struct_size = ctypes.sizeof(Newer)
    name = str(model_file).encode()
    library.call("cats_open", name, ctypes.byref(options), ctypes.byref(handle))
    library.raw.cats_close(handle)
    options.unknown = 5
    refused(
        c_library.ARGUMENT,
        "newer libcats",
        library.call,
        "cats_open",
        name,
        ctypes.byref(options),
        ctypes.byref(handle),
    )
    assert not handle.value


def test_values_that_are_not_numbers_are_refused(library: Library, tmp_path: Path, texture: np.ndarray) -> None:
    model = tiny_model()
    for item in model.graph.initializer:
        if item.name == "temperature":
            item.CopyFrom(onnx.numpy_helper.from_array(np.float32(np.nan), "temperature"))
    opened = library.open(save_model(tmp_path / "nan.onnx", model, tiny_metadata().to_json()))
    refused(c_library.RUNTIME, "not numbers", opened.match, image(texture), image(texture))
    assert library.raw.cats_pair_count(opened.context) == 0
    opened.close()


def test_one_context_in_two_threads_is_refused_not_undefined(matcher: CMatcher, texture: np.ndarray) -> None:
    statuses: set[int] = set()

    def work() -> None:
        for _ in range(20):
            try:
                matcher.match(image(texture), image(texture))
                statuses.add(0)
            except CatsStatusError as error:
                statuses.add(error.status)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses <= {0, c_library.BUSY}
    assert 0 in statuses
    assert c_library.BUSY in statuses


def test_contexts_outlive_their_matcher(library: Library, model_file: Path, texture: np.ndarray) -> None:
    opened = library.open(model_file)
    library.raw.cats_close(opened.handle)
    opened.match(image(texture), image(texture))
    assert np.isfinite(opened.flow()).all()
    library.raw.cats_context_destroy(opened.context)


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
