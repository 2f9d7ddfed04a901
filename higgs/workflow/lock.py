"""Says which outputs of dvc.lock differ from the committed ones, and by how much: `python -m higgs.workflow.lock`.

With `repeatable: true` none does, on any x86-64 processor with AVX2. Content can be compared where DVC's cache still
holds what was committed; the metrics always, because Git has them. In CI (the variable CI is set) a difference of
repeatable results is an error: exit status 1.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from higgs.validation import parse_yaml
from higgs.workflow.outputs import find_root, say
from higgs.workflow.params import read_params

LOCK, METRICS = "dvc.lock", "metrics.json"
CACHE = ".dvc/cache/files/md5"
SHOWN = 20  # differing files of one output


def committed(root: Path, name: str) -> str | None:
    """The text of a file at HEAD; None outside Git, without Git, or before it is committed."""
    command = ["git", "-C", str(root), "show", f"HEAD:./{name}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout if result.returncode == 0 else None


def read_stages(text: str, what: str) -> dict[str, Any]:
    """The text of a dvc.lock -> its stages by name."""
    return (parse_yaml(text, what) or {}).get("stages", {})


def hashes(stage: Mapping[str, Any], kind: str) -> dict[str, str | None]:
    """The paths and md5 sums that a stage lists under `kind`, "deps" or "outs"."""
    return {entry["path"]: entry.get("md5") for entry in stage.get(kind, [])}


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The keys with another value, or in one mapping only, in order."""
    return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))


def own_changes(before: Mapping[str, Any], after: Mapping[str, Any], made: set[str]) -> list[str]:
    """What differs in a stage by someone's hand: its inputs that no stage has made, its parameters."""
    dependencies = changed(hashes(before, "deps"), hashes(after, "deps"))
    settings = changed(_settings(before), _settings(after))
    return [path for path in dependencies if path not in made] + settings


def _settings(stage: Mapping[str, Any]) -> dict[str, Any]:
    parameters = stage.get("params", {}).values()
    return {key: value for section in parameters for key, value in section.items()}


def compare(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    describe: Callable[[str, str | None], list[str]] = lambda path, md5: [],
) -> list[str]:
    """Two mappings of stages -> the lines of the report, for people. `describe(path, old md5)` compares contents."""
    made = {path for stages in (before, after) for s in stages.values() for path in hashes(s, "outs")}
    total, lines, differing = 0, [], 0
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, {}), after.get(name, {})
        old_hashes, new_hashes = hashes(old, "outs"), hashes(new, "outs")
        total += len(old_hashes.keys() | new_hashes.keys())
        moved = changed(old_hashes, new_hashes)
        differing += len(moved)
        for path in moved:
            lines.append(f"  {path}: {old_hashes.get(path)} -> {new_hashes.get(path)}")
            lines += [f"    {line}" for line in describe(path, old_hashes.get(path))]
        causes = own_changes(old, new, made)
        if moved and causes:
            lines.append(f"    {name} was also changed here: {', '.join(causes)}")
    if not differing:
        return [f"{LOCK}: all {total} outputs have the hashes of the commit"]
    return [f"{LOCK}: {differing} of {total} outputs have other hashes than the commit:", *lines]


def cached_files(root: Path, md5: str) -> dict[str, Path] | None:
    """An md5 of dvc.lock -> its files in DVC's cache by their paths inside the output; None where one is not there."""

    def place(digest: str) -> Path:
        return root / CACHE / digest[:2] / digest[2:]

    if not md5.endswith(".dir"):
        files = {"": place(md5)}
    elif not place(md5).is_file():
        return None
    else:
        files = {f["relpath"]: place(f["md5"]) for f in json.loads(place(md5).read_text())}
    return files if all(path.is_file() for path in files.values()) else None


