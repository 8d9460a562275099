"""The example that runs a TensorRT engine from C++: compiled against stand-ins and real headers, and run."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from c_programs import program
from PIL import Image
from tiny_onnx import tiny_metadata

from cats.benchmarks import libcats
from cats.benchmarks.libcats import CC, ROOT, STRICT, compile_c
from cats.core.images import preprocess, read_image
from cats.core.metadata import Preprocessing
from cats.runtime import Matcher
from cats.runtime.result import Match

pytestmark = pytest.mark.skipif(not libcats.HAVE_COMPILER, reason="no C compiler")


def tensorrt_flags() -> list[str]:
    """Include folders of NvInfer.h and the CUDA runtime; skips where one is not here."""
    root = Path(os.environ.get("CATS_TENSORRT_ROOT", "/usr"))
    places = [root / "include", root / "include" / "x86_64-linux-gnu"]
    cuda = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include", Path("/usr/include")]
    tensorrt = next((place for place in places if (place / "NvInfer.h").is_file()), None)
    toolkit = next((place for place in cuda if (place / "cuda_runtime_api.h").is_file()), None)
    if tensorrt is None or toolkit is None or shutil.which("g++") is None:
        pytest.skip("no NvInfer.h (CATS_TENSORRT_ROOT), CUDA headers (CUDA_HOME) or g++")
    return ["-isystem", str(tensorrt), "-isystem", str(toolkit)]


def test_engine_example_compiles() -> None:
    source = ROOT / "examples" / "run_engine.cpp"
    compile_c(["g++", "-std=c++17", *STRICT, "-fsyntax-only", *libcats.INCLUDE, *tensorrt_flags(), source])


def test_engine_example_compiles_with_the_real_cuda_header() -> None:
    """Triton, which comes with torch, brings the CUDA runtime's; TensorRT's is the stand-in."""
    triton = importlib.util.find_spec("triton")
    cuda = Path(triton.origin or "").parent / "backends" / "nvidia" / "include" if triton else Path()
    if not (cuda / "cuda_runtime_api.h").is_file() or shutil.which("g++") is None:
        pytest.skip("no triton with cuda_runtime_api.h, or no g++")
    includes = ["-isystem", cuda, "-isystem", Path(__file__).parent / "c" / "tensorrt_standin"]
    source = ROOT / "examples" / "run_engine.cpp"
    compile_c(["g++", "-std=c++17", *STRICT, "-fsyntax-only", *libcats.INCLUDE, *includes, source])


def build_engine_example(folder: Path, includes: list[str], *more: str) -> Path:
    """The program run-engine, by the commands of its own comment."""
    names = ("common", "image", "json", "metadata", "geometry", "platform_posix")
    sources = [*(ROOT / "src" / f"{name}.c" for name in names), ROOT / "examples" / "read_image.c"]
    objects = []
    for source in sources:
        objects.append(folder / f"{source.stem}.o")
        compile_c([CC, "-std=c11", "-O2", "-ffp-contract=off", *libcats.INCLUDE, "-c", source, "-o", objects[-1]])
    main = ROOT / "examples" / "run_engine.cpp"
    run = folder / "run-engine"
    compile_c(["g++", "-std=c++17", *libcats.INCLUDE, *includes, main, *objects, *more, *libcats.LIBS, "-o", run])
    return run


def test_engine_example_with_a_stand_in_for_tensorrt(tmp_path: Path, scene: Path) -> None:
    """Sidecar, preprocessing, tensors by name and points, with a TensorRT whose engine is a known function."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    standin = Path(__file__).parent / "c" / "tensorrt_standin"
    run = build_engine_example(tmp_path, [f"-I{standin}"], *STRICT, "-fsanitize=address,undefined")
    plan, pictures = tmp_path / "m.plan", (scene / "a.ppm", scene / "b.ppm")
    own = Preprocessing(size=(96, 96), mean=(0.4, 0.5, 0.6))
    document = tiny_metadata(preprocessing=own, grid=(8, 8), engine={"network": "cats-1"}).to_json()
    assert "cannot read" in program(run, plan, *pictures, status=1)
    Path(f"{plan}.json").write_text(document)
    plan.write_text("standin cats-1 96 8")
    rows = np.loadtxt(program(run, plan, *pictures).splitlines())
    a, b = (preprocess(read_image(path), own).reshape(3, 8, 12, 8, 12).mean((2, 4)) for path in pictures)
    expected = Match(np.stack([a[0], b[1]]), b[2], Image.open(pictures[0]).size, Image.open(pictures[1]).size)
    assert np.abs(rows[:, 2:4] - expected.transfer(rows[:, :2])).max() < 1e-2
    assert np.abs(rows[:, 4] - expected.confidence_at(rows[:, :2])).max() < 1e-3
    plan.write_text("standin cats-2 96 8")
    assert "holds the network cats-2, its sidecar cats-1" in program(run, plan, *pictures, status=1)
    plan.write_text("junk")
    assert "magic tag does not match; build it with cats-build" in program(run, plan, *pictures, status=1)
    plan.write_text("standin cats-1 128 8")
    assert "one pair at a time" in program(run, plan, *pictures, status=1)
    Path(f"{plan}.json").write_text("{}")
    assert "invalid CATs metadata" in program(run, plan, *pictures, status=1)


@pytest.mark.gpu
def test_engine_example_equals_cats_run(tmp_path: Path, scene: Path, model_file: Path) -> None:
    flags = tensorrt_flags()
    if shutil.which("nvidia-smi") is None:
        pytest.skip("no GPU")
    from cats.runtime.tensorrt.engine import build_engine

    plan = build_engine(model_file, tmp_path / "tiny.plan", flavour="tensorrt")
    libraries = os.environ.get("CATS_TENSORRT_LIBS", "-lnvinfer -lcudart").split()
    run = build_engine_example(tmp_path, flags, *libraries)
    rows = np.loadtxt(program(run, plan, scene / "a.ppm", scene / "b.ppm").splitlines())
    match = Matcher(plan).match(scene / "a.ppm", scene / "b.ppm")
    assert np.abs(rows[:, 2:4] - match.transfer(rows[:, :2])).max() < 0.1
