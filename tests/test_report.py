"""The evaluate report's parts: what is gathered, what it shows, and two runs compared on a page."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from IPython.core.formatters import DisplayFormatter
from spoken import RATE, sine

from higgs.audio import load_audio, save_audio
from higgs.comparison.runs import find_run
from higgs.evaluate.judges.registry import MetricModels
from higgs.evaluate.long_form import DIALOGUE, LONG_FORM, summarise_dialogues
from higgs.evaluate.report import html as report
from higgs.evaluate.report.answer import answer, by_voice
from higgs.evaluate.report.gather import (
    GENERATED,
    OF_THE_SET,
    RECONSTRUCTED,
    RECORDED,
    chunked_samples,
    gather,
    read_results,
)
from higgs.evaluate.report.listing import links, listing, transcript_diff
from higgs.evaluate.statistics.intervals import Difference
from higgs.evaluate.statistics.parts import FromBest
from higgs.evaluate.statistics.summary import LENGTHS, summarise
from higgs.evaluate.utterances import Evaluator
from higgs.workflow import page, speed
from higgs.workflow import sounds as sounds_of_a_page
from higgs.workflow.outputs import SOUNDS, in_script, write_json
from higgs.workflow.sounds import encode
from higgs.workflow.tables import write_rows


class Ear:
    """Two words for everything below 500 Hz, else one."""

    name, short, languages = "Ear 1.0 (made up)", "Ear", frozenset({"en"})

    def transcribe(self, waveform, sample_rate, language="en"):
        return "hello there" if tone(waveform, sample_rate) < 500 else "hello"


class Pitch:
    name, short = "Pitch 1.0 (made up)", "Pitch"

    def embed(self, waveform, sample_rate):
        angle = torch.tensor(tone(waveform, sample_rate) / 1000)
        return torch.stack([angle.cos(), angle.sin()])


def tone(waveform, sample_rate) -> float:
    return torch.fft.rfft(waveform).abs().argmax().item() * sample_rate / len(waveform)


PANEL = MetricModels(Ear(), Pitch())
SAMPLES = {
    "a-s0": ("smart_voice", "ada", 200, "stop"), "a-s1": ("smart_voice", "ada", 1000, "length"),
    "b-s0": ("smart_voice", "ben", 300, "stop"), "b-s1": ("smart_voice", "ben", None, "error"),
    "talk-s0": ("dialogue", "ada ben", 200, "stop"), "long-s0": ("long_form", "ada", 200, "stop"),
}  # fmt: skip


def flac(path, hertz, seconds=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_audio(path, sine(hertz, 0.3, round(seconds * RATE)), RATE)
    return path


@pytest.fixture
def results(tmp_path):
    """Folders as the stages tokenize and generate leave them, small."""
    references = {name: flac(tmp_path / f"{name}.flac", hertz) for name, hertz in (("ada", 200), ("ben", 300))}
    manifest = []
    for name, speaker, hertz in (("r1", "one", 210), ("r2", "one", 220), ("r3", "two", 400)):
        path = flac(tmp_path / "recordings" / f"{name}.flac", hertz)
        flac(tmp_path / "results/tokenize/audio" / f"{name}.flac", hertz + 400)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        row = {"id": name, "path": f"recordings/{path.name}", "text": "Hello there.", "language": "en"}
        manifest.append(row | {"speaker": speaker, "seconds": 1.0, "sha256": digest})
    listing = tmp_path / "recordings" / "manifest.jsonl"
    listing.write_text("".join(json.dumps(row) + "\n" for row in manifest))
    generate, rows = tmp_path / "results/generate", []
    for name, (form, voice, hertz, stop) in SAMPLES.items():
        count = 2 if form == "dialogue" else 1
        if hertz:
            flac(generate / "audio" / f"{name}.flac", hertz, count**2)
        row = {"name": name, "script": name[:-3], "form": form, "voice": voice, "seed": int(name[-1]), "stop": stop}
        row |= {"text": " ".join(["Hello there."] * count), "language": "en", "recording": "", "retries": 0}
        rows.append(row | {"reference": str(references.get(voice, ""))})
    write_rows(generate / "utterances.parquet", rows)
    chunks = [
        {"name": "talk-s0", "speaker": "0", "start": 0, "end": 2 * RATE, "text": "[SPEAKER0] Hello there."},
        {"name": "talk-s0", "speaker": "1", "start": 2 * RATE, "end": 4 * RATE, "text": "[SPEAKER1] Hello there."},
        {"name": "long-s0", "speaker": "", "start": 0, "end": RATE, "text": "Hello there."},
    ]
    write_rows(generate / "chunks.parquet", chunks)
    origin = {"checkpoint": "nano", "model": "m", "codec": "c", "set": "default", "data": "d"}
    summary = {"provenance": origin, "sampling": {"temperature": 0.4, "seed": 0}, "seeds": [0, 1], "empty": 1}
    write_json(generate / "summary.json", summary | {"mean_seconds": 1.0})
    distances = {"language": "en", "clips": 3, "mel_db": 1.0, "stft": 2.0, "si_sdr_db": 3.0}
    tokenize = tmp_path / "results/tokenize"
    write_json(tokenize / "summary.json", {"recordings": str(listing), "languages": [distances]})
    measured, names = [(1, 4.0, None), (1, 2.0, 0.5), (8, 1.0, 1.0)], ("codebooks", "mel_db", "stoi")
    table = [dict(zip(names, row, strict=True), stft=1.0, si_sdr_db=2.0) for row in measured]
    write_rows(tokenize / "reconstruction.parquet", table)
    write_rows(tokenize / "usage.parquet", [{"codebook": 0, "perplexity": 3.0}])
    return read_results(tmp_path / "results")


@pytest.fixture
def rows(results):
    return list(map(Evaluator(PANEL, speaking_rates={"en": 0.1}).judge, gather(results, ["en"])))


def test_human_recordings_are_judged_beside_what_was_generated(results, rows):
    assert Counter(row["group"] for row in rows) == {RECORDED: 3, RECONSTRUCTED: 3, GENERATED: 6}
    by_name = {(row["group"], row["name"]): row for row in rows}
    human = by_name[RECORDED, "r1"]
    assert human["similarity"] > 0.99 and human["similarity_to_others"] < human["similarity"]
    assert by_name[RECORDED, "r3"]["similarity"] is None  # the only recording of its speaker
    assert by_name[RECONSTRUCTED, "r1"]["similarity"] < 0.95
    sample = by_name[GENERATED, "a-s0"]
    expected = {"voice": "ada", "form": "smart_voice", "seed": 0, "cap_hit": False}
    assert {name: sample[name] for name in expected} == expected
    assert sample["similarity"] == pytest.approx(1, abs=1e-3) and sample["similarity_to_others"] < 1
    assert by_name[GENERATED, "a-s1"]["cap_hit"] is True
    assert by_name[GENERATED, "b-s1"]["status"] == "missing"
    assert by_name[GENERATED, "talk-s0"]["similarity"] is None  # two speakers have no reference
    for texts, count in ((1, 1), (None, 4)):  # one sample of each text
        items = [item for item in gather(results, ["en"], texts) if item.condition == GENERATED]
        assert sum(item.predict_mos for item in items) == count


def test_a_second_system_is_judged_beside(results, tmp_path):
    other, condition = tmp_path / "theirs", "second system: theirs"
    for name, hertz in (("a-s0", 200), ("a-s1", 200), ("b", 900)):
        flac(other / f"{name}.flac", hertz)
    items = [i for i in gather(results, ["en"], second_system=other) if i.condition == condition]
    assert [i.name for i in items] == ["a-s0", "a-s1", "b", "talk-s0", "long-s0"]
    statuses = [Evaluator(PANEL).judge(item)["status"] for item in items]
    assert statuses == ["ok", "ok", "ok", "missing", "missing"]
    (other / "a-s1.flac").unlink()
    (other / "b.flac").rename(other / "b-s1.flac")
    items = [i for i in gather(results, ["en"], second_system=other) if i.condition == condition]
    assert [i.name for i in items if i.path is None] == ["a-s1", "b-s0", "talk-s0", "long-s0"]
    for path in list(other.iterdir()):
        path.rename(path.with_suffix(".MP3"))
    again = [i for i in gather(results, ["en"], second_system=other) if i.condition == condition]
    assert [(i.name, i.path is None) for i in again] == [(i.name, i.path is None) for i in items]
    (tmp_path / "unfit").mkdir()
    for content in ("nothing", "take-1.flac", "a.txt"):
        if content != "nothing":
            (tmp_path / "unfit" / content).write_bytes(b"")
        with pytest.raises(FileNotFoundError, match=rf"unfit holds .*{content}.*; it should hold SCRIPT\.flac"):
            gather(results, ["en"], second_system=tmp_path / "unfit")
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder; it should hold SCRIPT\.flac"):
        gather(results, ["en"], second_system=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="run `dvc repro tokenize` first"):
        read_results(tmp_path)


def test_turns_and_segments(results):
    (talk,) = chunked_samples(results, DIALOGUE)
    first, second = talk.judge(Evaluator(PANEL))
    assert (first["speaker"], second["speaker"]) == ("ada", "ben")
    assert first["text"] == "Hello there." and first["wer_percent"] == 0
    assert first["attributed_right"] is True and second["attributed_right"] is False  # ada speaks both
    lines = report.by_speaker(summarise_dialogues([first, second]))
    assert lines[0]["right voice %"] == "100 [21, 100]" and lines[-1]["turns"] == 2
    (long,) = chunked_samples(results, LONG_FORM)
    (segment,) = long.judge(Evaluator(PANEL))
    assert (segment["name"], segment["wer_percent"], segment["seams"]) == ("long-s0", 0, 0)
    named = [row | {"voice": "aunt ada"} if row["form"] == "long_form" else row for row in results.samples]
    (long,) = chunked_samples(replace(results, samples=named), LONG_FORM)
    assert long.turns[0].speaker == "aunt ada" and [name for name, _ in long.voices] == ["aunt ada"]


def test_what_is_shown(results, rows, tmp_path):
    summary = summarise(rows, 200, 0)
    judges = PANEL.names(short=True)
    lines = {line["metric"]: line for line in report.by_metric(summary, judges)}
    wer = next(line for title, line in lines.items() if title.startswith("WER %, all errors"))
    assert wer["metric"].endswith("(Ear)")
    assert any(title.endswith("(Pitch)") for title in lines) and any("SeedTTS-Eval" in title for title in lines)
    assert set(wer) == {"metric", RECORDED, RECONSTRUCTED, GENERATED} and wer[RECORDED] == "0.0"
    assert not any("predicted" in title for title in lines)  # there is no such judge
    counts = {line["count"]: line[GENERATED] for line in report.by_count(summary)}
    assert (counts["utterances"], counts["missing"], counts["stopped by the frame cap"]) == (6, 1, 1)
    table, caption = report.by_group(summary, judges)
    assert "Ear, Pitch" in caption and table[0]["WER %"] == "0.0"
    order = report.ranked(rows)
    assert order[0]["name"] == "b-s1" and order[0]["wer_percent"] == 100
    assert [row["wer_percent"] for row in report.best(order, 2)] == [0, 0]
    assert [fault["name"] for fault in report.faults(rows)] == ["b-s1"]
    origin = report.provenance(results, PANEL)
    assert origin["sampling"] == {"temperature": 0.4} and origin["judges"]["recogniser"] == Ear.name
    closing = report.metrics(results, summary, origin)
    assert closing["recordings_wer_percent"] == 0 and closing["codec_mel_db"] == 1
    assert closing["generated_n"] == 6 and closing["provenance"]["data"] == "d"
    unknown = {"language": "es", "clips": 1, "mel_db": 4.0, "stft": None, "si_sdr_db": None}
    results.tokenized["languages"].append(unknown)
    closing = report.metrics(results, summary, origin)
    assert (closing["codec_mel_db"], closing["codec_stft"]) == ((3 * 1 + 4) / 4, 2)
    distances, usage = report.codec_tables(results)
    assert [(d["clips"], d["mel_db"], d["stoi"]) for d in distances] == [(2, 3.0, 0.5), (1, 1.0, 1.0)]
    assert usage == [{"codebook": 0, "perplexity": 3.0}]
    assert report.by_length(report.parts_of(rows, 10, 0)["length"])[0]["group"] == "up to 5 words"
    shown = report.provenance_table({"sampling": {"top_k": None}, "seeds": [0, 1]}).data
    assert "sampling: top_k" in shown and "0, 1" in shown and "{" not in shown and "[" not in shown
    assert "4 of 4 generated" in report.similarity_note(rows).data
    assert report.similarity_note([row | {"form": "voice_clone"} for row in rows]).data == ""
    opening = report.opening(origin, ["dnsmos: install <it>"])._repr_html_()
    assert "the small default" in opening and "install &lt;it&gt;" in opening


@pytest.mark.parametrize(
    ("hypothesis", "shown"),
    [
        ("the dog sat down", "the <del>cat</del> <ins>dog</ins> sat <ins>down</ins>"),
        ("the sat", "the <del>cat</del> sat"),
        ("", "<del>the cat sat</del>"),
    ],
)
def test_transcript_diff(hypothesis, shown):
    assert transcript_diff("The cat sat.", hypothesis).data == shown


def test_the_worst_are_named_once_for_each_text(rows):
    shown = links({"The worst": (report.ranked(rows), 3)}, rows).data
    assert re.findall(r'href="#([^"]+)"', shown) == ["b-s1", "talk-s0", "a-s1"]
    assert links({"The worst": ([], 3), "The best": (rows, 0)}, rows).data == ""


def test_parts_of_what_was_generated(rows):
    parts = report.parts_of(rows, 100, 0)
    assert [row["group"] for row in parts["voice"]] == ["ada", "ada ben", "ben"]
    assert [row["n"] for row in parts["form"]] == [1, 1, 4] and len(parts["length"]) == 1
    lengths = [{"group": name} for name in sorted(LENGTHS)]
    assert [row["group"] for row in report.by_length(lengths)] == list(LENGTHS)


def test_every_utterance_is_listed_with_its_sound(rows, tmp_path, monkeypatch):
    words = [{"name": "a-s0", "word": "hello", "start": 0.04, "end": 0.5}]
    made = listing(rows, {"a-s0": "higgs speak"}, words)
    records = json.loads(re.search(r'<script type="application/json" id="utterances">(.*?)</script>', made.data)[1])
    assert len({record["id"] for record in records}) == len(records) == len(rows)
    assert [bool(path) for path in made.paths] == [bool(row["seconds"]) for row in rows]
    (sample,) = (record for record in records if record["id"] == "a-s0")
    assert sample["times"] == [["hello", 0.04, 0.5]] and not any(r["times"] for r in records if r is not sample)
    assert (sample["command"], sample["wer"], sample["words"]) == ("higgs speak", 0, [["hello there"]])
    data, _ = DisplayFormatter().format(made)
    assert data[SOUNDS] == made.paths and data["text/html"] == made.data
    monkeypatch.chdir(tmp_path)
    sounds = page.embedded(made.paths)
    assert list(sounds) == [str(place) for place, path in enumerate(made.paths) if path]
    content = base64.b64decode(sounds["0"].partition(",")[2])
    (tmp_path / "back.ogg").write_bytes(content)
    waveform, rate = load_audio(tmp_path / "back.ogg")
    assert rate == RATE and len(waveform) == RATE and abs(tone(waveform, rate) - 210) < 5
    assert page.embedded(["/etc/passwd", "nothing.flac", None, "back.ogg"]).keys() == {"3"}  # no file from elsewhere


@pytest.mark.parametrize(
    ("files", "size", "seconds"), [(4, 60_000, 4.0), (4, 16_000, 4.0), (4, 9_000, 1.0), (4, 500, 0.0)]
)
def test_the_sounds_of_a_page_fit(tmp_path, monkeypatch, files, size, seconds):
    """At the bit rate that the room allows; what does not fit at the least one is left out, the last ones first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sounds_of_a_page, "BYTES", size)
    noise = 0.3 * torch.rand(files, RATE, generator=torch.Generator().manual_seed(0))
    for number in range(files):
        save_audio(tmp_path / f"{number}.flac", noise[number], RATE)
    sounds = page.embedded([f"{number}.flac" for number in range(files)])
    assert sum(len(one) for one in sounds.values()) < 4 / 3 * 1.15 * size + 200
    assert list(sounds) == [str(number) for number in range(len(sounds))] and (len(sounds) == 4) == (seconds == 4.0)


