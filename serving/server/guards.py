"""What every request passes: an id and a line in the log, metrics, the token, and limits of size and time.

Plain ASGI middleware, because Starlette's own base class would run every request in a task of its own.
"""

from __future__ import annotations

import hmac
import json
import logging
import re
import time
import uuid
from dataclasses import dataclass, field

import anyio
import prometheus_client as prometheus
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cats.serving.server.answers import HttpError, error_response
from cats.serving.service import BusyError

LOG = logging.getLogger("cats.serve")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OPEN = ("/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json")


@dataclass
class Metrics:
    """The figures of ``/metrics``, in a registry of their own."""

    registry: prometheus.CollectorRegistry = field(default_factory=prometheus.CollectorRegistry)

    def __post_init__(self) -> None:
        registry = self.registry
        self.requests = prometheus.Counter(
            "cats_requests_total", "Requests answered.", ["route", "status"], registry=registry
        )
        self.seconds = prometheus.Histogram(
            "cats_request_seconds",
            "Time from a request's head to its answer.",
            ["route"],
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )
        self.batches = prometheus.Histogram(
            "cats_batch_pairs", "Pairs of one run of the model.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.model_seconds = prometheus.Histogram(
            "cats_batch_seconds",
            "Time of one run, reading its photos included.",
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 5),
            registry=registry,
        )
        self.waiting = prometheus.Gauge("cats_queue_requests", "Requests that wait for the model.", registry=registry)
        self.open = prometheus.Gauge("cats_open_requests", "Requests being answered.", registry=registry)

    def on_batch(self, pairs: int, seconds: float) -> None:
        """Count one run of the model."""
        self.batches.observe(pairs)
        self.model_seconds.observe(seconds)


class Guard:
    """The outermost middleware: gives each request its id, measures and logs it, and turns every error into JSON.

    Args:
        app: what answers.
        metrics: see :class:`Metrics`.
        token: without it in ``Authorization: Bearer``, only the page, health and the API's description answer.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, token: str | None = None) -> None:
        self.app, self.metrics, self.token = app, metrics, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope["app"] = self  # so that the router raises what it does not know, instead of answering with plain text
        scope.setdefault("state", {})["request_id"] = request_id
        start = time.perf_counter()
        status = 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        self.metrics.open.inc()
        try:
            self._check_token(scope, headers)
            await self.app(scope, receive, named)
        except ClientDisconnect:
            status = 499  # as nginx counts a client that left
        except Exception as error:
            if status:
                raise
            response = error_response(error, request_id)
            if response.status_code == 500:
                LOG.exception("fault", extra={"fields": {"request_id": request_id, "path": scope["path"][:200]}})
            await response(scope, receive, named)
        finally:
            seconds = time.perf_counter() - start
            route = route_name(scope)
            self.metrics.open.dec()
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            LOG.info(
                "request",
                extra={
                    "fields": {
                        "request_id": request_id,
                        "method": scope["method"][:16],
                        "path": scope["path"][:200],
                        "status": status,
                        "ms": round(seconds * 1000, 2),
                        **scope["state"].get("log", {}),
                    }
                },
            )

    def _check_token(self, scope: Scope, headers: Headers) -> None:
        path = scope["path"]
        if self.token is None or path in _OPEN or not path.startswith(("/v1", "/v2", "/metrics")):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token.encode()):
            raise HttpError(401, "this server wants a token: Authorization: Bearer TOKEN")


def route_name(scope: Scope) -> str:
    """The pattern that a request met, which is one of a few, for the metrics."""
    route = scope.get("route_pattern")
    return route if isinstance(route, str) else "other"


@dataclass
class Bodies:
    """Reads bodies within limits: of one, of all that are being read at once, and of time.

    Attributes:
        limit: bytes of one body.
        total: bytes of all bodies at once, so that many slow senders cannot fill the memory.
        seconds: for the whole body to arrive.
    """

    limit: int
    total: int
    seconds: float
    held: int = 0

    async def read(self, request: Request) -> bytes:
        """The whole body of a request; :meth:`release` it once it is no longer needed.

        Raises:
            HttpError: 408, 413 or 415.
            BusyError: too many bodies at once.
        """
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise HttpError(415, "compressed bodies are not read: photos are compressed already")
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self.limit:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            with anyio.fail_after(self.seconds):
                async for part in request.stream():
                    size += len(part)
                    self.held += len(part)
                    if size > self.limit:
                        raise self._too_large()
                    if self.held > self.total:
                        raise BusyError("too many large requests at once; try again in 2 s", 2)
                    parts.append(part)
        except TimeoutError as error:
            self.held -= size
            raise HttpError(408, f"the body did not arrive within {self.seconds:g} s") from error
        except BaseException:
            self.held -= size
            raise
        request.state.body_size = size
        return b"".join(parts)

    def release(self, request: Request) -> None:
        """Count the body of a request out; may be called twice."""
        self.held -= getattr(request.state, "body_size", 0)
        request.state.body_size = 0

    def _too_large(self) -> HttpError:
        return HttpError(413, f"a body may have {self.limit / 1e6:.3g} MB: make the photos smaller, or --max-body-mb")


class JsonLines(logging.Formatter):
    """Log records as one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time (UTC), level, event and fields."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        document = {"time": f"{when}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        document |= {"event": record.getMessage(), **getattr(record, "fields", {})}
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


def log_as_json(level: int = logging.INFO) -> None:
    """Send the server's log to stderr, as JSON lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("cats.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    LOG.setLevel(level)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
