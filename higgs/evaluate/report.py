"""What the evaluate notebook shows: results of the other stages, gathered, judged and summed up."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from higgs.audio import load_audio
from higgs.data.recordings import read_recordings
from higgs.evaluate.judges import Recogniser
from higgs.evaluate.protocols import Utterance
from higgs.evaluate.statistics import bootstrap_interval
from higgs.evaluate.text import character_errors, word_errors

RECORDED, ROUND_TRIP, GENERATED = "recordings", "recordings through the codec", "generated"
GUARD = "above_50_percent"


@dataclass(frozen=True)
class Results:
    """What the stages tokenize and generate left in `folder`."""

    folder: Path
    tokenized: dict[str, Any]
    generated: dict[str, Any]
    utterances: list[dict[str, str]]

    def reconstruction_summary(self) -> list[dict[str, Any]]:
        return self.tokenized["languages"]

    def audio(self, row: dict[str, Any]) -> tuple[Tensor, int]:
        """The sound of a judged row."""
        return load_audio(row["path"])


def read_results(folder: str | Path) -> Results:
    """Raises FileNotFoundError that names the stage to run."""
    folder = Path(folder)
    summaries = {}
    for stage in ("tokenize", "generate"):
        path = folder / stage / "summary.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run `dvc repro {stage}` first")
        summaries[stage] = json.loads(path.read_text(encoding="utf-8"))
    with (folder / "generate" / "utterances.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return Results(folder, summaries["tokenize"], summaries["generate"], rows)


def gather(results: Results, languages: list[str]) -> list[Utterance]:
    """Recordings in the judge's languages, their reconstructions, and everything generated."""
    found = []
    for recording in read_recordings(results.tokenized["recordings"], languages):
        found.append(
            Utterance(RECORDED, recording.id, recording.id, recording.text, recording.path)
        )
    for item in list(found):
        rebuilt = results.folder / "tokenize" / "audio" / f"{item.name}.flac"
        if rebuilt.is_file():
            found.append(Utterance(ROUND_TRIP, item.name, item.name, item.text, rebuilt))
    for row in results.utterances:
        group = f"{GENERATED}: {row['form']}" + (f", {row['voice']}" if row["voice"] else "")
        path = results.folder / "generate" / "audio" / f"{row['name']}.flac"
        found.append(
            Utterance(
                group, row["name"], row["script"], row["text"], path if path.is_file() else None
            )
        )
    return found


def judge_utterance(judge: Recogniser, item: Utterance) -> dict[str, Any]:
    """One row: what was heard, and how many words and characters are wrong."""
    heard, seconds = "", 0.0
    if item.path is not None:
        waveform, sample_rate = load_audio(item.path)
        heard, seconds = judge.transcribe(waveform, sample_rate), len(waveform) / sample_rate
    words, characters = word_errors(item.text, heard), character_errors(item.text, heard)
    return {
        "group": item.group,
        "name": item.name,
        "script": item.script,
        "text": item.text,
        "heard": heard,
        "seconds": seconds,
        "words": words.words,
        "word_errors": words.errors,
        "characters": characters.characters,
        "character_errors": characters.errors,
        "wer_percent": 100 * words.rate,
        "path": str(item.path) if item.path else "",
    }


def group_rows(rows: Sequence[dict], group: str) -> list[dict]:
    """The rows of a group; `generated` covers all forms."""
    return [row for row in rows if row["group"] == group or row["group"].startswith(f"{group}: ")]


