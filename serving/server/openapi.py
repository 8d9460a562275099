"""The description of the HTTP API: ``/openapi.json``, and ``/docs`` made of it."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

from cats import __version__
from cats.serving.server.asked import ARRAYS
from cats.serving.service import Service

_POINT = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
_FILE = {"type": "string", "format": "binary", "description": "a photo's file, for example JPEG"}
_BASE64 = {"type": "string", "description": "a photo's file as base64, or as a data URL"}
_POINTS = {"type": "array", "items": _POINT, "description": "points of a, [[x, y], ...] in its pixels; default: a grid"}
_OPTIONS: dict[str, Any] = {
    "grid": {
        "type": "integer",
        "minimum": 1,
        "maximum": 256,
        "default": 10,
        "description": "points a side, of no points",
    },
    "min_confidence": {"type": "number", "minimum": 0, "maximum": 1, "default": 0},
    "min_probability": {"type": "number", "minimum": 0, "maximum": 1, "default": 0},
    "max_forward_backward": {
        "type": "number",
        "description": "leave out points that a -> b -> a moves further, in pixels of a; runs the model twice",
    },
    "arrays": {
        "type": "array",
        "items": {"enum": list(ARRAYS)},
        "description": "arrays of the match that the answer is to hold; in a form separated by commas",
    },
}
_TEXTS = {"points": {"type": "string", "description": "JSON [[x, y], ...]"}, **_OPTIONS}
_CATEGORY = {"category": {"type": "string", "description": "of the references; default: the one that fits best"}}
_MATCHES = {
    "type": "object",
    "description": "as cats-run --json",
    "properties": {
        "a": {"type": "string"},
        "b": {"type": "string"},
        "size_a": {**_POINT, "description": "width and height in pixels"},
        "size_b": _POINT,
        "model": {"type": "object"},
        "matches": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "a": _POINT,
                    "b": _POINT,
                    "confidence": {"type": "number"},
                    "probability": {"type": "number", "description": "of being right, where the model says it"},
                    "forward_backward": {"type": "number"},
                },
            },
        },
        "time_ms": {"type": "object"},
        "arrays": {
            "type": "object",
            "description": 'by name {"dtype", "shape", "data": base64 of little-endian float32}',
        },
    },
}
_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "type": {"type": "string"}, "request_id": {"type": "string"}},
}
_FAILURES = {
    "400": "The request is at fault; the text says what.",
    "401": "The token is missing or wrong.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "Another content type than those of this address.",
    "429": "Too many requests wait; Retry-After says for how long to.",
    "503": "The model does not run, or the server is not ready.",
    "504": "No answer in time.",
}
_DATA = "application/octet-stream"


def describe_api(service: Service) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the server."""
    split = service.matcher.encoder is not None
    gallery = (
        "" if split else " This server's model is one for pairs, and refuses it: serve one of cats-export --split."
    )
    name = [_in_path("name", "of a photo")]
    model = [_in_path("model", "name of a model, see the model's address")]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "CATs toolkit",
            "version": __version__,
            "description": "Which point of photo b is the same part as this point of photo a? Pixels, x right, y down, "
            "their centres at integers.",
        },
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "paths": {
            "/v1/match": {
                "post": _operation(
                    "Match two photos",
                    "Where points of photo a lie in photo b.",
                    body={
                        "multipart/form-data": _object({"a": _FILE, "b": _FILE, **_TEXTS}, ["a", "b"]),
                        "application/json": _object(
                            {"a": _BASE64, "b": _BASE64, "points": _POINTS, **_OPTIONS}, ["a", "b"]
                        ),
                    },
                    answer={"application/json": _MATCHES},
                )
            },
            "/v1/encode": {
                "post": _operation(
                    "Encode a photo",
                    f"Its features as .npz, which Features.load of the Python package reads.{gallery}",
                    body=_image_body(),
                    answer={_DATA: {"type": "string", "format": "binary"}},
                )
            },
            "/v1/label": {
                "post": _operation(
                    "Label a photo",
                    "The labels of the server's references (cats serve --references), carried to a photo as cats label "
                    "does it; 404 where it has none.",
                    body={
                        "multipart/form-data": _object({"image": _FILE, **_CATEGORY}, ["image"]),
                        "application/json": _object({"image": _BASE64, **_CATEGORY}, ["image"]),
                    },
                    answer={"application/json": {"type": "object"}},
                )
            },
            "/v1/gallery": {"get": _operation("List the gallery", "Names and sizes.", answer={"application/json": {}})},
            "/v1/gallery/{name}": {
                "put": _operation(
                    "Add a photo to the gallery",
                    f"It is encoded once; the features stay in memory until the server stops.{gallery}",
                    parameters=name,
                    body=_image_body(),
                    answer={"application/json": {}},
                    status="201",
                ),
                "delete": _operation("Take a photo out of the gallery", "", parameters=name, status="204"),
            },
            "/v1/gallery/match": {
                "post": _operation(
                    "Rank the gallery",
                    f"The photos that match a best, each as an answer of /v1/match with a score.{gallery}",
                    body={
                        "multipart/form-data": _object({"a": _FILE, "top": {"type": "integer"}, **_TEXTS}, ["a"]),
                        "application/json": _object(
                            {"a": _BASE64, "top": {"type": "integer"}, "points": _POINTS}, ["a"]
                        ),
                    },
                    answer={"application/json": _object({"ranked": {"type": "array", "items": _MATCHES}}, ["ranked"])},
                )
            },
            "/v2": {"get": _operation("Server metadata", "Open Inference Protocol.", answer={"application/json": {}})},
            "/v2/health/live": {"get": _operation("Alive", "", answer={"application/json": {}})},
            "/v2/health/ready": {
                "get": _operation("Ready", "503 until the warm-up is done.", answer={"application/json": {}})
            },
            "/v2/models/{model}": {
                "get": _operation("Model metadata", "Tensors.", parameters=model, answer={"application/json": {}})
            },
            "/v2/models/{model}/ready": {
                "get": _operation("Model ready", "", parameters=model, answer={"application/json": {}})
            },
            "/v2/models/{model}/infer": {
                "post": _operation(
                    "Run the model on tensors",
                    "Open Inference Protocol, with the binary tensor extension; tritonclient talks to it.",
                    parameters=model,
                    body={"application/json": {"type": "object"}, _DATA: {"type": "string", "format": "binary"}},
                    answer={"application/json": {"type": "object"}, _DATA: {"type": "string", "format": "binary"}},
                )
            },
            "/metrics": {"get": _operation("Metrics", "For Prometheus.", answer={"text/plain": {"type": "string"}})},
        },
    }


