"""Evaluation against figures worked out by hand, and of every kind of matcher."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Command, runner
from datasets import make_image, make_pfpascal, make_spair, make_tss, make_willow
from PIL import Image
from reference import shared
from tiny_onnx import save_model, tiny_metadata, tiny_model

from cats.core.errors import InputError, ModelFileError
from cats.core.geometry import cells_to_pixels, identity_cells, pixels_to_cells
from cats.core.pck import preset
from cats.core.protocols import OneByOne, PairFlow
from cats.data import open_dataset
from cats.data.samples import PairDataset
from cats.evaluation.cli import main
from cats.evaluation.evaluate import evaluate, evaluate_warps


class Still(OneByOne):
    """A matcher that leaves every point at its relative place, and remembers what it was asked."""

    def __init__(self, flow: np.ndarray | None = None) -> None:
        self.flow = np.zeros((2, 16, 16)) if flow is None else flow
        self.calls: list[tuple[Any, Any]] = []

    def match(self, a: Any, b: Any) -> PairFlow:
        self.calls.append((a, b))
        return PairFlow(self.flow)


@pytest.fixture
def spair(tmp_path: Path) -> PairDataset:
    return open_dataset(f"spair:{make_spair(tmp_path / 'spair')}")


# Cat, 120x80 -> 100x60: the points (20, 30), (60, 40), (85, 65) come to (16.6, 22.4), (49.9, 29.9), (70.8, 48.6), which
# is 2.9, 0.2 and 19.6 pixels from the truth. Dog, 100x60 -> 120x80: (24.1, 40.2), (72.1, 53.5), (102.1, 73.5), which is
# 22.1, 32.3 and 31.0 away. The larger side of either box is 90.
def test_pck_by_category_and_difficulty_of_a_matcher_that_does_nothing(spair: PairDataset) -> None:
    result = evaluate(Still(), spair, ["corrected", "per-point"], [0.05, 0.25])
    corrected = result.protocols["corrected"]
    assert corrected.by_category == {
        "cat": {0.05: pytest.approx(200 / 3), 0.25: 100},
        "dog": {0.05: 0, 0.25: pytest.approx(100 / 3)},
    }
    assert corrected.pck == {0.05: pytest.approx(100 / 3), 0.25: pytest.approx(200 / 3)}
    assert (corrected.pairs, corrected.keypoints, result.dense) == (2, 6, None)
    assert corrected.by_difficulty["viewpoint"] == {
        "easy": corrected.by_category["dog"],
        "hard": corrected.by_category["cat"],
    }
    assert list(corrected.by_difficulty["truncation"]) == ["both"]
    assert result.pck(0.25, "per-point") == pytest.approx(400 / 6)
    assert result.pck(0.05) == corrected.pck[0.05]


def test_reductions_differ_where_pairs_have_different_numbers_of_points(tmp_path: Path) -> None:
    changes = {"src_kps": [[20, 30]], "trg_kps": [[15, 20]], "kps_ids": ["0"]}
    data = open_dataset(f"spair:{make_spair(tmp_path, **changes)}")
    result = evaluate(Still(), data, ["corrected", "per-point"], [0.05])
    assert result.pck(0.05, "corrected") == 50  # the cat's one point is right, none of the dog's three
    assert result.pck(0.05, "per-point") == 25


def test_each_direction_is_matched_once(spair: PairDataset) -> None:
    matcher = Still()
    count: list[int] = []
    evaluate(matcher, spair, ["corrected", "cats2021", "per-point"], on_pair=lambda: count.append(1))
    names = [(a.name, b.name) for a, b in matcher.calls]
    forward = [("2008_000001.jpg", "2008_000002.jpg"), ("2008_000003.jpg", "2008_000001.jpg")]
    assert names == [*forward, *((b, a) for a, b in forward)]
    assert len(count) == 4


def test_the_authors_protocol_uses_the_backward_flow(tmp_path: Path) -> None:
    """A flow that is right from b to a and wrong from a to b."""
    make_image(tmp_path / "a.png", (256, 256), 1)
    make_image(tmp_path / "b.png", (256, 256), 2)
    (tmp_path / "pairs.csv").write_text('a,b,points\na.png,b.png,"100,100,116,84;60,120,76,104"\n')
    flow = np.stack([np.full((16, 16), -1.0), np.full((16, 16), 1.0)])  # b -> a: 16 pixels to the left and down
    result = evaluate(Still(flow), open_dataset(f"pairs:{tmp_path / 'pairs.csv'}"), ["cats2021", "corrected"], [0.01])
    assert result.pck(0.01, "cats2021") == 100
    assert result.pck(0.01, "corrected") == 0


def test_mirrored_pairs_are_shown_mirrored(tmp_path: Path) -> None:
    matcher = Still()
    evaluate(matcher, open_dataset(f"pfpascal:{make_pfpascal(tmp_path)}", "train"))
    (plain, _), (flipped, _) = matcher.calls
    np.testing.assert_array_equal(np.asarray(Image.open(plain))[:, ::-1], np.asarray(flipped))


def test_dense_flow_of_a_known_shift(tmp_path: Path) -> None:
    data = open_dataset(f"tss:{make_tss(tmp_path)}")
    still = evaluate(Still(), data, alphas=[0.05, 0.1])
    assert still.dense is not None
    assert still.dense.epe == pytest.approx(np.hypot(4, 2))
    assert still.dense.pck == {0.05: 0, 0.1: 100}  # thresholds 3.2 and 6.4 pixels
    assert (still.dense.pairs, still.protocols) == (2, {})
    shift = np.stack([np.full((16, 16), 4 * 16 / 64), np.full((16, 16), -2 * 16 / 48)])
    right = evaluate(Still(shift), data.select(limit=1), ["cats2021"], alphas=[0.05])  # dense is a -> b in any case
    assert right.dense is not None
    assert right.dense.epe == pytest.approx(0, abs=1e-5)
    assert right.dense.by_category["PASCAL"][1] == {0.05: 100}


def test_dense_flow_of_the_shared_tss_pair() -> None:
    """The score of doing nothing is computed from the file's bytes; that of the true flow on the grid is near 0."""
    root = shared("data", "TSS")
    data = open_dataset(f"tss:{root}")
    still = evaluate(Still(), data, alphas=[0.05])
    assert still.dense is not None
    expected, rates = [], []
    for number, other in ((1, 2), (2, 1)):
        folder = root / "JODS" / "car_01_02"
        raw = np.frombuffer((folder / f"flow{number}.flo").read_bytes(), "<f4", offset=12)
        width, height = Image.open(folder / f"image{number}.png").size
        flow = raw.reshape(height, width, 2).astype(np.float64)
        to_width, to_height = Image.open(folder / f"image{other}.png").size
        # Doing nothing leads to the same relative place of the other image, which has another height.
        y, x = np.mgrid[0:height, 0:width]
        dx = (x + 0.5) * to_width / width - 0.5 - x - flow[..., 0]
        dy = (y + 0.5) * to_height / height - 0.5 - y - flow[..., 1]
        error = np.hypot(dx, dy)[flow[..., 0] < 1e9]
        expected.append(error.mean())
        rates.append(100 * (error <= 0.05 * 340).mean())
    assert still.dense.epe == pytest.approx(np.mean(expected), rel=1e-5)
    assert still.dense.pck[0.05] == pytest.approx(np.mean(rates), abs=0.01)

    class Truth(OneByOne):
        """The ground truth at the centre of each cell."""

        def match(self, a: Path, b: Path) -> PairFlow:
            sample = next(s for s in data if s.image_a == a)
            flow, cells = sample.dense().flow, identity_cells(16).reshape(2, -1).T  # type: ignore[misc]
            at = cells_to_pixels(cells, sample.size_a)
            column, row = np.clip(np.rint(at).astype(int), 0, np.array(sample.size_a) - 1).T
            to = pixels_to_cells(at + flow[row, column], sample.size_b)
            return PairFlow((to - cells).T.reshape(2, 16, 16))

    near = evaluate(Truth(), data, alphas=[0.05])
    assert near.dense is not None
    # Near the outline, cells of the background, where nothing is known, take part in the interpolation.
    assert near.dense.epe < 0.6 * still.dense.epe
    assert near.dense.pck[0.05] > 90


