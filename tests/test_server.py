"""The server, asked by OpenAI's own client over the loopback: what it speaks, what it refuses, and what it forgets."""

import asyncio
import http.client
import inspect
import io
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import aclosing, contextmanager
from copy import deepcopy

import openai
import pytest
import soundfile
import torch
import uvicorn
from conftest import ROOT

from higgs import AudioTokenizer, Engine
from higgs.cli.app import main
from higgs.cli.serve import serve
from higgs.config import SamplingConfig
from higgs.data.text.tokenizer import TextTokenizer
from higgs.data.voices import find_voice
from higgs.serve.batching.scheduler import QueueFull
from higgs.serve.engine import EngineConfig
from higgs.serve.runaway import RunawayConfig
from higgs.serve.http.app import ServerConfig, SpeechResponse, make_app, speak
from higgs.serve.http.async_engine import MAX_FAILURES, AsyncEngine, EngineDead
from higgs.serve.http.audio_encoder import STREAMED, AudioEncoder
from higgs.serve.http.prometheus import Metrics
from higgs.serve.http.speech_request import ApiError, SpeechBody

TEXT = "We walked along the river."
SAMPLING = SamplingConfig(seed=1)
LONG = {"seed": 1, "max_new_tokens": 250}


@pytest.fixture(scope="module")
def parts(model, golden):
    """The tiny model, with a head that does not end a segment: the codes of its two last ids are never likely."""
    model = deepcopy(model)
    model.audio_head.weight.view(8, 1026, -1)[:, 1024:] = 0
    codec = AudioTokenizer.from_pretrained(golden / "codec")
    return model, codec, TextTokenizer.from_pretrained(golden / "text_tokenizer")


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    (folder / "profiles.json").write_text('{"ada": "feminine", "ben": "masculine"}')
    return folder


def new_engine(parts, **settings) -> Engine:
    chosen = {"max_batch": 2, "max_positions": 700, "max_waiting": 4, "guards": None}
    return Engine(*parts, EngineConfig(**chosen | settings))


class Running:
    """A server in a thread, with the client that asks it."""

    def __init__(self, engine: Engine, config: ServerConfig):
        self.engine, self.scheduler = engine, engine.scheduler
        self.app = make_app(engine, config)
        settings = uvicorn.Config(self.app, host="127.0.0.1", port=0, log_level="warning")
        self.server = uvicorn.Server(settings)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        wait_for(lambda: self.server.started)
        (listening,) = self.server.servers[0].sockets
        self.port = listening.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.client = openai.OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0, timeout=30)

    def ask(self, **more):
        own = ("seed", "scene", "temperature", "top_k", "max_new_tokens")
        extra = {name: more.pop(name) for name in own if name in more}
        asked = {"model": "tiny", "voice": "ada", "input": TEXT, "response_format": "pcm"} | more
        return asked | {"extra_body": {"seed": 1, "max_new_tokens": 70} | extra}

    def speak(self, **more) -> bytes:
        return self.client.audio.speech.create(**self.ask(**more)).content

    def stream(self, **more):
        return self.client.audio.speech.with_streaming_response.create(**self.ask(**more))

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.address}{path}", timeout=10) as answer:
            return answer.read().decode()

    def slow(self, monkeypatch, seconds: float = 0.02) -> None:
        """Each burst takes so much longer."""
        burst = self.scheduler.burst
        monkeypatch.setattr(self.scheduler, "burst", lambda: (time.sleep(seconds), burst())[1])

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()


def wait_for(true, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.005)


@contextmanager
def server(engine: Engine, voices, **settings):
    limits = {"max_new_tokens": 400, "max_characters": 200, "max_seconds": 30.0}
    config = ServerConfig("tiny", voices, SAMPLING, **limits | settings)
    running = Running(engine, config)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def served(parts, voices):
    with server(new_engine(parts), voices) as running:
        yield running


