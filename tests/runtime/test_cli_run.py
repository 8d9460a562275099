"""``cats-run``: everything that it writes, the direction test, and every kind of bad input."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bad_images import huge_png, truncated_jpeg
from commands import Command, runner
from PIL import Image
from tiny_onnx import crops

from cats.runtime import Matcher, match_files
from cats.runtime.commands.rank import main as rank_main
from cats.runtime.commands.run import main


@pytest.fixture
def cats_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return runner(main, "cats-run", monkeypatch, capsys)


@pytest.fixture
def work(tmp_path: Path, texture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two non-square crops, the current one."""
    a, b, _ = crops(texture)
    Image.fromarray(a).save(tmp_path / "a.png")
    Image.fromarray(b).save(tmp_path / "b.png")
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_direction_through_the_command(cats_run: Command, work: Path, model_file: Path, texture: np.ndarray) -> None:
    points = [[100.0, 60.0], [200.0, 100.0], [280.0, 20.0]]
    (work / "points.json").write_text(json.dumps(points))
    done = cats_run(model_file, "a.png", "b.png", "--points", "points.json", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert (document["size_a"], document["size_b"]) == ([320, 192], [320, 192])
    dx, dy = crops(texture)[2]
    for match, (x, y) in zip(document["matches"], points, strict=True):
        assert match["a"] == [x, y]
        assert abs(match["b"][0] - (x + dx)) < 1.5
        assert abs(match["b"][1] - (y + dy)) < 1.5
        assert match["confidence"] > 0.5
    typed = ";".join(f"{x},{y}" for x, y in points)
    again = cats_run(model_file, "a.png", "b.png", "--points", typed, "--json")
    assert json.loads(again.out)["matches"] == document["matches"]
    bad = cats_run(model_file, "a.png", "b.png", "--points", "900,900;x", "--json")
    assert (bad.code, "are not x,y;x,y;" in bad.err) == (2, True)


def test_probability_stands_beside_the_confidence(
    cats_run: Command, work: Path, make_model: Callable[..., Path]
) -> None:
    mapping = {"confidence": [0.0, 1.0], "probability": [0.1, 0.6], "error_px": [90.0, 5.0]}
    model = make_model(calibration={"confidence": {"mapping": mapping}})
    done = cats_run(model, "a.png", "b.png", "--json", "-o", "fitted.png")
    assert done.code == 0, done.err
    matches = json.loads(done.out)["matches"]
    for match in matches:
        assert match["probability"] == pytest.approx(0.1 + 0.5 * match["confidence"], abs=2e-4)
    mean = np.mean([match["probability"] for match in matches])
    assert f"probability of being right {mean:.2f}" in done.err
    raw = cats_run(model, "a.png", "b.png", "--json", "--raw-confidence", "-o", "raw.png")
    assert [match["confidence"] for match in json.loads(raw.out)["matches"]] == [m["confidence"] for m in matches]
    assert all("probability" not in match for match in json.loads(raw.out)["matches"])
    assert "probability of being right" not in raw.err
    replaced = json.loads(cats_run(model, "a.png", "b.png", "--json", "--calibrated").out)["matches"]
    assert [match["confidence"] for match in replaced] == [match["probability"] for match in matches]
    fitted, unfitted = (np.asarray(Image.open(name)) for name in ("fitted.png", "raw.png"))
    assert fitted.shape == unfitted.shape
    assert (fitted != unfitted).any()  # the colours, and the word beside their scale


def test_direction_with_images_of_different_sizes(cats_run: Command, work: Path, model_file: Path) -> None:
    """b is shown at another size and shape: the shift scales with it."""
    with Image.open("b.png") as b:
        b.resize((160, 288), Image.Resampling.BILINEAR).save("tall.png")
    (work / "points.csv").write_text("x,y\n100,60\n200,100\n")
    done = cats_run(model_file, "a.png", "tall.png", "--points", "points.csv", "--json")
    document = json.loads(done.out)
    assert document["size_b"] == [160, 288]
    for match, (x, y) in zip(document["matches"], [(100, 60), (200, 100)], strict=True):
        expected = ((x - 40 + 0.5) / 2 - 0.5, (y + 36 + 0.5) * 1.5 - 0.5)
        assert np.abs(np.subtract(match["b"], expected)).max() < 3


def test_default_picture(cats_run: Command, work: Path, model_file: Path) -> None:
    done = cats_run(model_file, "a.png", "b.png", "--threads", 1)
    assert done.code == 0, done.err
    assert "CPUExecutionProvider" in done.err
    assert "1 thread" in done.err
    assert done.out == ""
    assert files(work) == {"a.png", "b.png", "a-b.png"}
    assert Image.open("a-b.png").size[0] > 800


def test_all_outputs(cats_run: Command, work: Path, model_file: Path, texture: np.ndarray) -> None:
    done = cats_run(
        *(model_file, "a.png", "b.png", "-o", "match.jpg", "--warp", "warp.png", "--overlay", "over.webp"),
        *("--flow", "flow.npy", "--json", "--grid", 16, "--min-confidence", 0.6, "--time"),
    )
    assert done.code == 0, done.err
    match = Matcher(model_file).match("a.png", "b.png")
    np.testing.assert_allclose(np.load("flow.npy"), match.flow, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(Image.open("warp.png")), np.asarray(match.warp()))
    assert Image.open("over.webp").size == (320, 192)
    assert Image.open("match.jpg").format == "JPEG"
    document = json.loads(done.out)
    kept = sum(match.confidence.ravel() >= 0.6)
    assert 0 < len(document["matches"]) == kept < 256
    assert all(entry["confidence"] >= 0.6 for entry in document["matches"])
    assert set(document["time_ms"]) == {"read", "preprocess", "model", "draw", "write"}
    assert document["model"]["file"] == str(model_file)
    assert document["model"]["precision"] == "fp32"
    assert "preprocess" in done.err
    assert "load" in done.err


def test_forward_backward_filter(cats_run: Command, work: Path, model_file: Path) -> None:
    arguments = (model_file, "a.png", "b.png", "--json", "--grid", 16)
    everything = json.loads(cats_run(*arguments).out)["matches"]
    consistent = json.loads(cats_run(*arguments, "--max-forward-backward", 2).out)["matches"]
    assert len(everything) == 256
    assert 80 < len(consistent) < 200
    assert all(match["forward_backward"] <= 2 for match in consistent)


def test_a_table_of_pairs_goes_on_past_a_bad_image(cats_run: Command, work: Path, model_file: Path) -> None:
    for name in "ab":
        (work / f"{name}.png").rename(work / "in" / f"{name}.png")
    (work / "in" / "broken.jpg").write_text("no image")
    (work / "in" / "points.json").write_text("[[1, 2]]")
    (work / "in" / "pairs.csv").write_text(
        "label,a,b,points\n"
        'one,a.png,b.png,"100,60;200,100"\n'
        "two,broken.jpg,b.png,\n"
        "three,b.png,a.png,points.json\n"
        'four,a.png,b.png,"5000,1"\n'
        "five,b.png,a.png,\n"
    )
    done = cats_run(model_file, "--pairs", "in/pairs.csv", "--json", "-o", "out", "--flow", "flows", "--grid", 3)
    assert done.code == 2
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [len(line.get("matches", [])) for line in lines] == [2, 0, 1, 0, 9]
    assert "broken.jpg" in lines[1]["error"]
    assert "outside image a" in lines[3]["error"]
    assert lines[3]["line"] == 5
    assert "in/pairs.csv, line 3: in/broken.jpg is not an image" in done.err
    assert "in/pairs.csv, line 5: point 0 at (5000, 1) lies outside" in done.err
    assert "error: 2 of 5 pairs" in done.err
    assert files(work / "out") == {"1-a-b.png", "3-b-a.png", "5-b-a.png"}
    assert files(work / "flows") == {"1-a-b.npy", "3-b-a.npy", "5-b-a.npy"}
    single = json.loads(cats_run(model_file, "in/b.png", "in/a.png", "--json", "--grid", 3).out)
    for one, other in zip(single["matches"], lines[4]["matches"], strict=True):
        np.testing.assert_allclose(one["b"], other["b"], atol=0.01)


def test_a_good_table_ends_well(cats_run: Command, work: Path, model_file: Path) -> None:
    (work / "pairs.csv").write_text("a,b\na.png,b.png\n\nb.png,a.png\n")
    done = cats_run(model_file, "--pairs", "pairs.csv", "--batch", 2, "--time")
    assert done.code == 0, done.err
    assert files(work / "pairs") == {"1-a-b.png", "2-b-a.png"}
    assert "pairs/s" in done.err
    one, many = (cats_run(model_file, "--pairs", "pairs.csv", "--json", "--streams", n) for n in (1, 64))
    assert "1 thread" in many.err  # the cores are shared out
    for first, second in zip(one.out.splitlines(), many.out.splitlines(), strict=True):
        points = ([match["b"] for match in json.loads(line)["matches"]] for line in (first, second))
        np.testing.assert_allclose(*points, atol=0.01)
    assert "--streams matches pairs of a table" in cats_run(model_file, "a.png", "b.png", "--streams", 2).error


def test_an_unverified_model_is_announced(cats_run: Command, work: Path, make_model: Callable[..., Path]) -> None:
    model = make_model("doubtful.onnx", verified=False)
    assert "was not verified" in cats_run(model, "a.png", "b.png", "--json").err


def test_orientation_of_photos_is_respected(cats_run: Command, work: Path, model_file: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open("a.png") as a:
        a.transpose(Image.Transpose.ROTATE_90).save("turned.png", exif=exif)
    upright = json.loads(cats_run(model_file, "a.png", "b.png", "--json").out)
    turned = json.loads(cats_run(model_file, "turned.png", "b.png", "--json").out)
    assert turned["size_a"] == [320, 192]
    assert turned["matches"] == upright["matches"]


def test_limits_that_leave_nothing_are_said(cats_run: Command, work: Path, model_file: Path) -> None:
    before = files(work)
    nothing = ("--min-confidence", 1, "--max-forward-backward", 0)
    done = cats_run(model_file, "a.png", "b.png", *nothing)
    assert done.code == 1
    assert "no match is left: --min-confidence 1, --max-forward-backward 0; no picture was written" in done.err
    assert files(work) == before
    done = cats_run(model_file, "a.png", "b.png", *nothing, "--json", "--flow", "flow.npy")
    assert (done.code, json.loads(done.out)["matches"]) == (1, [])
    assert files(work) == before | {"flow.npy"}
    (work / "pairs.csv").write_text("a,b\na.png,b.png\n")
    done = cats_run(model_file, "--pairs", "pairs.csv", "-o", "out", *nothing)
    assert (done.code, files(work / "out")) == (0, set())
    assert "1 of them without a match that is left (--min-confidence 1" in done.err


def test_a_least_probability_is_that_of_json(cats_run: Command, work: Path, model_file: Path) -> None:
    every = json.loads(cats_run("cats-tiny", "a.png", "b.png", "--json").out)["matches"]
    middle = sorted(match["probability"] for match in every)[50]
    done = cats_run("cats-tiny", "a.png", "b.png", "--json", "-o", "p.png", "--min-probability", middle)
    kept = json.loads(done.out)["matches"]
    assert 0 < len(kept) < len(every)
    assert min(match["probability"] for match in kept) >= middle - 1e-4
    nothing = cats_run("cats-tiny", "a.png", "b.png", "--min-probability", 1)
    assert "no match is left: --min-probability 1; no picture was written" in nothing.err
    refused = cats_run(model_file, "a.png", "b.png", "--min-probability", 0.5).error
    assert "--min-probability 0.5: the confidence of this model is not calibrated" in refused
    assert "--min-confidence is for any model" in refused


def test_the_picture_shows_count_points_and_json_the_grid(
    cats_run: Command, work: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    draw = match_files.draw_matches
    monkeypatch.setattr(
        match_files, "draw_matches", lambda *args, **names: (drawn.append(args[2]), draw(*args, **names))[1]
    )
    done = cats_run(model_file, "a.png", "b.png", "-o", "p.png", "--count", 7, "--json", "--sheet", "sheet.jpg")
    assert done.code == 0, done.err
    assert (len(drawn[0]), len(json.loads(done.out)["matches"])) == (7, 100)
    assert "forward_backward" not in json.loads(done.out)["matches"][0]
    assert Image.open("sheet.jpg").width > 1000
    assert cats_run(model_file, "a.png", "b.png", "-o", "p.png", "--grid", 4, "--force").code == 0
    assert len(drawn[1]) == 16
    (work / "points.csv").write_text("100,60\n")
    assert cats_run(model_file, "a.png", "b.png", "-o", "p.png", "--points", "points.csv", "--force").code == 0
    np.testing.assert_array_equal(drawn[2], [[100, 60]])


def test_a_shipped_model_goes_by_its_name(cats_run: Command, work: Path) -> None:
    done = cats_run("cats-tiny", "a.png", "b.png", "--json", "--threads", 1)
    assert done.code == 0, done.err
    assert json.loads(done.out)["model"]["file"].endswith("cats-tiny.onnx")
    (work / "pairs.csv").write_text("a,b\na.png,b.png\n")
    assert cats_run("cats-tiny", "--pairs", "pairs.csv", "--json").code == 0


def test_a_bad_cell_is_one_bad_row(cats_run: Command, work: Path, model_file: Path) -> None:
    (work / "big.json").write_text("[[1" + "0" * 400 + ",1]]")
    for cells in ("x\0.png,", "b.png,big.json", "b.png,p\0.csv", "b.png,none.csv", "in,"):
        (work / "pairs.csv").write_text(f"a,b,points\na.png,{cells}\na.png,b.png,\n")
        done = cats_run(model_file, "--pairs", "pairs.csv", "--json", "--grid", 2)
        lines = [json.loads(line) for line in done.out.splitlines()]
        assert (done.code, [len(line.get("matches", [])) for line in lines]) == (2, [0, 4]), done.err
        assert "pairs.csv, line 2: " in done.err


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return runner(rank_main, "cats rank", monkeypatch, capsys)


def test_a_folder_is_ranked(rank: Command, work: Path, model_file: Path) -> None:
    for name in ("a", "b"):
        (work / f"{name}.png").rename(work / "in" / f"{name}.png")
    noise = np.random.default_rng(3).integers(0, 255, (192, 320, 3), np.uint8)
    Image.fromarray(noise).save("in/noise.png")
    done = rank(model_file, "in/a.png", "in", "--json", "-o", "best.png", "--count", 4)
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [Path(line["b"]).name for line in lines] == ["b.png", "noise.png"]  # not a itself
    assert lines[0]["score"] > lines[1]["score"]
    assert "2 photos matched (0 from the cache, A itself left out)" in done.err
    assert Image.open("best.png").width > 900
    assert "in/b.png" in rank(model_file, "in/a.png", "in", "--top", 1).out
    assert "exists" in rank(model_file, "in/a.png", "in", "-o", "best.png").error
    assert "only a split model has them" in rank(model_file, "in/a.png", "in", "--features", "f.npz").error
    assert "is not calibrated" in rank(model_file, "in/a.png", "in", "--min-probability", 0.1).error
    assert "unknown score 'x'" in rank(model_file, "in/a.png", "in", "--score", "x").error
    (work / "empty").mkdir()
    assert "no photo below empty" in rank(model_file, "in/a.png", "empty").error
    (work / "in" / "bad.jpg").write_text("text")
    done = rank(model_file, "in/a.png", "in")
    assert (done.code, "1 photos below in could not be read" in done.err) == (2, True)
    assert "in/b.png" in done.out


def test_the_old_spelling_names_the_new_command(cats_run: Command, work: Path, model_file: Path) -> None:
    for options in (["--gallery", "in"], ["--gallery", "in", "--top", "3"], ["--features", "f.npz"], ["--score", "x"]):
        assert f"cats rank {model_file} a.png DIR" in cats_run(model_file, "a.png", *options).error


BAD = {
    "missing image": (["none.jpg", "b.png"], "none.jpg"),
    "truncated JPEG": (["cut.jpg", "b.png"], "cut.jpg cannot be decoded"),
    "text named jpg": (["a.png", "text.jpg"], "text.jpg is not an image"),
    "1x1 image": (["dot.png", "b.png"], "dot.png is 1x1"),
    "20000x20000 PNG": (["huge.png", "b.png"], "huge.png is too large"),
    "over the chosen limit": (["a.png", "b.png", "--max-megapixels", "0.05"], "over the limit of 0.05:"),
    "points outside": (["a.png", "b.png", "--points", "outside.csv"], "point 1 at (400, 5) lies outside image a"),
    "points no numbers": (["a.png", "b.png", "--points", "text.jpg"], "text.jpg: line 1"),
    "points missing": (["a.png", "b.png", "--points", "none.json"], "none.json"),
    "folder is missing": (["a.png", "b.png", "-o", "no/where.png"], "no/where.png"),
    "output is a folder": (["a.png", "b.png", "-o", "in"], "cannot write in"),
    "output of unknown kind": (["a.png", "b.png", "-o", "match.txt"], ".png"),
    "output in a file": (["a.png", "b.png", "--warp", "a.png/warp.png"], "a.png/warp.png"),
    "flow of unknown kind": (["a.png", "b.png", "--flow", "flow.txt"], ".npy"),
    "one image": (["a.png"], "give two images"),
    "table and images": (["a.png", "b.png", "--pairs", "pairs.csv"], "leave out A, B"),
    "table is missing": (["--pairs", "none.csv"], "none.csv"),
    "table without columns": (["--pairs", "outside.csv"], "no column a and b"),
    "table into a file": (["--pairs", "pairs.csv", "-o", "a.png"], "a.png"),
    "unknown backend": (["a.png", "b.png", "--backend", "magic"], "unknown backend 'magic'"),
    "unknown provider": (["a.png", "b.png", "--provider", "magic"], "no provider 'magic'"),
    "cache without engines": (["a.png", "b.png", "--cache", "engines"], "builds no engines"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(cats_run: Command, work: Path, model_file: Path, case: str) -> None:
    (work / "cut.jpg").write_bytes(truncated_jpeg())
    (work / "text.jpg").write_text("this is a text\n" * 9)
    Image.new("RGB", (1, 1)).save("dot.png")
    (work / "huge.png").write_bytes(huge_png(20000) if case.startswith("20000") else b"")
    (work / "outside.csv").write_text("10,10\n400,5\n")
    (work / "pairs.csv").write_text("a,b\na.png,b.png\n")
    before = files(work)
    arguments, text = BAD[case]
    done = cats_run(model_file, *arguments)
    assert text in done.error
    assert files(work) == before


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("encoder.onnx", {"kind": "encoder"}, "is a model of kind encoder"),
        ("newer.onnx", {"document": {"format": 7}}, "metadata format 7 is newer than this toolkit reads"),
        ("shapes.onnx", {"grid": 8}, "export the model again"),
        ("plain.onnx", {"document": None}, "without CATs metadata"),
    ],
)
def test_bad_models(
    cats_run: Command, work: Path, make_model: Callable[..., Path], name: str, options: dict, text: str
) -> None:
    model = make_model(name, **options)
    before = files(work)
    done = cats_run(model, "a.png", "b.png")
    assert text in done.error
    assert name in done.error
    assert files(work) == before


def test_a_protected_folder(cats_run: Command, work: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests may run as root, whom permissions do not stop.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert "no permission" in cats_run(model_file, "a.png", "b.png").error


def test_a_full_disk_leaves_nothing(
    cats_run: Command, work: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Image.Image, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half a pict")
        raise OSError(28, "No space left on device")

    before = files(work)
    monkeypatch.setattr(Image.Image, "save", full)
    assert "cannot write match.png: No space left" in cats_run(model_file, "a.png", "b.png", "-o", "match.png").error
    assert files(work) == before


def test_help_names_everything(cats_run: Command) -> None:
    done = cats_run("--help")
    assert done.code == 0
    for option in ("--points", "--grid", "--warp", "--json", "--flow", "--pairs", "--time", "--provider", "--threads"):
        assert option in done.out
