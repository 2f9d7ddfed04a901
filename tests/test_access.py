"""Who may use the server, and what is not OpenAI's own: long texts, null fields, keys, the end of the server."""

import asyncio
import json
import logging
import socket
import time
from contextlib import ExitStack, suppress
from dataclasses import replace

import httpx
import pytest
import torch
from test_server import Server, wait_for

from higgs import Engine
from higgs.config import SamplingConfig
from higgs.data.speech import speech_request
from higgs.data.text.chunks import ChunkOptions
from higgs.data.voices import find_voice
from higgs.serve import long_form
from higgs.serve.alignment import times_of
from higgs.serve.engine import EngineConfig
from higgs.serve.http.access import Access, ConnectionLimits, limited_protocol
from higgs.serve.http.app import ServerConfig
from higgs.serve.http.async_engine import AsyncEngine, EngineDead

CHUNKS = ChunkOptions(max_words=4, match_levels=False, retries=0)  # a stream cannot retry what was cut off
SAMPLING = SamplingConfig(temperature=0.7, seed=1)
LIMIT = 40
BODY = {"model": "tiny", "voice": "ada", "input": "Good morning.", "response_format": "pcm", "max_new_tokens": LIMIT}
LONG = "The train is late. We walk home.\n\nThe end of it all."


@pytest.fixture(scope="module")
def engine(tiny_parts) -> Engine:
    return Engine(*tiny_parts, EngineConfig(max_batch=2, max_positions=900, runaway=None))


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    (folder / "profiles.json").write_text('{"ada": "feminine"}')
    return folder


@pytest.fixture(scope="module")
def serve(engine, voices):
    """-> a function from `Access` to a server."""
    config = ServerConfig("tiny", voices, SAMPLING, 400, CHUNKS)
    with ExitStack() as servers:
        yield lambda access=None: servers.enter_context(Server(engine, config, access))


@pytest.fixture(scope="module")
def client(serve) -> httpx.Client:
    return serve().http


def speech(client: httpx.Client, **more) -> httpx.Response:
    return client.post("/v1/audio/speech", json=BODY | more)


def test_a_long_text_is_spoken_in_chunks_as_elsewhere(client, engine, voices):
    request = speech_request(LONG, find_voice(voices, "ada"), CHUNKS, normalize="words")
    request = replace(request, sampling=SAMPLING.override(seed=3), max_new_tokens=LIMIT)
    assert len(request.chunks) == 4
    whole = long_form.speak(engine, request).waveform
    answer = speech(client, input=LONG, seed=3)
    streamed = torch.frombuffer(bytearray(answer.content), dtype=torch.int16).float() / 32767
    assert len(streamed) == len(whole)
    torch.testing.assert_close(streamed, whole.clamp(-1, 1), rtol=0, atol=2 / 32767)


def test_the_words_of_a_long_text_have_times_in_the_whole(client, engine, voices):
    request = speech_request(LONG, find_voice(voices, "ada"), CHUNKS, normalize="words", max_new_tokens=LIMIT)
    response = long_form.speak(engine, replace(request, sampling=SAMPLING.override(seed=3)))
    spans = [(span.frames, span.start / response.sample_rate) for span in response.chunks]
    answer = speech(client, input=LONG, seed=3, stream_format="sse", timestamps=True)
    *_, timed, _ = [json.loads(event.removeprefix("data: ")) for event in answer.text.strip().split("\n\n")]
    assert timed["words"] == times_of(engine, request.samples, response.codes, spans)
    said = [word for sample in request.samples for word in sample.messages[-1].parts[-1].text.split()]
    assert [each["word"] for each in timed["words"]] == said and spans[-1][1] > 1


def test_the_stop_reason_is_told(client):
    """In the header where all is there before it, and in the last event."""
    reason = speech(client, response_format="flac").headers["x-higgs-stop-reason"]
    assert reason in ("stop", "length")
    *_, last = speech(client, stream_format="sse").text.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["stop_reason"] == reason


def test_a_fade_in_parts_is_the_fade_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    for length in (1, 50, 119, 240, 241, 1000):
        waveform = torch.randn(length, generator=generator)
        for size in (7, 100, 2000):
            stream = long_form.StreamFade(120)
            parts = [stream.push(part) for part in waveform.split(size)] + [stream.finish()]
            assert torch.allclose(torch.cat(parts), long_form.fade(waveform, 120)), (length, size)


def test_null_and_neutral_values_ask_for_nothing(client):
    nulls = dict.fromkeys(("instructions", "speed", "language", "stream_format", "seed", "scene"))
    for neutral in (nulls, {"instructions": ""}, {"stream": False}):
        assert speech(client, **neutral).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1", 200), ("localhost:8000", 200), ("[::1]:8000", 200), ("evil.example", 400),
     ("127.0.0.1.evil.example", 400)],
)  # fmt: skip
def test_another_name_of_this_machine_is_refused(client, host, status):
    assert client.get("/health", headers={"host": host}).status_code == status


