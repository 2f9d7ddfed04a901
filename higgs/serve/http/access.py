"""Who may use the server, from where, and how long a request may take to arrive."""

import asyncio
import hmac
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from higgs.serve.http.speech_request import ApiError

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
OPEN_PATHS = ("/health", "/", "/docs")  # answer without a key: the pages ask for it, and hold no data


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
