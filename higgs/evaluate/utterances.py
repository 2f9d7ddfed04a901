"""From audio to one record for each utterance: the hypothesis, how it compares with the text, and what went wrong.

Each expected utterance has a record: a file that is missing, silent or unreadable counts as all words deleted. Faults
of the test set, a transcript without words or in another script, are marked and count in no rate.
"""

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from higgs.audio import SILENT_DBFS, level_dbfs, load_audio
from higgs.evaluate.judges.base import Recogniser
from higgs.evaluate.judges.ge2e import similarity
from higgs.evaluate.judges.registry import MetricModels
from higgs.evaluate.judges.wheels import ONNX_ERRORS
from higgs.evaluate.metrics import seedtts
from higgs.evaluate.metrics.error_rates import character_errors, normalize, word_errors
from higgs.evaluate.metrics.signal import silence_share
from higgs.workflow.tables import Row

T = TypeVar("T")

OK, TOO_LONG = "ok", "too long"
MISSING, SILENT, UNREADABLE = "missing", "silent", "unreadable"
NO_WORDS, ANOTHER_SCRIPT, NOT_JUDGED = "no words", "another script", "not judged"
TRANSCRIBED = (OK, TOO_LONG)
FAILED = (MISSING, SILENT, UNREADABLE)  # by the system: all words are deleted
NOT_SCORED = (NO_WORDS, ANOTHER_SCRIPT, NOT_JUDGED)  # by a fault of the set or of the judge
MAX_WORD_ERROR_RATE = 0.3  # above it a transcript is doubted
# onnxruntime chooses its arithmetic by the processor: DNSMOS scores differ by 7e-7 between AVX-512 and AVX2. Two
# decimals are the same on both for all but one score in 14,000, or in one default report of sixty. (Three: of six.)
MOS_DECIMALS = 2
QUALITIES = ("overall", "signal", "background", "p808")
# What a judge may raise about a waveform; anything else is a bug and stops the run.
JUDGE_ERRORS = (ValueError, RuntimeError, OSError, *ONNX_ERRORS)


def ask(judge: Any, question: Callable[[Any], T], notes: list[str]) -> T | None:
    """The judge's answer, None without a judge; a judge that fails gives None and a note."""
    if judge is None:
        return None
    try:
        return question(judge)
    except JUDGE_ERRORS as error:
        notes.append(f"{judge.short}: {error}")
        return None


def transcribe_and_embed(
    metric_models: MetricModels, waveform: Tensor, sample_rate: int, language: str, notes: list[str]
) -> tuple[str | None, Tensor | None]:
    """-> the hypothesis and the speaker embedding; None where there is no such judge or it fails."""
    hypothesis = ask(metric_models.recogniser, lambda judge: judge.transcribe(waveform, sample_rate, language), notes)
    return hypothesis, ask(metric_models.speaker, lambda judge: judge.embed(waveform, sample_rate), notes)


@dataclass(frozen=True)
class Utterance:
    """Audio to judge (None where there is none) and its text.

    `condition` is the column "group". Utterances of one `script` are samples of one text. `reference` is a recording
    of the target voice, `others` of other voices. `form`, `cap_hit` and `retries` come from the generator.
    """

    condition: str
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
    predict_mos: bool = True

    @property
    def files(self) -> tuple[Path | None, ...]:
        return (self.path, self.reference, *self.others)

    def judge(self, evaluator: "Evaluator") -> list[Row]:
        return [evaluator.judge(self)]


class Task(Protocol):
    """Audio to judge. Its records depend on its fields, on the contents of `files`, and on the evaluator."""

    files: tuple[Path | None, ...]

    def judge(self, evaluator: "Evaluator") -> list[Row]: ...


