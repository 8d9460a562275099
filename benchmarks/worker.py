"""One contestant in a process of its own: ``python -m cats.benchmarks.worker SPEC``, one JSON document a line.

A process each, so that load time and peak memory are a contestant's own, thread pools of different libraries do not
wait beside each other, and one that fails takes none of the others with it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cats.core.errors import CatsError
from cats.core.images import ImageSource, normalise, preprocess, read_image, resize
from cats.core.metadata import Preprocessing
from cats.core.protocols import OneByOne, PairFlow

Floats = NDArray[np.float32]


_GPU_WARM_UP = 3


class Contestant(OneByOne):
    """A model that runs on normalised inputs (B, 3, S, S), and on images."""

    preprocessing: Preprocessing
    description: str
    warm_up = 0
    """Runs before each one that is timed: a GPU lowers its clock while it waits for the others."""

    def run(self, a: Floats, b: Floats) -> Floats:
        """Flow (B, 2, G, G) in cells."""
        raise NotImplementedError

    def match(self, a: ImageSource, b: ImageSource) -> PairFlow:
        """Flow (2, G, G) of two images, for :func:`cats.evaluation.evaluate.evaluate`."""
        first, second = (preprocess(read_image(image), self.preprocessing)[None] for image in (a, b))
        return PairFlow(self.run(first, second)[0])


class FileContestant(Contestant):
    """A model file in one of the runtime's backends."""

    def __init__(self, spec: dict[str, Any]) -> None:
        from cats.runtime.matcher import Matcher

        self.matcher = Matcher(spec["path"], spec.get("backend"), **spec.get("options", {}))
        self.preprocessing = self.matcher.metadata.preprocessing
        self.description = self.matcher.backend.describe()
        self.warm_up = _GPU_WARM_UP if self.matcher.backend.prefers_batches else 0

    def run(self, a: Floats, b: Floats) -> Floats:
        """See :class:`Contestant`."""
        return np.asarray(self.matcher.backend.run({"image_a": a, "image_b": b})["flow"], np.float32)


class SplitContestant(Contestant):
    """Encoder and matcher as two files in one backend."""

    def __init__(self, spec: dict[str, Any]) -> None:
        from cats.runtime.backends import open_backend

        options = spec.get("options", {})
        self.encoder, self.matcher = (
            open_backend(path, spec.get("backend"), **options) for path in (spec["encoder"], spec["matcher"])
        )
        self.preprocessing = self.encoder.metadata.preprocessing
        self.description = f"{self.encoder.describe()}, encoder and matcher"

    def run(self, a: Floats, b: Floats) -> Floats:
        """See :class:`Contestant`; both images go through the encoder as one batch."""
        encoded = self.encode(np.concatenate([a, b]))
        half = len(a)
        return self.pair({k: v[:half] for k, v in encoded.items()}, {k: v[half:] for k, v in encoded.items()})

    def encode(self, images: Floats) -> dict[str, Any]:
        """Features by name."""
        return dict(self.encoder.run({"image": images}))

    def pair(self, a: dict[str, Any], b: dict[str, Any]) -> Floats:
        """Flow from the features of two batches."""
        feeds = {f"{name}_{side}": value for side, part in (("a", a), ("b", b)) for name, value in part.items()}
        return np.asarray(self.matcher.run(feeds)["flow"], np.float32)

    def one_to_many(self, image: Floats, count: int) -> dict[str, float]:
        """Milliseconds of one image against ``count``: of encoding the gallery, and of encoding a and matching."""
        start = time.perf_counter()
        gallery = [self.encode(image[None]) for _ in range(min(count, 8))]
        encode_ms = _since(start) / len(gallery) * count
        batch = self.matcher.gallery_batch
        start = time.perf_counter()
        first = self.encode(image[None])
        for begin in range(0, count, batch):
            size = min(batch, count - begin)
            parts = [gallery[(begin + k) % len(gallery)] for k in range(size)]
            b = {name: np.concatenate([part[name] for part in parts]) for name in first}
            a = {name: np.repeat(value, size, axis=0) for name, value in first.items()}
            self.pair(a, b)
        return {"match_ms": _since(start), "gallery_ms": encode_ms}


class TorchContestant(Contestant):
    """A checkpoint in PyTorch: ``authors``, ``ours``, ``compile``, or the deployment ``graph`` that is exported."""

    def __init__(self, spec: dict[str, Any]) -> None:
        import torch

        from cats.benchmarks.authors import AuthorsWay
        from cats.checkpoints import load_checkpoint
        from cats.export.graph.deployment import PairGraph

        if spec.get("threads"):
            torch.set_num_threads(spec["threads"])
        torch.set_grad_enabled(False)
        # Convolutions of PyTorch would else be in TF32, with 10 bits of mantissa, beside others in float32.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self.torch, self.device = torch, torch.device(spec.get("device", "cpu"))
        self.warm_up = _GPU_WARM_UP if self.device.type == "cuda" else 0
        model = load_checkpoint(spec["path"]).model.eval()
        if spec["variant"] == "authors":
            model = AuthorsWay(model)
        model.to(self.device)
        self.preprocessing = model.config.preprocessing
        self.call: Callable[..., Any] = model.match
        if spec["variant"] == "compile":
            self.call = torch.compile(model.match)
        elif spec["variant"] == "graph":
            self.call = PairGraph(model.cpu()).eval().to(self.device)
        name = f" ({torch.cuda.get_device_name()}, no TF32)" if self.device.type == "cuda" else ""
        self.description = f"torch {torch.__version__}, {spec['variant']}, {self.device}{name}"

    def run(self, a: Floats, b: Floats) -> Floats:
        """See :class:`Contestant`."""
        inputs = (self.torch.from_numpy(np.ascontiguousarray(x)).to(self.device) for x in (a, b))
        result: Floats = self.call(*inputs)[0].float().cpu().numpy()
        return result


