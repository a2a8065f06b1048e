"""The app under uvicorn: clients that are slow with their headers, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from rapidetr.serving.service import Service

DRAIN_GRACE_S = 3.0  # between "not ready" and closing the door: load balancers look every few seconds


class PatientFor(H11Protocol):
    """HTTP/1.1 that hangs up on whoever needs too long for the headers of a request."""

    patience_s = 10.0
    _headers_until: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._headers_until = self.loop.call_later(self.patience_s, transport.close)

    def data_received(self, data: bytes) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._headers_until is None:  # the next request on a connection that was kept
            self._headers_until = self.loop.call_later(self.patience_s, self.transport.close)
        super().data_received(data)
        if self._headers_until and self.cycle is not None and not self.cycle.response_complete:
            self._headers_until.cancel()
            self._headers_until = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._headers_until:
            self._headers_until.cancel()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """On SIGTERM /readyz says 503 at once, requests are taken for `grace_s` more, and what is in the house is answered.

    A second signal skips the grace; after that uvicorn's own rules hold.
    """

    def __init__(self, config: uvicorn.Config, service: Service, grace_s: float) -> None:
        super().__init__(config)
        self.service, self.grace_s = service, grace_s
        self.loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: Any = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGINT and self.should_exit:
            self.force_exit = True
        elif self.service.draining or sig != signal.SIGTERM or self.loop is None:
            self.end()
        else:
            self.service.draining = True
            self.loop.call_soon_threadsafe(self.loop.call_later, self.grace_s, self.end)

    def end(self) -> None:
        self.service.draining = True
        self.should_exit = True


def run_server(
    app: FastAPI,
    service: Service,
    *,
    host: str,
    port: int,
    grace_s: float = DRAIN_GRACE_S,
    max_connections: int = 512,
    access_log: bool = False,
    on_listening: Callable[[int], None] = lambda port: None,
) -> None:
    """Serve until a signal ends it. `on_listening` gets the port that was taken, where 0 was asked for."""
    protocol = type("Protocol", (PatientFor,), {"patience_s": service.limits.header_timeout_s})
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=protocol,
        ws="none",
        log_level="warning",
        access_log=access_log,
        limit_concurrency=max_connections,
        timeout_graceful_shutdown=int(service.limits.deadline_ms / 1000) + 5,
        server_header=False,
        proxy_headers=False,
    )
    server = Server(config, service, grace_s)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each broken form; the answer says so already
    socket = config.bind_socket()
    try:
        on_listening(socket.getsockname()[1])
        server.run(sockets=[socket])
    finally:
        socket.close()
