"""Training manifests: JSON records, each an utterance or a conversation, and the problems of those that are unusable.

    {"id": "a1", "text": "Good morning.", "audio": "a1.flac"}                    an utterance in a recording
    {"id": "a2", "text": "Good evening.", "codes": "a2", "description": "calm", "scene": "A quiet room."}
    {"id": "a3", "text": "Good night.", "audio": "a3.flac", "reference": "a1"}   in the voice of another record
    {"id": "a4", ..., "reference": "a1", "form": "voice_in_system"}              ... which is in the system message
    {"id": "c1", "messages": [...], "start_index": 2}                            a conversation, see chatml_json

Audio is a file, relative to the manifest's folder, or the name of existing codes. `speaker` is metadata.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator
from torch import Tensor
from tqdm import tqdm

from higgs.audio import check_audible
from higgs.data import chatml
from higgs.data.chatml import AudioContent, ChatMLSample, Message
from higgs.data.chatml_json import json_lines, sample_from_json
from higgs.data.text.folding import check_text
from higgs.data.training.codes import CodesReader, CodesWriter
from higgs.validation import Record, parse_json, validate

SHARD_BYTES = 1 << 19  # 22 minutes of speech: the most encoding work that a kill loses


class Utterance(Record):
    id: str | None = None
    text: Annotated[str, AfterValidator(str.strip)]
    audio: str | None = None
    codes: str | None = None
    speaker: str | None = None
    form: Literal["smart_voice", "voice_clone", "voice_in_system"] | None = None
    scene: str | None = None
    description: str | None = None
    reference: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Utterance":
        if (self.audio is None) == (self.codes is None):
            raise ValueError("give either audio or codes")
        if self.form == "smart_voice" and self.reference is not None:
            raise ValueError("smart_voice takes no reference")
        if self.form not in (None, "smart_voice") and self.reference is None:
            raise ValueError(f"{self.form} needs a reference")
        if self.reference is not None and self.description:
            raise ValueError("give either a reference or a description")
        return self

    @property
    def source(self) -> str:
        return self.codes if self.audio is None else self.audio


@dataclass(frozen=True)
class Problem:
    """Why a record is unusable."""

    kind: str
    place: str
    what: str


@dataclass(frozen=True)
class Example:
    """One conversation to train on. `keys`: the names of its audios' codes, in order."""

    id: str
    place: str
    sample: ChatMLSample
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    path: Path
    num_records: int
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(problem.kind for problem in self.problems))

    def without(self, problems: Iterable[Problem]) -> "Manifest":
        """-> the same with further problems, without their examples."""
        problems = (*self.problems, *problems)
        places = {problem.place for problem in problems}
        return replace(self, examples=tuple(e for e in self.examples if e.place not in places), problems=problems)

    def __str__(self) -> str:
        unusable = len({problem.place for problem in self.problems})
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
        head = f"{unusable} of {self.num_records} records cannot be used" + (f": {kinds}" if kinds else "")
        return "\n".join([head, *(f"  {p.place}: {p.what}" for p in self.problems)])


class DataError(ValueError):
    """A manifest with unusable records; `manifest` lists them all."""

    def __init__(self, manifest: Manifest):
        super().__init__(f"{manifest.path}: {manifest}")
        self.manifest = manifest


def read_manifest(path: str | Path, allow_special: bool = False, description: str | None = None) -> Manifest:
    """Examples in order, and problems of other records; `description` is for those without one or a reference."""
    lines = json_lines(path)
    problems: list[Problem] = []
    records: dict[str, tuple[str, Utterance | ChatMLSample]] = {}
    for number, (place, line) in enumerate(lines, 1):
        try:
            name, record = _parse(line, number, allow_special)
        except ValueError as error:
            problems.append(Problem("invalid record", place, str(error)))
            continue
        if name in records:
            problems.append(Problem("duplicate id", place, f"{name!r} is also the id of {records[name][0]}"))
        else:
            records[name] = (place, record)
    utterances = {name: record for name, (_, record) in records.items() if isinstance(record, Utterance)}
    examples = []
    for name, (place, record) in records.items():
        try:
            if isinstance(record, Utterance):
                record = _conversation(record, utterances, description)
        except ValueError as error:
            kind = "invalid record" if record.text else "empty text"
            problems.append(Problem(kind, place, f"{name!r}: {error}"))
        else:
            examples.append(Example(name, place, record, tuple(audio.name for audio in record.audios)))
    return Manifest(Path(path), len(lines), tuple(examples), tuple(problems))


