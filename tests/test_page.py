"""The server's pages and the voices that a request brings along: who gets them, what is refused, what stays."""

import base64
import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
import soundfile
import torch
from conftest import ROOT
from test_server import Server, parts, wait_for  # noqa: F401
from test_voices import WORDS, speech

from higgs import Engine, audio
from higgs.config import SamplingConfig
from higgs.data.speech import speech_request
from higgs.data.voices import check_recording, find_voice
from higgs.serve.engine import EngineConfig
from higgs.serve.http.access import Access
from higgs.serve.http.app import MAX_BODY, ServerConfig
from higgs.serve.http.pages import FOLDER, PAGES
from higgs.serve.http.references import MAX_CHECKS
from higgs.serve.http.speech_request import SpeechBody

FILES = sorted(FOLDER.iterdir())
DIALOGUE = "[SPEAKER0] Good morning. [SPEAKER1] Is the train late?"
LIMIT = 40


def recording(waveform: torch.Tensor, rate: int = 24_000, **kind) -> str:
    """Base64 of an audio file."""
    file = io.BytesIO()
    soundfile.write(file, waveform.numpy().T, rate, **{"format": "WAV", "subtype": "PCM_16"} | kind)
    return base64.b64encode(file.getvalue()).decode()


GOOD = {"audio": recording(speech()), "text": WORDS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    (folder / "profiles.json").write_text('{"ada": "feminine", "ben": "masculine"}')
    (folder / "eve.wav").write_bytes(base64.b64decode(GOOD["audio"]))
    (folder / "eve.txt").write_text(WORDS)
    return folder


@pytest.fixture(scope="module")
def serve(parts, folder):  # noqa: F811
    """-> a function from `Access`, and a recogniser, to a server."""
    engine = Engine(*parts, EngineConfig(max_batch=2, max_positions=1200, runaway=None))
    with ExitStack() as servers:

        def start(access=None, recogniser=None) -> Server:
            config = ServerConfig("tiny", folder, SamplingConfig(temperature=0.3, seed=1), LIMIT, recogniser=recogniser)
            return servers.enter_context(Server(engine, config, access))

        yield start


@pytest.fixture(scope="module")
def server(serve) -> Server:
    return serve(recogniser=lambda waveform, rate, text: (f"{len(waveform) / rate:g} s", ["doubtful"] if text else []))


@pytest.fixture(scope="module")
def locked(serve) -> httpx.Client:
    return serve(Access(api_key="secret")).http


def post(client: httpx.Client, voice, text: str = "Good morning.", **headers) -> httpx.Response:
    body = {"model": "tiny", "voice": voice, "input": text, "response_format": "pcm"}
    return client.post("/v1/audio/speech", json=body, headers=headers)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_whole_and_runs_nothing_but_its_own_scripts(locked, path):
    answer = locked.get(path)
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert answer.headers["x-frame-options"] == "DENY" and policy["frame-ancestors"] == "'none'"
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'" and "unsafe" not in str(policy)
    for kind in ("script", "style"):
        contents = re.findall(rf"<{kind}>(.*?)</{kind}>", answer.text, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
        assert hashes and policy[f"{kind}-src"].split() == [f"'sha256-{value}'" for value in hashes]
        assert answer.text.count(f"<{kind}") == len(contents)
    assert not re.search(r"<link rel=.stylesheet|\s(on\w+|style|src)=", answer.text.partition("<script>")[0])
    head = locked.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-security-policy"] == answer.headers["content-security-policy"]


def test_only_the_pages_are_open_without_the_key(locked):
    """They hold no data: whatever they show, they ask for with the key."""
    closed = ("/v1/audio/settings", "/v1/audio/voices", "/v1/models", "/openapi.json", "/metrics", "/docs/", "/page")
    assert [locked.get(path).status_code for path in closed] == [401] * len(closed)
    assert post(locked, "ada").status_code == locked.post("/v1/audio/voices/check", json=GOOD).status_code == 401
    assert locked.post("/").status_code == 405
    key = {"authorization": "Bearer secret"}
    assert locked.get("/v1/audio/settings", headers=key).json()["references"]
    assert post(locked, GOOD, **key).status_code == 200


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_of_the_pages_names_nothing_outside_and_makes_no_markup_of_text(path):
    text = path.read_text()
    assert not re.search(r"https?://\w|[\"'(]//\w|@import|\burl\(", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|Storage|cookie", text)
    assert len(text.splitlines()) <= 350


@pytest.mark.filterwarnings("error")
def test_the_interface_describes_every_request_once(server):
    paths = server.app.openapi()["paths"]
    methods = {path: "".join(found) for path, found in paths.items()}
    assert methods["/v1/audio/speech"] == "post" and methods["/v1/audio/voices"] == "get" and "/" not in methods
    assert all(field.get("description") for field in SpeechBody.model_json_schema()["properties"].values())


def test_the_settings_are_those_of_the_server(server):
    settings = server.http.get("/v1/audio/settings").json()
    expected = {"model": "tiny", "temperature": 0.3, "seed": 1, "max_new_tokens": LIMIT, "max_body_bytes": MAX_BODY}
    assert settings | expected | {"references": True, "transcribes": True} == settings
    assert server.http.head("/v1/audio/settings").content == b""


def test_a_recording_of_the_request_is_as_one_of_the_folder(server, folder):
    """Alone, in a cast, and beside a description."""
    assert post(server.http, GOOD).content == post(server.http, "eve").content != post(server.http, "ada").content
    for cast, same in (([GOOD, GOOD], ["eve", "eve"]), (["ada", GOOD], [{"id": "ada"}, "eve"])):
        answers = [post(server.http, voices, DIALOGUE) for voices in (cast, same)]
        assert answers[0].status_code == 200 and answers[0].content == answers[1].content
    request = speech_request(DIALOGUE, {0: find_voice(folder, "ada"), 1: find_voice(folder, "ben")})
    chunks = server.engine.stream(request.samples[0], SamplingConfig(temperature=0.3, seed=1), LIMIT)
    pcm = (torch.cat([c.waveform for c in chunks]).clamp(-1, 1) * 32767).round().short().numpy().tobytes()
    assert post(server.http, ["ada", "ben"], DIALOGUE).content == pcm


@pytest.mark.parametrize(
    ("path", "body", "count"),
    [
        ("speech", {"voice": GOOD}, 1),
        ("speech", {"voice": "eve"}, 1),
        ("speech", {"voice": ["eve", GOOD], "input": DIALOGUE}, 2),
        ("speech", {"voice": "eve", "input": "It is late. " * 60}, 1),
        ("speech", {"voice": GOOD, "timestamps": True, "stream_format": "sse"}, 1),
        ("voices/check", GOOD, 1),
    ],
    ids=["sent", "of the folder", "dialogue", "chunks", "times of words", "check"],
)
def test_a_recording_is_decoded_once(server, monkeypatch, path, body, count):
    decode, decoded = audio._decode, []
    monkeypatch.setattr(audio, "_decode", lambda *arguments: decoded.append(arguments) or decode(*arguments))
    own = {"model": "tiny", "input": "Good morning.", "max_new_tokens": 20, "response_format": "pcm"}
    answer = server.http.post(f"/v1/audio/{path}", json=own | body if path == "speech" else body)
    assert answer.status_code == 200, answer.text
    assert len(decoded) == count


SILENT_HOURS = recording(torch.zeros(2 * 3600 * 8000), 8000, format="FLAC")  # 3 hundredths of a megabyte
VOICES = {
    "no base64": ({"audio": "?", "text": WORDS}, "not base64"),
    "not ASCII": ({"audio": "é", "text": WORDS}, "not base64"),
    "no audio": ({"audio": base64.b64encode(b"hello").decode(), "text": WORDS}, "not an audio file"),
    "cut off": ({"audio": GOOD["audio"][:4000], "text": WORDS}, "cut off"),
    "half a second": ({"audio": recording(speech(0.5)), "text": WORDS}, "0.50 s long"),
    "61 s": ({"audio": recording(speech(61.0, 8000), 8000, subtype="PCM_U8"), "text": WORDS}, "at most 60 s"),
    "hours": ({"audio": SILENT_HOURS, "text": WORDS}, "at most 60 s"),
    "channels": ({"audio": recording(speech(1).repeat(8, 1)), "text": WORDS}, "at most 2 channels"),
    "rate": ({"audio": recording(speech(1), 192_000), "text": WORDS}, "at most 96000 Hz"),
    "silence": ({"audio": recording(torch.zeros(96_000)), "text": WORDS}, "dBFS"),
    "no transcript": ({"audio": GOOD["audio"]}, "Field required"),
    "blank transcript": (GOOD | {"text": " "}, "no text"),
    "long transcript": (GOOD | {"text": "a" * 1501}, "1500"),
    "empty": (GOOD | {"audio": ""}, "at least 1"),
    "no string": (GOOD | {"audio": 1}, "valid string"),
    "a name too": (GOOD | {"id": "ada"}, "Extra inputs"),
    "a path": ({"audio_url": "/etc/passwd"}, "Field required"),
    "a number": (7, "expected a name"),
    "nobody": ([], "at least 1"),
    "eleven": (["ada"] * 11, "at most 10"),
    "a cast in a cast": ([["ada"]], "expected a name"),
    "a stranger": (["ada", "nobody"], "there are: ada, ben, eve"),
    "one of two": (["ada", {"audio": GOOD["audio"][:4000], "text": WORDS}], "cut off"),
}  # fmt: skip


@pytest.mark.parametrize("name", VOICES)
def test_voices_that_are_refused(server, name):
    voice, message = VOICES[name]
    answer = post(server.http, voice, DIALOGUE if isinstance(voice, list) else "Good morning.")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "voice") and message in error["message"], error
    assert len(error["message"]) < 400 and str(FOLDER.parent) not in error["message"] and "0x" not in error["message"]
    assert server.scheduler.idle and server.num_open == 0


@pytest.mark.parametrize(
    ("voice", "text"),
    [("ada", DIALOGUE), (["ada"], "Hi."), (["ada"], DIALOGUE), (GOOD, DIALOGUE), (["ada", "ben"], "[SPEAKER2] Hi.")],
    ids=lambda value: f"{value!r:.30}",
)
def test_tags_and_cast_go_together(server, voice, text):
    answer = post(server.http, voice, text)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")


def test_recordings_are_taken_from_this_machine_or_with_the_key(server, locked):
    """uvicorn believes a proxy on this machine about who calls."""
    for address, status in (("203.0.113.5", 403), ("127.0.0.9", 200), ("::1", 200), ("::ffff:203.0.113.5", 403)):
        headers = {"x-forwarded-for": address}
        answers = [post(server.http, voice, **headers) for voice in (GOOD, "ada")]
        assert [answer.status_code for answer in answers] == [status, 200], address
        assert server.http.post("/v1/audio/voices/check", json=GOOD, headers=headers).status_code == status
        assert server.http.get("/v1/audio/settings", headers=headers).json()["references"] == (status == 200)
    answer = post(server.http, ["ada", GOOD], DIALOGUE, **{"x-forwarded-for": "203.0.113.5"})
    assert answer.json()["error"]["code"] == "recording_refused"
    far = {"authorization": "Bearer secret", "x-forwarded-for": "203.0.113.5"}
    assert post(locked, GOOD, **far).status_code == 200


def test_the_findings_are_those_of_voices_check(server, tmp_path):
    clip = tmp_path / "clip.wav"
    for waveform, text in ((speech(), WORDS), (speech(2.0, level=-50.0), WORDS), (speech(0.5), "")):
        audio = recording(waveform)
        clip.write_bytes(base64.b64decode(audio))
        found = server.http.post("/v1/audio/voices/check", json={"audio": audio, "text": text}).json()
        heard = f"{len(waveform) / 24_000:g} s"
        findings = [(finding.fatal, finding.message) for finding in check_recording(clip, text or heard)]
        findings += [(False, "doubtful")] if text else []
        assert [(finding["fatal"], finding["message"]) for finding in found["findings"]] == findings
        assert (found["transcript"], found["seconds"]) == (heard, len(waveform) / 24_000)
    for body, param in (({"audio": "?"}, "audio"), ({"audio": SILENT_HOURS}, "audio"), ({"text": "Hi."}, "audio"),
                        (GOOD | {"text": "a" * 1501}, "text"), (GOOD | {"name": "x"}, "name")):  # fmt: skip
        answer = server.http.post("/v1/audio/voices/check", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_server_without_a_recogniser_says_so(locked):
    key = {"authorization": "Bearer secret"}
    for text, messages in (("", []), ("word " * 100, ["25.0 words a second"]), (WORDS, [])):
        answer = locked.post("/v1/audio/voices/check", json=GOOD | {"text": text}, headers=key).json()
        assert answer["transcript"] is None
        assert [finding["message"][:19] for finding in answer["findings"]] == messages
    assert not locked.get("/v1/audio/settings", headers=key).json()["transcribes"]


def test_checks_are_made_one_by_one_and_few_wait(serve):
    at_once, most, go = [0], [0], threading.Event()

    def hear(waveform, rate, text):
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        assert go.wait(20)
        at_once[0] -= 1
        return "", []

    server = serve(recogniser=hear)
    with ThreadPoolExecutor(MAX_CHECKS + 2) as pool:
        answers = [pool.submit(server.http.post, "/v1/audio/voices/check", json=GOOD) for _ in range(MAX_CHECKS + 2)]
        try:
            wait_for(lambda: sum(answer.done() for answer in answers) == 2)
            assert server.http.get("/health").status_code == 200
        finally:
            go.set()
    assert sorted(answer.result().status_code for answer in answers) == [200] * MAX_CHECKS + [429] * 2
    assert most[0] == 1


OPENED: list[str] = []
WATCHING = threading.Event()


def record_opened(event: str, arguments: tuple) -> None:
    if WATCHING.is_set() and event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE:
        OPENED.append(str(arguments[0]))


def test_a_recording_is_written_to_no_disk(server):
    sys.addaudithook(record_opened)
    WATCHING.set()
    try:
        with open(os.devnull, "w"):
            pass
        assert post(server.http, GOOD).status_code == 200 and post(server.http, [GOOD, "ada"], DIALOGUE).is_success
        assert server.http.post("/v1/audio/voices/check", json=GOOD).is_success
    finally:
        WATCHING.clear()
    assert OPENED == [os.devnull]


def test_the_command_opens_its_page(nano, tmp_path):
    """On a free port, in whatever BROWSER names; without one, and without a screen, it prints the address alone."""
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/part && mv {tmp_path}/part {tmp_path}/opened\n')
    browser.chmod(0o755)
    command = [sys.executable, "-m", "higgs", "serve", "--port", "0", "--threads", "1", "--open"]
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment["BROWSER"] = f"{browser} %s"
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_for((tmp_path / "opened").exists, 120)
            address = (tmp_path / "opened").read_text().strip()
            assert httpx.get(address).text.startswith("<!doctype html>")
            assert httpx.get(f"{address}/v1/audio/settings").json()["model"] == "nano"
        finally:
            process.send_signal(signal.SIGINT)
            printed = process.stdout.read()
    assert address.startswith("http://127.0.0.1:") and f"The page is at {address}\n" in printed


def test_without_a_screen_the_address_is_printed(monkeypatch, capsys):
    from higgs.cli import serve

    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(serve.sys, "platform", "linux")
    monkeypatch.setattr(serve.subprocess, "Popen", lambda *_, **__: pytest.fail("it must start no browser"))
    serve.show("http://127.0.0.1:8000")
    assert "http://127.0.0.1:8000 " in capsys.readouterr().out
