"""Files against the md5 that DVC recorded of them: `python -m higgs.workflow.verify data.dvc` (or dvc.lock).

DVC itself takes a write-protected file of its cache to be whole, and what it checked out from there to be up to date.
"""

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from higgs.validation import parse_yaml
from higgs.workflow.outputs import find_root, say

CACHE = Path(".dvc/cache/files/md5")


def cached(root: Path, md5: str) -> Path:
    """The file of the cache with this content."""
    return root / CACHE / md5[:2] / md5[2:]


def listing(root: Path, md5: str) -> dict[str, str] | None:
    """An output's files as path below it -> md5: "" for a single file. None where the cache does not list a folder."""
    if not md5.endswith(".dir"):
        return {"": md5}
    path = cached(root, md5)
    return {file["relpath"]: file["md5"] for file in json.loads(path.read_text())} if path.is_file() else None


def outputs(path: Path) -> list[dict[str, Any]]:
    """The outputs that data.dvc or dvc.lock names."""
    content = parse_yaml(path.read_text(encoding="utf-8"), str(path)) or {}
    stages = content.get("stages", {"": content})
    return [out for stage in stages.values() for out in stage.get("outs", [])]


def damaged(root: Path, out: dict[str, Any]) -> tuple[list[str], list[Path]]:
    """-> a line for each file of an output that is missing or has another md5, and the files to delete."""
    listed = cached(root, out["md5"])
    if out["md5"].endswith(".dir") and listed.is_file() and f"{md5_of(listed)}.dir" != out["md5"]:
        return [f"{listed.relative_to(root)}, which lists the files of {out['path']}, is damaged"], [listed]
    if (files := listing(root, out["md5"])) is None:
        say(f"{out['path']} is not compared with its md5: {CACHE} has no list of its files")
        return [], []
    lines, delete = [], []
    for name, md5 in files.items():
        path = root / out["path"] / name
        if not path.is_file():
            lines.append(f"{path.relative_to(root)} is missing")
        elif (found := md5_of(path)) != md5:
            lines.append(f"{path.relative_to(root)} has the md5 {found}, and {md5} is recorded")
            delete += [file for file in (path, cached(root, md5)) if file.is_file() and md5_of(file) != md5]
    return lines, delete


def md5_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """0: every file is as it was recorded; 1: the damaged ones are named, and what to type."""
    names, root = sys.argv[1:] if arguments is None else arguments, find_root()
    lines, delete = [], []
    for out in (out for name in names for out in outputs(root / name)):
        found = damaged(root, out)
        lines, delete = lines + found[0], delete + found[1]
    if not lines:
        return 0
    remove = shlex.join(["rm", "-f", *dict.fromkeys(str(path.relative_to(root)) for path in delete)])
    advice = "A change of your own is recorded by `dvc add data`. Otherwise these files are damaged; they come anew by"
    say("\n".join([*lines, f"{advice}\n    {remove} && make repro"]))
    return 1


if __name__ == "__main__":
    sys.exit(main())
