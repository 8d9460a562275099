"""Everything that the libraries of a machine with an NVIDIA GPU allow, in one command, without a network.

For ``cats-tiny`` and the published structure (ResNet-101 with weights from a formula), on the demo photos: PyTorch on
the GPU against PyTorch on the CPU; each exported file (float32, and typed in float16) operator by operator in PyTorch
on the GPU, in ONNX Runtime's GPU providers, and as an engine of each TensorRT that loads, against the float32 file in
ONNX Runtime on the CPU; and the tests marked gpu. Differences are of the flow, in pixels at the model's input size. A
step that fails, or that this machine does not allow, is recorded with its reason.

Without a network, install the toolkit itself by ``pip install --no-build-isolation --no-deps -e .`` first, and bring
the wheels of its base dependencies (all pure Python but numpy and Pillow) where they are missing. TensorRT-RTX then
needs no more than its Python module and its two libraries on the module path.

Usage: python -m cats.benchmarks.gpu_suite [--model assets/cats-tiny.pt --model resnet101] [--output FILE.json]
"""

from __future__ import annotations

import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import torch
import typer

from cats.assets import asset
from cats.benchmarks.models import tamed_resnet101
from cats.benchmarks.onnx_on_torch import OnnxOnTorch
from cats.checkpoints import load_checkpoint
from cats.core.console import execute, new_app, note, print_json
from cats.core.errors import BackendError
from cats.core.files import write_text
from cats.export.export import export_onnx
from cats.export.pairs import demo_pairs
from cats.model import CATs
from cats.runtime import Matcher
from cats.runtime.backends.base import Backend
from cats.runtime.commands.doctor import doctor
from cats.runtime.hardware import nvidia
from cats.runtime.tensorrt.engine import build_engine
from cats.runtime.tensorrt.flavours import FLAVOURS

HERE = Path(__file__).resolve().parent


PROVIDERS = ("cuda", "tensorrt", "tensorrt-rtx")
ROUNDS = 50

app = new_app()
Arrays = dict[str, np.ndarray]


def median_ms(run: Callable[[], Any]) -> float:
    """Median time of a call after a warm-up; the call returns when the GPU is done."""
    for _ in range(5):
        run()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1000)
    return round(statistics.median(times), 3)


def pixels(flow: np.ndarray, expected: np.ndarray, model: CATs) -> dict[str, float]:
    """Difference of two flows in pixels at the model's input size: median, p99, max."""
    cell = model.config.image_size / model.config.feature_size
    distance = np.linalg.norm(flow.astype(np.float64) - expected, axis=1) * cell
    parts = (np.median(distance), np.percentile(distance, 99), distance.max())
    return dict(zip(("median_px", "p99_px", "max_px"), (round(float(part), 5) for part in parts), strict=True))


