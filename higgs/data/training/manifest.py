"""What to train on: rows in JSON, each an utterance or a whole conversation, and what is wrong with any of them.

    {"id": "a1", "text": "Good morning.", "audio": "a1.flac"}                    an utterance in a recording
    {"id": "a2", "text": "Good evening.", "codes": "a2", "description": "calm", "scene": "A quiet room."}
    {"id": "a3", "text": "Good night.", "audio": "a3.flac", "reference": "a1"}   in the voice of another row
    {"id": "a4", ..., "reference": "a1", "form": "voice_in_system"}              ... which the system message holds
    {"id": "c1", "messages": [...], "start_index": 2}                            a conversation, see chatml_json

Audio is a file, from the manifest's folder, or the name of codes that are there already. `speaker` is kept. Rows that
cannot be used are problems, each with its place and reason: nothing is dropped without a word.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, model_validator
from torch import Tensor
from tqdm import tqdm

from higgs.data.chatml import (
    AudioContent,
    ChatMLSample,
    Message,
    TextContent,
    smart_voice,
    voice_clone,
    voices_in_system,
)
from higgs.data.chatml_json import sample_from_json
from higgs.data.text.checks import check_text
from higgs.data.training.codes import CodesReader, CodesWriter
from higgs.files import read_lines, read_text
from higgs.validation import Record, parse_json, validate


class Utterance(Record):
    """A row: what is said, and the name of the audio or of the codes in which it is said."""

    id: str | None = None
    text: Annotated[str, AfterValidator(str.strip)]
    audio: str | None = None
    codes: str | None = None
    speaker: str | None = None
    form: str | None = None
    scene: str | None = None
    description: str | None = None
    reference: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "Utterance":
        if (self.audio is None) == (self.codes is None):
            raise ValueError("give either audio or codes")
        return self

    @property
    def source(self) -> str:
        return self.codes if self.audio is None else self.audio


# Form -> whether it takes a reference.
FORMS = {"smart_voice": False, "voice_clone": True, "voice_in_system": True}
SHARD_BYTES = 1 << 19  # 22 minutes of speech: as much encoding is lost by a kill


@dataclass(frozen=True)
class Problem:
    """Why a row cannot be used: a short `kind` to count by, and the whole story."""

    kind: str
    place: str
    what: str


@dataclass(frozen=True)
class Example:
    """One conversation to learn from. `keys`: under which names its audios have their codes, in order."""

    id: str
    place: str
    sample: ChatMLSample
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """The examples of a file of so many rows, and what is wrong with the rows that cannot be used."""

    path: Path
    rows: int
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def left_out(self) -> int:
        return len({problem.place for problem in self.problems})

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(problem.kind for problem in self.problems))

    def without(self, problems: Iterable[Problem]) -> "Manifest":
        """-> the same with further problems, and without the examples that have them."""
        told = (*self.problems, *problems)
        places = {problem.place for problem in told}
        return replace(self, examples=tuple(e for e in self.examples if e.place not in places), problems=told)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
        lines = [f"  {p.place}: {p.what}" for p in self.problems]
        head = f"{self.left_out} of {self.rows} rows cannot be used"
        return "\n".join([f"{head}: {kinds}" if kinds else head, *lines])


class DataError(ValueError):
    """Rows that cannot be used; `manifest` lists them all."""

    def __init__(self, manifest: Manifest):
        super().__init__(f"{manifest.path}: {manifest}")
        self.manifest = manifest


class _Reader:
    """Rows of one manifest, with their problems."""

    def __init__(self, allow_special: bool, description: str | None):
        self.allow_special, self.description = allow_special, description
        self.rows: dict[str, tuple[str, Utterance | ChatMLSample]] = {}  # id -> place and row
        self.problems: list[Problem] = []
        self.count = 0

    def problem(self, kind: str, place: str, what: str) -> None:
        self.problems.append(Problem(kind, place, what))

    def line(self, line: str, place: str) -> None:
        try:
            row = parse_json(line, "row")
        except ValueError as error:
            self.count += 1
            return self.problem("wrong row", place, str(error))
        self.take(row, place)

    def take(self, row: Any, place: str) -> None:
        """A row, filed by its id; a conversation without one goes by its number."""
        self.count += 1
        try:
            if isinstance(row, dict) and "messages" in row:
                name = validate(str | None, row.pop("id", None), "row.id") or str(self.count)
                given = sample_from_json(row, self.allow_special, "row")
                check_spoken(given)
            else:
                given = validate(Utterance, row, "row")
                name = given.source if given.id is None else given.id
        except ValueError as error:
            return self.problem("wrong row", place, str(error))
        if name in self.rows:
            self.problem("duplicate id", place, f"{name!r} stands in {self.rows[name][0]} already")
        else:
            self.rows[name] = (place, given)

    def example(self, name: str) -> Example | None:
        place, given = self.rows[name]
        if isinstance(given, ChatMLSample):
            return _example(name, place, given)
        if not given.text:
            return self.problem("empty text", place, f"{name!r} has an empty text")
        try:
            return _example(name, place, self.utterance(given))
        except ValueError as error:
            return self.problem("wrong row", place, str(error))

    def utterance(self, given: Utterance) -> ChatMLSample:
        """The conversation that ends in the utterance, which alone is trained on."""
        text = check_text(given.text)
        form = given.form or ("smart_voice" if given.reference is None else "voice_clone")
        if form not in FORMS:
            raise ValueError(f"row.form: expected one of {', '.join(FORMS)}, got {form!r}")
        if FORMS[form] != (given.reference is not None):
            raise ValueError(f"row.form: {form} {'needs a' if FORMS[form] else 'takes no'} reference")
        if FORMS[form] and given.description:
            raise ValueError(f"row.description: {form} has a reference in place of a description")
        if form == "smart_voice":
            asked = smart_voice(text, given.scene, given.description or self.description)
        else:
            _, other = self.rows.get(given.reference, ("", None))
            if not isinstance(other, Utterance) or not other.text or other is given:
                raise ValueError(f"row.reference: no other utterance {given.reference!r} in this file")
            reference = AudioContent(other.source)
            if form == "voice_clone":
                asked = voice_clone(text, other.text, reference, given.scene)
            else:
                asked = voices_in_system(text, [reference], given.scene)
        answer = Message("assistant", AudioContent(given.source))
        return ChatMLSample([*asked.messages, answer], len(asked.messages), given.speaker)


def _example(name: str, place: str, sample: ChatMLSample) -> Example:
    return Example(name, place, sample, tuple(audio.name for audio in sample.audios))


def check_spoken(sample: ChatMLSample) -> None:
    """Raises ValueError for a conversation that teaches nothing, or whose audio has no name."""
    trained = [m for m in sample.messages[sample.start_index :] if m.role == "assistant"]
    parts = [part for message in trained for part in message.parts]
    if not any(isinstance(p, AudioContent) or (isinstance(p, TextContent) and p.text) for p in parts):
        raise ValueError("row.messages: no assistant's message with content from start_index on")
    if any(audio.raw_audio is not None or not audio.here for audio in sample.audios):
        raise ValueError("row.messages: audio to train on is a file, or the name of codes, as audio_url")


def read_manifest(path: str | Path, allow_special: bool = False, description: str | None = None) -> Manifest:
    """JSON Lines, or a `.json` with a list of rows -> what they ask for, in order, and what is wrong with the others.

    `description` asks for the voice of utterances that have neither one of their own nor a reference. Files and codes
    are not looked at yet. Raises ValueError for a `.json` that is none.
    """
    path, reader = Path(path), _Reader(allow_special, description)
    if path.suffix == ".json":
        whole = parse_json(read_text(path), str(path))
        for index, row in enumerate(whole if isinstance(whole, list) else [whole]):
            reader.take(row, f"{path}[{index}]")
    else:
        for place, line in read_lines(path):
            reader.line(line, place)
    examples = tuple(example for name in reader.rows if (example := reader.example(name)))
    return Manifest(path, reader.count, examples, tuple(reader.problems))


def encode_audio(
    manifest: Manifest,
    folder: str | Path,
    encode: Callable[[Tensor], Tensor],
    codec: str,
    sample_rate: int = 24_000,
    max_seconds: float = 60.0,
) -> tuple[Manifest, CodesReader]:
    """-> the examples that can be used, with the keys of their codes, and these codes.

    `encode` makes codes [K, T] of a waveform [L] at `sample_rate`; `codec` is the fingerprint of its checkpoint. Codes
    are kept in `folder`, those of each codec apart, under a hash of all that they depend on: a file that has changed is
    encoded again, one that has not is left alone. Audio that is missing, unreadable, refused by `encode` or longer than
    `max_seconds` is a problem of each row that needs it. Raises DataError when no example is left.
    """
    folder, audios = Path(folder) / codec[:16], manifest.path.parent
    keys: dict[AudioContent, str] = {}
    faults: dict[AudioContent, tuple[str, str]] = {}
    wanted = dict.fromkeys(audio for example in manifest.examples for audio in example.sample.audios)
    with CodesWriter(folder, SHARD_BYTES) as writer:
        for audio in tqdm(wanted, unit="clip", desc="encode", disable=None):
            try:
                keys[audio] = key = _key(audio, audios, codec)
                waveform = audio.load(sample_rate, audios)
                if (seconds := len(waveform) / sample_rate) > max_seconds:
                    raise ValueError(f"{seconds:.1f} s, at most {max_seconds:g} s: cut it at pauses")
                if key not in writer:
                    codes = encode(waveform)
                    if _key(audio, audios, codec) != key:
                        raise ValueError("the file changed while it was read")
                    writer.add(key, codes)
            except FileNotFoundError as error:
                faults[audio] = ("missing audio", str(error))
            except (OSError, ValueError) as error:
                faults[audio] = ("unusable audio", f"{audio.name}: {error}")
    found = manifest.without(
        Problem(kind, example.place, what)
        for example in manifest.examples
        for kind, what in dict.fromkeys(faults[a] for a in example.sample.audios if a in faults)
    )
    if not found.examples:
        raise DataError(found)
    named = [replace(e, keys=tuple(keys[a] for a in e.sample.audios)) for e in found.examples]
    return replace(found, examples=tuple(named)), CodesReader(folder)


def _key(audio: AudioContent, folder: Path, codec: str) -> str:
    """SHA-256 over all that codes depend on: the bytes of the file, the stretch of it, and the codec."""
    with (folder / audio.audio_url).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(repr((audio.offset or 0.0, audio.duration, codec)).encode())
    return digest.hexdigest()
