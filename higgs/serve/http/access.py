"""Who may use the server, from where, how many at once, and how long a request may take to arrive."""

import asyncio
import hmac
import resource
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from higgs.serve.http.speech_request import ApiError

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
OPEN_PATHS = ("/health", "/", "/docs")  # answer without a key: the pages ask for it, and hold no data
MAX_TARGET = 2000  # bytes of a path with its query
SPARE_FILES = 64  # that the process needs beside its connections


@dataclass(frozen=True)
class Access:
    """`hosts` are the names under which the server may be called ("*" is any): a web page elsewhere whose name was
    rebound to this machine calls it by another. `api_key` is what clients send as `Authorization: Bearer KEY`; None
    asks for none. `origins` are the web pages that may use it ("*" is any). A body must arrive within `body_seconds`.
    """

    hosts: tuple[str, ...] = LOOPBACK
    api_key: str | None = None
    origins: tuple[str, ...] = ()
    body_seconds: float = 30.0


def protect(app: Starlette, access: Access) -> None:
    app.add_middleware(BodyTimeout, seconds=access.body_seconds)
    if access.api_key is not None:
        app.add_middleware(ApiKey, key=access.api_key)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(access.hosts), www_redirect=False)
    if access.origins:
        allowed = {"allow_origins": list(access.origins), "allow_methods": ["*"], "allow_headers": ["*"]}
        app.add_middleware(CORSMiddleware, **allowed, expose_headers=["x-seed", "x-higgs-stop-reason"])
    app.add_middleware(PlainRequest)


@dataclass(frozen=True)
class ConnectionLimits:
    """Connections open at once, in all and from one address; seconds for the headers of a request. `uncounted` are
    addresses without a limit of their own: all clients of a proxy on this machine come from there.
    """

    total: int = 1000
    per_address: int = 100
    head_seconds: float = 10.0
    uncounted: tuple[str, ...] = ("127.0.0.1", "::1")


def limited_protocol(limits: ConnectionLimits) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 within the limits: what is beyond gets 503, late headers 408, and the connection ends.

    uvicorn itself knows no such times, and counts requests; open files run out before it refuses one.
    """
    total = min(limits.total, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES))

    class LimitedProtocol(H11Protocol):
        head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            address = self.client[0] if self.client else ""
            same = sum(bool(other.client) and other.client[0] == address for other in self.connections)
            if len(self.connections) > total or (same > limits.per_address and address not in limits.uncounted):
                self.refuse("503 Service Unavailable")
            else:
                self.head_timer = self.loop.call_later(limits.head_seconds, self.refuse, "408 Request Timeout")

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:  # a request is here and being answered
                self.stop_timer()
            elif self.head_timer is None and not self.transport.is_closing():
                self.head_timer = self.loop.call_later(limits.head_seconds, self.refuse, "408 Request Timeout")

        def connection_lost(self, exc: Exception | None) -> None:
            self.stop_timer()
            super().connection_lost(exc)

        def stop_timer(self) -> None:
            if self.head_timer is not None:
                self.head_timer.cancel()
                self.head_timer = None

        def refuse(self, status: str) -> None:
            retry = "retry-after: 1\r\n" if status[0] == "5" else ""
            self.transport.write(f"HTTP/1.1 {status}\r\n{retry}content-length: 0\r\nconnection: close\r\n\r\n".encode())
            self.transport.close()

    return LimitedProtocol


class PlainRequest:
    """Refuses long paths, which would be logged whole, and bodies of two lengths, which a proxy may cut elsewhere."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        error, headers = None, Headers(scope=scope)
        if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_TARGET:
            error = ApiError(f"the path has more than {MAX_TARGET} bytes", code="invalid_value", status=414)
            scope.update(path=scope["path"][:100], raw_path=scope["raw_path"][:100], query_string=b"")  # for the log
        elif "content-length" in headers and "transfer-encoding" in headers:
            error = ApiError("content-length and transfer-encoding exclude each other", code="invalid_value")
        if error is None:
            return await self.app(scope, receive, send)
        await JSONResponse(error.body(), error.status, {"connection": "close"})(scope, receive, send)


class ApiKey:
    """Refuses requests without the key."""

    def __init__(self, app: ASGIApp, key: str):
        self.app, self.expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            sent = Headers(scope=scope).get("authorization", "").encode()
            if not hmac.compare_digest(sent, self.expected):
                error = ApiError("a key is needed: Authorization: Bearer KEY", code="invalid_api_key", status=401)
                return await JSONResponse(error.body(), 401, {"www-authenticate": "Bearer"})(scope, receive, send)
        await self.app(scope, receive, send)


class BodyTimeout:
    """Answers 408 where a body does not arrive in time, and ends the request."""

    def __init__(self, app: ASGIApp, seconds: float):
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        deadline, complete, late = asyncio.get_running_loop().time() + self.seconds, False, False

        async def timed_receive() -> Message:
            nonlocal complete, late
            if complete:  # what follows is the client's disconnect, however late
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                late = True
                return {"type": "http.disconnect"}
            complete = not message.get("more_body", False)
            return message

        async def send_unless_late(message: Message) -> None:
            if not late:
                await send(message)

        await self.app(scope, timed_receive, send_unless_late)
        if late:
            message = f"the body did not arrive within {self.seconds:g} s"
            error = ApiError(message, code="timeout", status=408)
            await JSONResponse(error.body(), 408, {"connection": "close"})(scope, receive, send)
