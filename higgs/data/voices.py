"""Voices: a folder of reference recordings and descriptions.

`NAME.flac` (or `.wav`) with its transcript in `NAME.txt` is a voice to imitate. `profiles.json` maps names to
descriptions ("feminine"), for voices that the model knows by their description.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from higgs.data.chatml import AudioContent, ChatMLSample, smart_voice, voice_clone

AUDIO_SUFFIXES = (".flac", ".wav")


@dataclass(frozen=True)
class Voice:
    """A name, and either a recording with its transcript or a description."""

    name: str
    audio: Path | None = None
    transcript: str | None = None
    description: str | None = None

    def prompt(self, text: str, scene: str | None = None) -> ChatMLSample:
        """A conversation that ends in `text`, to be spoken in this voice."""
        if self.audio is not None:
            return voice_clone(text, self.transcript, AudioContent(str(self.audio)), scene)
        return smart_voice(text, scene, self.description)


def list_voices(folder: str | Path) -> dict[str, Voice]:
    """-> every voice of the folder by name, sorted. Raises ValueError for a recording without its transcript."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"voice folder {folder} does not exist")
    voices = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix in AUDIO_SUFFIXES):
        transcript = path.with_suffix(".txt")
        if not transcript.is_file():
            raise ValueError(f"voice {path.stem}: the transcript {transcript} is missing")
        voices[path.stem] = Voice(path.stem, path, transcript.read_text(encoding="utf-8").strip())
    profiles = folder / "profiles.json"
    if profiles.is_file():
        for name, description in json.loads(profiles.read_text(encoding="utf-8")).items():
            voices[name] = Voice(name, description=description)
    return dict(sorted(voices.items()))


def find_voice(folder: str | Path, name: str) -> Voice:
    """Raises ValueError that lists the voices when there is none of that name."""
    voices = list_voices(folder)
    if name not in voices:
        raise ValueError(f"no voice {name!r} in {folder}; there are: {', '.join(voices) or 'none'}")
    return voices[name]