def test_warps_are_scored_at_visible_cells(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    from cats.data.folders import PhotoFolder
    from cats.data.warps import WarpPairs

    for number in range(3):
        make_image(tmp_path / f"{number}.png", (300, 280), number)
    pairs = WarpPairs(PhotoFolder.open(tmp_path), seed=5)
    items = [pairs[index] for index in range(4)]

    class Truth(OneByOne):
        def __init__(self, offset: float) -> None:
            self.offset = offset

        def match(self, a: np.ndarray, b: np.ndarray) -> PairFlow:
            item = next(item for item in items if (item["image_a"] == a).all())
            hidden = ~item["visible"]
            return PairFlow(item["flow"] + np.array([self.offset, 0])[:, None, None] + 7 * hidden)

    result = evaluate_warps(Truth(0.5), pairs, 4, [0.03, 0.04])
    assert result.dense is not None
    assert result.dense.epe == pytest.approx(8, abs=1e-4)  # half a cell of 16 pixels
    assert result.dense.pck == {0.03: 0, 0.04: 100}  # 7.7 and 10.2 pixels
    with pytest.raises(InputError, match="the model's grid is 8, that of the warps 16"):
        evaluate_warps(Still(np.zeros((2, 8, 8))), pairs, 1)


def test_what_cannot_be_evaluated_is_said(tmp_path: Path, spair: PairDataset) -> None:
    make_image(tmp_path / "a.png", (64, 64))
    (tmp_path / "pairs.csv").write_text('a,b,points\na.png,a.png,"1,2"\n')
    with pytest.raises(InputError, match="no pair has keypoints in both images"):
        evaluate(Still(), open_dataset(f"pairs:{tmp_path / 'pairs.csv'}"))
    with pytest.raises(ModelFileError, match="not finite for 000007"):
        evaluate(Still(np.full((2, 16, 16), np.nan)), spair)
    with pytest.raises(ModelFileError, match=r"flow of shape \(16, 16\)"):
        evaluate(Still(np.zeros((16, 16))), spair)
    with pytest.raises(InputError, match=r"alphas \[0\]"):
        evaluate(Still(), spair, alphas=[0])
    with pytest.raises(InputError, match="each once"):
        evaluate(Still(), spair, ["corrected", preset("corrected", "spair")])
    with pytest.raises(InputError, match="unknown protocol 'best'"):
        evaluate(Still(), spair, ["best"])


def test_per_pair_csv(tmp_path: Path, spair: PairDataset) -> None:
    result = evaluate(Still(), spair, ["corrected"], [0.05, 0.25])
    result.write_pairs(tmp_path / "pairs.csv")
    rows = list(csv.DictReader((tmp_path / "pairs.csv").open()))
    assert [row["category"] for row in rows] == ["cat", "dog"]
    assert float(rows[0]["pck@0.05"]) == pytest.approx(200 / 3)
    assert (float(rows[1]["threshold"]), rows[1]["count"]) == (90, "3")
    assert float(rows[0]["error"]) == pytest.approx((2.854 + 0.150 + 19.588) / 3, abs=1e-3)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("eval") / "tiny.onnx", tiny_model(), tiny_metadata())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model on the smallest backbone, in the authors' sense untrained but with all parts."""
    torch = pytest.importorskip("torch")
    from cats.checkpoints import save_checkpoint
    from cats.model import CATs, CATsConfig

    torch.manual_seed(1)
    config = CATsConfig(
        backbone="tf_efficientnet_lite0", hyperpixels=(2, 4), projection_dim=32, num_heads=3, mlp_ratio=1
    )
    path = tmp_path_factory.mktemp("eval") / "small.pt"
    save_checkpoint(path, CATs(config))
    return path


