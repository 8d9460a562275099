"""``/v1``: photos and points in, matches out, as the command line gives them."""

from __future__ import annotations

import asyncio
import base64
import math
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import anyio
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from cats.core.errors import InputError
from cats.labelling.annotations import Annotations, Category
from cats.labelling.label import LabelledPhoto, Labeller, open_labeller
from cats.runtime.document import matches_document
from cats.runtime.features import Features, save_features
from cats.runtime.gallery import match_score
from cats.serving.server.answers import HttpError, json_response
from cats.serving.server.asked import NAME, Asked, plain_name, read_request
from cats.serving.server.guards import Bodies
from cats.serving.service import Service, bare

_NPZ = "application/octet-stream"
_T = TypeVar("_T")


class Matching:
    """The endpoints of ``/v1``.

    Args:
        service: what matches.
        bodies: see :class:`cats.serving.server.guards.Bodies`.
        timeout_s: of a request, waiting included.
        model: the ``model`` part of answers.
        max_gallery: photos that the gallery keeps.
        references: labelled photos, for :meth:`label`.
    """

    def __init__(
        self,
        service: Service,
        bodies: Bodies,
        *,
        timeout_s: float,
        model: dict[str, Any],
        max_gallery: int,
        references: Annotations | None = None,
    ) -> None:
        self.service, self.bodies, self.timeout_s, self.model = service, bodies, timeout_s, model
        self.categories = {category.name: category for category in references.categories} if references else {}
        self.labeller = open_labeller(references, service.matcher) if references else None
        self.max_gallery = max_gallery
        self.gallery: dict[str, Features] = {}

    async def match(self, request: Request) -> Response:
        """Match two photos; see ``/docs``."""
        asked = await self._read(request)
        try:
            points, selection, arrays = asked.points(), asked.selection(), asked.arrays()
            back = selection.max_forward_backward is not None or "backward_flow" in arrays
            future = self.service.match(asked.photo("a"), asked.photo("b"), forward_backward=back)
            match = await self.wait(future)
        finally:
            self._drop(request, asked)
        names = [plain_name(asked.names.get(side, ""), side) for side in "ab"]
        document = matches_document(match, selection.choose(match, points), a=names[0], b=names[1], model=self.model)
        if arrays:
            document["arrays"] = {name: _array(getattr(match, name)) for name in arrays}
        request.scope["state"]["log"] = {key: round(value, 2) for key, value in match.times.items()}
        return json_response(document)

    async def encode(self, request: Request) -> Response:
        """Features of one photo as ``.npz``, which ``Features.load`` reads."""
        features = await self._encode(request)
        data = await anyio.to_thread.run_sync(_npz, features)
        return Response(data, headers={"Content-Disposition": 'attachment; filename="features.npz"'}, media_type=_NPZ)

    async def list_gallery(self, request: Request) -> Response:
        """Names and sizes of the gallery's photos."""
        photos = [{"name": name, "size": list(features.size)} for name, features in self.gallery.items()]
        return json_response({"photos": photos, "max": self.max_gallery})

    async def put_gallery(self, request: Request) -> Response:
        """Encode a photo and keep its features under a name."""
        name = request.path_params["name"]
        if name != plain_name(name, ""):
            raise InputError(f"a photo's name is up to {NAME} printable characters without / and \\")
        self._check_place(name)
        features = await self._encode(request)
        self._check_place(name)  # others may have come meanwhile
        self.gallery[name] = features
        return json_response({"name": name, "size": list(features.size)}, 201)

    async def delete_gallery(self, request: Request) -> Response:
        """Forget a photo."""
        name = request.path_params["name"]
        if self.gallery.pop(name, None) is None:
            raise HttpError(404, f"no photo {name[:NAME]!r} in the gallery")
        return Response(status_code=204)

    async def match_gallery(self, request: Request) -> Response:
        """Rank the gallery by how well photo a matches: the best ``top``, as ``cats rank`` does."""
        asked = await self._read(request)
        try:
            top = int(asked.number("top", 5, 1, 1000) or 5)
            points, selection, photo = asked.points(), asked.selection(), asked.photo("a")
            gallery = dict(self.gallery)
            matcher = self.service.matcher
            self._check_split()
            if not gallery:
                raise InputError("the gallery is empty: PUT photos to /v1/gallery/NAME first")
            future = self.service.call(lambda: matcher.match_gallery(photo, list(gallery.values())))
            matches = await self.wait(future)
        finally:
            self._drop(request, asked)
        ranked = sorted(
            ((match_score(match, "confidence"), name, match) for name, match in zip(gallery, matches, strict=True)),
            key=lambda item: -item[0],
        )
        name_a = plain_name(asked.names.get("a", ""), "a")
        return json_response(
            {
                "ranked": [
                    {
                        **matches_document(match, selection.choose(match, points), a=name_a, b=name, model=self.model),
                        "score": round(score, 6),
                    }
                    for score, name, match in ranked[:top]
                ]
            }
        )

    async def label(self, request: Request) -> Response:
        """Carry the labels of the server's references to a photo, as ``cats label`` does."""
        labeller = self.labeller
        if labeller is None:
            raise HttpError(404, "this server has no labelled photos: start it with --references labels.json")
        asked = await self._read(request)
        try:
            category, photo = asked.values.get("category") or None, asked.photo("image")
            if category is not None and category not in self.categories:
                raise InputError(f"no reference is of category {str(category)[:80]!r}: {', '.join(self.categories)}")
            name = plain_name(asked.names.get("image", ""), "image")
            found = await self.wait(self.service.call(lambda: _label(labeller, photo, category, name)))
        finally:
            self._drop(request, asked)
        return json_response(_labels(found, self.categories))

    async def wait(self, future: Future[_T]) -> _T:
        """The result of a queued job, within the time-out; a job that is given up does not run."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.timeout_s)
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise HttpError(504, f"no answer within {self.timeout_s:g} s: the server is busy, try again") from error

    async def _read(self, request: Request) -> Asked:
        try:
            return await read_request(request, self.bodies)
        except Exception as error:
            self.bodies.release(request)
            raise bare(error) from None

    def _drop(self, request: Request, asked: Asked) -> None:
        """Let go of a request's photos, also where an error keeps the request for a while."""
        self.bodies.release(request)
        asked.photos.clear()

    async def _encode(self, request: Request) -> Features:
        asked = await self._read(request)
        try:
            self._check_split()
            matcher, photo = self.service.matcher, asked.photo("image")
            return await self.wait(self.service.call(lambda: matcher.encode(photo)))
        finally:
            self._drop(request, asked)

    def _check_place(self, name: str) -> None:
        if name not in self.gallery and len(self.gallery) >= self.max_gallery:
            raise HttpError(409, f"the gallery is full ({self.max_gallery} photos): delete some, or --max-gallery")

    def _check_split(self) -> None:
        if self.service.matcher.encoder is None:
            raise InputError("this model matches pairs only: serve one of cats-export --split to encode photos")


