"""The comparison and the listening test in a real browser: what is heard, and that nothing is asked of the network."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, serious_faults
from runs import RATE, TEXTS, make_run

from higgs.comparison.listening import PREFERENCE, SCORES, make_test
from higgs.comparison.many import Choice, compare_runs
from higgs.comparison.page import to_page
from higgs.comparison.runs import find_run
from higgs.evaluate.statistics.intervals import Resampling

SWEEPS = ((300, 2300), (3000, 5000))
pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two runs of ten texts; the frequency says which run is heard, and which moment of it."""
    texts = (*TEXTS, *(f"Text number {number}." for number in range(4)))
    roots = [make_run(tmp_path_factory.mktemp(f"run{n}"), sweep, texts=texts) for n, sweep in enumerate(SWEEPS)]
    return [find_run(str(root), tmp_path_factory.mktemp("scratch")) for root in roots]


@pytest.fixture
def opened(browser, tmp_path):
    """HTML -> its page in the browser; afterwards: no fault, and no request but for the file itself."""
    faults, requests = [], []

    def open_page(content: str, width: int = 1280, scheme: str = "light"):
        file = tmp_path / "page.html"
        file.write_text(content)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_page
    assert not faults
    assert all(url.startswith(("file:", "blob:", "data:")) for url in requests) and requests


RENDERED = """async (moment) => {
  const context = new OfflineAudioContext(1, 24000, 24000);
  const probe = new Player(context);
  const held = new Sounds(data.clips);
  probe.load(await Promise.all(data.rows[0].map((clip) => held.decode(clip, context))));
  probe.play(0, 0);
  context.suspend(moment).then(() => { probe.switchTo(1); context.resume(); });
  return Array.from((await context.startRendering()).getChannelData(0));
}"""