def test_a_key_and_an_origin(serve):
    client = serve(Access(api_key="secret", origins=("https://page.example",))).http
    assert client.get("/health").status_code == 200
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
        answer = client.get("/v1/models", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert client.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    for origin, status in (("https://page.example", 200), ("https://other.example", 400)):
        answer = client.options("/v1/audio/speech", headers=asked | {"origin": origin})
        assert answer.status_code == status
        assert answer.headers.get("access-control-allow-origin", origin) == origin


def test_a_body_that_does_not_arrive_is_given_up(serve):
    port = serve(Access(body_seconds=0.3)).port
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408")


def exchange(port: int, *parts: bytes, pause: float = 0.05) -> bytes:
    """What comes back for bytes sent one after another, until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        with suppress(OSError):
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        answer = b""
        with suppress(ConnectionError):
            while part := connection.recv(4096):
                answer += part
    return answer


@pytest.fixture(scope="module")
def limited(engine, voices):
    limits = ConnectionLimits(total=6, per_address=4, head_seconds=0.4, uncounted=())
    config = ServerConfig("tiny", voices, SAMPLING, 400, CHUNKS)
    with Server(engine, config, http=limited_protocol(limits)) as server:
        yield server


HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "parts",
    [(), (b"GET /hea",), (HEALTH,), (HEALTH[:1], *(HEALTH[n : n + 1] for n in range(1, 20))),
     (HEALTH + b"\r\n", HEALTH[:20])],
    ids=["nothing", "half a line", "half the headers", "byte by byte", "the second of a connection"],
)  # fmt: skip
def test_headers_that_do_not_arrive_are_given_up(limited, parts):
    started = time.monotonic()
    answers = exchange(limited.port, *parts)
    assert answers.startswith(b"HTTP/1.1 200") == (len(parts) == 2), "what came whole is answered"
    assert b"HTTP/1.1 408 Request Timeout" in answers and time.monotonic() - started < 5


def test_a_request_that_arrived_has_its_own_time(limited, engine, monkeypatch):
    """More than that of the headers."""
    run_steps = engine.scheduler.run_steps
    monkeypatch.setattr(engine.scheduler, "run_steps", lambda: (time.sleep(0.15), run_steps())[1])
    started = time.monotonic()
    assert speech(limited.http).status_code == 200 and time.monotonic() - started > 1


def test_connections_of_one_address_and_in_all(limited, engine, voices):
    limited.http.close()
    limited.http = httpx.Client(base_url=str(limited.http.base_url))
    for server, places in ((limited, 4), (None, 3)):
        with ExitStack() as stack:
            if server is None:  # addresses that are not counted meet the other limit
                limits = ConnectionLimits(total=3, per_address=1)
                config = ServerConfig("tiny", voices, SAMPLING, 400, CHUNKS)
                server = stack.enter_context(Server(engine, config, http=limited_protocol(limits)))
            wait_for(lambda server=server: not server.server.server_state.connections)
            address = ("127.0.0.1", server.port)
            held = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(places)]
            wait_for(lambda server=server, places=places: len(server.server.server_state.connections) == places)
            assert exchange(server.port, HEALTH + b"\r\n").startswith(b"HTTP/1.1 503")
            held[0].close()
            wait_for(lambda server=server, places=places: len(server.server.server_state.connections) < places)
            closing = HEALTH + b"Connection: close\r\n\r\n"
            assert exchange(server.port, closing).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("where", ["path", "query"])
def test_a_long_path_is_refused_and_not_logged_whole(limited, monkeypatch, where):
    target, lines = "/" + "a" * 60_000 if where == "path" else "/health?" + "a" * 60_000, []
    logger = logging.getLogger("uvicorn.access")
    monkeypatch.setattr(logger, "info", lambda message, *arguments: lines.append(message % arguments))
    limited.http.close()
    limited.http = httpx.Client(base_url=str(limited.http.base_url))
    monkeypatch.setattr(logger, "hasHandlers", lambda: True)
    answer = limited.http.get(target)
    assert answer.status_code == 414 and "error" in answer.json()
    (line,) = lines
    assert "414" in line and len(line) < 300
    assert limited.http.get("/health?" + "a" * 1000).status_code == 200


def test_a_body_of_two_lengths_is_refused(limited):
    """One of them is for a proxy, the other for the server: the rest would be another request."""
    head = b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = exchange(limited.port, head + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HEALTH)
    assert answer.startswith(b"HTTP/1.1 400") and b"connection: close" in answer and answer.count(b"HTTP/1.1") == 1


def test_a_full_queue_answers_before_any_work(limited, engine, monkeypatch):
    """And so does a server that stops."""
    monkeypatch.setattr("higgs.serve.http.app.to_request", lambda *_: pytest.fail("work"))
    async_engine = limited.app.state.async_engine
    with monkeypatch.context() as patch:
        patch.setattr(async_engine, "open", async_engine.max_open)
        assert speech(limited.http).status_code == 429
    monkeypatch.setattr(async_engine, "draining", True)
    assert speech(limited.http).status_code == 503


def test_requests_that_wait_are_answered_when_the_server_stops(engine, voices):
    """Those in a slot end as ever; those that wait, and new ones, are refused."""
    sample = find_voice(voices, "ada")
    request = replace(speech_request("Good morning.", sample), sampling=SAMPLING, max_new_tokens=200)

    async def check() -> None:
        async_engine = AsyncEngine(engine)

        async def collect() -> str:
            *_, last = [chunk async for chunk in async_engine.stream(request)]
            return last.stop_reason

        try:
            tasks = [asyncio.create_task(collect()) for _ in range(4)]
            while len(engine.scheduler.running) < 2 or len(engine.scheduler.waiting) < 2:
                await asyncio.sleep(0.001)
            async_engine.drain()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [r for r in results if isinstance(r, str)] and sum(isinstance(r, EngineDead) for r in results) == 2
            with pytest.raises(EngineDead):
                await collect()
        finally:
            async_engine.close()

    asyncio.run(check())


def test_numbers_are_read_as_words_unless_it_is_turned_off(client):
    digits, words = "There are 12 people.", "There are twelve people."
    spoken = {normalize: speech(client, input=digits, normalize=normalize).content for normalize in (True, False)}
    assert spoken[True] == speech(client, input=words).content != spoken[False]
    assert spoken[True] == speech(client, input=digits).content
