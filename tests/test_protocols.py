"""From files to records to tables: scoring, bad input, resuming, dialogues, long speech, public sets, comparisons."""

import json
import math
import pickle
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from spoken import RATE, clip, clips, sine

from higgs.audio import save_audio
from higgs.data.scripts import read_scripts
from higgs.evaluate import test_sets as sets
from higgs.evaluate.judges.base import Recogniser
from higgs.evaluate.judges.ge2e import similarity
from higgs.evaluate.judges.registry import MetricModels
from higgs.evaluate.judges.wheels import ONNX_ERRORS
from higgs.evaluate.long_form import (
    ChunkedSample,
    Turn,
    align,
    click_ratio,
    judge_dialogue,
    judge_long,
    summarise_dialogues,
)
from higgs.evaluate.metrics import seedtts
from higgs.evaluate.result_cache import ResultCache
from higgs.evaluate.statistics.paired_runs import compare
from higgs.evaluate.statistics.summary import length_class, share_of_seeds, summarise
from higgs.evaluate.utterances import Evaluator, Utterance, speaking_rates, transcript_fault
from higgs.jobs.parts import Store
from higgs.workflow.tables import find_table, read_rows, write_rows

# ---- SeedTTS-Eval's scoring: text, hypothesis, language, WER by process_one of their run_wer.py with zhon 2.1.1
# and jiwer 4.0.0

SEEDTTS_CASES = [
    ("The price rose to fifty dollars.", "The price rose to 50 dollars.", "en", 1 / 6),
    ("He paid $50 in 1999.", "He paid fifty dollars in nineteen ninety nine", "en", 1),
    ("It's 3.5 kilometres.", "It's 35 kilometres", "en", 0),
    ("I can't believe it's over.", "I cannot believe it is over", "en", 3 / 5),
    ("I can't believe it's over.", "I can\u2019t believe it\u2019s over", "en", 2 / 5),
    ("The dogs' owner wasn't there.", "The dogs owner wasn't there", "en", 1 / 5),
    ("A well-known mother-in-law.", "A well known mother in law", "en", 5 / 3),
    ("Turn left \u2014 then right.", "Turn left, then right.", "en", 0),
    ("The colour of grey.", "The color of gray", "en", 1 / 2),
    ("Dr. Smith and Mrs. Jones", "Doctor Smith and missus Jones", "en", 2 / 5),
    ("Hello, world!", " ... ", "en", 1),
    ("Stop.", "Stop. Stop. Stop. Stop.", "en", 3),
    ("今天天气很好。", "今天天汽很好吗", "zh", 2 / 6),
    ("我有50块钱，你呢？", "我有五十块钱你呢", "zh", 2 / 8),
    ("他说：“可以！”", "他说 可以", "zh", 0),
    ("使用GPT模型", "使用 gpt 模型", "zh", 3 / 7),
    ("北京——中国的首都", "北京中国首都", "zh", 1 / 7),
]


def test_seedtts_scoring():
    for text, hypothesis, language, expected in SEEDTTS_CASES:
        assert seedtts.utterance_wer(text, hypothesis, language) == pytest.approx(expected, abs=1e-12), text
    for text, language, message in (("Guten Tag", "de", "en and zh, not 'de'"), ("...", "en", "nothing is left")):
        with pytest.raises(ValueError, match=message):
            seedtts.utterance_wer(text, "a", language)


# ---- synthetic judges: the length of a clip tells its words, its pitch its voice


class Ear:
    name, short, languages = "Ear 1.0 (made up)", "Ear", frozenset({"en"})

    def __init__(self, texts):
        self.texts, self.calls = texts, 0

    def transcribe(self, waveform, sample_rate, language="en"):
        self.calls += 1
        text = self.texts.get(len(waveform), "")
        if text == "broken":
            raise ONNX_ERRORS[0]("the model broke")
        return text


class Pitch:
    name, short = "Pitch 1.0 (made up)", "Pitch"

    def embed(self, waveform, sample_rate):
        spectrum = torch.fft.rfft(waveform).abs()
        if spectrum.max() < 1e-3:
            raise ValueError("no voice")
        hertz = spectrum.argmax().item() * sample_rate / len(waveform)
        angle = hertz / 2000 * math.pi / 2
        return torch.tensor([math.cos(angle), math.sin(angle)])


class Taste:
    name, short = "Taste 1.0 (made up)", "Taste"

    def rate(self, waveform, sample_rate):
        return {"overall": 3.0, "signal": 4.0, "background": 2.0, "p808": 3.4999993}


