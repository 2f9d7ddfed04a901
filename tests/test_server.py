"""The HTTP server, called by OpenAI's own client over the loopback: what it speaks, what it refuses, what it frees."""

import asyncio
import base64
import http.client
import inspect
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, nullcontext
from copy import deepcopy

import httpx
import openai
import pytest
import soundfile
import torch
import uvicorn
from conftest import ROOT

from higgs import Engine
from higgs.cli.serve import serve
from higgs.config import SamplingConfig
from higgs.data.speech import speech_request
from higgs.data.voices import find_voice
from higgs.serve import alignment
from higgs.serve.batching.scheduler import QueueFull
from higgs.serve.engine import EngineConfig
from higgs.serve.http import app as http_app
from higgs.serve.http import async_engine
from higgs.serve.http.access import Access
from higgs.serve.http.app import ServerConfig, SpeechResponse, make_app, speak, to_request
from higgs.serve.http.async_engine import MAX_FAILURES, AsyncEngine, EngineDead
from higgs.serve.http.audio_encoder import STREAMED, AudioEncoder
from higgs.serve.http.prometheus import Metrics
from higgs.serve.http.speech_request import ApiError, SpeechBody
from higgs.serve.runaway import RunawayConfig

TEXT = "We walked along the river."
SAMPLING = SamplingConfig(seed=1)
OWN_FIELDS = ("seed", "scene", "temperature", "top_k", "max_new_tokens")  # those that OpenAI's client does not know
LONG = {"max_new_tokens": 250}


@pytest.fixture(scope="module")
def parts(tiny_parts):
    """The tiny model, with a head that does not end a segment: stream bos and eos are never likely."""
    model, *others = tiny_parts
    model = deepcopy(model)
    model.audio_head.weight.view(8, 1026, -1)[:, 1024:] = 0
    return model, *others


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    (folder / "profiles.json").write_text('{"ada": "feminine", "ben": "masculine"}')
    return folder


def new_engine(parts, **settings) -> Engine:
    defaults = {"max_batch": 2, "max_positions": 700, "max_waiting": 4, "runaway": None}
    return Engine(*parts, EngineConfig(**defaults | settings))


class Server:
    """A server in a thread until the end of a `with`, and its clients."""

    def __init__(self, engine: Engine, config: ServerConfig, access: Access | None = None, **options):
        self.engine, self.scheduler = engine, engine.scheduler
        self.app = make_app(engine, config, access)
        self.server = uvicorn.Server(uvicorn.Config(self.app, "127.0.0.1", 0, log_level="warning", **options))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        wait_for(lambda: self.server.started)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        address = f"http://127.0.0.1:{self.port}"
        self.client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=30)
        self.http = httpx.Client(base_url=address, timeout=30)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        self.http.close()
        self.server.should_exit = True
        self.thread.join()

    @property
    def num_open(self) -> int:
        return self.app.state.async_engine.open

    def arguments(self, **fields):
        own = {"seed": 1, "max_new_tokens": 70} | {name: fields.pop(name) for name in OWN_FIELDS if name in fields}
        return {"model": "tiny", "voice": "ada", "input": TEXT, "response_format": "pcm", "extra_body": own} | fields

    def speak(self, **fields) -> bytes:
        return self.client.audio.speech.create(**self.arguments(**fields)).content

    def error(self, **fields) -> openai.APIStatusError:
        with pytest.raises(openai.APIStatusError) as caught:
            self.speak(**fields)
        return caught.value

    def stream(self, **fields):
        return self.client.audio.speech.with_streaming_response.create(**self.arguments(**fields))

    def metrics(self) -> dict[str, float]:
        lines = re.findall(r"^(higgs_\w+(?:\{.*?\})?) ([\d.e+]+)$", self.http.get("/metrics").text, re.MULTILINE)
        return {name: float(value) for name, value in lines}

    def slow(self, monkeypatch, seconds: float = 0.02) -> None:
        """Each host sync takes so much longer."""
        run_steps = self.scheduler.run_steps
        monkeypatch.setattr(self.scheduler, "run_steps", lambda: (time.sleep(seconds), run_steps())[1])


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


