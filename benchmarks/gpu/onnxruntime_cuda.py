"""ONNX Runtime's CUDA provider: parity with its CPU provider through the toolkit, and what other settings give."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import torch  # before onnxruntime: brings the CUDA libraries into the process

from cats.assets import asset
from cats.benchmarks.gpu.kit import CARRIED, DEVICE, DRY, MODELS, host_ms, photos, pixels, record, step, wait_for
from cats.core.metadata import read_onnx_metadata
from cats.runtime import Matcher
from cats.runtime.backends.ort import OnnxRuntimeBackend
from cats.runtime.commands.doctor import doctor

PROVIDER = "CPUExecutionProvider" if DRY else "CUDAExecutionProvider"
BATCHES = (1,) if DRY else (1, 8, 32)


def reference(file: Path, batch: int = 4):
    metadata = read_onnx_metadata(file)
    feeds = photos(metadata.preprocessing, batch)
    return feeds, OnnxRuntimeBackend(file, provider="cpu").run(feeds)


def toolkit(file: Path, against: Path | None = None) -> dict:
    """As a user runs it: host arrays in and out. ``against`` is the float32 file, for one that rounds."""
    feeds, expected = reference(file)
    with Matcher(file, provider=DEVICE) as matcher:
        backend = matcher.backend
        found = backend.run(feeds)
        result = {
            "what": backend.describe(), "to_cpu": pixels(found["flow"], expected["flow"]),
            "confidence_max": float(np.abs(found["confidence"] - expected["confidence"]).max()),
        }  # fmt: skip
        if against is not None:
            result["to_fp32"] = pixels(found["flow"], reference(against)[1]["flow"])
        for batch in BATCHES:
            some = photos(matcher.metadata.preprocessing, batch)
            start = time.perf_counter()
            backend.run(some)
            result[f"first run of batch {batch}, s"] = round(time.perf_counter() - start, 2)
            result[f"batch {batch}"] = {
                **(times := host_ms(lambda some=some: backend.run(some))),
                "pairs_per_s": round(batch / times["ms"] * 1000, 1),
            }
        result["match photos"] = host_ms(
            lambda: matcher.match(asset("astronaut.jpg"), asset("grace_hopper.jpg")), 5 if DRY else 20
        )
    return result


def session(file: Path, batch: int, options: dict[str, str], graph: bool) -> dict:
    """Inputs and outputs stay on the GPU; with ``graph``, the whole run is one CUDA graph."""
    feeds, expected = reference(file, batch)
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    options = {} if DRY else {"device_id": "0", "use_tf32": "0", **options, "enable_cuda_graph": str(int(graph))}
    made = ort.InferenceSession(str(file), settings, providers=[(PROVIDER, options)], enable_fallback=0)
    if made.get_providers()[0] != PROVIDER:
        raise RuntimeError(f"runs on {made.get_providers()}")
    binding = made.io_binding()
    kept = {name: ort.OrtValue.ortvalue_from_numpy(value, DEVICE, 0) for name, value in feeds.items()}
    for name, value in kept.items():
        binding.bind_ortvalue_input(name, value)
    outputs = {
        name: ort.OrtValue.ortvalue_from_shape_and_type(value.shape, np.float32, DEVICE, 0)
        for name, value in expected.items()
    }
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)

    def run() -> None:
        made.run_with_iobinding(binding)
        if not DRY:
            torch.cuda.synchronize()

    for _ in range(3):
        run()
    times = host_ms(run)
    return {
        **pixels(outputs["flow"].numpy(), expected["flow"]),
        **times,
        "pairs_per_s": round(batch / times["ms"] * 1000, 1),
    }


QUICK = {"cudnn_conv_algo_search": "HEURISTIC"}  # the exhaustive search takes seconds for each session and batch
SETTINGS = {
    "heuristic": QUICK, "nhwc": {**QUICK, "prefer_nhwc": "1"}, "tf32": {**QUICK, "use_tf32": "1"},
    "nhwc tf32": {**QUICK, "prefer_nhwc": "1", "use_tf32": "1"}, "exhaustive": {},
}  # fmt: skip


def arrays_on_gpu(library: str) -> dict:
    """Arrays on the GPU in and out: what host arrays give, though the inputs are computed late, and the results read
    late, after they were let go and another run took their memory."""
    with Matcher(asset("cats-tiny.onnx"), provider="cuda") as matcher:
        feeds = photos(matcher.metadata.preprocessing, 4)
        expected, found = matcher.backend.run(feeds), {}
        streams, late, take = {"torch": with_torch, "cupy": with_cupy}[library](list(feeds.values()))
        for name, (inside, stream) in streams.items():
            apart = {"flow": 0.0, "confidence": 0.0}
            for _ in range(5):
                with inside:
                    match = matcher.match(*late(), stream=stream)
                    copies = {"flow": take(match.flow), "confidence": take(match.confidence)}
                    del match
                    matcher.match(*late()[::-1], stream=stream)
                for output, copy in copies.items():
                    difference = float(np.abs(copy() - expected[output]).max())
                    apart[output] = max(apart[output], difference)
            found[name] = apart
        for batch in (1, 4):
            some = [array[:batch] for array in late()]
            host = {key: value[:batch] for key, value in feeds.items()}
            found[f"batch {batch}"] = host_ms(lambda some=some: matcher.match(*some))
            found[f"batch {batch}, host arrays"] = host_ms(lambda host=host: matcher.backend.run(host))
    worst = max(value for apart in list(found.values())[: len(streams)] for value in apart.values())
    if worst > 1e-3:
        raise RuntimeError(f"results are {worst} apart from those of host arrays: {found}")
    return found


def with_torch(images: list[np.ndarray]):
    """Streams, as a block to work in and what the matcher is told; inputs that come late; a late copy of a result."""
    kept, big = [torch.from_numpy(value).cuda() for value in images], torch.randn(4096, 4096, device="cuda")

    def late() -> list[torch.Tensor]:
        zero = (big @ big @ big @ big)[0, 0] * 0
        return [value + zero for value in kept]

    def take(result):
        copy = torch.from_dlpack(result) + (big @ big @ big @ big)[0, 0] * 0
        return lambda: (torch.cuda.synchronize(), copy.cpu().numpy())[1]

    other = torch.cuda.Stream()
    torch.cuda.synchronize()
    streams = {
        "default stream": (contextlib.nullcontext(), None),
        "default stream, named": (contextlib.nullcontext(), torch.cuda.default_stream()),
        "other stream": (torch.cuda.stream(other), None),
        "other stream, named": (torch.cuda.stream(other), other),
    }
    return streams, late, take


def with_cupy(images: list[np.ndarray]):
    """As :func:`with_torch`."""
    import cupy

    kept = [cupy.asarray(value) for value in images]
    big = cupy.random.default_rng(0).standard_normal((4096, 4096), dtype=cupy.float32)

    def late() -> list:
        zero = (big @ big @ big @ big)[0, 0] * 0
        return [value + zero for value in kept]

    def take(result):
        copy = cupy.from_dlpack(result) + (big @ big @ big @ big)[0, 0] * 0
        return lambda: (cupy.cuda.Device().synchronize(), cupy.asnumpy(copy))[1]

    other = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    streams = {
        "default stream": (contextlib.nullcontext(), None),
        "other stream": (other, None),
        "other stream, named": (other, other),
    }
    return streams, late, take


OPERATORS = {
    "AveragePool": "y = AveragePool<kernel_shape=[4,4], strides=[4,4]>(x)",
    "SpaceToDepth": "y = SpaceToDepth<blocksize=4>(x)",
    "ReduceL2": "axis = Constant<value = int64[1] {1}>() y = ReduceL2(x, axis)",
    "ReduceMean": "axis = Constant<value = int64[1] {1}>() y = ReduceMean(x, axis)",
    "Softmax over a middle axis": "y = Softmax<axis=1>(x)",
}
"""Of the tests' hand-made model, which gave another flow on an H200 than on the CPU."""


