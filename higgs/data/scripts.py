"""Scripts to speak: JSON Lines, each row one request in one of the prompt forms.

{"id": "a", "form": "smart_voice", "voice": "ada", "text": "Hello.", "scene": "A quiet room."}
{"id": "b", "form": "voice_clone", "voice": "cleo", "text": "Hello."}
{"id": "c", "form": "dialogue", "speakers": {"0": "feminine", "1": "masculine"},
     "lines": [[0, "Hi."], [1, "Hello."]]}
{"id": "d", "form": "long_form", "voice": "ada", "text": "...", "chunks": {"max_words": 14}}

A dialogue has `voices` (names) or `speakers` (descriptions). It is spoken in one go, or chunk by chunk where it has
`chunks`, whose keys are those of `ChunkOptions`. `max_new_tokens` takes the place of the general one.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from higgs.data.chatml import ChatMLSample, tagged
from higgs.data.chunks import Chunk, ChunkOptions, chunk_text, chunk_turns
from higgs.data.speakable import check_text
from higgs.data.voices import Voice, cast_prompt, find_voice, speaker_prompt
from higgs.params import from_section

FORMS = {
    "smart_voice": {"id", "form", "voice", "text"},
    "voice_clone": {"id", "form", "voice", "text"},
    "dialogue": {"id", "form", "speakers", "lines"},
    "long_form": {"id", "form", "voice", "text"},
}
OPTIONAL = {"scene", "max_new_tokens"}
IN_CHUNKS = ("dialogue", "long_form")


@dataclass(frozen=True)
class Script:
    """One request: its conversation, and the words that should be heard.

    `prompt` makes a conversation of a text. Where the script is spoken chunk by chunk, `chunks` are its pieces, and
    `sample` is the conversation of the first.
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
        }


def read_scripts(path: str | Path, voices: str | Path) -> list[Script]:
    """-> the scripts in order. Raises ValueError naming the line of a wrong key, form, voice or id."""
    scripts: list[Script] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON: {error}") from error
        form = row.get("form")
        if form not in FORMS:
            raise ValueError(f"{where}: form must be one of {', '.join(FORMS)}, got {form!r}")
        wanted = FORMS[form]
        if form == "dialogue" and "voices" in row:
            wanted = wanted - {"speakers"} | {"voices"}
        allowed = OPTIONAL | ({"chunks"} if form in IN_CHUNKS else set())
        if wrong := (set(row) - allowed) ^ wanted:
            raise ValueError(f"{where}: {form} takes {sorted(wanted)}; see {sorted(wrong)}")
        if any(row["id"] == script.id for script in scripts):
            raise ValueError(f"{where}: the id {row['id']!r} stands twice")
        try:
            scripts.append(_script(row, voices))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: {error}") from error
    return scripts


def _script(row: dict, voices: str | Path) -> Script:
    form = row["form"]
    options = None
    if "chunks" in row or form == "long_form":
        options = from_section(ChunkOptions, row.get("chunks", {}))
    if form == "dialogue":
        lines = [(int(number), check_text(text)) for number, text in row["lines"]]
        cast, voice = _cast(row, voices)
        form_of = speaker_prompt if options and options.alone else cast_prompt
        prompt = partial(form_of, cast, scene=row.get("scene"))
        text, whole = " ".join(said for _, said in lines), tagged(lines, cast)
        chunks = chunk_turns(lines, options) if options else []
    else:
        found = find_voice(voices, row["voice"])
        if form != "long_form" and (form == "voice_clone") != (found.audio is not None):
            raise ValueError(f"{form} does not go with the voice {found.name!r}")
        voice, prompt = found.name, partial(found.prompt, scene=row.get("scene"))
        text = whole = row["text"]
        chunks = chunk_text(text, options.max_words) if options else []
    return Script(
        row["id"], form, voice, text, prompt(chunks[0].text if chunks else whole),
        row.get("max_new_tokens"), tuple(chunks), options, prompt,
    )  # fmt: skip


def _cast(row: dict, voices: str | Path) -> tuple[dict[int, Voice], str]:
    """The speakers of a dialogue, and the names of their voices where they have names."""
    if "speakers" in row:
        described = {int(number): text for number, text in row["speakers"].items()}
        return {n: Voice(f"SPEAKER{n}", description=text) for n, text in described.items()}, ""
    cast = {int(number): find_voice(voices, name) for number, name in row["voices"].items()}
    return cast, " ".join(cast[number].name for number in sorted(cast))