def started(parts, voices, max_seconds: float = 30.0, **settings) -> Server:
    config = ServerConfig("tiny", voices, SAMPLING, max_new_tokens=400, max_characters=200, max_seconds=max_seconds)
    return Server(new_engine(parts, **settings), config)


@pytest.fixture(scope="module")
def server(parts, voices):
    with started(parts, voices) as server:
        yield server


def expected(server: Server, voices, **sampling) -> bytes:
    """PCM of what `Engine.stream` generates for the same request."""
    settings = SamplingConfig(**{"seed": 1} | sampling)
    chunks = list(server.engine.stream(find_voice(voices, "ada").prompt(TEXT), settings, 70))
    assert len(chunks) > 3
    return (torch.cat([c.waveform for c in chunks]).clamp(-1, 1) * 32767).round().short().numpy().tobytes()


@pytest.mark.parametrize("kind", STREAMED)
def test_every_format_holds_the_audio_of_the_engine(server, voices, kind):
    pcm = expected(server, voices)
    with server.stream(response_format=kind) as response:
        assert ("content-length" in response.headers) == (kind == "flac")
        assert response.headers["x-seed"] == "1" and response.headers["content-type"].startswith("audio/")
        data = b"".join(response.iter_bytes())
    if kind == "pcm":
        assert data == pcm == server.speak()
        return
    assert data[:4] in (b"RIFF", b"fLaC", b"OggS") or data[0] == 0xFF and data[1] & 0xE0 == 0xE0
    samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate == 24_000
    assert samples.tobytes() == pcm if kind in ("wav", "flac") else True
    assert len(pcm) <= 2 * len(samples) <= len(pcm) + 4800, "an MP3 begins with silence"


def test_settings_of_a_request_are_used(server, voices):
    for sampling in ({"seed": 7}, {"temperature": 0.0}, {"top_k": 3}):
        assert server.speak(**sampling) == expected(server, voices, **sampling)
    assert server.speak(scene="A quiet room.") != server.speak()
    assert server.speak(voice="ben") != server.speak() == server.speak(voice={"id": "ada"})


def test_server_sent_events(server, voices):
    with server.stream(stream_format="sse") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        *deltas, done = [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line]
    audio = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    assert {event["type"] for event in deltas} == {"speech.audio.delta"} and audio == expected(server, voices)
    usage = {"audio_seconds": len(audio) / 48_000}
    assert done == {"type": "speech.audio.done", "stop_reason": "length", "usage": usage}


TIMED = {"extra_body": {"seed": 1, "max_new_tokens": 70, "timestamps": True}}


def events_of(server: Server, on_event=lambda event: None, **fields) -> list[dict]:
    found = []
    with server.stream(stream_format="sse", **fields) as response:
        for line in filter(None, response.iter_lines()):
            found.append(json.loads(line.removeprefix("data: ")))
            on_event(found[-1])
    return found


def test_word_times_come_after_the_audio_which_stays_the_same(server, voices, monkeypatch):
    """No sound waits for them; and the prompts of others may be read in the middle of the pass."""
    *deltas, done = events_of(server)
    left, heard, in_time, others, replay = [*deltas], threading.Event(), [], [], alignment.replay

    def on_event(event) -> None:
        if left and event == left[0] and not left[1:]:
            heard.set()
        del left[:1]

    def busy(*arguments):
        in_time.append(heard.wait(10))
        module = server.engine.model.layers[-1].attention
        forward = module.forward

        def speak_first(*inputs):
            module.forward = forward
            others.append(server.speak(seed=2))
            return forward(*inputs)

        module.forward = speak_first
        return replay(*arguments)

    monkeypatch.setattr(alignment, "replay", busy)
    *same, words, end = events_of(server, on_event, **TIMED)
    assert in_time == [True], "the audio waited for the words"
    assert same == deltas and end == done and others == [expected(server, voices, seed=2)]
    assert words["type"] == "speech.audio.words"
    assert [each["word"] for each in words["words"]] == TEXT.split()
    times = [time for each in words["words"] for time in (each["start"], each["end"])]
    assert times == sorted(times) and times[-1] == pytest.approx(done["usage"]["audio_seconds"], abs=1e-3)
    monkeypatch.undo()
    assert events_of(server, **TIMED) == [*deltas, words, done]


