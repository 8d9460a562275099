"""Split models and end-to-end files in 8 bits: the same ranges and modules as the file for pairs, the same matches."""

import json
import shutil

import numpy as np
import onnx
import pytest
from commands import runner
from quantized_tiny import float_forms

from cats.calibration import calibrate as calibration
from cats.calibration.calibrate import calibrate as calibrate_model
from cats.calibration.calibrate import load_float_model, measure_drift
from cats.calibration.cli import main
from cats.calibration.graph import Graph, quantizable_modules
from cats.calibration.quantize import quantize
from cats.calibration.ranges import Ranges, observed_tensors
from cats.calibration.sessions import ProbeSession
from cats.core.errors import InputError, ModelFileError
from cats.core.metadata import read_onnx_metadata, write_model
from cats.evaluation.parity import flow_distance
from cats.export.forms import FORMS
from cats.runtime import Features, Matcher

PARTS = ("encoder", "matcher")


@pytest.fixture(scope="session")
def forms(tmp_path_factory):
    return float_forms(tmp_path_factory)


@pytest.fixture(scope="session")
def sources(forms, source):
    """Form -> float model."""
    return {
        "pair": source,
        "split": load_float_model(forms / "small.encoder.onnx"),
        "end-to-end": load_float_model(forms / "small.end-to-end.onnx"),
    }


@pytest.fixture(scope="session")
def files(sources, ranges, pairs, tmp_path_factory):
    """Form -> report on files with everything in 8 bits, for CPUs, of one set of ranges."""
    folder = tmp_path_factory.mktemp("int8")
    return {
        form: calibrate_model(model, ranges, folder / f"{form}.int8.onnx", target="cpu", pairs=pairs)
        for form, model in sources.items()
    }


