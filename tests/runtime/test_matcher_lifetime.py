"""A matcher among threads and processes: used, closed, forked, pickled."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_onnx import crops

from cats.core.errors import BackendError
from cats.core.process import child_environment
from cats.runtime import Matcher


@pytest.fixture(scope="module")
def matcher(model_file: Path) -> Matcher:
    return Matcher(model_file, threads=1)


def test_one_matcher_in_many_threads(matcher: Matcher, texture: np.ndarray) -> None:
    a, b, _ = crops(texture)
    expected = {side: matcher.match(*pair).flow for side, pair in enumerate([(a, b), (b, a)])}
    with ThreadPoolExecutor(4) as pool:
        flows = list(pool.map(lambda side: matcher.match(*((a, b), (b, a))[side]).flow, [0, 1] * 8))
    for index, flow in enumerate(flows):
        np.testing.assert_array_equal(flow, expected[index % 2])


def test_a_match_shows_itself_in_one_line_and_a_closed_matcher_says_so(model_file: Path, texture: np.ndarray) -> None:
    with Matcher(model_file) as matcher:
        match = matcher.match(texture[:192, :320], texture, forward_backward=True)
        assert repr(matcher).startswith(f"Matcher('{model_file}': fp32, onnxruntime ")
    confidence = f"{match.confidence.mean():.2f}"
    assert repr(match) == f"Match(a 320x192 -> b 640x480, grid 16, mean confidence {confidence}, both ways)"
    assert str(match) == repr(match)
    with pytest.raises(BackendError, match=r"tiny\.onnx is closed"):
        matcher.match(texture, texture)
    with pytest.raises(BackendError, match=r"tiny\.onnx is closed"):
        list(matcher.match_many([(texture, "missing.jpg")], return_errors=True))
    with pytest.raises(BackendError, match=r"tiny\.onnx is closed"):
        matcher.backend.run({})
    matcher.close()  # once more does nothing


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_closing_waits_for_the_runs_of_other_threads(model_file: Path, texture: np.ndarray, backend: str) -> None:
    pytest.importorskip(backend)
    matcher = Matcher(model_file, backend, threads=1)

    def work(_: int) -> str:
        for done in range(1000):
            try:
                assert matcher.match(texture, texture).flow.shape == (2, 16, 16)
            except BackendError as error:
                return f"{'some' if done else 'none'}: {error}"
        return "never closed"

    with ThreadPoolExecutor(3) as pool:
        ends = [pool.submit(work, number) for number in range(3)]
        while not matcher.backend.lifetime._uses:
            assert not any(end.done() for end in ends)
        matcher.close()
        assert matcher.backend.lifetime._uses == 0
    assert all("is closed: open the file again" in end.result() for end in ends), [end.result() for end in ends]


FORK = """
import multiprocessing, os, sys
import numpy
from cats.core.errors import BackendError
from cats.runtime import Matcher
image = numpy.zeros((32, 40, 3), numpy.uint8)
matcher = Matcher(sys.argv[1], sys.argv[2], threads=1)
matcher.match(image, image)
child = os.fork()
if child == 0:
    try:
        matcher.match(image, image)
    except BackendError as error:
        print(error, flush=True)
    matcher.close()
    sys.exit(7)  # an ordinary end, which releases what Python holds
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print(matcher.match(image, image).flow.shape)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_forked_child_is_told_and_ends(model_file: Path, backend: str) -> None:
    pytest.importorskip(backend)
    command = [sys.executable, "-c", FORK, str(model_file), backend]
    done = subprocess.run(
        command, env=child_environment(), capture_output=True, text=True, check=True, timeout=300
    ).stdout.splitlines()
    assert len(done) == 2, done
    assert "was loaded before this process was forked" in done[0]
    assert "load it in each worker" in done[0]
    assert done[1] == "(2, 16, 16)"


def test_a_matcher_is_pickled_as_its_path_and_options(
    model_file: Path, texture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_file.parent)
    with Matcher(model_file.name, threads=1, max_pixels=400_000) as matcher:
        expected = matcher.match(texture, texture).flow
        data = pickle.dumps(matcher)
    assert len(data) < 1000
    monkeypatch.chdir("/")  # as a worker elsewhere
    with pickle.loads(data) as again:
        np.testing.assert_array_equal(again.match(texture, texture).flow, expected)
        assert (again.max_pixels, again.backend.threads) == (400_000, 1)
