"""What a confidence stands for: temperature, mapping, pairs to fit on, and the command."""

import itertools
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from commands import runner
from PIL import Image

from cats.calibration.calibrate import FloatModel
from cats.calibration.calibrate import calibrate as calibrate_model
from cats.calibration.sessions import ProbeSession
from cats.calibration.studies.confidence import (
    NumpySoftArgmax,
    Predictions,
    Scores,
    apply_fit,
    apply_mapping,
    expected_calibration_error,
    fit_confidence,
    fit_mapping,
    predict,
    replace_temperature,
    temperature_of,
)
from cats.calibration.studies.known_pairs import KnownPair, KnownPairs, open_known_pairs
from cats.cli import main as cats_main
from cats.core.errors import InputError
from cats.core.geometry import identity_cells
from cats.core.metadata import read_onnx_metadata
from cats.data.photo_pairs import photos_from_folder
from cats.runtime import Matcher


@pytest.fixture
def cats(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return runner(cats_main, "cats", monkeypatch, capsys)


def test_another_temperature_changes_the_flow(source, feeds):
    old = temperature_of(source.model)
    assert old == pytest.approx(source.metadata.config["temperature"])
    changed = replace_temperature(source.model, old / 4)
    assert temperature_of(changed) == pytest.approx(old / 4)
    before, after = (ProbeSession(model)(feeds) for model in (source.model, changed))
    assert np.abs(before["flow"] - after["flow"]).max() > 0.1
    assert after["confidence"].mean() > before["confidence"].mean()
    same = ProbeSession(replace_temperature(source.model, old))(feeds)
    np.testing.assert_allclose(same["flow"], before["flow"], atol=1e-5)


def test_a_confidence_of_nothing_is_chance():
    rng = np.random.default_rng(0)
    mapping = fit_mapping(Predictions(np.where(rng.random(500) < 0.9, 5.0, 60.0), rng.uniform(0.4, 1, 500)))
    low, high = apply_mapping(mapping, np.array([1e-6, 0.9]))
    assert low == pytest.approx(np.pi * 0.01, abs=0.001)
    assert high > 0.8


def test_pairs_of_one_kind_and_of_different_kinds(tmp_path):
    for kind in ("cat", "dog", "owl"):
        (tmp_path / kind).mkdir()
        for k in range(12):
            Image.new("RGB", (8, 8)).save(tmp_path / kind / f"{k:02}.png")
    pairs = open_known_pairs(f"categories:{tmp_path}", 8, 64)
    assert not pairs.annotated
    chosen = [*pairs.fit_on, *pairs.held_out]
    assert len(chosen) == 18
    assert all(pair.image_a.parent == pair.image_b.parent for pair in chosen)
    assert len({image for pair in chosen for image in (pair.image_a, pair.image_b)}) == 36
    assert len(pairs.others) == 3
    assert all(pair.image_a.parent != pair.image_b.parent for pair in pairs.others)


def test_the_way_back_judges_matches():
    identity = np.eye(64, dtype=np.float32) * 50
    away = np.roll(identity, 30, axis=1)
    cells = identity_cells(8).reshape(2, -1).T
    head = NumpySoftArgmax(cells, cells, 8)
    agreeing = predict([Scores(identity, identity, cells, None)], 0.15, head)
    parting = predict([Scores(identity, away, cells, None)], 0.15, head)
    assert agreeing.right.all()
    assert not parting.right.any()


def test_the_mapping_lowers_the_calibration_error_on_held_out_matches():
    rng = np.random.default_rng(0)

    def draw():
        confidence = rng.random(4000)
        right = rng.random(4000) < 0.3 + 0.5 * confidence**2
        return Predictions(np.where(right, 5.0, 60.0), confidence)

    mapping, held_out = fit_mapping(draw()), draw()
    assert np.all(np.diff(mapping["probability"]) >= 0)
    assert np.all(np.diff(mapping["error_px"]) <= 0)
    mapped = np.interp(held_out.confidence, mapping["confidence"], mapping["probability"])
    before = expected_calibration_error(held_out.confidence, held_out.right)
    assert expected_calibration_error(mapped, held_out.right) < before / 3


def test_fit_confidence(cats, float_file, photos, tmp_path):
    done = cats(
        "fit-confidence", float_file, "--data", f"categories:{photos}", "-o", "c.onnx", "--plot", "c.png", "--json"
    )
    assert done.code == 0, done.err
    fit = json.loads(done.out)
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    metadata = read_onnx_metadata("c.onnx")
    assert metadata.calibration["confidence"] == fit
    assert temperature_of(onnx.load("c.onnx")) == pytest.approx(fit["temperature"])
    match = Matcher("c.onnx", threads=1).match(*sorted(photos.iterdir())[:2])
    assert metadata.verified == read_onnx_metadata(float_file).verified
    assert fit["temperature"] == fit["old_temperature"]  # no true match is known
    assert fit["judged_by"] == "the way there and back"
    low, high = fit["mapping"]["probability"][0], fit["mapping"]["probability"][-1]
    assert low <= match.calibrated_confidence.min() <= match.calibrated_confidence.max() <= high
    with pytest.raises(InputError, match="fit-confidence"):
        _ = Matcher(float_file, threads=1).match(*sorted(photos.iterdir())[:2]).calibrated_confidence
    sure = Matcher("c.onnx", threads=1, calibrated=True).match(*sorted(photos.iterdir())[:2])
    np.testing.assert_array_equal(sure.confidence, match.calibrated_confidence)
    np.testing.assert_array_equal(sure.calibrated_confidence, sure.confidence)
    np.testing.assert_array_equal(sure.expected_error, match.expected_error)
    assert np.corrcoef(sure.expected_error.ravel(), match.confidence.ravel())[0, 1] < 0
    with pytest.raises(InputError, match="fit-confidence"):
        Matcher(float_file, threads=1, calibrated=True)


def test_the_temperature_can_be_kept(source, photos):
    cells = identity_cells(source.metadata.grid[0]).reshape(2, -1).T
    known = [KnownPair(a, b, cells, cells) for a, b in itertools.pairwise(sorted(photos.iterdir()))]
    others = [KnownPair(pair.image_a, pair.image_b, cells) for pair in known[:2]]
    pairs = KnownPairs(known[::2], known[1::2], others, True, "test")
    fit = fit_confidence(source, pairs, keep_temperature=True)
    assert fit.temperature == fit.old_temperature == temperature_of(source.model)
    assert fit.after["mean_error_px"] == fit.before["mean_error_px"]
    assert 0 <= fit.after["ece_with_others"] <= 1
    model, metadata = apply_fit(source, fit, pairs)
    assert model is source.model
    assert metadata.parity == source.metadata.parity


def test_another_temperature_is_verified_again(source, photos):
    cells = identity_cells(source.metadata.grid[0]).reshape(2, -1).T
    names = sorted(photos.iterdir())
    known = [KnownPair(a, b, cells, np.clip(cells + 1, 0, None)) for a, b in itertools.pairwise(names)]
    pairs = KnownPairs(known[::2], known[1::2], [], True, "test")
    fit = replace(fit_confidence(source, pairs), temperature=temperature_of(source.model) / 2)
    checked = FloatModel(source.path, source.model, source.metadata.with_(verified=True))
    model, metadata = apply_fit(checked, fit, pairs)
    assert temperature_of(model) == pytest.approx(fit.temperature)
    assert metadata.verified
    assert metadata.parity["p99_px"] < 0.05
    assert "numpy" in metadata.parity["against"]


def test_quantizing_keeps_the_fitted_confidence(source, ranges, photos, tmp_path):
    mapping = {"confidence": [0.0, 1.0], "probability": [0.25, 0.75], "error_px": [40.0, 4.0]}
    metadata = source.metadata.with_(calibration={"confidence": {"mapping": mapping}})
    path = tmp_path / "q.onnx"
    report = calibrate_model(
        FloatModel(source.path, source.model, metadata), ranges, path, pairs=photos_from_folder(photos)
    )
    assert report.metadata.calibration["confidence"]["mapping"] == mapping
    match = Matcher(path, threads=1, calibrated=True).match(*sorted(photos.iterdir())[:2])
    np.testing.assert_allclose(match.confidence, 0.25 + match.raw_confidence / 2, atol=1e-6)
    np.testing.assert_allclose(match.expected_error, 40 - 36 * match.raw_confidence, atol=1e-4)
