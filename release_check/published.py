"""What is published about the release, each figure with its source, and whether ours can be told apart from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

README = "README of boson-ai/higgs-audio (its authors; the language is not named)"
USER = "boson-ai/higgs-audio#137 (a user, the best of several seeds)"
VOXCPM = "README of OpenBMB/VoxCPM (another group)"
PAPER = "Seed-TTS, arXiv:2406.02430 (its authors)"
WHISPER, PARAFORMER, WAVLM = "Whisper large-v3", "Paraformer-zh", "WavLM-large SV"
RECOGNISER, SPEAKER = "recogniser", "speaker"
RELEASE_SIZES = "the release's"
MODEL, PEOPLE = "generated", "recordings of the set"


@dataclass(frozen=True)
class Published:
    """`metric` of the summary of `group` on SeedTTS-Eval in `language`, as `judge` of its kind measured it."""

    what: str
    value: float
    source: str
    language: str
    metric: str
    kind: str
    judge: str
    group: str = MODEL
    scale: float = 1.0


def word_errors(value: float, source: str, language: str = "en", group: str = MODEL) -> Published:
    what, judge = ("word error rate, %", WHISPER) if language == "en" else ("character error rate, %", PARAFORMER)
    return Published(what, value, source, language, "seedtts_wer_percent", RECOGNISER, judge, group)


def similarity(value: float, source: str, language: str = "en", group: str = MODEL) -> Published:
    return Published(
        "similarity to the prompt's voice, x 100", value, source, language, "similarity", SPEAKER, WAVLM, group, 100
    )


FIGURES = (
    word_errors(2.44, README), word_errors(2.44, VOXCPM), word_errors(3.09, USER),
    word_errors(2.14, PAPER, "en", PEOPLE),
    similarity(67.7, README), similarity(67.7, VOXCPM), similarity(64.9, USER), similarity(73.4, PAPER, "en", PEOPLE),
    word_errors(1.50, VOXCPM, "zh"), word_errors(2.682, USER, "zh"), word_errors(1.26, PAPER, "zh", PEOPLE),
    similarity(74.0, VOXCPM, "zh"), similarity(71.7, USER, "zh"), similarity(75.5, PAPER, "zh", PEOPLE),
)  # fmt: skip


def compare(found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The result of the step `seedtts`, None without one -> a row for each published figure of its language."""
    language = found["language"] if found else "en"
    summaries: dict[str, Any] = {row["group"]: row for row in found["summary"]} if found else {}
    judges: dict[str, str | None] = found["judges"] if found else {}
    return [
        {
            "figure": f"SeedTTS-Eval {entry.language}: {entry.what}" + (", people" if entry.group == PEOPLE else ""),
            "published": entry.value, "here": shown, "difference": verdict, "source": entry.source,
        }
        for entry in FIGURES if entry.language == language
        for shown, verdict in [_verdict(entry, summaries.get(entry.group), judges.get(entry.kind))]
    ]  # fmt: skip


def _verdict(entry: Published, summary: Mapping[str, Any] | None, judge: str | None) -> tuple[str, str]:
    """-> our figure with its interval, and what it says."""
    values: Sequence[float | None] = [summary and summary[f"{entry.metric}{end}"] for end in ("", "_low", "_high")]
    if values[0] is None or not summary:
        return "–", "not measured"
    if None in values:
        return f"{entry.scale * values[0]:.1f} (one text)", "too few to compare"
    value, low, high = (entry.scale * number for number in values)
    shown = f"{value:.1f} ({low:.1f} to {high:.1f}, {summary['n']} texts)"
    if judge != entry.judge:
        return shown, f"does not compare: judged by {judge}, theirs is {entry.judge}"
    if low <= entry.value <= high:
        return shown, "not told apart"
    return shown, f"differs: {'higher' if value > entry.value else 'lower'} here"
