"""The TensorRT backend on a real GPU without TensorRT: cuda-core, streams, pinned memory, graphs and foreign arrays are
real, only the library that would compute is a stand-in whose engine PyTorch runs on the stream it is given."""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from cats.assets import asset
from cats.benchmarks.gpu.kit import device_ms, host_ms, load, photos, pixels, record, step
from cats.core.files import sha256_file
from cats.core.metadata import read_onnx_metadata
from cats.runtime import Matcher
from cats.runtime.backends import tensorrt as module
from cats.runtime.backends.tensorrt import TensorRTBackend
from cats.runtime.tensorrt.flavours import FLAVOURS

FOLDER = Path(tempfile.mkdtemp())


class Memory:
    """Memory at an address, for torch.as_tensor."""

    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "<f4",
            "data": (address, False),
            "version": 3,
            "strides": None,
        }


class StandIn:
    """The names that the backend uses of TensorRT, for an engine of ``inputs``, ``outputs`` (name -> shape behind the
    batch) and ``compute(tensors by name)``, which writes the outputs."""

    __version__ = "1.2.3"
    TensorIOMode = SimpleNamespace(INPUT="in")
    Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})

    def __init__(self, inputs, outputs, compute, most: int, fixed: int | None = None) -> None:
        self.shapes, self.inputs, self.compute, self.most, self.fixed = (
            {**inputs, **outputs},
            list(inputs),
            compute,
            most,
            fixed,
        )
        names = list(self.shapes)
        self.engine = SimpleNamespace(
            name="network",
            num_io_tensors=len(names),
            get_tensor_name=lambda i: names[i],
            get_tensor_shape=lambda n: (fixed or -1, *self.shapes[n]),
            get_tensor_dtype=lambda n: "f",
            get_tensor_mode=lambda n: "in" if n in self.inputs else "out",
            create_execution_context=self.context,
        )

    def takes(self, batch: int) -> bool:
        return batch == self.fixed if self.fixed else 1 <= batch <= self.most

    def Runtime(self, logger):  # noqa: N802
        return SimpleNamespace(deserialize_cuda_engine=lambda data: self.engine)

    @staticmethod
    def nptype(kind):
        return np.float32

    def context(self, config=None):
        batch, addresses = {}, {}

        def execute(handle: int) -> bool:
            # CUDA's name of the default stream is none that PyTorch knows.
            stream = torch.cuda.default_stream() if handle == 1 else torch.cuda.ExternalStream(handle)
            with torch.inference_mode(), torch.cuda.stream(stream):
                self.compute(
                    {
                        n: torch.as_tensor(Memory(addresses[n], (batch[self.inputs[0]], *s)), device="cuda")
                        for n, s in self.shapes.items()
                    }
                )
            return True

        return SimpleNamespace(
            set_input_shape=lambda n, s: batch.__setitem__(n, s[0]) or (s[1:] == self.shapes[n] and self.takes(s[0])),
            get_tensor_shape=lambda n: (batch[self.inputs[0]], *self.shapes[n]),
            set_tensor_address=lambda n, address: addresses.__setitem__(n, address) or True,
            execute_async_v3=execute,
        )


def backend(library: StandIn, **options) -> TensorRTBackend:
    module.find_flavour = lambda name: (FLAVOURS["tensorrt"], library)
    plan = FOLDER / f"{id(library)}.plan"
    plan.write_bytes(b"ftrt" + bytes(60))
    shapes = {
        n: {k: [b, *library.shapes[n]] for k, b in (("min", 1), ("opt", 1), ("max", library.most))}
        for n in library.inputs
    }
    engine = {
        "flavour": "tensorrt",
        "version": "1.2.3",
        "targets": [],
        "network": "network",
        "sha256": sha256_file(plan),
        "profiles": [] if library.fixed else [shapes],
        "source": "cats-tiny.onnx",
    }
    metadata = read_onnx_metadata(asset("cats-tiny.onnx")).with_(engine=engine)
    Path(f"{plan}.json").write_text(metadata.to_json())
    return TensorRTBackend(plan, **options)


def double(tensors) -> None:
    """y = 2 x + 1, z = -x, without allocating: may be captured."""
    torch.mul(tensors["x"], 2, out=tensors["y"])
    tensors["y"].add_(1)
    torch.neg(tensors["x"], out=tensors["z"])


