"""What every request passes before it reaches an endpoint, as plain ASGI: headers of every answer, who may ask, how large a body
may be and how long it may take.

The server listens on loopback unless told otherwise, and a page of any site can send requests there from its visitor's browser;
so hosts it does not know and origins it was not told of are refused.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from digseg_engine.serving.limits import Limits
from digseg_engine.serving.metrics import Metrics
from digseg_engine.serving.problems import RequestError, busy, ending, refused, too_large

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

GONE = 499
OPEN = ("/healthz", "/readyz")  # asked by whatever watches the server, which has no token and names it by its address
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


def header(scope: Scope, name: str) -> str:
    """The value of a request's header, "" where it has none."""
    wanted = name.encode("ascii")
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == wanted), "")


def name_in(address: str) -> str:
    """The host's name in an address, in lower case; "" where there is none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:  # brackets that do not close
        return ""


class Guard:
    """hosts: names that requests may address, None for any; origins: of other sites' pages that may ask; token: what `/v1` and
    `/metrics` ask for, None for nothing."""

    def __init__(
        self, app: App, limits: Limits, metrics: Metrics, token: str | None = None, hosts: frozenset[str] | None = LOCAL,
        origins: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.app, self.limits, self.metrics = app, limits, metrics
        self.token, self.hosts, self.origins = token, hosts, origins
        self.ending, self.held = False, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, body, status = time.perf_counter(), Body(self, scope, receive), 0

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                known = {key.lower() for key, _ in message.get("headers", ())}
                more = [(key.encode(), value.encode()) for key, value in HEADERS.items() if key.encode() not in known]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        try:
            self.check(scope)
            await self.app(scope, body.receive, answered)
        except RequestError as problem:  # of this room; those of endpoints are answered there
            await problem.response()(scope, receive, answered)
        finally:
            body.let_go()
            path = getattr(scope.get("route"), "path", "") or "other"
            self.metrics.requests.labels(scope["method"], path, str(status)).inc()
            self.metrics.gone.inc(status == GONE)
            self.metrics.seconds.labels(path).observe(time.perf_counter() - began)

    def check(self, scope: Scope) -> None:
        """Raises RequestError for a request that is not for this server, or not from somebody it answers."""
        path = scope["path"]
        if path in OPEN:
            return
        host = name_in(f"//{header(scope, 'host')}")
        if self.hosts is not None and host not in self.hosts:
            raise refused(f"this server does not answer for the host {host!r:.80}; start it with --allow-host {host:.80} if it "
                          "should")  # fmt: skip
        origin = header(scope, "origin")
        if origin and origin not in self.origins and origin.partition("://")[2] != header(scope, "host"):
            raise refused(
                f"pages of {origin:.120} may not ask this server; start it with --cors {origin:.120} if they should"
            )
        asks = path.startswith("/v1/") or path == "/metrics"
        if self.ending and asks:
            raise ending()
        if self.token is not None and asks and scope["method"] != "OPTIONS":
            kind, _, given = header(scope, "authorization").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token.encode()):
                raise RequestError(401, "no_token", "this server asks for its token; send the header Authorization: Bearer TOKEN",
                              {"WWW-Authenticate": "Bearer"})  # fmt: skip
        length = header(scope, "content-length")
        if length.isdigit() and int(length) > self.limits.body:
            raise too_large(self.too_long())

    def too_long(self) -> str:
        return f"the request is longer than {self.limits.body} bytes; reduce the picture, or start the server with --max-mib"


class Body:
    """A request's body as the application reads it: counted, and in time."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive) -> None:
        self.guard, self.limits, self.source = guard, guard.limits, receive
        self.read, self.whole = 0, False
        self.until: float | None = None

    async def receive(self) -> Message:
        """Raises RequestError for a body that is too long or too slow, and where all bodies together are too much."""
        if self.whole:  # what comes now is the end of the connection, which may take any time
            return await self.source()
        loop = asyncio.get_running_loop()
        if self.until is None:
            self.until = loop.time() + self.limits.body_seconds
        try:
            message = await asyncio.wait_for(self.source(), max(0.0, self.until - loop.time()))
        except (TimeoutError, asyncio.TimeoutError) as error:
            raise RequestError(408, "too_slow", f"the request's body did not come within {self.limits.body_seconds:g} seconds; "
                               "send it faster, or reduce the picture", {"Connection": "close"}) from error  # fmt: skip
        self.whole = message["type"] != "http.request" or not message.get("more_body", False)
        length = len(message.get("body", b""))
        self.read += length
        self.guard.held += length
        if self.read > self.limits.body:
            raise too_large(self.guard.too_long())
        if self.guard.held > self.limits.bodies:
            raise busy("the requests being read take all the memory there is for them; ask again later")
        return message

    def let_go(self) -> None:
        self.guard.held -= self.read
        self.read = 0
