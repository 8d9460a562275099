"""cats-bench from a checkpoint to table, JSON, report and comparison."""

import json
import re
import shutil
from functools import partial
from xml.etree import ElementTree

import pytest
from commands import runner
from tiny_models import tiny_model

from cats.assets import asset
from cats.benchmarks import bench, cli, statistics
from cats.benchmarks.bench import BASELINE
from cats.benchmarks.report import html_report
from cats.benchmarks.roofline import machine_peaks
from cats.checkpoints import save_checkpoint


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One run of the command on a tiny model: what it printed, and its folder."""
    folder = tmp_path_factory.mktemp("bench")
    save_checkpoint(folder / "small.pt", tiny_model(hyperpixels=(4, 5)))
    (folder / "photos").mkdir()
    for name in ("astronaut.jpg", "grace_hopper.jpg"):
        shutil.copy(asset(name), folder / "photos")
    patch, capture = pytest.MonkeyPatch(), Capture()
    arguments = ("--rounds", 3, "--threads", 1, "--only", "ONNX Runtime", "--skip", "naive", "--skip", "--for")
    arguments += ("--batches", "1,2", "--many", "1,2", "--work", folder / "work")
    arguments += ("--int8", folder / "photos", "--images", folder / "photos")
    patch.setattr(bench, "machine_peaks", partial(machine_peaks, size=256, repeats=3))
    patch.setattr(bench, "PAUSE", 0.0)  # idle time, which makes figures steadier
    patch.setattr(statistics.interleave, "__defaults__", (0.0,))
    with patch.context():
        done = runner(cli.main, "cats-bench", patch, capture)(
            folder / "small.pt", *arguments, "-o", folder / "r.json", "--html", folder / "r.html", "--json"
        )
    patch.undo()
    return done, folder


class Capture:
    """Stands in for capsys, which lives for one test only."""

    def readouterr(self):
        return type("Captured", (), {"out": "", "err": ""})


@pytest.fixture
def command(monkeypatch, capsys):
    return runner(cli.main, "cats-bench", monkeypatch, capsys)


def test_results_hold_what_was_measured(measured):
    done, folder = measured
    assert done.code == 0
    results = cli.read_results(folder / "r.json")  # valid by the schema
    rows = {row["name"]: row for row in results["contestants"]}
    assert set(rows) == {BASELINE, "ONNX Runtime", "ONNX Runtime int8"}
    assert rows["ONNX Runtime int8"]["drift"]["p99_px"] > rows["ONNX Runtime"]["drift"]["p99_px"]
    assert rows["ONNX Runtime int8"]["file_mb"] < rows["ONNX Runtime"]["file_mb"]
    assert rows["ONNX Runtime int8"]["peak_share"] is None  # the peaks are of floats
    assert results["drift_on"] == f"1 pair of {folder / 'photos'}"
    load = results["load"]
    assert load["busy"] == (load["average"] >= load["cores"] / 2)
    assert rows[BASELINE]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    ours = rows["ONNX Runtime"]
    assert 0 < ours["ms"]["low"] <= ours["ms"]["median"] <= ours["ms"]["high"]
    assert ours["drift"]["p99_px"] <= 0.05
    assert ours["ready_ms"] > ours["load_ms"] + ours["first_ms"]
    assert ours["file_mb"] == pytest.approx(next((folder / "work").glob("*pair-*.onnx")).stat().st_size / 1e6)
    assert set(ours["stages_ms"]) == {"read", "decode", "resize", "model", "post"}
    assert set(results["stages_split"]) == {"read", "decode", "resize", "encode", "match", "post"}
    assert {name: set(curve) for name, curve in results["batch_curve"].items()} == {
        "ONNX Runtime": {"1", "2"},
        "ONNX Runtime int8": {"1", "2"},
    }
    assert set(results["one_to_many"]["encoded_before"]) == {"1", "2"}
    assert results["roofline"]["gflop"] > 0
    missing = {item["name"]: item["reason"] for item in results["missing"]}
    assert all(missing.values())


def test_report_refers_to_no_other_file(measured):
    _, folder = measured
    text = (folder / "r.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", text)
    assert "<script" not in text
    assert "@import" not in text
    plots = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(plots) == 4  # latency, stages, batches, one against many
    for plot in plots:
        assert len(list(ElementTree.fromstring(plot).iter())) > 20
    results = json.loads((folder / "r.json").read_text())
    assert f"{results['contestants'][1]['ms']['median']:.1f}" in text


def test_report_escapes_what_it_is_given(measured):
    results = json.loads((measured[1] / "r.json").read_text())
    results["missing"] = [{"name": "<b>x</b>", "reason": "a < b"}]
    text = html_report(results)
    assert "&lt;b&gt;x&lt;/b&gt;" in text
    assert "<b>x" not in text


@pytest.mark.parametrize(("busy", "words"), [(True, "<b>The machine was busy"), (False, "<p class='note'>Load")])
def test_report_says_whether_the_machine_was_busy(measured, busy, words):
    results = json.loads((measured[1] / "r.json").read_text())
    results["load"] = {"average": 3.25, "cores": 2, "busy": busy}
    text = html_report(results)
    assert words in text
    assert "3.25 on 2 cores" in text
    assert f"over 1 pair of {measured[1] / 'photos'}." in text


def test_comparison_exits_by_what_it_finds(measured, command, tmp_path):
    _, folder = measured
    same = command("--compare", folder / "r.json", folder / "r.json")
    assert same.code == 0
    assert "ONNX Runtime" in same.out
    slower = json.loads((folder / "r.json").read_text())
    slower["contestants"][1]["ratio"] = {
        key: 1.5 * max(slower["contestants"][1]["ratio"].values()) for key in ("low", "median", "high")
    }
    (tmp_path / "slow.json").write_text(json.dumps(slower))
    worse = command("--compare", folder / "r.json", tmp_path / "slow.json")
    assert worse.code == 1
    assert "1 regressions" in worse.err
    assert command("--compare", tmp_path / "slow.json", folder / "r.json").code == 0


def test_refusals(command, tmp_path):
    (tmp_path / "bad.json").write_text('{"format": 1}')
    assert "is not a result of cats-bench" in command("--compare", tmp_path / "bad.json", tmp_path / "bad.json").error
    (tmp_path / "deep.json").write_text("[" * 100_000)
    assert "deep.json is not JSON: nested" in command("--compare", tmp_path / "deep.json", tmp_path / "bad.json").error
    assert "neither a checkpoint nor one of" in command(tmp_path / "none.pt").error
    assert "does not exist" in command("-o", tmp_path / "no" / "r.json").error
    assert "--batches" in command("--batches", "1,x").error
    assert "does not exist" in command("--file", tmp_path / "none.onnx").error
    for option in ("--int8", "--images"):
        assert "no such folder of photos" in command(option, tmp_path / "none").error
