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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator
from torch import Tensor
from tqdm import tqdm

from higgs.audio import resample
from higgs.data import chatml
from higgs.data.chatml import AudioContent, ChatMLSample, Message
from higgs.data.chatml_json import json_lines, sample_from_json
from higgs.data.text.folding import check_text
from higgs.data.training.codes import CodesReader, packed, write_index
from higgs.data.voices import check_speech
from higgs.files import absent
from higgs.jobs.cluster import Cluster
from higgs.jobs.parts import Result, Store, cut, make_part, run
from higgs.resumable import code_hash
from higgs.validation import Record, parse_json, validate

DOUBT, MAX_WARNINGS = "doubtful audio", 20
MAX_PROBLEMS = 5  # in an error's message
Clip = tuple[AudioContent, str | None]  # and its transcript
PART_SECONDS = 600  # of speech: a kill loses as much encoding, or twice that


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
    """One conversation to train on. `keys`: the names of its audios' codes, in order; `transcripts` where known."""

    id: str
    place: str
    sample: ChatMLSample
    keys: tuple[str, ...]
    transcripts: tuple[str | None, ...]

    @property
    def trained_keys(self) -> frozenset[str]:
        """Of the audio that is answered; none where the answer is text."""
        start, messages = self.sample.start_index, enumerate(self.sample.messages)
        parts = [(m.role == "assistant" and i >= start, part) for i, m in messages for part in m.parts]
        answers = [trained for trained, part in parts if isinstance(part, AudioContent)]
        return frozenset(key for key, trained in zip(self.keys, answers, strict=True) if trained)


@dataclass(frozen=True)
class Manifest:
    path: Path
    num_records: int
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()  # of examples that are used all the same

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(problem.kind for problem in self.problems))

    def without(self, problems: Iterable[Problem]) -> "Manifest":
        """-> the same with further problems, without their examples."""
        problems = (*self.problems, *problems)
        places = {problem.place for problem in problems}
        return replace(self, examples=tuple(e for e in self.examples if e.place not in places), problems=problems)

    def summary(self, most: int | None = None) -> str:
        """Lines: how many records cannot be used, then their problems (at most `most`), then warnings."""
        unusable = len({problem.place for problem in self.problems})
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
        head = f"{unusable} of {self.num_records} records cannot be used" + (f": {kinds}" if kinds else "")
        lines = [f"  {p.place}: {p.what}" for p in self.problems[:most]]
        if (more := len(self.problems) - len(lines)) > 0:
            lines.append(f"  and {more} problems more")
        lines += [f"  {p.place}: used, but {p.what}" for p in self.warnings[:MAX_WARNINGS]]
        if (more := len(self.warnings) - MAX_WARNINGS) > 0:
            lines.append(f"  and {more} warnings more")
        return "\n".join([head, *lines])

    __str__ = summary


class DataError(ValueError):
    """A manifest with unusable records: the message has the first problems, `manifest` lists them all."""

    def __init__(self, manifest: Manifest):
        super().__init__(f"{manifest.path}: {manifest.summary(MAX_PROBLEMS)}")
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
        transcripts = None
        try:
            if isinstance(record, Utterance):
                other = utterances.get(record.reference)
                transcripts = (other.text, record.text) if other else (record.text,)
                record = _conversation(record, utterances, description)
        except ValueError as error:
            kind = "invalid record" if record.text else "empty text"
            problems.append(Problem(kind, place, f"{name!r}: {error}"))
        else:
            names = tuple(audio.name for audio in record.audios)
            examples.append(Example(name, place, record, names, transcripts or (None,) * len(names)))
    return Manifest(Path(path), len(lines), tuple(examples), tuple(problems))