@dataclass
class Evaluator:
    """Judges tasks one by one, of each file at most `max_seconds`; caches embeddings of references. Not thread-safe.

    `speaking_rates` are seconds for each character of a text, by language; a duration ratio of 1 is that rate.
    """

    metric_models: MetricModels
    sample_rate: int = 24_000
    max_seconds: float = 120.0
    speaking_rates: Mapping[str, float] = field(default_factory=dict)
    _voices: dict[Path, Tensor | str] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, task: Task) -> list[Row]:
        return task.judge(self)

    def judge(self, item: Utterance) -> Row:
        """One record, with equal keys for every utterance; `status` and `note` say what went wrong."""
        if fault := transcript_fault(item.text, item.language):
            return _empty_record(item, *fault)
        status, note, waveform, rate = self._load(item.path)
        record, notes = _empty_record(item, status), [note] if note else []
        record["sample_rate"] = rate
        if waveform is not None:
            record["seconds"] = len(waveform) / rate
            record["level_dbfs"] = max(SILENT_DBFS, level_dbfs(waveform))
            record["silence_share"] = silence_share(waveform, rate) if len(waveform) >= rate // 50 else 1.0
            waveform = waveform[: round(self.max_seconds * rate)]
        if status in TRANSCRIBED:
            record |= self._ask_judges(item, waveform, rate, notes)
        if status in FAILED and self.metric_models.recogniser:
            record["heard"] = ""
        record |= text_scores(item.text, record["heard"], item.language)
        if record["seconds"] is not None and item.language in self.speaking_rates:
            record["length_ratio"] = record["seconds"] / (record["characters"] * self.speaking_rates[item.language])
        if status in TRANSCRIBED and self.metric_models.recogniser and record["heard"] is None:
            record["status"] = NOT_JUDGED
        return record | {"note": "; ".join(notes)}

    def _load(self, path: Path | None) -> tuple[str, str, Tensor | None, int | None]:
        """-> status, note, waveform, sample rate."""
        if path is None or not path.is_file():
            return MISSING, f"there is no file {path}" if path else "nothing was generated", None, None
        try:
            waveform, rate = load_audio(path)
        except (ValueError, OSError) as error:
            return UNREADABLE, str(error), None, None
        if level_dbfs(waveform) < SILENT_DBFS:
            return SILENT, f"below {SILENT_DBFS:.0f} dBFS", waveform, rate
        notes, seconds = [], len(waveform) / rate
        if rate != self.sample_rate:
            notes.append(f"{rate} Hz instead of {self.sample_rate} Hz, resampled for the judges")
        if too_long := seconds > self.max_seconds:
            notes.append(f"{seconds:.1f} s long, judged on the first {self.max_seconds:g} s")
        return TOO_LONG if too_long else OK, "; ".join(notes), waveform, rate

    def _ask_judges(self, item: Utterance, waveform: Tensor, rate: int, notes: list[str]) -> Row:
        hypothesis, voice = transcribe_and_embed(self.metric_models, waveform, rate, item.language, notes)
        record: Row = {"heard": hypothesis}
        if voice is not None:
            record |= self._compare_voices(item, voice, notes)
        predictor = self.metric_models.naturalness if item.predict_mos else None
        if scores := ask(predictor, lambda judge: judge.rate(waveform, rate), notes):
            record |= {f"mos_{name}": round(scores[name], MOS_DECIMALS) for name in QUALITIES}
        return record

    def _compare_voices(self, item: Utterance, voice: Tensor, notes: list[str]) -> Row:
        record: Row = {}
        if item.reference is not None and (target := self.reference_voice(item.reference, notes)) is not None:
            record["similarity"] = similarity(voice, target)
        others = [self.reference_voice(path, notes) for path in item.others]
        if similarities := [similarity(voice, other) for other in others if other is not None]:
            record["similarity_to_others"] = sum(similarities) / len(similarities)
        return record

    def reference_voice(self, path: Path, notes: list[str]) -> Tensor | None:
        """The embedding of a reference recording; None and a note where it cannot be computed."""
        if path not in self._voices:
            try:
                self._voices[path] = self.metric_models.speaker.embed(*load_audio(path))
            except JUDGE_ERRORS as error:
                self._voices[path] = f"reference {path}: {error}"
        if isinstance(voice := self._voices[path], str):
            notes.append(voice)
            return None
        return voice


def load_evaluator(load_metric_models: Callable[[], MetricModels], speaking_rates: Mapping[str, float]) -> Evaluator:
    """What each process of `higgs.workers.Workers` loads to judge tasks."""
    return Evaluator(load_metric_models(), speaking_rates=speaking_rates)


