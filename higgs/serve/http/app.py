"""Speech over HTTP, in the form of OpenAI's interface: `python -m higgs serve`.

`/v1/audio/speech` streams; a listener who goes away gives the row back. The server listens on 127.0.0.1 unless it is
told otherwise, has no users and no keys, and is meant to stand behind something that has.
"""

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from higgs.audio import AudioEncoder
from higgs.config import SamplingConfig
from higgs.data.chatml import ChatMLSample, smart_voice
from higgs.data.text.checks import check_text
from higgs.data.voices import list_voices
from higgs.serve.batching.scheduler import Busy
from higgs.serve.engine import Engine
from higgs.serve.http.async_engine import AsyncEngine, Broken
from higgs.serve.http.prometheus import Metrics
from higgs.serve.http.speech_request import MEDIA_TYPES, Refusal, SpeechRequest, refusal_of
from higgs.serve.stream import Chunk

MAX_BODY = 1 << 20  # bytes
WARM_UP = "Good morning."

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerConfig:
    """`model` is the name that requests say. A request takes `max_characters` and `max_seconds` at most."""

    model: str = "nano"
    voices: Path = Path("data/voices")
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    max_new_tokens: int = 1024
    max_characters: int = 1000
    max_seconds: float = 120.0


@dataclass
class Asked:
    """A request that was found to be in order."""

    sample: ChatMLSample
    sampling: SamplingConfig
    max_new_tokens: int
    kind: str
    events: bool


def check(asked: SpeechRequest, config: ServerConfig) -> Asked:
    """Raises Refusal for what this server does not do."""
    if asked.model != config.model:
        raise Refusal(
            f"model: no {asked.model!r} here; this server has {config.model!r}", "model", "model_not_found", 404
        )  # fmt: skip
    if asked.speed != 1:
        raise Refusal(f"speed: only 1.0 is supported, got {asked.speed}", "speed", "unsupported_parameter")  # fmt: skip
    if len(asked.input) > config.max_characters:
        raise Refusal(
            f"input: {len(asked.input)} characters; at most {config.max_characters} are spoken at once: split the text "
            "between sentences",
            "input",
            "string_above_max_length",
        )
    for name in ("input", "scene"):
        try:
            if (text := getattr(asked, name)) is not None:
                check_text(text)
        except ValueError as error:
            raise Refusal(f"{name}: {error}", name, "invalid_value") from error
    voices = list_voices(config.voices)
    if (name := asked.voice_name) not in voices:
        raise Refusal(f"voice: no {name!r}; there are: {', '.join(voices)}", "voice", "voice_not_found")  # fmt: skip
    limit = asked.max_new_tokens or config.max_new_tokens
    if limit > config.max_new_tokens:
        raise Refusal(
            f"max_new_tokens: at most {config.max_new_tokens}, got {limit}", "max_new_tokens", "invalid_value"
        )  # fmt: skip
    own = ("seed", "temperature", "top_k", "top_p")
    own = {key: getattr(asked, key) for key in own if getattr(asked, key) is not None}
    sample = voices[name].prompt(asked.input, asked.scene)
    events = asked.stream_format == "sse"
    return Asked(sample, replace(config.sampling, **own), limit, asked.response_format, events)


def in_words(error: Exception) -> Refusal:
    """What went wrong while speaking -> what the client is told. Faults of our own are logged, not shown."""
    match error:
        case Refusal():
            return error
        case Busy():
            return Refusal(f"{error}; try again later", code="busy", status=429)
        case TimeoutError():
            return Refusal("the request took too long, and was ended", code="timeout", status=504)
        case Broken():
            return Refusal(str(error), code="engine_stopped", status=503)
        case ValueError():
            return Refusal(f"input: {error}", "input", "invalid_value")
        case RuntimeError() if "out of memory" in str(error):
            return Refusal(str(error), code="out_of_memory", status=503)
    logger.error("a request failed", exc_info=error)
    return Refusal("the engine failed; the server's log says why", code="failed", status=500)


