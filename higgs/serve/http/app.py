"""Speech over HTTP, in the form of OpenAI's interface: `higgs serve`.

`/v1/audio/speech` streams; a client that disconnects frees its slot. The server binds 127.0.0.1 by default, and has at
most one key.
"""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from higgs.config import SamplingConfig
from higgs.data.chatml import AudioContent, smart_voice
from higgs.data.speech import SpeechRequest, speech_request
from higgs.data.text.chunks import ChunkOptions
from higgs.serve.batching.scheduler import QueueFull
from higgs.serve.engine import Engine
from higgs.serve.http.access import Access, ConnectionLimits, limited_protocol, protect
from higgs.serve.http.async_engine import AsyncEngine, EngineDead
from higgs.serve.http.audio_encoder import MEDIA_TYPES, AudioEncoder
from higgs.serve.http.pages import add_pages, readable
from higgs.serve.http.prometheus import Metrics
from higgs.serve.http.references import (
    Recogniser,
    add_references,
    check_sender,
    encode,
    find_voices,
    voices_now,
)
from higgs.serve.http.speech_request import ApiError, Reference, SpeechBody, timed_out, validation_error
from higgs.serve.http.speech_response import SpeechResponse, events
from higgs.serve.long_form import SilentChunkError

MAX_BODY = 1 << 20  # bytes
WARM_UP = "Good morning."
NO_EVENTS = 'they come as an event after the audio: ask for "stream_format": "sse" too'
FAILED = "the server failed; its log says why"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerConfig:
    """`model` is the name that requests give. The limits are those of one request.

    `sampling`, `max_new_tokens` and `chunks` None: the checkpoint's. `recogniser` hears recordings that clients send.
    `on_start` gets the server's address once it takes requests.
    """

    model: str = "nano"
    voices: Path = Path("data/voices")
    sampling: SamplingConfig | None = None
    max_new_tokens: int | None = None
    chunks: ChunkOptions | None = None
    max_characters: int = 4096
    max_seconds: float = 120.0
    recogniser: Recogniser | None = None
    on_start: Callable[[str], None] | None = None


def check_model(name: str, config: ServerConfig) -> None:
    if name != config.model:
        message = f"model: no {name!r:.60} here; this server has {config.model!r}"
        raise ApiError(message, "model", "model_not_found", 404)


def to_request(
    body: SpeechBody, config: ServerConfig, engine: Engine
) -> tuple[SpeechRequest, dict[AudioContent, torch.Tensor]]:
    """-> the request, and the codes of its recordings.

    Raises ApiError for what this server does not do, and for a voice that cannot be read.
    """
    check_model(body.model, config)
    voice = find_voices(body, *voices_now(config.voices))
    limit, most = body.max_new_tokens or config.max_new_tokens, config.max_new_tokens
    delay, lengths = engine.tokenizer.num_codebooks, [len(text or "") for text in (body.input, body.scene)]
    too_long = f"more than {config.max_characters} characters in one request"
    for wrong, param, code, message in (
        (body.speed != 1, "speed", "unsupported_parameter", f"only 1.0 is supported, got {body.speed}"),
        (lengths[0] > config.max_characters, "input", "string_above_max_length", too_long),
        (lengths[1] > config.max_characters, "scene", "string_above_max_length", too_long),
        (body.timestamps and body.stream_format != "sse", "timestamps", "invalid_value", NO_EVENTS),
        (limit > most, "max_new_tokens", "invalid_value", f"at most {most}, got {limit}"),
        (limit <= delay, "max_new_tokens", "invalid_value", f"{limit}: the first {delay} steps have no audio"),
    ):
        if wrong:
            raise ApiError(f"{param}: {message}", param, code)
    sampling = config.sampling.override(**body.model_dump(include={"seed", "temperature", "top_k", "top_p"}))
    settings = {"sampling": sampling, "max_new_tokens": limit, "normalize": "words" if body.normalize else None}
    request = speech_request(body.input, voice, config.chunks, body.scene, **settings)
    voices = voice.values() if isinstance(voice, dict) else [voice]
    return request, {each.reference: encode(each, engine) for each in voices if each.audio is not None}


