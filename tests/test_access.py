"""Who may use the server, and what a client meets that is not OpenAI's own: long texts, null fields, HEAD, keys."""

import asyncio
import json
import socket
import threading
import time

import httpx
import pytest
import torch
import uvicorn

from higgs import AudioTokenizer, Engine
from higgs.config import SamplingConfig
from higgs.data.speech import speech_request
from higgs.data.text.chunks import ChunkOptions
from higgs.data.text.tokenizer import TextTokenizer
from higgs.data.voices import find_voice
from higgs.serve import long_form
from higgs.serve.engine import EngineConfig
from higgs.serve.http.access import Access
from higgs.serve.http.app import ServerConfig, make_app
from higgs.serve.http.async_engine import AsyncEngine, EngineDead

CHUNKS = ChunkOptions(max_words=4, match_levels=False, retries=0)  # a stream cannot retry what was cut off
SAMPLING = SamplingConfig(temperature=0.7, seed=1)
LIMIT = 40
BODY = {"model": "tiny", "voice": "ada", "input": "Good morning.", "response_format": "pcm", "max_new_tokens": LIMIT}
LONG = "The train is late. We walk home.\n\nThe end of it all."


@pytest.fixture(scope="module")
def engine(model, golden) -> Engine:
    codec = AudioTokenizer.from_pretrained(golden / "codec")
    text_tokenizer = TextTokenizer.from_pretrained(golden / "text_tokenizer")
    return Engine(model, codec, text_tokenizer, EngineConfig(max_batch=2, max_positions=900, runaway=None))


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    (folder / "profiles.json").write_text('{"ada": "feminine"}')
    return folder


@pytest.fixture(scope="module")
def serve(engine, voices):
    """-> a function from `Access` to the address of a server."""
    servers = []

    def start(access: Access | None = None) -> str:
        config = ServerConfig("tiny", voices, SAMPLING, 400, CHUNKS)
        server = uvicorn.Server(uvicorn.Config(make_app(engine, config, access), port=0, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        servers.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def client(serve):
    with httpx.Client(base_url=serve(), timeout=30) as client:
        yield client


def speech(client: httpx.Client, **more) -> httpx.Response:
    return client.post("/v1/audio/speech", json=BODY | more)


def test_a_long_text_is_spoken_in_chunks_as_elsewhere(client, engine, voices):
    request = speech_request(
        LONG, find_voice(voices, "ada"), CHUNKS, sampling=SAMPLING.override(seed=3), max_new_tokens=LIMIT
    )
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


@pytest.mark.parametrize(
    "neutral",
    [{"instructions": None}, {"instructions": ""}, {"speed": None}, {"stream": False}, {"language": None},
     {"stream_format": None}, {"seed": None}, {"scene": None}],
)  # fmt: skip
def test_null_and_neutral_values_ask_for_nothing(client, neutral):
    assert speech(client, **neutral).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "[SPEAKER0] Hi."}, "input"),
        ({"input": " "}, "input"),
        ({"input": "a\0"}, "input"),
        ({"input": "a" * 5000}, "input"),
        ({"scene": "a" * 5000}, "scene"),
        ({"scene": "a\0"}, "scene"),
        ({"max_new_tokens": 9}, "max_new_tokens"),
        ({"stream": True}, "stream"),
        ({"instructions": "whisper"}, "instructions"),
    ],
)
def test_the_field_at_fault_is_named(client, body, param):
    answer = speech(client, **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_voice_that_cannot_be_read_is_the_servers_fault(client, voices, caplog):
    try:
        (voices / "eve.wav").write_bytes(b"RIFF")
        (voices / "eve.txt").write_text("What is said.")
        answer = speech(client, voice="eve")
        assert speech(client).status_code == 200
    finally:
        (voices / "eve.wav").unlink()
        (voices / "eve.txt").unlink()
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (500, "voice", "voice_unusable")
    assert str(voices) not in answer.text and "eve.wav" in caplog.text


def test_monitors_and_clients_find_what_they_ask_for(client):
    for path in ("/health", "/v1/models", "/v1/audio/voices"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
    assert client.get("/v1/models/tiny").json()["id"] == "tiny"
    assert client.get("/v1/models/big").status_code == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:8000", 200),
        ("[::1]:8000", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
    ],
)
def test_another_name_of_this_machine_is_refused(client, host, status):
    assert client.get("/health", headers={"host": host}).status_code == status


def test_a_key_and_an_origin(serve):
    with httpx.Client(base_url=serve(Access(api_key="secret", origins=("https://page.example",)))) as client:
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
    address = serve(Access(body_seconds=0.3)).removeprefix("http://")
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408")


def test_requests_that_wait_are_answered_when_the_server_stops(engine, voices):
    """Those in a slot end as ever; those that wait, and new ones, are refused."""
    sample = find_voice(voices, "ada")
    request = speech_request("Good morning.", sample, sampling=SAMPLING, max_new_tokens=200)

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