def expected(served: Running, voices, max_new_tokens: int = 70, **sampling) -> list[torch.Tensor]:
    """The pieces that `engine.stream` makes of the same request."""
    sample = find_voice(voices, "ada").prompt(TEXT)
    asked = SamplingConfig(**{"seed": 1} | sampling)
    return [c.waveform for c in served.engine.stream(sample, asked, max_new_tokens)]


def as_pcm(waveform: torch.Tensor) -> bytes:
    return (waveform.clamp(-1, 1) * 32767).round().short().numpy().tobytes()


def test_streamed_bytes_are_those_of_the_engines_stream(served, voices):
    pieces = expected(served, voices)
    with served.stream() as response:
        assert response.headers["content-type"] == "audio/pcm"
        assert response.headers["x-seed"] == "1"
        streamed = b"".join(response.iter_bytes())
    assert streamed == as_pcm(torch.cat(pieces)) and len(pieces) > 3
    assert served.speak() == streamed


@pytest.mark.parametrize("kind", [kind for kind in STREAMED if kind != "pcm"])
def test_every_format_is_what_its_name_says(served, voices, kind):
    waveform = torch.cat(expected(served, voices))
    data = served.speak(response_format=kind)
    assert data[:4] in (b"RIFF", b"fLaC", b"OggS") or data[0] == 0xFF and data[1] & 0xE0 == 0xE0
    samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate == 24_000
    with served.stream(response_format=kind) as response:
        assert ("content-length" in response.headers) == (kind == "flac")
        response.read()
    if kind in ("wav", "flac"):
        assert samples.tobytes() == as_pcm(waveform)
    assert len(waveform) <= len(samples) <= len(waveform) + 2400, "an MP3 begins with silence"


def test_the_first_bytes_come_while_the_rest_is_made(served, monkeypatch):
    served.slow(monkeypatch)
    for kind in ("pcm", "wav", "mp3"):
        with served.stream(response_format=kind, **LONG) as response:
            heard = response.iter_bytes()
            next(heard)
            assert served.scheduler.running, kind
            response.close()
    wait_for(lambda: served.scheduler.idle)


def test_settings_of_a_request_are_used(served, voices):
    for sampling in ({"seed": 7}, {"temperature": 0.0}, {"top_k": 3}):
        assert served.speak(**sampling) == as_pcm(torch.cat(expected(served, voices, **sampling)))
    assert served.speak(scene="A quiet room.") != served.speak()
    assert served.speak(voice="ben") != served.speak() == served.speak(voice={"id": "ada"})


def test_events(served, voices):
    import base64
    import json

    with served.stream(stream_format="sse") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    audio = b"".join(base64.b64decode(e["audio"]) for e in events[:-1])
    assert {e["type"] for e in events[:-1]} == {"speech.audio.delta"}
    assert audio == as_pcm(torch.cat(expected(served, voices)))
    done = {"type": "speech.audio.done", "stop_reason": "length"}
    assert events[-1] == done | {"usage": {"audio_seconds": len(audio) / 48_000}}


