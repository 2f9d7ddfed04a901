"""What there is to judge: recordings, their way through the codec, generated speech, and a second system's."""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from higgs.audio import load_audio
from higgs.data.recordings import Recording, read_recordings
from higgs.data.scripts import subset_by_hash
from higgs.evaluate.dialogue import Turn, judge_dialogue
from higgs.evaluate.long_form import judge_long
from higgs.evaluate.utterances import Listener, Utterance
from higgs.workflow.tables import Row

RECORDED, ROUND_TRIP, GENERATED = "recordings", "recordings through the codec", "generated"
OF_THE_SET = "recordings of the set"
SUFFIXES = (".flac", ".wav")
SPEAKER_TAG = re.compile(r"\[SPEAKER\d+\]\s*")


@dataclass(frozen=True)
class Results:
    """What the stages tokenize and generate left in `folder`: two summaries, takes, and borders of chunks."""

    folder: Path
    tokenized: dict[str, Any]
    generated: dict[str, Any]
    takes: list[dict[str, str]]
    chunks: list[dict[str, str]]

    def audio(self, name: str) -> Path | None:
        """The sound of a take; None where nothing was spoken."""
        path = self.folder / "generate" / "audio" / f"{name}.flac"
        return path if path.is_file() else None


def read_results(folder: str | Path) -> Results:
    """Raises FileNotFoundError that names the stage to run."""
    folder, summaries = Path(folder), {}
    for stage in ("tokenize", "generate"):
        path = folder / stage / "summary.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run `dvc repro {stage}` first")
        summaries[stage] = json.loads(path.read_text(encoding="utf-8"))
    takes = read_csv(folder / "generate" / "utterances.csv")
    chunks = folder / "generate" / "chunks.csv"
    return Results(folder, *summaries.values(), takes, read_csv(chunks) if chunks.is_file() else [])


def read_csv(path: Path) -> list[dict[str, str]]:
    """A table as `higgs.workflow.outputs.write_table` writes it, every cell a text."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def gather(
    results: Results,
    languages: Sequence[str],
    naturalness_texts: int | None = None,
    second_system: str | Path | None = None,
) -> list[Utterance]:
    """Everything to judge, group by group; recordings only in `languages`, which the recogniser knows."""
    recordings = read_recordings(results.tokenized["recordings"])
    found = [_recorded(r, recordings) for r in recordings if r.language in languages]
    for item in list(found):
        rebuilt = results.folder / "tokenize" / "audio" / f"{item.name}.flac"
        if rebuilt.is_file():
            found.append(_beside(item, ROUND_TRIP, rebuilt))
    generated = _generated(results, naturalness_texts)
    found += _of_the_set(results.takes, generated)
    found += _second(Path(second_system), generated) if second_system is not None else []
    return found + generated


def _recorded(recording: Recording, all_of_them: Sequence[Recording]) -> Utterance:
    """Beside another recording of its speaker, and one of each other speaker."""
    own = [r.path for r in all_of_them if r.speaker == recording.speaker and r != recording]
    others = {r.speaker: r.path for r in reversed(all_of_them) if r.speaker != recording.speaker}
    return Utterance(
        RECORDED, recording.id, recording.id, recording.text, recording.path, recording.language,
        speaker=recording.speaker, voice=recording.speaker, reference=own[0] if own else None,
        others=tuple(sorted(others.values())),
    )  # fmt: skip


def _beside(item: Utterance, group: str, path: Path | None, **changes: Any) -> Utterance:
    """The same text and voices in another group."""
    kept = {**vars(item), "form": "", "cap_hit": None, "retries": None, "predict": True}
    return Utterance(**(kept | {"group": group, "path": path} | changes))


def _generated(results: Results, naturalness_texts: int | None) -> list[Utterance]:
    voices = {row["reference"] for row in results.takes if row["reference"]}
    # One take of each of these has its naturalness predicted.
    rated = subset_by_hash((row["script"] for row in results.takes), naturalness_texts)
    found = []
    for row in results.takes:
        own = row["reference"]
        found.append(
            Utterance(
                GENERATED, row["name"], row["script"], row["text"], results.audio(row["name"]), row["language"],
                speaker=row["voice"], voice=row["voice"], form=row["form"], seed=int(row["seed"]),
                reference=Path(own) if own else None,
                others=tuple(Path(voice) for voice in sorted(voices - {own})) if own else (),
                cap_hit=row["stop"] == "length", retries=int(row["retries"]),
                predict=row["script"] in rated,
            )
        )  # fmt: skip
        rated.discard(row["script"])
    return found


def _of_the_set(takes: Sequence[dict[str, str]], generated: Sequence[Utterance]) -> list[Utterance]:
    """People saying what was generated, once for each script, where a test set has them."""
    found = {}
    for row, item in zip(takes, generated, strict=True):
        if row["recording"]:
            path = Path(row["recording"])
            found[item.script] = _beside(item, OF_THE_SET, path, name=item.script, seed=None)
    return list(found.values())


def _second(folder: Path, generated: Sequence[Utterance]) -> list[Utterance]:
    """Another system's speech: `SCRIPT.flac` once, or `SCRIPT-sSEED.flac` for each take; .wav as well.

    A seed that it has for one script it should have for all; what it lacks is missing, and counts. Raises
    FileNotFoundError without the folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"evaluate.second_system: {folder} is no folder; it should hold SCRIPT.flac or SCRIPT-sSEED.flac for each "
            "script of the set"
        )

    def sound(name: str) -> Path | None:
        paths = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
        return next((path for path in paths if path.is_file()), None)

    group, found = f"second system: {folder.name}", {}
    seeds = {item.seed for item in generated if sound(item.name)}
    for item in generated:
        once = sound(item.script)
        if once is None and item.seed in seeds:
            found[item.name] = _beside(item, group, sound(item.name), predict=item.predict)
        elif once is not None or not seeds:
            found[item.script] = _beside(item, group, once, name=item.script, seed=None)
    return list(found.values())


