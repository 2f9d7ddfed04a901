"""The evaluate page in a browser: it plays, filters, sorts, links, and loads nothing; text of people stays text."""

import time
from types import SimpleNamespace

import nbformat
import pytest
from conftest import ROOT, serious_faults
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from spoken import RATE, sine

from higgs.audio import save_audio
from higgs.evaluate.report.answer import answer, by_voice
from higgs.evaluate.report.figures import strips
from higgs.evaluate.report.gather import GENERATED, RECONSTRUCTED, RECORDED
from higgs.evaluate.report.html import known, parts_of, provenance_table, voices_of
from higgs.evaluate.report.listing import listing
from higgs.evaluate.statistics.intervals import Resampling
from higgs.evaluate.statistics.parts import from_best, nearer_to_own
from higgs.evaluate.statistics.summary import METRICS, summarise
from higgs.evaluate.utterances import text_scores
from higgs.workflow.outputs import table
from higgs.workflow.page import STAGES, bare_page, to_html, write_page

pytestmark = pytest.mark.browser
EVIL = "</script><img src=x onerror='window.hit=1'><!--<script> & \u2028 \"quoted\""
NAMES = {"recogniser": "Ear", "speaker": "Pitch", "naturalness": "Taste"}
# id, condition, voice, form, seed, text, heard; b-s0 has no sound.
SAID = [
    ("clip, recordings", RECORDED, "Ann", "", None, "Good morning.", "Good morning."),
    ("clip, recordings through the codec", RECONSTRUCTED, "Ann", "", None, "Good morning.", "Good warning."),
    ("a-s0", GENERATED, "ada", "smart_voice", 0, "The cat sat down.", "The cat sat down."),
    ("a-s1", GENERATED, "ada", "smart_voice", 1, "The cat sat down.", "The dog lay."),
    ("b-s0", GENERATED, "ben", "voice_clone", 0, "Where are you?", ""),
    ("c-s0", GENERATED, "ben", "voice_clone", 0, f"Hello {EVIL}", f"yellow {EVIL}"),
    ("d-s0", GENERATED, "ben", "voice_clone", 0, "Ten cats.", "Ten cats."),
]
SPOKEN = ["The", "cat", "<b>sat</b>", "down."]
WORST_FIRST = ["b-s0", "a-s1", "c-s0", "a-s0", "d-s0"]


