"""libcats with the provider ``cuda``: images, tensors on the GPU, streams and threads, against Python on the CPU."""

from __future__ import annotations

import ctypes
import sys
import threading
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cats.assets import asset
from cats.benchmarks.gpu.kit import DRY, MODELS, device_ms, host_ms, photos, pixels, record, step
from cats.benchmarks.libcats import DeviceBatch, Library, image
from cats.runtime import Matcher
from cats.runtime.c import get_library

TINY = Path(asset("cats-tiny.onnx"))


class Case:
    """cats-tiny opened by libcats, and what Python on the CPU says of the same four pairs."""

    def __init__(self, provider: bytes, model: Path = TINY, stream: int | None = None) -> None:
        self.library = Library(Path(get_library()))
        self.opened = self.library.open(model, provider=provider, stream=stream, threads=0)
        with Matcher(model, provider="cpu") as matcher:
            self.feeds = photos(matcher.metadata.preprocessing, 4)
            self.expected = matcher.backend.run(self.feeds)
        self.device = "cuda" if provider == b"cuda" else "cpu"
        self.images = [torch.from_numpy(self.feeds[name]).to(self.device) for name in ("image_a", "image_b")]
        self.flow = torch.full((4, 2, 16, 16), float("nan"), device=self.device)
        self.confidence = torch.full((4, 16, 16), float("nan"), device=self.device)
        if self.device == "cuda":
            torch.cuda.synchronize()

    def match(self, batch: int = 4, stream: int | None = None) -> None:
        tensors = (*self.images, self.flow, self.confidence)
        given = DeviceBatch(ctypes.sizeof(DeviceBatch), *(x.data_ptr() for x in tensors), batch, stream)
        self.library.call("cats_match_device", self.opened.context, ctypes.byref(given))

    def difference(self) -> dict:
        confidence = np.abs(self.confidence.cpu().numpy() - self.expected["confidence"]).max()
        return {**pixels(self.flow.cpu().numpy(), self.expected["flow"]), "confidence_max": float(confidence)}


def tensors(provider: bytes, model: Path = TINY) -> dict:
    case = Case(provider, model)
    case.match()
    found = case.difference()
    return {
        **found,
        "batch 1": host_ms(lambda: case.match(1)),
        "batch 4": host_ms(case.match),
        "library": case.opened.info.ort_library.decode(),
    }


def own_stream() -> dict:
    """The matcher's stream: only enqueued; the time of the call is the time of the launches."""
    stream = torch.cuda.Stream()
    case = Case(b"cuda", stream=stream.cuda_stream)
    for _ in range(3):
        case.match(stream=stream.cuda_stream)
    stream.synchronize()
    found = case.difference()
    with torch.cuda.stream(stream):
        gpu = device_ms(lambda: case.match(1, stream.cuda_stream))
    return {**found, "call": host_ms(lambda: case.match(1, stream.cuda_stream)), "gpu": gpu}


def foreign_stream() -> dict:
    """Another stream than the matcher's, whose work the call must wait for."""
    case, stream = Case(b"cuda"), torch.cuda.Stream()
    whole, case.images[0] = case.images[0], torch.full_like(case.images[0], float("nan"))
    big = torch.randn(8192, 8192, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(20):
            big = big @ big * 0.001
        case.images[0].copy_(whole)
    case.match(stream=stream.cuda_stream)
    return case.difference()


def fresh_thread() -> dict:
    """A thread that never used CUDA before."""
    case, stream, problems = Case(b"cuda"), torch.cuda.Stream(), []

    def work() -> None:
        try:
            case.match(stream=stream.cuda_stream)
        except Exception as error:
            problems.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=work)
    thread.start(), thread.join()
    if problems:
        raise RuntimeError(problems[0])
    return case.difference()


def pictures(provider: bytes) -> dict:
    """Host images, as cats_match takes them, against Python on the CPU: pixels of the model's input."""
    library = Library(Path(get_library()))
    opened = library.open(TINY, provider=provider, threads=0)
    files = [asset(name) for name in ("astronaut.jpg", "grace_hopper.jpg")]
    arrays = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    pair = [image(array) for array in arrays]

    def match() -> None:
        library.call("cats_match", opened.context, *(ctypes.byref(item) for item in pair))

    match()
    flow = np.empty((2, 16, 16), np.float32)
    library.call("cats_flow", opened.context, 0, flow.ctypes.data, flow.size)
    with Matcher(TINY, provider="cpu") as matcher:
        expected = matcher.match(*files).flow
    return {**pixels(flow[None], expected[None]), **host_ms(match, 5 if DRY else 30)}


def main() -> None:
    step("tensors, cpu", lambda: tensors(b"cpu"), gpu=False)
    step("pictures, cpu", lambda: pictures(b"cpu"), gpu=False)
    step("pictures, cuda", lambda: pictures(b"cuda"))
    step("tensors, cuda", lambda: tensors(b"cuda"))
    step("own stream", own_stream)
    step("foreign stream", foreign_stream)
    step("fresh thread", fresh_thread)
    for precision in ("fp16", "fp32"):
        path = MODELS / f"resnet101.{precision}.onnx"
        if path.is_file():
            step(f"tensors, cuda, {path.name}", lambda path=path: tensors(b"cuda", path))
    record("done", argv=sys.argv[1:])


if __name__ == "__main__":
    main()
