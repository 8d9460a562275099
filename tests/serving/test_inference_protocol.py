"""The Open Inference Protocol: the answer of the command line through another door."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from http_server import Server, serving

from cats.assets import asset
from cats.core.images import preprocess, read_image
from cats.core.metadata import read_onnx_metadata
from cats.runtime import Match

pytest.importorskip("starlette", reason="needs the extra serve")

A, B = asset("astronaut.jpg"), asset("grace_hopper.jpg")
HOW = read_onnx_metadata(asset("cats-tiny.onnx")).preprocessing
PHOTOS = {"a": ("a.jpg", A.read_bytes()), "b": ("b.jpg", B.read_bytes())}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def test_open_inference_protocol(server: Server, match: Match) -> None:
    assert server.ask("GET", "/v2/health/live").status == 200
    assert server.ask("GET", "/v2/models/cats-tiny/versions/1/ready").json["ready"] is True
    described = server.ask("GET", "/v2/models/cats-tiny").json
    assert [entry["shape"] for entry in described["inputs"]] == [[-1, 3, 256, 256]] * 2
    tensors = [preprocess(read_image(path), HOW)[None] for path in (A, B)]
    entries = [
        {"name": name, "datatype": "FP32", "shape": [1, 3, 256, 256], "parameters": {"binary_data_size": 786432}}
        for name in ("image_a", "image_b")
    ]
    wanted = [{"name": "flow", "parameters": {"binary_data": True}}, {"name": "confidence"}]
    head = json.dumps({"id": "7", "inputs": entries, "outputs": wanted}).encode()
    binary = b"".join(tensor.tobytes() for tensor in tensors)
    answer = infer(server, head, binary)
    size = int(answer.headers["inference-header-content-length"])
    document = json.loads(answer.body[:size])
    assert document["id"] == "7"
    flow = np.frombuffer(answer.body[size:], "<f4").reshape(1, 2, 16, 16)
    np.testing.assert_allclose(flow[0], match.flow, atol=1e-4)
    np.testing.assert_allclose(document["outputs"][1]["data"], match.confidence.ravel(), atol=1e-4)
    for change, reason in [
        ({"shape": [10**12, 3, 256, 256]}, "is needed"),
        ({"shape": [1, 3, 256, "x"]}, "is needed"),
        ({"shape": None}, "is needed"),
        ({"datatype": "FP64"}, "FP32"),
        ({"name": "image_c"}, "takes each of"),
        ({"name": ["image_a"]}, "takes each of"),
        ({"parameters": {"binary_data_size": 5}}, "has 786432 bytes"),
        ({"parameters": {"binary_data_size": -1}}, "has 786432 bytes"),
        ({"parameters": {}, "data": [[1, 2], [3]]}, "not numbers of one shape"),
        ({"parameters": {}, "data": [1, 2]}, "values"),
    ]:
        head = json.dumps({"inputs": [{**entries[0], **change}, entries[1]]}).encode()
        refused = infer(server, head, binary)
        assert refused.status == 400, refused.body
        assert reason in refused.json["error"], (change, refused.json)
    nothing = np.full(786432 // 4, np.nan, np.float32).tobytes()
    refused = infer(server, json.dumps({"inputs": entries}).encode(), nothing + nothing)
    assert "not numbers" in refused.json["error"]
    assert server.ask("POST", "/v2/models/other/infer", b"{}").status == 404
    bad_length = server.ask("POST", "/v2/models/cats-tiny/infer", b"{}", {"Inference-Header-Content-Length": "99"})
    assert bad_length.status == 400


def infer(server: Server, head: bytes, binary: bytes) -> Any:
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return server.ask("POST", "/v2/models/cats-tiny/infer", head + binary, headers)


def test_tritons_client_talks_to_it(server: Server, match: Match, tmp_path: Path) -> None:
    """Triton's own client, in the environment TRITON_CLIENT_PYTHON: its dependencies do not fit beside others."""
    python = os.environ.get("TRITON_CLIENT_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import tritonclient.http"], capture_output=True, check=False).returncode:
        pytest.skip("needs tritonclient[http]: name a Python that has it in TRITON_CLIENT_PYTHON")
    script = """
import sys, numpy as np, tritonclient.http as http
client = http.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("cats-tiny")
data = np.load(sys.argv[2])
inputs = []
for name in ("image_a", "image_b"):
    inputs.append(http.InferInput(name, [1, 3, 256, 256], "FP32"))
    inputs[-1].set_data_from_numpy(data[name], binary_data=True)
found = client.infer("cats-tiny", inputs)
plain = client.infer("cats-tiny", inputs, outputs=[http.InferRequestedOutput("flow", binary_data=False)])
assert np.allclose(found.as_numpy("flow"), plain.as_numpy("flow"), atol=1e-5)
np.save(sys.argv[3], found.as_numpy("flow"))
"""
    tensors = {
        f"image_{side}": preprocess(read_image(path), HOW)[None] for side, path in zip("ab", (A, B), strict=True)
    }
    np.savez(tmp_path / "in.npz", **tensors)
    host = ":".join(map(str, server.address))
    subprocess.run([python, "-c", script, host, tmp_path / "in.npz", tmp_path / "out.npy"], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy")[0], match.flow, atol=1e-4)
