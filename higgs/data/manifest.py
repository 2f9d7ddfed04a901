"""What to train on: rows in JSON, each an utterance or a whole conversation, and what is wrong with any of them.

    {"id": "a1", "text": "Good morning.", "audio": "a1.flac"}                    an utterance in a recording
    {"id": "a2", "text": "Good evening.", "codes": "a2", "description": "calm", "scene": "A quiet room."}
    {"id": "a3", "text": "Good night.", "audio": "a3.flac", "reference": "a1"}   in the voice of another row
    {"id": "a4", ..., "reference": "a1", "form": "voice_in_system"}              ... which the system message holds
    {"id": "c1", "messages": [...], "start_index": 2}                            a conversation, see chatml_json

Audio goes by its name: the file, from the manifest's folder, or whatever its codes are called. `speaker` is kept. Rows
that cannot be used are problems, each with its place and reason: nothing is dropped without a word.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from higgs.data.chatml_json import SAMPLE, sample_from_json
from higgs.data.codes import CodesWriter
from higgs.data.speakable import check_text
from higgs.data.strict_json import fields_of, parse_json
from higgs.files import read_lines, read_text

UTTERANCE: dict[str, tuple[type, bool]] = {
    "id": (str, True), "text": (str, False), "audio": (str, True), "codes": (str, True), "speaker": (str, True),
    "form": (str, True), "scene": (str, True), "description": (str, True), "reference": (str, True),
}  # fmt: skip
CONVERSATION = {"id": (str, True)} | SAMPLE
# Form -> whether it takes a reference.
FORMS = {"smart_voice": False, "voice_clone": True, "voice_in_system": True}


@dataclass(frozen=True)
class Problem:
    """Why a row cannot be used: a short `kind` to count by, and the whole story."""

    kind: str
    place: str
    what: str


@dataclass(frozen=True)
class Report:
    """How many rows there are, and what is wrong with those that cannot be used."""

    rows: int
    problems: tuple[Problem, ...] = ()

    @property
    def left_out(self) -> int:
        return len({problem.place for problem in self.problems})

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(problem.kind for problem in self.problems))

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
        lines = [f"  {p.place}: {p.what}" for p in self.problems]
        head = f"{self.left_out} of {self.rows} rows cannot be used"
        return "\n".join([f"{head}: {kinds}" if kinds else head, *lines])


@dataclass(frozen=True)
class Example:
    """One conversation to learn from. Its audios carry the names of their codes, and of their files."""

    id: str
    place: str
    sample: ChatMLSample

    @property
    def names(self) -> list[str]:
        return [audio.name for audio in self.sample.audios]


class _Reader:
    """Rows of one manifest, with their problems."""

    def __init__(self, allow_special: bool):
        self.allow_special = allow_special
        self.rows: dict[str, tuple[str, dict[str, Any]]] = {}  # id -> place and fields
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
        """A row -> its fields, filed by id; a conversation without one goes by its number."""
        self.count += 1
        try:
            talk = isinstance(row, dict) and "messages" in row
            given = fields_of(row, CONVERSATION if talk else UTTERANCE, "row")
            if not talk and ("audio" in given) == ("codes" in given):
                raise ValueError("row: give either audio or codes")
        except ValueError as error:
            return self.problem("wrong row", place, str(error))
        unnamed = str(self.count) if talk else given.get("audio", given.get("codes"))
        name = given.setdefault("id", unnamed)
        if name in self.rows:
            self.problem("duplicate id", place, f"{name!r} stands in {self.rows[name][0]} already")
        else:
            self.rows[name] = (place, given)

    def example(self, name: str) -> Example | None:
        place, given = self.rows[name]
        if "messages" not in given and not given["text"].strip():
            return self.problem("empty text", place, f"{name!r} has an empty text")
        try:
            if "messages" in given:
                row = {key: value for key, value in given.items() if key != "id"}
                sample = sample_from_json(row, self.allow_special, "row")
                check_spoken(sample)
            else:
                sample = self.utterance(given)
        except ValueError as error:
            return self.problem("wrong row", place, str(error))
        return Example(name, place, sample)

    def utterance(self, given: dict[str, Any]) -> ChatMLSample:
        """The conversation that ends in the utterance, which alone is trained on."""
        text, scene = check_text(given["text"]), given.get("scene")
        described = given.get("description")
        form = given.get("form", "voice_clone" if "reference" in given else "smart_voice")
        if form not in FORMS:
            raise ValueError(f"row.form: expected one of {', '.join(FORMS)}, got {form!r}")
        if FORMS[form] != ("reference" in given):
            raise ValueError(
                f"row.form: {form} {'needs a' if FORMS[form] else 'takes no'} reference"
            )
        if FORMS[form] and described:
            raise ValueError(f"row.description: {form} has a reference in place of a description")
        if form == "smart_voice":
            asked = smart_voice(text, scene, described)
        else:
            heard = self.rows.get(given["reference"], ("", {}))[1]
            if not heard.get("text", "").strip() or given["reference"] == given["id"]:
                raise ValueError(
                    f"row.reference: no other utterance {given['reference']!r} in this file"
                )
            reference = AudioContent(heard.get("audio", heard.get("codes")))
            if form == "voice_clone":
                asked = voice_clone(text, heard["text"], reference, scene)
            else:
                asked = voices_in_system(text, [reference], scene)
        answer = Message("assistant", AudioContent(given.get("audio", given.get("codes"))))
        return ChatMLSample([*asked.messages, answer], len(asked.messages), given.get("speaker"))


def check_spoken(sample: ChatMLSample) -> None:
    """Raises ValueError for a conversation that teaches nothing, or whose audio has no name."""
    trained = [m for m in sample.messages[sample.start_index :] if m.role == "assistant"]
    parts = [part for message in trained for part in message.parts]
    if not any(
        isinstance(p, AudioContent) or (isinstance(p, TextContent) and p.text) for p in parts
    ):
        raise ValueError("row.messages: no assistant's message with content from start_index on")
    if any(audio.raw_audio is not None or not audio.here for audio in sample.audios):
        raise ValueError(
            "row.messages: audio to train on is a file, or the name of codes, as audio_url"
        )


def read_manifest(path: str | Path, allow_special: bool = False) -> tuple[list[Example], Report]:
    """JSON Lines, or a `.json` with a list of rows -> what they ask for, in order, and what is wrong with the others.

    Files and codes are not looked at yet. Raises ValueError for a `.json` that is none.
    """
    reader = _Reader(allow_special)
    if Path(path).suffix == ".json":
        whole = parse_json(read_text(path), str(path))
        for index, row in enumerate(whole if isinstance(whole, list) else [whole]):
            reader.take(row, f"{path}[{index}]")
    else:
        for place, line in read_lines(path):
            reader.line(line, place)
    examples = [example for name in reader.rows if (example := reader.example(name))]
    return examples, Report(reader.count, tuple(reader.problems))


def encode_audio(
    examples: Iterable[Example],
    folder: str | Path,
    writer: CodesWriter,
    encode: Callable[[Tensor], Tensor],
    sample_rate: int = 24_000,
    max_seconds: float = 60.0,
) -> list[Problem]:
    """Writes the codes of every audio that has none yet; `encode` makes [K, T] of [L], and files are in `folder`.

    Returns the audios that have none afterwards: missing, unreadable, refused by `encode`, or too long.
    """
    wanted: dict[str, tuple[AudioContent, str]] = {}
    for example in examples:
        for audio in example.sample.audios:
            wanted.setdefault(audio.name, (audio, example.place))
    problems = []
    for name, (audio, place) in tqdm(wanted.items(), unit="clip", desc="encode", disable=None):
        if name in writer:
            continue
        try:
            waveform = audio.load(sample_rate, folder)
            if len(waveform) > max_seconds * sample_rate:
                seconds = len(waveform) / sample_rate
                what = f"{name}: {seconds:.1f} s, at most {max_seconds:g} s: cut it at pauses"
                problems.append(Problem("too long", place, what))
            else:
                writer.add(name, encode(waveform))
        except FileNotFoundError as error:
            problems.append(Problem("missing audio", place, str(error)))
        except ValueError as error:
            problems.append(Problem("unusable audio", place, f"{name}: {error}"))
    writer.flush()
    return problems