def test_equal_sounds_are_in_a_page_once(tmp_path):
    """And what is missing or no audio has none, without harm to the others."""
    for name, level in (("a", 0.1), ("b", 0.2), ("again", 0.1)):
        save_audio(tmp_path / f"{name}.wav", sine(200, level, RATE), RATE)
    (tmp_path / "broken.wav").write_text("no audio")
    found = encode(
        [tmp_path / "a.wav", None, tmp_path / "broken.wav", *(tmp_path / f"{n}.wav" for n in ("b", "again"))]
    )
    assert found.of == [0, None, None, 1, 0] and len(found.encoded) == 2 and found.seconds == [1.0, 1.0]


TEXTS = ["</script>", "<!--<script>", "\u2028 & \u2029", "]]>", '"quoted" \\ back']


@pytest.mark.parametrize("text", TEXTS)
def test_json_in_a_page_is_neither_markup_nor_a_line_break(text):
    inside = in_script({text: [text]})
    assert json.loads(inside) == {text: [text]}
    assert not set("<>&\u2028\u2029") & set(inside)


def estimate(name, wer, similarity=(0.7, 0.6, 0.8), mos=None) -> dict:
    row = {"group": name, "scripts": 20}
    for metric, values in (("wer_percent", wer), ("similarity", similarity), ("mos_overall", mos)):
        row |= dict(zip((metric, f"{metric}_low", f"{metric}_high"), values or (None,) * 3, strict=True))
    return row | {"similarity_to_others": 0.5, "similarity_to_others_low": 0.4, "similarity_to_others_high": 0.6}


