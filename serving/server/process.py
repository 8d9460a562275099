"""The process of a server: uvicorn, which says where it listens and ends in peace."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cats.serving.server.guards import LOG, log_as_json

_HEADER_SECONDS = 10.0
_CONNECTIONS = 512
_DRAIN_SECONDS = 0.5  # in which requests that are on their way still arrive


def serve(application: Any, listening: socket.socket, *, grace: float) -> None:
    """Serve an ASGI application on a socket until SIGINT or SIGTERM; ``grace``: seconds for requests in flight."""
    log_as_json()
    config = uvicorn.Config(
        application,
        http=_PatientProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=round(grace) + 5,
    )
    _Server(config).run([listening])


class _Server(uvicorn.Server):
    """Says where it listens; SIGTERM and SIGINT end it after the requests in flight, with exit status 0."""

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            for server in self.servers:
                for listening in server.sockets:
                    address, bound = listening.getsockname()[:2]
                    shown = f"[{address}]" if ":" in address else address
                    LOG.info("listening", extra={"fields": {"url": f"http://{shown}:{bound}/"}})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connections, answer what those that there are still send, and only then close them."""
        for server in self.servers:
            server.close()
        _PatientProtocol.draining = True
        await asyncio.sleep(_DRAIN_SECONDS)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn raises the signal again at the end, with which a stop that was asked for would look like a crash.
        kept = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)


class _PatientProtocol(H11Protocol):
    """Closes connections whose request's head does not arrive, for which uvicorn itself would wait for ever; and once
    the server drains, each connection after its answer."""

    draining = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.draining and self.cycle is not None:
            self.cycle.keep_alive = False
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start the clock where a head is awaited, stop it where there is a request."""
        waiting = self.cycle is None or self.cycle.response_complete
        if not waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif waiting and self._timer is None:
            self._timer = self.loop.call_later(_HEADER_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
