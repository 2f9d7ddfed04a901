"""Who may use the server, and what is not OpenAI's own: long texts, null fields, keys, the end of the server."""

import asyncio
import json
import socket
from contextlib import ExitStack
from dataclasses import replace

import httpx
import pytest
import torch
from test_server import Server

from higgs import Engine
from higgs.config import SamplingConfig
from higgs.data.speech import speech_request
from higgs.data.text.chunks import ChunkOptions
from higgs.data.voices import find_voice
from higgs.serve import long_form
from higgs.serve.engine import EngineConfig
from higgs.serve.http.access import Access
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
    request = speech_request(LONG, find_voice(voices, "ada"), CHUNKS)
    request = replace(request, sampling=SAMPLING.override(seed=3), max_new_tokens=LIMIT)
    assert len(request.chunks) == 4
    whole = long_form.speak(engine, request).waveform
    answer = speech(client, input=LONG, seed=3)
    streamed = torch.frombuffer(bytearray(answer.content), dtype=torch.int16).float() / 32767
    assert len(streamed) == len(whole)
    torch.testing.assert_close(streamed, whole.clamp(-1, 1), rtol=0, atol=2 / 32767)


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