@pytest.mark.parametrize(
    ("asked", "status", "param", "code"),
    [
        ({"voice": "nobody"}, 400, "voice", "voice_not_found"),
        ({"voice": "../ada"}, 400, "voice", "voice_not_found"),
        ({"voice": "a" * 100_000}, 400, "voice", "voice_not_found"),
        ({"model": "tts-1"}, 404, "model", "model_not_found"),
        ({"model": "a" * 100_000}, 404, "model", "model_not_found"),
        ({"input": "a" * 201}, 400, "input", "string_above_max_length"),
        ({"input": " \n"}, 400, "input", "invalid_value"),
        ({"input": "a\x00"}, 400, "input", "invalid_value"),
        ({"scene": ""}, 400, "scene", "invalid_value"),
        ({"scene": "a" * 201}, 400, "scene", "string_above_max_length"),
        ({"instructions": "angrily"}, 400, "instructions", "unsupported_parameter"),
        ({"foo": 1}, 400, "foo", "unsupported_parameter"),
        ({"body": 1}, 400, "body", "unsupported_parameter"),
        ({"f" * 100_000: 1}, 400, "f" * 60, "unsupported_parameter"),
        ({"speed": 1.5}, 400, "speed", "unsupported_parameter"),
        ({"response_format": "aac"}, 400, "response_format", "invalid_value"),
        ({"stream_format": "both"}, 400, "stream_format", "invalid_value"),
        ({"temperature": "hot"}, 400, "temperature", "invalid_value"),
        ({"temperature": -1}, 400, "temperature", "invalid_value"),
        ({"seed": 1 << 70}, 400, "seed", "invalid_value"),
        ({"top_k": -1}, 400, "top_k", "invalid_value"),
        ({"max_new_tokens": 401}, 400, "max_new_tokens", "invalid_value"),
    ],
    ids=lambda value: f"{value!r:.30}",
)
def test_what_is_wrong_is_refused_by_name(served, asked, status, param, code):
    more = {"extra_body": served.ask()["extra_body"] | asked}
    with pytest.raises(openai.APIStatusError) as caught:
        served.client.audio.speech.create(**served.ask() | more)
    error = caught.value
    assert (error.status_code, error.param, error.code) == (status, param, code)
    assert error.type == "invalid_request_error" and param in error.body["message"]
    assert len(error.body["message"]) < 1000, "what is sent is not sent back at length"
    assert served.scheduler.idle and served.app.state.async_engine.open == 0


def test_a_prompt_that_no_slot_holds_is_refused(parts, voices):
    with server(new_engine(parts, max_positions=300), voices) as running:
        with pytest.raises(openai.BadRequestError) as caught:
            running.speak(max_new_tokens=290)
        assert (caught.value.param, caught.value.code) == ("input", "invalid_value")