def summarise(rows: Sequence[dict], resamples: int, seed: int) -> list[dict[str, Any]]:
    """One row for each group, generated speech as a whole first and then by form and voice."""
    names = list(dict.fromkeys(row["group"] for row in rows))
    if any(name.startswith(f"{GENERATED}: ") for name in names):
        names.insert(next(i for i, n in enumerate(names) if n.startswith(GENERATED)), GENERATED)
    summary = []
    for name in names:
        chosen = group_rows(rows, name)
        # Takes of one script are not independent: they are drawn together.
        pairs: dict[str, list[int]] = {}
        for row in chosen:
            pair = pairs.setdefault(row["script"], [0, 0])
            pair[0] += row["word_errors"]
            pair[1] += row["words"]
        errors, totals = zip(*pairs.values(), strict=True)
        rate = 100 * sum(errors) / sum(totals)
        low = high = rate
        if len(pairs) > 1:
            interval = bootstrap_interval(errors, totals, resamples, seed)
            low, high = 100 * interval.low, 100 * interval.high
        characters = sum(row["characters"] for row in chosen)
        summary.append(
            {
                "group": name,
                "n": len(chosen),
                "words": sum(totals),
                "wer_percent": rate,
                "wer_low": low,
                "wer_high": high,
                "cer_percent": 100 * sum(row["character_errors"] for row in chosen) / characters,
                "without_sound": sum(not row["path"] for row in chosen),
                GUARD: sum(row["wer_percent"] > 50 for row in chosen),
            }
        )
    return summary


def shown(summary: Sequence[dict]) -> list[dict[str, Any]]:
    """The summary as people read it."""
    return [
        {
            "group": row["group"],
            "n": row["n"],
            "words": row["words"],
            "WER %": f"{row['wer_percent']:.1f}",
            "95 % interval": f"{row['wer_low']:.1f} to {row['wer_high']:.1f}"
            if row["wer_high"] > row["wer_low"]
            else None,
            "CER %": f"{row['cer_percent']:.1f}",
            "without sound": row["without_sound"],
            "WER above 50 %": row[GUARD],
        }
        for row in summary
    ]


def judged_table(
    results: "Results", rows: Sequence[dict], player: Callable
) -> list[dict[str, Any]]:
    """Utterances with what was said, what was heard, and a player; `player` makes one of (waveform, sample rate)."""
    return [
        {
            "name": row["name"],
            "said": row["text"],
            "heard": row["heard"],
            "WER %": f"{row['wer_percent']:.0f}",
            "listen": player(*results.audio(row)) if row["seconds"] else None,
        }
        for row in rows
    ]


def worst(rows: Sequence[dict], count: int) -> list[dict]:
    """The generated utterances with the highest word error rates, ties by name."""
    return sorted(group_rows(rows, GENERATED), key=lambda r: (-r["wer_percent"], r["name"]))[:count]


def best(rows: Sequence[dict], count: int) -> list[dict]:
    """The generated utterances with the lowest word error rates, the longer texts first among equals."""
    return sorted(
        group_rows(rows, GENERATED), key=lambda r: (r["wer_percent"], -r["words"], r["name"])
    )[:count]


def metrics(results: Results, summary: Sequence[dict], judge: str) -> dict[str, Any]:
    """The flat numbers that `dvc metrics` and `dvc exp show` list, and where they come from."""
    by_group = {row["group"]: row for row in summary}
    flat: dict[str, Any] = {}
    for group, name in (
        (RECORDED, "recordings"),
        (ROUND_TRIP, "codec"),
        (GENERATED, "generated"),
    ):
        if row := by_group.get(group):
            flat[f"{name}_wer_percent"] = row["wer_percent"]
            flat[f"{name}_cer_percent"] = row["cer_percent"]
            flat[f"{name}_n"] = row["n"]
    languages = results.tokenized["languages"]
    clips = sum(row["clips"] for row in languages)
    for column in ("mel_db", "stft", "si_sdr_db"):
        flat[f"codec_{column}"] = sum(row[column] * row["clips"] for row in languages) / clips
    flat["generated_without_sound"] = results.generated["empty"]
    flat["generated_stopped_by_length"] = results.generated["stopped_by_length"]
    return flat | {
        "provenance": results.generated["provenance"]
        | {"judge": judge, "seeds": results.generated["seeds"]}
    }


def checkpoint_note(name: str) -> str:
    """The sentence that opens the report."""
    if name == "nano":
        return (
            "Checkpoint: nano, the small default, made to show and to test the workflow. It is understood in part, "
            "as the table says; what the released 3B checkpoint can do is not measured here."
        )
    return f"Checkpoint: {name}."