@pytest.fixture
def calibrate(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return runner(main, "cats-calibrate", monkeypatch, capsys)


@pytest.fixture
def here(forms, tmp_path):
    """Copies of the float files in the folder of the test."""
    for path in forms.glob("*.onnx"):
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.parametrize("form", ["split", "end-to-end"])
def test_a_form_is_the_graph_for_pairs(sources, feeds, form):
    pair, other = sources["pair"].model, sources[form].model
    assert observed_tensors(other) == observed_tensors(pair)
    assert list(quantizable_modules(other)) == list(quantizable_modules(pair))
    expected, actual = (ProbeSession(model)(feeds) for model in (pair, other))
    assert np.abs(actual["flow"] - expected["flow"]).max() < 1e-4
    assert np.abs(actual["confidence"] - expected["confidence"]).max() < 1e-5


def test_of_all_pairs_the_largest_error_of_points_counts(sources, pairs, monkeypatch):
    source, errors = sources["end-to-end"], iter([9.0] * len(pairs) + [0.1, 0.4, *[0.2] * (len(pairs) - 2)])
    run = calibration.run_photos  # of the float files first, whose points are not judged
    monkeypatch.setattr(calibration, "run_photos", lambda *given: (run(*given)[0], next(errors)))
    found = measure_drift(source, source.take_apart(source.model), pairs, tolerance=2.0)
    assert len(pairs) > 2
    assert found.points_px == 0.4


@pytest.mark.parametrize("form", ["split", "end-to-end"])
def test_taken_apart_it_is_the_files_again(sources, forms, form):
    source = sources[form]
    rng = np.random.default_rng(0)
    for kind, model in source.take_apart(source.model).items():
        onnx.checker.check_model(model, full_check=True)
        original = onnx.load(forms / f"small.{kind}.onnx")
        assert model.graph.input == original.graph.input
        assert model.graph.output == original.graph.output
        given = {"image_a": (1, 70, 90, 3), "image_b": (1, 64, 50, 3), "points_a": (1, 5, 2)}
        noise = {}
        for value in original.graph.input:
            tensor = value.type.tensor_type
            shape = given.get(value.name, [side.dim_value or 2 for side in tensor.shape.dim])
            pixels = tensor.elem_type == onnx.TensorProto.UINT8
            noise[value.name] = rng.integers(0, 256, shape, np.uint8) if pixels else rng.random(shape, np.float32)
        expected, actual = (ProbeSession(item)(noise) for item in (original, model))
        for name, values in expected.items():
            assert np.abs(actual[name] - values).max() < 1e-4, (kind, name)


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_the_files_compute_what_was_judged(sources, ranges, pairs, feeds, target):
    expected = ProbeSession(quantize(sources["pair"].model, ranges, target=target))(feeds)["flow"]
    moved = flow_distance(ProbeSession(sources["pair"].model)(feeds)["flow"], expected)
    for form in ("split", "end-to-end"):
        source = sources[form]
        result = quantize(source.model, ranges, target=target)
        judged = ProbeSession(result)(feeds)["flow"]
        # A value between two steps may go either way; most do not lie there.
        assert np.median(flow_distance(expected, judged)) < 0.1 * np.median(moved)
        apart = source.take_apart(result)
        assert set(apart) == set(FORMS[form])
        assert all(Graph(model).quantizable() == [] for model in apart.values())
        found = measure_drift(source, apart, pairs, tolerance=2.0)
        assert found.median_px == pytest.approx(float(np.median(moved)), rel=0.1)
    assert np.median(moved) > 0.05


def test_metadata_say_what_is_in_which_file(files, sources, ranges):
    all_modules = list(quantizable_modules(sources["pair"].model))
    for form, report in files.items():
        assert list(report.files) == list(FORMS[form])
        for kind, path in report.files.items():
            metadata, before = read_onnx_metadata(path), sources[form].by_kind[kind].metadata
            assert metadata == report.described[kind]
            assert (metadata.kind, metadata.precision) == (kind, "int8")
            assert (metadata.config, metadata.weights_sha256) == (before.config, before.weights_sha256)
            assert metadata.parity == report.drift.to_dict()
            assert metadata.verified == report.drift.passed
            part = metadata.calibration
            assert (part["target"], part["pairs"], part["kept"]) == ("cpu", ranges.pairs, [])
            assert part["quantized_modules"] == len(quantizable_modules(sources[form].by_kind[kind].model))
            float_size = sources[form].by_kind[kind].path.stat().st_size
            assert path.stat().st_size < 0.6 * float_size
        counts = [report.described[kind].calibration["quantized_modules"] for kind in report.files]
        assert sum(counts) == len(all_modules)
        assert all(counts)
    assert files["end-to-end"].drift.points_px < 0.05
    assert files["split"].path.name == "split.int8.matcher.onnx"


def test_the_matcher_runs_them(files, photos, tmp_path):
    a, b, c = sorted(photos.iterdir())[:3]
    with Matcher(files["pair"].path, threads=1) as matcher:
        expected = [matcher.match(a, other) for other in (b, c)]
    points = np.float32([[10, 20], [80, 60], [150, 100]])
    with Matcher(files["split"].files["encoder"], threads=1) as matcher:
        assert matcher.metadata.precision == matcher.encoder.metadata.precision == "int8"
        found = [matcher.match(a, b), *matcher.match_gallery(a, [b, c])]
        first = matcher.encode(a)
        first.save(tmp_path / "a.npz")
        kept = Features.load(tmp_path / "a.npz", matcher.metadata.weights_sha256)
        found += matcher.match_gallery(kept, [matcher.encode(b), c])
    for match, other in zip(found, [expected[0], *expected, *expected], strict=True):
        assert np.median(np.abs(match.flow - other.flow)) < 0.02
    assert np.array_equal(found[0].flow, found[1].flow)
    assert np.array_equal(found[1].flow, found[3].flow)
    with Matcher(files["end-to-end"].path, threads=1) as matcher:
        match = matcher.match(a, b)
        assert np.median(np.abs(match.flow - expected[0].flow)) < 0.02
        assert np.median(np.abs(match.transfer(points) - expected[0].transfer(points))) < 2


def test_float_features_and_a_matcher_in_8_bits(files, forms, photos):
    """A gallery that was encoded before it was quantized stays of use: the weights are the same."""
    a, b = sorted(photos.iterdir())[:2]
    with Matcher(forms / "small.encoder.onnx", threads=1) as floats:
        expected, features = floats.match(a, b), [floats.encode(image) for image in (a, b)]
    with Matcher(files["split"].files["matcher"], threads=1) as matcher:
        match = matcher.match(*features)
    assert np.median(np.abs(match.flow - expected.flow)) < 0.1


def test_openvino_runs_them(files, photos):
    pytest.importorskip("openvino", reason="openvino is not installed")
    a, b = sorted(photos.iterdir())[:2]
    for report in (files["split"], files["end-to-end"]):
        flows = []
        for backend in ("onnxruntime", "openvino"):
            with Matcher(report.path, backend, threads=1) as matcher:
                flows.append(matcher.match(a, b).flow)
        assert np.median(np.abs(flows[0] - flows[1])) < 0.1


def test_photos_to_a_quantized_split_model(calibrate, here, photos):
    done = calibrate(
        "small.matcher.onnx", "--images", photos, "--as-is", "--ranges", "r.json", "--json", "--no-balance"
    )
    written = [here / f"small.int8.{kind}.onnx" for kind in PARTS]
    metadata = [read_onnx_metadata(path) for path in written]
    assert done.code == (0 if metadata[0].verified else 1), done.err
    documents, rest = [], done.out
    while rest.strip():
        document, end = json.JSONDecoder().raw_decode(rest)
        documents.append(document)
        rest = rest[end:].lstrip()
    assert documents == [item.to_dict() for item in metadata]
    assert "ms a photo" in done.err
    assert "ms a pair" in done.err
    assert f"small.int8.encoder.onnx: int8, {written[0].stat().st_size / 1e6:.1f} MB" in done.err
    assert Ranges.load("r.json").pairs == 5
    assert "exists already" in calibrate("small", "--from-ranges", "r.json", "--as-is").error
    done = calibrate("small.end-to-end.onnx", "--from-ranges", "r.json", "--as-is", "--time", "-o", "e.onnx")
    assert done.code in (0, 1), done.err
    assert "times as fast as the float file" in done.err
    assert "points against the flow's transfer" in done.err
    again = calibrate("small", "--from-ranges", "r.json", "--as-is", "--no-time", "-o", "again.encoder.onnx")
    assert again.code in (0, 1), again.err
    assert (here / "again.encoder.onnx").is_file()
    assert (here / "again.matcher.onnx").is_file()


@pytest.mark.parametrize("model", ["small.encoder.onnx", "small.end-to-end.onnx"])
def test_search_leaves_in_float_what_the_bound_needs(calibrate, here, photos, sources, files, model):
    bound = files["pair"].drift.p99_px * 0.6
    limits = ("--max-drift", f"{bound}px", "--for", "cpu", "--no-time", "--state", "s.json")
    done = calibrate(model, "--images", photos, *limits, "-o", "found.onnx")
    assert done.code == 0, done.err
    names = ["found.encoder.onnx", "found.matcher.onnx"] if "encoder" in model else ["found.onnx"]
    described = [read_onnx_metadata(here / name) for name in names]
    assert all(item.verified for item in described)
    assert described[0].parity["p99_px"] <= 1.1 * bound  # of the files; the search judged the whole
    kept = [name for item in described for name in item.calibration["kept"]]
    assert 0 < len(kept) < len(quantizable_modules(sources["pair"].model))
    assert described[0].calibration["search"]["bound"]["max_drift"] == bound
    sizes = [(here / name).stat().st_size for name in names]
    again = calibrate(model, "--images", photos, *limits, "-o", "found.onnx", "--force")
    assert again.code == 0
    assert [(here / name).stat().st_size for name in names] == sizes


def test_modules_of_another_file_are_kept(calibrate, here, float_file, ranges):
    ranges.save("r.json")
    given = ("--from-ranges", "r.json", "--no-time", "--for", "cpu")
    done = calibrate(float_file, *given, "--keep", "decoder", "-o", "pair.int8.onnx")
    assert done.code in (0, 1), done.err
    kept = read_onnx_metadata(here / "pair.int8.onnx").calibration["kept"]
    assert kept
    done = calibrate("small.encoder.onnx", *given, "--keep-as", "pair.int8.onnx")
    assert done.code in (0, 1), done.err
    encoder, matcher = (read_onnx_metadata(here / f"small.int8.{kind}.onnx") for kind in PARTS)
    assert (encoder.precision, encoder.calibration["kept"]) == ("int8", [])
    assert (matcher.calibration["kept"], matcher.calibration["quantized_modules"]) == (kept, 0)
    assert matcher.precision == "fp32"  # nothing of it is in 8 bits
    done = calibrate("small.end-to-end.onnx", *given, "--keep-as", "small.int8.matcher.onnx", "-o", "e.onnx")
    assert done.code in (0, 1), done.err
    assert read_onnx_metadata(here / "e.onnx").calibration["kept"] == kept
    with Matcher(here / "small.int8.encoder.onnx") as opened:
        assert opened.metadata.precision == "fp32"


def test_what_does_not_fit_is_refused(calibrate, here, sources, ranges, photos, float_file, files):
    ranges.save("r.json")
    given = ("--from-ranges", "r.json", "--as-is", "--no-time")
    other = sources["split"].by_kind["matcher"]
    shutil.copy("small.encoder.onnx", "other.encoder.onnx")
    assert "other.matcher.onnx is missing" in calibrate("other.encoder.onnx", *given).error
    write_model(onnx.load(other.path), other.metadata.with_(weights_sha256="1" * 64), "other.matcher.onnx")
    assert "differ in weights" in calibrate("other.encoder.onnx", *given).error
    shutil.copy("small.encoder.onnx", "other.matcher.onnx")
    assert "other.matcher.onnx is of kind encoder" in calibrate("other.encoder.onnx", *given).error
    shutil.copy(files["split"].path, "other.matcher.onnx")
    assert "other.matcher.onnx is quantized already" in calibrate("other.encoder.onnx", *given).error
    fp16 = ("--images", photos, "--precision", "fp16", "--max-drift", "1px")
    for model in ("small.encoder.onnx", "small.end-to-end.onnx"):
        assert "cats-export --fp16" in calibrate(model, *fp16, "-o", "h.onnx").error
    assert "is not quantized" in calibrate("small", *given[:2], "--keep-as", float_file).error
    write_model(onnx.load(other.path), other.metadata.with_(weights_sha256="1" * 64), "strange.onnx")
    assert "other weights" in calibrate("small", *given[:2], "--keep-as", "strange.onnx").error
    assert "leave out --as-is" in calibrate("small", "--images", photos, "--keep-as", "x", "--state", "s.json").error
    assert "it is read" in calibrate("small.encoder.onnx", *given, "-o", "small.onnx").error
    assert not list(here.glob("*.int8*.onnx"))


def fix_batch(path, file, size):
    """Write a file as cats-export --batch does, as far as its inputs say."""
    model = onnx.load(file.path)
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = size
    write_model(model, file.metadata, path)
    return path


def test_a_fixed_batch_is_refused_of_a_split_model_alone(tmp_path, sources, ranges, pairs):
    for kind, file in sources["split"].by_kind.items():
        fix_batch(tmp_path / f"split.{kind}.onnx", file, 2)
    with pytest.raises(ModelFileError, match="--batch dynamic"):
        load_float_model(tmp_path / "split.encoder.onnx")
    pixels = fix_batch(tmp_path / "pixels.onnx", sources["end-to-end"].by_kind["end-to-end"], 2)
    report = calibrate_model(load_float_model(pixels), ranges, tmp_path / "q.onnx", target="cpu", pairs=pairs.spread(3))
    assert report.drift.pairs == 3
    assert np.isfinite(report.drift.p99_px)


def test_studies_name_what_they_take(forms):
    with pytest.raises(ModelFileError, match="kind end-to-end: give the file of cats-export without --split"):
        load_float_model(forms / "small.end-to-end.onnx", ("pair",))
    with pytest.raises(ModelFileError, match="kind encoder"):
        load_float_model(forms / "small.encoder.onnx", ("pair",))


def test_folders_are_no_names(sources, ranges, pairs, tmp_path):
    with pytest.raises(InputError, match="it is a folder"):
        calibrate_model(sources["split"], ranges, tmp_path, target="cpu", pairs=pairs.spread(1))
