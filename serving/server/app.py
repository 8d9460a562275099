"""The ASGI application of ``cats serve``: the page, ``/v1``, ``/v2``, ``/metrics`` and ``/docs``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import prometheus_client as prometheus
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from cats.core.errors import InputError
from cats.labelling.annotations import Annotations
from cats.runtime.document import model_document
from cats.runtime.viewer import probability_knots
from cats.serving.server.answers import HttpError, json_response
from cats.serving.server.guards import LOG, Bodies, Guard, Metrics
from cats.serving.server.openapi import describe_api, render_docs
from cats.serving.server.v1 import Matching
from cats.serving.server.v2 import Protocol
from cats.serving.service import Service
from cats.serving.web import POLICY, SETTINGS, Sample, copy_page, shipped_samples, write_samples

_PRIVACY = "Photos go to the server of this page and nowhere else; it keeps none."
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".jpg": "image/jpeg",
}
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "SAMEORIGIN"}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class ServerOptions:
    """Limits and permissions of the server.

    Attributes:
        max_body: bytes of one request; eight times that of all that are being read.
        timeout_s: from a request's arrival to its answer.
        body_timeout_s: for a body to arrive.
        max_gallery: photos that the gallery keeps.
        token: see :class:`cats.serving.server.guards.Guard`.
        cors: origins whose pages may read answers; none unless told.
        hosts: names by which requests may address the server, so that no foreign page reaches it under a name of its
            own; None takes any.
    """

    max_body: int = 32 << 20
    timeout_s: float = 30.0
    body_timeout_s: float = 20.0
    max_gallery: int = 1000
    token: str | None = None
    cors: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = field(default=_LOOPBACK)


def create_app(
    service: Service,
    options: ServerOptions | None = None,
    *,
    name: str = "cats",
    metrics: Metrics | None = None,
    samples: Sequence[Sample] | None = None,
    references: Annotations | None = None,
) -> ASGIApp:
    """The application on top of a service.

    It warms the model up once it runs, and is ready only then; the service is the caller's to close.

    Args:
        service: what matches; give its ``on_batch`` the ``metrics.on_batch`` of these metrics.
        name: of the model in ``/v2`` and in answers.
        metrics: see :class:`Metrics`.
        samples: pairs that the page offers; None takes the shipped ones.
        references: labelled photos, for ``/v1/label``.
    """
    options = options or ServerOptions()
    metrics = metrics or Metrics()
    metrics.waiting.set_function(lambda: service.waiting)
    bodies = Bodies(options.max_body, options.max_body * 8, options.body_timeout_s)
    model = {**model_document(service.matcher), "file": service.matcher.path.name}  # not where it lies on this machine
    matching = Matching(
        service,
        bodies,
        timeout_s=options.timeout_s,
        model=model,
        max_gallery=options.max_gallery,
        references=references,
    )
    protocol = Protocol(matching, name)
    page = _page_files(service, shipped_samples() if samples is None else samples, model)

    async def files(request: Request) -> Response:
        path = request.path_params.get("path") or "index.html"
        if path not in page:
            raise HttpError(404, "no such address; /docs lists them all")
        headers = {"Cache-Control": "no-cache"}
        return Response(page[path], 200, headers, _TYPES[Path(path).suffix])

    async def figures(request: Request) -> Response:
        return Response(prometheus.generate_latest(metrics.registry), media_type=prometheus.CONTENT_TYPE_LATEST)

    async def api(request: Request) -> Response:
        return json_response(describe_api(service))

    async def docs(request: Request) -> Response:
        return Response(render_docs(describe_api(service)), media_type="text/html")

    routes = [
        _route("POST", "/v1/match", matching.match),
        _route("POST", "/v1/encode", matching.encode),
        _route("POST", "/v1/label", matching.label),
        _route("POST", "/v1/gallery/match", matching.match_gallery),
        _route("GET", "/v1/gallery", matching.list_gallery),
        _route("PUT", "/v1/gallery/{name}", matching.put_gallery),
        _route("DELETE", "/v1/gallery/{name}", matching.delete_gallery),
        _route("GET", "/v2", protocol.server),
        _route("GET", "/v2/health/live", protocol.live),
        _route("GET", "/v2/health/ready", protocol.is_ready),
        *(
            _route(method, f"/v2/models/{{model}}{version}{rest}", endpoint)
            for version in ("", "/versions/{version}")
            for method, rest, endpoint in (
                ("GET", "", protocol.model),
                ("GET", "/ready", protocol.model_ready),
                ("POST", "/infer", protocol.infer),
            )
        ),
        _route("GET", "/metrics", figures),
        _route("GET", "/openapi.json", api),
        _route("GET", "/docs", docs),
        _route("GET", "/", files),
        _route("GET", "/{path:path}", files),
    ]

    async def warm_up() -> None:
        try:
            await anyio.to_thread.run_sync(service.warm_up)
        except Exception:
            LOG.exception("the warm-up failed: the server stays not ready")
        else:
            protocol.ready = True
            LOG.info("ready")

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        task = asyncio.get_running_loop().create_task(warm_up())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    app: ASGIApp = Router(routes, redirect_slashes=False, lifespan=lifespan)
    if options.cors:
        app = CORSMiddleware(
            app,
            allow_origins=list(options.cors),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["authorization", "content-type", "x-request-id", "inference-header-content-length"],
            expose_headers=["x-request-id", "inference-header-content-length", "retry-after"],
        )
    return Guard(_Hosts(app, options.hosts), metrics, options.token)


def _route(method: str, pattern: str, endpoint: Endpoint) -> Route:
    async def named(request: Request) -> Response:
        request.scope["route_pattern"] = pattern
        response = await endpoint(request)
        for key, value in _HEADERS.items():
            response.headers.setdefault(key, value)
        if (response.media_type or "").startswith("text/html"):
            response.headers.setdefault("Content-Security-Policy", POLICY)
        return response

    return Route(pattern, named, methods=[method])


class _Hosts:
    """Refuses requests that address the server by another name: a page of another site can give its own name the
    address 127.0.0.1, and would be of the server's origin then."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.hosts is not None:
            given = next((value for key, value in scope["headers"] if key == b"host"), b"").decode("latin-1")
            try:
                name = urlsplit(f"//{given}").hostname
            except ValueError:
                name = None
            if name not in self.hosts:
                raise HttpError(421, f"this server is not {given[:80]!r}: --allow-host NAME lets it answer to that")
        await self.app(scope, receive, send)


def _page_files(service: Service, samples: Sequence[Sample], model: dict[str, Any]) -> dict[str, bytes]:
    """The page's files by address; in memory, so that no address reaches the file system."""
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        copy_page(site, ["http.js", "docs.css"], privacy=_PRIVACY)
        settings = {
            "matcher": "http",
            "samples": write_samples(site, samples),
            "model": model,
            "calibration": probability_knots(service.matcher.metadata.calibration),
            "describe": f"on this server, {service.matcher.backend.describe()}",
        }
        (site / SETTINGS).write_text(json.dumps(settings))
        return {path.relative_to(site).as_posix(): path.read_bytes() for path in site.rglob("*") if path.is_file()}


def check_options(options: ServerOptions) -> None:
    """Raise :class:`InputError` for limits that are none."""
    if min(options.max_body, options.timeout_s, options.body_timeout_s, options.max_gallery) <= 0:
        raise InputError("limits and time-outs must be greater than 0")
