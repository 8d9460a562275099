"""``/v2``: the Open Inference Protocol with its binary tensor extension, so that Triton's clients talk to the server.

https://github.com/kserve/open-inference-protocol and Triton's ``extension_binary_data.md``. Tensors are those of the
model file; of a split model the matcher is ``NAME`` and the encoder ``NAME.encoder``.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from cats import __version__
from cats.core.errors import BackendError, InputError
from cats.core.json_text import parse_json
from cats.runtime.backends.base import Array, Backend, TensorSpec
from cats.runtime.split import run_batches
from cats.serving.server.answers import HttpError, json_response
from cats.serving.server.v1 import Matching

_LENGTH = "Inference-Header-Content-Length"
_TYPES = {
    "float32": "FP32",
    "float16": "FP16",
    "float64": "FP64",
    "uint8": "UINT8",
    "int8": "INT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}


class Protocol:
    """The endpoints of ``/v2``.

    Args:
        matching: whose service, limits and time-outs are shared.
        name: of the model.
        max_batch: items of one request.
    """

    def __init__(self, matching: Matching, name: str, *, max_batch: int = 32) -> None:
        self.matching, self.max_batch = matching, max_batch
        matcher = matching.service.matcher
        self.models: dict[str, Backend] = {name: matcher.backend}
        if matcher.encoder is not None:
            self.models[f"{name}.encoder"] = matcher.encoder
        self.ready = False

    async def server(self, request: Request) -> Response:
        """Name, version and extensions of the server."""
        return json_response({"name": "cats serve", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def live(self, request: Request) -> Response:
        """Whether the process answers."""
        return json_response({"live": True})

    async def is_ready(self, request: Request) -> Response:
        """Whether the model is warm."""
        return json_response({"ready": self.ready}, 200 if self.ready else 503)

    async def model_ready(self, request: Request) -> Response:
        """Whether one model is warm."""
        name, _ = self._model(request)
        return json_response({"name": name, "ready": self.ready}, 200 if self.ready else 503)

    async def model(self, request: Request) -> Response:
        """Names, types and shapes of a model's tensors."""
        name, backend = self._model(request)
        return json_response(
            {
                "name": name,
                "versions": ["1"],
                "platform": backend.name,
                "inputs": [_describe(spec) for spec in backend.inputs],
                "outputs": [_describe(spec) for spec in backend.outputs],
            }
        )

    async def infer(self, request: Request) -> Response:
        """Run a model on the tensors of a request."""
        name, backend = self._model(request)
        bodies = self.matching.bodies
        try:
            body = await bodies.read(request)
            document, binary = _split(body, request.headers.get(_LENGTH))
            feeds = _inputs(document, binary, backend, self.max_batch)
            wanted = _wanted(document, backend)
            items = [{key: value[index] for key, value in feeds.items()} for index in range(_batch(feeds))]
            found = await self.matching.wait(self.matching.service.call(lambda: run_batches(backend, items)))
        finally:
            bodies.release(request)
        outputs = {key: np.stack([item[key] for item in found]) for key in wanted}
        if not all(np.isfinite(value).all() for value in outputs.values()):
            raise InputError("the model gave values that are not numbers for these inputs")
        return _answer(name, document.get("id"), outputs, wanted)

    def _model(self, request: Request) -> tuple[str, Backend]:
        name = request.path_params["model"]
        if name not in self.models or request.path_params.get("version", "1") != "1":
            raise HttpError(
                404, f"no model {name[:80]!r} in this version; there is {', '.join(self.models)} in version 1"
            )
        return name, self.models[name]


def _describe(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "datatype": _TYPES[spec.dtype.name],
        "shape": [-1 if side is None else side for side in spec.shape],
    }


def _split(body: bytes, length: str | None) -> tuple[dict[str, Any], bytes]:
    """The JSON part of a body and the tensors behind it."""
    size = len(body)
    if length is not None:
        if not length.isdecimal() or not 0 < int(length[:20]) <= len(body):
            raise InputError(f"{_LENGTH} is {length[:40]!r}, the body has {len(body)} bytes")
        size = int(length)
    document = parse_json(body[:size], "the body", limit=size)
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        raise InputError('the body is not an object with a list "inputs"')
    return document, body[size:]