NEAR, FAR, UNCLEAR = (Difference(d, d - 0.1, d + 0.1, p, 9) for d, p in ((0.2, 0.01), (-0.2, 0.01), (0.01, 0.6)))
GOOD, BAD = (5.0, 4.0, 6.0), (20.0, 15.0, 30.0)


ALL = ("recogniser", "speaker", "naturalness")
OTHERS = "Recordings are of other texts"


@pytest.mark.parametrize(
    ("groups", "voices", "expected", "absent"),
    [
        ({RECORDED: GOOD, GENERATED: BAD}, {"a": NEAR}, ["less well than recordings: 20.0 % (15.0", OTHERS], []),
        ({RECORDED: BAD, GENERATED: GOOD}, {"ada": NEAR}, ["better than recordings", "5.0 %"], ["less well"]),
        ({RECORDED: BAD, GENERATED: BAD}, {"ada": NEAR}, ["not told apart from recordings"], ["less well", "better"]),
        ({RECORDED: GOOD, RECONSTRUCTED: BAD, GENERATED: BAD}, {}, ["less well than recordings, not told apart"], []),
        ({GENERATED: GOOD}, {}, ["no recordings to compare with", "no other voice", "5.0 %"], [OTHERS]),
        ({OF_THE_SET: GOOD, GENERATED: BAD}, {"a": NEAR}, ["less well than people who say the same"], [OTHERS]),
        ({RECORDED: GOOD, GENERATED: GOOD}, {"a": NEAR, "b": FAR, "c": UNCLEAR},
         ["for a nearer to that voice", "for b nearer to other voices", "for c not told apart"], []),
        ({GENERATED: GOOD}, {f"v{i}": NEAR for i in range(40)} | {"b": FAR}, ["40 of 41 voices", "b nearer"], ["v3"]),
        ({RECORDED: None, GENERATED: None}, {"a": NEAR}, ["Not judged: recogniser gave no number"], ["None"]),
        ({RECORDED: GOOD}, {}, ["Nothing was generated"], []),
    ],
)  # fmt: skip
def test_the_answer_follows_from_the_numbers(groups, voices, expected, absent):
    summary = [estimate(name, wer, mos=(3.0, 2.9, 3.1)) for name, wer in groups.items()]
    text = answer(summary, voices, dict(zip(ALL, ALL, strict=True))).data
    assert all(words.lower() in text.lower() for words in expected), text
    assert not any(words in text for words in absent), text


