"""``examples/ray_serve.py``: two replicas, one of which is killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from http_server import ROOT

from cats.assets import asset
from cats.runtime import Match

PYTHON = os.environ.get("RAY_SERVE_PYTHON", sys.executable)
"""A Python with ray[serve] and the extra serve."""

SCRIPT = """
import base64, concurrent.futures, json, os, signal, sys, time, urllib.request
import ray
from ray import serve
from ray.util.state import list_actors

sys.path.insert(0, os.getcwd())
from examples.ray_serve import app

port, a, b = int(sys.argv[1]), sys.argv[2], sys.argv[3]
ray.init("local", num_cpus=3, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": os.getcwd()}})
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(app)
pair = {side: base64.b64encode(open(path, "rb").read()).decode() for side, path in (("a", a), ("b", b))}
body = json.dumps({**pair, "points": [[203, 101], [247, 103]]}).encode()


def ask(_=None):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/match", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return [match["b"] for match in json.load(answer)["matches"]]


def replicas():
    status = serve.status().applications["default"].deployments["Matching"]
    return status.replica_states.get("RUNNING", 0)


def wait(count):
    until = time.monotonic() + 180
    while replicas() < count:
        assert time.monotonic() < until, serve.status()
        time.sleep(0.5)


wait(2)
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    before = list(pool.map(ask, range(8)))
names = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if "Matching" in actor["name"]]
assert len(names) == 2, names
ray.kill(ray.get_actor(names[0]["name"], namespace=names[0]["namespace"]), no_restart=True)
failed, after = 0, []
for _ in range(10):
    try:
        after.append(ask())
    except OSError:
        failed += 1
wait(2)
after.append(ask())
print("RESULT", json.dumps({"before": before, "after": after, "failed": failed}))
serve.shutdown()
"""


@pytest.mark.slow
def test_two_replicas_answer_and_one_that_is_killed_comes_back(match: Match, tmp_path: Path) -> None:
    if subprocess.run([PYTHON, "-c", "import ray.serve"], capture_output=True, check=False).returncode:
        pytest.skip("needs ray[serve]: name a Python that has it in RAY_SERVE_PYTHON")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [PYTHON, "-c", SCRIPT, str(port), asset("astronaut.jpg"), asset("grace_hopper.jpg")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    result = json.loads(line.removeprefix("RESULT "))
    expected = match.transfer([[203, 101], [247, 103]])
    for found in [*result["before"], *result["after"]]:
        np.testing.assert_allclose(found, expected, atol=0.01)
    assert len(result["before"]) == 8
    assert len(result["after"]) >= 8
    assert result["failed"] <= 3  # those that were in the replica when it died