def _inputs(document: dict[str, Any], binary: bytes, backend: Backend, max_batch: int) -> dict[str, Array]:
    specs = {spec.name: spec for spec in backend.inputs}
    feeds: dict[str, Array] = {}
    at = 0
    for entry in document["inputs"]:
        name = entry.get("name") if isinstance(entry, dict) else None
        spec = specs.get(name) if isinstance(name, str) else None
        if spec is None or not isinstance(name, str) or name in feeds:
            raise InputError(f"input {str(name)[:80]!r}: the model takes each of {', '.join(specs)} once")
        shape = entry.get("shape")
        _check_shape(spec, shape, max_batch)
        if entry.get("datatype") != _TYPES[spec.dtype.name]:
            raise InputError(f"input {name} is {_TYPES[spec.dtype.name]}, not {str(entry.get('datatype'))[:20]!r}")
        size = _parameters(entry).get("binary_data_size")
        if size is None:
            feeds[name] = _listed(name, entry.get("data"), spec, shape)
            continue
        expected = math.prod(shape) * spec.dtype.itemsize
        if size != expected or isinstance(size, bool) or at + size > len(binary):
            raise InputError(
                f"input {name} of shape {shape} has {expected} bytes; binary_data_size is {str(size)[:20]} and "
                f"{len(binary) - at} bytes follow"
            )
        feeds[name] = np.frombuffer(binary, spec.dtype.newbyteorder("<"), math.prod(shape), at).reshape(shape)
        at += size
    if set(feeds) != set(specs):
        raise InputError(f"input {', '.join(sorted(set(specs) - set(feeds)))} is missing")
    if at != len(binary):
        raise InputError(f"{len(binary) - at} bytes are left behind the inputs")
    if len({len(value) for value in feeds.values()}) > 1:
        raise InputError("the inputs differ in their batch, the first number of their shapes")
    return feeds


def _check_shape(spec: TensorSpec, shape: Any, max_batch: int) -> None:
    """Refuse a shape that is not the input's, before anything of that size is made."""
    numbers = isinstance(shape, list) and all(isinstance(side, int) and not isinstance(side, bool) for side in shape)
    fits = numbers and len(shape) == len(spec.shape) and 1 <= shape[0] <= max_batch
    if not fits or any(want not in (None, have) for have, want in zip(shape[1:], spec.shape[1:], strict=True)):
        want = [f"1..{max_batch}", *spec.shape[1:]]
        raise InputError(f"input {spec.name} has shape {str(shape)[:80]}; [{', '.join(map(str, want))}] is needed")


def _listed(name: str, data: Any, spec: TensorSpec, shape: list[int]) -> Array:
    """A tensor of a JSON list, flat or nested."""
    try:
        values = np.asarray(data, dtype=spec.dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"input {name}: data are not numbers of one shape") from error
    if values.size != math.prod(shape):
        raise InputError(f"input {name} of shape {shape} has {math.prod(shape)} values, data {values.size}")
    return values.reshape(shape)


def _parameters(entry: dict[str, Any]) -> dict[str, Any]:
    parameters = entry.get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def _batch(feeds: dict[str, Array]) -> int:
    return len(next(iter(feeds.values())))


def _wanted(document: dict[str, Any], backend: Backend) -> dict[str, bool]:
    """The outputs to give, and for each whether as binary."""
    default = _parameters(document).get("binary_data_output") is True
    known = [spec.name for spec in backend.outputs]
    asked = document.get("outputs")
    if not asked:
        return dict.fromkeys(known, default)
    if not isinstance(asked, list):
        raise InputError("outputs must be a list of objects with a name")
    wanted: dict[str, bool] = {}
    for entry in asked:
        name = entry.get("name") if isinstance(entry, dict) else None
        if name not in known:
            raise InputError(f"output {str(name)[:80]!r}: the model gives {', '.join(known)}")
        wanted[name] = _parameters(entry).get("binary_data", default) is True
    return wanted


def _answer(name: str, request_id: Any, outputs: dict[str, Array], wanted: dict[str, bool]) -> Response:
    entries, binary = [], []
    for key, value in outputs.items():
        if value.dtype.name not in _TYPES:
            raise BackendError(f"output {key} is {value.dtype}, which the protocol has no name for")
        entry: dict[str, Any] = {"name": key, "datatype": _TYPES[value.dtype.name], "shape": list(value.shape)}
        if wanted[key]:
            binary.append(np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes())
            entry["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            entry["data"] = value.ravel().tolist()
        entries.append(entry)
    document = {"model_name": name, "model_version": "1", "outputs": entries}
    if isinstance(request_id, str):
        document["id"] = request_id[:200]
    if not binary:
        return json_response(document)
    head = json.dumps(document, allow_nan=False).encode()
    return Response(b"".join([head, *binary]), 200, {_LENGTH: str(len(head))}, "application/octet-stream")
