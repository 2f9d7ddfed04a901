"""Speech over HTTP, in the form of OpenAI's interface: `higgs serve`.

`/v1/audio/speech` streams; a client that disconnects frees its slot. The server binds 127.0.0.1 by default, has no
users and no keys, and is meant to stand behind something that has.
"""

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.sse import format_sse_event
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from higgs.config import SamplingConfig
from higgs.data.chatml import smart_voice
from higgs.data.speech import SpeechRequest
from higgs.data.voices import Voice, list_voices
from higgs.serve.batching.scheduler import QueueFull
from higgs.serve.engine import Engine
from higgs.serve.generation import GenerationConfig
from higgs.serve.http.async_engine import AsyncEngine, EngineDead
from higgs.serve.http.audio_encoder import MEDIA_TYPES, AudioEncoder
from higgs.serve.http.prometheus import Metrics
from higgs.serve.http.speech_request import ApiError, SpeechBody, validation_error

MAX_BODY = 1 << 20  # bytes
WARM_UP = "Good morning."
FAILED = "the server failed; its log says why"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerConfig:
    """`model` is the name that requests give. The limits are those of one request.

    `sampling` and `max_new_tokens` None: the checkpoint's.
    """

    model: str = "nano"
    voices: Path = Path("data/voices")
    sampling: SamplingConfig | None = None
    max_new_tokens: int | None = None
    max_characters: int = 1000
    max_seconds: float = 120.0

    def completed(self, own: GenerationConfig) -> "ServerConfig":
        limit = self.max_new_tokens or own.max_new_tokens
        return replace(self, sampling=self.sampling or own.sampling, max_new_tokens=limit)


def read_voices(folder: Path) -> dict[str, Voice]:
    """As `list_voices`, but a broken folder is a RuntimeError: the client is not to blame for it."""
    try:
        return list_voices(folder)
    except ValueError as error:
        raise RuntimeError(f"voice folder {folder}: {error}") from error


def to_request(body: SpeechBody, config: ServerConfig) -> SpeechRequest:
    """Raises ApiError for what this server does not do."""
    if body.model != config.model:
        message = f"model: no {body.model!r:.60} here; this server has {config.model!r}"
        raise ApiError(message, "model", "model_not_found", 404)
    if body.speed != 1:
        message = f"speed: only 1.0 is supported, got {body.speed}"
        raise ApiError(message, "speed", "unsupported_parameter")
    for name in ("input", "scene"):
        length = len(getattr(body, name) or "")
        if length > config.max_characters:
            message = f"{name}: {length} characters; at most {config.max_characters} in one request"
            raise ApiError(message, name, "string_above_max_length")
    voices = read_voices(config.voices)
    if (name := body.voice_name) not in voices:
        message = f"voice: no {name!r:.60}; there are: {', '.join(voices)}"
        raise ApiError(message, "voice", "voice_not_found")
    limit = body.max_new_tokens or config.max_new_tokens
    if limit > config.max_new_tokens:
        message = f"max_new_tokens: at most {config.max_new_tokens}, got {limit}"
        raise ApiError(message, "max_new_tokens", "invalid_value")
    settings = {key: getattr(body, key) for key in ("seed", "temperature", "top_k", "top_p")}
    sample, sampling = voices[name].prompt(body.input, body.scene), config.sampling.override(**settings)
    return SpeechRequest((sample,), sampling=sampling, max_new_tokens=limit)


def to_api_error(error: Exception) -> ApiError:
    """What went wrong while speaking -> the answer. The server's own faults are logged, not shown."""
    match error:
        case QueueFull():
            return ApiError(f"{error}; try again later", code="busy", status=429)
        case TimeoutError():
            return ApiError("the request took too long", code="timeout", status=504)
        case EngineDead():
            message = "the engine has stopped; the server's log says why"
            return ApiError(message, code="engine_stopped", status=503)
        case ValueError():
            return ApiError(f"input: {error}", "input", "invalid_value")
        case RuntimeError(__cause__=torch.OutOfMemoryError()):  # in the scheduler's words
            return ApiError(str(error), code="out_of_memory", status=503)
    logger.error("a request failed", exc_info=error)
    if isinstance(error, torch.OutOfMemoryError):
        return ApiError("out of memory: ask for less at a time", code="out_of_memory", status=503)
    return ApiError(FAILED, code="failed", status=500)


@contextmanager
def accounted(metrics: Metrics, seconds: float) -> Iterator[None]:
    """Counts one speech request by its outcome. Raises ApiError in place of any other Exception."""
    started, outcome = time.monotonic(), "spoken"
    try:
        with metrics.open.track_inprogress():
            yield
    except ApiError as error:
        outcome = error.code
        raise
    except Exception as error:
        answer = to_api_error(error)
        outcome = answer.code
        raise answer from error
    except BaseException:  # cancelled or closed: the client has left, or reads too slowly
        outcome = "timeout" if time.monotonic() - started >= seconds else "left"
        raise
    finally:
        metrics.requests.labels(outcome).inc()


async def speak(body: SpeechBody, config: ServerConfig, engine: AsyncEngine, metrics: Metrics) -> AsyncIterator[bytes]:
    """-> the response's body, in at least one part, each of at least one byte. Raises ApiError."""
    with accounted(metrics, config.max_seconds):
        request = await asyncio.to_thread(to_request, body, config)
        started, samples, rate = time.monotonic(), 0, engine.engine.tokenizer.sample_rate
        encoder = AudioEncoder(body.response_format, rate)
        async with aclosing(engine.stream(request, config.max_seconds)) as chunks:
            async for chunk in chunks:
                data = encoder.write(chunk.waveform) if len(chunk.waveform) else b""
                if not samples:
                    if not len(chunk.waveform):
                        message = "the model ended its turn without audio; try another seed"
                        raise ApiError(message, "seed", "no_audio", 500)
                    metrics.first_audio.observe(time.monotonic() - started)
                samples += len(chunk.waveform)
                if chunk.stop_reason:
                    data += encoder.finish()
                    metrics.audio_seconds.inc(samples / rate)
                    metrics.whole.observe(time.monotonic() - started)
                if body.stream_format == "sse":
                    data = events(data, chunk.stop_reason, samples / rate)
                if data:
                    yield data