def _parse(line: str, number: int, allow_special: bool) -> tuple[str, Utterance | ChatMLSample]:
    """-> the id (of a conversation without one: the line's number) and the record."""
    record = parse_json(line, "record")
    if isinstance(record, dict) and "messages" in record:
        name = validate(str | None, record.pop("id", None), "record.id") or str(number)
        sample = sample_from_json(record, allow_special, "record")
        trained = [part for m in sample.messages[sample.start_index :] if m.role == "assistant" for part in m.parts]
        if not any(isinstance(part, AudioContent) or part.text for part in trained):
            raise ValueError("record.messages: no assistant's message with content from start_index on")
        if any(audio.raw_audio is not None or not audio.has_data for audio in sample.audios):
            raise ValueError("record.messages: audio to train on is a file, or the name of codes, as audio_url")
        return name, sample
    utterance = validate(Utterance, record, "record")
    return utterance.source if utterance.id is None else utterance.id, utterance


def _conversation(utterance: Utterance, others: Mapping[str, Utterance], description: str | None) -> ChatMLSample:
    """The conversation that ends in the utterance; only its last turn is trained on."""
    text = check_text(utterance.text)
    if utterance.reference is None:
        prompt = chatml.smart_voice(text, utterance.scene, utterance.description or description)
    else:
        other = others.get(utterance.reference)
        if other is None or not other.text or other is utterance:
            raise ValueError(f"record.reference: no other utterance {utterance.reference!r} in this file")
        reference = AudioContent(other.source)
        if utterance.form == "voice_in_system":
            prompt = chatml.voices_in_system(text, [reference], utterance.scene)
        else:
            prompt = chatml.voice_clone(text, other.text, reference, utterance.scene)
    answer = Message("assistant", AudioContent(utterance.source))
    return ChatMLSample([*prompt.messages, answer], len(prompt.messages), utterance.speaker)


def encode_audio(
    manifest: Manifest,
    folder: str | Path,
    encode: Callable[[Tensor], Tensor],
    codec: str,
    sample_rate: int = 24_000,
    max_seconds: float = 60.0,
) -> tuple[Manifest, CodesReader]:
    """-> the usable examples with the keys of their codes, and these codes.

    `encode` maps [L] at `sample_rate` to codes [K, T]; `codec` is the fingerprint of its checkpoint. Codes are cached
    in `folder` by `_key`. Audio that is missing, unreadable, silent, refused by `encode` or longer than `max_seconds`
    is a problem of each record that needs it. Raises DataError when no example is left.
    """
    folder, root = Path(folder) / codec[:16], manifest.path.parent
    keys: dict[AudioContent, str] = {}
    faults: dict[AudioContent, tuple[str, str]] = {}
    audios = dict.fromkeys(audio for example in manifest.examples for audio in example.sample.audios)
    with CodesWriter(folder, SHARD_BYTES) as writer:
        for audio in tqdm(audios, unit="clip", desc="encode", disable=None):
            try:
                keys[audio] = key = _key(audio, root, codec)
                waveform = check_audible(audio.load(sample_rate, root), "the recording")
                if (seconds := len(waveform) / sample_rate) > max_seconds:
                    raise ValueError(f"{seconds:.1f} s, at most {max_seconds:g} s: cut it at pauses")
                if key not in writer:
                    codes = encode(waveform)
                    if _key(audio, root, codec) != key:
                        raise ValueError("the file changed while it was read")
                    writer.add(key, codes)
            except FileNotFoundError as error:
                faults[audio] = ("missing audio", str(error))
            except (OSError, ValueError) as error:
                faults[audio] = ("unusable audio", f"{audio.name}: {error}")
    usable = manifest.without(
        Problem(kind, example.place, what)
        for example in manifest.examples
        for kind, what in dict.fromkeys(faults[a] for a in example.sample.audios if a in faults)
    )
    if not usable.examples:
        raise DataError(usable)
    examples = tuple(replace(e, keys=tuple(keys[a] for a in e.sample.audios)) for e in usable.examples)
    return replace(usable, examples=examples), CodesReader(folder)


def _key(audio: AudioContent, folder: Path, codec: str) -> str:
    """SHA-256 over all that codes depend on: the file's bytes, the segment of it, and the codec."""
    digest = hashlib.sha256((folder / audio.audio_url).read_bytes())
    digest.update(repr((audio.offset or 0.0, audio.duration, codec)).encode())
    return digest.hexdigest()