def until(page, condition: str, seconds: float = 30) -> None:
    """Waits for an expression. (Playwright's own way needs `eval`, which the page's policy forbids.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(f"Boolean({condition})"):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def frequency(samples: np.ndarray, moment: float) -> float:
    """Of 30 ms about a moment."""
    part = samples[round((moment - 0.015) * RATE) : round((moment + 0.015) * RATE)]
    return np.abs(np.fft.rfft(part * np.hanning(len(part)), RATE)).argmax()


def test_sides_switch_at_the_same_moment_without_a_gap(two, opened):
    page = opened(to_page(compare_runs(two, Choice(settings=Resampling(100)))))
    moment = 12_288 / RATE  # a multiple of 128 samples, where rendering can be held
    samples = np.array(page.evaluate(RENDERED, moment))
    for side, at in ((0, moment - 0.1), (0, moment - 0.03), (1, moment + 0.03), (1, moment + 0.1)):
        low, high = SWEEPS[side]
        assert frequency(samples, at) == pytest.approx(low + (high - low) * at, abs=40)  # 40 Hz are 20 ms
    part = samples[round((moment - 0.05) * RATE) : round((moment + 0.05) * RATE)]
    levels = np.sqrt((part.reshape(-1, 48) ** 2).mean(axis=1))  # of 2 ms
    assert levels.min() > 0.5 * np.median(levels)


def test_keys_play_switch_and_only_one_sound_is_heard(two, opened):
    page = opened(to_page(compare_runs(two, Choice(settings=Resampling(100)))))
    page.keyboard.press(" ")
    until(page, "player && player.playing")
    started = page.evaluate("player.startedAt")
    page.keyboard.press("Tab")
    assert page.evaluate("[player.side, player.startedAt, player.playing]") == [1, started, True]
    page.keyboard.press("Tab")
    assert page.evaluate("player.side") == 0
    frames = """async () => {
        const ask = requestAnimationFrame;
        let count = 0;
        for (let n = 0; n < 50; n++) show();
        requestAnimationFrame = (act) => (count += 1, ask(act));
        await new Promise((done) => setTimeout(done, 100));
        requestAnimationFrame = ask;
        return count;
    }"""
    assert page.evaluate(frames) < 50  # one for each frame, not one for each change
    until(page, "!player.playing")  # at the end
    page.locator(".text").nth(1).locator("button.play").nth(1).click()
    until(page, "player.playing")
    page.locator(".text").nth(2).locator("button.play").first.click()
    until(page, "player.playing && current === '2'")
    assert page.locator(".text button.play.on").count() == 1
    page.keyboard.press(" ")
    assert page.evaluate("[player.playing, player.running]") == [False, None]
    pixels = "document.querySelector('canvas').getContext('2d').getImageData(0, 0, 40, 50).data"
    until(page, f"[...{pixels}].some((value) => value > 60 && value < 255)")
    page.fill("#search", "alert(1)")
    assert page.locator(".text:visible").count() == 1


def listen_to_all(page):
    for number, button in enumerate(page.locator("button.play").all(), start=1):
        button.click()
        until(page, f"view.heard.size === {number}")


def finish(page, file: Path) -> Path:
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(file)
    return file


def test_a_listener_of_known_preference_is_found(two, opened, tmp_path):
    content, key = make_test(two, PREFERENCE, texts=10, seed=5)
    key_file = tmp_path / "listen.key.json"
    key_file.write_text(json.dumps(key))
    known = {trial["trial"]: trial["stimuli"] for trial in key["trials"]}
    page = opened(content)
    assert not any(run.name in page.content() for run in two)
    page.fill("input", "Anna <b>Ä</b>")
    page.click("text=Start")
    count = page.evaluate("steps.length")
    for step in range(count):
        until(page, f"state.step === {step} && view && view.step === {step}")
        assert page.locator("button.main").is_disabled()
        page.keyboard.press("5")  # before anything was heard: counts for nothing
        assert page.evaluate("Object.keys(state.answers).length") == step
        listen_to_all(page)
        trial, ids = page.evaluate("[view.current.trial, view.current.stimuli.map((one) => one.id)]")
        page.keyboard.press("5" if known.get(trial, {}).get(ids[1], {}).get("system") == 1 else "1")
        page.click("text=Next")
        if step == 4:
            page.reload()  # closed and opened again
    page.wait_for_selector("#download")
    file = finish(page, tmp_path / "ratings-anna.json")
    ratings = json.loads(file.read_text())
    assert ratings["listener"] == "Anna <b>Ä</b>" and len(ratings["answers"]) == 10 and ratings["page"] == key["page"]
    names = [run.name for run in two]
    out = tmp_path / "compare.html"
    words = [*names, "--ratings", str(file), "--key", str(key_file), "--out", str(out), "--resamples", "2000"]
    done = subprocess.run([sys.executable, "-m", "higgs", "compare", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert re.search(r"listeners' preference, % of texts +0\.0 +100\.0 .* B is better", done.stdout)
    assert "listeners&#x27; preference" in out.read_text()


def test_scores_take_every_sound_and_a_slider_for_each(two, opened, tmp_path):
    content, key = make_test(two, SCORES, texts=2, seed=5)
    page = opened(content)
    page.fill("input", "ben")
    page.click("text=Start")
    for step in range(page.evaluate("steps.length")):
        until(page, f"view && view.step === {step}")
        assert page.locator("input[type=range]").count() == 4 and page.locator("input[type=range]").first.is_disabled()
        listen_to_all(page)
        page.wait_for_selector("input[type=range]:enabled")
        for number, slider in enumerate(page.locator("input[type=range]").all()):
            slider.fill(str(20 * number))
        page.click("text=Next")
    ratings = json.loads(finish(page, tmp_path / "ben.json").read_text())
    for answer, trial in zip(ratings["answers"], key["trials"], strict=True):
        assert set(answer["scores"]) == set(trial["stimuli"]) and sorted(answer["scores"].values()) == [0, 20, 40, 60]


def test_what_is_over_is_not_heard_and_another_tab_loses_nothing(two, opened):
    page = opened(make_test(two, PREFERENCE, texts=2, seed=5)[0])
    page.fill("input", "ben")
    page.click("text=Start")
    until(page, "view && view.step === 0")
    over = """async () => {
        await hear(0);
        player.load([5, 3].map((seconds) => new AudioBuffer({ length: 24000 * seconds, sampleRate: 24000 })));
        view.heard.clear();
        player.play(0, 4);
        player.switchTo(1);
        const silent = [...view.heard];
        player.switchTo(0);
        await hear(1);
        return [silent, player.side, player.position < 1, [...view.heard]];
    }"""
    assert page.evaluate(over) == [[0], 1, True, [0, 1]]
    other_tab = """() => {
        localStorage.setItem(memory, JSON.stringify({ listener: "ben", step: 3, answers: { one: 1, two: 1 } }));
        state.answers = { two: 2 };
        remember();
        return remembered();
    }"""
    assert page.evaluate(other_tab) == {"listener": "ben", "step": 3, "answers": {"one": 1, "two": 2}}


SCREENS = [(1280, "light"), (390, "dark")]


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
@pytest.mark.parametrize("count", [2, 3])
def test_axe_finds_no_serious_fault_in_a_comparison(two, opened, count, width, scheme):
    """In its first state, and while it plays."""
    page = opened(to_page(compare_runs([*two, two[0]][:count], Choice(settings=Resampling(100)))), width, scheme)
    assert serious_faults(page) == [] and page.evaluate("document.documentElement.scrollWidth") <= width
    page.keyboard.press(" ")
    until(page, "player && player.playing")
    assert serious_faults(page) == []


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
@pytest.mark.parametrize("kind", [PREFERENCE, SCORES])
def test_axe_finds_no_serious_fault_in_a_listening_test(two, opened, kind, width, scheme):
    """Its first step, one with sounds, and the last."""
    page = opened(make_test(two, kind, texts=2, seed=5)[0], width, scheme)
    assert serious_faults(page) == []
    page.fill("input", "ben")
    page.click("text=Start")
    until(page, "view && view.step === 0")
    assert serious_faults(page) == []
    listen_to_all(page)
    assert serious_faults(page) == []
    page.evaluate("go(steps.length)")
    assert serious_faults(page) == []
