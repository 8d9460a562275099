"""Triton's Python backend: the files of two photos and points of a to points of b.

Needs cats-toolkit in the Python of the backend; CATS_TRITON_PATH names folders to look for it in.
"""

import asyncio
import json
import os
import sys
from typing import Any

sys.path[:0] = [folder for folder in os.environ.get("CATS_TRITON_PATH", "").split(os.pathsep) if folder]

import numpy as np  # noqa: E402
import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # noqa: E402

from cats.core.errors import CatsError, InputError  # noqa: E402
from cats.core.geometry import pixels_to_cells, sample_grid, transfer_points  # noqa: E402
from cats.core.images import preprocess, read_image  # noqa: E402
from cats.core.metadata import Preprocessing  # noqa: E402


class TritonPythonModel:
    """What Triton looks for in this file."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the settings that cats triton wrote into config.pbtxt."""
        settings = json.loads(json.loads(args["model_config"])["parameters"]["cats"]["string_value"])
        how = settings["preprocessing"]
        self.preprocessing = Preprocessing(tuple(how["size"]), tuple(how["mean"]), tuple(how["std"]))
        self.models, self.outputs = settings["models"], settings["outputs"]

    async def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests; those that come together reach the other models together, which batch them."""
        return await asyncio.gather(*(self.answer(request) for request in requests))

    async def answer(self, request: Any) -> Any:
        """One request; what is wrong with it is its own error."""
        try:
            photos = [self.photo(request, name) for name in ("image_a", "image_b")]
            points = triton.get_input_tensor_by_name(request, "points_a").as_numpy()
            outside = (points < -0.5).any() or (points > np.asarray(photos[0].size) - 0.5).any()
            if outside or not np.isfinite(points).all():
                raise InputError(f"a point lies outside image a, which has {photos[0].width}x{photos[0].height} pixels")
            inputs = [preprocess(photo, self.preprocessing)[None] for photo in photos]
            flow, confidence = await self.match(*inputs)
        except CatsError as error:
            return triton.InferenceResponse(error=triton.TritonError(str(error)))
        sizes = photos[0].size, photos[1].size
        found = transfer_points(points, flow, *sizes)
        sure = sample_grid(confidence[None], pixels_to_cells(points, sizes[0], flow.shape[-1]))[:, 0]
        return triton.InferenceResponse(
            [
                triton.Tensor("points_b", found.astype(np.float32)),
                triton.Tensor("confidence", sure.astype(np.float32)),
            ]
        )

    def photo(self, request: Any, name: str) -> Any:
        """A photo of a request, decoded."""
        data = triton.get_input_tensor_by_name(request, name).as_numpy()
        return read_image(bytes(data.reshape(-1)[0]))

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
