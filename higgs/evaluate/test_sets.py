"""Public test sets -> a manifest: `python -m higgs.evaluate.test_sets seed-tts-eval FOLDER`.

FOLDER is SeedTTS-Eval's English or Chinese one, with `meta.lst`, prompts and recordings; `meta.jsonl` is written to it.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from higgs.audio import load_audio
from higgs.data.scripts import read_scripts
from higgs.data.voices import NAME
from higgs.evaluate.metrics.seedtts import LANGUAGES
from higgs.files import read_lines, sha256
from higgs.workflow.tables import Row, write_rows

FIELDS = "id|prompt text|prompt wav|target text, and possibly |target wav"
MAX_LISTED = 20


def convert_seed_tts_eval(folder: str | Path, list_name: str = "meta.lst", language: str | None = None) -> list[Row]:
    """SeedTTS-Eval's list -> records of a manifest, paths relative to the folder above `folder`.

    The language is the folder's name unless one is given. Common Voice does not name speakers: the prompt's name is
    the speaker. The text's recording is the fifth field, or `wavs/ID.wav` where that exists.

    ValueError naming every broken line, duplicate id and missing file: a part of the set is not the set.
    """
    folder = Path(folder).resolve()
    language = language or folder.name
    if language not in LANGUAGES:
        raise ValueError(f"{folder}: the language is not one of {', '.join(LANGUAGES)}; give --language")
    source = folder / list_name
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist: name the folder that holds {list_name}")
    entries, faults = _read_list(folder, source)
    for path in dict.fromkeys(path for *_, prompt, recording in entries for path in (prompt, recording) if path):
        if not path.is_file():
            faults.append(f"{path} does not exist")
        if not path.resolve().is_relative_to(folder.parent):
            faults.append(f"{path} lies outside of {folder.parent}")
    if faults:
        more = [f"and {len(faults) - MAX_LISTED} more"] if len(faults) > MAX_LISTED else []
        raise ValueError("\n".join([f"{source} cannot be used:", *faults[:MAX_LISTED], *more]))
    return [_record(folder.parent, language, *entry) for entry in entries]


def _read_list(folder: Path, source: Path) -> tuple[list[tuple], list[str]]:
    """-> (id, prompt text, text, prompt, recording or None) of each line, and what is wrong with the list."""
    entries, faults = [], []
    for place, line in read_lines(source):
        entry = [part.strip() for part in line.split("|")]
        if len(entry) not in (4, 5) or not all(entry):
            faults.append(f"{place}: expected {FIELDS}, got {line!r}")
        elif not NAME.fullmatch(entry[0]):
            faults.append(f"{place}: the id {entry[0]!r} cannot name a file")
        else:
            name, prompt_text, prompt, text, *recording = entry
            usual = folder / "wavs" / f"{name}.wav"
            path = folder / recording[0] if recording else usual if usual.is_file() else None
            entries.append((name, prompt_text, text, folder / prompt, path))
    counts = Counter(entry[0] for entry in entries)
    faults += [f"the id {name} occurs {count} times" for name, count in counts.items() if count > 1]
    return entries, faults or ([] if entries else ["it holds no lines"])


def _record(
    root: Path, language: str, name: str, prompt_text: str, text: str, prompt: Path, recording: Path | None
) -> Row:
    waveform, rate = load_audio(recording) if recording else (None, None)
    seconds = None if waveform is None else len(waveform) / rate

    def relative(path: Path | None) -> str | None:
        return path.resolve().relative_to(root).as_posix() if path else None

    record = {"id": name, "path": relative(recording), "text": text, "language": language, "speaker": prompt.stem}
    record |= {"seconds": seconds, "sha256": sha256(recording) if recording else None, "reference": relative(prompt)}
    return record | {"reference_text": prompt_text, "reference_sha256": sha256(prompt)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m higgs.evaluate.test_sets", description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=["seed-tts-eval"])
    parser.add_argument("folder", type=Path, help="the folder of one language, with meta.lst")
    parser.add_argument("--list", default="meta.lst", help="another list, as hardcase.lst (default: %(default)s)")
    parser.add_argument("--language", choices=LANGUAGES, help="default: the folder's name")
    options = parser.parse_args(arguments)
    try:
        records = convert_seed_tts_eval(options.folder, options.list, options.language)
        out = options.folder / f"{Path(options.list).stem}.jsonl"
        write_rows(out, records)
        read_scripts(out, out.parent)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    recorded = sum(record["path"] is not None for record in records)
    sys.stdout.write(f"{out}: {len(records)} texts, {recorded} with a recording\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