@pytest.fixture
def cats_eval(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return runner(main, "cats-eval", monkeypatch, capsys)


def test_command_on_onnx(cats_eval: Command, onnx_file: Path, tmp_path: Path) -> None:
    root = make_willow(tmp_path / "willow")
    done = cats_eval(
        onnx_file, "--data", f"willow:{root}", "--protocol", "corrected", "--protocol", "cats2021", "--alpha", 0.1,
        "--json", "-o", tmp_path / "report.json", "--per-pair", tmp_path / "pairs.csv", "--batch", 2,
    )  # fmt: skip
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document == json.loads((tmp_path / "report.json").read_text())
    assert document["protocols"]["cats2021"]["protocol"]["threshold"] == "keypoints-padded"
    assert document["data"]["pairs"] == 2
    assert "CPUExecutionProvider" in document["model"]["runs_on"]
    # The same through the Python function, one pair at a time.
    from cats.runtime import Matcher

    with Matcher(onnx_file) as matcher:
        result = evaluate(matcher, open_dataset(f"willow:{root}"), ["corrected", "cats2021"], [0.1])
    for name in ("corrected", "cats2021"):
        assert document["protocols"][name]["pck"]["0.1"] == pytest.approx(result.pck(0.1, name))
    assert len((tmp_path / "pairs.csv").read_text().splitlines()) == 5


def test_command_prints_tables_with_the_whole_protocol(cats_eval: Command, onnx_file: Path, tmp_path: Path) -> None:
    data = f"spair:{make_spair(tmp_path)}"
    done = cats_eval(onnx_file, "--data", data, "--threshold", "image", "--category", "cat")
    assert done.code == 0, done.err
    title = "corrected (threshold image): a->b, original pixels of b, alpha x larger side of b, mean over pairs"
    assert title in done.out
    assert "viewpoint: hard" in done.out
    assert "dog" not in done.out
    assert "onnxruntime" in done.err


def test_command_on_a_checkpoint_agrees_with_validation_during_training(
    cats_eval: Command, checkpoint: Path, tmp_path: Path
) -> None:
    import torch

    from cats.checkpoints import load_checkpoint
    from cats.training.validation import KeypointValidation

    root = make_willow(tmp_path)
    done = cats_eval(checkpoint, "--data", f"willow:{root}", "--json", "--provider", "cpu", "--threads", 1)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert "float32 on cpu (as asked for)" in document["model"]["runs_on"]
    with torch.no_grad():
        metrics = KeypointValidation(open_dataset(f"willow:{root}"))(load_checkpoint(checkpoint).model)
    assert document["protocols"]["corrected"]["pck"]["0.1"] == pytest.approx(metrics["score"])


def test_command_on_warps(cats_eval: Command, onnx_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    make_image(tmp_path / "one.png", (300, 280), 1)
    done = cats_eval(onnx_file, "--data", f"warps:{tmp_path}", "--limit", 3, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert (document["data"]["pairs"], document["protocols"]) == (3, {})
    assert 0 < document["dense"]["epe"] < 300
    assert "leave out --protocol, --figures" in cats_eval(
        onnx_file, "--data", f"warps:{tmp_path}", "--protocol", "corrected", "--figures", tmp_path.with_name("new")
    ).error  # fmt: skip


def test_command_draws_the_figures(cats_eval: Command, checkpoint: Path, onnx_file: Path, tmp_path: Path) -> None:
    root = make_willow(tmp_path / "willow")
    folder = tmp_path / "figures"
    done = cats_eval(checkpoint, "--data", f"willow:{root}", "--figures", folder, "--figure-pairs", 1)
    assert done.code == 0, done.err
    names = {"transfers-corrected.png", "attention-1.png", "correlation-1.png"}
    assert {path.name for path in folder.iterdir()} == {*names, "figures.json"}
    assert set(json.loads((folder / "figures.json").read_text())["files"]) == names
    again = [checkpoint, "--data", f"willow:{root}", "--figures", folder, "--figure-pairs", 1, "--figure", "transfers"]
    assert "give --force to replace it" in cats_eval(*again).error
    assert cats_eval(*again, "--force").code == 0
    assert {path.name for path in folder.iterdir()} == {"transfers-corrected.png", "figures.json"}
    more = tmp_path / "more"
    done = cats_eval(
        onnx_file, "--data", f"willow:{root}", "--figures", more, "--beside", checkpoint, "--pick", "2",
        "--figure", "transfers", "--figure", "correlation", "--figure-format", "pdf",
    )  # fmt: skip
    assert done.code == 0, done.err
    drawn = {"transfers-corrected.pdf", f"{checkpoint.stem}-correlation-1.pdf"}
    assert {path.name for path in more.iterdir()} == {*drawn, "figures.json"}
    assert "attention and correlation maps need a checkpoint" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "--data", "willow"], "KIND one of spair, pfpascal, willow, tss, pairs, warps"),
        (["MODEL", "--data", "willow:none"], "none is not a folder"),
        (["MODEL", "--data", "DATA", "--split", "val"], "unknown split 'val'; known: test"),
        (["MODEL", "--data", "DATA", "--protocol", "mine"], "unknown protocol 'mine'"),
        (["MODEL", "--data", "DATA", "--threshold", "bbox"], "threshold 'bbox' is not one of box"),
        (["MODEL", "--data", "DATA", "--threshold", "box"], "has no object box"),
        (["MODEL", "--data", "DATA", "--alpha", "-1"], "all positive"),
        (["MODEL", "--data", "DATA", "--category", "bus"], "no category 'bus'"),
        (["MODEL", "--data", "DATA", "--hyperpixels", "0,8"], "not a checkpoint; leave out --hyperpixels"),
        (["none.onnx", "--data", "DATA"], "none.onnx does not exist"),
        (["none.pt", "--data", "DATA"], "none.pt does not exist"),
        (["none.pt", "--data", "DATA", "--backend", "tensorrt"], "leave out --backend tensorrt"),
        (["none.pt", "--data", "DATA", "--provider", "tensorrt"], "runs on the provider cpu or cuda"),
        (["none.pt", "--data", "DATA", "--provider", "cpu", "--device", "0"], "leave it out with --provider cpu"),
        (["none.pt", "--data", "DATA", "--hyperpixels", "a"], "is not a list of numbers"),
        # told before the work, so before the model that is missing too
        (["none.pt", "--data", "DATA", "-o", "no/x.json"], "cannot write no/x.json: the folder no does not exist"),
        (["none.pt", "--data", "DATA", "--per-pair", "x.txt"], "its name must end in .csv"),
        (["none.pt", "--data", "DATA", "--figures", __file__], "it is not a folder"),
        (["none.pt", "--data", "DATA", "--pick", "best"], "pick 'best' is not even"),
        (
            ["none.pt", "--data", "DATA", "--figures", "new", "--figure", "flow"],
            "--figure flow is not one of transfers",
        ),
        (["none.pt", "--data", "DATA", "--beside", "x.onnx"], "are about pictures: add --figures DIR"),
    ],
)
def test_command_refuses_bad_input_in_one_line(
    cats_eval: Command, onnx_file: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    data = f"willow:{make_willow(tmp_path)}"
    given = [{"MODEL": str(onnx_file), "DATA": data}.get(item, item) for item in arguments]
    assert message in cats_eval(*given).error


def test_command_says_when_an_image_is_broken(cats_eval: Command, onnx_file: Path, tmp_path: Path) -> None:
    root = make_willow(tmp_path / "willow")
    path = root / "car(G)" / "x_2.png"
    path.write_bytes(path.read_bytes()[:200])
    assert "x_2.png" in cats_eval(onnx_file, "--data", f"willow:{root}").error
    path.unlink()
    assert "1 of 4 listed files are missing: car(G)/x_2.png" in cats_eval(onnx_file, "--data", f"willow:{root}").error
    spair = make_spair(tmp_path / "spair")
    make_image(spair / "JPEGImages" / "cat" / "2008_000001.jpg", (80, 120))
    assert "has 80x120 pixels, its annotation says 120x80" in cats_eval(onnx_file, "--data", f"spair:{spair}").error


def test_command_needs_no_torch_for_onnx(onnx_file: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    root = make_willow(tmp_path)
    code = (
        "import sys\nsys.modules['torch'] = sys.modules['timm'] = sys.modules['onnx'] = None\n"
        f"sys.argv = ['cats-eval', {str(onnx_file)!r}, '--data', 'willow:{root}', '--json']\n"
        "from cats.evaluation.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data"]["pairs"] == 2
