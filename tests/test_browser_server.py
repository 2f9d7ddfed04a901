"""The page at `/` in a real browser: it speaks, streams, imitates, tells errors, copies, and calls nobody else."""

import base64
import io
import json
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from conftest import serious_faults
from test_page import DIALOGUE, recording
from test_server import Server, parts, wait_for  # noqa: F401
from test_voices import WORDS, speech

from higgs import Engine
from higgs.config import SamplingConfig
from higgs.serve.captions import write_times
from higgs.serve.engine import EngineConfig
from higgs.serve.http.access import Access
from higgs.serve.http.app import ServerConfig

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.browser
api.expect.set_options(timeout=30_000)
MARKUP = '<img src="x" onerror="document.title = 0">'
TEXT = f'It\'s $(touch gone) "now" `touch gone` \\ {MARKUP}.'
HEARD = "What the recogniser heard."


@pytest.fixture(scope="module")
def engine(parts) -> Engine:  # noqa: F811
    return Engine(*parts, EngineConfig(max_batch=2, max_positions=1500, runaway=None))


@pytest.fixture(scope="module")
def serve(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    (folder / "profiles.json").write_text(json.dumps({"ada": f"feminine {MARKUP}", "ben": "masculine"}))
    config = ServerConfig("tiny", folder, SamplingConfig(seed=1), 80, recogniser=lambda *_: (HEARD, []))
    return lambda access=None: Server(engine, config, access)


@pytest.fixture(scope="module")
def server(serve) -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.fixture
def open_page(browser):
    """-> a function from a server to its page, which may ask this server alone and must not fail by itself."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write", "microphone"])
    context.set_default_timeout(30_000)
    asked, faults = [], []

    def start(server: Server, path: str = "/"):
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if "Refused to" in message.text else None)
        page.goto(f"http://127.0.0.1:{server.port}{path}")
        start.own = ("blob:", "data:", f"http://127.0.0.1:{server.port}/")
        return page

    yield start
    context.close()
    assert asked and [url for url in asked if not url.startswith(start.own)] == [] == faults


@pytest.fixture
def page(open_page, server):
    page = open_page(server)
    api.expect(page.locator("#voice option")).to_have_count(2)
    return page


def spoken(page, number: int = 1) -> bytes:
    """Waits for the end of a request -> the 16-bit samples of what it made, as the page saves them."""
    entry = page.locator("#made li").filter(has=page.get_by_role("heading", name=f"{number}. "))
    api.expect(page.locator("#speak")).to_have_text("Speak")
    with page.expect_download() as download:
        entry.get_by_role("link", name="Download").click()
    return pcm(download.value.path())


def pcm(path: Path) -> bytes:
    samples, rate = soundfile.read(io.BytesIO(Path(path).read_bytes()), dtype="int16")
    assert rate == 24_000
    return samples.tobytes()


def seconds(page) -> float:
    return float(page.get_attribute("#seek", "max"))


def answer(server: Server, voice, text: str, seed: int = 1) -> bytes:
    body = {"model": "tiny", "voice": voice, "input": text, "response_format": "pcm", "seed": seed}
    return server.http.post("/v1/audio/speech", json=body).content


def test_it_speaks_and_streams(page, server, monkeypatch):
    """The first sound plays while the rest is made; text of people is shown as it is."""
    hold = threading.Event()
    run_steps = server.scheduler.run_steps

    def held() -> None:
        if any(sequence.num_steps > 40 for sequence in server.scheduler.running.values()):
            assert hold.wait(30)
        run_steps()

    monkeypatch.setattr(server.scheduler, "run_steps", held)
    page.fill("#text", TEXT)
    page.keyboard.press("Control+Enter")
    api.expect(page.locator("#made li")).to_have_count(1)
    api.expect(page.locator("#speak")).to_be_disabled()
    wait_for(lambda: page.evaluate("player.position") > 0)
    before = seconds(page)
    api.expect(page.locator("#made")).to_contain_text(re.compile(r"real-time factor \d"))  # and not NaN
    hold.set()
    sound = spoken(page)
    assert 0 < before < seconds(page) == len(sound) / 48_000
    assert sound == answer(server, "ada", TEXT)
    api.expect(page.locator("#status")).to_contain_text("First sound after")
    factor = float(re.search(r"real-time factor (\d+\.\d\d)\.", page.inner_text("#status"))[1])
    took, length = page.evaluate("[made[0].took, made[0].sound.seconds]")
    assert factor == pytest.approx(took / length, abs=0.006), "work for a second of audio, as everywhere"
    api.expect(page.locator("#made")).to_contain_text(TEXT)
    assert page.locator("img").count() == 0 and MARKUP in page.inner_text("#voice") and page.title() != "0"


def test_the_word_that_is_spoken_is_marked_and_captions_are_saved(page, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = f"Good morning, {MARKUP} all of you."
    page.fill("#text", text)
    page.get_by_text("Sampling").click()
    page.uncheck("#normalize")
    page.click("#speak")
    spoken(page)
    body = {"model": "tiny", "voice": "ada", "input": text, "seed": 1, "normalize": False}
    told = server.http.post("/v1/audio/speech", json=body | {"stream_format": "sse", "timestamps": True}).text
    words = json.loads(told.strip().split("\n\n")[-2].removeprefix("data: "))["words"]
    assert page.locator("#words .word").all_inner_texts() == [each["word"] for each in words] == text.split()
    page.evaluate("player.pause()")
    assert page.locator("#words .now").count() == 0 and page.locator("img").count() == 0
    long = max(range(len(words)), key=lambda n: words[n]["end"] - words[n]["start"])
    middle = (words[long]["start"] + words[long]["end"]) / 2
    now = page.evaluate("""second => {
        player.play(player.sound, Math.round(second * RATE));
        shown();
        return [...$("words").children].map((word) => word.classList.contains("now"));
    }""", middle)  # fmt: skip
    assert now == [n == long for n in range(len(words))]
    page.evaluate("player.pause()")
    page.evaluate("$('words').style.maxHeight = '1rem'")  # as where the text is long
    assert serious_faults(page) == []
    with page.expect_download() as download:
        page.get_by_role("link", name="Captions").click()
    write_times("captions.vtt", words)
    assert Path(download.value.path()).read_text() == Path("captions.vtt").read_text()


def test_settings_are_sent_and_the_seed_comes_back(page, server):
    page.get_by_text("Sampling").click()
    assert page.get_attribute("#top_k", "placeholder") == str(SamplingConfig().top_k)
    page.fill("#seed", "7")
    page.select_option("#voice", "ben")
    page.click("#speak")
    text = page.input_value("#text")
    assert spoken(page) == answer(server, "ben", text, 7)
    page.click("#again")
    assert spoken(page, 2) == answer(server, "ben", text, int(page.input_value("#seed")))
    page.fill("#temperature", "99")
    page.get_by_text("Sampling").click()  # folded away, where a browser could not show what is wrong
    page.click("#speak")
    api.expect(page.locator("#temperature")).to_be_visible()
    assert not page.evaluate("document.querySelector('#form').checkValidity()")
    api.expect(page.locator("#made li")).to_have_count(2)


def test_two_are_heard_by_turns_at_the_same_place(page):
    for number in (1, 2):
        page.click("#again")
        spoken(page, number)
    page.get_by_role("button", name="A, number 1", exact=True).click()
    page.get_by_role("button", name="B, number 2", exact=True).click()
    page.get_by_role("button", name="Play, number 1").click()
    wait_for(lambda: page.evaluate("player.position") > 4800)
    positions = page.evaluate("[player.position, (switchTo(), player.position)]")
    assert positions[0] <= positions[1] < positions[0] + 2400
    api.expect(page.locator("#now")).to_contain_text("B: 2.")
    page.click("#switch")
    api.expect(page.locator("#now")).to_contain_text("A: 1.")
    page.keyboard.press("Escape")
    api.expect(page.locator("#play")).to_have_text("Play")
    page.get_by_role("link", name="Download, number 1").focus()
    page.evaluate("list()")
    api.expect(page.get_by_role("link", name="Download, number 1")).to_be_focused()
    page.get_by_role("button", name="Remove, number 1").press("Enter")
    api.expect(page.locator("#made li")).to_have_count(1)
    api.expect(page.get_by_role("button", name="Play, number 2")).to_be_focused()
    api.expect(page.locator("#switch")).to_be_disabled()


def test_it_stops(page, server, monkeypatch):
    server.slow(monkeypatch, 0.1)
    page.click("#speak")
    api.expect(page.locator("#made li")).to_have_count(1)
    page.click("#stop")
    wait_for(lambda: server.scheduler.idle and server.num_open == 0)
    api.expect(page.locator("#status")).to_contain_text("stopped here")
    assert 0 < seconds(page) < 80 / 25


def use_recording(page, tmp_path, name: str = "clip") -> None:
    file = tmp_path / f"{name}.wav"
    file.write_bytes(base64.b64decode(recording(speech(16.0))))
    page.set_input_files("#file", file)
    api.expect(page.locator("#findings")).to_contain_text("recogniser of English heard")
    assert page.input_value("#transcript") == HEARD
    page.fill("#transcript", WORDS)
    page.click("#use")
    api.expect(page.locator("#own-voices li")).to_have_count(1)


def test_a_voice_from_a_file_and_what_is_copied(page, server, tmp_path):
    """The command and the program make the sound of the page again, and nothing in a text is run by a shell."""
    use_recording(page, tmp_path)
    assert page.input_value("#voice") == "clip"
    page.fill("#text", TEXT)
    page.click("#speak")
    sound = spoken(page)
    with page.expect_download() as download:
        page.locator("#own-voices").get_by_role("link", name="Download").click()
    content = download.value.path().read_bytes()
    assert soundfile.info(io.BytesIO(content)).frames == 15 * 24_000, "the first 15 s of 16"
    voice = {"audio": base64.b64encode(content).decode(), "text": WORDS}
    assert sound == answer(server, voice, TEXT) != answer(server, "ada", TEXT)
    (tmp_path / download.value.suggested_filename).write_bytes(content)
    for kind, command in (("curl", ["bash", "-ec"]), ("Python", [sys.executable, "-c"])):
        page.get_by_role("button", name=f"{kind}, number 1").click()
        api.expect(page.get_by_role("button", name=f"{kind}, number 1")).to_have_text("copied")
        copied = page.evaluate("navigator.clipboard.readText()")
        subprocess.run([*command, copied], cwd=tmp_path, check=True, capture_output=True, timeout=60)
        assert pcm(tmp_path / "speech.wav") == sound, kind
        (tmp_path / "speech.wav").unlink()
    page.get_by_role("button", name="command line, number 1").click()
    api.expect(page.get_by_role("button", name="command line, number 1")).to_have_text("copied")
    words = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    assert words[:2] == ["higgs", "speak"] and words[-1] == TEXT
    assert words[words.index("--reference") + 1] == download.value.suggested_filename
    assert words[words.index("--reference-text") + 1] == WORDS and words[words.index("--seed") + 1] == "1"
    assert not (tmp_path / "gone").exists()


def test_a_voice_from_the_microphone(page):
    page.click("#record")
    api.expect(page.locator("#record-state")).to_contain_text("2 of 15 s")
    page.click("#record")
    api.expect(page.locator("#findings")).to_contain_text("recogniser of English heard")
    assert page.locator("#own-error").is_hidden() and page.input_value("#own-name") == "me"
    page.fill("#transcript", "")
    page.click("#use")
    api.expect(page.locator("#own-error")).to_contain_text("what is said")
    wait_for(lambda: page.evaluate("document.querySelector('#listen').duration") > 1.5)


def test_a_recording_that_is_stopped_at_once(page):
    stopped = """async () => {
        await record();
        own.recorder.stop();
    }"""
    page.evaluate(stopped)
    api.expect(page.locator("#own-error")).to_contain_text("within a second")
    api.expect(page.locator("#record")).to_have_text("Record")
    assert page.locator("#recording").is_hidden()


def test_one_recorder_at_a_time_and_the_last_choice_counts(page):
    asked = """() => {
        const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        let count = 0;
        navigator.mediaDevices.getUserMedia = (...wishes) => (count += 1, ask(...wishes));
        [record(), record()];
        return count;
    }"""
    assert page.evaluate(asked) == 1
    api.expect(page.locator("#record-state")).to_contain_text("2 of 15 s")
    page.click("#record")
    api.expect(page.locator("#findings")).to_contain_text("recogniser of English heard")
    slow_first = """async (base64) => {
        const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
        const [slow, quick, read] = [new Blob([bytes]), new Blob([bytes]), cut];
        let go;
        const wait = new Promise((done) => (go = done));
        cut = async (blob) => (blob === slow && (await wait), read(blob));
        const first = take(slow, "slow");
        await take(quick, "quick");
        go();
        await first;
        return $("own-name").value;
    }"""
    assert page.evaluate(slow_first, recording(speech(2.0))) == "quick"
    names = page.evaluate("""['小明', 'a/b "c'].map((name) => fileOf({ name }))""")
    assert names == ["小明.wav", "a-b-c.wav"]


def test_a_dialogue(page, server, tmp_path):
    use_recording(page, tmp_path, "ada")
    page.check("#dialogue")
    page.fill("#text", DIALOGUE)
    page.select_option("#speaker-0", "ben")
    page.select_option("#speaker-1", "ada-2")
    page.click("#speak")
    sound = spoken(page)
    with page.expect_download() as download:
        page.locator("#own-voices").get_by_role("link", name="Download").click()
    voice = {"audio": base64.b64encode(download.value.path().read_bytes()).decode(), "text": WORDS}
    assert sound == answer(server, ["ben", voice], DIALOGUE)
    page.click("#add-speaker")
    page.fill("#text", "")
    page.get_by_role("button", name="Insert line of speaker 2").click()
    assert page.input_value("#text") == "[SPEAKER2] "
    page.get_by_role("button", name="Remove ada-2").click()
    page.get_by_role("button", name="Use again, number 1").click()
    assert page.input_value("#text") == DIALOGUE and page.input_value("#speaker-0") == "ben"
    api.expect(page.locator("#speakers .cast")).to_have_count(2)  # the request has the cast of what was made
    api.expect(page.locator("#error")).to_contain_text("ada-2: this recording is no longer here")


def test_errors_are_shown_as_they_are_told(page, server, monkeypatch, tmp_path):
    page.fill("#text", "[SPEAKER7] Hi.")
    page.click("#speak")
    error = server.http.post("/v1/audio/speech", json={"model": "tiny", "voice": "ada", "input": "[SPEAKER7] Hi."})
    api.expect(page.locator("#error")).to_have_text(error.json()["error"]["message"])
    (tmp_path / "no.wav").write_text("no audio")
    page.set_input_files("#file", tmp_path / "no.wav")
    api.expect(page.locator("#own-error")).to_contain_text("no audio file")
    page.fill("#text", "Good morning.")
    page.click("#speak")
    spoken(page)
    api.expect(page.locator("#error")).to_be_hidden()

    def fail(*_) -> None:
        raise KeyError("of its own")

    with monkeypatch.context() as patch:
        patch.setattr(server.scheduler.decoder, "run", fail)
        page.click("#speak")
        api.expect(page.locator("#error")).to_contain_text("the server failed")
    page.route("**/v1/audio/speech", lambda route: route.abort())
    page.click("#speak")
    api.expect(page.locator("#error")).to_contain_text("does not answer")


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_page_asks_for_the_key_and_forgets_it(open_page, serve, path):
    done = "#model:has-text('tiny')" if path == "/" else "#requests table"
    with serve(Access(api_key="secret")) as server:
        page = open_page(server, path)
        if path == "/":  # the form before it knows voices and limits
            page.check("#dialogue")
            page.click("#add-speaker")
            page.check("#single")
            page.click("#speak")
            api.expect(page.locator("#error")).to_contain_text("waits for its key")
        for key in ("wrong", "secret"):
            api.expect(page.locator("#start-error")).to_contain_text("a key is needed")
            assert page.locator(done).count() == 0
            page.fill("#key", key)
            page.get_by_role("button", name="Use this key").click()
            page.wait_for_timeout(300)
        page.wait_for_selector(done)
        api.expect(page.locator("#key-form")).to_be_hidden()
        if path == "/":
            assert page.evaluate("speakers.map(({ value }) => value)") == ["ada", "ben"]
            page.click("#speak")
            assert spoken(page)
            page.get_by_role("button", name="curl, number 1").click()
            api.expect(page.get_by_role("button", name="curl, number 1")).to_have_text("copied")
            copied = page.evaluate("navigator.clipboard.readText()")
            assert "$HIGGS_API_KEY" in copied and "secret" not in copied
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        page.reload()
        api.expect(page.locator("#key-form")).to_be_visible()


def test_the_interface_is_described_with_bounds_and_examples(open_page, server):
    page = open_page(server, "/docs")
    field = page.locator("tr", has=page.get_by_role("rowheader", name="temperature")).inner_text()
    assert "0 or more" in field and "at most 10" in field and "0.4" in field
    section = page.locator("section", has=page.locator("#post-v1-audio-speech"))
    assert '"model":"tiny"' in section.locator("pre").inner_text()  # the one that this server has
    assert section.locator("tbody code", has_text=re.compile('^"tiny"$')).count() == 1
    fields = section.locator("tbody tr")
    schema = server.http.get("/openapi.json").json()["components"]["schemas"]["SpeechBody"]
    assert fields.count() == len(schema["properties"])
    examples = [row.locator("td").nth(2).inner_text() for row in fields.all()]
    assert all(examples), examples


@pytest.mark.parametrize("path", ["/", "/docs"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_every_control_has_a_name(open_page, server, path, scheme):
    page = open_page(server, path)
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_selector("#requests table" if path == "/docs" else "#voice option", state="attached")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    unnamed = """[...document.querySelectorAll('input, select, textarea, button, audio')].filter((control) =>
        !control.labels?.length && !control.ariaLabel && !control.textContent.trim()).map(({ id }) => id)"""
    assert page.evaluate(unnamed) == []
    if path == "/":
        page.click("#speak")
        spoken(page)
    assert serious_faults(page) == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) > 384) == (scheme == "light")