@dataclass(frozen=True)
class DialogueTake:
    """A dialogue that was spoken turn by turn, and recordings of its voices by name.

    A turn is a speaker, a text, and where it lies in samples.
    """

    name: str
    path: Path
    turns: tuple[tuple[str, str, int, int], ...]
    voices: tuple[tuple[str, Path], ...]
    language: str

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path, *(path for _, path in self.voices))

    def judge(self, listener: Listener) -> list[Row]:
        """A row for each turn."""
        waveform, rate = load_audio(self.path)
        voices = known_voices(listener, self.voices)
        turns = [Turn(who, text, start / rate, end / rate) for who, text, start, end in self.turns]
        return judge_dialogue(listener.panel, self.name, waveform, rate, turns, voices, self.language)


@dataclass(frozen=True)
class LongTake:
    """What one voice spoke in chunks, with the samples where they meet, and a recording of that voice."""

    name: str
    path: Path
    text: str
    seams: tuple[int, ...]
    voices: tuple[tuple[str, Path], ...]
    language: str

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path, *(path for _, path in self.voices))

    def judge(self, listener: Listener) -> list[Row]:
        """A row for each stretch of at most 10 s."""
        waveform, rate = load_audio(self.path)
        voice = next(iter(known_voices(listener, self.voices).values()), None)
        seams = [seam for seam in self.seams if 0 < seam < len(waveform)]
        return judge_long(listener.panel, self.name, waveform, rate, self.text, voice, seams, self.language)


def known_voices(listener: Listener, recordings: Sequence[tuple[str, Path]]) -> dict[str, Tensor]:
    """Names with recordings -> embeddings; a recording that cannot be used has none."""
    if listener.panel.speaker is None:
        return {}
    found = {name: listener.reference_voice(path) for name, path in recordings}
    return {name: vector for name, vector in found.items() if not isinstance(vector, str)}


def dialogue_takes(results: Results) -> list[DialogueTake]:
    """The dialogues whose turns have known borders."""
    voices, found = _voices(results), []
    for take in results.takes:
        chunks = [chunk for chunk in results.chunks if chunk["name"] == take["name"]]
        path = results.audio(take["name"])
        single = all(len(chunk["speaker"].split()) == 1 for chunk in chunks)
        if take["form"] != "dialogue" or not chunks or path is None or not single:
            continue
        names = take["voice"].split()
        turns = tuple(
            (
                _voice_of(int(chunk["speaker"]), names), SPEAKER_TAG.sub("", chunk["text"]),
                int(chunk["start"]), int(chunk["end"]),
            )
            for chunk in chunks
        )  # fmt: skip
        found.append(DialogueTake(take["name"], path, turns, voices, take["language"]))
    return found


def long_takes(results: Results) -> list[LongTake]:
    """What was spoken in chunks by one voice."""
    voices, found = _voices(results), []
    for take in results.takes:
        path = results.audio(take["name"])
        if take["form"] == "long_form" and path is not None:
            starts = (int(c["start"]) for c in results.chunks if c["name"] == take["name"])
            own = tuple(pair for pair in voices if pair[0] == take["voice"])
            found.append(LongTake(take["name"], path, take["text"], tuple(starts), own, take["language"]))
    return found


def _voices(results: Results) -> tuple[tuple[str, Path], ...]:
    """The voices that takes in one voice have a reference of."""
    pairs = {row["voice"]: Path(row["reference"]) for row in results.takes if row["reference"]}
    return tuple(pairs.items())


def _voice_of(number: int, names: Sequence[str]) -> str:
    return names[number] if number < len(names) else f"SPEAKER{number}"
