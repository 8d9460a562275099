"""``cats serve``: the command line's answers over HTTP, whatever is sent to it."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import open_page
from commands import Command, runner
from http_server import ROOT, Server, multipart, serving
from PIL import Image
from split_onnx import save_split

from cats import cli
from cats.assets import asset
from cats.core.metadata import read_onnx_metadata
from cats.labelling.formats import read_annotations
from cats.labelling.label import label_photos
from cats.runtime import Features, Match, Matcher

pytest.importorskip("starlette", reason="needs the extra serve")

A, B = asset("astronaut.jpg"), asset("grace_hopper.jpg")
PHOTOS = {"a": ("a.jpg", A.read_bytes()), "b": ("b.jpg", B.read_bytes())}
HOW = read_onnx_metadata(asset("cats-tiny.onnx")).preprocessing
POINTS = [[203.0, 101.0], [247.0, 103.0]]


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("--max-body-mb", 2, "--body-timeout", 3, "--cors", "https://friend.example") as running:
        yield running


@pytest.fixture
def cats(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return runner(cli.main, "cats", monkeypatch, capsys)


def test_a_form_and_json_give_what_the_command_line_gives(server: Server, match: Match) -> None:
    form = server.form("/v1/match", {**PHOTOS, "points": json.dumps(POINTS)}).json
    document = server.post("/v1/match", {"a": encoded(A), "b": encoded(B), "points": POINTS}).json
    assert set(form) == {"a", "b", "size_a", "size_b", "model", "matches", "time_ms"}
    assert (form["a"], form["b"]) == ("a.jpg", "b.jpg")
    assert form["model"]["file"] == "cats-tiny.onnx"
    assert form["matches"] == document["matches"]
    np.testing.assert_allclose([entry["b"] for entry in form["matches"]], match.transfer(POINTS), atol=2e-3)
    grid = server.form("/v1/match", {**PHOTOS, "grid": 4, "min_confidence": 0.3, "max_forward_backward": 40}).json
    assert 0 < len(grid["matches"]) <= 16
    assert all(entry["confidence"] >= 0.3 and entry["forward_backward"] <= 40 for entry in grid["matches"])
    likely = server.form("/v1/match", {**PHOTOS, "grid": 4, "min_probability": 0.4}).json["matches"]
    assert 0 < len(likely) < 16
    assert all(entry["probability"] >= 0.4 for entry in likely)
    arrays = server.form("/v1/match", {**PHOTOS, "arrays": "flow,probabilities"}).json["arrays"]
    flow = np.frombuffer(base64.b64decode(arrays["flow"]["data"]), "<f4").reshape(arrays["flow"]["shape"])
    np.testing.assert_allclose(flow, match.flow, atol=1e-4)
    assert arrays["probabilities"]["shape"] == [256, 256]


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "no photo a"),
    ({"a": "%%%", "b": ""}, "a is not base64"),
    ({"a": 5, "b": 6}, "a must be a text"),
    ({"a": encoded(A)}, "no photo b"),
    ({"a": encoded(A), "b": base64.b64encode(b"not an image").decode()}, "not an image"),
    ({"a": encoded(A), "b": base64.b64encode(B.read_bytes()[:900]).decode()}, "image"),
    ({"a": encoded(A), "b": encoded(B), "points": [[1, 2, 3]]}, "points"),
    ({"a": encoded(A), "b": encoded(B), "points": [[10**400, 2]]}, "the body is not JSON: 1000"),
    ({"a": encoded(A), "b": encoded(B), "points": [[9000, 2]]}, "outside image a"),
    ({"a": encoded(A), "b": encoded(B), "points": "[[1,"}, "points is not JSON"),
    ({"a": encoded(A), "b": encoded(B), "points": {"x": 1}}, "points must be a list"),
    ({"a": encoded(A), "b": encoded(B), "grid": 1e99}, "grid"),
    ({"a": encoded(A), "b": encoded(B), "grid": 2.5}, "whole number"),
    ({"a": encoded(A), "b": encoded(B), "min_confidence": "much"}, "min_confidence"),
    ({"a": encoded(A), "b": encoded(B), "arrays": ["weights"]}, "choose of flow"),
    ({"a": encoded(A), "b": encoded(B), "arrays": [{}]}, "choose of flow"),
]


@pytest.mark.parametrize(("document", "reason"), BAD)
def test_bad_requests_are_told_what_is_wrong(server: Server, document: dict[str, Any], reason: str) -> None:
    answer = server.post("/v1/match", document)
    assert answer.status == 400, answer.body
    assert reason in answer.json["error"]
    assert answer.headers["x-request-id"] == answer.json["request_id"]


def test_bodies_that_are_none(server: Server) -> None:
    kind = {"Content-Type": "application/json"}
    form = {"Content-Type": "multipart/form-data; boundary=limit"}
    for body, headers, status in [
        (b"[" * 100_000, kind, 400),
        (b"\xff\xfe{", kind, 400),
        (b"[1]", kind, 400),
        (b'{"a": NaN}', kind, 400),
        (b"", kind, 400),
        (b"--limit", form, 400),
        (multipart(PHOTOS)[0][:-5000], form, 400),
        (multipart(PHOTOS)[0], {"Content-Type": "multipart/form-data"}, 400),
        (multipart({f"f{n}": ("x", b"y") for n in range(50)})[0], form, 400),
        (b"x", {"Content-Type": "text/plain"}, 415),
        (b"x", {}, 415),
        (b"{}", {**kind, "Content-Encoding": "gzip"}, 415),
        (b" " * 2_100_000, kind, 413),
    ]:
        answer = server.ask("POST", "/v1/match", body, headers)
        assert answer.status == status, (body[:40], answer.body)
        assert answer.json["error"]
    assert server.ask("DELETE", "/v1/match").status == 405
    for path in ("/nope", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/a%00b", "/" + "x" * 5000, "//"):
        assert server.ask("GET", path).status == 404, path


def test_names_are_only_text(server: Server) -> None:
    photos = {"a": ("../../../etc/cron.d/x\x07.jpg", A.read_bytes()), "b": ("C:\\\\windows\\\\b.jpg", B.read_bytes())}
    document = server.form("/v1/match", {**photos, "points": "[[1, 1]]"}).json
    assert (document["a"], document["b"]) == ("x.jpg", "b.jpg")
    large = Image.new("RGB", (9000, 9000))
    path = Path(os.environ.get("TMPDIR", "/tmp"), "cats-large-photo-of-tests.png")
    try:
        large.save(path)
        refused = server.form("/v1/match", {**PHOTOS, "b": ("b.png", path.read_bytes())})
    finally:
        path.unlink(missing_ok=True)
    assert refused.status == 400
    assert "megapixels" in refused.json["error"]


def test_slow_senders_are_left(server: Server) -> None:
    with socket.create_connection(server.address) as slow:
        slow.sendall(b"POST /v1/match HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        slow.sendall(b"Content-Length: 1000\r\n\r\n{")
        slow.settimeout(60)
        assert b"408" in slow.recv(4000).split(b"\r\n")[0]
    with socket.create_connection(server.address) as silent:
        silent.sendall(b"POST /v1/match HT")
        silent.settimeout(60)
        start = time.monotonic()
        assert silent.recv(4000) == b""
        assert time.monotonic() - start > 5
    assert server.ask("GET", "/v2/health/live").status == 200


def test_other_sites_do_not_get_in(server: Server) -> None:
    assert server.ask("GET", "/v2", headers={"Host": "rebound.example"}).status == 421
    friend = server.ask("GET", "/v2", headers={"Origin": "https://friend.example"})
    assert friend.headers["access-control-allow-origin"] == "https://friend.example"
    stranger = server.ask("GET", "/v2", headers={"Origin": "https://stranger.example"})
    assert "access-control-allow-origin" not in stranger.headers


def test_log_metrics_and_documents(server: Server) -> None:
    given = server.ask("GET", "/v2", headers={"X-Request-ID": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    assert server.ask("GET", "/v2", headers={"X-Request-ID": 'a"b{}'}).headers["x-request-id"] != 'a"b{}'
    time.sleep(0.2)
    (line,) = [event for event in server.events() if event.get("request_id") == "mine-1"]
    assert (line["path"], line["status"], line["event"]) == ("/v2", 200, "request")
    server.form("/v1/match", PHOTOS)
    text = server.ask("GET", "/metrics").body.decode()
    assert 'cats_requests_total{route="/v1/match",status="200"}' in text
    assert "cats_batch_pairs_count" in text
    assert "secret" not in text
    api = server.ask("GET", "/openapi.json").json
    assert set(api["paths"]) >= {
        "/v1/match",
        "/v1/encode",
        "/v1/gallery/{name}",
        "/v2/models/{model}/infer",
        "/metrics",
    }
    page = server.ask("GET", "/docs").body.decode()
    assert all(path in page for path in api["paths"])


def test_the_page_of_the_server_gives_pythons_points(server: Server, chromium: Any, axe: str, match: Match) -> None:
    with open_page(chromium, server.url, bypass_csp=True) as watched:
        page = watched.page
        page.wait_for_selector("html[data-state=ready]")
        page.set_input_files("#file-a", A)
        page.set_input_files("#file-b", B)
        page.wait_for_selector("html[data-state=checked]")
        page.locator("#canvas-a").click(position={"x": 120, "y": 140})
        (row,) = page.evaluate("[...document.querySelectorAll('#rows tr')].map(row => ({...row.dataset}))")
        np.testing.assert_allclose([json.loads(row["b"])], match.transfer([json.loads(row["a"])]), atol=0.05)
        assert "on this server" in page.inner_text("#engine")
        assert "model's probability" in page.inner_text("#map-kind")
        page.goto(f"{server.url}docs")
        page.evaluate(axe)
        found = page.evaluate("axe.run()")["violations"]
        assert not [item["id"] for item in found if item["impact"] in ("serious", "critical")]
        watched.check(server.url)


def test_split_models_encode_and_keep_a_gallery(tmp_path: Path) -> None:
    encoder, _ = save_split(tmp_path)
    with serving(encoder, "--max-gallery", 2) as server, Matcher(encoder) as matcher:
        data = server.form("/v1/encode", {"image": PHOTOS["b"]})
        assert data.status == 200, data.body
        (tmp_path / "b.npz").write_bytes(data.body)
        features = Features.load(tmp_path / "b.npz", matcher.metadata.weights_sha256)
        assert features.size == (512, 600)
        for name, photo in (("hopper", B), ("self", A)):
            assert (
                server.form(f"/v1/gallery/{name}", {"image": ("x.jpg", photo.read_bytes())}, method="PUT").status == 201
            )
        full = server.form("/v1/gallery/third", {"image": PHOTOS["b"]}, method="PUT")
        assert (full.status, "full" in full.json["error"]) == (409, True)
        ranked = server.form("/v1/gallery/match", {"a": PHOTOS["a"], "points": json.dumps(POINTS)}).json["ranked"]
        expected = {name: matcher.match(A, photo) for name, photo in (("hopper", B), ("self", A))}
        assert [entry["score"] for entry in ranked] == sorted((e["score"] for e in ranked), reverse=True)
        for entry in ranked:
            match = expected[entry["b"]]
            np.testing.assert_allclose([m["b"] for m in entry["matches"]], match.transfer(POINTS), atol=0.01)
        assert server.ask("DELETE", "/v1/gallery/self").status == 204
        assert [photo["name"] for photo in server.ask("GET", "/v1/gallery").json["photos"]] == ["hopper"]
        assert server.ask("DELETE", "/v1/gallery/self").status == 404
        assert server.ask("GET", f"/v2/models/{matcher_name(server)}.encoder").status == 200


def test_labels_are_carried_to_a_photo(tmp_path: Path) -> None:
    points = np.array(json.loads(asset("astronaut.json").read_text())[:5])
    (tmp_path / "astronaut.jpg").write_bytes(A.read_bytes())
    document = {
        "images": [{"id": 1, "file_name": "astronaut.jpg", "width": 512, "height": 512}],
        "categories": [{"id": 1, "name": "face", "keypoints": list("abcde"), "skeleton": []}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "num_keypoints": 5,
                "keypoints": [float(value) for x, y in points for value in (x, y, 2)],
                "bbox": [190, 90, 70, 100],
                "area": 7000,
                "iscrowd": 0,
            }
        ],
    }
    (tmp_path / "labels.json").write_text(json.dumps(document))
    with serving("cats-tiny.encoder", "--references", tmp_path / "labels.json") as server:
        answer = server.form("/v1/label", {"image": PHOTOS["b"]})
        assert answer.status == 200, answer.body
        found = answer.json
        assert (found["category"], found["reference"], found["size"]) == ("face", "astronaut.jpg", [512, 600])
        assert [point["name"] for point in found["keypoints"]] == list("abcde")
        with Matcher(asset("cats-tiny.encoder.onnx")) as matcher:
            labels = read_annotations(tmp_path / "labels.json")
            (expected,) = label_photos(labels, [B], matcher)
        np.testing.assert_allclose([point["at"] for point in found["keypoints"]], expected.points, atol=0.05)
        refused = server.form("/v1/label", {"image": PHOTOS["b"], "category": "hat"})
        assert (refused.status, "face" in refused.json["error"]) == (400, True)
        broken = server.form("/v1/label", {"image": ("b.jpg", b"none")})
        assert (broken.status, "/tmp" in broken.json["error"]) == (400, False)


def matcher_name(server: Server) -> str:
    return str(server.ask("GET", "/v2/models/nope").json["error"].split("there is ")[1].split(",")[0])


def test_what_this_server_has_not_is_refused(server: Server) -> None:
    assert server.form("/v1/label", {"image": PHOTOS["a"]}).status == 404
    assert "--split" in server.form("/v1/encode", {"image": PHOTOS["a"]}).json["error"]


def test_a_full_queue_says_when_to_come_back_and_a_token_is_asked_for() -> None:
    with serving("--max-queue", 1, "--streams", 1, CATS_SERVE_TOKEN="a secret of tests") as server:
        assert server.form("/v1/match", PHOTOS).status == 401
        wrong = server.form("/v1/match", PHOTOS, Authorization="Bearer other")
        assert (wrong.status, wrong.headers["www-authenticate"]) == (401, "Bearer")
        assert server.ask("GET", "/").status == 200
        assert server.ask("GET", "/metrics").status == 401
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            ask = lambda _: server.form("/v1/match", PHOTOS, Authorization="Bearer a secret of tests")  # noqa: E731
            answers = list(pool.map(ask, range(8)))
        assert {answer.status for answer in answers} == {200, 429}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status == 429)
        assert "a secret of tests" not in "".join(server.lines)


def test_sigterm_ends_it_after_the_requests_in_flight() -> None:
    with serving("--max-batch", 2, "--max-delay-ms", 20) as server:
        answers: list[int] = []
        asking = [
            threading.Thread(target=lambda: answers.append(server.form("/v1/match", PHOTOS).status)) for _ in range(6)
        ]
        for thread in asking:
            thread.start()
        until = time.monotonic() + 60
        while "cats_open_requests 7.0" not in server.ask("GET", "/metrics").body.decode():
            if not any(thread.is_alive() for thread in asking) or time.monotonic() > until:
                pytest.skip("the requests ended before they could be seen in flight")
        assert server.stop() == 0
        for thread in asking:
            thread.join()
        assert answers == [200] * 6


def test_the_example_client(server: Server, match: Match) -> None:
    command = [sys.executable, "examples/http_client.py", server.url, A, B, "203,101;247,103"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = [json.loads(line.split(" -> ")[1].split(" confidence")[0]) for line in done.stdout.splitlines()]
    np.testing.assert_allclose(found, match.transfer(POINTS), atol=2e-3)


@pytest.mark.slow
def test_the_steps_of_the_dockerfile_make_a_server(tmp_path: Path) -> None:
    """Its RUN steps in a clean virtual environment in the place of the image, then its CMD."""
    text = (ROOT / "examples" / "Dockerfile").read_text().replace("/opt/cats", str(tmp_path / "cats"))
    text = text.replace("/src", str(ROOT))
    steps = [line.removeprefix("RUN ") for line in text.splitlines() if line.startswith("RUN ")]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "CATS"))}
    for step in steps:
        subprocess.run(step, shell=True, check=True, cwd=tmp_path, env=clean)
    (command,) = [json.loads(line.removeprefix("CMD ")) for line in text.splitlines() if line.startswith("CMD ")]
    with serving(command=[*command, "--port", "0"], cwd=tmp_path) as server:
        assert server.form("/v1/match", {**PHOTOS, "points": json.dumps(POINTS)}).status == 200
        assert server.stop() == 0


def test_it_is_ready_only_when_warm() -> None:
    with serving(ready=False) as server:
        assert server.ask("GET", "/v2/health/live").status == 200
        first = server.ask("GET", "/v2/health/ready")
        assert first.json["ready"] is (first.status == 200)
        until = time.monotonic() + 120
        while server.ask("GET", "/v2/health/ready").status != 200:
            assert time.monotonic() < until
            time.sleep(0.05)
        events = [event["event"] for event in server.events()]
        assert events.index("listening") < events.index("ready")


def test_refusals(cats: Command, tmp_path: Path) -> None:
    assert "missing.onnx" in cats("serve", tmp_path / "missing.onnx").error
    assert "token" in cats("serve", "--token-file", tmp_path / "none").error
    (tmp_path / "short").write_text("abc")
    assert "at least 8" in cats("serve", "--token-file", tmp_path / "short").error
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "cannot listen" in cats("serve", "--port", taken.getsockname()[1]).error