def _label(labeller: Labeller, photo: bytes, category: str | None, name: str) -> LabelledPhoto:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "photo")
        path.write_bytes(photo)
        try:
            return labeller.finish(labeller.find(path, category))
        except InputError as error:
            raise InputError(str(error).replace(str(path), name)) from None


def _labels(found: LabelledPhoto, categories: Mapping[str, Category]) -> dict[str, Any]:
    """What was found, as JSON types; a point that no reference has is null."""
    assert found.category is not None  # it was found
    rows = zip(
        categories[found.category].keypoints,
        found.points.tolist(),
        found.probability.tolist(),
        found.visibility.tolist(),
        strict=True,
    )
    return {
        "size": list(found.size),
        "category": found.category,
        "same_kind": round(found.same_kind, 4),
        "found": found.found,
        "keypoints": [
            {
                "name": name,
                "at": [round(value, 3) for value in at] if all(map(math.isfinite, at)) else None,
                "probability": round(probability, 4) if math.isfinite(probability) else 0.0,
                "visibility": visibility,
            }
            for name, at, probability, visibility in rows
        ],
        "box": None if found.box is None else [round(float(value), 3) for value in found.box],
        "polygons": [np.round(polygon, 3).tolist() for polygon in found.polygons],
        "reference": None if found.reference is None else found.reference.name,
    }


def _npz(features: Features) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "features.npz")
        save_features(path, {"image": features})
        return path.read_bytes()


def _array(values: Any) -> dict[str, Any] | None:
    """An array as base64 of little-endian float32, with its shape; None where the model does not give it."""
    if values is None:
        return None
    data = base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()
    return {"dtype": "float32", "shape": list(values.shape), "data": data}