@pytest.mark.parametrize("fault", ["an error", "no memory", "too large", "too late"])
def test_word_times_that_cannot_be_had_fail_no_request(parts, voices, monkeypatch, caplog, fault):
    def fail(*_):
        time.sleep(3 if fault == "too late" else 0)
        raise torch.OutOfMemoryError("CUDA out of memory") if fault == "no memory" else KeyError("of its own")

    if fault == "too large":
        monkeypatch.setattr(async_engine, "MAX_WEIGHTS", 1000)
    else:
        monkeypatch.setattr(alignment, "replay", fail)
    with started(parts, voices, max_seconds=2.0) as server:
        *deltas, done = events_of(server)
        assert events_of(server, **TIMED) == [*deltas, {"type": "speech.audio.words", "words": []}, done]
        assert ("could not be aligned" in caplog.text) == (fault in ("an error", "no memory"))
        assert server.num_open == 0 and server.metrics()['higgs_requests_total{outcome="spoken"}'] == 2


INVALID = [
    ({"voice": "nobody"}, "voice_not_found"),
    ({"voice": "../ada"}, "voice_not_found"),
    ({"voice": "a" * 100_000}, "voice_not_found"),
    ({"model": "tts-1"}, "model_not_found"),
    ({"model": "a" * 100_000}, "model_not_found"),
    ({"input": "a" * 201}, "string_above_max_length"),
    ({"input": " \n"}, "invalid_value"),
    ({"input": "a\x00"}, "invalid_value"),
    ({"input": "[SPEAKER0] Hi."}, "invalid_value"),
    ({"scene": ""}, "invalid_value"),
    ({"scene": "a\x00"}, "invalid_value"),
    ({"scene": "a" * 201}, "string_above_max_length"),
    ({"instructions": "angrily"}, "unsupported_parameter"),
    ({"stream": True}, "unsupported_parameter"),
    ({"foo": 1}, "unsupported_parameter"),
    ({"body": 1}, "unsupported_parameter"),
    ({"f" * 100_000: 1}, "unsupported_parameter"),
    ({"speed": 1.5}, "unsupported_parameter"),
    ({"response_format": "aac"}, "invalid_value"),
    ({"stream_format": "both"}, "invalid_value"),
    ({"timestamps": True}, "invalid_value"),
    ({"timestamps": "yes"}, "invalid_value"),
    ({"temperature": "hot"}, "invalid_value"),
    ({"temperature": -1}, "invalid_value"),
    ({"seed": 1 << 70}, "invalid_value"),
    ({"top_k": -1}, "invalid_value"),
    ({"max_new_tokens": 401}, "invalid_value"),
    ({"max_new_tokens": 8}, "invalid_value"),
]


@pytest.mark.parametrize(("fields", "code"), INVALID, ids=lambda value: f"{value!r:.30}")
def test_invalid_fields_are_named(server, fields, code):
    arguments = server.arguments()
    arguments["extra_body"] |= fields
    with pytest.raises(openai.APIStatusError) as caught:
        server.client.audio.speech.create(**arguments)
    error, (param,) = caught.value, fields
    assert (error.status_code, error.param, error.code) == (404 if param == "model" else 400, param[:60], code)
    assert error.type == "invalid_request_error" and param[:60] in error.body["message"]
    assert len(error.body["message"]) < 1000, "a long value is not sent back whole"
    assert server.scheduler.idle and server.num_open == 0


