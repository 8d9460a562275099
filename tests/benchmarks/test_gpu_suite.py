"""``benchmarks/gpu_suite.py`` where there is no GPU: every step gives figures or says why it did not run."""

import json
import sys

import pytest
from tiny_models import tiny_model

from cats.benchmarks import gpu_suite
from cats.checkpoints import save_checkpoint
from cats.runtime.hardware import nvidia

NOT_THERE = ("albumentations", "cv2", "hypothesis", "matplotlib", "pycuda", "scipy", "tensorboard", "tensorrt")


@pytest.mark.skipif(nvidia().problem is None, reason="this machine has a GPU: run the suite itself")
def test_every_step_is_recorded(tmp_path, monkeypatch, capsys):
    for name in NOT_THERE:
        monkeypatch.setitem(sys.modules, name, None)
    save_checkpoint(tmp_path / "small.pt", tiny_model())
    results = tmp_path / "results.json"
    arguments = ["--model", str(tmp_path / "small.pt"), "--no-tests", "--batch", "2", "--output", str(results)]
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", *arguments])
    with pytest.raises(SystemExit) as end:
        gpu_suite.main()
    assert end.value.code in (0, None)
    document = json.loads(results.read_text())
    assert json.loads(capsys.readouterr().out) == document["results"]
    steps = document["results"]["small"]
    assert document["batch"] == 2
    for precision in ("fp32", "fp16"):
        assert steps[f"export {precision}"]["precision"] == precision
        assert "finds no GPU" in steps[f"torch {precision}, the file's operators"]["not_run"]
        for provider in ("cuda", "tensorrt", "tensorrt-rtx"):
            assert "needs an NVIDIA GPU" in steps[f"onnxruntime {provider} {precision}"]["not_run"]
        assert "tensorrt is not installed" in steps[f"tensorrt {precision}"]["not_run"]
        built = steps[f"tensorrt-rtx {precision}"]
        assert built["not_run"] == nvidia().problem or "not installed" in built["not_run"]


def test_steps_on_the_cpu(tmp_path):
    """The comparison itself: a file's own operators are as far from it as rounding, and photos fill the batch."""
    model = tiny_model()
    feeds = gpu_suite.photos(model, 2)
    assert {name: value.shape for name, value in feeds.items()} == dict.fromkeys(("image_a", "image_b"), (2, 3, 64, 64))
    gpu_suite._export(model, tmp_path / "m.onnx", "fp32")
    with gpu_suite.Matcher(tmp_path / "m.onnx", provider="cpu") as matcher:
        expected = matcher.backend.run(feeds)["flow"]
        figures = gpu_suite.on_backend(matcher.backend, feeds, expected, model)
    assert figures["max_px"] == 0
    assert figures["ms"] > 0
    assert gpu_suite.pixels(expected + 1, expected, model)["median_px"] == pytest.approx(8 * 2**0.5, abs=1e-3)
