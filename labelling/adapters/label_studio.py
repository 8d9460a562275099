"""A machine learning backend of Label Studio: its HTTP contract, over the labeller.

``GET /`` and ``/health`` say that it is up, ``POST /setup`` takes a project's labelling interface, ``POST /predict``
gives predictions for tasks; ``/train`` and ``/webhook`` are answered and do nothing, because references are a file.
Photos are read from a folder of this machine (Label Studio's local storage or its media folder), never fetched.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from cats import __version__
from cats.core.errors import CatsError, InputError, require
from cats.core.json_text import parse_json
from cats.labelling.adapters.single import PhotoLabeller
from cats.labelling.annotations import Annotations
from cats.labelling.formats.common import PhotoFolder
from cats.labelling.formats.cvat import parse_xml
from cats.labelling.formats.label_studio import build_regions, find_photo
from cats.labelling.label import LabelledPhoto

_log = logging.getLogger(__name__)
_MAX_BODY = 16 << 20
_CONTROLS = ("RectangleLabels", "KeyPointLabels", "PolygonLabels", "BrushLabels")
MODEL_VERSION = f"cats-{__version__}"

Prediction = dict[str, Any]


def predict(labeller: PhotoLabeller, tasks: list[dict[str, Any]], label_config: str, root: Path) -> list[Prediction]:
    """A prediction for each task, empty where its photo cannot be read or shows something else.

    Args:
        tasks: of Label Studio; their ``data`` names the photo.
        label_config: the project's labelling interface: regions go to its controls, those without one are left out.
        root: folder of the photos.

    Raises:
        InputError: a labelling interface that is not XML.
    """
    controls = read_controls(label_config)
    folder = PhotoFolder(root)
    paths: dict[int, Path] = {}
    for number, task in enumerate(tasks):
        data = task.get("data")
        try:
            paths[number] = find_photo(data if isinstance(data, dict) else {}, folder)
        except InputError as error:
            _log.warning("task %s: %s", task.get("id"), error)
    found = {number: labeller.label(path) for number, path in paths.items()}
    return [_prediction(labeller.references, found.get(number), controls) for number in range(len(tasks))]


def read_controls(label_config: str) -> dict[str, tuple[str, str]]:
    """Type of region -> (from_name, to_name) in a labelling interface; the usual names where it is empty."""
    kinds = {f"{name[:-6].lower()}labels": name for name in _CONTROLS}
    if not label_config.strip():
        return {kind: (kind[:-6], "image") for kind in kinds}
    root = parse_xml(label_config)
    controls = {}
    for kind, tag in kinds.items():
        element = next(root.iter(tag), None)
        if element is not None and element.get("name") and element.get("toName"):
            controls[kind] = (element.get("name", ""), element.get("toName", ""))
    return controls


def make_app(labeller: PhotoLabeller, root: Path) -> Any:
    """The backend as an ASGI application (starlette)."""
    require("starlette", extra="serve", purpose="answer Label Studio")
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "UP", "model_class": "cats label", "v2": True})

    async def setup(request: Request) -> JSONResponse:
        return JSONResponse({"model_version": MODEL_VERSION})

    async def answer_predict(request: Request) -> JSONResponse:
        try:
            document = await _read_body(request)
            tasks = document.get("tasks")
            if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
                raise InputError("tasks is not a list of tasks")
            config = document.get("label_config") or ""
            results = await run_in_threadpool(predict, labeller, tasks, str(config), root)
        except CatsError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        return JSONResponse({"results": results, "model_version": MODEL_VERSION})

    async def nothing(request: Request) -> JSONResponse:
        return JSONResponse({}, status_code=201)

    return Starlette(
        routes=[
            Route("/", health),
            Route("/health", health),
            Route("/setup", setup, methods=["POST"]),
            Route("/predict", answer_predict, methods=["POST"]),
            Route("/train", nothing, methods=["POST"]),
            Route("/webhook", nothing, methods=["POST"]),
        ]
    )


async def _read_body(request: Any) -> dict[str, Any]:
    """The JSON object that was sent, refused while it arrives where it is too large."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > _MAX_BODY:
            raise InputError(f"a request over {_MAX_BODY >> 20} MiB")
    document = parse_json(bytes(data), "the request", limit=_MAX_BODY)
    if not isinstance(document, dict):
        raise InputError("not a JSON object")
    return document


def _prediction(
    references: Annotations, found: LabelledPhoto | None, controls: dict[str, tuple[str, str]]
) -> Prediction:
    prediction: Prediction = {"result": [], "score": 0.0, "model_version": MODEL_VERSION}
    if found is None:
        return prediction
    if found.error is not None:
        _log.warning("%s", found.error)
        return prediction
    prediction["score"] = found.same_kind
    if found.found:
        annotation = found.annotation()
        for region in build_regions(annotation, found.size, references.category(annotation.category), "cats"):
            if region["type"] in controls:
                from_name, to_name = controls[region["type"]]
                prediction["result"].append({**region, "from_name": from_name, "to_name": to_name})
    return prediction