def test_the_answer_without_judges_of_voices_and_of_quality():
    row = estimate(GENERATED, GOOD, similarity=None)
    text = answer([row], {}, {"recogniser": "Ear", "speaker": None, "naturalness": None}).data
    assert text.count("Not judged") == 2 and "5.0 %" in text
    text = answer([row], {}, {"recogniser": "Ear", "speaker": "Pitch", "naturalness": "Taste"}).data
    assert "no utterance has a recording of the voice" in text and "Taste gave no number" in text


ONE = (0.0, None, None)


@pytest.mark.parametrize(
    ("ours", "anchors", "expected"),
    [
        (ONE, {RECORDED: GOOD}, "One text is too few to compare with others: 0.0 % (one text)"),
        (ONE, {}, "There are no recordings to compare with: 0.0 % (one text)"),
        (GOOD, {RECORDED: ONE}, "One text is too few to compare with others: 5.0 % (4.0 to 6.0)"),
        (GOOD, {RECORDED: ONE, RECONSTRUCTED: BAD}, "Better than recordings through the codec: 5.0 %"),
    ],
)
def test_one_text_is_neither_better_nor_worse(ours, anchors, expected):
    summary = [estimate(name, wer) for name, wer in (anchors | {GENERATED: ours}).items()]
    assert expected in answer(summary, {}, {"naturalness": "Taste"}).data


