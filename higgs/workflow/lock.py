"""Compares the outputs in dvc.lock with the committed ones: `python -m higgs.workflow.lock`.

With `repeatable: true` none differs, on any x86-64 processor with AVX2. Contents are compared where DVC's cache still
holds the committed ones; metrics always, because Git has them. In CI (the variable CI is set) a difference of
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
from higgs.workflow.tables import read_rows

LOCK, METRICS = "dvc.lock", "metrics.json"
CACHE = ".dvc/cache/files/md5"
MAX_LINES = 20  # differing files of one output


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
    """Path -> md5 sum of what a stage lists under `kind`, "deps" or "outs"."""
    return {entry["path"]: entry.get("md5") for entry in stage.get(kind, [])}


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The keys with another value, or in one mapping only, sorted."""
    return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))


def changed_inputs(before: Mapping[str, Any], after: Mapping[str, Any], outputs: set[str]) -> list[str]:
    """Dependencies of a stage that differ and are no stage's output, and parameters that differ."""

    def params(stage: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for section in stage.get("params", {}).values() for key, value in section.items()}

    deps = changed(hashes(before, "deps"), hashes(after, "deps"))
    return [path for path in deps if path not in outputs] + changed(params(before), params(after))


def compare(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    describe: Callable[[str, str | None], list[str]] = lambda path, md5: [],
) -> list[str]:
    """Two mappings of stages -> the lines of the report. `describe(path, old md5)` compares contents."""
    outputs = {path for stages in (before, after) for s in stages.values() for path in hashes(s, "outs")}
    differing, lines = 0, []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, {}), after.get(name, {})
        old_hashes, new_hashes = hashes(old, "outs"), hashes(new, "outs")
        differing_paths = changed(old_hashes, new_hashes)
        differing += len(differing_paths)
        for path in differing_paths:
            lines.append(f"  {path}: {old_hashes.get(path)} -> {new_hashes.get(path)}")
            lines += [f"    {line}" for line in describe(path, old_hashes.get(path))]
        causes = changed_inputs(old, new, outputs)
        if differing_paths and causes:
            lines.append(f"    {name} was also changed here: {', '.join(causes)}")
    if not differing:
        return [f"{LOCK}: all {len(outputs)} outputs have the hashes of the commit"]
    return [f"{LOCK}: {differing} of {len(outputs)} outputs have other hashes than the commit:", *lines]


def cached_files(root: Path, md5: str) -> dict[str, Path] | None:
    """An md5 of dvc.lock -> its files in DVC's cache by their paths inside the output; None where one is missing."""

    def cached(digest: str) -> Path:
        return root / CACHE / digest[:2] / digest[2:]

    files = {"": cached(md5)}
    if md5.endswith(".dir") and cached(md5).is_file():
        files = {f["relpath"]: cached(f["md5"]) for f in json.loads(cached(md5).read_text())}
    return files if all(path.is_file() for path in files.values()) else None


def describe_output(root: Path, path: str, md5: str | None) -> list[str]:
    """How an output differs from the committed one, a line for each file."""
    if path == METRICS and (text := committed(root, METRICS)) is not None:
        return list(_changed_numbers(json.loads(text), json.loads((root / path).read_text())))
    old = cached_files(root, md5) if md5 else None
    if old is None:
        return ["by how much is not known: DVC's cache does not hold what was committed"]
    new = {"": root / path}
    if (root / path).is_dir():
        new = {str(p.relative_to(root / path)): p for p in sorted((root / path).rglob("*")) if p.is_file()}
    lines = [f"{name}: only {'committed' if name in old else 'here'}" for name in old.keys() ^ new]
    for name in sorted(old.keys() & new.keys()):
        if old[name].read_bytes() != new[name].read_bytes():
            lines.append(f"{name or new[name].name}: {_difference(old[name], new[name])}")
    more = [f"and {len(lines) - MAX_LINES} files more"] if len(lines) > MAX_LINES else []
    return lines[:MAX_LINES] + more


def _difference(old: Path, new: Path) -> str:
    """By how much two files of one type differ; the new one's suffix is the type."""
    with TemporaryDirectory() as folder:  # files of the cache have no suffix, which readers go by
        link = Path(folder) / new.name
        link.symlink_to(old.resolve())
        if new.suffix == ".flac":
            return _audio_difference(link, new)
        if new.suffix not in (".safetensors", ".parquet", ".csv"):
            return "another content"
        before, after = _values(link), _values(new)
    keys = sorted(changed(before, after), key=list(before | after).index)
    return f"{len(keys)} of {len(before | after)} differ: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"


def _audio_difference(old: Path, new: Path) -> str:
    from higgs.audio import load_audio

    (a, _), (b, _) = load_audio(old), load_audio(new)
    if len(a) != len(b):
        return f"{len(a)} -> {len(b)} samples"
    steps = (a - b).abs() * 32768
    return f"{int((steps > 0).sum())} of {len(a)} samples differ, by at most {steps.max():.0f} of 32768"


def _values(path: Path) -> dict[str, Any]:
    """Tensors by name, cells of a Parquet table, or lines of a CSV."""
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return {name: array.tolist() for name, array in load_file(path).items()}
    if path.suffix == ".parquet":
        return {f"row {i}, {key}": value for i, row in enumerate(read_rows(path)) for key, value in row.items()}
    return {f"line {i}": line for i, line in enumerate(path.read_text().splitlines(), start=1)}


def _changed_numbers(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Two values of JSON -> a line for each number or word that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _changed_numbers(old.get(key), new.get(key), f"{place}.{key}" if place else key)
    elif old != new:
        yield f"{place}: {old} -> {new}"


def main() -> int:
    root = find_root()
    before, path = committed(root, LOCK), root / LOCK
    if before is None or not path.is_file():
        say(f"{LOCK}: no committed one to compare with")
        return 0
    stages = read_stages(before, f"HEAD:{LOCK}"), read_stages(path.read_text(encoding="utf-8"), LOCK)
    lines = compare(*stages, lambda output, md5: describe_output(root, output, md5))
    say("\n".join(lines))
    if len(lines) == 1:
        return 0
    repeatable = read_params(root / "params.yaml").get("repeatable") is True
    say(
        "  Where nothing was changed here they should be equal: please report it with the processor's name."
        if repeatable
        else "  With `repeatable: false` this processor's own kernels round otherwise."
    )
    return int(bool(os.environ.get("CI")) and repeatable)


if __name__ == "__main__":
    sys.exit(main())