@pytest.fixture
def folder(tmp_path):
    """Tones of 200 Hz (one voice) and 1800 Hz (another), with hypotheses by their lengths."""
    for name, hertz, samples in (("good", 200, 24_000), ("wrong", 1800, 24_100), ("breaks", 200, 24_200)):
        save_audio(tmp_path / f"{name}.wav", sine(hertz, 0.3, samples), RATE)
    save_audio(tmp_path / "long.wav", sine(200, 0.3, 5 * RATE), RATE)
    save_audio(tmp_path / "slow.wav", sine(200, 0.3, 8_000, 8_000), 8_000)
    save_audio(tmp_path / "silent.wav", torch.zeros(RATE), RATE)
    save_audio(tmp_path / "short.wav", sine(200, 0.3, 50), RATE)
    (tmp_path / "text.wav").write_text("this is no sound")
    (tmp_path / "empty.wav").touch()
    return tmp_path


TEXTS = {24_000: "Hello there, you!", 24_100: "Hello bear", 24_200: "broken"}
TEXTS |= {2 * RATE: "hello there", 8_000: "hello there you", 50: "you"}


@pytest.fixture
def evaluator():
    return Evaluator(MetricModels(Ear(TEXTS), Pitch(), Taste()), max_seconds=2.0, speaking_rates={"en": 0.1})


def utterance(folder, name, text="Hello there you", condition="generated", **more):
    return Utterance(condition, name, more.pop("script", name), text, folder / f"{name}.wav", **more)


