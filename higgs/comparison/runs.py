"""A run by its name: a folder, a revision of Git, an experiment of DVC, or the workspace."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs.files import check_place, git
from higgs.validation import parse_yaml
from higgs.workflow.tables import UTTERANCES, Row, find_table, read_rows

RESULTS = Path("results")
EVALUATED = RESULTS / "evaluate"
LOCK = "dvc.lock"
OUTPUTS = ("results/tokenize", "results/generate", "results/evaluate")
Stages = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Run:
    """`folder` has the tables of evaluate, `root` the sound under `results/`; `note` says where they are from."""

    name: str
    folder: Path
    root: Path
    note: str = ""

    def rows(self) -> list[Row]:
        return read_rows(find_table(self.folder, UTTERANCES))

    def audio(self, row: Row) -> Path | None:
        """The file of a record, of this run and no other; None where there is none, or a path that leads elsewhere."""
        path = Path(row["path"] or "")
        if path.is_absolute() or ".." in path.parts or not path.parts:
            return None
        # Recordings are data, which runs share.
        file = path if path.parts[0] == "data" and not (self.root / path).is_file() else self.root / path
        return file if file.is_file() else None


def find_run(name: str, scratch: Path) -> Run:
    """`workspace`, a folder, a revision or an experiment; what has to be brought here goes to `scratch`. ValueError."""
    if name == "workspace":
        return checked(Run(name, EVALUATED, Path()))
    if Path(name).is_dir():
        folder = Path(name)
        usual = [folder / EVALUATED, folder / "evaluate"]
        folder = next((f for f in usual if f.is_dir()), folder)
        whole = Path(os.path.abspath(folder))  # "evaluate", and "." in it, have parents as well
        return checked(Run(name, folder, whole.parent.parent if whole.name == "evaluate" else folder))
    commit = git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
    if not commit:
        experiments = git("for-each-ref", "--format=%(refname:lstrip=-1) %(objectname)", "refs/exps")
        commit = dict(line.split(" ") for line in reversed(experiments.splitlines())).get(name)
    if not commit:
        raise ValueError(f"{name!r} is no folder, no revision of Git, and no experiment of DVC")
    wanted = _stages(git("show", f"{commit}:./{LOCK}"))
    if "evaluate" not in wanted:
        raise ValueError(f"{name}: there are no results of this revision, its {LOCK} has no stage evaluate")
    return _results_of(name, wanted, scratch)


@contextmanager
def found_runs(names: Sequence[str], out: Path) -> Iterator[list[Run]]:
    """Two runs or more, as long as what was brought here for them is needed. OSError where `out` cannot be written."""
    if len(names) < 2:
        raise ValueError(f"two runs or more are compared, got {len(names)}: {', '.join(names)}")
    check_place(out)
    with tempfile.TemporaryDirectory() as scratch:
        yield [find_run(name, Path(scratch) / str(place)) for place, name in enumerate(names)]


def checked(run: Run) -> Run:
    """-> the run; FileNotFoundError where it has no table."""
    if not run.folder.is_dir():
        raise FileNotFoundError(f"{run.name}: there is no folder {run.folder}; run `dvc repro`")
    find_table(run.folder, UTTERANCES)
    return run


def _results_of(name: str, wanted: Stages, scratch: Path) -> Run:
    """The results that a lock names, or those that the same stages gave on this machine."""
    cache = _cache()
    if _bring(_hashes(wanted), cache, scratch):
        return checked(Run(name, scratch / EVALUATED, scratch))
    here = f"the results of this machine, which has other last digits than {name}'s {LOCK}"
    lock = Path(LOCK)
    present = _stages(lock.read_text(encoding="utf-8")) if lock.is_file() else {}
    if same_work(wanted, present) and _unchanged(present):
        return checked(Run(name, EVALUATED, Path(), f"{name}: the workspace, {here}." if wanted != present else ""))
    if (hashes := _run_before(wanted, cache)) and _bring(hashes, cache, scratch):
        return checked(Run(name, scratch / EVALUATED, scratch, f"{name}: from the cache of runs, {here}."))
    raise ValueError(
        f"{name}: its results are neither in DVC's cache nor in the workspace, which holds another run. "
        f"To make them: `git worktree add ../{Path(name).name}-run {name}`, there `make repro`, "
        f"then give the folder ../{Path(name).name}-run in place of {name}"
    )


def _stages(text: str) -> Stages:
    return (parse_yaml(text, LOCK) or {}).get("stages", {}) if text else {}


def _hashes(stages: Stages) -> dict[str, str]:
    """Output -> its md5 sum, of the three folders of results."""
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    return {out["path"]: out["md5"] for out in outs if out["path"] in OUTPUTS}


def same_work(a: Stages, b: Stages) -> bool:
    """Whether two locks have the same commands, parameters, code and data: the processor is all that differs."""
    names = [name for name in ("tokenize", "generate", "evaluate") if name in a]
    return bool(names) and all(_work(a[name]) == _work(b.get(name, {})) for name in names)


def _work(stage: Mapping[str, Any]) -> tuple[Any, ...]:
    deps = {dep["path"]: dep.get("md5") for dep in stage.get("deps", []) if dep["path"] not in OUTPUTS}
    return stage.get("cmd"), deps, stage.get("params")


def _unchanged(stages: Stages) -> bool:
    """Whether the folders of results are those that the lock names."""
    return all(folder_md5(Path(path)) == md5 for path, md5 in _hashes(stages).items())


def folder_md5(folder: Path) -> str:
    """As DVC counts it: of the list of files with their sums, without times, which .dvcignore leaves out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "timing.json")
    names = sorted((path.relative_to(folder).as_posix(), path) for path in files)
    listing = [{"md5": hashlib.md5(path.read_bytes()).hexdigest(), "relpath": name} for name, path in names]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def _cache() -> Path:
    usual = Path(".dvc/cache")
    if usual.is_dir():
        return usual
    tool = shutil.which("dvc") or str(Path(sys.executable).with_name("dvc"))
    try:
        done = subprocess.run([tool, "cache", "dir"], capture_output=True, text=True)
    except OSError:
        return usual
    return Path(done.stdout.strip()) if not done.returncode and done.stdout.strip() else usual