def simple(fixed: int | None = None, **options) -> TensorRTBackend:
    return backend(StandIn({"x": (64,)}, {"y": (64,), "z": (64,)}, double, 4, fixed), **options)


def check(results, x) -> None:
    np.testing.assert_array_equal(np.asarray(results["y"]), 2 * x + 1)
    np.testing.assert_array_equal(np.asarray(results["z"]), -x)


def feed(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 64), np.float32)


def host_arrays() -> dict:
    engine = simple()
    for batch in (1, 3, 1, 4):
        check(engine.run({"x": feed(batch)}), feed(batch))
    return {"describes": engine.describe(), "overhead": host_ms(lambda: engine.run({"x": feed(1)}))}


def cuda_graph() -> dict:
    engine = simple(fixed=2)
    for _ in range(4):
        x = np.random.default_rng().standard_normal((2, 64), np.float32)
        check(engine.run({"x": x}), x)
    (bound,) = engine._threads.state._bound.values()
    return {"captured": bound._graph is not None, "overhead": host_ms(lambda: engine.run({"x": feed(2)}))}


def torch_arrays(stream) -> dict:
    engine = simple()
    with torch.cuda.stream(stream or torch.cuda.current_stream()):
        for batch in (1, 4, 9):  # nine are three runs
            x = torch.randn(batch, 64, device="cuda")
            results = engine.run_device({"x": x}, stream=stream)
            y, z = torch.from_dlpack(results["y"]), torch.as_tensor(results["z"], device="cuda")
            assert torch.equal(y, 2 * x + 1), batch
            assert torch.equal(z, -x), batch
            assert np.array_equal(results["y"].to_host(), y.cpu().numpy())
    return {"overhead": host_ms(lambda: (engine.run_device({"x": x[:1]}, stream=stream), torch.cuda.synchronize()))}


def ordering(take) -> dict:
    """A long computation before and after in other streams: nothing may overtake."""
    engine, wrong = simple(), 0
    big = torch.randn(4096, 4096, device="cuda")
    for _ in range(20):
        mine, theirs = torch.cuda.Stream(), torch.cuda.Stream()
        with torch.cuda.stream(theirs):
            _slow(big)
        with torch.cuda.stream(mine):
            x = (_slow(big)[:1, :64] * 0 + torch.rand(1, 64, device="cuda")).contiguous()
            results = engine.run_device({"x": x}, stream=theirs)
        with torch.cuda.stream(torch.cuda.Stream()):
            y = take(results["y"]).clone()
        torch.cuda.synchronize()
        wrong += not torch.equal(y, 2 * x + 1)
    if wrong:
        raise RuntimeError(f"{wrong} of 20 results were read before they were there")
    return {"wrong": wrong}


def as_tensor(result) -> torch.Tensor:
    return torch.as_tensor(result, device="cuda")


def _slow(big: torch.Tensor) -> torch.Tensor:
    x = big
    for _ in range(5):
        x = x @ big * 0.01
    return x


def lifetime(take, reads_in=torch.cuda.Stream) -> dict:
    """A result is let go while another stream still reads it, and the next run takes its memory."""
    engine, wrong = simple(), 0
    big = torch.randn(4096, 4096, device="cuda")
    for _ in range(20):
        reader, own = reads_in(), torch.cuda.Stream()
        x = torch.rand(1, 64, device="cuda")
        torch.cuda.synchronize()
        results = engine.run_device({"x": x}, stream=own)
        with torch.cuda.stream(reader):
            y = take(results["y"])
            _slow(big)
            copy = y.clone()
        del y, results
        for _ in range(3):
            engine.run_device({"x": x + 5}, stream=own)
        torch.cuda.synchronize()
        wrong += not torch.equal(copy, 2 * x + 1)
    if wrong:
        raise RuntimeError(f"{wrong} of 20 results were overwritten while they were read")
    return {"wrong": wrong}


def cupy_arrays() -> dict:
    import cupy

    engine = simple()
    x = cupy.random.default_rng(0).standard_normal((3, 64), dtype=cupy.float32)
    results = engine.run_device({"x": x})
    y = cupy.from_dlpack(results["y"])
    assert bool((y == 2 * x + 1).all())
    assert bool((cupy.asarray(results["z"]) == -x).all())
    return {"cupy": cupy.__version__}