def render_docs(api: dict[str, Any]) -> str:
    """The API's description as a page of its own, without scripts."""
    return _template().render(api=api)


@functools.cache
def _template() -> Any:
    import jinja2

    text = resources.files("cats.serving").joinpath("page", "docs.html").read_text("utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)


def _operation(
    summary: str,
    description: str,
    *,
    body: dict[str, Any] | None = None,
    answer: dict[str, Any] | None = None,
    parameters: list[dict[str, Any]] | None = None,
    status: str = "200",
) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "description": description}
    if parameters:
        operation["parameters"] = parameters
    if body:
        content = {kind: {"schema": schema} for kind, schema in body.items()}
        operation["requestBody"] = {"required": True, "content": content}
    done: dict[str, Any] = {"description": "Done."}
    if answer:
        done["content"] = {kind: {"schema": schema} for kind, schema in answer.items()}
    failed = {"content": {"application/json": {"schema": _ERROR}}}
    operation["responses"] = {status: done} | {
        code: {"description": text, **failed} for code, text in _FAILURES.items()
    }
    return operation


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


def _image_body() -> dict[str, Any]:
    return {
        "multipart/form-data": _object({"image": _FILE}, ["image"]),
        "application/json": _object({"image": _BASE64}, ["image"]),
    }


def _in_path(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}