def to_api_error(error: Exception) -> ApiError:
    """What went wrong while speaking -> the answer. The server's own faults are logged, not shown."""
    match error:
        case QueueFull():
            return ApiError(f"{error}; try again later", code="busy", status=429)
        case TimeoutError():
            return timed_out()
        case SilentChunkError():
            return ApiError(str(error), "seed", "no_audio", 500)
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
def accounted(metrics: Metrics, deadline: float) -> Iterator[None]:
    """Counts one speech request by its outcome. Raises ApiError in place of any other Exception."""
    loop, outcome = asyncio.get_running_loop(), "spoken"
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
        outcome = "timeout" if loop.time() >= deadline else "left"
        raise
    finally:
        metrics.requests.labels(outcome).inc()


async def speak(
    body: SpeechBody, config: ServerConfig, engine: AsyncEngine, metrics: Metrics, headers: dict[str, str]
) -> AsyncIterator[bytes]:
    """-> the response's body, in at least one part, each of at least one byte. Raises ApiError.

    `headers` has the stop reason before the last part is yielded, which is in time where the first is the last.
    """
    deadline = asyncio.get_running_loop().time() + config.max_seconds
    parts: dict[int, tuple[float, list[torch.Tensor]]] = {}  # when each begins, and its codes
    with accounted(metrics, deadline), engine.admission():
        started, samples, rate = time.monotonic(), 0, engine.engine.tokenizer.sample_rate
        request, codes = await asyncio.to_thread(to_request, body, config, engine.engine)
        encoder = AudioEncoder(body.response_format, rate)
        async with aclosing(engine.stream(request, deadline, True, codes.__getitem__)) as chunks:
            async for chunk in chunks:
                data = encoder.write(chunk.waveform) if len(chunk.waveform) else b""
                if not samples and len(chunk.waveform):
                    metrics.first_audio.observe(time.monotonic() - started)
                if body.timestamps and chunk.codes.shape[1]:
                    parts.setdefault(chunk.part, (samples / rate, []))[1].append(chunk.codes)
                samples += len(chunk.waveform)
                if chunk.stop_reason:
                    if not samples:
                        message = "the model ended its turn without audio; try another seed"
                        raise ApiError(message, "seed", "no_audio", 500)
                    headers["x-higgs-stop-reason"] = chunk.stop_reason
                    data += encoder.finish()
                    metrics.audio_seconds.inc(samples / rate)
                    metrics.whole.observe(time.monotonic() - started)
                if body.stream_format == "sse":
                    data = events(data, None if body.timestamps else chunk.stop_reason, samples / rate)
                if data:
                    yield data
        if body.timestamps:
            words = await engine.word_times(request, parts, deadline, codes.__getitem__)
            yield events(b"", chunk.stop_reason, samples / rate, words)


def make_app(
    engine: Engine, config: ServerConfig, access: Access | None = None, running: AsyncEngine | None = None
) -> FastAPI:
    """The engine behind HTTP. Its threads start with the app, but for those of `running`, and end with it."""
    names = ("sampling", "max_new_tokens", "chunks")
    config = replace(config, **{name: getattr(config, name) or getattr(engine.generation, name) for name in names})

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with closing(running or AsyncEngine(engine)) as app.state.async_engine:
            yield

    # FastAPI's pages of documentation would fetch their scripts from elsewhere: /docs is ours.
    app = FastAPI(title="higgs", lifespan=lifespan, docs_url=None, redoc_url=None, max_body_size=MAX_BODY)
    access = access or Access()
    protect(app, access)
    metrics = Metrics(engine)
    handle_errors(app, metrics)
    app.add_route("/metrics", lambda _: metrics.app)
    add_pages(app)

    @app.post("/v1/audio/speech", response_class=Response)
    async def speech(body: SpeechBody, request: Request) -> SpeechResponse:
        """Speech, while it is made."""
        if any(isinstance(voice, Reference) for voice in body.cast):
            check_sender(request, access)
        sse = body.stream_format == "sse"
        seed = config.sampling.seed if body.seed is None else body.seed
        late_headers: dict[str, str] = {}
        return SpeechResponse(
            speak(body, config, app.state.async_engine, metrics, late_headers),
            config.max_seconds,
            late_headers,
            media_type="text/event-stream" if sse else MEDIA_TYPES[body.response_format],
            headers={"cache-control": "no-store", "x-seed": str(seed)},
        )

    add_references(app, access, config, MAX_BODY)
    add_listings(app, engine, config)
    return app