def describe_output(root: Path, path: str, md5: str | None) -> list[str]:
    """How an output differs from the one that was committed, a line for each file."""
    if path == METRICS and (text := committed(root, METRICS)) is not None:
        return list(_numbers(json.loads(text), json.loads((root / path).read_text())))
    old = cached_files(root, md5) if md5 else None
    if old is None:
        return ["by how much is not known: DVC's cache does not hold what was committed"]
    here = root / path
    new = {"": here} if here.is_file() else {
        str(p.relative_to(here)): p for p in sorted(here.rglob("*")) if p.is_file()
    }  # fmt: skip
    lines = [f"{name}: only {'committed' if name in old else 'here'}" for name in old.keys() ^ new]
    for name in sorted(old.keys() & new.keys()):
        if old[name].read_bytes() != new[name].read_bytes():
            lines.append(f"{name or here.name}: {_difference(old[name], new[name])}")
    more = [f"and {len(lines) - SHOWN} files more"] if len(lines) > SHOWN else []
    return lines[:SHOWN] + more


def _difference(old: Path, new: Path) -> str:
    """Two files that are not equal -> by how much; the new one's suffix says what they are."""
    readers = {".flac": _sound, ".safetensors": _tensors, ".csv": _lines, ".parquet": _records}
    if new.suffix not in readers:
        return "another content"
    with TemporaryDirectory() as folder:  # in the cache files have no suffix, by which readers go
        link = Path(folder) / new.name
        link.symlink_to(old.resolve())
        return readers[new.suffix](link, new)


def _sound(old: Path, new: Path) -> str:
    from higgs.audio import load_audio

    (a, _), (b, _) = load_audio(old), load_audio(new)
    if len(a) != len(b):
        return f"{len(a)} -> {len(b)} samples"
    moved = (a - b).abs() * 32768
    return f"{int((moved > 0).sum())} of {len(a)} samples differ, by at most {moved.max():.0f} of 32768"


def _tensors(old: Path, new: Path) -> str:
    from safetensors.torch import load_file

    a, b = load_file(old), load_file(new)
    moved = [k for k in a.keys() | b.keys() if k not in a or k not in b or not a[k].equal(b[k])]
    names = ", ".join(sorted(moved)[:5])
    return f"{len(moved)} of {len(a)} differ: {names}" if moved else "the same tensors"


def _lines(old: Path, new: Path) -> str:
    a, b = old.read_text().splitlines(), new.read_text().splitlines()
    moved = [i for i, pair in enumerate(zip(a, b, strict=False), start=1) if pair[0] != pair[1]]
    return f"{len(a)} -> {len(b)} lines; others: {', '.join(map(str, moved[:10])) or 'none'}"


def _records(old: Path, new: Path) -> str:
    from pyarrow.parquet import read_table

    a, b = read_table(old).to_pylist(), read_table(new).to_pylist()
    columns = {k for x, y in zip(a, b, strict=False) for k in x if x[k] != y.get(k)}
    moved = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
    where = f"in rows {', '.join(map(str, moved[:10]))}" if moved else "in no row"
    return f"{len(a)} -> {len(b)} rows; {', '.join(sorted(columns)) or 'no column'} {where}"


def _numbers(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Two values of JSON -> each number or word that is not the same."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _numbers(old.get(key), new.get(key), f"{place}.{key}" if place else key)
    elif old != new:
        yield f"{place}: {old} -> {new}"


def main() -> int:
    root = find_root()
    before, path = committed(root, LOCK), root / LOCK
    if before is None or not path.is_file():
        say(f"{LOCK}: no committed one to compare with")
        return 0
    after = path.read_text(encoding="utf-8")
    lines = compare(
        read_stages(before, f"HEAD:{LOCK}"), read_stages(after, LOCK),
        lambda output, md5: describe_output(root, output, md5),
    )  # fmt: skip
    for line in lines:
        say(line)
    if len(lines) == 1:
        return 0
    repeatable = read_params(root / "params.yaml").get("repeatable") is True
    say(
        "  Where nothing was changed here they should be equal: please report it with the processor's name."
        if repeatable
        else "  With `repeatable: false` this processor's own kernels round otherwise."
    )
    return int(bool(os.environ.get("CI")) and bool(repeatable))


if __name__ == "__main__":
    sys.exit(main())