def _bring(hashes: Mapping[str, str], cache: Path, scratch: Path) -> bool:
    """Links the files of outputs into `scratch`; False where the cache lacks the tables. Sound may be missing."""

    def cached(md5: str) -> Path:
        return cache / "files" / "md5" / md5[:2] / md5[2:]

    if "results/evaluate" not in hashes:
        return False
    for output, md5 in hashes.items():
        listing = cached(md5)
        files = json.loads(listing.read_text()) if listing.is_file() else []
        present = [file for file in files if cached(file["md5"]).is_file()]
        if output == "results/evaluate" and (not files or len(present) < len(files)):
            return False
        for file in present:
            link = scratch / output / file["relpath"]
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(cached(file["md5"]).resolve())
    return True


def _run_before(wanted: Stages, cache: Path) -> dict[str, str]:
    """The hashes that DVC's cache of runs has for the same commands, parameters, code and data, as one chain."""
    known: dict[str, list[Mapping[str, Any]]] = {}
    for path in sorted(cache.glob("runs/*/*/*"), key=lambda file: file.stat().st_mtime if file.is_file() else 0):
        if path.is_file() and path.suffix != ".tmp":
            entry = parse_yaml(path.read_text(encoding="utf-8"), str(path))
            for name in ("tokenize", "generate", "evaluate"):
                if isinstance(entry, dict) and name in wanted and _work(entry) == _work(wanted[name]):
                    known.setdefault(name, []).append(entry)
    for last in reversed(known.get("evaluate", [])):
        hashes = {dep["path"]: dep["md5"] for dep in last["deps"] if dep["path"] in OUTPUTS}
        hashes |= _hashes({"evaluate": last})
        for name in ("tokenize", "generate"):
            made = [_hashes({name: entry}).get(f"results/{name}") for entry in known.get(name, [])]
            if hashes.get(f"results/{name}") not in made:
                break
        else:
            return hashes
    return {}
