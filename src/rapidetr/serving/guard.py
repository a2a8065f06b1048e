"""What stands before the app: keys, bounds on bodies and on the time they take, security headers, counting."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rapidetr.serving.limits import Refusal, ServeLimits
from rapidetr.serving.metrics import Metrics

HUNG_UP = 499  # as nginx counts those who left before their body was whole; it is never sent
LINGER_S = 2.0  # for which a refused body is still read, so that its sender gets to see why
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
log = logging.getLogger("rapidetr.serving")


def problem_of(status: int, kind: str, message: str, retry_after_s: int | None = None) -> Response:
    """The JSON of every failure."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    if status in (408, 413):
        headers["Connection"] = "close"  # the rest of the body is not wanted
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": kind, "message": message}, status, headers)


def refuse(refusal: Refusal) -> Response:
    return problem_of(refusal.status, refusal.kind, str(refusal), refusal.retry_after_s)


@dataclass
class Guard:
    """ASGI around ASGI. `keys`: whoever has one of them may use /v1/ and /metrics; empty: everybody may."""

    app: ASGIApp
    limits: ServeLimits
    metrics: Metrics
    keys: Sequence[bytes] = ()
    now: Callable[[], float] = time.monotonic
    held_bytes: int = field(default=0, init=False)  # of bodies in the house

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})["began"] = self.now()
        status = 500
        sent = False

        async def send_marked(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status, sent = message["status"], True
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        body = Body(receive, self, declared(scope))
        try:
            try:
                self.check_key(scope)
                body.check_declared()
                await self.app(scope, body, send_marked)
            except Refusal as refusal:
                await body.discard()
                await refuse(refusal)(scope, receive, send_marked)
            except ClientDisconnect:  # nobody is there to be told
                status = HUNG_UP
            except Exception:
                log.exception("%s %s failed", scope["method"], scope["path"])
                if sent:
                    raise
                told = "something went wrong in the server; its log says what"
                await problem_of(500, "InternalError", told)(scope, receive, send_marked)
        finally:
            self.held_bytes -= body.size
            self.metrics.count(own_path(scope), scope["method"], status)

    def check_key(self, scope: Scope) -> None:
        """Refusal unless the request has a key or needs none; takes as long for a wrong key as for a right one."""
        path = own_path(scope)
        if not self.keys or not (path.startswith("/v1/") or path == "/metrics"):
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-api-key", b"")
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            given = token.strip()
        if not sum(hmac.compare_digest(given, key) for key in self.keys):  # a sum compares with every key
            raise Refusal(401, "Unauthorized", "expected an API key in X-API-Key or in Authorization: Bearer")


def own_path(scope: Scope) -> str:
    """The path as this app's routes know it, also where another app or server puts a prefix before it."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path[len(prefix) :] if prefix and path.startswith(f"{prefix}/") else path


def declared(scope: Scope) -> int:
    """Content-Length; 0 where there is none."""
    text = dict(scope["headers"]).get(b"content-length", b"0")
    return int(text) if text.isdigit() and len(text) < 19 else 0


@dataclass
class Body:
    """`receive` of one request with a bound on the bytes, those of all requests, and the time from the first call to the last byte."""

    receive: Receive
    guard: Guard
    declared: int
    size: int = 0
    until: float | None = None
    complete: bool = False

    def check_declared(self) -> None:
        limits = self.guard.limits
        if self.declared > limits.max_body_bytes:
            self.too_large()
        if self.declared + self.guard.held_bytes > limits.max_held_bytes:
            self.too_many()

    async def __call__(self) -> Message:
        if self.complete:
            return await self.receive()
        limits, loop = self.guard.limits, asyncio.get_running_loop()
        self.until = self.until or loop.time() + limits.body_timeout_s
        try:
            async with asyncio.timeout_at(self.until):
                message = await self.receive()
        except TimeoutError:
            told = f"the body did not arrive within {limits.body_timeout_s:g} s; send a smaller picture, or raise --body-timeout"
            self.complete = True  # nobody waits for the rest
            raise Refusal(408, "TooSlow", told) from None
        size = len(message.get("body", b""))
        self.size += size
        self.guard.held_bytes += size
        self.complete = message["type"] != "http.request" or not message.get("more_body", False)
        if self.size > limits.max_body_bytes:
            self.too_large()
        if self.guard.held_bytes > limits.max_held_bytes:
            self.too_many()
        return message

    async def discard(self) -> None:
        """Read on for a moment and forget."""
        try:
            async with asyncio.timeout(LINGER_S):
                while not self.complete:
                    message = await self.receive()
                    self.complete = message["type"] != "http.request" or not message.get("more_body", False)
        except TimeoutError:
            pass

    def too_large(self) -> None:
        limit = self.guard.limits.max_body_bytes
        raise Refusal(413, "TooLarge", f"the body has more than {limit} bytes; send fewer or smaller pictures")

    def too_many(self) -> None:
        limit = self.guard.limits.max_held_bytes
        raise Refusal(503, "Overloaded", f"all bodies in the house have more than {limit} bytes; try again", retry_after_s=1)