def _empty_record(item: Utterance, status: str, note: str = "") -> Row:
    """All columns, in their order."""
    record: Row = {"group": item.condition}
    fields = ("name", "script", "language", "speaker", "voice", "form", "seed", "text")
    record |= {name: getattr(item, name) for name in fields}
    record |= {"heard": None, "status": status, "note": note}
    record |= {"path": str(item.path) if item.path else "", "seconds": None, "sample_rate": None}
    record |= dict.fromkeys((*SCORES, "similarity", "similarity_to_others", *(f"mos_{name}" for name in QUALITIES)))
    record |= dict.fromkeys(("length_ratio", "silence_share", "level_dbfs"))
    return record | {"cap_hit": item.cap_hit, "retries": item.retries}


SCORES = (
    "words", "word_errors", "characters", "character_errors", "wer_percent", "above_50", "seedtts_wer_percent",
)  # fmt: skip


def text_scores(text: str, hypothesis: str | None, language: str) -> Row:
    """The columns SCORES; without a hypothesis (None), only the counts of the text."""
    words, characters = (count(text, hypothesis or "", language) for count in (word_errors, character_errors))
    scores: Row = dict.fromkeys(SCORES) | {"words": words.total, "characters": characters.total}
    if hypothesis is None:
        return scores
    if language in seedtts.LANGUAGES:
        scores["seedtts_wer_percent"] = 100 * seedtts.utterance_wer(text, hypothesis, language)
    scores |= {"word_errors": words.errors, "character_errors": characters.errors}
    return scores | {"wer_percent": 100 * words.rate, "above_50": words.rate > 0.5}


# The scripts of a language, as Unicode names its letters; other languages are not checked.
SCRIPTS = {
    language: tuple(scripts.split())
    for languages, scripts in (
        ("en es fr it de pt nl pl sv da no fi cs hu ro tr id vi", "LATIN"), ("zh yue", "CJK"), ("ko", "HANGUL CJK"),
        ("ja", "CJK HIRAGANA KATAKANA"), ("ru uk", "CYRILLIC"), ("el", "GREEK"), ("ar", "ARABIC"), ("he", "HEBREW"),
        ("hi", "DEVANAGARI"), ("th", "THAI"),
    )
    for language in languages.split()
}  # fmt: skip


def transcript_fault(text: str, language: str) -> tuple[str, str] | None:
    """(status, note) of a transcript without words, or with less than half of its letters in the language's script."""
    bare = seedtts.normalize(text, language) if language in seedtts.LANGUAGES else text
    if not normalize(text, language) or not bare.strip():
        return NO_WORDS, f"the transcript {text!r} holds no words after normalisation"
    letters = [unicodedata.name(symbol, "") for symbol in text if symbol.isalpha()]
    if language in SCRIPTS and letters:
        own = sum(name.startswith(SCRIPTS[language]) for name in letters)
        if 2 * own < len(letters):
            return ANOTHER_SCRIPT, f"{own} of {len(letters)} letters are of the script of {language!r}"
    return None


def hear(judge: Recogniser, waveform: Tensor, sample_rate: int, transcript: str) -> tuple[str, list[str]]:
    """[L] -> what the recogniser, which knows English, hears, and a warning where a transcript says otherwise."""
    hypothesis = judge.transcribe(waveform, sample_rate)
    if not transcript or word_errors(transcript, hypothesis).rate <= MAX_WORD_ERROR_RATE:
        return hypothesis, []
    return hypothesis, [f"the transcript says {transcript!r}, a recogniser of English heard {hypothesis!r}"]


def speaking_rates(clips: Iterable[tuple[str, str, float]]) -> dict[str, float]:
    """(text, language, seconds) of human recordings -> seconds for each character, by language.

    Without those that no rate counts, and those of 0 seconds: a language may have none left.
    """
    sums: dict[str, list[float]] = {}
    for text, language, seconds in clips:
        if seconds <= 0 or transcript_fault(text, language):
            continue
        pair = sums.setdefault(language, [0.0, 0.0])
        pair[0] += seconds
        pair[1] += character_errors(text, "", language).total
    return {language: seconds / characters for language, (seconds, characters) in sums.items()}
