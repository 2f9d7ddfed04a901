"""Recordings with transcripts: a JSON Lines manifest beside the audio."""

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import Strict

from higgs.files import read_lines
from higgs.validation import Record, parse_json, validate


class Recording(Record):
    """One row of a manifest; `path` is the audio file, in the manifest from the folder above it."""

    id: str
    path: Annotated[Path, Strict(False)]
    text: str
    language: str
    speaker: str
    seconds: float
    sha256: str


def read_recordings(
    manifest: str | Path, languages: list[str] | None = None, max_clips: int | None = None
) -> list[Recording]:
    """-> the recordings in these languages, at most `max_clips` of each, in the order of `languages`.

    Paths in the manifest are relative to the folder above it. Raises ValueError naming the line for a wrong row, a
    missing or changed file, an empty transcript or an id that stands twice, and for languages that it does not have.
    """
    manifest = Path(manifest)
    recordings: list[Recording] = []
    ids: set[str] = set()
    for where, line in read_lines(manifest):
        row = validate(Recording, parse_json(line, where), where)
        if row.id in ids:
            raise ValueError(f"{where}: the id {row.id!r} stands twice")
        ids.add(row.id)
        path = manifest.parent.parent / row.path
        if not path.is_file():
            raise ValueError(f"{where}: {path} does not exist")
        if hashlib.sha256(path.read_bytes()).hexdigest() != row.sha256:
            raise ValueError(f"{where}: {path} is not the file that the manifest was made from")
        if not row.text.strip():
            raise ValueError(f"{where}: the transcript is empty")
        recordings.append(row.model_copy(update={"path": path}))
    if not recordings:
        raise ValueError(f"{manifest}: no recording in it")
    known = {recording.language for recording in recordings}
    if unknown := sorted(set(languages or known) - known):
        raise ValueError(f"{manifest} has no recordings in {unknown}; it has {sorted(known)}")
    wanted = languages or list(dict.fromkeys(recording.language for recording in recordings))
    by_language = ([r for r in recordings if r.language == language] for language in wanted)
    return [recording for clips in by_language for recording in clips[:max_clips]]
