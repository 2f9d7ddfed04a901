"""Scripts to speak: JSON Lines, each line one request in one of the prompt forms.

{"id": "a", "form": "smart_voice", "voice": "ada", "text": "Hello.", "scene": "A quiet room."}
{"id": "b", "form": "voice_clone", "voice": "cleo", "text": "Hello."}
{"id": "c", "form": "dialogue", "speakers": {"0": "feminine", "1": "masculine"},
     "lines": [[0, "Hi."], [1, "Hello."]]}
{"id": "d", "form": "long_form", "voice": "ada", "text": "...", "chunks": {"max_words": 14}}

A dialogue has `voices` (names) or `speakers` (descriptions), and is spoken in a single pass unless it has `chunks`
(`ChunkOptions`). `max_new_tokens` takes the place of the general one. `language` is the ISO 639 code of the text, "en"
if absent: a recogniser that does not know it does not score it. An id is part of file names. Lines of a public test set
(`higgs.evaluate.test_sets`) have a `reference` with its `reference_text` in place of form and voice.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, Strict, model_validator

from higgs.data.chatml import tagged
from higgs.data.recordings import Language, Recording, listed_file
from higgs.data.speech import SpeechRequest, speech_request
from higgs.data.text.chunks import ChunkOptions, speaker_turns
from higgs.data.voices import NAME, Voice, find_voice, recording_of
from higgs.files import read_lines
from higgs.validation import Count, Positive, Record, parse_json, validate


def _line(line: tuple[int, str]) -> tuple[int, str]:
    number, text = line
    if speaker_turns(f"[SPEAKER{number}] {text}") != [(number, text.strip())]:
        raise ValueError(f"a line is one speaker's, without tags, got {text!r:.60}")
    return line


# JSON has lists where Python has tuples.
Line = Annotated[tuple[Count, str], Strict(False), AfterValidator(_line)]
Id = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]


class ScriptRecord(Record):
    id: Id
    form: str
    language: Language = "en"
    scene: str | None = None
    max_new_tokens: Positive | None = None


class OneVoice(ScriptRecord):
    voice: str
    text: str


class LongForm(OneVoice):
    chunks: ChunkOptions | None = None


class Dialogue(ScriptRecord):
    lines: list[Line]
    speakers: dict[str, str] | None = None
    voices: dict[str, str] | None = None
    chunks: ChunkOptions | None = None

    @model_validator(mode="after")
    def _one_kind_of_speakers(self) -> "Dialogue":
        if (self.speakers is None) == (self.voices is None):
            raise ValueError("give either speakers (descriptions) or voices (names)")
        numbers = [*(self.speakers or self.voices or {})]
        if {*numbers} != set(map(str, range(len(numbers)))):
            raise ValueError(f"speakers are numbered 0, 1, ..., got {', '.join(numbers)}")
        for name in (self.voices or {}).values():  # tables have the names of all speakers with blanks between them
            if len(name.split()) != 1:
                raise ValueError(f"the name of a voice in a dialogue has no blanks, got {name!r}")
        return self


FORMS = {"smart_voice": OneVoice, "voice_clone": OneVoice, "dialogue": Dialogue, "long_form": LongForm}


class SetRecord(Recording):
    """A record of a public test set. Paths are relative to the folder above the manifest's own."""

    id: Id
    path: str | None
    seconds: float | None
    sha256: str | None
    reference: str
    reference_text: str
    reference_sha256: str


@dataclass(frozen=True)
class Script:
    id: str
    form: str
    voice: str
    text: str
    request: SpeechRequest
    language: str = "en"
    reference: Path | None = None  # a recording of the requested voice
    recording: Path | None = None  # a person saying the text

    def record(self, seed: int) -> dict[str, str | int]:
        """The record of this request in tables."""
        fields = {"name": f"{self.id}-s{seed}", "script": self.id, "form": self.form, "voice": self.voice, "seed": seed}
        paths = {"reference": str(self.reference or ""), "recording": str(self.recording or "")}
        return fields | {"text": self.text, "language": self.language} | paths


def script_file(name: str, folder: str | Path = "data/scripts") -> Path:
    """The name of a set, or a file -> the file. Raises FileNotFoundError that lists the sets."""
    path = Path(name) if name.endswith(".jsonl") else Path(folder) / f"{name}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(entry.stem for entry in Path(folder).glob("*.jsonl")))
        raise FileNotFoundError(f"there is no set {name!r}; there are: {known}; or name a .jsonl file")
    return path


def read_scripts(path: str | Path, voices: str | Path, chunking: ChunkOptions | None = None) -> list[Script]:
    """-> the scripts in order; `chunking` has the defaults of `chunks`. Raises ValueError naming the line and fault."""
    scripts: dict[str, Script] = {}
    for where, line in read_lines(path):
        content = parse_json(line, where)
        try:
            if isinstance(content, dict) and "form" not in content and "reference" in content:
                script = _set_script(validate(SetRecord, content, "a record of a test set"), Path(path))
            else:
                script = _script(content, voices, chunking or ChunkOptions())
            if script.id in scripts:
                raise ValueError(f"the id {script.id!r} is there twice")
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        scripts[script.id] = script
    if not scripts:
        raise ValueError(f"{path}: no script in it")
    return list(scripts.values())


def _script(content: Any, voices: str | Path, chunking: ChunkOptions) -> Script:
    form = content.get("form") if isinstance(content, dict) else None
    if not isinstance(form, str) or form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r} in {content!r:.60}")
    record, reference = validate(FORMS[form], content, form), None
    options = getattr(record, "chunks", None)
    chunked = form == "long_form" or options is not None
    if options:
        options = validate(ChunkOptions, dict(chunking) | options.model_dump(exclude_unset=True), "chunks")
    if form == "dialogue":
        if record.speakers is not None:
            voice, name = {int(n): Voice(f"SPEAKER{n}", description=who) for n, who in record.speakers.items()}, ""
        else:
            voice = {int(number): find_voice(voices, who) for number, who in record.voices.items()}
            name = " ".join(voice[number].name for number in sorted(voice))
        text, tagged_text = " ".join(line for _, line in record.lines), tagged(record.lines, voice)
    else:
        voice = find_voice(voices, record.voice)
        if form != "long_form" and (form == "voice_clone") != (voice.audio is not None):
            raise ValueError(f"{form} does not go with the voice {voice.name!r}")
        reference = recording_of(voices, voice)
        name, text, tagged_text = voice.name, record.text, record.text
    request = speech_request(
        tagged_text, voice, options or chunking, record.scene, chunked, max_new_tokens=record.max_new_tokens
    )
    return Script(record.id, form, name, text, request, record.language, reference)


def _set_script(record: SetRecord, manifest: Path) -> Script:
    where = f"the record {record.id!r}"
    reference = listed_file(manifest, record.reference, record.reference_sha256, where)
    recording = listed_file(manifest, record.path, record.sha256, where) if record.path else None
    voice = Voice(record.speaker, reference, record.reference_text)
    request = SpeechRequest((voice.prompt(record.text),))
    return Script(record.id, "voice_clone", voice.name, record.text, request, record.language, reference, recording)
