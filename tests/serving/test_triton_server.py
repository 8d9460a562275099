"""A written repository in the real Triton server: every model that a CPU runs gives Python's results."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from http_server import ROOT
from triton_server import PYTHON, need, run_python, running

from cats.assets import asset
from cats.calibration.calibrate import calibrate, load_float_model, measure_ranges
from cats.checkpoints import load_checkpoint
from cats.core.images import preprocess, read_image
from cats.data.photo_pairs import demo_photos
from cats.export import export_onnx
from cats.runtime import Match, Matcher
from cats.serving.triton import write_repository

pytestmark = pytest.mark.slow  # the models are exported and quantized first

A, B = asset("astronaut.jpg"), asset("grace_hopper.jpg")
POINTS = [[203.0, 101.0], [247.0, 103.0]]

INFER = """
import sys, numpy as np, tritonclient.http as http
client = http.InferenceServerClient(sys.argv[1])
feeds = np.load(sys.argv[3])
inputs = []
for name, value in feeds.items():
    inputs.append(http.InferInput(name, value.shape, "UINT8" if value.dtype == np.uint8 else "FP32"))
    inputs[-1].set_data_from_numpy(value)
found = client.infer(sys.argv[2], inputs)
np.savez(sys.argv[4], **{item["name"]: found.as_numpy(item["name"]) for item in found.get_response()["outputs"]})
"""

TOGETHER = """
import json, pathlib, sys, numpy as np, tritonclient.http as http
from concurrent.futures import ThreadPoolExecutor
a, b = (pathlib.Path(path).read_bytes() for path in sys.argv[2:4])
def ask(count):
    points = np.full((1, count, 2), 100 + count, np.float32)
    files = [("image_a", np.array([[a]], object), "BYTES"), ("image_b", np.array([[b]], object), "BYTES")]
    inputs = []
    for name, value, kind in (*files, ("points_a", points, "FP32")):
        inputs.append(http.InferInput(name, value.shape, kind))
        inputs[-1].set_data_from_numpy(value)
    return http.InferenceServerClient(sys.argv[1]).infer("cats-tiny_points", inputs).as_numpy("points_b")[0].tolist()
with ThreadPoolExecutor(12) as pool:
    print(json.dumps(list(pool.map(ask, range(1, 13)))))
client = http.InferenceServerClient(sys.argv[1])
for name in ("cats-tiny_points", "cats-tiny"):
    (entry,) = client.get_inference_statistics(name)["model_stats"]
    print(json.dumps([int(entry["inference_count"]), int(entry["execution_count"])]))
"""


@dataclass(frozen=True)
class Server:
    """Triton with all forms of cats-tiny."""

    host: str
    int8: Path
    log: Path

    def points(self, model: str, points: str = "203,101;247,103") -> subprocess.CompletedProcess:
        """What the example prints."""
        command = [PYTHON, ROOT / "examples" / "triton_client.py", self.host, model, A, B, points]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def infer(self, model: str, folder: Path, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs of a model for tensors."""
        np.savez(folder / "in.npz", **feeds)
        run_python(INFER, self.host, model, folder / "in.npz", folder / "out.npz")
        return dict(np.load(folder / "out.npz"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    need("pytriton")
    folder = tmp_path_factory.mktemp("triton")
    whole = folder / "whole.e2e.onnx"
    export_onnx(load_checkpoint(asset("cats-tiny.pt")).model, whole, form="end-to-end")
    source, pairs = load_float_model(asset("cats-tiny.onnx")), demo_photos()
    int8 = calibrate(source, measure_ranges(source, pairs), folder / "small.onnx", target="cpu", pairs=pairs).path
    files = [asset("cats-tiny.onnx"), asset("cats-tiny.encoder.onnx"), whole, int8]
    names = write_repository(folder / "models", files, cpu=True)
    assert len(names) == 9
    with running(folder / "models", folder) as host:
        yield Server(host, int8, folder / "triton.log")


@pytest.mark.parametrize("model", ["cats-tiny_points", "cats-tiny_split_points", "whole_e2e_points", "small_points"])
def test_photos_to_pythons_points(server: Server, match: Match, model: str) -> None:
    if model == "small_points":
        with Matcher(server.int8) as matcher:
            match = matcher.match(A, B)
    done = server.points(model)
    assert done.returncode == 0, (done.stderr[-2000:], server.log.read_text()[-3000:])
    found = [json.loads(line.split(" -> ")[1].split(" confidence")[0]) for line in done.stdout.splitlines()]
    np.testing.assert_allclose(found, match.transfer(POINTS), atol=0.05)


def test_tensors_to_pythons_flow(server: Server, match: Match, tmp_path: Path) -> None:
    with Matcher(asset("cats-tiny.onnx")) as matcher:
        how = matcher.metadata.preprocessing
    photos = {side: read_image(path) for side, path in (("a", A), ("b", B))}
    images = {side: preprocess(photo, how)[None] for side, photo in photos.items()}
    pair = server.infer("cats-tiny", tmp_path, image_a=images["a"], image_b=images["b"])
    np.testing.assert_allclose(pair["flow"][0], match.flow, atol=1e-3)
    np.testing.assert_allclose(pair["confidence"][0], match.confidence, atol=1e-3)
    features = {side: server.infer("cats-tiny_encoder", tmp_path, image=image) for side, image in images.items()}
    feeds = {f"{name}_{side}": value for side, found in features.items() for name, value in found.items()}
    np.testing.assert_allclose(server.infer("cats-tiny_matcher", tmp_path, **feeds)["flow"][0], match.flow, atol=1e-3)
    raw = {f"image_{side}": np.asarray(photo)[None] for side, photo in photos.items()}
    whole = server.infer("whole_e2e", tmp_path, **raw, points_a=np.array([POINTS], np.float32))
    np.testing.assert_allclose(whole["points_b"][0], match.transfer(POINTS), atol=0.05)
    with Matcher(server.int8) as matcher:
        small = matcher.match(A, B)
    found = server.infer("small", tmp_path, image_a=images["a"], image_b=images["b"])
    np.testing.assert_allclose(found["flow"][0], small.flow, atol=1e-3)


def test_callers_share_runs_and_get_their_own_answers(server: Server, match: Match) -> None:
    answers, *counts = map(json.loads, run_python(TOGETHER, server.host, A, B).splitlines())
    for count, points in enumerate(answers, 1):
        np.testing.assert_allclose(points, match.transfer([[100 + count] * 2] * count), atol=0.05)
    for asked, runs in counts:
        assert runs < asked


def test_what_is_wrong_with_a_request_is_its_own_error(server: Server, tmp_path: Path) -> None:
    assert "outside image a" in server.points("cats-tiny_points", "9000,1").stderr
    (tmp_path / "text.jpg").write_text("no photo")
    command = [PYTHON, ROOT / "examples" / "triton_client.py", server.host, "cats-tiny_points"]
    done = subprocess.run([*command, tmp_path / "text.jpg", B, "1,1"], capture_output=True, text=True, check=False)
    assert "image" in done.stderr.splitlines()[-1]
    assert server.points("cats-tiny_points").returncode == 0