def test_more_steps_than_a_slot_holds(parts, voices):
    with started(parts, voices, max_positions=300) as server:
        error = server.error(max_new_tokens=290)
        assert (error.status_code, error.param, error.code) == (400, "input", "invalid_value")


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"{", "application/json", "not JSON"),
        (b"[1]", "application/json", "expected a JSON object"),
        (b"{}", "application/json", "model: Field required"),
        (b'{"model": "tiny", "voice": "ada", "input": "Hi."}', "text/plain", "sent as application/json"),
        (b" " * (1 << 20), "application/json", "not JSON"),
    ],
    ids=lambda value: f"{value!r:.20}",
)
def test_a_body_that_is_no_request(server, body, kind, message):
    answer = server.http.post("/v1/audio/speech", content=body, headers={"content-type": kind})
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_other_paths_and_methods(server):
    assert server.http.get("/v1/elsewhere").status_code == 404
    answer = server.http.get("/v1/audio/speech")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST" and "error" in answer.json()


@pytest.mark.parametrize("with_length", [True, False])
def test_a_body_of_more_than_a_megabyte_is_refused(server, with_length):
    """With a length, before the body is sent; without one, as soon as it is too long."""
    size = (1 << 20) + 1
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    client.putrequest("POST", "/v1/audio/speech")
    client.putheader("Content-Type", "application/json")
    client.putheader(*("Content-Length", size) if with_length else ("Transfer-Encoding", "chunked"))
    client.endheaders()
    if not with_length:
        client.send(f"{size:x}\r\n".encode() + b" " * size)
    assert client.getresponse().status == 413
    client.close()


@pytest.mark.parametrize("kind", ["pcm", "wav", "mp3"])
def test_a_client_that_disconnects_frees_its_slot(parts, voices, monkeypatch, kind):
    """After the first bytes, which come while steps run; and while it waits in the queue."""
    with started(parts, voices, max_batch=1) as server:
        before = server.speak()
        with monkeypatch.context() as patch:
            server.slow(patch)
            with server.stream(response_format=kind, **LONG) as response:
                chunks = response.iter_bytes()
                assert next(chunks)
                (sequence,) = server.scheduler.running.values()
                with pytest.raises(openai.APITimeoutError):
                    server.client.with_options(timeout=0.3).audio.speech.create(**server.arguments(**LONG))
                wait_for(lambda: server.num_open == 1)
                assert list(server.scheduler.running.values()) == [sequence]
            wait_for(lambda: server.scheduler.idle and server.num_open == 0)
        assert sequence.stop_reason == "cancelled" and sequence.num_steps < 300
        assert server.scheduler.stops["cancelled"] == 2 and server.speak() == before


def test_a_full_queue_is_answered_with_429(parts, voices, monkeypatch):
    with started(parts, voices, max_batch=1, max_waiting=1) as server:
        alone = server.speak(**LONG)
        with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
            server.slow(patch)
            together = [pool.submit(server.speak, **LONG) for _ in range(2)]
            wait_for(lambda: server.num_open == 2)
            error = server.error()
            assert (error.status_code, error.code, error.response.headers["retry-after"]) == (429, "busy", "1")
        assert [future.result() for future in together] == [alone, alone] and server.speak()


def test_the_deadline(parts, voices, monkeypatch):
    """An answer before the first byte; after it the stream breaks off, so that no client takes it for complete."""
    with started(parts, voices, max_seconds=0.8) as server:
        with monkeypatch.context() as patch:
            server.slow(patch, 0.3)
            for kind in ("pcm", "flac"):
                error = server.error(response_format=kind, **LONG)
                assert (error.status_code, error.code) == (504, "timeout")
        server.slow(monkeypatch)
        with pytest.raises(Exception, match="incomplete|peer closed"), server.stream(**LONG) as response:
            response.read()
        wait_for(lambda: server.scheduler.idle)
        assert server.metrics()['higgs_requests_total{outcome="timeout"}'] == 3


