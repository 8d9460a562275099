"""Bulk matching as a Ray pipeline, on a real local Ray with two actors, one of which is killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cats.core.errors import BackendError, InputError, ModelFileError
from cats.core.pck import PairKeypoints, pck, preset, score_flow
from cats.runtime import Matcher
from cats.runtime.ray import annotated_rows, evaluate_pairs, match_pairs

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'cats-toolkit[ray]'"
)
SIZE_A, SIZE_B = (320, 192), (330, 200)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """``ray.data`` on a Ray of this process alone."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    folder = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("ray"))
    ray.init("local", num_cpus=3, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = 600  # so that there are two to choose from when one is killed
    yield ray.data
    ray.shutdown()
    os.chdir(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, texture: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(texture[100:292, 100:420]).save(folder / "a.png")
    Image.fromarray(texture[64:264, 140:470]).save(folder / "b.png")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:5000])
    return folder


@needs_ray
def test_flows_and_bad_pairs(data: Any, folder: Path, model_file: Path) -> None:
    rows = [{"id": i, "a": "a.png", "b": "b.png"} for i in range(9)]
    rows[2]["b"], rows[4]["a"], rows[6]["b"] = "absent.png", "broken.png", None
    pairs = data.from_items(rows, override_num_blocks=3)
    matched = match_pairs(pairs, model_file, concurrency=2, batch_size=2, folder=folder)
    results = sorted(matched.take_all(), key=lambda row: row["id"])
    expected = Matcher(model_file, threads=1).match(folder / "a.png", folder / "b.png")
    assert [row["id"] for row in results] == list(range(9))
    for row in results:
        assert (row["flow"].shape, row["confidence"].shape) == ((2, 16, 16), (16, 16))
        if row["id"] in (2, 4, 6):
            assert np.isnan(row["flow"]).all()
            continue
        assert row["error"] is None
        assert np.abs(row["flow"] - expected.flow).max() < 1e-4
        assert np.abs(row["confidence"] - expected.confidence).max() < 1e-4
        assert (tuple(row["size_a"]), tuple(row["size_b"])) == (SIZE_A, SIZE_B)
    assert "absent.png" in results[2]["error"]
    assert "broken.png" in results[4]["error"]
    assert "NoneType" in results[6]["error"]


@needs_ray
def test_points(data: Any, folder: Path, model_file: Path) -> None:
    (folder / "points.csv").write_text("x,y\n30,40\n50,60\n")
    given = ["10,20;30,40", "points.csv", "900,900", "", "1;2"]
    rows = [{"id": i, "a": "a.png", "b": "b.png", "points": text} for i, text in enumerate(given)]
    matched = match_pairs(data.from_items(rows), model_file, batch_size=4, folder=folder)
    results = sorted(matched.take_all(), key=lambda row: row["id"])
    match = Matcher(model_file, threads=1).match(folder / "a.png", folder / "b.png")
    for index, points in ((0, [[10, 20], [30, 40]]), (1, [[30, 40], [50, 60]])):
        assert np.abs(np.stack(list(results[index]["points_b"])) - match.transfer(points)).max() < 1e-2
        assert np.abs(results[index]["confidence"] - match.confidence_at(points)).max() < 1e-4
    assert [row["error"] is None for row in results] == [True, True, False, True, False]
    assert "outside image a" in results[2]["error"]
    assert "x,y;x,y" in results[4]["error"]
    assert [len(results[index]["points_b"]) for index in (2, 3, 4)] == [0, 0, 0]

    numbers = data.from_items([{"a": "a.png", "b": "b.png", "points": [[10.0, 20.0], [30.0, 40.0]]}])
    (row,) = match_pairs(numbers, model_file, folder=folder).take_all()
    assert np.abs(np.stack(list(row["points_b"])) - match.transfer([[10, 20], [30, 40]])).max() < 1e-2


