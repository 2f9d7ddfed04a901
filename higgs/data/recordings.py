"""Recordings with transcripts, listed in a JSON Lines manifest."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from pydantic import Field, Strict

from higgs.files import read_lines, sha256
from higgs.validation import Record, parse_json, validate

Language = Annotated[str, Field(pattern="^[a-z]{2,3}$")]  # ISO 639


class Recording(Record):
    """A record of a manifest; there, `path` is relative to the folder above the manifest."""

    id: str
    path: Annotated[Path, Strict(False)]
    text: str
    language: Language
    speaker: str
    seconds: float
    sha256: str


def file_name(name: str) -> str:
    """An id -> the name of a file for it, without folders: ids of letters, digits and `-_.~` stay as they are."""
    quoted = quote(name, safe="")
    return quoted if len(quoted) <= 200 else hashlib.sha256(name.encode()).hexdigest()


def folder_above(manifest: Path) -> Path:
    """What the paths in a manifest are relative to: the folder above its own."""
    folder = manifest.parent
    if folder.name in ("", ".."):  # its name is not in the path
        folder = Path(os.path.abspath(folder))
    return folder.parent


def listed_file(manifest: Path, path: str | Path, digest: str | None, where: str) -> Path:
    """The file of a record, which has that SHA-256. Raises ValueError that begins with `where`."""
    path = folder_above(manifest) / path
    if not path.is_file():
        raise ValueError(f"{where}: {path} does not exist")
    if sha256(path) != digest:
        raise ValueError(f"{where}: {path} is not the file that the manifest was made from")
    return path


def read_recordings(
    manifest: str | Path, languages: list[str] | None = None, max_clips: int | None = None
) -> list[Recording]:
    """-> at most `max_clips` of each language, in that order. ValueError: a record is invalid, a file not the same."""
    manifest, recordings, ids = Path(manifest), [], set()
    for where, line in read_lines(manifest):
        recording = validate(Recording, parse_json(line, where), where)
        if recording.id in ids:
            raise ValueError(f"{where}: duplicate id {recording.id!r}")
        ids.add(recording.id)
        path = listed_file(manifest, recording.path, recording.sha256, where)
        if not recording.text.strip():
            raise ValueError(f"{where}: the transcript is empty")
        recordings.append(recording.model_copy(update={"path": path}))
    if not recordings:
        raise ValueError(f"{manifest}: no recording in it")
    known = {recording.language for recording in recordings}
    if unknown := sorted(set(languages or known) - known):
        raise ValueError(f"{manifest} has no recordings in {unknown}; it has {sorted(known)}")
    wanted = languages or list(dict.fromkeys(recording.language for recording in recordings))
    by_language = ([r for r in recordings if r.language == language] for language in wanted)
    return [recording for clips in by_language for recording in clips[:max_clips]]


def subset_by_hash(ids: Iterable[str], count: int | None) -> set[str]:
    """`count` of the ids (None: all), by their hashes: whatever their order."""
    return set(sorted(set(ids), key=lambda name: hashlib.sha256(name.encode()).digest())[:count])
