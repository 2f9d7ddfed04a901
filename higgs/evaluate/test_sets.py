"""Public test sets -> a manifest of ours: what is to be said, in whose voice, and how people said it.

    python -m higgs.evaluate.test_sets seed-tts-eval FOLDER

FOLDER is the English or the Chinese folder of SeedTTS-Eval's test set, with `meta.lst`, the prompts
and the recordings. The manifest `meta.jsonl` is written beside it.
"""

import argparse
import hashlib
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from higgs.audio import load_audio
from higgs.data.scripts import Script, SetRecord, read_scripts
from higgs.evaluate.metrics.seedtts import LANGUAGES
from higgs.files import read_lines
from higgs.validation import parse_json, validate
from higgs.workflow.tables import Row, write_rows

FIELDS = "id|prompt text|prompt wav|target text, and possibly |target wav"
MAX_LISTED = 20


def convert_seed_tts_eval(folder: str | Path, list_name: str = "meta.lst", language: str | None = None) -> list[Row]:
    """SeedTTS-Eval's list -> rows of a manifest, paths relative to the folder above `folder`.

    The language is that of the folder's name unless one is given. Common Voice does not say who
    speaks, so the prompt's name stands for the speaker. The recording of the text is the fifth
    field, or `wavs/ID.wav` where that is there.

    Raises ValueError naming every broken line, every id that stands twice and every missing file:
    a result on a part of the set is not a result on the set.
    """
    folder = Path(folder).resolve()
    language = language or folder.name
    if language not in LANGUAGES:
        raise ValueError(f"{folder}: the language is not one of {', '.join(LANGUAGES)}; give --language")
    source = folder / list_name
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist: name the folder that holds {list_name}")
    entries, faults = _read_list(source)
    faults += _file_faults(folder, entries)
    if faults:
        more = [f"and {len(faults) - MAX_LISTED} more"] if len(faults) > MAX_LISTED else []
        raise ValueError("\n".join([f"{source} cannot be used:", *faults[:MAX_LISTED], *more]))
    return [_row(folder, entry, language) for entry in entries]


def _read_list(source: Path) -> tuple[list[list[str]], list[str]]:
    """-> [id, prompt text, prompt wav, text, recording or ""] of each line, and what is wrong with the list."""
    entries, faults = [], []
    for number, line in enumerate(source.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        entry = [part.strip() for part in line.split("|")]
        if len(entry) not in (4, 5) or not all(entry):
            faults.append(f"line {number}: expected {FIELDS}, got {line!r}")
        elif not re.fullmatch(r"[\w.-]+", entry[0]):
            faults.append(f"line {number}: the id {entry[0]!r} cannot name a file")
        else:
            entries.append([*entry, ""][:5])
    counts = Counter(entry[0] for entry in entries)
    faults += [f"the id {name} stands {count} times" for name, count in counts.items() if count > 1]
    return entries, faults or ([] if entries else ["it holds no lines"])


def _recording(folder: Path, entry: Sequence[str]) -> Path | None:
    if entry[4]:
        return folder / entry[4]
    usual = folder / "wavs" / f"{entry[0]}.wav"
    return usual if usual.is_file() else None


def _file_faults(folder: Path, entries: Sequence[Sequence[str]]) -> list[str]:
    wanted = dict.fromkeys(
        path for entry in entries for path in (folder / entry[2], _recording(folder, entry)) if path is not None
    )
    faults = [f"{path} does not exist" for path in wanted if not path.is_file()]
    outside = [path for path in wanted if not path.resolve().is_relative_to(folder.parent)]
    return faults + [f"{path} lies outside of {folder.parent}" for path in outside]


def _row(folder: Path, entry: Sequence[str], language: str) -> Row:
    name, reference_text, prompt, text, _ = entry
    recording, reference = _recording(folder, entry), folder / prompt
    seconds = None
    if recording is not None:
        waveform, rate = load_audio(recording)
        seconds = len(waveform) / rate

    def place(path: Path | None) -> str | None:
        return path.resolve().relative_to(folder.parent).as_posix() if path else None

    return {
        "id": name,
        "path": place(recording),
        "text": text,
        "language": language,
        "speaker": reference.stem,
        "seconds": seconds,
        "sha256": _sha256(recording) if recording else None,
        "reference": place(reference),
        "reference_text": reference_text,
        "reference_sha256": _sha256(reference),
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_set(manifest: str | Path) -> list[Script]:
    """The manifest of a set -> its scripts. Raises ValueError that names every missing or changed file."""
    manifest = Path(manifest)
    above, faults = manifest.resolve().parent.parent, []
    for where, line in read_lines(manifest):
        row = validate(SetRecord, parse_json(line, where), where)
        for path, digest in ((row.path, row.sha256), (row.reference, row.reference_sha256)):
            if path and (not (above / path).is_file() or _sha256(above / path) != digest):
                faults.append(f"{where}: {above / path} is missing or has changed")
    if faults:
        raise ValueError("\n".join([f"{manifest} cannot be used:", *faults]))
    return read_scripts(manifest, manifest.parent)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m higgs.evaluate.test_sets", description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=["seed-tts-eval"])
    parser.add_argument("folder", type=Path, help="the folder of one language, with meta.lst")
    parser.add_argument("--list", default="meta.lst", help="another list, as hardcase.lst (default: %(default)s)")
    parser.add_argument("--language", choices=LANGUAGES, help="default: the folder's name")
    chosen = parser.parse_args(arguments)
    try:
        rows = convert_seed_tts_eval(chosen.folder, chosen.list, chosen.language)
        out = chosen.folder / f"{Path(chosen.list).stem}.jsonl"
        write_rows(out, rows)
        read_set(out)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    spoken = sum(row["path"] is not None for row in rows)
    sys.stdout.write(f"{out}: {len(rows)} texts, {spoken} with a recording\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
