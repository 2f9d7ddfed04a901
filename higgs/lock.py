"""Says which outputs of dvc.lock differ from the committed ones: `python -m higgs.lock`.

On the machine that made the commit, or one like it, none does. Another type of CPU adds in another
order, and the hashes of whatever comes out of that sum move with it; this is worth knowing and no
failure, so the exit status is 0 either way.
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from higgs.cells import find_root, say
from higgs.params import parse_yaml

LOCK = "dvc.lock"


def committed_lock(root: Path) -> str | None:
    """The text of dvc.lock at HEAD; None outside Git, without Git, or before it is committed."""
    command = ["git", "-C", str(root), "show", f"HEAD:./{LOCK}"]
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


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Two mappings of stages -> the lines of the report, for people."""
    made = {
        path for stages in (before, after) for s in stages.values() for path in hashes(s, "outs")
    }
    total, lines, differing = 0, [], 0
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, {}), after.get(name, {})
        old_hashes, new_hashes = hashes(old, "outs"), hashes(new, "outs")
        total += len(old_hashes.keys() | new_hashes.keys())
        moved = changed(old_hashes, new_hashes)
        differing += len(moved)
        lines += [f"  {p}: {old_hashes.get(p)} -> {new_hashes.get(p)}" for p in moved]
        causes = own_changes(old, new, made)
        if moved and causes:
            lines.append(f"    {name} was also changed here: {', '.join(causes)}")
    if not differing:
        return [f"{LOCK}: all {total} outputs have the hashes of the commit"]
    return [
        f"{LOCK}: {differing} of {total} outputs have other hashes than the commit:",
        *lines,
        "  Where nothing was changed here, this machine computes another last digit (another type of "
        "CPU, another build of a library).",
    ]


def main() -> None:
    root = find_root()
    before, path = committed_lock(root), root / LOCK
    if before is None or not path.is_file():
        say(f"{LOCK}: no committed one to compare with")
        return
    after = path.read_text(encoding="utf-8")
    for line in compare(read_stages(before, f"HEAD:{LOCK}"), read_stages(after, LOCK)):
        say(line)


if __name__ == "__main__":
    main()