def operators() -> dict:
    """Largest difference of each operator from the CPU provider."""
    x, found = np.random.default_rng(0).standard_normal((2, 48, 64, 64)).astype(np.float32), {}
    for name, text in OPERATORS.items():
        model = onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["": 18]> g (float[2,48,64,64] x) => (float y) {{ {text} }}'
        )
        del model.graph.output[0].type.tensor_type.shape.dim[:]
        model.graph.output[0].type.tensor_type.ClearField("shape")
        data = model.SerializeToString()
        expected, result = (
            ort.InferenceSession(data, providers=[provider]).run(None, {"x": x})[0]
            for provider in ("CPUExecutionProvider", PROVIDER)
        )
        found[name] = {"max": float(np.abs(result - expected).max()), "nan": int(np.isnan(result).sum())}
    return found


def main() -> None:
    record("onnxruntime", version=ort.__version__, providers=ort.get_available_providers(), file=ort.__file__)
    tiny = Path(asset("cats-tiny.onnx"))
    step("toolkit cats-tiny fp32", lambda: toolkit(tiny), gpu=not DRY)
    for library in ("torch", "cupy"):
        step(f"arrays on the GPU, {library}", lambda library=library: arrays_on_gpu(library))
    step("operators", operators, gpu=not DRY)
    if "--arrays" in sys.argv:  # nothing else
        return
    step(
        "doctor",
        lambda: {key: value for key, value in doctor().items() if key in ("backends", "choice", "warnings")},
        gpu=False,
    )
    for file in [*sorted((CARRIED / "models").glob("*.onnx")), *sorted(MODELS.glob("cats-tiny.fp16.onnx"))]:
        step(f"toolkit {file.name}", lambda file=file: toolkit(file, tiny), gpu=not DRY)
    for name in ("resnet101.fp32.onnx", "resnet101.fp16.onnx"):
        path = MODELS / name
        try:
            wait_for(name, 1 if DRY else 60)
        except FileNotFoundError as error:
            record(name, failed=str(error))
            continue
        step(
            f"toolkit {name}",
            lambda path=path: toolkit(path, MODELS / "resnet101.fp32.onnx" if "fp16" in path.name else None),
            gpu=not DRY,
        )
        for batch in BATCHES[::2]:
            step(f"{name} as a CUDA graph, batch {batch}", lambda p=path, b=batch: session(p, b, QUICK, True))
        for label, options in list(SETTINGS.items())[: 1 if DRY else None]:
            if "fp16" in name and "tf32" in label:
                continue
            for batch in BATCHES[::2]:
                step(
                    f"{name} on the GPU, {label}, batch {batch}",
                    lambda p=path, b=batch, o=options: session(p, b, o, False),
                    gpu=not DRY,
                )
    step("cats-tiny on the GPU, batch 1", lambda: session(tiny, 1, QUICK, False), gpu=not DRY)
    step("cats-tiny as a CUDA graph, batch 1", lambda: session(tiny, 1, QUICK, True))
    for provider in ("tensorrt", "tensorrt-rtx"):
        step(f"provider {provider}", lambda p=provider: {"what": OnnxRuntimeBackend(tiny, provider=p).describe()})
    record("done", argv=sys.argv[1:])


if __name__ == "__main__":
    main()
