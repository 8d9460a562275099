"""Divergence, sensitivity and search: a planted bad layer is found, bounds hold, runs resume."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import runner
from onnx import numpy_helper

from cats.calibration.calibrate import FloatModel, measure_ranges
from cats.calibration.cli import main as calibrate_main
from cats.calibration.graph import condense, quantizable_modules
from cats.calibration.quantize import quantize
from cats.calibration.search import Bound, _give_up, search
from cats.calibration.sessions import ProbeSession
from cats.calibration.studies.divergence import find_divergence
from cats.calibration.studies.sensitivity import measure_sensitivity
from cats.calibration.variants import Variants, group_modules
from cats.cli import main as cats_main
from cats.core.errors import InputError
from cats.core.metadata import read_onnx_metadata, write_model
from cats.export.fp16.assign import to_fp16
from cats.export.modules import is_inside

BAD = "feature_extraction.backbone.blocks.2.0.conv_pwl"
BEFORE = "feature_extraction.backbone.blocks.2.0.conv_dw"


@pytest.fixture
def calibrate(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return runner(calibrate_main, "cats-calibrate", monkeypatch, capsys)


@pytest.fixture
def cats(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return runner(cats_main, "cats", monkeypatch, capsys)


@pytest.fixture(scope="session")
def planted(source, tmp_path_factory):
    """The model with every other channel tiny and its weights in the next layer huge: exact in float, lost in INT8."""
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    names = {item.name for item in model.graph.initializer}
    assert {f"{BEFORE}.weight", f"{BEFORE}.bias", f"{BAD}.weight"} <= names, sorted(names)
    for item in model.graph.initializer:
        values = numpy_helper.to_array(item).copy()
        if item.name in (f"{BEFORE}.weight", f"{BEFORE}.bias"):
            values[::2] *= 1e-4
        elif item.name == f"{BAD}.weight":
            values[:, ::2] *= 1e4
        else:
            continue
        item.CopyFrom(numpy_helper.from_array(values, item.name))
    path = tmp_path_factory.mktemp("planted") / "planted.onnx"
    write_model(model, source.metadata, path)
    return FloatModel(path, model, source.metadata)


@pytest.fixture(scope="session")
def halves(pairs):
    return pairs.split(2)


@pytest.fixture(scope="session")
def planted_ranges(planted, halves):
    return measure_ranges(planted, halves[0], balance=False)


@pytest.fixture
def variants(planted, planted_ranges, halves):
    return Variants(planted, planted_ranges, halves[1], threads=2)


def test_sensitivity_finds_the_planted_layer_first(variants):
    result = measure_sensitivity(variants, by="block", cumulative=False)
    assert BAD in result.ranked[0].modules
    assert result.ranked[0].alone.median_px > result.ranked[1].alone.median_px
    assert f"{BAD}/Conv" in result.ranked[0].nodes


def test_divergence_finds_the_planted_layer_first(planted, planted_ranges, halves, tmp_path):
    path = tmp_path / "q.onnx"
    write_model(quantize(planted.model, planted_ranges), planted.metadata.with_(precision="int8"), path)
    found = find_divergence(planted.path, path, halves[1])
    assert found.first is not None
    assert found.first.module == BAD
    assert found.largest_step.module == BAD


def test_equal_files_do_not_part(float_file, halves):
    found = find_divergence(float_file, float_file, halves[1])
    assert found.first is None
    assert max(item.relative for item in found.nodes) == 0


def test_overflow_of_float16_is_named(source, halves, copy, tmp_path):
    model = copy(source.model)
    name = f"{BAD}.weight"
    for item in model.graph.initializer:
        if item.name == name:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * np.float32(9e4), name))
    write_model(model, source.metadata, tmp_path / "a.onnx")
    write_model(to_fp16(model), source.metadata.with_(precision="fp16"), tmp_path / "b.onnx")
    found = find_divergence(tmp_path / "a.onnx", tmp_path / "b.onnx", halves[1])
    assert name in {item.name for item in model.graph.initializer}
    assert found.first is not None
    # Its weights are beyond float16 too and stay float32: the cast in front of the next layer overflows.
    assert found.first.module == "feature_extraction.backbone.blocks.2.1.conv_pw"
    assert BAD in {item.module for item in found.overflowing}
    assert found.first.not_finite_b > 0
    assert found.overflowing[0].largest_a > 65504
    json.dumps(found.to_dict(), allow_nan=False)


def test_search_meets_its_bound_and_resumes(planted, planted_ranges, halves, tmp_path):
    state = tmp_path / "state.json"
    first = Variants(planted, planted_ranges, halves[1], threads=2, state=state)
    everything = first.measure(()).p99_px
    bound = Bound(max_drift=everything / 4)
    answer = search(first, bound, by="block")
    assert not set(halves[0].pairs) & set(halves[1].pairs)
    assert answer.effect.p99_px <= bound.max_drift
    assert BAD in answer.keep
    assert len(answer.keep) < len(quantizable_modules(planted.model))
    flow = [ProbeSession(m)(first.feeds()[0])["flow"] for m in (planted.model, first.build(answer.keep))]
    size = 256 / flow[0].shape[-1]
    assert np.quantile(np.linalg.norm(flow[0] - flow[1], axis=1), 0.5) * size <= bound.max_drift
    document = json.loads(state.read_text())
    document["variants"] = document["variants"][: len(document["variants"]) // 2]
    state.write_text(json.dumps(document))
    resumed = Variants(planted, planted_ranges, halves[1], threads=2, state=state)
    assert len(resumed.measured) == len(document["variants"])
    assert search(resumed, bound, by="block").keep == answer.keep


def test_state_of_another_search_is_refused(planted, planted_ranges, halves, tmp_path):
    state = tmp_path / "state.json"
    Variants(planted, planted_ranges, halves[1], state=state).measure(quantizable_modules(planted.model))
    with pytest.raises(InputError, match="another model"):
        Variants(planted, planted_ranges, halves[0], state=state)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "state.json is not JSON: nested"),
        ("[]", "not the state of a search"),
        (
            '{"fingerprint":"", "variants": [{"keep": [], "median_px": "1", "p99_px": 1, "max_px": 1, "pck_drop": 0}]}',
            "not the state of a search",
        ),
    ],
)
def test_damaged_states_are_refused(planted, planted_ranges, halves, tmp_path, text, message):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(InputError, match=message):
        Variants(planted, planted_ranges, halves[0], state=tmp_path / "state.json")


def test_float16_is_searched_too(source, halves):
    variants = Variants(source, None, halves[1], precision="fp16", threads=2)
    everything = variants.measure(())
    assert everything.p99_px > 0
    answer = search(variants, Bound(max_drift=everything.p99_px * 2), by="block")
    assert answer.keep == ()


def test_blocks():
    names = ["a.0.x", "a.0.y", "a.p", "b.0", "b.1", "c"]
    assert group_modules(names, "block") == {"a.0": ["a.0.x", "a.0.y"], "a.p": ["a.p"], "b": ["b.0", "b.1"], "c": ["c"]}
    assert group_modules(names) == {name: [name] for name in names}


def test_divergence_and_search(cats, calibrate, float_file, photos):
    assert cats("divergence", float_file, float_file).code == 0
    done = calibrate(float_file, "--images", photos, "--max-drift", "1000px", "--no-time", "--json", "-o", "m.onnx")
    assert done.code in (0, 1), done.err
    assert json.loads(done.out)["calibration"]["kept"] == []


def test_a_picture_of_an_unknown_format_is_refused(cats, float_file, photos, tmp_path):
    fit = ("fit-confidence", float_file, "--data", f"categories:{photos}")
    assert "use .png" in cats(*fit, "-o", "c.onnx", "--plot", "c.abc").error
    assert not list(tmp_path.glob("c.*"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (("small.onnx", "--sensitivity", "--plot", "x.png"), "cats sensitivity"),
        (("--find-divergence", "a.onnx", "b.onnx"), "cats divergence"),
        (("small.onnx", "--fit-confidence", "--data", "categories:x"), "cats fit-confidence"),
    ],
)
def test_old_spellings_name_the_new_command(calibrate, old, new):
    assert new in calibrate(*old).error


@pytest.mark.parametrize("command", ["sensitivity", "divergence", "fit-confidence"])
def test_help_of_studies(cats, command):
    done = cats(command, "--help")
    assert done.code == 0
    assert f"cats {command} cats.onnx" in done.out


def test_by_default_as_much_stays_in_float32_as_the_bound_needs(calibrate, float_file, photos):
    as_is = calibrate(float_file, "--images", photos, "--as-is", "--no-time", "-o", "all.onnx")
    assert Path("all.onnx").exists(), as_is.err
    everything = read_onnx_metadata("all.onnx").parity["p99_px"]
    bound = everything / 2
    assert as_is.code == (0 if everything <= 2 else 1)
    done = calibrate(float_file, "--images", photos, "--max-drift", f"{bound}px", "--no-time", "--state", "s.json")
    assert done.code == (0 if bound <= 2 else 1), done.err  # verified is what moves by 2 px at most
    metadata = read_onnx_metadata("small.int8.onnx")
    part = metadata.calibration
    assert metadata.parity["p99_px"] <= bound
    assert part["kept"]
    assert sorted(part["kept"]) == sorted(name for item in part["search"]["kept"] for name in item["modules"])
    assert all(item["without_px"] > bound for item in part["search"]["kept"])
    assert "stays in float32" in done.err
    first = Path("small.int8.onnx").read_bytes()
    limits = ("--max-drift", f"{bound}px", "--state", "s.json")
    again = calibrate(float_file, "--images", photos, *limits, "--no-time", "--force")
    assert again.code == 0
    assert Path("small.int8.onnx").read_bytes() == first


def test_a_bound_that_cannot_be_met_says_so(calibrate, float_file, photos):
    done = calibrate(float_file, "--images", photos, "--max-drift", "1e-9px", "--no-time")
    assert done.code == 1
    assert "cannot meet the bound of p99 1e-09 px" in done.err
    assert not Path("small.int8.onnx").exists()


def test_kept_modules_are_named_by_the_fewest_beginnings():
    names = ["stem", "blocks.1.a", "blocks.1.b", "blocks.10.a", "blocks.10.b", "head.a", "head.b"]
    kept = ["stem", "blocks.1.a", "blocks.1.b", "blocks.10.b", "head.a", "head.b"]
    short = condense(kept, names)
    assert short == ["stem", "blocks.1", "blocks.10.b", "head"]
    assert [name for name in names if is_inside(name, short)] == kept
    assert condense([], names) == []


def test_wrong_inputs_of_studies(calibrate, cats, float_file, photos, tmp_path):
    images = ("--images", photos)
    assert "Missing argument" in cats("divergence", float_file).err
    assert "Missing option '--data'" in cats("fit-confidence", float_file).err
    assert "0.5px" in calibrate(float_file, *images, "--max-drift", "much").error
    assert "zero or more" in calibrate(float_file, *images, "--max-drift=-1").error
    assert "--check" in calibrate(float_file, *images, "--max-pck-drop", "1").error
    assert "module or block" in cats("sensitivity", float_file, *images, "--by", "layer").error
    assert "cats-export --fp16" in calibrate(float_file, *images, "--precision", "fp16", "--as-is").error
    (tmp_path / "s.json").write_text("[]")
    assert "s.json" in cats("sensitivity", float_file, *images, "--state", "s.json").error
    (tmp_path / "text.onnx").write_text("no model")
    assert "text.onnx" in cats("divergence", float_file, "text.onnx").error
    assert "it is read" in cats("fit-confidence", float_file, "--data", f"categories:{photos}", "-o", float_file).error


def test_giving_up_leaves_what_is_needed_in_few_tries():
    names = [f"m{k:02d}" for k in range(24)]
    cost = {name: float(k) for k, name in enumerate(names)}
    needed = set(names[::3])
    tried = []

    def holds(rest):
        """The bound holds with all that is needed and, as long as the cheapest is there, without the dearest of it."""
        tried.append(rest)
        return needed - {names[21]} <= set(rest) and (names[21] in rest or names[1] in rest)

    kept = _give_up(names, cost, holds)
    assert kept == sorted(needed - {names[21]} | {names[1]})
    assert not any(holds([other for other in kept if other != name]) for name in kept)
    assert len(tried) - len(kept) < 2 * len(names)
