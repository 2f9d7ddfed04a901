"""Scripts: JSON Lines, each record one request in one of the prompt forms.

{"id": "a", "form": "smart_voice", "voice": "ada", "text": "Hello.", "scene": "A quiet room."}
{"id": "b", "form": "voice_clone", "voice": "cleo", "text": "Hello."}
{"id": "c", "form": "dialogue", "speakers": {"0": "feminine", "1": "masculine"},
     "lines": [[0, "Hi."], [1, "Hello."]]}
{"id": "d", "form": "long_form", "voice": "ada", "text": "...", "chunks": {"max_words": 14}}

A dialogue has `voices` (names) or `speakers` (descriptions). It is generated in a single pass, or chunk by chunk with
`chunks`, whose keys are those of `ChunkOptions`. `max_new_tokens` overrides the general setting. An id is part of file
names: letters, digits, "-", "_" and ".". Records of a public test set, written by `higgs.evaluate.test_sets`, have a
`reference` with its `reference_text` in place of form and voice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, Strict, model_validator

from higgs.data.chatml import ChatMLSample, tagged
from higgs.data.text.checks import check_text
from higgs.data.text.chunks import Chunk, ChunkOptions, chunk_text, chunk_turns, speaker_turns
from higgs.data.voices import NAME, Voice, dialogue_prompt, find_voice, speaker_prompt
from higgs.files import read_lines
from higgs.validation import Count, Positive, Record, parse_json, validate


def _line(line: tuple[int, str]) -> tuple[int, str]:
    number, text = line
    if speaker_turns(f"[SPEAKER{number}] {check_text(text)}") != [(number, text.strip())]:
        raise ValueError(f"a line is of one speaker, without tags, got {text!r:.60}")
    return line


# A line of a dialogue: speaker and text. JSON has lists where Python has tuples.
Line = Annotated[tuple[Count, str], Strict(False), AfterValidator(_line)]
Speakers = dict[Annotated[str, Field(pattern=r"^[0-9]+$")], str]


class Request(Record):
    """The fields of every form."""

    id: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    form: str
    scene: str | None = None
    max_new_tokens: Positive | None = None


class OneVoice(Request):
    voice: str
    text: str


class LongForm(OneVoice):
    chunks: ChunkOptions | None = None


class Dialogue(Request):
    lines: list[Line]
    speakers: Speakers | None = None
    voices: Speakers | None = None
    chunks: ChunkOptions | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "Dialogue":
        if (self.speakers is None) == (self.voices is None):
            raise ValueError("give either speakers (descriptions) or voices (names)")
        return self


FORMS = {"smart_voice": OneVoice, "voice_clone": OneVoice, "dialogue": Dialogue, "long_form": LongForm}  # fmt: skip


class SetRecord(Record):
    """A record of a public test set. Paths are relative to the parent of the manifest's folder."""

    id: str
    path: str | None
    text: str
    language: str
    speaker: str
    seconds: float | None
    sha256: str | None
    reference: str
    reference_text: str
    reference_sha256: str


@dataclass(frozen=True)
class Script:
    """One request: its conversation and its reference text.

    `prompt` builds the conversation for a text. For a script in `chunks`, `sample` is the conversation of the first.
    `reference` is a recording of the voice, `recording` one of a person saying the text, if there is one.
    """

    id: str
    form: str
    voice: str
    text: str
    sample: ChatMLSample
    max_new_tokens: int | None
    chunks: tuple[Chunk, ...]
    options: ChunkOptions | None
    prompt: Callable[[str], ChatMLSample]
    language: str = "en"
    reference: Path | None = None
    recording: Path | None = None

    def row(self, seed: int) -> dict[str, str | int]:
        """The columns of this request in a table; `name` distinguishes the seeds of one script."""
        name = f"{self.id}-s{seed}"
        return {
            "name": name,
            "script": self.id,
            "form": self.form,
            "voice": self.voice,
            "seed": seed,
            "text": self.text,
            "language": self.language,
            "reference": str(self.reference) if self.reference else "",
            "recording": str(self.recording) if self.recording else "",
        }


def script_file(name: str, folder: str | Path = "data/scripts") -> Path:
    """The name of a set, or a path -> the path. Raises FileNotFoundError that lists the sets."""
    path = Path(name) if name.endswith(".jsonl") else Path(folder) / f"{name}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(entry.stem for entry in Path(folder).glob("*.jsonl")))
        raise FileNotFoundError(f"there is no set {name!r}; there are: {known}; or name a .jsonl file")
    return path


def read_scripts(path: str | Path, voices: str | Path, chunking: ChunkOptions | None = None) -> list[Script]:
    """-> the scripts in order. `chunking` are the defaults of their `chunks`: the checkpoint's.

    Raises ValueError naming the line and its fault, and for a file without scripts.
    """
    scripts: dict[str, Script] = {}
    for where, line in read_lines(path):
        record = parse_json(line, where)
        try:
            if isinstance(record, dict) and "form" not in record and "reference" in record:
                script = _set_script(validate(SetRecord, record, "a test set's record"), Path(path))
            else:
                script = _script(record, voices, chunking or ChunkOptions())
            if script.id in scripts:
                raise ValueError(f"duplicate id {script.id!r}")
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
    record = validate(FORMS[form], content, form)
    options, reference = getattr(record, "chunks", None), None
    if options or form == "long_form":
        overrides = options.model_dump(exclude_unset=True) if options else {}
        options = validate(ChunkOptions, dict(chunking) | overrides, "chunks")
    if form == "dialogue":
        speakers, voice = _speakers(record, voices)
        form_of = speaker_prompt if options and options.per_speaker_context else dialogue_prompt
        prompt = partial(form_of, speakers, scene=record.scene)
        text, whole = " ".join(line for _, line in record.lines), tagged(record.lines, speakers)
        chunks = chunk_turns(record.lines, options) if options else []
    else:
        selected = find_voice(voices, record.voice)
        if form != "long_form" and (form == "voice_clone") != (selected.audio is not None):
            raise ValueError(f"{form} does not go with the voice {selected.name!r}")
        example = Path(voices) / "profiles" / f"{selected.name}.flac"
        reference = selected.audio or (example if example.is_file() else None)
        voice, prompt = selected.name, partial(selected.prompt, scene=record.scene)
        text = whole = record.text
        if speaker_turns(text):
            raise ValueError(f"{form} has one voice; for [SPEAKERn] tags use the form dialogue")
        chunks = chunk_text(text, options.max_words) if options else []
    return Script(
        record.id, form, voice, text, prompt(chunks[0].text if chunks else whole),
        record.max_new_tokens, tuple(chunks), options, prompt, reference=reference,
    )  # fmt: skip


def _set_script(record: SetRecord, manifest: Path) -> Script:
    above = manifest.resolve().parent.parent
    check_text(record.text)
    reference, recording = above / record.reference, above / record.path if record.path else None
    voice = Voice(record.speaker, reference, record.reference_text)
    return Script(
        record.id, "voice_clone", voice.name, record.text, voice.prompt(record.text), None, (), None, voice.prompt,
        record.language, reference, recording,
    )  # fmt: skip


def _speakers(record: Dialogue, voices: str | Path) -> tuple[dict[int, Voice], str]:
    """The speakers of a dialogue, and the names of their voices, if they have names."""
    if record.speakers is not None:
        return {int(n): Voice(f"SPEAKER{n}", description=text) for n, text in record.speakers.items()}, ""
    speakers = {int(number): find_voice(voices, name) for number, name in record.voices.items()}
    return speakers, " ".join(speakers[number].name for number in sorted(speakers))