def test_the_deadline_is_that_of_the_whole_request(server, voices, monkeypatch):
    """What a slow disk takes for its recordings counts."""
    config = ServerConfig("tiny", voices, SAMPLING, max_new_tokens=60, max_seconds=0.5)
    body = SpeechBody(model="tiny", voice="ada", input=TEXT, response_format="pcm")
    monkeypatch.setattr("higgs.serve.http.app.to_request", lambda *a: (time.sleep(0.6), to_request(*a))[1])

    async def late() -> None:
        engine = AsyncEngine(server.engine)
        with pytest.raises(ApiError) as caught:
            await anext(speak(body, config, engine, Metrics(server.engine), {}))
        assert caught.value.code == "timeout" and engine.open == 0
        engine.close()

    asyncio.run(late())


def test_a_client_that_never_reads_is_dropped(server, voices):
    """`send` blocks from the second part on, and nobody disconnects."""
    config = ServerConfig("tiny", voices, SAMPLING, max_new_tokens=60, max_seconds=1.0)
    body = SpeechBody(model="tiny", voice="ada", input=TEXT, response_format="pcm")
    metrics, sent = Metrics(server.engine), []

    async def send(message) -> None:
        sent.append(message["type"])
        if len(sent) > 2:
            await asyncio.Event().wait()

    async def unread() -> None:
        engine = AsyncEngine(server.engine)
        response = SpeechResponse(speak(body, config, engine, metrics, {}), config.max_seconds, {})
        with pytest.raises(ApiError) as caught:
            await response({"type": "http"}, asyncio.Event().wait, send)
        assert len(sent) == 3 and caught.value.code == "timeout" and engine.open == 0
        engine.close()

    asyncio.run(unread())
    assert metrics.requests.labels("timeout")._value.get() == 1
    wait_for(lambda: server.scheduler.idle)


def test_a_fault_of_the_engine_is_logged_and_not_shown(parts, voices, monkeypatch, caplog):
    with started(parts, voices) as server:
        expected, decoder = server.speak(), server.scheduler.decoder

        def fail(*_):
            raise KeyError("of its own")

        with monkeypatch.context() as patch:
            patch.setattr(decoder, "run", fail)
            error = server.error()
        assert error.code == "failed" and "of its own" not in str(error) and "of its own" in caplog.text
        assert server.speak() == expected
        monkeypatch.setattr(decoder, "run", fail)
        errors = [server.error() for _ in range(MAX_FAILURES + 1)]
        assert (errors[-1].status_code, errors[-1].code) == (503, "engine_stopped")
        assert "of its own" not in str(errors[-1]) and server.http.get("/health").status_code == 503


@pytest.mark.parametrize("place", ["_read_prompt", "decode"])
def test_out_of_memory_is_an_answer(server, monkeypatch, place):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory: 0x7f00")

    owner = server.scheduler.decoder if place == "_read_prompt" else server.engine.tokenizer
    with monkeypatch.context() as patch:
        patch.setattr(owner, place, fail)
        error = server.error()
    assert (error.status_code, error.code) == (503, "out_of_memory")
    assert "0x7f00" not in str(error) and server.speak()


def test_a_run_away_stream_is_ended(parts, voices):
    with started(parts, voices, runaway=RunawayConfig(least_seconds=1.0, seconds_per_byte=0.0)) as server:
        assert len(server.speak(**LONG)) == 2 * 960 * 26
        assert server.metrics()['higgs_stops_total{reason="guard_text_length"}'] == 1


