"""Voices: a folder of reference recordings and descriptions.

`NAME.flac` (or `.wav`) with its transcript in `NAME.txt` is a voice to clone. `profiles.json` maps names to
descriptions ("feminine") that the model was trained on; a recording may have one too.
"""

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from higgs.data.text.chunks import speaker_turns
from higgs.files import absent, as_utf8, read_text
from higgs.validation import parse_json, validate

if TYPE_CHECKING:  # torch takes a second to import, and a list of voices is wanted at once
    from higgs.data.chatml import AudioContent, ChatMLSample

AUDIO_SUFFIXES = (".flac", ".wav")
OTHER_SUFFIXES = (
    ".mp3", ".m4a", ".ogg", ".oga", ".opus", ".aac", ".aif", ".aiff", ".aifc", ".wma", ".amr", ".au", ".caf", ".mka",
    ".mp4", ".mov", ".w64", ".webm", ".3gp",
)  # fmt: skip
PROFILES = "profiles.json"


@dataclass(frozen=True)
class Voice:
    """A name, and a recording with its transcript, or a description, or both."""

    name: str
    audio: "Path | AudioContent | None" = None
    transcript: str | None = None
    description: str | None = None

    @property
    def reference(self) -> "AudioContent":
        """The recording, for a prompt."""
        from higgs.data.chatml import AudioContent

        return self.audio if isinstance(self.audio, AudioContent) else AudioContent(str(self.audio))

    def prompt(self, text: str, scene: str | None = None) -> "ChatMLSample":
        """A conversation that ends in `text`, in this voice. ValueError for `[SPEAKERn]` tags, which have no voice."""
        from higgs.data import chatml

        if "[" in text and speaker_turns(text):
            raise ValueError(f"[SPEAKERn] tags are for a dialogue, and {self.name!r} is one voice: speakers_prompt")
        if self.audio is not None:
            return chatml.voice_clone(text, self.transcript, self.reference, scene)
        return chatml.smart_voice(text, scene, self.description)


def read_voices(folder: str | Path) -> tuple[dict[str, Voice], dict[str, str]]:
    """-> the voices of the folder by name, sorted, and what is wrong with others (no transcript, two recordings)."""
    folder = Path(folder)
    if not folder.is_dir():
        raise absent("voice folder", folder, "name one with --voices, or fetch data/voices by `dvc pull data.dvc`")
    voices: dict[str, Voice] = {}
    faults: dict[str, str] = {}
    try:
        descriptions = profiles(folder)
    except (ValueError, OSError) as error:
        descriptions, faults[PROFILES] = {}, str(error)
    files: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.iterdir() if path.name[0] != "."):
        files.setdefault(unicodedata.normalize("NFC", path.stem), []).append(path)
    for name, paths in files.items():
        if name != (escaped := as_utf8(name)):
            faults[escaped] = "the name of its file is not in UTF-8: give it another"
            continue
        recordings = [path for path in paths if path.suffix.lower() in AUDIO_SUFFIXES]
        transcripts = [path for path in paths if path.suffix.lower() == ".txt"]
        if not recordings:
            # Beside a transcript, whatever else has its name is meant as the recording.
            others = [path for path in paths if path not in transcripts and path.name != PROFILES]
            if unread := [path for path in others if transcripts or path.suffix.lower() in OTHER_SUFFIXES]:
                faults[name] = f"{unread[0]}: convert it to .flac or .wav"
            continue
        description = descriptions.pop(name, None)
        if len(recordings) > 1:
            faults[name] = f"{recordings[0]} and {recordings[1]}; keep one of them"
            continue
        missing = f"the transcript {recordings[0].with_suffix('.txt')} is missing: the text that is spoken in it"
        try:
            if not (words := read_text(transcripts[0]).strip() if transcripts else ""):
                raise ValueError(missing)
            voices[name] = Voice(name, recordings[0], words, description)
        except (ValueError, OSError) as error:
            faults[name] = str(error)
    voices |= {name: Voice(name, description=text) for name, text in descriptions.items() if name not in faults}
    return dict(sorted(voices.items())), faults


def find_voice(folder: str | Path, name: str) -> Voice:
    """Raises ValueError that says what is wrong with the voice, or lists the voices for an unknown name."""
    (voices, faults), name = read_voices(folder), unicodedata.normalize("NFC", name)
    if name in faults:
        raise ValueError(f"voice {name}: {faults[name]}")
    if name not in voices:
        others = "".join(f"; {fault}" for fault in faults.values())
        raise ValueError(f"no voice {name!r} in {folder}; there are: {', '.join(voices) or 'none'}{others}")
    return voices[name]


def profiles(folder: Path) -> dict[str, str]:
    path = folder / PROFILES
    found = validate(dict[str, str], parse_json(read_text(path), str(path)), str(path)) if path.is_file() else {}
    return {unicodedata.normalize("NFC", name): description for name, description in found.items()}
