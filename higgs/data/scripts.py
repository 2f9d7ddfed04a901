"""Scripts to speak: JSON Lines, each row one request in one of the prompt forms.

{"id": "a", "form": "smart_voice", "voice": "ada", "text": "Hello.", "scene": "A quiet room."}
{"id": "b", "form": "voice_clone", "voice": "cleo", "text": "Hello."}
{"id": "c", "form": "dialogue", "speakers": {"0": "feminine", "1": "masculine"},
     "lines": [[0, "Hi."], [1, "Hello."]]}
{"id": "d", "form": "long_form", "voice": "ada", "text": "...", "chunks": {"max_words": 14}}

A dialogue has `voices` (names) or `speakers` (descriptions). It is spoken in one go, or chunk by chunk where it has
`chunks`, whose keys are those of `ChunkOptions`. `max_new_tokens` takes the place of the general one. An id is part of
file names: letters, figures, "-", "_" and ".". Rows of a public test set, as `higgs.evaluate.test_sets` writes them,
have a `reference` with its `reference_text` in place of form and voice.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, Strict, model_validator

from higgs.data.chatml import ChatMLSample, tagged
from higgs.data.text.checks import check_text
from higgs.data.text.chunks import Chunk, ChunkOptions, chunk_text, chunk_turns, speaker_turns
from higgs.data.voices import NAME, Voice, cast_prompt, find_voice, speaker_prompt
from higgs.files import read_lines
from higgs.validation import Count, Positive, Record, parse_json, validate


def _line(line: tuple[int, str]) -> tuple[int, str]:
    number, text = line
    if speaker_turns(f"[SPEAKER{number}] {check_text(text)}") != [(number, text.strip())]:
        raise ValueError(f"a line is one speaker's, without tags, got {text!r:.60}")
    return line


# One line of a dialogue: who, and what. JSON has lists where Python has tuples.
Line = Annotated[tuple[Count, str], Strict(False), AfterValidator(_line)]
Cast = dict[Annotated[str, Field(pattern=r"^[0-9]+$")], str]


class Row(Record):
    """What every form has."""

    id: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    form: str
    scene: str | None = None
    max_new_tokens: Positive | None = None


class OneVoice(Row):
    voice: str
    text: str


class LongForm(OneVoice):
    chunks: ChunkOptions | None = None


class Dialogue(Row):
    lines: list[Line]
    speakers: Cast | None = None
    voices: Cast | None = None
    chunks: ChunkOptions | None = None

    @model_validator(mode="after")
    def _one_cast(self) -> "Dialogue":
        if (self.speakers is None) == (self.voices is None):
            raise ValueError("give either speakers (descriptions) or voices (names)")
        return self


FORMS = {"smart_voice": OneVoice, "voice_clone": OneVoice, "dialogue": Dialogue, "long_form": LongForm}  # fmt: skip


class SetRow(Record):
    """A row of a public test set. Paths are relative to the folder above the manifest's own."""

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
    """One request: its conversation, and the words that should be heard.

    `prompt` makes a conversation of a text. Where the script is spoken chunk by chunk, `chunks` are its pieces, and
    `sample` is the conversation of the first. `reference` is a recording of the voice that is to speak, `recording` a
    person saying the text; None where there is none.
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
        """What a table says of this request; `name` tells apart the seeds of one script."""
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
    """The name of a set, or a file -> the file. Raises FileNotFoundError that lists the sets."""
    path = Path(name) if name.endswith(".jsonl") else Path(folder) / f"{name}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(entry.stem for entry in Path(folder).glob("*.jsonl")))
        raise FileNotFoundError(f"there is no set {name!r}; there are: {known}; or name a .jsonl file")
    return path


def read_scripts(path: str | Path, voices: str | Path, chunking: ChunkOptions | None = None) -> list[Script]:
    """-> the scripts in order. `chunking` is what they leave open of their `chunks`: the checkpoint's.

    Raises ValueError naming the line and what is wrong in it, or that there is none.
    """
    scripts: dict[str, Script] = {}
    for where, line in read_lines(path):
        row = parse_json(line, where)
        try:
            if isinstance(row, dict) and "form" not in row and "reference" in row:
                script = _set_script(validate(SetRow, row, "a row of a test set"), Path(path))
            else:
                script = _script(row, voices, chunking or ChunkOptions())
            if script.id in scripts:
                raise ValueError(f"the id {script.id!r} stands twice")
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
    row = validate(FORMS[form], content, form)
    options, reference = getattr(row, "chunks", None), None
    if options or form == "long_form":
        said = options.model_dump(exclude_unset=True) if options else {}
        options = validate(ChunkOptions, dict(chunking) | said, "chunks")
    if form == "dialogue":
        cast, voice = _cast(row, voices)
        form_of = speaker_prompt if options and options.per_speaker_context else cast_prompt
        prompt = partial(form_of, cast, scene=row.scene)
        text, whole = " ".join(said for _, said in row.lines), tagged(row.lines, cast)
        chunks = chunk_turns(row.lines, options) if options else []
    else:
        found = find_voice(voices, row.voice)
        if form != "long_form" and (form == "voice_clone") != (found.audio is not None):
            raise ValueError(f"{form} does not go with the voice {found.name!r}")
        example = Path(voices) / "profiles" / f"{found.name}.flac"
        reference = found.audio or (example if example.is_file() else None)
        voice, prompt = found.name, partial(found.prompt, scene=row.scene)
        text = whole = row.text
        if speaker_turns(text):
            raise ValueError(f"{form} has one voice; for [SPEAKERn] tags take the form dialogue")
        chunks = chunk_text(text, options.max_words) if options else []
    return Script(
        row.id, form, voice, text, prompt(chunks[0].text if chunks else whole),
        row.max_new_tokens, tuple(chunks), options, prompt, reference=reference,
    )  # fmt: skip


def _set_script(row: SetRow, manifest: Path) -> Script:
    above = manifest.resolve().parent.parent
    check_text(row.text)
    reference, recording = above / row.reference, above / row.path if row.path else None
    voice = Voice(row.speaker, reference, row.reference_text)
    return Script(
        row.id, "voice_clone", voice.name, row.text, voice.prompt(row.text), None, (), None, voice.prompt,
        row.language, reference, recording,
    )  # fmt: skip


def _cast(row: Dialogue, voices: str | Path) -> tuple[dict[int, Voice], str]:
    """The speakers of a dialogue, and the names of their voices where they have names."""
    if row.speakers is not None:
        described = row.speakers.items()
        return {int(n): Voice(f"SPEAKER{n}", description=text) for n, text in described}, ""
    cast = {int(number): find_voice(voices, name) for number, name in row.voices.items()}
    return cast, " ".join(cast[number].name for number in sorted(cast))


def subset_by_hash(ids: Iterable[str], count: int | None) -> set[str]:
    """`count` of the ids (None: all) by their hashes: their order does not matter, and one more changes little."""
    return set(sorted(set(ids), key=lambda name: hashlib.sha256(name.encode()).digest())[:count])
