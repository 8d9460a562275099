"""Parity: what is measured, judged and said."""

import copy
import dataclasses
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from cats.core.errors import InputError
from cats.data.photo_pairs import alike_photos, photos_from_csv
from cats.evaluation.parity import TOLERANCE
from cats.export.forms import build_form
from cats.export.fp16.assign import to_fp16
from cats.export.pairs import demo_pairs
from cats.export.verify import compare, jumps_without_order, make_batches, print_parity, summarize_peaks, verify


def result(difference=0.0, grid=16, batch=2):
    rng = np.random.default_rng(0)
    flow = rng.normal(size=(batch, 2, grid, grid)).astype(np.float32)
    flow[:, 0] += difference
    return flow, rng.random((batch, grid, grid)).astype(np.float32)


def judge(expected, actual, tolerance=0.05):
    return compare(expected, actual, tolerance=tolerance, source="s", against="a")


def test_distances_are_pixels_at_256():
    parity = judge(result(), result(0.25))  # a quarter of a cell of 16 pixels
    assert parity.median_px == pytest.approx(4, abs=1e-4)
    assert parity.p99_px == pytest.approx(4, abs=1e-4)
    assert parity.moved == 1
    assert not parity.passed
    assert judge(result(grid=8), result(0.25, grid=8)).median_px == pytest.approx(8, abs=1e-4)


def test_the_99th_percentile_is_judged_and_the_largest_is_not():
    flow, confidence = result()
    other = flow.copy()
    other[0, 0, 0, 0] += 5
    parity = judge((flow, confidence), (other, confidence))
    assert parity.passed
    assert parity.max_px == pytest.approx(80, abs=1e-3)
    assert parity.moved == pytest.approx(1 / 512)


def test_a_flow_that_is_not_finite_fails_and_is_still_json():
    flow, confidence = result()
    broken = np.full_like(flow, np.nan)
    parity = judge((flow, confidence), (broken, confidence), TOLERANCE["int8"])
    assert not parity.passed
    assert parity.to_dict()["max_px"] == 1e6


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("side", [0, 1])
def test_one_value_that_is_not_a_number_fails(value, part, side):
    sides = [result(), result()]
    sides[side][part][0, ..., 3, 2] = value
    parity = judge(*sides, TOLERANCE["int8"])
    assert parity.p99_px <= TOLERANCE["int8"]
    assert not parity.passed
    assert parity.not_finite == 1
    json.dumps(parity.to_dict(), allow_nan=False)


def test_untrained_weights_are_judged_by_the_refined_correlation(model, capsys, monkeypatch):
    """A soft-argmax of a temperature so low that it is an argmax: its ties flip, its scores agree."""
    monkeypatch.setitem(TOLERANCE, "fp16", 1e-6)  # which no such file holds
    sharp = copy.deepcopy(model)
    object.__setattr__(sharp, "config", dataclasses.replace(model.config, temperature=1e-5))
    typed = to_fp16(build_form(sharp, "pair", batch=2)["pair"])
    parity = verify({"pair": typed}, sharp, demo_pairs(), batch=2, precision="fp16")
    assert parity.argmax
    assert parity.p99_px > 1e-6
    assert 0 < parity.refined < parity.refined_tolerance
    assert parity.passed
    print_parity(parity, "m.onnx")
    assert "Judged instead by the refined correlation" in " ".join(capsys.readouterr().err.split())
    weight = next(
        item for item in typed.graph.initializer if item.name.endswith("decoder.proj.bias") or "proj" in item.name
    )
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array((array * 3 + 1).astype(array.dtype), weight.name))
    assert not verify({"pair": typed}, sharp, demo_pairs(), batch=2, precision="fp16").passed


def test_activations_near_the_end_of_float16_are_named_by_module():
    peaks = {"a/Conv": 12.0, "b.c/MatMul": 40_000.0, "b.c/Add": 50_000.0, "d/Mul": float("inf"), "/Add": 1.0}
    found = summarize_peaks(peaks)
    assert (found["largest"], found["module"], found["tensor"]) == (1e38, "d", "d/Mul")
    assert found["above"] == [["b.c", 50_000.0], ["d", 1e38]]
    json.dumps(found, allow_nan=False)


