"""TensorRT-RTX on a GPU that it is not documented for (compute capability 9.0): the exact words, or the numbers."""

from __future__ import annotations

import ctypes
import lzma
import sys
import time
from pathlib import Path

from cats.benchmarks.gpu.kit import CARRIED, DRY, MODELS, device_ms, host_ms, photos, pixels, record, step

FOLDER = Path("/tmp/kit/rtx")
NAMES = ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1")


def unpack() -> dict:
    import zipfile

    FOLDER.mkdir(parents=True, exist_ok=True)
    parts = sorted(CARRIED.glob("rtx?/rtx.xz.*"))
    packed = b"".join(Path(part).read_bytes() for part in parts)
    start, data = time.perf_counter(), lzma.decompress(packed)
    sizes = [int(line) for line in (CARRIED / "rtx-sizes").read_text().split()]
    for name, size in zip(NAMES, sizes, strict=True):
        (FOLDER / name).write_bytes(data[:size])
        data = data[size:]
        ctypes.CDLL(str(FOLDER / name), mode=ctypes.RTLD_GLOBAL)
    zipfile.ZipFile(next(CARRIED.glob("wheels-rtx/tensorrt_rtx_cu13_bindings-*.whl"))).extractall(FOLDER)
    # The meta package finds its libraries in a package of their own, which is not here: they are loaded already.
    (FOLDER / "tensorrt_rtx").mkdir(exist_ok=True)
    (FOLDER / "tensorrt_rtx" / "__init__.py").write_text(
        "from tensorrt_rtx_bindings import *\nfrom tensorrt_rtx_bindings import __version__\n"
    )
    sys.path.insert(0, str(FOLDER))
    import tensorrt_rtx

    return {
        "version": tensorrt_rtx.__version__,
        "parts": len(parts),
        "unpacked_s": round(time.perf_counter() - start, 1),
    }


def messages(trt):
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.said: list[str] = []

        def log(self, severity, text) -> None:
            if severity <= trt.ILogger.Severity.WARNING or "apabilit" in text:
                self.said.append(f"{severity.name}: {text}"[:400])

    return Logger()


def plain(target: str) -> dict:
    """Builder, runtime and context by TensorRT's own interface, with every word it says."""
    import tensorrt_rtx as trt

    from cats.assets import asset

    logger = messages(trt)
    builder, found = trt.Builder(logger), {}
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(asset("cats-tiny.onnx"))):
        return {"parser": [str(parser.get_error(i)) for i in range(parser.num_errors)]}
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for index in range(network.num_inputs):
        profile.set_shape(network.get_input(index).name, *[(n, 3, 256, 256) for n in (1, 1, 4)])
    config.add_optimization_profile(profile)
    if target:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    found["build_s"], found["plan_mb"] = round(time.perf_counter() - start, 2), plan and round(plan.nbytes / 1e6, 1)
    if plan:
        runtime = trt.Runtime(logger)
        found["validity"] = str(runtime.get_engine_validity(bytes(plan)))
        engine = runtime.deserialize_cuda_engine(bytes(plan))
        found["engine"] = str(engine)
        if engine:
            found["context"] = str(engine.create_execution_context())
    return {**found, "said": logger.said[-12:]}


def toolkit(file: Path, target: str | None) -> dict:
    """cats-build and Matcher, as a user has them; then the same as a CUDA graph."""
    import torch

    from cats.runtime import Matcher
    from cats.runtime.tensorrt.engine import EngineOptions, build_engine

    targets = (target,) if target else ()
    plan = build_engine(
        file,
        FOLDER / f"{file.stem}.{target}.plan",
        flavour="tensorrt-rtx",
        options=EngineOptions(targets=targets),
        force=True,
    )
    found: dict = {"plan_mb": round(plan.stat().st_size / 1e6, 1)}
    with Matcher(file, provider="cpu") as reference:
        feeds = photos(reference.metadata.preprocessing, 1)
        expected = reference.backend.run(feeds)["flow"]
    for graph in (False, True):
        with Matcher(plan, cuda_graph=graph) as matcher:
            run = lambda: matcher.backend.run(feeds)["flow"]  # noqa: E731
            found[f"graph {graph}"] = {**pixels(run(), expected), **host_ms(run), "what": matcher.backend.describe()}
            arrays = {k: torch.from_numpy(v).cuda() for k, v in feeds.items()}
            stream = torch.cuda.current_stream()
            found[f"graph {graph}, on the GPU"] = device_ms(lambda: matcher.backend.run_device(arrays, stream=stream))  # noqa: B023
    return found


def main() -> None:
    from cats.assets import asset

    step("unpack", unpack, gpu=False)
    for target in ("", "SM80") if DRY else ("", "CURRENT", "SM80", "SM89", "SM120"):
        step(f"TensorRT-RTX, target {target or 'default'}", lambda t=target: plain(t), gpu=False)
    files = [
        Path(asset("cats-tiny.onnx")),
        *sorted((CARRIED / "models").glob("*.onnx")),
        *sorted(MODELS.glob("resnet101*.onnx")),
    ]
    for file in files:
        for target in (None, "sm80"):
            step(f"toolkit {file.name}, target {target}", lambda f=file, t=target: toolkit(f, t))
    record("done")


if __name__ == "__main__":
    main()
