"""The evaluate report's parts: what is gathered, what it shows, and two runs compared on a page."""

import hashlib
import json
import subprocess
import sys
from collections import Counter

import pytest
import torch
from conftest import ROOT
from spoken import RATE, sine

from higgs.audio import save_audio
from higgs.comparison.runs import find_run
from higgs.evaluate.judges.registry import MetricModels
from higgs.evaluate.long_form import DIALOGUE, LONG_FORM, summarise_dialogues
from higgs.evaluate.report import html as report
from higgs.evaluate.report.gather import GENERATED, RECONSTRUCTED, RECORDED, chunked_samples, gather, read_results
from higgs.evaluate.statistics.summary import summarise
from higgs.evaluate.utterances import Evaluator
from higgs.workflow import speed
from higgs.workflow.outputs import write_json
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
    distances, usage = report.codec_tables(results)
    assert [(d["clips"], d["mel_db"], d["stoi"]) for d in distances] == [(2, 3.0, 0.5), (1, 1.0, 1.0)]
    assert usage == [{"codebook": 0, "perplexity": 3.0}]
    assert "Word error rate" in report.headline(summary)._repr_html_()
    opening = report.opening(origin, ["dnsmos: install <it>"])._repr_html_()
    assert "the small default" in opening and "install &lt;it&gt;" in opening


@pytest.mark.parametrize(
    ("hypothesis", "shown"),
    [
        ("the dog sat down", "the <del>cat</del> <ins>dog</ins> sat <ins>down</ins>"),
        ("the sat", "the <del>cat</del> sat"),
        (None, "<del>the cat sat</del> <ins></ins>"),
    ],
)
def test_transcript_diff(hypothesis, shown):
    assert report.transcript_diff("The cat sat.", hypothesis)._repr_html_() == shown


def test_cards_and_parts_of_what_was_generated(rows):
    page = report.cards(report.ranked(rows))._repr_html_()
    assert page.count('class="card"') == 6 and page.count("<audio") == 5 and "no audio" in page
    assert page.count("<img alt=") == 5
    parts = report.parts_of(rows, 100, 0)
    assert [row["group"] for row in parts["voice"]] == ["ada", "ada ben", "ben"]
    assert [row["n"] for row in parts["form"]] == [1, 1, 4] and len(parts["length"]) == 1


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
    page = out.read_text()
    assert "temperature" in page and "Texts that changed most" in page and "Hello there." in page
    assert 'class="bar"' in page and "http" not in page.replace("http-equiv", "")


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
    assert speed.main() == 1 and "run `dvc repro` first" in capsys.readouterr().err
    write_json("results/generate/timing.json", {"generation_seconds": 12.5, "times_real_time": 3.0})
    assert speed.main() == 0
    page = (tmp_path / "reports/speed.html").read_text()
    assert "12.5" in page and "times real time" in page and "torch" in page