def events(data: bytes, stop_reason: str | None, seconds: float) -> bytes:
    """Server-sent events as OpenAI's: `speech.audio.delta` with base64, at the end `speech.audio.done`."""
    made = []
    if data:
        made.append({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
    if stop_reason:
        usage = {"audio_seconds": seconds}
        made.append({"type": "speech.audio.done", "stop_reason": stop_reason, "usage": usage})
    return b"".join(format_sse_event(data_str=json.dumps(event)) for event in made)


class SpeechResponse(StreamingResponse):
    """A streamed body whose headers wait for its first piece: an error before it is an answer with its own status.

    An error after it closes the connection; so does the end of `seconds`, also where the client does not read. The body
    is closed in every case, which frees the slot. A FLAC file is one piece, so its length is known.
    """

    def __init__(self, body: AsyncIterator[bytes], seconds: float, **more):
        super().__init__(body, **more)
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # The engine has the same deadline; this one, a second later, is for a client that does not read.
            async with aclosing(self.body_iterator), asyncio.timeout(self.seconds + 1):
                await super().__call__(scope, receive, send)
        except TimeoutError as error:
            raise to_api_error(error) from error

    async def stream_response(self, send: Send) -> None:
        first = await anext(self.body_iterator)
        if self.media_type == MEDIA_TYPES["flac"]:
            self.headers["content-length"] = str(len(first))
        self.body_iterator = _chain(first, self.body_iterator)
        await super().stream_response(send)


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def make_app(engine: Engine, config: ServerConfig) -> FastAPI:
    """The engine behind HTTP. Its threads start and end with the app."""
    config = config.completed(engine.generation)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.async_engine = async_engine = AsyncEngine(engine)
        try:
            warm_up = async_engine.stream(SpeechRequest((smart_voice(WARM_UP),), max_new_tokens=30))
            async with aclosing(warm_up) as chunks:
                async for _ in chunks:
                    pass
            engine.scheduler.stops.clear()
            yield
        finally:
            async_engine.close()

    # The pages of documentation would fetch their scripts from elsewhere; /openapi.json is all here.
    app = FastAPI(title="higgs", lifespan=lifespan, docs_url=None, redoc_url=None, max_body_size=MAX_BODY)
    metrics = Metrics(engine)
    handle_errors(app, metrics)
    app.add_route("/metrics", lambda _: metrics.app)

    @app.post("/v1/audio/speech", response_class=Response)
    async def speech(body: SpeechBody) -> SpeechResponse:
        sse = body.stream_format == "sse"
        seed = config.sampling.seed if body.seed is None else body.seed
        return SpeechResponse(
            speak(body, config, app.state.async_engine, metrics),
            config.max_seconds,
            media_type="text/event-stream" if sse else MEDIA_TYPES[body.response_format],
            headers={"cache-control": "no-store", "x-seed": str(seed)},
        )

    @app.get("/v1/audio/voices")
    def voices() -> dict:
        """The folder as it is now."""
        return {
            "voices": [
                {"id": name, "name": name, "description": voice.description, "recorded": voice.audio is not None}
                for name, voice in read_voices(config.voices).items()
            ]
        }  # fmt: skip

    @app.get("/v1/models")
    def models() -> dict:
        model = {"id": config.model, "object": "model", "created": 0, "owned_by": "local"}
        return {"object": "list", "data": [model]}

    @app.get("/health")
    def health() -> JSONResponse:
        healthy, scheduler = app.state.async_engine.healthy, engine.scheduler
        counts = {"running": len(scheduler.running), "waiting": len(scheduler.waiting)}
        body = {"status": "ok" if healthy else "stopped", "model": config.model} | counts
        return JSONResponse(body, 200 if healthy else 503)

    return app


def handle_errors(app: FastAPI, metrics: Metrics) -> None:
    """Errors are answered in OpenAI's JSON form; only the body limit's 413 can be plain text."""

    def answer(error: ApiError, headers: dict[str, str] | None = None) -> JSONResponse:
        retry = {"retry-after": "1"} if error.status in (429, 503) else {}
        return JSONResponse(error.body(), error.status, retry | (headers or {}))

    @app.exception_handler(ApiError)
    async def api_error(_, error: ApiError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_, error: RequestValidationError) -> JSONResponse:
        found = validation_error(error.errors())
        metrics.requests.labels(found.code).inc()
        return answer(found)

    @app.exception_handler(HTTPException)
    async def http_error(_, error: HTTPException) -> JSONResponse:
        return answer(ApiError(str(error.detail), status=error.status_code), error.headers)

    @app.exception_handler(Exception)
    async def fault(_, error: Exception) -> JSONResponse:
        """Starlette raises it again, and uvicorn logs it."""
        return answer(ApiError(FAILED, code="failed", status=500))


def serve(engine: Engine, config: ServerConfig, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Until it is interrupted; open requests then have ten seconds to end."""
    app = make_app(engine, config)
    uvicorn.run(app, host=host, port=port, log_level="info", timeout_graceful_shutdown=10)