def test_a_record_has_the_hypothesis_and_the_similarity(folder, evaluator):
    more = {"reference": folder / "long.wav", "others": (folder / "wrong.wav",), "seed": 3, "cap_hit": False}
    row = evaluator.judge(utterance(folder, "good", **more))
    expected = {
        "status": "ok", "note": "", "heard": "Hello there, you!", "seed": 3, "words": 3, "word_errors": 0,
        "wer_percent": 0, "seedtts_wer_percent": 0, "mos_overall": 3.0, "mos_p808": 3.5, "silence_share": 0,
        "seconds": 1, "above_50": False, "cap_hit": False, "group": "generated",
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert row["similarity"] == pytest.approx(1)
    assert row["similarity_to_others"] == pytest.approx(math.cos(0.8 * math.pi / 2), abs=1e-3)
    assert row["length_ratio"] == pytest.approx(1 / (15 * 0.1))
    row = evaluator.judge(utterance(folder, "wrong"))
    assert (row["word_errors"], row["above_50"], row["similarity"]) == (2, True, None)


def test_a_language_that_the_recogniser_does_not_know_is_not_scored(folder):
    class English(Recogniser):
        name, short, languages = "English 1.0 (made up)", "English", frozenset({"en"})

        def _transcribe(self, samples, language):
            return "hello there you"

    evaluator = Evaluator(MetricModels(English()))
    spanish, english = (evaluator.judge(utterance(folder, "good", language=name)) for name in ("es", "en"))
    assert (spanish["status"], spanish["note"]) == ("not judged", "English: English knows en, not 'es'")
    assert spanish["heard"] is spanish["word_errors"] is spanish["wer_percent"] is None
    assert (english["status"], english["word_errors"]) == ("ok", 0)
    assert summarise([spanish, english], 100, 0)[0]["wer_percent"] == 0
    assert summarise([spanish], 100, 0)[0]["not_scored"] == 1


BAD = {
    "gone": ("missing", "there is no file"),
    "silent": ("silent", "below -70 dBFS"),
    "text": ("unreadable", "not an audio file"),
    "empty": ("unreadable", "empty.wav"),
    "long": ("too long", "5.0 s long, judged on the first 2 s"),
    "slow": ("ok", "8000 Hz instead of 24000 Hz"),
    "short": ("ok", ""),
    "breaks": ("not judged", "Ear: the model broke"),
}


def test_bad_input_has_records_and_raises_nothing(folder, evaluator):
    items = [utterance(folder, name) for name in ("good", *BAD)]
    items.append(Utterance("generated", "none", "none", "Hello there you", None))
    items += [utterance(folder, "good", text, condition="unscored") for text in ("你好", "?!")]
    rows = list(map(evaluator.judge, items))
    by_name = {row["name"]: row for row in rows[1:9]}
    for name, (status, note) in BAD.items():
        assert by_name[name]["status"] == status and note in by_name[name]["note"], by_name[name]
    assert (rows[9]["status"], rows[9]["note"]) == ("missing", "nothing was generated")
    assert [row["status"] for row in rows[10:]] == ["another script", "no words"]
    assert "0 of 2 letters" in rows[10]["note"]
    assert all(list(row) == list(rows[0]) for row in rows)
    write_rows(folder / "utterances.parquet", rows)
    for name in ("gone", "silent", "text", "empty"):
        assert (by_name[name]["word_errors"], by_name[name]["seedtts_wer_percent"]) == (3, 100)

    (summary,) = summarise([row for row in rows if row["group"] == "generated"], 100, 0)
    counted = ("n", "missing", "silent", "unreadable", "too_long", "not_scored", "heard")
    assert [summary[name] for name in counted] == [10, 2, 1, 2, 1, 1, 4]
    # good 0, long 1, slow 0, short 2 deleted, and 3 for each of five without sound: of 9 times 3 words
    assert summary["wer_percent"] == pytest.approx(100 * 18 / 27)
    assert summary["seedtts_wer_percent"] == pytest.approx((100 / 3 + 200 / 3 + 500) / 9)
    assert summary["seedtts_wer_below_50_percent"] == pytest.approx(100 / 3 / 3)


def test_what_cannot_be_judged_is_none(folder, evaluator):
    references = {"reference": folder / "silent.wav", "others": (folder / "gone.wav", folder / "wrong.wav")}
    row = evaluator.judge(utterance(folder, "good", **references))
    assert row["status"] == "ok" and row["similarity"] is None and row["similarity_to_others"] > 0
    assert "silent.wav: no voice" in row["note"] and "gone.wav" in row["note"]
    rows = [Evaluator(MetricModels()).judge(utterance(folder, name)) for name in ("good", "gone", "silent")]
    assert {row["heard"] for row in rows} == {row["wer_percent"] for row in rows} == {None}
    (summary,) = summarise(rows, 100, 0)
    assert (summary["n"], summary["missing"], summary["wer_percent"]) == (3, 1, None)


@pytest.mark.parametrize(
    ("text", "language", "status"),
    [
        ("42", "en", None), ("我用GPT写字", "zh", None), ("ⴰⵣⵓⵍ", "zgh", None),  # a language of unknown script
        ("Привет", "en", "another script"), ("Hello", "ru", "another script"),
        ("...", "en", "no words"), ("[noise]", "en", "no words"),
    ],
)  # fmt: skip
def test_transcripts_that_cannot_be_scored(text, language, status):
    fault = transcript_fault(text, language)
    assert fault is status is None or fault[0] == status


# ---- summaries


def rows_of(errors, words=10, group="generated", seeds=1, **more):
    empty = ("heard", "similarity", "similarity_to_others", "length_ratio", "silence_share", "retries")
    empty += tuple(f"mos_{name}" for name in ("overall", "signal", "background", "p808"))
    return [
        dict.fromkeys(empty)
        | {
            "group": group, "name": f"{script}-s{seed}", "script": str(script), "text": f"text {script}", "seed": seed,
            "status": "ok", "words": words, "word_errors": wrong, "characters": 5 * words, "seconds": 2.0,
            "character_errors": wrong, "seedtts_wer_percent": 100 * wrong / words, "above_50": 2 * wrong > words,
            "cap_hit": False,
        }
        | more
        for script, wrong in enumerate(errors)
        for seed in range(seeds)
    ]  # fmt: skip


def test_summary_has_both_scorings_with_intervals():
    rows = rows_of([0] * 20, words=10) + rows_of([8, 8, 8, 8], words=16, group="long")
    for row in rows[20:]:
        row["script"] = f"long-{row['script']}"
    usual, long = summarise(rows, 500, 0)
    together, *_ = summarise(rows, 500, 0, key=lambda row: "all")
    assert [row["group"] for row in (usual, long, together)] == ["generated", "long", "all"]
    assert together["wer_percent"] == pytest.approx(100 * 32 / 264)
    assert together["seedtts_wer_percent"] == pytest.approx(50 * 4 / 24)
    assert together["wer_percent_low"] < together["wer_percent"] < together["wer_percent_high"]
    # nothing above 50 %, but of 20 texts only: Wilson's interval keeps its width
    assert (usual["above_50_percent"], usual["above_50_percent_low"]) == (0, 0)
    assert usual["above_50_percent_high"] == pytest.approx(16.11, abs=0.01)
    samples = summarise(rows_of([0] * 20, seeds=3), 500, 0)[0]
    assert samples["above_50_percent_high"] == pytest.approx(6.02, abs=0.01)  # 0 of 60 samples
    assert (samples["n"], samples["scripts"], samples["seeds"]) == (60, 20, "0, 1, 2")
    alone = summarise(rows_of([1]), 500, 0)[0]
    assert (alone["wer_percent"], alone["wer_percent_low"], alone["wer_percent_high"]) == (10, None, None)


def test_a_text_counts_once_however_many_samples_it_has():
    errors = np.random.default_rng(0).binomial(10, 0.2, size=60).tolist()
    once, thrice = rows_of(errors), rows_of(errors, seeds=3)
    extra = [row for row in thrice if row["seed"] and int(row["script"]) < 10]
    (single,), (equal,), (mixed,) = (summarise(r, 500, 0) for r in (once, thrice, once + extra))
    for name in ("wer_percent", "seedtts_wer_percent", "above_50_percent"):
        assert mixed[name] == pytest.approx(single[name]) == pytest.approx(equal[name])
    # samples that agree say no more than one
    assert mixed["wer_percent_low"] == pytest.approx(single["wer_percent_low"], rel=1e-6)
    assert share_of_seeds(once) == (None, 0) and share_of_seeds(once + extra) == (0, 10)
    worse = [row | {"word_errors": 10} for row in extra]
    (summary,) = summarise(once + worse, 500, 0)
    of_ten = sum((error + 20) / 3 for error in errors[:10])
    assert summary["wer_percent"] == pytest.approx((of_ten + sum(errors[10:])) / 6)
    assert share_of_seeds(once + worse)[0] > 0.5


def test_run_aways_are_allowed_for_where_speech_was_generated():
    errors = np.random.default_rng(0).binomial(10, 0.1, size=60).tolist()
    human, ours, thrice = (
        summarise(rows_of(errors, group=group, seeds=seeds), 2000, 0)[0]
        for group, seeds in (("recordings", 1), ("generated", 1), ("generated", 3))
    )
    assert human["wer_percent_high"] < human["wer_percent"] + 5
    # half of 500 % in 60 at the 98th percentile; a third of that for three samples of each text
    assert ours["wer_percent_high"] == pytest.approx(ours["wer_percent"] + 500 * 2.8 / 60, rel=0.15)
    assert thrice["wer_percent_high"] - ours["wer_percent"] < 15
    assert human["similarity"] is None and ours["length_ratio"] is None
    # A part shares the allowance with the rest, until the run has run-aways.
    rows = rows_of(errors)
    parts = summarise(rows, 2000, 0, key=lambda row: str(int(row["script"]) < 12))
    apart = summarise(rows[:12], 2000, 0)[0]
    assert parts[0]["wer_percent"] == apart["wer_percent"]
    assert parts[0]["wer_percent_high"] < apart["wer_percent"] + 40 < apart["wer_percent_high"]
    for row in rows[50:53]:
        row["word_errors"] = 40
    ran = summarise(rows, 2000, 0, key=lambda row: str(int(row["script"]) < 12))[0]
    assert ran["wer_percent_high"] == apart["wer_percent_high"]


def test_texts_by_length_and_speaking_rates():
    classes = ["up to 5 words"] * 2 + ["6 to 12 words"] * 2 + ["13 words and more"]
    assert [length_class({"words": n}) for n in (None, 5, 6, 12, 13)] == classes
    clips = [("ab cd", "en", 1.0), ("abcde", "en", 2.0), ("你好", "zh", 1.0)]
    assert speaking_rates(clips) == {"en": 0.3, "zh": 0.5}
    # One that no rate counts takes the others not along, and a language with nothing else has no rate.
    faulty = [("(laughter)", "en", 1.0), ("...", "es", 1.0), ("hola", "es", 0.0), ("привет", "en", 9.0)]
    assert speaking_rates(clips + faulty) == {"en": 0.3, "zh": 0.5}


# ---- files


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_tables_come_back_as_they_were(tmp_path, suffix):
    rows = [
        {"name": "a\u2028b\n", "n": 1, "x": 1 / 3, "y": np.float64(0.5), "ok": True, "none": None, "path": tmp_path},
        {"name": "", "n": None, "x": None, "y": 2.0, "ok": False, "none": None, "path": "b"},
    ]
    path = tmp_path / f"table{suffix}"
    write_rows(path, rows)
    first = path.read_bytes()
    write_rows(path, [{**row, "x": row["x"] and row["x"] * (1 + 1e-15)} for row in rows])
    assert path.read_bytes() == first
    found = read_rows(path)
    assert found[0] == {**rows[0], "x": 0.333333333, "y": 0.5, "path": str(tmp_path)}
    assert found[1] == rows[1] and type(found[0]["n"]) is int
    assert find_table(tmp_path, "table") == path
    path.write_bytes(first[: len(first) // 2])
    with pytest.raises(ValueError, match=rf"table{suffix} is no {suffix[1:]} table"):
        read_rows(path)


def test_tables_refuse(tmp_path):
    for name, rows, message in (
        ("x.parquet", [], "at least one row"), ("x.parquet", [{"a": 1}, {"b": 1}], "row 1 and row 0 .* a, b"),
        ("x.parquet", [{"a": math.nan}], "row 0, a is nan"), ("x.txt", [{"a": 1}], r"tables are \.parquet, \.jsonl"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            write_rows(tmp_path / name, rows)
    with pytest.raises(FileNotFoundError, match="x.jsonl does not exist"):
        read_rows(tmp_path / "x.jsonl")
    with pytest.raises(FileNotFoundError, match="no utterances table"):
        find_table(tmp_path, "utterances")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_killed_continues(folder, evaluator, monkeypatch):
    items = [utterance(folder, name) for name in ("good", "wrong", "gone", "good", "slow")]
    whole = [evaluator.judge(item) for item in items]
    ear, place = evaluator.metric_models.recogniser, folder / "cache"
    monkeypatch.setattr("higgs.evaluate.result_cache.TASKS", 1)

    def judge(judges=evaluator):
        cache = ResultCache(lambda: judges, Store(str(place)), 1)
        return [row for rows in cache.judge_all(items) for row in rows]

    transcribe = ear.transcribe
    ear.calls = 0
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ear, "transcribe", lambda *a: transcribe(*a) if ear.calls < 2 else interrupt())
        judge()
    assert len(list(place.glob("[!.]*.json"))) == 3, "good, wrong, and gone, which nobody has to hear"
    ear.calls = 0
    for _ in range(2):
        assert judge() == whole and ear.calls == 1  # slow; the second good is the first
    judge(Evaluator(evaluator.metric_models, max_seconds=1.0))  # other settings
    assert ear.calls == 4
    save_audio(folder / "good.wav", sine(300, 0.3, 24_000), RATE)  # other audio under the same name
    judge()
    assert ear.calls == 5
    monkeypatch.setattr("higgs.evaluate.result_cache.code_hash", lambda *_: "other code")
    judge()
    assert ear.calls == 8


def load_counted(place: Path) -> Evaluator:
    """Notes that it was loaded; what it returns cannot be sent to another process."""
    with place.open("a") as file:
        file.write("loaded\n")
    ear = Ear(TEXTS)
    ear.lock = threading.Lock()
    return Evaluator(MetricModels(ear), max_seconds=2.0)


def test_judges_are_loaded_once_in_each_process(folder, monkeypatch):
    monkeypatch.setattr("higgs.evaluate.result_cache.TASKS", 1)
    notes = folder / "notes"
    with closing(ResultCache(partial(load_counted, notes), Store(str(folder / "cache")), 1)) as cache:
        tasks = [utterance(folder, name) for name in ("good", "wrong")]
        assert [row["heard"] for (row,) in cache.judge_all(tasks)] == ["Hello there, you!", "Hello bear"]
        assert notes.read_text() == "loaded\n"
        other = pickle.loads(pickle.dumps(cache.job._load))()  # as a worker gets it
        assert notes.read_text() == 2 * "loaded\n"
        other(cache._part(tasks))
        assert notes.read_text() == 2 * "loaded\n"


def interrupt():
    raise KeyboardInterrupt


# ---- dialogues


def dialogue_of(pitches):
    """A second of a tone for each turn."""
    names, places = ("ann", "bob"), range(len(pitches))
    turns = [Turn(names[i % 2], f"turn {i} of us", i * RATE, (i + 1) * RATE) for i in places]
    return torch.cat([sine(hertz, 0.3) if hertz else torch.zeros(RATE) for hertz in pitches]), turns


def sample(turns, text=""):
    return ChunkedSample("name", "", None, text, tuple(turns), (), "en")


def test_dialogue_of_two_voices():
    waveform, turns = dialogue_of([200, 1800] * 3)
    metric_models = MetricModels(Ear({RATE: "turn 0 of us"}), Pitch())
    rows = judge_dialogue(metric_models, sample(turns), waveform, RATE, {})
    ann, bob, every = summarise_dialogues(rows)
    assert (ann["speaker"], bob["speaker"], every["speaker"]) == ("ann", "bob", "all")
    assert (every["turns"], every["attributed_right_percent"]) == (6, 100)
    assert ann["wer_percent"] == pytest.approx(100 * 2 / 12)
    apart = 1 - math.cos(0.8 * math.pi / 2)
    assert every["similarity_within"] == pytest.approx(1)
    assert every["dissimilarity"] == pytest.approx(apart, abs=1e-3)
    assert every["voices"] == pytest.approx(apart**0.5, abs=1e-3)
    assert every["attributed_right_low"] < 70  # six turns are few
    rows = judge_dialogue(MetricModels(None, Pitch()), sample(turns[::2]), waveform, RATE, {})
    assert {row["attributed"] for row in rows} == {None}
    every = summarise_dialogues(rows)[-1]
    assert every["wer_percent"] is None and every["voices"] is None and every["similarity_within"] == pytest.approx(1)


def test_dialogue_with_voices_exchanged_and_a_turn_without_sound():
    waveform, turns = dialogue_of([1800, 1800, 200, 0])
    metric_models = MetricModels(Ear({RATE: "turn 0 of us"}), Pitch())
    voices = {name: metric_models.speaker.embed(sine(hertz), RATE) for name, hertz in (("ann", 200), ("bob", 1800))}
    turns.append(Turn("bob", "after the end", 9 * RATE, 10 * RATE))
    rows = judge_dialogue(metric_models, sample(turns), waveform, RATE, voices)
    assert [row["attributed"] for row in rows] == ["bob", "bob", "ann", None, None]
    assert [row["attributed_right"] for row in rows] == [False, True, True, None, None]
    assert rows[0]["similarity"] == pytest.approx(similarity(*voices.values()), abs=1e-3)
    assert rows[1]["dissimilarity_to_previous"] == pytest.approx(0, abs=1e-6)
    assert "no voice" in rows[3]["note"] and "no sound" in rows[4]["note"]
    assert rows[4]["word_errors"] == 3
    assert summarise_dialogues(rows)[-1]["attributed_right_percent"] == pytest.approx(200 / 3)


# ---- long speech


def test_errors_belong_to_the_segment_of_their_hypothesis():
    words = "a b c d e f".split()
    assert align(words, [["a", "x"], ["d", "y", "e"], ["f"]]) == [(2, 1), (3, 2), (1, 0)]
    assert align(words, [["a", "b"], []]) == [(2, 0), (4, 4)]
    assert align(words, [[], []]) == [(0, 0), (6, 6)]


def test_long_speech_is_judged_by_segments():
    voices = [200] * 24 + [700] * 12  # seconds; after two thirds the voice changes
    waveform = torch.cat([torch.cat([sine(hertz, 0.3, 21_600), torch.zeros(2_400)]) for hertz in voices])
    metric_models = MetricModels(Ear({}), Pitch())
    chunks = [Turn("", "", start, start + 1) for start in (0, 36_000, 732_000)]
    rows = judge_long(metric_models, sample(chunks, "these are words"), waveform, RATE, {})
    assert rows[0]["start"] == 0 and rows[-1]["end"] == 36
    assert all(a["end"] == b["start"] for a, b in zip(rows, rows[1:], strict=False))
    assert all(row["end"] - row["start"] <= 10 for row in rows)
    assert sum(row["words"] for row in rows) == sum(row["word_errors"] for row in rows) == 3
    assert [row["seams"] for row in rows].count(1) == 2 and sum(row["clicks"] for row in rows) == 0
    assert rows[0]["similarity"] == pytest.approx(1) and rows[-1]["similarity"] < 0.95
    assert 0.05 < rows[0]["silence_share"] < 0.15
    with pytest.raises(ValueError, match="no words"):
        judge_long(metric_models, sample([], "..."), waveform, RATE, {})
    assert sample([], "...").judge(Evaluator(metric_models)) == []  # the table of utterances says why


def test_a_cut_clicks_and_speech_does_not():
    speech = clip("en-confbridge-pin").waveform
    places = range(2000, len(speech) - 4000, 1500)
    whole = [click_ratio(speech, place, RATE) for place in places]
    assert max(whole) < 1.5
    cut = [click_ratio(torch.cat([speech[:p], speech[p + 777 :]]), p, RATE) for p in places]
    assert sum(ratio > 1.5 for ratio in cut) > len(cut) / 3
    tone = sine(200, 0.3)
    assert click_ratio(torch.cat([tone[:12_030], -tone[12_030:]]), 12_030, RATE) > 10
    assert click_ratio(tone, 1, RATE) < 1.5 and click_ratio(tone[:2], 1, RATE) == 0


# ---- public sets


@pytest.fixture
def seed_tts(tmp_path):
    """A folder that looks like the English one of SeedTTS-Eval, with recordings of ours."""
    folder = tmp_path / "seedtts_testset" / "en"
    prompt, first, second = clips("en")[:3]
    save_audio(folder / "prompt-wavs" / f"{prompt.id}.wav", prompt.waveform, RATE)
    save_audio(folder / "wavs" / "first.wav", first.waveform, RATE)
    save_audio(folder / "wavs" / "other-name.wav", second.waveform, RATE)
    lines = [
        f"first|{prompt.text}|prompt-wavs/{prompt.id}.wav|{first.text}",
        f"second|{prompt.text}|prompt-wavs/{prompt.id}.wav|{second.text}|wavs/other-name.wav",
        f"third|{prompt.text}|prompt-wavs/{prompt.id}.wav|A text that nobody has recorded.",
    ]
    (folder / "meta.lst").write_text("\n".join(lines) + "\n")
    return folder


def test_seed_tts_eval_becomes_a_manifest(seed_tts, capsys):
    assert sets.main(["seed-tts-eval", str(seed_tts)]) == 0
    assert "3 texts, 2 with a recording" in capsys.readouterr().out
    first, second, third = read_scripts(seed_tts / "meta.jsonl", seed_tts)
    prompt = clips("en")[0]
    assert (first.id, first.language, first.voice) == ("first", "en", prompt.id) and first.text == clips("en")[1].text
    assert second.recording == seed_tts.resolve() / "wavs" / "other-name.wav" and third.recording is None
    assert third.request.samples[0].messages[-1].role == "user"
    assert prompt.text in [part.text for part in third.request.samples[0].messages[0].parts]
    assert sets.convert_seed_tts_eval(seed_tts) == read_rows(seed_tts / "meta.jsonl")
    assert first.record(2)["name"] == "first-s2"


@pytest.mark.parametrize("name", ["first.wav", "other-name.wav", "prompt"])
def test_files_of_a_set_are_those_that_its_manifest_was_made_from(seed_tts, name):
    assert sets.main(["seed-tts-eval", str(seed_tts)]) == 0
    (path,) = (seed_tts / "prompt-wavs").iterdir() if name == "prompt" else [seed_tts / "wavs" / name]
    save_audio(path, sine(300, 0.3, 24_000), RATE)
    line = 2 if name == "other-name.wav" else 1
    with pytest.raises(ValueError, match=f"meta.jsonl, line {line}: .*{path.name} is not the file"):
        read_scripts(seed_tts / "meta.jsonl", seed_tts)
    path.unlink()
    with pytest.raises(ValueError, match=f"line {line}: .*{path.name} does not exist"):
        read_scripts(seed_tts / "meta.jsonl", seed_tts)


def test_a_broken_list_and_missing_files_are_refused(seed_tts, capsys):
    source = seed_tts / "meta.lst"
    good = source.read_text()
    (seed_tts / "wavs" / "other-name.wav").unlink()
    source.write_text(f"{good}4|Words.|prompt-wavs/none.wav|More words.\n5|Words.|../../../gone.wav|Words.\n")
    assert sets.main(["seed-tts-eval", str(seed_tts)]) == 1
    message = capsys.readouterr().err
    assert all(name in message for name in ("other-name.wav", "none.wav", "gone.wav lies outside"))
    assert not (seed_tts / "meta.jsonl").exists()
    for text, message in (
        (f"{good}first|a|prompt-wavs/x.wav|b\n", "the id first occurs 2 times"),
        (f"{good}a|b|c\n", "line 4: expected"),
        (f"{good}a|b||d\n", "line 4: expected"),
        (f"{good}../a|b|c|d\n", "the id '../a' cannot name a file"),
        (f"{good}{'x' * 300}|b|c|d\n", "the id 'x+' cannot name a file"),
        ("\n", "it holds no lines"),
    ):
        source.write_text(text)
        with pytest.raises(ValueError, match=message):
            sets.convert_seed_tts_eval(seed_tts)
    with pytest.raises(FileNotFoundError, match="hardcase.lst"):
        sets.convert_seed_tts_eval(seed_tts, "hardcase.lst")
    with pytest.raises(ValueError, match="not one of en, zh; give --language"):
        sets.convert_seed_tts_eval(seed_tts.parent)


# ---- comparing


@pytest.fixture
def compared(tmp_path):
    """Tables of two runs, and the judges of B -> their folders and the comparison by metric, with its notes."""
    judges = {"recogniser": "Ear 1.0", "speaker": None, "naturalness": None}

    def run(a, b, judges_b=judges, **more):
        folders = [tmp_path / f"{side}{len(list(tmp_path.iterdir()))}" for side in "ab"]
        for folder, rows, names in zip(folders, (a, b), (judges, judges_b), strict=True):
            folder.mkdir()
            write_rows(folder / "utterances.parquet", rows)
            (folder / "provenance.json").write_text(json.dumps({"judges": names}))
        comparison = compare(*folders, **{"resamples": 500} | more)
        return folders, {row["metric"]: row for row in comparison.rows}, comparison.notes

    return run


def test_copies_of_one_run_do_not_differ(compared):
    rows = rows_of(np.random.default_rng(0).binomial(10, 0.2, size=40).tolist(), seeds=3, similarity=0.7)
    _, metrics, notes = compared(rows, rows)
    shared = {"wer_percent", "cer_percent", "seedtts_wer_percent", "above_50_percent"}
    assert set(metrics) >= shared | {"similarity", "cap_hit_percent"}
    for row in metrics.values():
        assert (row["difference"], row["low"], row["high"], row["p"], row["p_holm"]) == (0, 0, 0, 1, 1)
        assert (row["verdict"], row["n"]) == ("equal", 40)
    assert notes == ["The two tables are equal, row by row."]


def test_a_worse_run_is_found_and_holm_corrects_for_the_others(compared):
    generator = np.random.default_rng(0)
    hard = generator.beta(1, 4, size=60)
    a = rows_of(generator.binomial(10, hard * 0.5).tolist(), seeds=2, length_ratio=1.0)
    b = rows_of(generator.binomial(10, hard * 0.9).tolist(), seeds=2, length_ratio=1.2)
    b += rows_of([10] * 5, group="recordings")  # another group is not compared
    (folder_a, folder_b), metrics, _ = compared(a, b, resamples=2000)
    wer = metrics["wer_percent"]
    assert wer["difference"] == pytest.approx(wer["b"] - wer["a"]) and wer["low"] > 0
    assert wer["p"] <= wer["p_holm"] < 0.05 and wer["verdict"] == "A is better"
    assert metrics["length_ratio"]["verdict"] == "B is higher"
    assert metrics["cap_hit_percent"]["verdict"] == "equal"
    back = next(row for row in compare(folder_b, folder_a, resamples=2000).rows if row["metric"] == "wer_percent")
    assert (back["difference"], back["verdict"]) == (pytest.approx(-wer["difference"]), "B is better")


def test_samples_are_paired_seed_by_seed(compared):
    generator = np.random.default_rng(0)
    a, b = (rows_of(generator.binomial(10, 0.3, size=30).tolist(), seeds=3) for _ in "ab")
    for row in (*a, *b):
        row["word_errors"] = int(generator.integers(0, 10))
    first = [row for row in b if row["seed"] == 0 or int(row["script"]) < 5]  # three of five texts
    alike = [row for row in a if row["seed"] == 0 or int(row["script"]) < 5]

    def wer(one, two):
        return compared(one, two)[1]["wer_percent"]

    assert wer(a, first) == wer(alike, first)
    later = [row | {"seed": row["seed"] + 100} for row in first]  # no seed in common: in order
    assert wer(a, later) == wer(alike, first)
    second = [row for row in first if row["seed"] != 0]
    last = [row for row in a if row["seed"] and int(row["script"]) < 5]
    assert wer(a, second) == wer(last, second)


def test_speakers_are_fewer_than_texts(compared):
    a, b = rows_of([1, 2, 3, 4] * 5, speaker="ann"), rows_of([3, 4, 5, 6] * 5, speaker="ann")
    for row in (*a[10:], *b[10:]):
        row["speaker"] = "bob" if int(row["script"]) % 2 else "cleo"
    text, speaker = (compared(a, b, cluster=column)[1]["wer_percent"] for column in ("script", "speaker"))
    assert (text["n"], speaker["n"]) == (20, 3) and text["difference"] == speaker["difference"]
    assert text["p"] < 0.01 and speaker["p"] == 2 / 2**3
    assert text["verdict"] == "A is better" and speaker["verdict"] == "not told apart"


def test_what_cannot_be_compared_is_noted(compared, tmp_path):
    a = rows_of([1, 2, 3, 4], similarity=0.5)
    b = rows_of([1, 2, 3, 4, 5, 6], similarity=0.6)
    b[3]["text"] = "something else"
    folders, metrics, notes = compared(a, b, {"recogniser": "Ear 2.0", "speaker": None, "naturalness": None})
    assert set(metrics) == {"similarity", "cap_hit_percent"}
    assert all(row["n"] == 3 for row in metrics.values())
    text = "\n".join(notes)
    for part in (
        "2 scripts are in B only and left out: 4, 5.",
        "1 scripts have different",
        "Ear 1.0 in A, Ear 2.0 in B",
    ):
        assert text.count(part) == 1
    with pytest.raises(ValueError, match="share 0 scripts of the group 'recordings'"):
        compare(*folders, group="recordings")
    with pytest.raises(FileNotFoundError, match="no utterances table"):
        compare(tmp_path, folders[0])


def test_failed_samples_count(compared):
    a, b = rows_of([0] * 12), rows_of([0] * 12)
    for row in b[:8]:
        row |= {"status": "missing", "word_errors": 10, "seedtts_wer_percent": 100.0, "above_50": True}
    b[11] |= {"status": "another script", "word_errors": None, "words": None}
    wer = compared(a, b, resamples=2000)[1]["wer_percent"]
    assert (wer["n"], wer["b"], wer["verdict"]) == (11, pytest.approx(100 * 8 / 11), "A is better")
