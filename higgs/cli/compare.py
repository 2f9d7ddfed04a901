"""`higgs compare A B`: two runs, found, compared, and shown on one page."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

RESULTS = Path("results/evaluate")
WHERE = "a folder with utterances.parquet, a Git revision, an experiment, or `workspace`"


def compare(
    a: Annotated[str, Argument(help=WHERE)],
    b: Annotated[str, Argument(help=WHERE)],
    group: Annotated[str, Option(help="which utterances")] = "generated",
    cluster: Annotated[str, Option(help="what is resampled: script, speaker or voice")] = "script",
    resamples: Annotated[int, Option(min=1, help="of texts")] = 10_000,
    seed: Annotated[int, Option(min=0, help="of the resampling")] = 0,
    out: Annotated[Path, Option(help="the page")] = Path("reports/compare.html"),
) -> None:
    """Compare two runs text by text.

    Differences with intervals, tests, and a page.
    """
    from higgs.evaluate.report.compare_page import to_page, verdict
    from higgs.evaluate.statistics.paired_runs import TABLE, compare, scored_rows
    from higgs.workflow.outputs import write_atomically
    from higgs.workflow.tables import find_table, read_rows

    with tempfile.TemporaryDirectory() as scratch:
        folders = [find(name, Path(scratch) / side) for name, side in ((a, "a"), (b, "b"))]
        found = compare(*folders, group, resamples, seed, cluster=cluster)
        rows = [scored_rows(read_rows(find_table(f, TABLE)), group) for f in folders]
    write_atomically(out, to_page(found, (a, b), rows))
    print("\n".join([*aligned(found), *found.notes, verdict(found), f"page: {out}"]))


def aligned(found: Any) -> list[str]:
    """A `Comparison` -> the lines of its table."""
    from higgs.evaluate.report.compare_page import COLUMNS, cells

    lines = [list(COLUMNS), *(cells(row) for row in found.rows)]
    widths = [max(map(len, texts)) for texts in zip(*lines, strict=True)]
    return ["  ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)).rstrip() for line in lines]


def find(name: str, scratch: Path) -> Path:
    """A folder, `workspace`, a revision or an experiment -> the folder with its results, of DVC's cache. ValueError."""
    if name == "workspace":
        return RESULTS
    if Path(name).is_dir():
        results = Path(name) / RESULTS
        return results if results.is_dir() else Path(name)
    # A revision, or the name of an experiment.
    commit = _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
    if not commit:
        experiments = _git("for-each-ref", "--format=%(refname:lstrip=-1) %(objectname)", "refs/exps")
        commit = dict(line.split(" ") for line in reversed(experiments.splitlines())).get(name)
    if not commit:
        raise ValueError(f"{name!r} is no folder, no revision of Git, and no experiment of DVC")
    tool = shutil.which("dvc") or str(Path(sys.executable).with_name("dvc"))
    command = [tool, "get", "--quiet", ".", str(RESULTS), "--rev", commit, "-o", str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        advice = "its results are not in this machine's cache of DVC: check it out and run `dvc repro`"
        raise ValueError(f"{name}: {advice}\n{done.stderr.strip()[-500:]}")
    return scratch


def _git(*words: str) -> str:
    """What Git prints; nothing where it fails."""
    done = subprocess.run(["git", *words], capture_output=True, text=True)
    return "" if done.returncode else done.stdout
