"""What there is to judge: human recordings, their codec reconstructions, generated speech, and a second system's."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from higgs.audio import READABLE
from higgs.data.recordings import Recording, file_name, read_recordings, subset_by_hash
from higgs.data.text.chunks import SPEAKER_TAG
from higgs.evaluate.long_form import DIALOGUE, ChunkedSample, Turn
from higgs.evaluate.utterances import Utterance
from higgs.workflow.tables import Row, read_rows

RECORDED, RECONSTRUCTED, GENERATED = "recordings", "recordings through the codec", "generated"
OF_THE_SET = "recordings of the set"


@dataclass(frozen=True)
class Results:
    """What the stages tokenize and generate wrote to `folder`: two summaries, samples, their chunks, their words."""

    folder: Path
    tokenized: dict[str, Any]
    generated: dict[str, Any]
    samples: list[Row]
    chunks: list[Row]
    words: list[Row] = field(default_factory=list)  # of a sample in order, with start and end in seconds

    @cached_property
    def recordings(self) -> list[Recording]:
        """None of a corpus without transcripts."""
        return [] if "corpus" in self.tokenized else read_recordings(self.tokenized["recordings"])

    def audio(self, name: str) -> Path | None:
        """The file of a sample; None where nothing was generated."""
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
    samples, *more = (folder / "generate" / f"{name}.parquet" for name in ("utterances", "chunks", "words"))
    optional = [read_rows(path) if path.is_file() else [] for path in more]
    return Results(folder, *summaries.values(), read_rows(samples), *optional)


def gather(
    results: Results, languages: Sequence[str], naturalness_texts: int | None = None, second_system: str | None = None
) -> list[Utterance]:
    """Everything to judge, by condition; recordings only in `languages`, which the recogniser knows."""
    recordings = results.recordings
    items = [_recorded(r, recordings) for r in recordings if r.language in languages]
    for item in list(items):
        path = results.folder / "tokenize" / "audio" / f"{file_name(item.name)}.flac"
        if path.is_file():
            items.append(replace(item, condition=RECONSTRUCTED, path=path))
    generated = _generated(results, naturalness_texts)
    items += _of_the_set(results.samples, generated)
    items += _second(Path(second_system), generated) if second_system is not None else []
    return items + generated


def _recorded(recording: Recording, all_of_them: Sequence[Recording]) -> Utterance:
    """Its references are another recording of its speaker, and one of each other speaker."""
    own = [r.path for r in all_of_them if r.speaker == recording.speaker and r != recording]
    others = {r.speaker: r.path for r in reversed(all_of_them) if r.speaker != recording.speaker}
    return Utterance(
        RECORDED, recording.id, recording.id, recording.text, recording.path, recording.language,
        speaker=recording.speaker, voice=recording.speaker, reference=own[0] if own else None,
        others=tuple(sorted(others.values())),
    )  # fmt: skip


def _generated(results: Results, naturalness_texts: int | None) -> list[Utterance]:
    references = {row["reference"] for row in results.samples if row["reference"]}
    # One sample of each of these has its naturalness predicted.
    rated = subset_by_hash((row["script"] for row in results.samples), naturalness_texts)
    items = []
    for row in results.samples:
        own = row["reference"]
        items.append(
            Utterance(
                GENERATED, row["name"], row["script"], row["text"], results.audio(row["name"]), row["language"],
                speaker=row["voice"], voice=row["voice"], form=row["form"], seed=row["seed"],
                reference=Path(own) if own else None,
                others=tuple(Path(path) for path in sorted(references - {own})) if own else (),
                cap_hit=row["stop"] == "length", retries=row["retries"], predict_mos=row["script"] in rated,
            )
        )  # fmt: skip
        rated.discard(row["script"])
    return items


def _another_system(item: Utterance, condition: str, path: Path | None, **changes: Any) -> Utterance:
    """The text and voices of a generated utterance, spoken by another system or a person, once unless `changes` say."""
    usual = {"name": item.script, "seed": None, "form": "", "cap_hit": None, "retries": None, "predict_mos": True}
    return replace(item, condition=condition, path=path, **usual | changes)


def _of_the_set(samples: Sequence[Row], generated: Sequence[Utterance]) -> list[Utterance]:
    """Human references for what was generated, once for each script, where a test set has them."""
    pairs = [(item, row["recording"]) for row, item in zip(samples, generated, strict=True) if row["recording"]]
    return list({item.script: _another_system(item, OF_THE_SET, Path(path)) for item, path in pairs}.values())


def _second(folder: Path, generated: Sequence[Utterance]) -> list[Utterance]:
    """Another system's speech: `SCRIPT.flac` once, or `SCRIPT-sSEED.flac` for each sample; .wav and others as well.

    A seed that it has for one script it should have for all; a file that it lacks is missing, and counts. A folder
    with none of them at all is an error.
    """
    wanted = "it should hold SCRIPT.flac or SCRIPT-sSEED.flac for each script of the set"
    if not folder.is_dir():
        raise FileNotFoundError(f"evaluate.second_system: {folder} is no folder; {wanted}")
    paths = [path for path in folder.iterdir() if path.suffix.lower() in READABLE and path.is_file()]
    files = {path.stem: path for path in sorted(paths, key=lambda p: -READABLE.index(p.suffix.lower()))}
    if generated and not any(item.name in files or item.script in files for item in generated):
        holds = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise FileNotFoundError(f"evaluate.second_system: {folder} holds {holds}; {wanted} ({', '.join(READABLE)})")
    condition, items = f"second system: {folder.name}", {}
    seeds = {item.seed for item in generated if files.get(item.name)}
    for item in generated:
        once = files.get(item.script)
        if once is None and item.seed in seeds:
            own = {"name": item.name, "seed": item.seed, "predict_mos": item.predict_mos}
            items[item.name] = _another_system(item, condition, files.get(item.name), **own)
        elif once is not None or not seeds:
            items[item.script] = _another_system(item, condition, once)
    return list(items.values())


def chunked_samples(results: Results, form: str) -> list[ChunkedSample]:
    """The dialogues whose turns have known boundaries, or the long forms (with their own voice only)."""
    voices = {row["voice"]: Path(row["reference"]) for row in results.samples if row["reference"]}
    items = []
    for row in results.samples:
        path, chunks = results.audio(row["name"]), [c for c in results.chunks if c["name"] == row["name"]]
        by_turns = bool(chunks) and all(len(chunk["speaker"].split()) == 1 for chunk in chunks)
        if row["form"] != form or path is None or (form == DIALOGUE and not by_turns):
            continue
        names = dict(enumerate(row["voice"].split() if form == DIALOGUE else [row["voice"]]))
        turns = []
        for chunk in chunks:
            speaker = names.get(number := int(chunk["speaker"] or 0), f"SPEAKER{number}")
            turns.append(Turn(speaker, SPEAKER_TAG.sub("", chunk["text"]).strip(), chunk["start"], chunk["end"]))
        known = tuple(pair for pair in voices.items() if form == DIALOGUE or pair[0] == row["voice"])
        items.append(ChunkedSample(row["name"], form, path, row["text"], tuple(turns), known, row["language"]))
    return items
