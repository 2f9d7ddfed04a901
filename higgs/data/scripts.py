"""Scripts to speak: JSON Lines, each row one request in one of the prompt forms.

{"id": "a", "form": "smart_voice", "voice": "ada", "text": "Hello.", "scene": "A quiet room."}
{"id": "b", "form": "voice_clone", "voice": "cleo", "text": "Hello."}
{"id": "c", "form": "dialogue", "speakers": {"0": "feminine", "1": "masculine"},
     "lines": [[0, "Hi."], [1, "Hello."]]}
"""

import json
from dataclasses import dataclass
from pathlib import Path

from higgs.data.chatml import ChatMLSample, dialogue
from higgs.data.voices import find_voice

FORMS = {
    "smart_voice": {"id", "form", "voice", "text"},
    "voice_clone": {"id", "form", "voice", "text"},
    "dialogue": {"id", "form", "speakers", "lines"},
}


@dataclass(frozen=True)
class Script:
    """One request: its conversation, and the words that should be heard."""

    id: str
    form: str
    voice: str
    text: str
    sample: ChatMLSample

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
        row, where = json.loads(line), f"{path}, line {number}"
        form = row.get("form")
        if form not in FORMS:
            raise ValueError(f"{where}: form must be one of {', '.join(FORMS)}, got {form!r}")
        if wrong := (set(row) - {"scene"}) ^ FORMS[form]:
            raise ValueError(f"{where}: {form} takes {sorted(FORMS[form])}; see {sorted(wrong)}")
        if any(row["id"] == script.id for script in scripts):
            raise ValueError(f"{where}: the id {row['id']!r} stands twice")
        try:
            scripts.append(_script(row, voices))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return scripts


def _script(row: dict, voices: str | Path) -> Script:
    scene = row.get("scene")
    if row["form"] == "dialogue":
        lines = [(int(number), text) for number, text in row["lines"]]
        speakers = {int(number): described for number, described in row["speakers"].items()}
        sample = dialogue(lines, speakers, scene)
        return Script(row["id"], row["form"], "", " ".join(text for _, text in lines), sample)
    voice = find_voice(voices, row["voice"])
    if (row["form"] == "voice_clone") != (voice.audio is not None):
        raise ValueError(f"{row['form']} does not go with the voice {voice.name!r}")
    return Script(row["id"], row["form"], voice.name, row["text"], voice.prompt(row["text"], scene))
