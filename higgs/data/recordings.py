"""Recordings with transcripts: a JSON Lines manifest beside the audio."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

KEYS = ("id", "path", "text", "language", "speaker", "seconds", "sha256")


@dataclass(frozen=True)
class Recording:
    """One row of a manifest; `path` is the audio file, found from the manifest's place."""

    id: str
    path: Path
    text: str
    language: str
    speaker: str
    seconds: float


def read_recordings(
    manifest: str | Path, languages: list[str] | None = None, max_clips: int | None = None
) -> list[Recording]:
    """-> the recordings in these languages, at most `max_clips` of each, in the order of `languages`.

    Paths in the manifest are relative to the folder above it. Raises ValueError naming the line for a missing key, a
    missing or changed file or an empty transcript, and for languages that the manifest does not have.
    """
    manifest = Path(manifest)
    recordings = []
    for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), start=1):
        row, where = json.loads(line), f"{manifest}, line {number}"
        if missing := [key for key in KEYS if key not in row]:
            raise ValueError(f"{where}: lacks {', '.join(missing)}")
        path = manifest.parent.parent / row["path"]
        if not path.is_file():
            raise ValueError(f"{where}: {path} does not exist")
        if hashlib.sha256(path.read_bytes()).hexdigest() != row["sha256"]:
            raise ValueError(f"{where}: {path} is not the file that the manifest was made from")
        if not row["text"].strip():
            raise ValueError(f"{where}: the transcript is empty")
        recordings.append(
            Recording(row["id"], path, row["text"], row["language"], row["speaker"], row["seconds"])
        )
    known = {recording.language for recording in recordings}
    if unknown := sorted(set(languages or known) - known):
        raise ValueError(f"{manifest} has no recordings in {unknown}; it has {sorted(known)}")
    wanted = languages or list(dict.fromkeys(recording.language for recording in recordings))
    by_language = ([r for r in recordings if r.language == language] for language in wanted)
    return [recording for clips in by_language for recording in clips[:max_clips]]