def on_torch(model: CATs, feeds: Arrays) -> dict[str, Any]:
    """PyTorch, float32 without TF32, and under autocast to float16."""
    if not torch.cuda.is_available():
        raise BackendError(f"torch {torch.__version__} finds no GPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    host = {name: torch.from_numpy(value) for name, value in feeds.items()}
    results: dict[str, Any] = {"torch": torch.__version__}
    with torch.inference_mode():
        expected = model(host["image_a"], host["image_b"]).numpy()
        device = model.to("cuda")
        images = [host[name].cuda() for name in ("image_a", "image_b")]
        for precision in ("fp32", "fp16"):
            with torch.autocast("cuda", torch.float16, enabled=precision == "fp16"):

                def run() -> np.ndarray:
                    flow: np.ndarray = device(*images).float().cpu().numpy()
                    return flow

                results[precision] = {**pixels(run(), expected, model), "ms": median_ms(run)}
        model.to("cpu")
    return results


def on_torch_typed(onnx_file: Path, feeds: Arrays, expected: np.ndarray, model: CATs) -> dict[str, Any]:
    """The file's own operators and types by PyTorch on the GPU."""
    if not torch.cuda.is_available():
        raise BackendError(f"torch {torch.__version__} finds no GPU")
    run_file = OnnxOnTorch(onnx.load(onnx_file), "cuda")
    arrays = {name: torch.from_numpy(value).cuda() for name, value in feeds.items()}

    def run() -> np.ndarray:
        flow: np.ndarray = run_file(arrays)["flow"].cpu().numpy()
        return flow

    return {**pixels(run(), expected, model), "ms": median_ms(run)}


def on_backend(backend: Backend, feeds: Arrays, expected: np.ndarray, model: CATs) -> dict[str, Any]:
    """A loaded file on host arrays."""
    found = backend.run(feeds)["flow"]
    return {
        "what": backend.describe(),
        **pixels(found, expected, model),
        "ms": median_ms(lambda: backend.run(feeds)),
    }


def on_engine(file: Path, flavour: str, feeds: Arrays, expected: np.ndarray, model: CATs) -> dict[str, Any]:
    """An engine built here, on host arrays, as a CUDA graph, and on arrays of the GPU."""
    start = time.perf_counter()
    plan = build_engine(file, file.with_suffix(f".{flavour}.plan"), flavour=flavour)
    results: dict[str, Any] = {"build_s": round(time.perf_counter() - start, 2), "plan_bytes": plan.stat().st_size}
    problem = nvidia().problem
    if problem:
        return {**results, "not_run": problem}
    for name, graph in (("eager", False), ("cuda_graph", True)):
        with Matcher(plan, cuda_graph=graph) as matcher:
            results[name] = on_backend(matcher.backend, feeds, expected, model)
            if not graph:
                arrays = {key: torch.from_numpy(value).cuda() for key, value in feeds.items()}

                def run(backend: Any = matcher.backend, arrays: Any = arrays) -> torch.Tensor:
                    stream = torch.cuda.current_stream()
                    return torch.from_dlpack(backend.run_device(arrays, stream=stream)["flow"]).cpu()

                results["device_arrays"] = {**pixels(run().numpy(), expected, model), "ms": median_ms(run)}
    return results


def on_provider(file: Path, provider: str, feeds: Arrays, expected: np.ndarray, model: CATs) -> dict[str, Any]:
    """A GPU provider of ONNX Runtime on host arrays."""
    with Matcher(file, provider=provider) as matcher:
        return on_backend(matcher.backend, feeds, expected, model)


def gpu_tests() -> dict[str, Any]:
    """The tests marked gpu."""
    tests = str(HERE.parent / "tests")
    # Files of tests that need what is not installed there, such as hypothesis, must not stop the others.
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--continue-on-collection-errors", tests]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"exit": done.returncode, "end": done.stdout.strip().splitlines()[-12:]}


def load_model(name: str) -> CATs:
    """A checkpoint, or the published structure."""
    return tamed_resnet101("formula") if name == "resnet101" else load_checkpoint(Path(name)).model.eval()


def photos(model: CATs, batch: int) -> Arrays:
    """Inputs of the first demo pairs."""
    pairs = [pair for pair, _ in zip(demo_pairs().inputs(model.config.preprocessing), range(batch), strict=False)]
    return {
        name: np.stack(images) for name, images in zip(("image_a", "image_b"), zip(*pairs, strict=True), strict=True)
    }


def on_model(model: CATs, batch: int, folder: Path) -> dict[str, Any]:
    """Every step with one model: name of the step -> figures, or why it did not run."""
    feeds, found = photos(model, batch), {"torch": attempt("torch", lambda: on_torch(model, photos(model, batch)))}
    reference: np.ndarray | None = None
    for precision in ("fp32", "fp16"):
        file = folder / f"model.{precision}.onnx"
        found[f"export {precision}"] = attempt(f"export {precision}", partial(_export, model, file, precision))
        if not file.is_file():
            continue
        if reference is None:
            with Matcher(file, provider="cpu") as matcher:
                reference = matcher.backend.run(feeds)["flow"]
        steps = {f"torch {precision}, the file's operators": partial(on_torch_typed, file)}
        steps |= {f"onnxruntime {name} {precision}": partial(on_provider, file, name) for name in PROVIDERS}
        steps |= {f"{flavour} {precision}": partial(on_engine, file, flavour) for flavour in FLAVOURS}
        for name, work in steps.items():
            found[name] = attempt(name, partial(work, feeds, reference, model))
    return found


def attempt(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Figures of a step, or the reason why there are none: one library's failure is a result, the others still run."""
    note(name)
    try:
        result = work()
    except Exception as error:
        result = {"not_run": f"{type(error).__name__}: {error}"[:500]}
    note(f"  {result}")
    return result


@app.command()
def main_command(
    model: Annotated[
        list[str] | None,
        typer.Option(help="Checkpoint, or resnet101. Default: cats-tiny and resnet101.", show_default=False),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Default: benchmarks/results/gpu-DATE.json.")] = None,
    batch: Annotated[int, typer.Option(help="Pairs of one run, 1 to 8.", min=1, max=8)] = 1,
    tests: Annotated[bool, typer.Option("--tests/--no-tests", help="Run the tests marked gpu too.")] = True,
) -> None:
    """Run what this machine allows and write a dated results file."""
    today = datetime.date.today().isoformat()
    found: dict[str, Any] = {}
    for name in model or [str(asset("cats-tiny.pt")), "resnet101"]:
        note(name)
        with tempfile.TemporaryDirectory() as folder:
            found[Path(name).stem] = on_model(load_model(name), batch, Path(folder))
    if tests:
        found["gpu tests"] = attempt("gpu tests", gpu_tests)
    document = {"date": today, "batch": batch, "rounds": ROUNDS, **doctor(), "results": found}
    path = output or HERE / "results" / f"gpu-{today}.json"
    write_text(path, json.dumps(document, indent=1) + "\n")
    note(f"wrote {path}")
    print_json(found)


def _export(model: CATs, path: Path, precision: str) -> dict[str, Any]:
    report = export_onnx(model, path, fp16=precision == "fp16", verified=False)
    return {"bytes": path.stat().st_size, "precision": next(iter(report.metadata.values())).precision}


def main() -> None:
    """Entry point."""
    execute(app)


if __name__ == "__main__":
    main()
