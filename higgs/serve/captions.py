"""Times of words as files: JSON, SubRip and WebVTT."""

import html
import json
from collections.abc import Sequence
from pathlib import Path

from higgs.files import write_atomically

Record = dict[str, str | float]  # of a word
SUFFIXES = (".json", ".srt", ".vtt")
SHORTEST = 0.04  # seconds of a caption: one without length is never shown, and WebVTT has none


def write_times(path: str | Path, times: Sequence[Record]) -> None:
    """Records with `word`, `start` and `end` in seconds -> a file by its suffix, a caption for each word."""
    check_suffix(path)
    suffix = Path(path).suffix
    if suffix == ".json":
        return write_atomically(path, json.dumps(list(times), indent=2, ensure_ascii=False) + "\n")
    mark, captions = (",", []) if suffix == ".srt" else (".", ["WEBVTT\n\n"])
    for number, one in enumerate(times, 1):
        head = f"{number}\n" if suffix == ".srt" else ""
        # WebVTT reads markup; SubRip has none in its format.
        word = one["word"] if suffix == ".srt" else html.escape(one["word"], quote=False)
        end = max(one["end"], one["start"] + SHORTEST)
        captions.append(f"{head}{_clock(one['start'], mark)} --> {_clock(end, mark)}\n{word}\n\n")
    write_atomically(path, "".join(captions))


def check_suffix(path: str | Path) -> None:
    """Raises ValueError for a file of another kind."""
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(f"{path}: times of words are written as .json, .srt or .vtt")


def _clock(seconds: float, mark: str) -> str:
    """3723.04 -> 01:02:03,040"""
    whole = round(1000 * seconds)
    return f"{whole // 3_600_000:02d}:{whole // 60_000 % 60:02d}:{whole // 1000 % 60:02d}{mark}{whole % 1000:03d}"
