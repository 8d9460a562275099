"""An exported model in ONNX Runtime, before it is a file: what verification runs.

Models typed in float16 run with every rounding to float16 made explicit, see :mod:`cats.export.fp16.emulate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from cats.core.geometry import transfer_points
from cats.core.images import ImageSource, preprocess, read_image
from cats.core.metadata import Preprocessing
from cats.core.protocols import OneByOne, PairFlow
from cats.data.photo_pairs import PhotoPairs
from cats.evaluation.parity import FRAME, Outputs
from cats.export.fp16.emulate import PEAKS, computes_in_half, emulate_fp16
from cats.runtime.backends.ort_session import OrtSession

Floats = NDArray[np.float32]


class ExportedModel(OneByOne):
    """The files of one form (:data:`cats.export.forms.FORMS`) behind one interface, on the CPU.

    Args:
        models: kind -> model.
        preprocessing: of the model.
        batch: fixed batch size of the files, None where it is free.
        open_session: loads one of them; by default so that it keeps :meth:`peaks`.
    """

    def __init__(
        self,
        models: Mapping[str, onnx.ModelProto],
        preprocessing: Preprocessing,
        batch: int | None,
        open_session: Callable[[onnx.ModelProto], Any] | None = None,
    ) -> None:
        self.in_half = any(computes_in_half(model) for model in models.values())
        self.sessions = {kind: (open_session or _session)(model) for kind, model in models.items()}
        self.preprocessing, self.batch = preprocessing, batch

    def peaks(self) -> dict[str, float]:
        """Of each tensor in float16, the largest absolute value before rounding in all runs so far."""
        found: dict[str, float] = {}
        for session in self.sessions.values():
            found |= dict(zip(session.tensors, map(float, session.peaks), strict=True))
        return found

    @property
    def takes_pixels(self) -> bool:
        """Whether the form is end-to-end."""
        return "end-to-end" in self.sessions

    def run(self, a: Floats, b: Floats) -> dict[str, Floats]:
        """Outputs for normalised images (B, 3, S, S), B as the files have it; not for form ``end-to-end``."""
        if "pair" in self.sessions:
            return self.sessions["pair"]({"image_a": a, "image_b": b})
        encoded = {side: self.sessions["encoder"]({"image": image}) for side, image in (("a", a), ("b", b))}
        feeds = {f"{name}_{side}": value for side, values in encoded.items() for name, value in values.items()}
        return self.sessions["matcher"](feeds)

    def run_pixels(self, a: Image.Image, b: Image.Image, points: Floats) -> dict[str, Floats]:
        """Outputs of form ``end-to-end`` for two RGB images and points (K, 2) of a, without the batch axis."""
        feeds = {"image_a": np.asarray(a), "image_b": np.asarray(b), "points_a": points}
        stacked = {name: np.repeat(value[None], self.batch or 1, axis=0) for name, value in feeds.items()}
        return {name: value[0] for name, value in self.sessions["end-to-end"](stacked).items()}

    def match(self, a: ImageSource, b: ImageSource) -> PairFlow:
        """Flow (2, G, G) in cells, a -> b, for :func:`cats.evaluation.evaluate.evaluate`."""
        first, second = read_image(a), read_image(b)
        if self.takes_pixels:
            return PairFlow(self.run_pixels(first, second, np.zeros((1, 2), np.float32))["flow"])
        inputs = [
            np.repeat(preprocess(image, self.preprocessing)[None], self.batch or 1, axis=0) for image in (first, second)
        ]
        return PairFlow(self.run(*inputs)["flow"][0].astype(np.float32))


def run_photos(exported: ExportedModel, pairs: PhotoPairs) -> tuple[Outputs, float]:
    """Flow and confidence of each pair from its raw pixels by an end-to-end model, and how far its points are from the
    flow's own transfer, at most, in pixels of a 256 x 256 image; raises :class:`~cats.core.errors.InputError` where an
    image cannot be read."""
    results, worst = [], 0.0
    for a, b in pairs.images():
        points = _spread_points(a.size)
        outputs = exported.run_pixels(a, b, points)
        results.append((outputs["flow"], outputs["confidence"]))
        difference = outputs["points_b"] - transfer_points(points, outputs["flow"], a.size, b.size)
        worst = max(worst, float(np.linalg.norm(difference * FRAME / np.asarray(b.size), axis=1).max()))
    flow, confidence = (np.stack(part) for part in zip(*results, strict=True))
    return (flow, confidence), worst


def _spread_points(size: tuple[int, int]) -> Floats:
    """Points all over an image, its corners and borders included: (100, 2)."""
    x, y = (np.linspace(-0.5, side - 0.5, 10) for side in size)
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.float32)


class PeakSession(OrtSession):
    """An ONNX model in ONNX Runtime on the CPU, with the largest values of its tensors.

    Args:
        model: any.
        tensors: of :func:`cats.export.fp16.emulate.emulate_fp16`, whose largest values are kept in ``peaks``.
    """

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str] = ()) -> None:
        content = model.SerializeToString()
        super().__init__(content, keep_memory=False, in_order=True, extra="export", purpose="verify the exported model")
        self.tensors, self.peaks = list(tensors), np.zeros(len(tensors), np.float32)

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Floats]:
        """Run once."""
        results = super().__call__(feeds)
        if self.tensors:
            largest = np.nan_to_num(results.pop(PEAKS), nan=np.inf, posinf=np.inf)
            self.peaks = np.maximum(self.peaks, largest)
        return results


def _session(model: onnx.ModelProto) -> PeakSession:
    return PeakSession(*emulate_fp16(model, peaks=True)) if computes_in_half(model) else PeakSession(model)