def test_voices_models_health_and_metrics(server):
    listed = server.http.get("/v1/audio/voices").json()["voices"]
    voices = [(voice["id"], voice["description"], voice["recorded"]) for voice in listed]
    assert voices == [("ada", "feminine", False), ("ben", "masculine", False)]
    assert [model.id for model in server.client.models.list()] == ["tiny"]
    assert server.http.get("/v1/models/tiny").json()["id"] == "tiny"
    assert server.http.get("/v1/models/big").status_code == 404
    assert server.http.get("/v1/models/a/name").json()["error"]["code"] == "model_not_found", "not a path of nobody"
    health = {"status": "ok", "model": "tiny", "running": 0, "waiting": 0}
    assert server.http.get("/health").json() == health
    for path in ("/health", "/v1/models", "/v1/audio/voices"):
        answer = server.http.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
    assert server.speak() and server.error(stream_format="both")
    values = server.metrics()
    assert values["higgs_slots"] == 2 and values["higgs_open"] == 0
    names = ("higgs_first_packet_seconds_count", "higgs_audio_seconds_total", 'higgs_requests_total{outcome="spoken"}')
    assert all(values[name] > 0 for name in (*names, 'higgs_requests_total{outcome="invalid_value"}'))


def test_the_voice_folder_is_read_for_each_request(parts, tmp_path, caplog):
    """New voices are found; one that is not ready takes no other along, and its path is not shown."""
    profiles = tmp_path / "profiles.json"
    profiles.write_text('{"ada": "feminine"}')
    with started(parts, tmp_path) as server:
        ada = server.speak()
        assert server.error(voice="eva").status_code == 400
        profiles.write_text('{"ada": "feminine", "eva": "old"}')
        assert server.speak(voice="eva") != ada
        (tmp_path / "zoe.wav").write_bytes(b"")
        (tmp_path / "kim.wav").write_bytes(b"RIFF")
        (tmp_path / "kim.txt").write_text("What is said.")
        for name, fault in (("zoe", "zoe.txt"), ("kim", "kim.wav")):
            error, listed = server.error(voice=name), server.http.get("/v1/audio/voices")
            assert (error.status_code, error.param, error.code) == (500, "voice", "voice_unusable")
            assert str(tmp_path) not in str(error) and caplog.text.count(str(tmp_path / fault)) == 1
        assert [voice["id"] for voice in listed.json()["voices"]] == ["ada", "eva", "kim"] and server.speak() == ada
        profiles.write_text("{")
        assert server.error().status_code == 400 and "profiles.json" in caplog.text


@pytest.mark.parametrize("kind", STREAMED)
def test_an_encoder_writes_the_same_bytes_for_any_chunks(kind):
    waveform = 0.5 * torch.randn(24_000, generator=torch.Generator().manual_seed(0))
    files = []
    for length in (24_000, 960, 777):
        encoder = AudioEncoder(kind, 24_000)
        parts = [encoder.write(chunk) for chunk in waveform.split(length)]
        files.append(b"".join([*parts, encoder.finish()]))
        assert not encoder._buffer.content, "what was read is not held"
    # An Ogg stream has a random serial number, and pages that depend on the chunks.
    assert kind == "opus" or files[0] == files[1] == files[2]
    with pytest.raises(ValueError, match="pcm, wav, flac, mp3, opus, not as 'aac'"):
        AudioEncoder("aac", 24_000)


async def collect(stream) -> torch.Tensor:
    async with aclosing(stream) as chunks:
        return torch.cat([chunk.codes async for chunk in chunks], dim=1)


