"""What every answer of the server shares: JSON, errors with the command line's words, and their status codes."""

from __future__ import annotations

import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from cats.core.errors import BackendError, CatsError
from cats.serving.service import BusyError


class HttpError(CatsError):
    """An error that HTTP has a status code of its own for: 401, 404, 408, 413, 415, ..."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def json_response(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer; numbers that are none are a bug, not an answer."""
    return Response(json.dumps(document, allow_nan=False), status, headers, "application/json")


def error_response(error: Exception, request_id: str) -> Response:
    """The answer to a request that failed: ``{"error": text, "type": name, "request_id": id}``.

    ``error`` is a text, as the Open Inference Protocol wants it.
    """
    headers: dict[str, str] = {}
    if isinstance(error, HttpError):
        status, kind = error.status, "HttpError"
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
    elif isinstance(error, HTTPException):  # of the router
        status, kind, headers = error.status_code, "HttpError", dict(error.headers or {})
        error = Exception({404: "no such address", 405: "this address takes another method"}.get(status, error.detail))
    elif isinstance(error, BusyError):
        status, kind = 429, "BusyError"
        headers["Retry-After"] = str(error.retry_after)
    elif isinstance(error, BackendError):
        status, kind = 503, "BackendError"
    elif isinstance(error, CatsError):
        status, kind = 400, type(error).__name__
    else:
        status, kind, error = 500, "Error", Exception("a fault of the server; its log has more under this request id")
    return json_response({"error": str(error), "type": kind, "request_id": request_id}, status, headers)
