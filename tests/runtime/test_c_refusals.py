"""What libcats refuses, each with a text: images, arguments, models, runtimes; and how it is opened and shared."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from split_onnx import save_split, tiny_split
from tiny_onnx import OUT_OF_BOUNDS, save_model, tiny_metadata, tiny_model

from cats.benchmarks import libcats
from cats.benchmarks.libcats import CatsStatusError, CMatcher, Library, image
from cats.core.errors import ModelFileError
from cats.core.metadata import Metadata, Preprocessing
from cats.runtime.hardware import physical_cores, usable_cpus

pytestmark = pytest.mark.skipif(not libcats.HAVE_COMPILER, reason="no C compiler")


def refused(status: int, text: str, call, *arguments, **options) -> None:
    with pytest.raises(CatsStatusError, match=text) as caught:
        call(*arguments, **options)
    assert caught.value.status == status


def test_confidence_that_is_not_calibrated_is_refused(
    library: Library, tmp_path: Path, matcher: CMatcher, texture: np.ndarray
) -> None:
    matcher.match(image(texture), image(texture))
    assert matcher.info.calibrated == 0
    refused(libcats.STATE, "fit-confidence", matcher.calibrated_confidence)
    for mapping in (
        {},
        {"confidence": [0.1, 0.2], "probability": [0.1]},
        {"confidence": [2, 1], "probability": [0, 1]},
    ):
        metadata = tiny_metadata(calibration={"confidence": {"mapping": mapping}})
        path = save_model(tmp_path / "m.onnx", tiny_model(), metadata)
        refused(libcats.MODEL, "calibration/confidence/mapping", library.open, path)


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
        r"over the limit": {"width": 2**24, "height": 2**24},
        r"reserved must be 0": {"reserved": 7},
        r"at most 16777216 pixels a side": {"width": 2**24 + 1, "height": 16},
    }
    for text, changes in cases.items():
        refused(libcats.ARGUMENT, text, matcher.match, good, image(texture, **changes))
        refused(libcats.ARGUMENT, text, matcher.preprocess, image(texture, **changes))
    refused(libcats.ARGUMENT, r"image b\[1\] is", matcher.match_batch, [good, good], [good, image(texture, width=3)])
    refused(libcats.ARGUMENT, r"struct_size is 3: set it to sizeof\(cats_image\)", matcher.preprocess,
            image(texture, struct_size=3))  # fmt: skip
    refused(libcats.STATE, "holds no match", matcher.flow)
    matcher.match(good, good)
    refused(libcats.ARGUMENT, "pair 1: this context holds 1", matcher.flow, 1)


def test_refused_points_and_arguments(matcher: CMatcher, texture: np.ndarray) -> None:
    matcher.match(image(texture), image(texture))
    refused(libcats.ARGUMENT, r"point 1 at \(640, 3\) lies outside image a", matcher.transfer, [[3, 4], [640, 3]])
    refused(libcats.ARGUMENT, "point 0 .* finite", matcher.transfer, [[np.nan, 4]])
    refused(libcats.ARGUMENT, "all must be at least 1", matcher.dense_flow, (3, 3), (3, 3, 0, 1))
    refused(libcats.ARGUMENT, "need", matcher.dense_flow, (3, 3))
    call = matcher.library.call
    refused(libcats.ARGUMENT, "context is NULL", call, "cats_match", None, None, None)
    refused(libcats.ARGUMENT, "count is 0", matcher.match_batch, [], [])
    refused(libcats.STATE, "--split", matcher.encode, image(texture))


def test_refused_models(library: Library, tmp_path: Path, split: tuple[Path, Path], model_file: Path) -> None:
    def metadata(**changes: object) -> Path:
        document = {**tiny_metadata().to_dict(), **changes}
        return save_model(tmp_path / "m.onnx", tiny_model(), json.dumps(document))

    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"no model" * 100)
    bare = save_model(tmp_path / "bare.onnx", tiny_model(), None)
    refused(libcats.FILE, "No such file", library.open, tmp_path / "absent.onnx")
    refused(libcats.FILE, "not a file", library.open, tmp_path)
    refused(libcats.MODEL, "junk.onnx", library.open, junk)
    refused(libcats.MODEL, "in memory", library.open, b"junk")
    refused(libcats.MODEL, "without CATs metadata", library.open, bare)
    not_json = save_model(tmp_path / "not_json.onnx", tiny_model(), '{"format": 1,')
    refused(libcats.MODEL, "not JSON", library.open, not_json)
    refused(libcats.MODEL, "newer than libcats", library.open, metadata(format=2))
    refused(libcats.MODEL, "kind end-to-end", library.open, metadata(kind="end-to-end"))
    refused(libcats.MODEL, "direction", library.open, metadata(direction="b->a"))
    refused(libcats.MODEL, r"\(\?, 2, 16, 16\).*says \(batch, 2, 8, 8\)", library.open, metadata(grid=[8, 8]))
    refused(libcats.MODEL, "square", library.open, metadata(grid=[8, 16]))
    for key, value in {"mean": [0, "x", 0], "std": [1, 0, 1], "size": [256.5, 256], "resize": "opencv"}.items():
        changed = {**Preprocessing().to_dict(), key: value}
        refused(libcats.MODEL, f"preprocessing/{key}", library.open, metadata(preprocessing=changed))
    lonely = tmp_path / "lonely.onnx"
    lonely.write_bytes(split[0].read_bytes())
    refused(libcats.MODEL, "partner_path", library.open, lonely)
    other = save_split(tmp_path, weights_sha256="1" * 64)
    refused(libcats.MODEL, "weights differ", library.open, split[0], partner_path=str(other[1]).encode())
    refused(libcats.MODEL, "kind pair", library.open, split[0], partner_path=str(model_file).encode())
    refused(libcats.ARGUMENT, 'provider "tpu"', library.open, model_file, provider=b"tpu")
    refused(libcats.ARGUMENT, "threads -1", library.open, model_file, threads=-1)
    refused(libcats.ARGUMENT, "run_pairs 1025", library.open, model_file, run_pairs=1025)
    missing = str(tmp_path / "nowhere.so").encode()
    refused(libcats.RUNTIME, "nowhere.so.*CATS_ORT_LIBRARY", library.open, model_file, ort_library=missing)
    libm = b"libm.so.6"
    refused(libcats.RUNTIME, "not ONNX Runtime", library.open, model_file, ort_library=libm)


def rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    for node in model.graph.node:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]
    for port in (*model.graph.input, *model.graph.output):
        port.name = names.get(port.name, port.name)


def test_split_models_that_leave_an_input_without_a_tensor_are_refused(library: Library, tmp_path: Path) -> None:
    """Each would hand ONNX Runtime a pointer that nothing was written to."""
    metadata = {kind: tiny_metadata(kind=kind) for kind in ("encoder", "matcher")}
    long = "x" * 256
    twice, rest = tiny_split()
    twice.graph.output[1].CopyFrom(twice.graph.output[0])
    alike, two = tiny_split()  # names that differ after the 256th character only
    rename(alike, {"features_0": f"{long}0", "appearance": f"{long}1"})
    rename(two, {"features_0_a": f"{long}_a", "features_0_b": f"{long}_b"})
    for encoder, matcher in ((twice, rest), (alike, two)):
        path = save_model(tmp_path / "m.encoder.onnx", encoder, metadata["encoder"])
        save_model(tmp_path / "m.matcher.onnx", matcher, metadata["matcher"])
        refused(libcats.MODEL, "do not fit each other at", library.open, path)


HIDDEN = """
<ir_version: 10, opset_import: ["": 18]>
hidden (float[N,3,256,256] image_a, float[N,3,256,256] image_b) => (float[N,2,16,16] flow, float[N,16,16] confidence) {
  sum = ReduceSum<keepdims=0>(image_a)
  number = Cast<to=7>(sum)
  nothing = Mul(number, zero)
  flow_shape = Add(flow_sides, nothing)
  flow = Expand(one, flow_shape)
  map_shape = Add(map_sides, nothing)
  confidence = Expand(one, map_shape)
}
"""


@pytest.mark.parametrize(("side", "batch"), [(16, 1), (64, 1), (15, 1), (16, 2), (16, 0)])
def test_shapes_that_a_run_gives_against_its_word_are_refused(
    library: Library, tmp_path: Path, texture: np.ndarray, side: int, batch: int
) -> None:
    """Nothing is written beyond the buffers, which are as large as the file says."""
    model = onnx.parser.parse_model(HIDDEN)
    sides = {"flow_sides": [batch, 2, side, side], "map_sides": [batch, side, side]}
    for name, value in {"zero": np.int64(0), "one": np.float32([1]), **sides}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    opened = library.open(save_model(tmp_path / "m.onnx", model, tiny_metadata()))
    if (side, batch) == (16, 1):
        opened.match(image(texture), image(texture))
        assert (opened.flow() == 1).all()
    else:
        refused(libcats.RUNTIME, "ONNX Runtime", opened.match, image(texture), image(texture))
        assert library.raw.cats_pair_count(opened.context) == 0
    opened.close()


def test_models_in_memory_are_told_apart(library: Library, split: tuple[Path, Path], model_file: Path) -> None:
    other = model_file.read_bytes()
    words = "partner in memory is of kind pair, but the matcher of a split model belongs to the model in memory"
    data = split[0].read_bytes()
    refused(libcats.MODEL, words, library.open, data, partner_data=other, partner_size=len(other))
    refused(libcats.ARGUMENT, "less than 2 GiB", library.open, data, partner_data=other, partner_size=1 << 31)


OPEN = """
import ctypes, os, sys
library, model, cpus = sys.argv[1:]
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cpus) or None])
cats = ctypes.CDLL(library)
cats.cats_last_error.restype = ctypes.c_char_p
handle = ctypes.c_void_p()
before = len(os.listdir("/proc/self/task"))
print(cats.cats_open(model.encode(), None, ctypes.byref(handle)), cats.cats_last_error().decode())
print(len(os.listdir("/proc/self/task")) - before)
"""


def open_elsewhere(library: Path, model: Path, cpus: int = 0, **settings: str) -> list[str]:
    """cats_open in a process of its own; its status and error text, and how many threads it started."""
    environment = {**libcats.environment(), **settings}
    environment = {name: value for name, value in environment.items() if value}
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(library), str(model), str(cpus)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_missing_onnxruntime_lists_what_was_tried(library: Library, model_file: Path) -> None:
    text = open_elsewhere(library.path, model_file, CATS_ORT_LIBRARY="")[0]
    if text.startswith("0"):
        pytest.skip("the loader finds ONNX Runtime by itself")
    beside = library.path.parent
    for tried in (f"{beside}: no libonnx", f"{beside}/lib: ", "onnxruntime/capi: ", "libonnxruntime.so.1: "):
        assert tried in text
    assert "--onnxruntime" in text


def test_onnxruntime_is_found_through_a_link(library: Library, model_file: Path, tmp_path: Path) -> None:
    """libcats in a Python package, linked from elsewhere: ONNX Runtime is beside the package."""
    package = tmp_path / "site-packages" / "cats" / "runtime" / "c"
    package.mkdir(parents=True)
    (package / "libcats.so").write_bytes(library.path.read_bytes())
    (tmp_path / "site-packages" / "onnxruntime").symlink_to(Path(libcats.find_onnxruntime()).parent)
    (tmp_path / "libcats.so").symlink_to(package / "libcats.so")
    assert open_elsewhere(tmp_path / "libcats.so", model_file, CATS_ORT_LIBRARY="")[0] == "0 "


def test_threads_follow_the_limits_of_the_process(library: Library, model_file: Path) -> None:
    if physical_cores() == 1 or usable_cpus() < physical_cores():
        pytest.skip("one core, or a process that is limited already")
    limited, free = (int(open_elsewhere(library.path, model_file, cpus=cpus)[1]) for cpus in (1, 0))
    assert free - limited == physical_cores() - 1


def test_cuda_is_never_replaced_by_the_cpu(library: Library, model_file: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build has CUDA")
    refused(libcats.RUNTIME, "CUDA provider did not start", library.open, model_file, provider=b"cuda")


def test_unknown_fields_of_a_newer_program_are_refused(library: Library, model_file: Path) -> None:
    class Newer(ctypes.Structure):
        _fields_ = (("known", libcats.Options), ("unknown", ctypes.c_int64))

    handle, options = ctypes.c_void_p(), Newer(library.options(), 0)
    options.known.struct_size = ctypes.sizeof(Newer)
    name = str(model_file).encode()
    library.call("cats_open", name, ctypes.byref(options), ctypes.byref(handle))
    library.raw.cats_close(handle)
    options.unknown = 5
    refused(
        libcats.ARGUMENT,
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
    opened = library.open(save_model(tmp_path / "nan.onnx", model, tiny_metadata()))
    refused(libcats.RUNTIME, "not numbers", opened.match, image(texture), image(texture))
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
    assert statuses <= {0, libcats.BUSY}
    assert 0 in statuses
    assert libcats.BUSY in statuses


def test_contexts_outlive_their_matcher(library: Library, model_file: Path, texture: np.ndarray) -> None:
    opened = library.open(model_file)
    library.raw.cats_close(opened.handle)
    opened.match(image(texture), image(texture))
    assert np.isfinite(opened.flow()).all()
    library.raw.cats_context_destroy(opened.context)


def test_another_weight_takes_the_stamp_off(library: Library, tmp_path: Path) -> None:
    """Verified means this graph and these weights, in C as in Python."""
    path = save_model(tmp_path / "m.onnx", tiny_model(), tiny_metadata())
    opened = library.open(path)
    assert (opened.info.verified, opened.info.precision) == (1, b"fp32")
    model = onnx.load(path)
    cells = next(item for item in model.graph.initializer if item.name == "cells")
    cells.raw_data = cells.raw_data[:-1] + bytes([cells.raw_data[-1] ^ 1])
    onnx.save(model, path)
    opened = library.open(path)
    assert (opened.info.verified, opened.info.precision) == (0, b"unknown")


def test_two_documents_are_refused(library: Library, tmp_path: Path) -> None:
    model = tiny_model()
    model.metadata_props.add(key="cats", value=tiny_metadata().to_json())
    path = save_model(tmp_path / "m.onnx", model, tiny_metadata().to_json())
    refused(libcats.MODEL, "2 metadata entries 'cats'", library.open, path)


def test_weights_in_another_file_need_a_path(library: Library, tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.onnx", tiny_model(), tiny_metadata())
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0)
    refused(libcats.MODEL, "open it by its path", library.open, path.read_bytes())


@pytest.mark.parametrize("change", OUT_OF_BOUNDS, ids=lambda change: str(change)[:60])
def test_documents_that_python_refuses_are_refused(library: Library, tmp_path: Path, change: dict) -> None:
    text = json.dumps({**tiny_metadata().to_dict(), **change})
    with pytest.raises(ModelFileError):
        Metadata.from_json(text)
    refused(libcats.MODEL, "CATs metadata|metadata format", library.open,
            save_model(tmp_path / "m.onnx", tiny_model(), text))  # fmt: skip


@pytest.mark.parametrize("text", ["[1e999]", "9" * 400, '"\\ud800"', '"\\u0000"', "[" * 64 + "1" + "]" * 64])
def test_json_that_python_refuses_is_refused(library: Library, tmp_path: Path, text: str) -> None:
    document = tiny_metadata().to_json()[:-1] + f', "later": {text}' + "}"
    with pytest.raises(ModelFileError, match="is not JSON"):
        Metadata.from_json(document)
    refused(
        libcats.MODEL, "metadata is not JSON", library.open, save_model(tmp_path / "m.onnx", tiny_model(), document)
    )
