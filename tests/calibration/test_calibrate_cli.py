"""``cats-calibrate`` from photos to a verified file, the engine of it, and what is refused."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from commands import runner

from cats.calibration.cli import main
from cats.calibration.graph import quantizable_modules
from cats.calibration.ranges import Ranges
from cats.calibration.sessions import sums_are_exact
from cats.core.metadata import read_onnx_metadata
from cats.evaluation.parity import TOLERANCE
from cats.runtime import Matcher


@pytest.fixture
def calibrate(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return runner(main, "cats-calibrate", monkeypatch, capsys)


def test_photos_to_a_quantized_file(calibrate, float_file, photos, tmp_path):
    done = calibrate(float_file, "--images", photos, "--as-is", "--ranges", "r.json", "--json")
    output = tmp_path / "small.int8.onnx"
    metadata = read_onnx_metadata(output)
    assert done.code == (0 if metadata.verified else 1), done.err
    assert json.loads(done.out) == metadata.to_dict()
    assert metadata.precision == "int8"
    part = metadata.calibration
    assert (part["method"], part["target"], part["kept"]) == ("mse", "cpu", [])
    assert part["quantized_modules"] == len(quantizable_modules(onnx.load(float_file)))
    assert metadata.parity["tolerance_px"] == 2.0
    assert metadata.verified == (metadata.parity["p99_px"] <= 2.0)
    source = read_onnx_metadata(float_file)
    assert (metadata.config, metadata.weights_sha256) == (source.config, source.weights_sha256)
    assert "a small set, pairs to measure: 5" in done.err
    assert "made for CPUs: this machine has no NVIDIA GPU" in done.err
    assert "times as fast as the float file" in done.err
    assert Ranges.load(tmp_path / "r.json").pairs == part["pairs"] == 5
    match = Matcher(output, threads=1).match(*sorted(photos.iterdir())[:2])
    assert np.isfinite(match.flow).all()


def test_quantizing_again_from_ranges_gives_the_same_bytes(calibrate, float_file, photos, ranges, tmp_path):
    ranges.save("r.json")
    for name in ("a.onnx", "b.onnx"):
        calibrate(float_file, "--from-ranges", "r.json", "--as-is", "--no-time", "-o", name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_exact_sums_are_a_matter_of_judging(calibrate, float_file, ranges, tmp_path):
    ranges.save("r.json")
    told = []
    for name, more in (("a.onnx", ()), ("b.onnx", ("--exact-sums",))):
        calibrate(float_file, "--from-ranges", "r.json", "--as-is", "--no-time", "-o", name, *more)
        told.append(read_onnx_metadata(tmp_path / name))
    assert "exact as on CPUs with VNNI" in told[1].parity["against"]
    assert "exact" not in told[0].parity["against"]
    assert not sums_are_exact()  # afterwards
    first, second = (onnx.load(tmp_path / name).graph for name in ("a.onnx", "b.onnx"))
    assert first == second
    assert told[0].weights == "int8"


def test_merged_ranges(calibrate, float_file, ranges, tmp_path):
    ranges.save("r.json")
    calibrate(
        float_file,
        "--from-ranges",
        "r.json",
        "--from-ranges",
        "r.json",
        "--as-is",
        "--no-time",
        "--ranges",
        "both.json",
    )
    assert Ranges.load("both.json").pairs == 2 * ranges.pairs


def test_a_file_past_its_tolerance_is_written_and_exits_1(calibrate, float_file, ranges, tmp_path, monkeypatch):
    monkeypatch.setitem(TOLERANCE, "int8", 1e-6)
    ranges.save("r.json")
    done = calibrate(float_file, "--from-ranges", "r.json", "--as-is", "--no-time")
    assert done.code == 1
    assert "FAILED" in done.err
    assert "leave out --as-is" in done.err
    metadata = read_onnx_metadata(tmp_path / "small.int8.onnx")
    assert metadata.verified is False
    assert metadata.parity["p99_px"] > 1e-6


def test_keeping_almost_everything_passes(calibrate, float_file, ranges, tmp_path):
    ranges.save("r.json")
    names = list(quantizable_modules(onnx.load(float_file)))
    keep = [argument for name in names if name != "proj.0" for argument in ("--keep", name)]
    done = calibrate(float_file, "--from-ranges", "r.json", *keep, "--for", "cpu", "--no-time")
    assert done.code == 0, done.err
    metadata = read_onnx_metadata(tmp_path / "small.int8.onnx")
    assert metadata.verified
    assert metadata.calibration["quantized_modules"] == 1


def test_two_photos_are_enough(calibrate, float_file, photos, tmp_path):
    folder = tmp_path / "two"
    folder.mkdir()
    for path in sorted(photos.iterdir())[:2]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "notes.txt").write_text("not a photo")
    done = calibrate(float_file, "--images", folder, "--as-is", "--no-time")
    assert done.code in (0, 1), done.err
    assert "a small set, pairs to measure: 1" in done.err
    assert "1 files that are no images skipped" in done.err


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_an_engine_is_built_from_it(calibrate, float_file, ranges, tmp_path, precision):
    pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'cats-toolkit[tensorrt-rtx]'"
    )
    from cats.runtime.tensorrt.engine import EngineOptions, build_engine
    from cats.runtime.tensorrt.sidecar import read_sidecar

    ranges.save("r.json")
    how = ("--as-is", "--no-time", "--for", "tensorrt", "--precision", precision)
    calibrate(float_file, "--from-ranges", "r.json", *how, "-o", "q.onnx")
    plan = build_engine("q.onnx", options=EngineOptions(batch=(1, 1, 2), targets=("sm89",)))
    assert plan.read_bytes()[:4] == b"vtrt"
    metadata = read_sidecar(plan)
    assert metadata.precision == precision
    assert metadata.calibration == read_onnx_metadata("q.onnx").calibration


def test_no_engine_of_a_file_for_cpus(calibrate, float_file, ranges, tmp_path):
    from cats.core.errors import ModelFileError
    from cats.runtime.tensorrt.engine import build_engine

    ranges.save("r.json")
    calibrate(float_file, "--from-ranges", "r.json", "--for", "cpu", "--as-is", "--no-time")
    with pytest.raises(ModelFileError, match="--for tensorrt"):
        build_engine(tmp_path / "small.int8.onnx")


def test_wrong_inputs(calibrate, float_file, photos, ranges, tmp_path):
    ranges.save("r.json")
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (broken / name).write_bytes(b"not a photo")
    one = tmp_path / "one"
    one.mkdir()
    (one / "a.png").write_bytes(next(photos.iterdir()).read_bytes())
    (tmp_path / "pairs.csv").write_text("a,b\nmissing.jpg,other.jpg\n")
    assert "no photos" in calibrate(float_file, "--images", empty).error
    assert "a.jpg" in calibrate(float_file, "--images", broken).error
    assert "at least two" in calibrate(float_file, "--images", one).error
    assert "not a folder" in calibrate(float_file, "--images", tmp_path / "nowhere").error
    assert "missing.jpg" in calibrate(float_file, "--pairs", "pairs.csv").error
    assert "KIND:DIR" in calibrate(float_file, "--data", "photos").error
    assert "give one of" in calibrate(float_file).error
    assert "not --images and --pairs" in calibrate(float_file, "--images", photos, "--pairs", "x.csv").error
    assert "int4" in calibrate(float_file, "--from-ranges", "r.json", "--precision", "int4").error
    assert "folder nowhere does not exist" in calibrate(float_file, "--images", photos, "-o", "nowhere/x.onnx").error
    assert "choose cpu or tensorrt" in calibrate(float_file, "--from-ranges", "r.json", "--for", "any").error
    assert "leave it out" in calibrate(float_file, "--from-ranges", "r.json", "--precision", "mixed").error
    assert "leave out --as-is" in calibrate(float_file, "--images", photos, "--as-is", "--max-drift", "1").error
    assert "decoder.x" in calibrate(float_file, "--from-ranges", "r.json", "--keep", "decoder.x").error
    assert not list(tmp_path.glob("*.onnx"))


def test_wrong_models(calibrate, float_file, photos, source, ranges, tmp_path, copy):
    from cats.calibration.quantize import quantize
    from cats.core.metadata import write_model

    ranges.save("r.json")
    bare = copy(source.model)
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    assert "without CATs metadata" in calibrate("bare.onnx", "--images", photos).error
    write_model(quantize(source.model, ranges), source.metadata.with_(precision="int8"), tmp_path / "q.onnx")
    assert "quantized already" in calibrate("q.onnx", "--images", photos).error
    half = copy(source.model)
    half.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    write_model(half, source.metadata.with_(precision="fp16"), tmp_path / "half.onnx")
    assert "without --fp16" in calibrate("half.onnx", "--images", photos).error
    write_model(copy(source.model), source.metadata.with_(extra={"target": "cpu"}), tmp_path / "cpu.onnx")
    assert "without --for cpu" in calibrate("cpu.onnx", "--images", photos).error
    write_model(copy(source.model), source.metadata.with_(weights_sha256="1" * 64), tmp_path / "other.onnx")
    assert "other weights" in calibrate("other.onnx", "--from-ranges", "r.json").error
    (tmp_path / "text.onnx").write_text("no model")
    assert "text.onnx" in calibrate("text.onnx", "--images", photos).error
    assert "missing.onnx" in calibrate("missing.onnx", "--images", photos).error
    assert "it is read" in calibrate("other.onnx", "--images", photos, "-o", "other.onnx").error


@pytest.mark.parametrize(
    ("features", "how", "said"),
    [
        (("avx2",), (), True),
        (("avx2", "avx_vnni"), (), False),
        (("avx2", "avx512f", "avx512_vnni"), (), False),
        (("asimddp",), (), False),
        (("avx2",), ("--weight-bits", "7"), False),
        (("avx2",), ("--for", "tensorrt"), False),
    ],
)
def test_a_cpu_whose_sums_saturate_is_named(calibrate, float_file, monkeypatch, features, how, said):
    monkeypatch.setattr("cats.calibration.options.cpu_features", lambda: features)
    # The ranges are missing, which is seen after the note.
    done = calibrate(float_file, "--from-ranges", "r.json", "--as-is", *how)
    assert done.code == 2
    assert ("no VNNI" in done.err) == said


def test_help(calibrate):
    done = calibrate("--help")
    assert done.code == 0
    assert "--from-ranges" in done.out


def test_calibration_needs_no_torch():
    code = (
        "import sys, cats.calibration.search\nfrom cats.calibration.studies import confidence, divergence\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
