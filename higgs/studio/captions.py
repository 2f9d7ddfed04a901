"""Times of words as files: JSON, SubRip and WebVTT."""

import html
from collections.abc import Sequence
from pathlib import Path

from higgs.workflow.outputs import write_atomically, write_json
from higgs.workflow.tables import Row

SUFFIXES = (".json", ".srt", ".vtt")


def write_times(path: str | Path, times: Sequence[Row]) -> None:
    """Rows with `word`, `start` and `end` in seconds -> a file by its suffix, a caption for each word."""
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: times of words are written as .json, .srt or .vtt")
    if suffix == ".json":
        return write_json(path, times)
    mark = "," if suffix == ".srt" else "."
    captions = []
    for number, row in enumerate(times, 1):
        head = f"{number}\n" if suffix == ".srt" else ""
        # WebVTT reads markup; SubRip has none in its format.
        word = row["word"] if suffix == ".srt" else html.escape(row["word"], quote=False)
        captions.append(f"{head}{_clock(row['start'], mark)} --> {_clock(row['end'], mark)}\n{word}\n\n")
    write_atomically(path, ("" if suffix == ".srt" else "WEBVTT\n\n") + "".join(captions))


def _clock(seconds: float, mark: str) -> str:
    """3723.04 -> 01:02:03,040"""
    whole = round(1000 * seconds)
    return f"{whole // 3_600_000:02d}:{whole // 60_000 % 60:02d}:{whole // 1000 % 60:02d}{mark}{whole % 1000:03d}"