def add_listings(app: FastAPI, engine: Engine, config: ServerConfig) -> None:
    """What can be read: voices, models, health."""
    read = partial(readable, app)

    @read("/v1/audio/voices")
    def voices() -> dict:
        """The folder as it is now."""
        usable, _ = voices_now(config.voices)
        listed = [(name, voice.description, voice.audio is not None) for name, voice in usable.items()]
        return {"voices": [{"id": n, "name": n, "description": text, "recorded": r} for n, text, r in listed]}

    @read("/v1/models")
    def models() -> dict:
        """The one name that requests may say."""
        return {"object": "list", "data": [model(config.model)]}

    @read("/v1/models/{name:path}")
    def model(name: str) -> dict:
        """The same, alone."""
        check_model(name, config)
        return {"id": name, "object": "model", "created": 0, "owned_by": "local"}

    @read("/health")
    async def health() -> JSONResponse:
        """200, or 503 once the engine has given up; needs no key."""
        healthy, scheduler = app.state.async_engine.healthy, engine.scheduler
        counts = {"running": len(scheduler.running), "waiting": len(scheduler.waiting)}
        body = {"status": "ok" if healthy else "stopped", "model": config.model} | counts
        return JSONResponse(body, 200 if healthy else 503)


def handle_errors(app: FastAPI, metrics: Metrics) -> None:
    """Errors are answered in OpenAI's JSON form, but for those of what stands before the application."""

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


async def warm_up(async_engine: AsyncEngine) -> None:
    """A short request, so that the first client waits for nothing that is allocated, compiled or captured."""
    speech = async_engine.stream(SpeechRequest((smart_voice(WARM_UP),), (), max_new_tokens=30))
    async with aclosing(speech) as chunks:
        async for _ in chunks:
            pass
    async_engine.scheduler.stops.clear()


class Server(uvicorn.Server):
    """When it is told to stop, requests that wait for a slot are answered at once, and those in one may end."""

    async_engine: AsyncEngine
    on_start: Callable[[str], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await warm_up(self.async_engine)  # not in the app's lifespan, whose errors uvicorn logs as tracebacks
        await super().startup(sockets)
        if self.started and self.on_start is not None:
            host, port, *_ = self.servers[0].sockets[0].getsockname()
            host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
            self.on_start(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if engine := getattr(self.config.app.state, "async_engine", None):  # None: it is still starting
            engine.drain()
        super().handle_exit(sig, frame)


def serve(
    engine: Engine,
    config: ServerConfig,
    access: Access | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    grace_seconds: int = 10,
    connections: ConnectionLimits | None = None,
) -> None:
    """Until it is interrupted; running requests then have `grace_seconds` to end."""
    limits = {"http": limited_protocol(connections or ConnectionLimits())}
    with closing(AsyncEngine(engine)) as async_engine, suppress(KeyboardInterrupt):
        app = make_app(engine, config, access, async_engine)
        server = Server(uvicorn.Config(app, host, port, timeout_graceful_shutdown=grace_seconds, **limits))
        server.async_engine, server.on_start = async_engine, config.on_start
        server.run()