class Speech(Response):
    """Audio while it is made. An error before the first piece is an answer; later it breaks the connection off."""

    def __init__(self, asked: Asked, front: AsyncEngine, metrics: Metrics, seconds: float):
        self.asked, self.front, self.metrics, self.seconds = asked, front, metrics, seconds
        self.background, self.started = None, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        speaking = asyncio.create_task(self._speak(send))
        leaving = asyncio.create_task(self._gone(receive))
        outcome = "failed"
        try:
            # A listener who never reads holds `send` up: so the limit is here as well.
            await asyncio.wait(
                (speaking, leaving), timeout=self.seconds + 1, return_when=asyncio.FIRST_COMPLETED
            )
            if speaking.done():
                await speaking
                outcome = "spoken"
            else:
                outcome = "left" if leaving.done() else "timeout"
                if not leaving.done():
                    raise TimeoutError
        except Exception as error:
            refusal = in_words(error)
            outcome = refusal.code or "failed"
            if self.started:
                raise ConnectionAbortedError(str(refusal)) from error
            await refuse(refusal)(scope, receive, send)
        finally:
            for task in (speaking, leaving):
                task.cancel()
            await asyncio.gather(speaking, leaving, return_exceptions=True)
            self.metrics.requests.labels(outcome).inc()

    @staticmethod
    async def _gone(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _speak(self, send: Send) -> None:
        began, samples = time.monotonic(), 0
        rate = self.front.engine.tokenizer.sample_rate
        encoder = AudioEncoder(self.asked.kind, rate)
        asked = (self.asked.sample, self.asked.sampling, self.asked.max_new_tokens, self.seconds)
        async with aclosing(self.front.stream(*asked)) as chunks:
            async for chunk in chunks:
                data = encoder.write(chunk.waveform) if len(chunk.waveform) else b""
                if chunk.stop_reason and not samples + len(chunk.waveform):
                    raise Refusal("the model ended its turn without audio; try another seed",
                                  "seed", "no_audio", 500)  # fmt: skip
                if not samples and len(chunk.waveform):
                    self.metrics.first_packet.observe(time.monotonic() - began)
                samples += len(chunk.waveform)
                if chunk.stop_reason:
                    data += encoder.finish()
                    self.metrics.audio_seconds.inc(samples / rate)
                    self.metrics.whole.observe(time.monotonic() - began)
                await self._send(send, data, chunk, samples)

    async def _send(self, send: Send, data: bytes, chunk: Chunk, samples: int) -> None:
        """Headers come with the first bytes; a FLAC file, whose bytes come all at once, has a length."""
        last, body = chunk.stop_reason is not None, data
        if self.asked.events:
            body = self._events(data, chunk.stop_reason, samples) if data or last else b""
        if not body and not last:
            return
        if not self.started:
            self.started = True
            kind = "text/event-stream" if self.asked.events else MEDIA_TYPES[self.asked.kind]
            headers = {"content-type": kind, "cache-control": "no-store"}
            headers["x-seed"] = str(self.asked.sampling.seed)
            if last:
                headers["content-length"] = str(len(body))
            raw = [(k.encode(), v.encode()) for k, v in headers.items()]
            await send({"type": "http.response.start", "status": 200, "headers": raw})
        await send({"type": "http.response.body", "body": body, "more_body": not last})

    def _events(self, data: bytes, stop_reason: str | None, samples: int) -> bytes:
        """As OpenAI's: `speech.audio.delta` with base64, then `speech.audio.done`."""
        events = []
        if data:
            audio = base64.b64encode(data).decode()
            events.append({"type": "speech.audio.delta", "audio": audio})
        if stop_reason:
            seconds = samples / self.front.engine.tokenizer.sample_rate
            usage = {"audio_seconds": seconds}
            done = {"type": "speech.audio.done", "stop_reason": stop_reason, "usage": usage}
            events.append(done)
        return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def refuse(refusal: Refusal) -> JSONResponse:
    headers = {"retry-after": "1"} if refusal.status in (429, 503) else None
    return JSONResponse(refusal.body(), refusal.status, headers)


class BodyLimit:
    """Answers 413 to a body of more than `most` bytes, without keeping it."""

    def __init__(self, app: ASGIApp, most: int):
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.most:
                raise HTTPException(413, f"a body of more than {self.most} bytes")
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)


def make_app(engine: Engine, config: ServerConfig) -> FastAPI:
    """The engine behind HTTP. Its threads start and end with the app."""

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        front = AsyncEngine(engine)
        app.state.front, app.state.metrics = front, Metrics(front)
        try:
            async with aclosing(front.stream(smart_voice(WARM_UP), config.sampling, 30)) as chunks:
                async for _ in chunks:
                    pass
            engine.scheduler.stops.clear()
            yield
        finally:
            front.close()

    # The pages of documentation would fetch their scripts from elsewhere; /openapi.json is all here.
    app = FastAPI(title="higgs", lifespan=running, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, most=MAX_BODY)
    handle_errors(app)

    @app.post("/v1/audio/speech", response_class=Response)
    async def speech(asked: SpeechRequest) -> Speech:
        checked = await asyncio.to_thread(check, asked, config)
        return Speech(checked, app.state.front, app.state.metrics, config.max_seconds)

    @app.get("/v1/audio/voices")
    def voices() -> dict:
        """The folder as it is now."""
        return {
            "voices": [
                {"id": name, "name": name, "description": voice.description, "recorded": voice.audio is not None}
                for name, voice in list_voices(config.voices).items()
            ]
        }  # fmt: skip

    @app.get("/v1/models")
    def models() -> dict:
        model = {"id": config.model, "object": "model", "created": 0, "owned_by": "local"}
        return {"object": "list", "data": [model]}

    @app.get("/health")
    def health() -> JSONResponse:
        front = app.state.front
        running, waiting = len(front.scheduler.running), len(front.scheduler.waiting)
        status = "ok" if front.healthy else "stopped"
        told = {"status": status, "model": config.model, "running": running, "waiting": waiting}
        return JSONResponse(told, 200 if front.healthy else 503)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(app.state.metrics.text(), media_type="text/plain; version=0.0.4")

    return app


def handle_errors(app: FastAPI) -> None:
    """Every error in OpenAI's JSON form."""
    handlers: dict[type[Exception], Callable[[Exception], Refusal]] = {
        Refusal: lambda error: error,
        RequestValidationError: lambda error: refusal_of(error.errors()),
        HTTPException: lambda error: Refusal(str(error.detail), status=error.status_code),
        Exception: in_words,
    }
    for kind, words in handlers.items():

        async def handler(request: Request, error: Exception, words=words) -> JSONResponse:
            if isinstance(error, Refusal | RequestValidationError):
                app.state.metrics.requests.labels("refused").inc()
            return refuse(words(error))

        app.exception_handler(kind)(handler)


def serve(engine: Engine, config: ServerConfig, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Until it is interrupted; what is being spoken then has ten seconds to end."""
    app = make_app(engine, config)
    uvicorn.run(app, host=host, port=port, log_level="info", timeout_graceful_shutdown=10)