def record(folder, name, group, voice, form, seed, text, heard) -> dict:
    base = name.partition(",")[0]
    row = {"group": group, "name": base, "script": base.partition("-")[0], "language": "en", "speaker": voice}
    row |= {"voice": voice, "form": form, "seed": seed, "text": text, "heard": heard, "status": "ok", "note": ""}
    path = folder / f"{len(list(folder.iterdir()))}.flac"
    row |= {"path": str(path), "seconds": None if name == "b-s0" else 2.0, "sample_rate": RATE}
    if row["seconds"]:
        save_audio(path, sine(300, 0.2, 2 * RATE), RATE)
    row |= dict.fromkeys(metric.column for metric in METRICS) | text_scores(text, heard, "en")
    row |= {"similarity": 0.6 + 0.01 * len(list(folder.iterdir())), "similarity_to_others": 0.5}
    return row | {"level_dbfs": -20.0, "retries": 0}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Pages as the stage `page` leaves them."""
    root = tmp_path_factory.mktemp("site")
    (root / "audio").mkdir()
    rows = [record(root / "audio", *said) for said in SAID]
    settings, summary = Resampling(200), summarise(rows, 200, 0)
    voices, commands = voices_of(rows), {"a-s0": f"higgs speak '{EVIL}' --seed 0"}
    panels = {"word error rate, %": {g: known(rows, "wer_percent", g) for g in (RECORDED, GENERATED)}}
    words = [
        {"name": "a-s0", "word": w, "start": at, "end": at + 0.5}
        for w, at in zip(SPOKEN, (0, 0.5, 1, 1.5), strict=True)
    ]
    shown = [
        answer(summary, nearer_to_own(voices, settings), NAMES),
        "## Voices", by_voice(parts_of(rows, 200, 0)["voice"], summary, from_best(voices, settings)),
        "## All utterances", listing(rows, commands, words),
        "## Distributions", strips(panels),
        "## Numbers\n\n### Small", table([{"what": EVIL, "number": 1.5}], EVIL), provenance_table({"set": EVIL}),
    ]  # fmt: skip
    cells = [new_markdown_cell("# Evaluate\n\n**Is it understood?**")]
    cells.append(new_code_cell("seed = 0", metadata={"tags": ["injected-parameters"]}, execution_count=1))
    for thing in shown:
        if isinstance(thing, str):
            cells.append(new_markdown_cell(thing))
            continue
        data = thing._repr_mimebundle_() if hasattr(thing, "paths") else {"text/html": thing.data}
        cells.append(new_code_cell("value", outputs=[new_output("execute_result", data)], execution_count=1))
    notebook = nbformat.from_dict(new_notebook(cells=cells))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_page(root / "reports" / "evaluate.html", to_html(notebook, "evaluate", STAGES, {"notebook": "0" * 64}))
    write_page(root / "reports" / "other.html", bare_page("Other <b>", "<h1>Other</h1><p>First line.</p>"))
    return root / "reports"


@pytest.fixture
def visit(browser, site):
    """Opens a page in a window of a size; at the end: no error, and no request that leaves the machine."""
    outside, errors, contexts = [], [], []

    def refuse(route):
        outside.append(route.request.url)
        route.abort()

    def start(name: str = "evaluate.html", size: tuple[int, int] = (1280, 900), scheme: str = "light", folder=site):
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        contexts.append(context)
        context.route(lambda url: not url.startswith(("file:", "data:", "blob:")), refuse)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.goto(f"{folder.as_uri()}/{name}")
        return page

    yield start
    for context in contexts:
        context.close()
    assert not outside and not errors


def shown(page) -> list[str]:
    return page.locator(".utterances tr.one th").all_inner_texts()


def playing(page) -> list[str]:
    """What plays, by the label of the one player; more than one <audio> that plays would be listed too."""
    script = "[...document.querySelectorAll('audio')].filter((one) => !one.paused).map(() => "
    return page.evaluate(script + "document.querySelector('.transport a').textContent)")


@pytest.mark.parametrize(
    ("control", "value", "expected"),
    [
        (None, None, WORST_FIRST),
        ("voice", "ada", ["a-s1", "a-s0"]),
        ("form", "voice_clone", ["b-s0", "c-s0", "d-s0"]),
        ("seed", "1", ["a-s1"]),
        ("group", RECONSTRUCTED, ["clip, recordings through the codec"]),
        ("group", "all", [name for name, *_ in SAID]),
        ("search", "the DOG", ["a-s1"]),
        ("search", "d-s", ["d-s0"]),
        ("search", "nothing has this", []),
        ("bad", True, ["b-s0", "a-s1"]),
    ],
)  # fmt: skip
def test_filters(visit, control, value, expected):
    page = visit()
    if control == "search":
        page.fill("input[name=search]", value)
    elif control == "bad":
        page.check("input[name=bad]")
    elif control:
        page.select_option(f"select[name={control}]", label=value)
    assert sorted(shown(page)) == sorted(expected)
    assert page.locator(".utterances [role=status]").inner_text().startswith(f"{len(expected)} of {len(SAID)} ")


@pytest.mark.parametrize(
    ("heading", "first"), [("WER %", ["d-s0", "a-s0"]), ("id", ["a-s0", "a-s1"]), ("similarity", ["a-s0"])]
)
def test_a_heading_sorts_and_again_the_other_way(visit, heading, first):
    page = visit()
    button = page.locator(".utterances thead button", has_text=heading)
    button.click()
    wanted = shown(page)
    assert sorted(wanted[: len(first)]) == sorted(first)
    assert page.locator("th[aria-sort=ascending]").inner_text().strip().startswith(heading)
    button.click()
    assert shown(page)[-1] in first and page.locator("th[aria-sort=descending]").count() == 1


def test_one_plays_at_a_time(visit):
    page = visit()
    page.click("button.play[aria-label^='play a-s0']")
    page.wait_for_function("document.querySelector('.transport audio').currentTime > 0.05")
    assert playing(page) == ["a-s0"]
    page.click("button.play[aria-label^='play c-s0']")
    page.wait_for_function("document.querySelector('.transport audio').currentTime > 0.05")
    assert playing(page) == ["c-s0"] and page.locator("tr.playing th").inner_text() == "c-s0"
    page.click("button.play[aria-label^='play c-s0']")
    assert playing(page) == []
    assert page.locator("tr.one", has_text="b-s0").locator("text=no audio").count() == 1
    seconds = page.evaluate("[higgs.formatSeconds(3.25), higgs.formatSeconds(83.4), higgs.formatSeconds(59.97)]")
    assert seconds == ["3.3 s", "1:23", "1:00"]


def test_the_word_that_is_spoken_is_marked(visit):
    """While it plays, and where it is moved to; an utterance without times is shown as its text."""
    page = visit()
    page.click("button.play[aria-label^='play a-s0']")
    seen = []
    for _ in range(200):
        now = page.locator(".transport .word.now").all_inner_texts()
        seen += now if now and now[-1:] != seen[-1:] else []
        if len(seen) == len(SPOKEN):
            break
        page.wait_for_timeout(20)
    assert seen == SPOKEN
    page.evaluate("const one = document.querySelector('.transport audio'); one.pause(); one.currentTime = 0.6")
    page.wait_for_function("document.querySelector('.transport .word.now')?.textContent === 'cat'")
    page.click("button.play[aria-label^='play a-s1']")
    assert page.locator(".transport .word").count() == 0 and "The cat sat down." in page.inner_text(".transport span")


def test_a_point_of_a_figure_plays_its_utterance(visit):
    page = visit()
    page.locator("circle[data-row='3']").dispatch_event("click")
    page.wait_for_function("document.querySelector('.transport audio').currentTime > 0.05")
    assert playing(page) == ["a-s1"] and page.locator("circle.playing").count() == 1


def test_the_keyboard_moves_plays_and_opens(visit):
    page = visit()
    page.locator("tr.one").first.focus()
    for key, focused in (("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("End", 4), ("ArrowDown", 4), ("Home", 0)):
        page.keyboard.press(key)
        assert page.evaluate("[...document.querySelectorAll('tr.one')].indexOf(document.activeElement)") == focused
    assert page.locator("tr.one[tabindex='0']").count() == 1  # one stop of the tab key, not one for each
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    page.wait_for_function("!document.querySelector('.transport audio').paused")
    assert playing(page) == [shown(page)[1]]
    page.keyboard.press("Enter")
    assert page.locator("tr.detail").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("tr.detail").count() == 0
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


@pytest.mark.parametrize(
    ("link", "versions"),
    [("a-s1", ["generated, seed 0", "generated, seed 1"]), ("clip%2C%20recordings", [RECORDED, RECONSTRUCTED])],
)
def test_a_link_opens_its_utterance_beside_the_others_of_the_text(visit, link, versions):
    """Those that a filter hides too: recordings are not among the generated."""
    page = visit(f"evaluate.html#{link}")
    assert page.locator(".detail .versions b").all_inner_texts() == versions
    page.wait_for_function("[...document.querySelectorAll('.detail canvas')].every((one) => one.width !== 300)")
    assert page.locator(".detail a").get_attribute("href") == f"#{link}"


def test_text_of_people_stays_text(visit):
    page = visit("evaluate.html#a-s0")
    assert page.locator(".detail pre").text_content() == f"higgs speak '{EVIL}' --seed 0"
    assert page.locator("tr.one", has_text="c-s0").locator("p").first.text_content() == f"Hello {EVIL}"
    assert page.locator("caption", has_text="<img").count() == 1 and page.locator("img").count() == 0
    assert page.evaluate("window.hit") is None
    index = visit("index.html")
    assert index.locator("li a").all_inner_texts() == ["Evaluate", "Other <b>"]
    assert index.locator("li").all_inner_texts()[1].endswith("First line.")


def test_pages_link_to_each_other(visit, site):
    page = visit()
    assert page.locator("header a").evaluate_all("(all) => all.map((one) => one.getAttribute('href'))") == [
        "index.html", *(f"{stage}.html" for stage in STAGES)
    ]  # fmt: skip
    places = page.locator("nav.contents a").evaluate_all("(all) => all.map((one) => one.getAttribute('href'))")
    assert len(places) == 6 and all(page.locator(f"[id='{place[1:]}']").count() == 1 for place in places)
    page.click("header a")
    page.click("li a")
    assert page.title() == "Evaluate"


@pytest.mark.parametrize("size", [(1280, 900), (390, 844)])
def test_the_answer_is_on_the_first_screen(visit, size):
    page = visit(size=size)
    box = page.locator(".answer").bounding_box()
    assert box["y"] + box["height"] <= size[1]
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    code = page.locator("details.code").first.bounding_box()
    assert code["y"] > box["y"] + box["height"] and not page.locator("details.code[open]").count()
    narrow = "[...document.querySelectorAll('svg.plot')].map((one) => one.getBoundingClientRect().width)"
    assert min(page.evaluate(narrow)) > 180
    assert page.evaluate("parseFloat(getComputedStyle(document.querySelector('svg.plot text')).fontSize)") >= 11


CONTRAST = """() => {
  const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const rgba = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = rgba(getComputedStyle(one).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
  };
  for (const one of document.querySelectorAll("details")) one.open = true;
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.getClientRects().length) continue;
    if (element.closest("a.anchor-link, script")) continue;
    const style = getComputedStyle(element);
    const ink = element.closest("svg") ? style.fill : style.color;
    const [a, b] = [luminance(rgba(ink)), luminance(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([ratio.toFixed(2), walker.currentNode.textContent.trim().slice(0, 40)]);
  }
  return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_are_legible(visit, scheme):
    page = visit("evaluate.html#a-s1", scheme=scheme)
    page.click("button.play[aria-label^='play a-s0']")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (min(light) > 200) is (scheme == "light") and (max(light) < 60) is (scheme == "dark")
    assert page.evaluate(CONTRAST) == []


FAULTS = """() => {
  const bad = [];
  const named = (one) => one.getAttribute("aria-label") || one.textContent.trim() || one.closest("label")?.textContent;
  for (const one of document.querySelectorAll("input, select, button, a, summary")) {
    if (!named(one)) bad.push(one.outerHTML);
  }
  let level = 0;
  for (const one of document.querySelectorAll("h1, h2, h3, h4")) {
    const own = Number(one.tagName[1]);
    if (own > level + 1) bad.push(`${one.tagName} after H${level}`);
    if (own > 1 && !one.id) bad.push(`no id: ${one.textContent}`);
    level = own;
  }
  for (const one of document.querySelectorAll("th")) if (!one.scope) bad.push(one.outerHTML);
  for (const one of document.querySelectorAll("img, canvas, svg:not([aria-hidden])")) {
    if (!(one.alt || one.getAttribute("aria-label"))) bad.push(one.outerHTML.slice(0, 80));
  }
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  bad.push(...ids.filter((id, place) => ids.indexOf(id) !== place));
  if (!document.documentElement.lang || document.querySelectorAll("main").length !== 1) bad.push("lang, main");
  return bad;
}"""


@pytest.mark.parametrize("name", ["evaluate.html#a-s1", "index.html", "other.html"])
def test_no_serious_fault_of_accessibility(visit, name):
    assert visit(name).evaluate(FAULTS) == []


SCREENS = [((1280, 900), "light"), ((390, 844), "dark")]


@pytest.mark.parametrize(("size", "scheme"), SCREENS)
@pytest.mark.parametrize("name", ["evaluate.html#a-s1", "index.html", "other.html"])
def test_axe_finds_no_serious_fault(visit, name, size, scheme):
    page = visit(name, size, scheme)
    if "#" in name:
        page.click("button.play[aria-label^='play a-s0']")
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert serious_faults(page) == []


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The notebooks of this folder's last run as pages, by today's code."""
    folder = tmp_path_factory.mktemp("real") / "reports"
    notebooks = [ROOT / "reports" / f"{stage}.ipynb" for stage in STAGES]
    if not all(notebook.is_file() for notebook in notebooks):
        pytest.skip("the stages have not run here: make repro")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for stage, notebook in zip(STAGES, notebooks, strict=True):
            write_page(folder / f"{stage}.html", to_html(nbformat.read(notebook, 4), stage, STAGES))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_real_pages_open_at_once_answer_and_have_no_serious_fault(visit, reports, stage):
    """Within two seconds, on a screen and on a phone, and of at most 8 MB."""
    assert (reports / f"{stage}.html").stat().st_size <= 8_000_000
    for size, scheme in SCREENS:
        started = time.monotonic()
        page = visit(f"{stage}.html", size, scheme, reports)
        page.wait_for_load_state("load")
        assert time.monotonic() - started < 2
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert serious_faults(page) == []
        if stage == "evaluate":
            box = page.locator(".answer").bounding_box()
            assert box["y"] + box["height"] <= size[1]
            rows = page.locator(".utterances tr.one")
            assert rows.count() == rows.locator("button.play").count() > 100, "every utterance can be heard"


def test_a_page_that_is_printed_has_no_controls(visit):
    page = visit()
    page.emulate_media(media="print", color_scheme="dark")
    hidden = SimpleNamespace(**{name: page.locator(f".{name}").first for name in ("filters", "contents", "play")})
    assert not any(one.is_visible() for one in vars(hidden).values())
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
