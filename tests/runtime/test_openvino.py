"""The OpenVINO backend: equal to ONNX Runtime, explicit about precision and device, safe in threads."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cats.assets import asset
from cats.core.errors import BackendError, InputError, ModelFileError
from cats.core.process import child_environment
from cats.runtime import Matcher
from cats.runtime.backends.openvino import shared_core

pytest.importorskip("openvino")
onnx = pytest.importorskip("onnx")

MODEL, PAIR = asset("cats-tiny.onnx"), (asset("astronaut.jpg"), asset("grace_hopper.jpg"))


@pytest.fixture(scope="module")
def matcher():
    with Matcher(MODEL, backend="openvino") as opened:
        yield opened


def test_the_flow_is_that_of_onnx_runtime(matcher):
    pytest.importorskip("onnxruntime")
    with Matcher(MODEL, backend="onnxruntime") as reference:
        expected = reference.match(*PAIR)
    found = matcher.match(*PAIR)
    assert np.percentile(np.abs(found.flow - expected.flow) * 16, 99) <= 0.05  # cells of 16 pixels
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-3)


def test_threads_do_not_mix_their_results(matcher):
    pairs = [PAIR, PAIR[::-1]] * 3
    alone = [matcher.match(*pair).flow for pair in pairs[:2]] * 3
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda pair: matcher.match(*pair).flow, pairs))
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert np.abs(alone[0] - alone[1]).max() > 0.5  # else a mix-up would not be seen


def test_a_batch_is_what_its_pairs_are(matcher):
    rng = np.random.default_rng(0)
    feeds = {spec.name: rng.standard_normal((2, *spec.shape[1:])).astype(spec.dtype) for spec in matcher.backend.inputs}
    both = matcher.backend.run(feeds)
    for index in range(2):
        alone = matcher.backend.run({name: value[index : index + 1] for name, value in feeds.items()})
        for name, value in alone.items():
            np.testing.assert_allclose(both[name][index : index + 1], value, atol=1e-3)


def test_it_says_what_it_runs_on(matcher):
    assert {"openvino", "CPU", "fp32", "latency"} <= set(matcher.backend.describe().replace(",", "").split())


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"precision": "fp8"}, InputError, "no precision 'fp8'"),
        ({"hint": "fast"}, InputError, "no hint 'fast'"),
        ({"threads": 0}, InputError, "at least 1"),
        ({"device": 0}, InputError, "is a name"),
        ({"device": "ABACUS"}, BackendError, "no device ABACUS"),
        ({"provider": "cuda"}, InputError, "no setting provider"),
    ],
)
def test_settings_that_are_not_there_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        Matcher(MODEL, backend="openvino", **options)


def test_bf16_runs_within_a_pixel_or_is_refused_by_name(matcher):
    able = "BF16" in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if not able:
        with pytest.raises(BackendError, match="does not compute in bf16"):
            Matcher(MODEL, backend="openvino", precision="bf16")
        return
    with Matcher(MODEL, backend="openvino", precision="bf16") as opened:
        difference = np.linalg.norm(opened.match(*PAIR).flow - matcher.match(*PAIR).flow, axis=0) * 16
        assert 0 < np.percentile(difference, 99) <= 1  # pixels
        assert "bf16" in opened.backend.describe()


def test_operators_of_onnx_runtime_are_named(tmp_path):
    model = onnx.load(MODEL)
    model.graph.node[0].domain, model.graph.node[0].op_type = "com.microsoft", "FusedConv"
    path = tmp_path / "ort.onnx"
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match=r"com\.microsoft\.FusedConv"):
        Matcher(path, backend="openvino")


def test_a_damaged_graph_is_one_error(tmp_path):
    path = tmp_path / "cut.onnx"
    shutil.copy(MODEL, path)
    model = onnx.load(path)
    model.graph.node[0].input[0] = "nowhere"
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match=r"openvino .* cannot load"):
        Matcher(path, backend="openvino")


SIGNAL_AFTER_CLOSE = """
import faulthandler, gc, signal, sys, threading, time
from cats.runtime import Matcher
faulthandler.enable()  # as pytest does: signals are then handled on the thread's alternate stack
signal.signal(signal.SIGALRM, lambda *_: print("handled", flush=True))
opened = [Matcher(sys.argv[1], backend="openvino")]
thread = threading.Thread(target=lambda: opened.pop().close())
thread.start()
thread.join()
gc.collect()
signal.setitimer(signal.ITIMER_REAL, 0.01)
time.sleep(0.5)
"""


def test_signals_are_safe_after_another_thread_closed_the_last_matcher():
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_AFTER_CLOSE, MODEL], env=child_environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_a_process_has_one_core():
    with ThreadPoolExecutor(4) as pool:
        assert len({id(core) for core in pool.map(lambda _: shared_core(), range(8))}) == 1
