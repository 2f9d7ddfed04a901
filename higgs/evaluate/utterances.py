"""From sound to one row for each utterance: what was heard, how it compares, and what was wrong.

Rows are the primary product; every rate, interval and comparison is computed from them. An utterance
that should be there has a row, whatever became of it: a file that is missing, silent or unreadable
counts as all words missing, as it does for a listener. What the set itself gets wrong, a transcript
without words, in another script, or a name that stands twice, is marked and counts in no rate.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from higgs.audio import level_dbfs, load_audio
from higgs.evaluate.judges.ge2e import similarity
from higgs.evaluate.judges.registry import Panel
from higgs.evaluate.judges.wheels import ONNX_ERRORS
from higgs.evaluate.metrics import seedtts
from higgs.evaluate.metrics.error_rates import character_errors, normalize, word_errors
from higgs.evaluate.metrics.signal import silence_share
from higgs.workflow.tables import Row

T = TypeVar("T")

OK, TOO_LONG = "ok", "too long"
MISSING, SILENT, UNREADABLE = "missing", "silent", "unreadable"
NO_WORDS, ANOTHER_SCRIPT, DUPLICATE = "no words", "another script", "duplicate"
NOT_JUDGED = "not judged"
TRANSCRIBED = (OK, TOO_LONG)
FAILED = (MISSING, SILENT, UNREADABLE)  # of the system: every word is missing
NOT_SCORED = (NO_WORDS, ANOTHER_SCRIPT, DUPLICATE, NOT_JUDGED)  # of the set, or of the judge
SILENCE_DBFS = -70.0
# onnxruntime chooses its arithmetic by the processor, and nothing pins it: of equal input DNSMOS makes scores that
# differ by 7e-7 between AVX-512 and AVX2. Two decimals are the same on both, but for a score that lies so near to the
# border of two roundings: one in 14,000, so about one default report in sixty has one. (With three: one in six.)
MOS_DECIMALS = 2
QUALITIES = ("overall", "signal", "background", "p808")
# What a judge may raise about a waveform; anything else is a fault of ours and stops the run.
JUDGE_ERRORS = (ValueError, RuntimeError, OSError, *ONNX_ERRORS)


def ask(judge: Any, question: Callable[[Any], T], notes: list[str]) -> T | None:
    """What the judge says, None without a judge; a judge that fails gives None and a note."""
    if judge is None:
        return None
    try:
        return question(judge)
    except JUDGE_ERRORS as error:
        notes.append(f"{judge.short}: {error}")
        return None


@dataclass(frozen=True)
class Utterance:
    """Something to judge: its sound (None when there is none) and what should be heard.

    Rows of one `script` are takes of one text, and statistics keep them together. `reference` is a
    recording of the voice that was wanted, `others` are recordings of other voices. `form`, `cap_hit`
    and `retries` are the generator's, empty where nobody generated. Without `predict` its naturalness
    is not predicted. A `duplicate` has the group and name of another one before it.
    """

    group: str
    name: str
    script: str
    text: str
    path: Path | None
    language: str = "en"
    speaker: str = ""
    voice: str = ""
    form: str = ""
    seed: int | None = None
    reference: Path | None = None
    others: tuple[Path, ...] = ()
    cap_hit: bool | None = None
    retries: int | None = None
    predict: bool = True
    duplicate: bool = False

    @property
    def files(self) -> tuple[Path | None, ...]:
        """What the row depends on besides the fields."""
        return (self.path, self.reference, *self.others)

    def judge(self, listener: "Listener") -> list[Row]:
        return [listener.judge(self)]


class Task(Protocol):
    """Something to judge whose rows depend on its fields, on the contents of `files`, and on the listener."""

    files: tuple[Path | None, ...]

    def judge(self, listener: "Listener") -> list[Row]: ...


def load_listener(make_panel: Callable[[], Panel], pace: Mapping[str, float]) -> "Listener":
    return Listener(make_panel(), pace=pace)


def judging(load_listener: Callable[[], "Listener"]) -> Callable[[Task], list[Row]]:
    """Loads the judges -> what a worker does with a task. For `higgs.workers.Workers`."""
    listener = load_listener()
    return lambda task: task.judge(listener)


@dataclass
class Listener:
    """Judges utterances one by one; remembers the voices of references.

    `pace` is seconds for each character of a text, by language, as `pace_of` measures it on people;
    a length ratio of 1 is that pace. Longer files than `max_seconds` are heard that far.
    """

    panel: Panel
    sample_rate: int = 24_000
    max_seconds: float = 120.0
    pace: Mapping[str, float] = field(default_factory=dict)
    _voices: dict[Path, Tensor | str] = field(default_factory=dict, init=False, repr=False)

    def judge_all(self, items: Iterable[Utterance]) -> Iterator[Row]:
        """One row for each utterance, in order. A second of the same group and name is a duplicate."""
        yield from map(self.judge, mark_duplicates(items))

    def judge(self, item: Utterance) -> Row:
        """One row, with equal keys for every utterance; `status` and `note` say what was wrong."""
        if item.duplicate:
            return self._not_scored(item, DUPLICATE, "the name stands twice")
        if fault := transcript_fault(item.text, item.language):
            return self._not_scored(item, *fault)
        status, note, waveform, rate = self._load(item.path)
        row = self._blank(item, status) | {"sample_rate": rate}
        notes = [note] if note else []
        if waveform is not None:
            row["seconds"] = len(waveform) / rate
            row["level_dbfs"] = max(SILENCE_DBFS, level_dbfs(waveform))
            row["silence_share"] = silence_share(waveform, rate) if len(waveform) >= rate // 50 else 1.0
            waveform = waveform[: round(self.max_seconds * rate)]
        if status in TRANSCRIBED:
            row |= self._listen(item, waveform, rate, notes)
        if status in FAILED and self.panel.recogniser:
            row["heard"] = ""
        row |= text_scores(item.text, row["heard"], item.language)
        if row["seconds"] is not None and item.language in self.pace:
            row["length_ratio"] = row["seconds"] / (row["characters"] * self.pace[item.language])
        if status in TRANSCRIBED and self.panel.recogniser and row["heard"] is None:
            row["status"] = NOT_JUDGED
        return row | {"note": "; ".join(notes)}

    def _load(self, path: Path | None) -> tuple[str, str, Tensor | None, int | None]:
        """-> status, note, waveform and its sample rate."""
        if path is None or not Path(path).is_file():
            return (MISSING, f"there is no file {path}" if path else "nothing was generated", None, None)
        try:
            waveform, rate = load_audio(path)
        except (ValueError, OSError) as error:
            return UNREADABLE, str(error), None, None
        if level_dbfs(waveform) < SILENCE_DBFS:
            return SILENT, f"below {SILENCE_DBFS:.0f} dBFS", waveform, rate
        notes = []
        seconds = len(waveform) / rate
        if rate != self.sample_rate:
            notes.append(f"{rate} Hz instead of {self.sample_rate} Hz, resampled for the judges")
        if long := seconds > self.max_seconds:
            notes.append(f"{seconds:.1f} s long, judged on the first {self.max_seconds:g} s")
        return TOO_LONG if long else OK, "; ".join(notes), waveform, rate

    def _listen(self, item: Utterance, waveform: Tensor, rate: int, notes: list[str]) -> Row:
        """What the judges say of one waveform; a judge that fails leaves None and a note."""
        panel, found = self.panel, {}
        if panel.recogniser:
            found["heard"] = ask(panel.recogniser, lambda j: j.transcribe(waveform, rate, item.language), notes)
        voice = ask(panel.speaker, lambda j: j.embed(waveform, rate), notes)
        if voice is not None:
            found |= self._compare_voices(item, voice, notes)
        if item.predict and (scores := ask(panel.naturalness, lambda j: j.rate(waveform, rate), notes)):
            found |= {f"mos_{name}": _rounded(scores.get(name)) for name in QUALITIES}
        return found

    def _compare_voices(self, item: Utterance, voice: Tensor, notes: list[str]) -> Row:
        found: Row = {}
        if item.reference is not None:
            wanted = self.reference_voice(item.reference)
            if isinstance(wanted, str):
                notes.append(wanted)
            else:
                found["similarity"] = similarity(voice, wanted)
        others = [self.reference_voice(path) for path in item.others]
        notes += [other for other in others if isinstance(other, str)]
        alike = [similarity(voice, other) for other in others if not isinstance(other, str)]
        if alike:
            found["similarity_to_others"] = sum(alike) / len(alike)
        return found

    def reference_voice(self, path: Path) -> Tensor | str:
        """The embedding of a reference recording, or why there is none."""
        if path not in self._voices:
            try:
                self._voices[path] = self.panel.speaker.embed(*load_audio(path))
            except JUDGE_ERRORS as error:
                self._voices[path] = f"reference {path}: {error}"
        return self._voices[path]

    def _blank(self, item: Utterance, status: str) -> Row:
        row: Row = {
            name: getattr(item, name)
            for name in ("group", "name", "script", "language", "speaker", "voice", "form", "seed", "text")
        }
        row |= {"heard": None, "status": status, "note": ""}
        row |= {"path": str(item.path) if item.path else "", "seconds": None, "sample_rate": None}
        row |= dict.fromkeys(SCORES)
        row |= {"similarity": None, "similarity_to_others": None}
        row |= {f"mos_{name}": None for name in QUALITIES}
        row |= {"length_ratio": None, "silence_share": None, "level_dbfs": None}
        return row | {"cap_hit": item.cap_hit, "retries": item.retries}

    def _not_scored(self, item: Utterance, status: str, note: str) -> Row:
        return self._blank(item, status) | {"note": note}


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, MOS_DECIMALS)


def mark_duplicates(items: Iterable[Utterance]) -> list[Utterance]:
    """The same, those marked whose group and name another one has already."""
    seen: set[tuple[str, str]] = set()
    marked = []
    for item in items:
        marked.append(replace(item, duplicate=(item.group, item.name) in seen))
        seen.add((item.group, item.name))
    return marked


SCORES = ("words", "word_errors", "characters", "character_errors", "wer_percent", "above_50", "seedtts_wer_percent")


def text_scores(text: str, heard: str | None, language: str) -> Row:
    """The columns SCORES: by Whisper's normaliser, and by SeedTTS-Eval's scoring where it has the language.

    With nothing heard (None), only the counts of the text.
    """
    words, characters = (count(text, heard or "", language) for count in (word_errors, character_errors))
    scores: Row = dict.fromkeys(SCORES) | {"words": words.words, "characters": characters.characters}
    if heard is None:
        return scores
    if language in seedtts.LANGUAGES:
        scores["seedtts_wer_percent"] = 100 * seedtts.utterance_wer(text, heard, language)
    return scores | {
        "word_errors": words.errors,
        "character_errors": characters.errors,
        "wer_percent": 100 * words.rate,
        "above_50": words.rate > 0.5,
    }


# The scripts that a language is written in, as Unicode names its letters; others are not checked.
LATIN = ("LATIN",)
SCRIPTS = {language: LATIN for language in "en es fr it de pt nl pl sv da no fi cs hu ro tr id vi".split()} | {
    "zh": ("CJK",),
    "yue": ("CJK",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL", "CJK"),
    "ru": ("CYRILLIC",),
    "uk": ("CYRILLIC",),
    "el": ("GREEK",),
    "ar": ("ARABIC",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "th": ("THAI",),
}


def transcript_fault(text: str, language: str) -> tuple[str, str] | None:
    """Why a transcript cannot be scored, as (status, note), or None if it can.

    It has no words after normalisation, or less than half of its letters are of the language's script.
    """
    bare = seedtts.normalize(text, language) if language in seedtts.LANGUAGES else text
    if not normalize(text, language) or not bare.strip():
        return NO_WORDS, f"the transcript {text!r} holds no words after normalisation"
    letters = [unicodedata.name(symbol, "") for symbol in text if symbol.isalpha()]
    if language in SCRIPTS and letters:
        own = sum(name.startswith(SCRIPTS[language]) for name in letters)
        if 2 * own < len(letters):
            return (ANOTHER_SCRIPT, f"{own} of {len(letters)} letters are of the script of {language!r}")
    return None


def pace_of(clips: Iterable[tuple[str, str, float]]) -> dict[str, float]:
    """(text, language, seconds) of human recordings -> seconds for each character, by language."""
    sums: dict[str, list[float]] = {}
    for text, language, seconds in clips:
        pair = sums.setdefault(language, [0.0, 0.0])
        pair[0] += seconds
        pair[1] += character_errors(text, "", language).characters
    return {language: seconds / characters for language, (seconds, characters) in sums.items()}
