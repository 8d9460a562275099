"""The study of ablations: rows train on the same cached features, and runs of several processes make one table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import make_image
from PIL import Image

from cats.benchmarks.studies import ablation_data, ablation_record, ablation_table, ablations
from cats.benchmarks.studies.ablation_rows import ABLATIONS, FULL, IDS, ROWS
from cats.core.errors import InputError
from cats.model import CATs, CATsConfig

RUN: dict[str, Any] = {
    "objective": "warps", "row": "full", "steps": 300, "batch": 4, "pool": 400, "pairs": 360, "device": "cpu",
    "amp": "off", "seed": 0, "pck": {"0.05": 30.0, "0.1": 60.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def backbone() -> CATs:
    return ablations.frozen_backbone()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(12):
        make_image(tmp_path / "photos" / f"kind-{number // 2}" / f"{number}.jpg", (300, 300), seed=number)
    return tmp_path / "photos"


def test_rows_are_valid_and_differ():
    assert len({str(ROWS[name].config) for name in ABLATIONS}) == 7
    assert len({str(row) for row in ROWS.values()}) == len(ROWS)


@pytest.mark.parametrize("row", ["no correlation", "cotr"])
def test_a_row_trains_on_cached_features(row: str, photos: Path, backbone: CATs):
    trained, held_out = ablation_data.open_sets(photos, "warps", 0)
    with ablation_data.Reader([(trained, range(2)), (held_out, range(1))], 1) as reader:
        pools = [ablation_data.Pool(stream, ("image_a", "image_b"), backbone) for stream in reader.streams]
    assert [len(pool) for pool in pools] == [2, 1]
    features, rest = pools[0].batch([1], [2])
    expected = ablation_data.encode(backbone, torch.from_numpy(np.asarray(trained[1]["image_a"]))[None])[2]
    torch.testing.assert_close(features["image_a"][0], expected, rtol=2e-3, atol=2e-3)
    assert rest["flow"].shape == (1, 2, 16, 16)
    config = ablations.training("warps", 1, 1)
    model = ablations.train(row, backbone, pools[0], config, "warps", 0)
    assert not model.training
    assert model.config.architecture == ("cotr" if row == "cotr" else "cats")
    assert ablations.judge(model, pools[1], config, "warps") > 0
    with pytest.raises(ablations.OutOfTimeError):
        ablations.train(row, backbone, pools[0], config, "warps", 0, end=0.0)


def test_held_out_categories_are_not_trained_on(photos: Path):
    for objective in ("warps", "categories"):
        trained, held_out = ablation_data.open_sets(photos, objective, 0)
        kinds = []
        for dataset in (trained, held_out):
            paths = dataset.folder.paths if objective == "warps" else sum(dataset.folder.categories.values(), ())
            kinds.append({path.parent.name for path in paths})
        assert kinds[1] == {"kind-0", "kind-5"}
        assert not kinds[0] & kinds[1]
        assert len(kinds[0] | kinds[1]) == 6


def test_the_rows_that_explain_appearance(backbone: CATs):
    torch.manual_seed(0)
    full = ROWS["full"].build(backbone)
    torch.manual_seed(0)
    quiet = ROWS["appearance begins at 1/10"].build(backbone)
    torch.testing.assert_close(quiet.proj[0].weight, full.proj[0].weight / 10)
    torch.testing.assert_close(quiet.decoder.proj.weight, full.decoder.proj.weight)
    assert not any(p.requires_grad for p in full.feature_extraction.parameters())
    own, theirs = full.feature_extraction.state_dict(), backbone.feature_extraction.state_dict()
    assert all(torch.equal(own[key], theirs[key]) for key in own)

    assert not ROWS["full from zero"].build(backbone).decoder.proj.weight.any()

    config = ablations.training("categories", 10, 1)
    slow = ROWS["projection at 1/10 of the rate"].groups(full, config)
    tenth = [p for group in slow if group["factor"] == 0.1 for p in group["params"]]
    assert {id(p) for p in tenth} == {id(p) for p in full.proj.parameters()}
    assert sum(len(group["params"]) for group in slow) == len([p for p in full.parameters() if p.requires_grad])
    decays = {group["weight_decay"] for group in ROWS["weight decay 0.5"].groups(full, config)}
    assert decays == {0.0, 0.5}


def test_several_lengths_and_rows_make_a_plan():
    assert ablations.plan(["1,2", "2,3"], ["full", "cotr,full"]) == [
        (1, "full"), (2, "full"), (2, "cotr"), (3, "cotr"), (3, "full")
    ]  # fmt: skip
    with pytest.raises(InputError, match="no rows fool"):
        ablations.plan(["1"], ["fool"])
    with pytest.raises(InputError, match="one of each"):
        ablations.plan(["1", "2"], ["full"])


def test_runs_of_several_processes_are_merged(tmp_path: Path):
    file = tmp_path / "runs" / "runs.jsonl"
    second = {**RUN, "row": "cotr", "seed": 1}
    for run in (second, RUN, {**RUN, "pck": {"0.05": 0.0, "0.1": 0.0}}):
        ablation_record.append_run(file, run)
    merged = ablation_record.merge_runs({"setting": "as told", "runs": []}, [file])
    assert merged == {"setting": "as told", "runs": [RUN, second]}
    assert ablation_record.merge_runs(merged, [file]) == merged
    file.write_text(json.dumps({"row": "full"}) + "\n")
    with pytest.raises(InputError, match=r"runs.jsonl, line 1 is not a run of this study: objective, .* missing"):
        ablation_record.merge_runs(merged, [file])


def test_a_share_of_the_runs_goes_into_one_file(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ablations, "DATA", tmp_path)
    photos.rename(tmp_path / "Caltech-101")
    monkeypatch.setattr(ablations, "Willow", lambda *_: lambda _: {"0.05": 1.0, "0.1": 2.0})
    monkeypatch.setattr(ablations, "JUDGED", 1)
    file = tmp_path / "runs.jsonl"
    options = argparse.Namespace(
        objective="warps", steps=["0,1"], rows=["single level,cotr"], seeds="3", batch=1, pool=2, pairs=1, device="cpu",
        amp="off", loaders=0, budget=600.0, runs=file, save=tmp_path / "models",
    )  # fmt: skip
    known = {**RUN, "row": "cotr", "seed": 3, "steps": 1, "batch": 1, "pool": 2, "pairs": 1}
    ablations.run_all(options, {"runs": [known]})
    runs = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(run["row"], run["steps"]) for run in runs] == [("single level", 0), ("cotr", 0), ("single level", 1)]
    for run in runs:
        assert (run["seed"], run["pck"]) == (3, {"0.05": 1.0, "0.1": 2.0})
        assert set(run["loss"]) == {"pool", "seen", "unseen"}
    assert runs[0]["loss"] != runs[2]["loss"]
    saved = ablations.load_checkpoint(tmp_path / "models" / "warps-single-level-1-3.pt")
    assert saved.model.config == CATsConfig(**{**FULL.to_dict(), "hyperpixels": IDS[2:]})


def test_the_table_compares_rows_seed_by_seed(tmp_path: Path):
    loss = {"pool": 1.0, "seen": 2.0, "unseen": 3.0}
    runs = [
        {**RUN, "row": row, "seed": seed, "steps": steps, "pck": {"0.05": 30.0, "0.1": pck + seed * step}, "loss": loss}
        for row, pck, step in (("full", 60.0, 4.0), ("cotr", 20.0, 1.0))
        for seed in range(2)
        for steps in (300, 2000)
        if row == "full" or steps == 300
    ]
    level = {"correlation": 0.1, "appearance": 3.0, "ratio": 30.0, "share": 0.004}
    start = {"levels": [level], "added": 0.5, "pairs": 12, "seed": 0}
    text = ablation_table.table({"setting": "", "runs": runs, "start": start})
    assert "| 1 | 0.10 | 3.00 | 30 | 0.4% |" in text
    line = "| cotr | 2 | 20.5 (20.0 to 21.0) | -41.5 (-43.0 to -40.0) | 30.0 (30.0 to 30.0) | 1.00 | 2.00 | 3.00 | 22.1"
    assert line in text
    assert "300 updates of 4 of a pool of 400, judged on 360 pairs" in text
    assert "| full | 62.0 (60.0 to 64.0) | 62.0 (60.0 to 64.0) |" in text  # of both lengths
    pytest.importorskip("matplotlib")
    ablation_table.draw({"runs": runs}, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        assert min(image.size) > 300