def test_float16_is_judged_with_its_rounding(model, forms):
    typed = to_fp16(forms["pair"])
    parity = verify({"pair": typed}, model, demo_pairs(2), batch=None, precision="fp16")
    assert "rounded to float16" in parity.against
    assert parity.activations["largest"] > 0
    overflowing = onnx.ModelProto()
    overflowing.CopyFrom(typed)
    scale = {"decoder.blocks.0.norm1.weight": 6e4, "decoder.blocks.0.attn.v.weight": 100}
    for item in overflowing.graph.initializer:  # ONNX Runtime would not notice
        if item.name in scale:
            values = numpy_helper.to_array(item).astype(np.float32) * scale[item.name]
            item.CopyFrom(numpy_helper.from_array(np.clip(values, -6e4, 6e4).astype(np.float16), item.name))
    parity = verify({"pair": overflowing}, model, demo_pairs(2), batch=None, precision="fp16")
    assert not parity.passed
    assert any(module.startswith("decoder.blocks.0") for module, _ in parity.activations["above"])


def test_weights_that_pick_single_cells_are_recognised():
    rng = np.random.default_rng(0)
    jumps = rng.uniform(-8, 8, (1, 2, 16, 16)).astype(np.float32)
    smooth = np.zeros((1, 2, 16, 16), np.float32)
    assert jumps_without_order(jumps)
    assert not jumps_without_order(smooth)


@pytest.mark.parametrize("form", [("pair",), ("encoder", "matcher"), ("end-to-end",)], ids=" ".join)
def test_every_form_agrees_with_pytorch_on_photos(model, forms, form):
    parity = verify({kind: forms[kind] for kind in form}, model, demo_pairs(), batch=None, precision="fp32")
    assert parity.pairs == 8
    assert parity.p99_px < 0.01
    assert parity.passed
    assert (parity.points_px is not None) == (form == ("end-to-end",))


def test_a_wrong_weight_is_found(model, forms):
    wrong = onnx.ModelProto()
    wrong.CopyFrom(forms["pair"])
    item = next(i for i in wrong.graph.initializer if i.name == "decoder.blocks.0.mlp.fc2.weight")
    item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * np.float32(0.9), item.name))
    assert not verify({"pair": wrong}, model, demo_pairs(), batch=None, precision="fp32").passed


def test_batches_of_several_sizes_are_run(model):
    sizes = [len(a) for a, _ in make_batches(model, demo_pairs(), None)]
    assert set(sizes) >= {1, 2, 3}
    assert sum(sizes) == 8
    assert [len(a) for a, _ in make_batches(model, demo_pairs(), 3)] == [3, 3, 3]


def test_fixed_batch_is_filled_up(model):
    exported = build_form(model, batch=3)
    assert verify(exported, model, demo_pairs(), batch=3, precision="fp32").passed


def test_demo_pairs_are_the_same_every_time_and_differ():
    first, second = demo_pairs(), demo_pairs()
    for (a, b), (c, d) in zip(first.images(), second.images(), strict=True):
        assert a.tobytes() == c.tobytes()
        assert b.tobytes() == d.tobytes()
    assert len({a.tobytes() for a, _ in first.images()}) == 8


def test_pairs_of_a_folder_and_of_a_table(tmp_path):
    for folder, count in (("cats", 3), ("dogs", 2), ("single", 1)):
        (tmp_path / folder).mkdir()
        for k in range(count):
            Image.new("RGB", (20, 30), (k * 50, 0, 0)).save(tmp_path / folder / f"{k}.png")
    (tmp_path / "notes.txt").write_text("no image")
    pairs = alike_photos(tmp_path)
    assert [(a.parent.name, b.parent.name) for a, b in pairs.pairs] == [("cats", "cats")] * 2 + [("dogs", "dogs")]
    assert len(alike_photos(tmp_path, limit=2)) == 2
    (tmp_path / "pairs.csv").write_text("a,b\ncats/0.png,dogs/1.png\n")
    assert len(list(photos_from_csv(tmp_path / "pairs.csv").images())) == 1
    with pytest.raises(InputError, match="at least two"):
        alike_photos(tmp_path / "single")
    with pytest.raises(InputError, match="not a folder"):
        alike_photos(tmp_path / "nowhere")