@pytest.mark.parametrize(("positions", "expected"), [(40, ["request"]), (700, ["request", "listens"])])
def test_a_request_is_made_before_the_server_listens(parts, voices, monkeypatch, capfd, positions, expected):
    """Where it fails, as in an engine too small for it, the error is raised, and no traceback is logged."""
    engine, events = new_engine(parts, max_positions=positions), []

    def listens(address):
        events.append("listens")
        signal.raise_signal(signal.SIGINT)

    submit = engine.scheduler.submit
    monkeypatch.setattr(engine.scheduler, "submit", lambda sequence: (events.append("request"), submit(sequence)))
    config = ServerConfig("tiny", voices, SAMPLING, on_start=listens)
    with pytest.raises(ValueError, match="max_positions") if positions == 40 else nullcontext():
        http_app.serve(engine, config, port=0)
    assert events == expected and not engine.scheduler.stops
    assert "Traceback" not in capfd.readouterr().err


def test_the_async_engine_alone(parts, voices):
    engine, ada = new_engine(parts, max_waiting=1), find_voice(voices, "ada")
    requests = [speech_request(TEXT, ada, sampling=SamplingConfig(seed=n), max_new_tokens=60) for n in range(3)]
    alone = [engine.generate(ada.prompt(TEXT), request.sampling, 60).codes for request in requests]

    async def together() -> None:
        async_engine = AsyncEngine(engine)
        stream = async_engine.stream
        try:
            for codes, expected in zip(await asyncio.gather(*map(collect, map(stream, requests))), alone, strict=True):
                assert torch.equal(codes, expected)
            running = [asyncio.create_task(collect(stream(request))) for request in requests]
            await asyncio.sleep(0)
            with pytest.raises(QueueFull, match="3 requests"):
                await collect(stream(requests[0]))
            await asyncio.gather(*running)
            with pytest.raises(TimeoutError):
                await collect(
                    stream(speech_request(TEXT, ada, max_new_tokens=500), asyncio.get_running_loop().time() + 0.05)
                )
            with pytest.raises(ValueError, match="new tokens need"):
                await collect(stream(speech_request(TEXT, ada, max_new_tokens=6000)))
        finally:
            async_engine.close()
        assert async_engine.open == 0 and not async_engine._subscribers
        with pytest.raises(EngineDead, match="closed"):
            await collect(stream(requests[0]))

    asyncio.run(together())


def test_a_request_ends_when_the_engine_dies_before_it_is_queued(parts, voices):
    engine = new_engine(parts)
    prepare = engine.sequence

    async def die() -> None:
        async_engine = AsyncEngine(engine)
        engine.sequence = lambda *arguments: (async_engine._fail(KeyError("of its own")), prepare(*arguments))[1]
        with pytest.raises(EngineDead, match="of its own"):
            request = speech_request(TEXT, find_voice(voices, "ada"), max_new_tokens=60)
            await collect(async_engine.stream(request, asyncio.get_running_loop().time() + 5))
        async_engine.close()

    asyncio.run(die())


def test_a_signal_at_any_moment_stops_the_server(parts):
    """Also before there is an engine, and while the thread that it interrupts holds the lock."""
    app = types.SimpleNamespace(state=types.SimpleNamespace())
    stopped = http_app.Server(uvicorn.Config(app))
    stopped.handle_exit(signal.SIGTERM, None)
    assert stopped.should_exit
    async_engine = AsyncEngine(new_engine(parts))
    with async_engine._lock:
        async_engine.drain()
    async_engine.close()


def test_the_command(nano):
    """The default checkpoint, from the command line to the last byte and the interrupt."""
    assert inspect.signature(serve).parameters["host"].default == "127.0.0.1"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "higgs", "serve", "--port", str(port), "--threads", "1"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
            for _ in range(300):
                try:
                    client.models.list()
                    break
                except openai.APIConnectionError:
                    assert process.poll() is None, process.stderr.read()
                    time.sleep(0.2)
            speech = client.audio.speech.create(model="nano", voice="ada", input="Good morning.", response_format="wav")
            assert soundfile.info(io.BytesIO(speech.content)).samplerate == 24_000 and len(speech.content) > 24_000
        finally:
            process.send_signal(signal.SIGINT)
            log = process.stderr.read()
    assert process.returncode in (0, -signal.SIGINT) and "Traceback" not in log