def test_a_metric_of_one_text_has_no_interval(rows):
    """Also where the others have more: one text of many has its quality predicted."""
    told = {"recogniser": "Ear", "speaker": "Pitch", "naturalness": "Taste"}
    scored = [row | {"mos_overall": None if row["script"] != "a" else 3.0} for row in rows]
    summary = summarise(scored, 200, 0)
    ours = next(row for row in summary if row["group"] == GENERATED)
    assert ours["wer_percent_low"] is not None and (ours["mos_overall"], ours["mos_overall_low"]) == (3.0, None)
    text = answer(summary, {}, told).data
    assert "predicted quality is 3.00 of 5 (one text)" in text and "3.00 to 3.00" not in text
    assert "3.00 (one text)" in str(report.by_group(summary, told))
    drawn = by_voice(
        [estimate("ada", ONE), estimate("ben", BAD)], [estimate(RECORDED, GOOD)], FromBest("ben", {}, False)
    )
    assert "0.0 (one text)" in drawn.data and drawn.data.index("ben") < drawn.data.index("ada")
    assert drawn.data.count('class="interval"') == 2 and drawn.data.count('class="estimate"') == 3


@pytest.mark.parametrize(
    ("parts", "best", "expected", "unexpected"),
    [
        ([], FromBest(None, {}, False), ["No words were judged"], ["<table"]),
        ([("ada", GOOD)], FromBest("ada", {}, False), ["the best", "nothing is compared"], ["p ="]),
        ([("b", BAD), ("a", GOOD)], FromBest("a", {"b": 0.2}, True), ["not told apart", "within texts"], ["worse"]),
        ([("b", BAD), ("a", GOOD)], FromBest("a", {"b": 0.01}, False), ["worse", "shuffled"], ["not told"]),
        ([("<i>", GOOD), ("zero", (0.0, 0.0, 0.0))], FromBest("zero", {}, False), ["&lt;i&gt;"], ["<i>"]),
        ([(f"v{i}", GOOD) for i in range(30)], FromBest("v0", {}, False), ["10 voices more"], []),
    ],
)
def test_voices_stand_in_the_order_of_their_errors(parts, best, expected, unexpected):
    text = by_voice([estimate(name, wer) for name, wer in parts], [estimate(RECORDED, GOOD)], best).data
    assert all(words in text for words in expected) and not any(words in text for words in unexpected), text
    places = [float(place) for place in re.findall(r"cx=.([-0-9.]+)%", text)]
    assert places[:-1] == sorted(places[:-1]) and all(0 <= place <= 100 for place in places)


