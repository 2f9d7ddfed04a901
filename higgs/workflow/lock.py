"""Compares the outputs in dvc.lock with the committed ones: `python -m higgs.workflow.lock`.

With `repeatable: true` none differs, on any x86-64 processor with AVX2; with CI set, a difference then exits with 1.
"""

import json
import os
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from higgs.files import git
from higgs.validation import flat, parse_yaml
from higgs.workflow.outputs import find_root, say
from higgs.workflow.params import read_params
from higgs.workflow.tables import read_rows
from higgs.workflow.verify import cached, listing

LOCK, NUMBERS = "dvc.lock", ("metrics.json", "evaluation.json")
MAX_LINES = 20  # differing files of one output
Stages = Mapping[str, dict[str, Any]]


def committed(root: Path, name: str) -> str | None:
    """The text of a file at HEAD; None outside Git, without Git, or before it is committed."""
    return git("-C", root, "show", f"HEAD:./{name}") or None


def hashes(stage: Mapping[str, Any], kind: str) -> dict[str, str | None]:
    """Path -> md5 sum of what a stage lists under `kind`, "deps" or "outs"."""
    return {entry["path"]: entry.get("md5") for entry in stage.get(kind, [])}


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The keys with another value, or in one mapping only, sorted."""
    return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))


def compare(before: Stages, after: Stages, describe: Callable[..., list[str]] = lambda path, md5: []) -> list[str]:
    """-> the lines of the report. `describe(path, old md5)` compares contents."""
    outputs = {path for stages in (before, after) for stage in stages.values() for path in hashes(stage, "outs")}
    differing, lines = 0, []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, {}), after.get(name, {})
        old_hashes, new_hashes = hashes(old, "outs"), hashes(new, "outs")
        paths = changed(old_hashes, new_hashes)
        differing += len(paths)
        for path in paths:
            lines.append(f"  {path}: {old_hashes.get(path)} -> {new_hashes.get(path)}")
            lines += [f"    {line}" for line in describe(path, old_hashes.get(path))]
        deps = changed(hashes(old, "deps"), hashes(new, "deps"))
        params = [ChainMap(*stage.get("params", {}).values()) for stage in (old, new)]
        causes = [path for path in deps if path not in outputs] + changed(*params)
        if paths and causes:
            lines.append(f"    {name} was also changed here: {', '.join(causes)}")
    if not differing:
        return [f"{LOCK}: all {len(outputs)} outputs have the hashes of the commit"]
    return [f"{LOCK}: {differing} of {len(outputs)} outputs have other hashes than the commit:", *lines]


def describe_output(root: Path, path: str, md5: str | None) -> list[str]:
    """How an output differs from the committed one (numbers: in Git; others: in DVC's cache), a line for each file."""
    if path in NUMBERS and (text := committed(root, path)) is not None:
        numbers = flat(json.loads(text)), flat(json.loads((root / path).read_text()))
        return [f"{name}: {numbers[0].get(name)} -> {numbers[1].get(name)}" for name in changed(*numbers)]
    old = {name: cached(root, digest) for name, digest in (md5 and listing(root, md5) or {}).items()}
    if not old or not all(file.is_file() for file in old.values()):
        return ["by how much is not known: DVC's cache does not hold what was committed"]
    new = {"": root / path}
    if (root / path).is_dir():
        new = {str(p.relative_to(root / path)): p for p in sorted((root / path).rglob("*")) if p.is_file()}
    lines = [f"{name}: only {'committed' if name in old else 'here'}" for name in old.keys() ^ new]
    for name in sorted(old.keys() & new.keys()):
        if old[name].read_bytes() != new[name].read_bytes():
            lines.append(f"{name or new[name].name}: {_difference(old[name], new[name])}")
    return lines[:MAX_LINES] + [f"and {len(lines) - MAX_LINES} files more"] * (len(lines) > MAX_LINES)


def _difference(old: Path, new: Path) -> str:
    """By how much two files of one type differ; the new one's suffix is the type."""
    with TemporaryDirectory() as folder:  # files of the cache have no suffix, which readers go by
        link = Path(folder) / new.name
        link.symlink_to(old.resolve())
        before, after = _values(link), _values(new)
    if before is None or after is None:
        return "another content"
    if new.suffix != ".flac":
        keys = sorted(changed(before, after), key=list(before | after).index)
        return f"{len(keys)} of {len(before | after)} differ: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
    if len(before) != len(after):
        return f"{len(before)} -> {len(after)} samples"
    steps = (before - after).abs() * 32768
    return f"{int((steps > 0).sum())} of {len(before)} samples differ, by at most {steps.max():.0f} of 32768"


def _values(path: Path) -> Any:
    """The waveform; tensors by name, cells of a Parquet table, or lines of a CSV; None for other files."""
    match path.suffix:
        case ".flac":
            from higgs.audio import load_audio

            return load_audio(path)[0]
        case ".safetensors":
            from safetensors.numpy import load_file

            return {name: array.tolist() for name, array in load_file(path).items()}
        case ".parquet":
            return {f"row {i}, {key}": value for i, row in enumerate(read_rows(path)) for key, value in row.items()}
        case ".csv":
            return {f"line {i}": line for i, line in enumerate(path.read_text().splitlines(), start=1)}


def main() -> int:
    root = find_root()
    before, path = committed(root, LOCK), root / LOCK
    if before is None or not path.is_file():
        say(f"{LOCK}: no committed one to compare with")
        return 0
    stages = [(parse_yaml(text, LOCK) or {}).get("stages", {}) for text in (before, path.read_text(encoding="utf-8"))]
    lines = compare(*stages, partial(describe_output, root))
    say("\n".join(lines))
    if len(lines) == 1:
        return 0
    repeatable = read_params(root / "params.yaml").get("repeatable") is True
    equal = "Where nothing was changed here they should be equal: please report it with the processor's name."
    say(f"  {equal if repeatable else 'With `repeatable: false` this processor rounds in its own way.'}")
    return int(bool(os.environ.get("CI")) and repeatable)


if __name__ == "__main__":
    sys.exit(main())