def send(served: Running, body: bytes, kind: str = "application/json") -> tuple[int, str]:
    headers = {"content-type": kind}
    request = urllib.request.Request(f"{served.address}/v1/audio/speech", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_what_is_no_request_is_refused(served):
    good = b'{"model": "tiny", "voice": "ada", "input": "Hi."}'
    for body, kind, status, message in (
        (b"{", "application/json", 400, "not JSON"),
        (b"[1]", "application/json", 400, "expected a JSON object"),
        (b"{}", "application/json", 400, "model: Field required"),
        (good, "text/plain", 400, "sent as application/json"),
    ):
        found, text = send(served, body, kind)
        assert found == status and message in text and '"error":{"message"' in text
    for path, status in (("/v1/elsewhere", 404), ("/v1/audio/speech", 405)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            served.get(path)
        assert caught.value.code == status and b'"error"' in caught.value.read()
    assert caught.value.headers["allow"] == "POST"


@pytest.mark.parametrize("told", [True, False])
def test_a_body_of_more_than_a_megabyte_is_refused(served, told):
    """With a length, before the body is sent; without one, as soon as it is too long."""
    size = (1 << 20) + 1
    client = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    client.putrequest("POST", "/v1/audio/speech")
    client.putheader("Content-Type", "application/json")
    client.putheader(*("Content-Length", size) if told else ("Transfer-Encoding", "chunked"))
    client.endheaders()
    if not told:
        client.send(f"{size:x}\r\n".encode() + b" " * size)
    assert client.getresponse().status == 413
    client.close()
    assert send(served, b" " * (size - 1))[0] == 400


def test_leaving_in_the_middle_frees_the_slot(served, voices, monkeypatch):
    before = dict(served.scheduler.stops)
    with monkeypatch.context() as patch:
        served.slow(patch)
        with served.stream(**LONG) as response:
            heard = response.iter_bytes()
            next(heard)
            (sequence,) = served.scheduler.running.values()
        wait_for(lambda: served.scheduler.idle and served.app.state.async_engine.open == 0)
    assert sequence.stop_reason == "cancelled" and sequence.made < 300
    assert served.scheduler.stops["cancelled"] == before.get("cancelled", 0) + 1
    assert served.speak() == as_pcm(torch.cat(expected(served, voices)))


def test_leaving_the_queue_frees_the_place(parts, voices, monkeypatch):
    with server(new_engine(parts, max_batch=1), voices) as running:
        running.slow(monkeypatch)
        with running.stream(**LONG) as first:
            heard = first.iter_bytes()
            next(heard)
            with pytest.raises(openai.APITimeoutError):
                running.client.with_options(timeout=0.3).audio.speech.create(**running.ask(**LONG))
            wait_for(lambda: running.app.state.async_engine.open == 1)
            assert len(running.scheduler.running) == 1
        wait_for(lambda: running.scheduler.idle)


def test_too_many_requests_are_told_to_come_back(parts, voices, monkeypatch):
    with server(new_engine(parts, max_batch=1, max_waiting=1), voices) as running:
        good, made = running.speak(**LONG), []
        with monkeypatch.context() as patch:
            running.slow(patch)
            threads = [threading.Thread(target=lambda: made.append(running.speak(**LONG))) for _ in range(2)]
            for thread in threads:
                thread.start()
            wait_for(lambda: running.app.state.async_engine.open == 2)
            with pytest.raises(openai.RateLimitError) as caught:
                running.speak()
            assert caught.value.code == "busy"
            assert caught.value.response.headers["retry-after"] == "1"
        for thread in threads:
            thread.join()
        assert made == [good, good], "those that came first are spoken"
        assert running.speak()


def test_what_takes_too_long_is_ended(parts, voices, monkeypatch):
    """Before the first byte: with an answer."""
    with server(new_engine(parts), voices, max_seconds=0.5) as running:
        running.slow(monkeypatch, 0.3)
        for kind in ("pcm", "flac"):
            with pytest.raises(openai.InternalServerError) as caught:
                running.speak(response_format=kind, **LONG)
            assert (caught.value.status_code, caught.value.code) == (504, "timeout")
        wait_for(lambda: running.scheduler.idle)


def test_a_stream_that_takes_too_long_breaks_off(parts, voices, monkeypatch):
    """So that nobody takes it for whole."""
    with server(new_engine(parts), voices, max_seconds=1.0) as running:
        running.slow(monkeypatch)
        with pytest.raises(Exception, match="incomplete|peer closed"):
            with running.stream(**LONG) as response:
                for _ in response.iter_bytes():
                    pass
        wait_for(lambda: running.scheduler.idle)
        assert 'outcome="timeout"' in running.get("/metrics")


def test_a_client_that_never_reads_is_let_go(served, voices):
    """`send` blocks from the second piece on, and nobody disconnects."""
    config = ServerConfig("tiny", voices, SAMPLING, max_new_tokens=60, max_seconds=1.0)
    request = SpeechBody(model="tiny", voice="ada", input=TEXT, response_format="pcm")
    metrics, sent = Metrics(served.engine), []

    async def send(message) -> None:
        sent.append(message["type"])
        if len(sent) > 2:
            await asyncio.Event().wait()

    async def unread() -> None:
        engine = AsyncEngine(served.engine)
        body = speak(request, config, engine, metrics)
        response = SpeechResponse(body, config.max_seconds)
        with pytest.raises(ApiError) as caught:
            await response({"type": "http"}, asyncio.Event().wait, send)
        assert len(sent) == 3 and caught.value.code == "timeout" and engine.open == 0
        engine.close()

    asyncio.run(unread())
    assert metrics.requests.labels("timeout")._value.get() == 1
    wait_for(lambda: served.scheduler.idle)


def test_a_fault_of_the_engine_is_an_answer_and_not_the_end(parts, voices, monkeypatch, caplog):
    with server(new_engine(parts), voices) as running:
        good = running.speak()
        decoder = running.scheduler.decoder

        def fails(*_):
            raise KeyError("of its own")

        with monkeypatch.context() as patch:
            patch.setattr(decoder, "run", fails)
            with pytest.raises(openai.InternalServerError) as caught:
                running.speak()
        assert caught.value.code == "failed"
        assert "of its own" not in str(caught.value) and "of its own" in caplog.text
        assert running.speak() == good
        monkeypatch.setattr(decoder, "run", fails)
        for _ in range(MAX_FAILURES):
            with pytest.raises(openai.InternalServerError):
                running.speak()
        with pytest.raises(openai.InternalServerError) as caught:
            running.speak()
        assert (caught.value.status_code, caught.value.code) == (503, "engine_stopped")
        assert "of its own" not in str(caught.value)
        with pytest.raises(urllib.error.HTTPError, match="503"):
            running.get("/health")


@pytest.mark.parametrize("place", ["prefill", "decode"])
def test_out_of_memory_is_told(served, monkeypatch, place):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory: 0x7f00")

    with monkeypatch.context() as patch:
        if place == "prefill":
            patch.setattr(served.scheduler.decoder, "_prefill", full)
        else:
            patch.setattr(served.engine.tokenizer, "decode", full)
        with pytest.raises(openai.InternalServerError) as caught:
            served.speak()
    assert (caught.value.status_code, caught.value.code) == (503, "out_of_memory")
    assert "0x7f00" not in str(caught.value) and served.speak()


def test_no_audio_is_an_error(served):
    with pytest.raises(openai.InternalServerError) as caught:
        served.speak(max_new_tokens=5)
    assert caught.value.code == "no_audio"


def test_a_guard_ends_a_stream(parts, voices):
    guards = RunawayConfig(least_seconds=1.0, seconds_per_byte=0.0)
    with server(new_engine(parts, runaway=guards), voices) as running:
        assert len(running.speak(**LONG)) == 2 * 960 * 26
        assert 'higgs_stops_total{reason="guard_text_length"} 1.0' in running.get("/metrics")


def test_voices_models_health_and_metrics(served, voices):
    import json

    listed = json.loads(served.get("/v1/audio/voices"))["voices"]
    assert [(v["id"], v["description"], v["recorded"]) for v in listed] == [
        ("ada", "feminine", False),
        ("ben", "masculine", False),
    ]
    assert [model.id for model in served.client.models.list()] == ["tiny"]
    health = json.loads(served.get("/health"))
    assert health == {"status": "ok", "model": "tiny", "running": 0, "waiting": 0}
    served.speak()
    text = served.get("/metrics")
    values = dict(re.findall(r"^(higgs_\w+(?:\{.*?\})?) ([\d.e+]+)$", text, re.MULTILINE))
    assert values["higgs_slots"] == "2.0" and values["higgs_open"] == "0.0"
    assert float(values['higgs_requests_total{outcome="spoken"}']) >= 1
    assert float(values["higgs_first_packet_seconds_count"]) >= 1
    assert float(values["higgs_audio_seconds_total"]) > 0
    with pytest.raises(openai.BadRequestError):
        served.speak(stream_format="both")
    assert 'higgs_requests_total{outcome="invalid_value"}' in served.get("/metrics")


def test_voices_that_come_later_are_there(parts, tmp_path):
    (tmp_path / "profiles.json").write_text('{"ada": "feminine"}')
    with server(new_engine(parts), tmp_path) as running:
        with pytest.raises(openai.BadRequestError):
            running.speak(voice="eva")
        (tmp_path / "profiles.json").write_text('{"ada": "feminine", "eva": "old"}')
        assert running.speak(voice="eva") != running.speak()


def test_a_broken_voice_folder_is_not_the_clients_fault(parts, tmp_path, caplog):
    (tmp_path / "profiles.json").write_text('{"ada": "feminine"}')
    with server(new_engine(parts), tmp_path) as running:
        good = running.speak()
        (tmp_path / "eva.wav").write_bytes(b"")
        with pytest.raises(openai.InternalServerError) as caught:
            running.speak()
        assert (caught.value.status_code, caught.value.code) == (500, "failed")
        with pytest.raises(urllib.error.HTTPError) as listed:
            running.get("/v1/audio/voices")
        assert listed.value.code == 500
        for answer in (str(caught.value), listed.value.read().decode()):
            assert str(tmp_path) not in answer and str(tmp_path) in caplog.text
        (tmp_path / "eva.wav").unlink()
        assert running.speak() == good


def test_bytes_of_a_stream_are_those_of_the_whole():
    """However it is cut; and what was taken away is not kept."""
    generator = torch.Generator().manual_seed(0)
    waveform = 0.5 * torch.randn(24_000, generator=generator)
    for kind in STREAMED:
        made = []
        for lengths in (24_000, 960, 777):
            encoder = AudioEncoder(kind, 24_000)
            pieces = [encoder.write(piece) for piece in waveform.split(lengths)]
            made.append(b"".join([*pieces, encoder.finish()]))
            if kind in ("mp3", "opus"):
                assert encoder._outbox.content == b""
        # An Ogg stream has a number by chance, and pages by how it was cut.
        assert kind == "opus" or made[0] == made[1] == made[2], kind
    with pytest.raises(ValueError, match="pcm, wav, flac, mp3, opus, not as 'aac'"):
        AudioEncoder("aac", 24_000)


async def collect(stream) -> torch.Tensor:
    async with aclosing(stream) as chunks:
        return torch.cat([chunk.codes async for chunk in chunks], dim=1)


def test_the_asyncio_engine_by_itself(parts, voices):
    engine = new_engine(parts, max_waiting=1)
    sample = find_voice(voices, "ada").prompt(TEXT)
    settings = [SamplingConfig(seed=seed) for seed in range(3)]
    alone = [engine.generate(sample, sampling, 60).codes for sampling in settings]

    async def together() -> None:
        async_engine = AsyncEngine(engine)
        try:
            asked = [async_engine.stream(sample, sampling, 60) for sampling in settings]
            made = await asyncio.gather(*(collect(stream) for stream in asked))
            assert all(torch.equal(a, b) for a, b in zip(made, alone, strict=True))
            fourth = [asyncio.create_task(collect(async_engine.stream(sample, s, 60))) for s in settings]
            await asyncio.sleep(0)
            with pytest.raises(QueueFull, match="3 requests"):
                await collect(async_engine.stream(sample))
            await asyncio.gather(*fourth)
            with pytest.raises(TimeoutError):
                await collect(async_engine.stream(sample, settings[0], 500, seconds=0.05))
            with pytest.raises(ValueError, match="new tokens need"):
                await collect(async_engine.stream(sample, settings[0], 6000))
        finally:
            async_engine.close()
        assert async_engine.open == 0 and not async_engine._subscribers
        with pytest.raises(EngineDead, match="closed"):
            await collect(async_engine.stream(sample))

    asyncio.run(together())


def test_a_request_that_the_engine_dies_under_ends(parts, voices):
    """Also in the moment between its acceptance and its place in the queue."""
    engine = new_engine(parts)
    sample, prepare = find_voice(voices, "ada").prompt(TEXT), engine.request

    async def die() -> None:
        async_engine = AsyncEngine(engine)

        def dies(*arguments):
            async_engine._fail(KeyError("of its own"))
            return prepare(*arguments)

        engine.request = dies
        with pytest.raises(KeyError, match="of its own"):
            await collect(async_engine.stream(sample, SAMPLING, 60, seconds=5))
        async_engine.close()

    asyncio.run(die())


def test_only_this_machine_is_listened_to_unless_told():
    assert inspect.signature(serve).parameters["host"].default == "127.0.0.1"


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_the_command(nano):
    """The default checkpoint, from the command line to the last byte and the interrupt."""
    port = free_port()
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
            spoken = client.audio.speech.create(model="nano", voice="ada", input="Good morning.", response_format="wav")
            assert soundfile.info(io.BytesIO(spoken.content)).samplerate == 24_000
            assert len(spoken.content) > 24_000
        finally:
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
    assert process.returncode in (0, -signal.SIGINT) and "Traceback" not in said


def test_wrong_options_are_told(nano, monkeypatch, capsys):
    for option, value, status in (
        ("--max-batch", "0", 2), ("--top-p", "2", 2), ("--dtype", "int3", 2), ("--top-p", "0", 1),
    ):  # fmt: skip
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr("sys.argv", ["higgs", "serve", option, value])
        assert main() == status
        assert option.lstrip("-").replace("-", "_") in capsys.readouterr().err.replace("-", "_")