@pytest.fixture
def two_runs(rows, tmp_path):
    """A run, and the same with errors in one text; each with its provenance."""
    worse = [dict(row) for row in rows]
    for row in worse:
        if row["script"] == "a":
            row |= {"word_errors": 2, "wer_percent": 100.0, "heard": "no"}
    for name, table in (("one", rows), ("two", worse)):
        folder = tmp_path / name
        folder.mkdir()
        write_rows(folder / "utterances.parquet", table)
        origin = {"judges": PANEL.names(), "sampling": {"temperature": 0.4 if name == "one" else 1.2}}
        write_json(folder / "provenance.json", origin)
    return tmp_path / "one", tmp_path / "two"


def compare(*words: str):
    command = [sys.executable, "-m", "higgs", "compare", *words, "--resamples", "200"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_compare_writes_a_page(two_runs, tmp_path):
    one, two = map(str, two_runs)
    out = tmp_path / "pages" / "compare.html"
    same, done = (compare(one, other, "--out", str(out)) for other in (one, two))
    assert same.returncode == done.returncode == 0, same.stderr + done.stderr
    assert "equal in every metric" in same.stdout and "1.000" in same.stdout
    text = out.read_text()
    assert "temperature" in text and "Texts that changed most" in text and "Hello there." in text
    assert 'class="bar"' in text and "http" not in text.replace("http-equiv", "")


def test_compare_names_what_it_cannot_find(two_runs, tmp_path):
    run, empty = str(two_runs[0]), tmp_path / "empty"
    empty.mkdir()
    for words, message in (
        ((run, "no-such-revision"), "no folder, no revision of Git, and no experiment"),
        ((run, run, "--cluster", "seed"), "cluster: expected one of script, speaker, voice"),
        ((run, str(empty)), "holds no utterances table"),
    ):
        done = compare(*words)
        assert done.returncode == 1 and message in done.stderr


def test_folders_of_runs(two_runs, tmp_path):
    inside = tmp_path / "run" / "results/evaluate"
    inside.mkdir(parents=True)
    (inside / "utterances.parquet").write_bytes((two_runs[0] / "utterances.parquet").read_bytes())
    for name, folder in ((two_runs[0], two_runs[0]), (tmp_path / "run", inside), (tmp_path / "run/results", inside)):
        assert find_run(str(name), tmp_path / "scratch").folder == folder


def test_speed_has_a_page_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # Where DVC's cache had every result no stage ran, and that is no fault.
    assert speed.main() == 0 and "no stage ran" in capsys.readouterr().err
    write_json("results/generate/timing.json", {"generation_seconds": 12.5, "real_time_factor": 3.0})
    assert speed.main() == 0
    text = (tmp_path / "reports/speed.html").read_text()
    assert "12.5" in text and "real-time factor" in text and "torch" in text
    assert "speed.html" in (tmp_path / "reports/index.html").read_text()
