"""Triton's Python backend: the files of two photos and points of a to points of b.

Needs cats-toolkit in the Python of the backend; CATS_TRITON_PATH names folders to look for it in.
"""

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import Any

sys.path[:0] = [folder for folder in os.environ.get("CATS_TRITON_PATH", "").split(os.pathsep) if folder]

import numpy as np  # noqa: E402
import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # noqa: E402

from cats.core.errors import CatsError, InputError  # noqa: E402
from cats.core.geometry import pixels_to_cells, sample_grid, transfer_points  # noqa: E402
from cats.core.images import preprocess, read_image  # noqa: E402
from cats.core.metadata import Preprocessing  # noqa: E402


@dataclass
class Pair:
    """One pair of a request, decoded: photos, what the models take of them, and points (K, 2) of a."""

    photos: list[Any]
    tensors: list[Any]
    points: Any


class TritonPythonModel:
    """What Triton looks for in this file."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the settings that cats triton wrote into config.pbtxt."""
        settings = json.loads(json.loads(args["model_config"])["parameters"]["cats"]["string_value"])
        how = settings["preprocessing"]
        self.preprocessing = Preprocessing(tuple(how["size"]), tuple(how["mean"]), tuple(how["std"]))
        self.models, self.outputs = settings["models"], settings["outputs"]

    async def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests; all are decoded first, so that their pairs reach the other models together, as batches."""
        decoded = await asyncio.gather(*(self.decode(request) for request in requests))
        return await asyncio.gather(*(self.answer(item) for item in decoded))

    async def decode(self, request: Any) -> "list[Pair] | CatsError":
        """The pairs of a request; what is wrong with it is its own error."""
        a, b, points = (
            triton.get_input_tensor_by_name(request, name).as_numpy() for name in ("image_a", "image_b", "points_a")
        )
        pairs = zip(a.reshape(-1), b.reshape(-1), points, strict=True)
        try:
            return await asyncio.gather(*(asyncio.to_thread(self.prepare, *pair) for pair in pairs))
        except CatsError as error:
            return error

    def prepare(self, file_a: bytes, file_b: bytes, points: Any) -> Pair:
        """Decode photos and check points."""
        photos = [read_image(bytes(file)) for file in (file_a, file_b)]
        outside = (points < -0.5).any() or (points > np.asarray(photos[0].size) - 0.5).any()
        if outside or not np.isfinite(points).all():
            raise InputError(f"a point lies outside image a, which has {photos[0].width}x{photos[0].height} pixels")
        if "end-to-end" in self.models:
            return Pair(photos, [np.asarray(photo)[None] for photo in photos], points)
        return Pair(photos, [preprocess(photo, self.preprocessing)[None] for photo in photos], points)

    async def answer(self, decoded: "list[Pair] | CatsError") -> Any:
        """The response to a request."""
        try:
            if isinstance(decoded, CatsError):
                raise decoded
            found = await asyncio.gather(*(self.transfer(pair) for pair in decoded))
        except CatsError as error:
            return triton.InferenceResponse(error=triton.TritonError(str(error)))
        points, confidence = (np.stack(values).astype(np.float32) for values in zip(*found, strict=True))
        return triton.InferenceResponse([triton.Tensor("points_b", points), triton.Tensor("confidence", confidence)])

    async def transfer(self, pair: Pair) -> tuple[Any, Any]:
        """Points (K, 2) of b and their confidences (K,)."""
        a, b = pair.tensors
        if "end-to-end" in self.models:
            feeds = {"image_a": a, "image_b": b, "points_a": pair.points[None]}
            outputs = await self.call("end-to-end", feeds, ["points_b", "points_confidence"])
            return outputs["points_b"][0], outputs["points_confidence"][0]
        flow, confidence = await self.match(a, b)
        sizes = pair.photos[0].size, pair.photos[1].size
        sure = sample_grid(confidence[None], pixels_to_cells(pair.points, sizes[0], flow.shape[-1]))[:, 0]
        return transfer_points(pair.points, flow, *sizes), sure

    async def match(self, a: Any, b: Any) -> tuple[Any, Any]:
        """Flow (2, G, G) and confidence (G, G) of two model inputs (1, 3, S, S)."""
        if "pair" in self.models:
            outputs = await self.call("pair", {"image_a": a, "image_b": b}, ["flow", "confidence"])
        else:
            names = self.outputs["encoder"]
            features = await asyncio.gather(*(self.call("encoder", {"image": image}, names) for image in (a, b)))
            sides = zip("ab", features, strict=True)
            feeds = {f"{name}_{side}": found[name] for side, found in sides for name in names}
            outputs = await self.call("matcher", feeds, ["flow", "confidence"])
        return outputs["flow"][0], outputs["confidence"][0]

    async def call(self, kind: str, feeds: dict[str, Any], names: list[str]) -> dict[str, Any]:
        """Outputs of another model by name."""
        request = triton.InferenceRequest(
            model_name=self.models[kind],
            requested_output_names=names,
            inputs=[triton.Tensor(name, np.ascontiguousarray(value)) for name, value in feeds.items()],
        )
        answer = await request.async_exec()
        if answer.has_error():
            raise CatsError(answer.error().message())
        return {name: triton.get_output_tensor_by_name(answer, name).as_numpy() for name in names}