KINDS: dict[str, Callable[[dict[str, Any]], Contestant]] = {
    "file": FileContestant,
    "split": SplitContestant,
    "torch": TorchContestant,
}


class Worker:
    """The commands of the protocol; each returns a JSON document."""

    def __init__(self, spec: dict[str, Any]) -> None:
        start = time.perf_counter()
        self.contestant = KINDS[spec["kind"]](spec)
        load_ms = _since(start)
        self.images = (spec["a"], spec["b"])
        start = time.perf_counter()
        self.contestant.match(*self.images)
        self.ready = {
            "description": self.contestant.description,
            "load_ms": load_ms,
            "first_ms": _since(start),
            "peak_mb": peak_memory(),
        }
        a, b = (preprocess(read_image(image), self.contestant.preprocessing) for image in self.images)
        self.a, self.b = a, b

    def run(self, batch: int = 1) -> dict[str, float]:
        """Milliseconds of one run of the model."""
        a, b = np.stack([self.a] * batch), np.stack([self.b] * batch)
        for _ in range(self.contestant.warm_up):
            self.contestant.run(a, b)
        start = time.perf_counter()
        self.contestant.run(a, b)
        return {"ms": _since(start)}

    def stages(self) -> dict[str, float]:
        """Milliseconds of each stage of one pair, from two files to the dense flow."""
        from cats.core.geometry import grid_points
        from cats.runtime.result import Match

        clock = _Clock()
        data = [Path(path).read_bytes() for path in self.images]
        clock.lap("read")
        pictures = [read_image(content) for content in data]
        clock.lap("decode")
        pre = self.contestant.preprocessing
        a, b = (normalise(resize(picture, pre.size), pre)[None] for picture in pictures)
        clock.lap("resize")
        if isinstance(self.contestant, SplitContestant):
            encoded = self.contestant.encode(np.concatenate([a, b]))
            clock.lap("encode")
            flow = self.contestant.pair({k: v[:1] for k, v in encoded.items()}, {k: v[1:] for k, v in encoded.items()})
            clock.lap("match")
        else:
            flow = self.contestant.run(a, b)
            clock.lap("model")
        sizes = [picture.size for picture in pictures]
        match = Match(flow[0], np.ones(flow.shape[-2:], np.float32), sizes[0], sizes[1])
        match.transfer(grid_points(match.size_a, 16))
        clock.lap("post")
        return clock.laps

    def many(self, count: int) -> dict[str, float]:
        """See :meth:`SplitContestant.one_to_many`."""
        assert isinstance(self.contestant, SplitContestant)
        return self.contestant.one_to_many(self.a, count)

    def flows(self, inputs: str, output: str) -> dict[str, Any]:
        """Write the flows of the inputs in an .npz (a, b: (N, 3, S, S)) as .npy."""
        with np.load(inputs) as arrays:
            pairs = list(zip(arrays["a"], arrays["b"], strict=True))
        np.save(output, np.concatenate([self.contestant.run(a[None], b[None]) for a, b in pairs]))
        return {}

    def pck(self, data: str) -> dict[str, Any]:
        """PCK@0.1 in percent, protocol ``corrected``."""
        from cats.data import open_dataset
        from cats.evaluation.evaluate import evaluate

        return {"pck": evaluate(self.contestant, open_dataset(data), ("corrected",), (0.1,)).pck(0.1)}

    def memory(self) -> dict[str, Any]:
        """Peak memory so far, in MB."""
        return {"peak_mb": peak_memory()}


def peak_memory() -> float | None:
    """Largest resident size of this process so far in MB (Linux); a parent's is not inherited as in ``ru_maxrss``."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), None)


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._start = time.perf_counter()

    def lap(self, name: str) -> None:
        self.laps[name] = _since(self._start)
        self._start = time.perf_counter()


def _since(start: float) -> float:
    return (time.perf_counter() - start) * 1000


def main() -> None:
    """Serve one contestant until stdin ends."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the protocol

    def answer(document: dict[str, Any]) -> None:
        channel.write(json.dumps(document) + "\n")
        channel.flush()

    try:
        worker = Worker(json.loads(sys.argv[1]))
    except CatsError as error:
        return answer({"error": str(error)})
    except Exception as error:  # whatever a library raises is the reason why this contestant does not run
        return answer({"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:400]})
    answer(worker.ready)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer(getattr(worker, command.pop("do"))(**command))
        except Exception as error:  # as above
            answer({"error": f"{type(error).__name__}: {str(error)[:400]}"})
    return None


if __name__ == "__main__":
    main()