def workers() -> set[int]:
    """Actors of Ray Data below this process."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                names[int(entry.name)] = (entry / "cmdline").read_bytes().split(b"\0")[0]
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue

    def mine(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return {pid for pid, name in names.items() if name.startswith(b"ray::") and b"MapWorker" in name and mine(pid)}


@needs_ray
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the actor's process in /proc")
def test_every_row_is_there_once_when_an_actor_is_killed(data: Any, tmp_path: Path, model_file: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.jpg")  # tens of milliseconds to decode, so that there is a middle
    count = 120
    rows = [{"id": i, "a": "large.jpg", "b": "large.jpg"} for i in range(count)]
    pairs = data.from_items(rows, override_num_blocks=count // 4)
    before = workers()
    seen: list[dict[str, Any]] = []
    killed, killed_at = None, 0.0
    for row in match_pairs(pairs, model_file, concurrency=2, batch_size=4, folder=tmp_path).iter_rows():
        seen.append(row)
        if killed is None:
            running = workers() - before
            assert len(running) == 2
            killed = min(running)
            os.kill(killed, signal.SIGKILL)
            killed_at = time.monotonic()
    assert time.monotonic() - killed_at > 0.2  # the work was not over
    assert sorted(row["id"] for row in seen) == list(range(count))
    assert all(row["error"] is None and np.isfinite(row["flow"]).all() for row in seen)
    assert len({row["flow"].tobytes() for row in seen}) == 1


@needs_ray
@pytest.mark.parametrize("name", ["corrected", "per-point", "cats2021"])
def test_pck_is_that_of_cats_pck(data: Any, folder: Path, model_file: Path, name: str) -> None:
    rng = np.random.default_rng(1)
    rows: list[dict[str, Any]] = []
    protocol = preset(name, "pairs")
    matcher = Matcher(model_file, threads=1)
    first, second = ("a.png", "b.png") if protocol.direction == "a->b" else ("b.png", "a.png")
    flow, scores = matcher.match(folder / first, folder / second).flow, {"x": [], "y": []}
    for index in range(7):
        points_a = rng.uniform(60, 180, (index + 2, 2))
        points_b = points_a + np.array([-40, 36]) + rng.normal(0, 8, points_a.shape)
        rows.append({"a": "a.png", "b": "b.png", "points_a": points_a.tolist(), "points_b": points_b.tolist()})
        rows[-1]["category"] = "xy"[index % 2]
        pair = PairKeypoints(points_a, points_b, SIZE_A, SIZE_B)
        scores["xy"[index % 2]].append(score_flow(pair, flow, protocol))
    rows.append({**rows[0], "b": "absent.png"})
    result = evaluate_pairs(
        data.from_items(rows), model_file, protocol=name, alphas=(0.05, 0.1), batch_size=2, folder=folder
    )
    everything = scores["x"] + scores["y"]
    for alpha in (0.05, 0.1):
        assert result.pck[alpha] == pytest.approx(pck(everything, alpha, protocol.reduction))
        for category in "xy":
            assert result.by_category[category][alpha] == pytest.approx(
                pck(scores[category], alpha, protocol.reduction)
            )
    assert 0 < result.pck[0.05] < 100
    assert (result.pairs, result.failures) == (7, 1)
    assert "absent.png" in result.errors[0]


@needs_ray
def test_refusals(data: Any, folder: Path, model_file: Path, tmp_path: Path) -> None:
    good = data.from_items([{"a": "a.png", "b": "b.png"}])
    cases: list[tuple[type[Exception], str, Any, Any, dict[str, Any]]] = [
        (InputError, "no column b", data.from_items([{"a": "a.png"}]), model_file, {}),
        (
            InputError,
            "already has the columns error",
            data.from_items([{"a": "", "b": "", "error": 1}]),
            model_file,
            {},
        ),
        (InputError, "ray.data.Dataset", [{"a": "a.png"}], model_file, {}),
        (InputError, "concurrency", good, model_file, {"concurrency": 0}),
        (InputError, r"3 actors with 1 CPU each and one .* has 3.*concurrency=2", good, model_file, {"concurrency": 3}),
        (InputError, r"1 actor with 9 CPUs each.*give num_cpus=1", good, model_file, {"num_cpus": 9}),
        (InputError, "1 actor with 1 GPU each: this Ray cluster has 0", good, model_file, {"num_gpus": 1}),
        (InputError, "batch_size 0", good, model_file, {"batch_size": 0}),
        (ModelFileError, "does not exist", good, tmp_path / "absent.onnx", {}),
    ]
    for error, message, dataset, model, options in cases:
        with pytest.raises(error, match=message):
            match_pairs(dataset, model, **options)
    annotated = {"a": "absent.png", "b": "b.png", "points_a": [[1.0, 2.0]], "points_b": [[1.0, 2.0]]}
    with pytest.raises(InputError, match=r"no pair could be scored: absent\.png"):
        evaluate_pairs(data.from_items([annotated]), model_file, folder=folder)
    with pytest.raises(InputError, match="alphas"):
        evaluate_pairs(data.from_items([annotated]), model_file, alphas=())


def test_rows_of_a_data_set(tmp_path: Path) -> None:
    samples = pytest.importorskip("cats.data.samples")
    points = np.array([[1.0, 2.0], [3.0, 4.0]])
    sample = samples.Sample(Path("a.jpg"), Path("b.jpg"), (30, 20), (30, 20), points, points + 1, box_b=(0, 1, 9, 8))
    (row,) = annotated_rows([sample])
    assert (row["a"], row["points_b"], row["box_a"]) == ("a.jpg", [[2, 3], [4, 5]], None)
    assert row["box_b"] == [0, 1, 9, 8]
    with pytest.raises(InputError, match="mirrored"):
        list(annotated_rows([samples.mirror(sample)]))


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, model_file: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(BackendError, match=r"ray.*cats-toolkit\[ray\]"):
        match_pairs(None, model_file)


def test_a_row_is_one_row_whatever_is_in_it(folder: Path) -> None:
    """One actor's work, without Ray."""
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("ray.data.extensions")
    from cats.runtime.ray import _Columns, _MatchPairs

    worker = _MatchPairs("cats-tiny", str(folder), 2, {"threads": 1})
    bad = ["absent.png", "a\0.png", "", ".", None, "broken.png"]
    rows = [{"a": "a.png", "b": name, "points": "10,20"} for name in ["b.png", *bad, "b.png"]]
    rows[-1]["points"] = "1e999,0"
    rows += [{"a": "a.png", "b": "b.png", "points": text} for text in ("x\0.csv", "9999,0", "b.png", "1,2;3")]
    found = worker(pa.Table.from_pylist(rows)).to_pylist()
    assert [row["error"] is None for row in found] == [True] + [False] * (len(rows) - 1)
    assert np.shape(found[0]["points_b"]) == (1, 2)
    columns = _Columns(16, has_points=True)
    columns.fail("cannot read \ud800")
    assert columns.arrays(pa)["error"].to_pylist() == ["cannot read \\ud800"]