def _parse(line: str, number: int, allow_special: bool) -> tuple[str, Utterance | ChatMLSample]:
    """-> the id (of a conversation without one: "record 3" of the third) and the record."""
    record = parse_json(line, "record")
    if isinstance(record, dict) and "messages" in record:
        name = validate(str | None, record.pop("id", None), "record.id") or f"record {number}"
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

    `encode` maps [L] at `sample_rate` to codes [K, T]; `codec` names its checkpoint and device. Codes are cached
    in `folder`, in parts. Audio that is missing, unreadable, refused by `encode`, longer than
    `max_seconds` or not speech that fits its transcript (fatal findings of `check_speech`) is a problem of each record
    that needs it; other findings are warnings. Raises DataError when no example is left.
    """
    root = manifest.path.parent
    keys: dict[Clip, str] = {}
    seconds: dict[str, tuple[AudioContent, float]] = {}  # of what there is to encode, by key
    faults: dict[Clip, list[Problem]] = {}
    clips = {e.id: tuple(zip(e.sample.audios, e.transcripts, strict=True)) for e in manifest.examples}
    for clip in tqdm(dict.fromkeys(chain(*clips.values())), unit="clip", desc="read", disable=None):
        audio, transcript = clip
        try:
            key = _key(audio, root, codec)
            waveform, rate = audio.read(root)
            doubts = _doubts(waveform, rate, transcript, max_seconds)
            keys[clip], seconds[key] = key, (audio, len(waveform) / rate)
            faults[clip] = [Problem(DOUBT, "", f"{audio.name}: {doubt}") for doubt in doubts]
        except FileNotFoundError as error:
            faults[clip] = [Problem("missing audio", "", str(error))]
        except (OSError, ValueError, TypeError) as error:
            faults[clip] = [Problem("unusable audio", "", f"{audio.name}: {error}")]

    def make(items: Sequence[str]) -> Result:
        return _encoded(items, lambda key: _encode(seconds[key][0], key, root, codec, encode, sample_rate))

    job, store = {"codec": codec, "sample_rate": sample_rate, "code": code_hash()}, Store(str(folder))
    groups = cut(sorted(seconds), PART_SECONDS, str, lambda key: seconds[key][1])
    records = list(run(lambda: make, [make_part(job, group) for group in groups], store, Cluster(None, 1), "encode"))
    write_index(store, records, folder)
    refused = {failure["id"]: failure["what"] for record in records for failure in record["failed"]}
    for clip, key in keys.items():
        if key in refused:
            faults[clip] = [Problem("unusable audio", "", f"{clip[0].name}: {refused[key]}")]
    found = [
        replace(problem, place=example.place)
        for example in manifest.examples
        for problem in dict.fromkeys(chain(*(faults[clip] for clip in clips[example.id])))
    ]
    usable = manifest.without(problem for problem in found if problem.kind != DOUBT)
    if not usable.examples:
        raise DataError(usable)
    examples = tuple(replace(e, keys=tuple(keys[clip] for clip in clips[e.id])) for e in usable.examples)
    places = {example.place for example in examples}
    warnings = tuple(problem for problem in found if problem.kind == DOUBT and problem.place in places)
    return replace(usable, examples=examples, warnings=warnings), CodesReader(folder)


def _encode(
    audio: AudioContent, key: str, root: Path, codec: str, encode: Callable[[Tensor], Tensor], sample_rate: int
) -> Tensor:
    waveform, rate = audio.read(root)
    codes = encode(resample(waveform, rate, sample_rate))
    if _key(audio, root, codec) != key:
        raise FileChanged("the file changed while it was read")
    return codes


class FileChanged(ValueError):
    """Between two looks at it."""


def _encoded(keys: Sequence[str], encode: Callable[[str], Tensor]) -> Result:
    """A part, which is not final where a file has changed."""
    codes: dict[str, Tensor] = {}
    failed, final = [], True
    for key in keys:
        try:
            codes |= packed({key: encode(key)})
        except (OSError, ValueError, TypeError) as error:
            final = final and not isinstance(error, OSError | FileChanged)
            failed.append({"kind": "unusable audio", "id": key, "what": str(error)})
    frames = sum(clip.shape[1] for clip in codes.values())
    return Result({"clips": len(codes), "frames": frames, "failed": failed}, codes, final)


def _doubts(waveform: Tensor, rate: int, transcript: str | None, max_seconds: float) -> list[str]:
    """What may be wrong with a clip [L]. Raises ValueError for one that cannot be used."""
    if (seconds := len(waveform) / rate) > max_seconds:
        raise ValueError(f"{seconds:.1f} s, at most {max_seconds:g} s: cut it at pauses")
    findings = check_speech(waveform, rate, transcript)
    if fatal := [finding.message for finding in findings if finding.fatal]:
        raise ValueError("; ".join(fatal))
    return [finding.message for finding in findings]


def _key(audio: AudioContent, folder: Path, codec: str) -> str:
    """SHA-256 over all that codes depend on: the file's bytes, the segment of it, and the codec."""
    if not (path := folder / audio.audio_url).is_file():
        raise absent("audio", path, "where a row names `codes`: only files are read here")
    digest = hashlib.sha256(path.read_bytes())
    digest.update(repr((audio.offset or 0.0, audio.duration, codec)).encode())
    return digest.hexdigest()
