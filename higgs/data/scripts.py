"""Scripts to speak: JSON Lines, each row one request in one of the prompt forms.

{"id": "a", "form": "smart_voice", "voice": "ada", "text": "Hello.", "scene": "A quiet room."}
{"id": "b", "form": "voice_clone", "voice": "cleo", "text": "Hello."}
{"id": "c", "form": "dialogue", "speakers": {"0": "feminine", "1": "masculine"},
     "lines": [[0, "Hi."], [1, "Hello."]]}
{"id": "d", "form": "long_form", "voice": "ada", "text": "...", "chunks": {"max_words": 14}}

A dialogue has `voices` (names) or `speakers` (descriptions). It is spoken in one go, or chunk by chunk where it has
`chunks`, whose keys are those of `ChunkOptions`. `max_new_tokens` takes the place of the general one. An id is part of
file names: letters, figures, "-", "_" and ".". Rows of a public test set, as `higgs.evaluate.sets` writes them, have a
`reference` with its `reference_text` in place of form and voice.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from higgs.data.chatml import ChatMLSample, tagged
from higgs.data.chunks import Chunk, ChunkOptions, chunk_text, chunk_turns, speaker_turns
from higgs.data.speakable import check_text
from higgs.data.strict_json import fields_of, parse_json
from higgs.data.voices import NAME, Voice, cast_prompt, find_voice, speaker_prompt
from higgs.files import read_lines
from higgs.params import from_section

# Key -> (type, whether it may be absent or null).
EVERY = {"id": (str, False), "form": (str, False), "scene": (str, True), "max_new_tokens": (int, True)}  # fmt: skip
ONE_VOICE = EVERY | {"voice": (str, False), "text": (str, False)}
CHUNKED = {"chunks": (dict, True)}
FORMS = {
    "smart_voice": ONE_VOICE,
    "voice_clone": ONE_VOICE,
    "dialogue": EVERY | CHUNKED | {"speakers": (dict, True), "voices": (dict, True), "lines": (list, False)},
    "long_form": ONE_VOICE | CHUNKED,
}  # fmt: skip
# What is used of a row of a test set; it has more, which `higgs.evaluate.sets.read_set` checks.
OF_A_SET = {key: (str, False) for key in ("id", "text", "language", "speaker", "reference", "reference_text")} | {
    "path": (str, True)
}  # fmt: skip


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
        raise FileNotFoundError(
            f"there is no set {name!r}; there are: {known}; or name a .jsonl file"
        )
    return path


def some_of(ids: Iterable[str], count: int | None) -> set[str]:
    """`count` of the ids (None: all), chosen by their hashes: another order or one more script changes little."""

    def by_hash(name: str) -> bytes:
        return hashlib.sha256(name.encode()).digest()

    return set(sorted(set(ids), key=by_hash)[:count])


def read_scripts(path: str | Path, voices: str | Path) -> list[Script]:
    """-> the scripts in order. Raises ValueError naming the line and what is wrong in it, or that there is none."""
    scripts: dict[str, Script] = {}
    for where, line in read_lines(path):
        row = parse_json(line, where)
        try:
            of_a_set = isinstance(row, dict) and "form" not in row and set(OF_A_SET) <= set(row)
            script = _set_script(row, Path(path)) if of_a_set else _script(row, voices)
            if script.id in scripts:
                raise ValueError(f"the id {script.id!r} stands twice")
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        scripts[script.id] = script
    if not scripts:
        raise ValueError(f"{path}: no script in it")
    return list(scripts.values())


def _script(content: Any, voices: str | Path) -> Script:
    form = content.get("form") if isinstance(content, dict) else None
    if not isinstance(form, str) or form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r} in {content!r:.60}")
    row = fields_of(content, FORMS[form], form)
    if not NAME.fullmatch(row["id"]):
        raise ValueError(f"{row['id']!r} is no id: letters, figures, '-', '_' and '.', and no path")
    if row.get("max_new_tokens", 1) < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {row['max_new_tokens']}")
    options = reference = None
    if "chunks" in row or form == "long_form":
        options = from_section(ChunkOptions, row.get("chunks", {}))
    if form == "dialogue":
        lines = [_line(entry) for entry in row["lines"]]
        cast, voice = _cast(row, voices)
        form_of = speaker_prompt if options and options.alone else cast_prompt
        prompt = partial(form_of, cast, scene=row.get("scene"))
        text, whole = " ".join(said for _, said in lines), tagged(lines, cast)
        chunks = chunk_turns(lines, options) if options else []
    else:
        found = find_voice(voices, row["voice"])
        if form != "long_form" and (form == "voice_clone") != (found.audio is not None):
            raise ValueError(f"{form} does not go with the voice {found.name!r}")
        example = Path(voices) / "profiles" / f"{found.name}.flac"
        reference = found.audio or (example if example.is_file() else None)
        voice, prompt = found.name, partial(found.prompt, scene=row.get("scene"))
        text = whole = row["text"]
        if speaker_turns(text):
            raise ValueError(f"{form} has one voice; for [SPEAKERn] tags take the form dialogue")
        chunks = chunk_text(text, options.max_words) if options else []
    return Script(
        row["id"], form, voice, text, prompt(chunks[0].text if chunks else whole),
        row.get("max_new_tokens"), tuple(chunks), options, prompt, reference=reference,
    )  # fmt: skip


def _set_script(content: dict, manifest: Path) -> Script:
    """A row of a test set's manifest, whose paths are relative to the folder above the manifest's own."""
    above = manifest.resolve().parent.parent
    row = fields_of({key: content[key] for key in OF_A_SET}, OF_A_SET, "a row of a test set")
    check_text(row["text"])
    reference = above / row["reference"]
    recording = above / row["path"] if row.get("path") else None
    voice = Voice(row["speaker"], reference, row["reference_text"])
    return Script(
        row["id"], "voice_clone", voice.name, row["text"], voice.prompt(row["text"]), None, (), None, voice.prompt,
        row["language"], reference, recording,
    )  # fmt: skip


def _line(entry: Any) -> tuple[int, str]:
    """One line of a dialogue: who, and what."""
    match entry:
        case [int(number), str(text)] if number >= 0 and not isinstance(number, bool):
            if speaker_turns(f"[SPEAKER{number}] {check_text(text)}") != [(number, text.strip())]:
                raise ValueError(f"a line is one speaker's, without tags, got {text!r:.60}")
            return number, text
    raise ValueError(f"lines: expected [number, text], got {entry!r:.60}")


def _cast(row: dict, voices: str | Path) -> tuple[dict[int, Voice], str]:
    """The speakers of a dialogue, and the names of their voices where they have names."""
    if ("speakers" in row) == ("voices" in row):
        raise ValueError("a dialogue has speakers (descriptions) or voices (names), one of them")
    given = row.get("speakers", row.get("voices"))
    for number, what in given.items():
        if not number.isdecimal() or not isinstance(what, str):
            raise ValueError(f'speakers: expected "0": "...", got {number!r}: {what!r:.60}')
    if "speakers" in row:
        return {int(n): Voice(f"SPEAKER{n}", description=text) for n, text in given.items()}, ""
    cast = {int(number): find_voice(voices, name) for number, name in given.items()}
    return cast, " ".join(cast[number].name for number in sorted(cast))