def threads() -> dict:
    engine, problems = simple(), []

    def work(seed: int) -> None:
        try:
            for i in range(50):
                x = np.random.default_rng(seed * 1000 + i).standard_normal((1 + i % 4, 64), np.float32)
                check(engine.run({"x": x}), x)
        except Exception as error:
            problems.append(f"{type(error).__name__}: {error}")

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [w.start() for w in workers], [w.join() for w in workers]
    assert not problems, problems[:3]
    return {"runs": 400}


def refusals() -> dict:
    engine, said = simple(), {}
    wrong = {
        "host": torch.randn(1, 64),
        "double": torch.randn(1, 64, device="cuda").double(),
        "strided": torch.randn(64, 2, device="cuda").t()[:1],
        "grad": torch.randn(1, 64, device="cuda", requires_grad=True),
        "shape": torch.randn(1, 63, device="cuda"),
        "empty": torch.randn(0, 64, device="cuda"),
    }
    for name, value in wrong.items():
        try:
            engine.run_device({"x": value})
            said[name] = "accepted"
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"[:160]
    x = torch.randn(1, 64, device="cuda")
    assert torch.equal(torch.from_dlpack(engine.run_device({"x": x})["y"]), 2 * x + 1), "broken after refusals"
    accepted = {name for name, words in said.items() if words == "accepted"}
    assert accepted <= {"grad"}, accepted
    return said


def matcher() -> dict:
    """Matcher.match with arrays on the GPU, the model by PyTorch: the flow against PyTorch on the CPU."""
    model = load("cats-tiny")
    feeds = photos(model.config.preprocessing, 4)
    host = {name: torch.from_numpy(value) for name, value in feeds.items()}
    with torch.inference_mode():
        expected = model(host["image_a"], host["image_b"]).numpy()
    device = load("cats-tiny").cuda()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def compute(tensors) -> None:
        flow, confidence = device.match(tensors["image_a"], tensors["image_b"])
        tensors["flow"].copy_(flow), tensors["confidence"].copy_(confidence)

    library = StandIn(
        dict.fromkeys(("image_a", "image_b"), (3, 256, 256)), {"flow": (2, 16, 16), "confidence": (16, 16)}, compute, 4
    )
    plan = backend(library).path
    arrays = [host[name].cuda() for name in ("image_a", "image_b")]
    found = {}
    with Matcher(plan, cuda_graph=False) as opened:
        found["host"] = pixels(opened.backend.run(feeds)["flow"], expected)
        for name, stream in (("own stream", None), ("torch stream", torch.cuda.Stream())):
            if stream is not None:
                stream.wait_stream(torch.cuda.current_stream())
            match = opened.match(*arrays, stream=stream, forward_backward=True)
            found[name] = pixels(match.flow_on_host(), expected)
            found[f"{name}, by DLPack"] = pixels(torch.from_dlpack(match.flow).cpu().numpy(), expected)
            np.testing.assert_array_equal(match.confidence_on_host().shape, (4, 16, 16))
        demo = [asset(n) for n in ("astronaut.jpg", "grace_hopper.jpg")]
        match = opened.match(*demo)
        with Matcher(asset("cats-tiny.onnx"), provider="cpu") as reference:
            found["photos"] = pixels(match.flow[None], reference.match(*demo).flow[None])
        one = [x[:1] for x in arrays]
        found["gpu_ms"] = device_ms(lambda: opened.match(*one, stream=torch.cuda.current_stream()))
    return found


def main() -> None:
    for name, work in {
        "host arrays": host_arrays,
        "CUDA graph": cuda_graph,
        "torch, own stream": lambda: torch_arrays(None),
        "torch, caller's stream": lambda: torch_arrays(torch.cuda.Stream()),
        "torch, default stream": lambda: torch_arrays(torch.cuda.default_stream()),
        "order of streams, from_dlpack": lambda: ordering(torch.from_dlpack),
        "order of streams, as_tensor": lambda: ordering(as_tensor),
        "lifetime of results": lambda: lifetime(torch.from_dlpack),
        "lifetime of results, default stream": lambda: lifetime(torch.from_dlpack, torch.cuda.default_stream),
        "lifetime of results, as_tensor": lambda: lifetime(as_tensor),
        "CuPy": cupy_arrays,
        "threads": threads,
        "refusals": refusals,
        "Matcher": matcher,
    }.items():
        step(name, work)
    record("done", argv=sys.argv[1:])


if __name__ == "__main__":
    main()
