"""Two runs of the same texts: which differences are more than chance?"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs.evaluate.statistics.intervals import holm, paired_difference
from higgs.evaluate.statistics.summary import METRICS, Metric, mean_take, takes_of
from higgs.evaluate.utterances import NOT_SCORED
from higgs.workflow.tables import Row, find_table, read_rows

CLUSTERS = ("script", "speaker", "voice")
TABLE, PROVENANCE = "utterances", "provenance.json"


@dataclass(frozen=True)
class Comparison:
    """`rows`, one for each metric that could be compared, and what a reader has to know of the pair."""

    rows: list[Row]
    notes: list[str]
    provenance: tuple[dict[str, Any], dict[str, Any]]


def compare(
    folder_a: str | Path,
    folder_b: str | Path,
    group: str = "generated",
    resamples: int = 10_000,
    seed: int = 0,
    alpha: float = 0.05,
    cluster: str = "script",
) -> Comparison:
    """Two result folders -> for each metric both values, the difference B - A, its interval and p.

    A folder holds `utterances.parquet` (or .jsonl) with the rows of `higgs.evaluate.utterances`, and
    `provenance.json`, whose `judges` say who judged; what different judges said is not compared.
    `group` is a group or the beginning of several ("generated" takes "generated: dialogue" along).
    Scripts are paired, or what the column `cluster` names ("speaker"): scripts that only one run has,
    or whose text differs, are left out and counted in the notes. Of a script the means of the takes
    that both have are compared, seed by seed, or as many of either, in order, where they share no
    seed: a mean of three takes beside a single one would not be the same thing by another system.
    `p_holm` allows for the number of metrics; the verdict is "no difference" where it exceeds `alpha`.

    Raises FileNotFoundError for a folder without a table, ValueError where no script is in both.
    """
    if cluster not in CLUSTERS:
        raise ValueError(f"cluster: expected one of {', '.join(CLUSTERS)}, got {cluster!r}")
    tables = [read_rows(find_table(folder, TABLE)) for folder in (folder_a, folder_b)]
    provenance = tuple(_provenance(folder) for folder in (folder_a, folder_b))
    chosen = [chosen_rows(table, group) for table in tables]
    notes = _set_aside(*chosen, group)
    shared = _shared_scripts(*chosen, notes)
    if len(shared) < 2:
        raise ValueError(
            f"{folder_a} and {folder_b} share {len(shared)} scripts of the group {group!r}: at least 2 are needed"
        )
    metrics = [metric for metric in METRICS if _same_judge(metric, provenance, notes)]
    clusters = {row["script"]: row[cluster] for row in chosen[0]}
    rows = []
    for metric in metrics:
        row = _compare_metric(metric, chosen, {s: clusters[s] for s in shared}, resamples, seed)
        if row is not None:
            rows.append(row)
    adjusted = holm({row["metric"]: row["p"] for row in rows})
    for row in rows:
        row["p_holm"] = adjusted[row["metric"]]
        row["verdict"] = _verdict(row, alpha)
    if chosen[0] == chosen[1]:
        notes.append("The two tables are equal, row by row.")
    return Comparison(rows, notes, provenance)


def _provenance(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / PROVENANCE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def chosen_rows(table: Sequence[Row], group: str) -> list[Row]:
    """The scored rows of a group, or of all that begin with it."""
    return [
        row
        for row in table
        if (row["group"] == group or row["group"].startswith(f"{group}: ")) and row["status"] not in NOT_SCORED
    ]


def _set_aside(a: Sequence[Row], b: Sequence[Row], group: str) -> list[str]:
    return [f"{side} has no rows of the group {group!r}." for side, rows in (("A", a), ("B", b)) if not rows]


def _shared_scripts(a: Sequence[Row], b: Sequence[Row], notes: list[str]) -> set[str]:
    """Scripts that both have with one text; what is left out goes to the notes."""
    texts_a, texts_b = ({row["script"]: row["text"] for row in rows} for rows in (a, b))
    for side, own, other in (("A", texts_a, texts_b), ("B", texts_b, texts_a)):
        if alone := sorted(set(own) - set(other)):
            notes.append(f"{len(alone)} scripts are in {side} only and left out: {_listed(alone)}.")
    both = set(texts_a) & set(texts_b)
    if other := sorted(script for script in both if texts_a[script] != texts_b[script]):
        notes.append(f"{len(other)} scripts have different texts and are left out: {_listed(other)}.")
    return both - set(other)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _same_judge(metric: Metric, provenance: Sequence[dict[str, Any]], notes: list[str]) -> bool:
    if not metric.judge:
        return True
    a, b = (known.get("judges", {}).get(metric.judge) for known in provenance)
    if a == b:
        return True
    note = f"The {metric.judge} differs and its numbers are not compared: {a} in A, {b} in B."
    if note not in notes:
        notes.append(note)
    return False


def _compare_metric(
    metric: Metric, tables: Sequence[Sequence[Row]], clusters: dict[str, str], resamples: int, seed: int
) -> Row | None:
    """None where fewer than two clusters have the metric in both runs."""
    takes = [takes_of(metric, table) for table in tables]
    scripts = sorted(set(takes[0]) & set(takes[1]) & set(clusters))
    labels = [clusters[script] for script in scripts]
    if len(set(labels)) < 2:
        return None
    pairs = [paired_takes(*(some[script] for some in takes)) for script in scripts]
    (x_a, y_a), (x_b, y_b) = (tuple(zip(*(mean_take(pair[side]) for pair in pairs), strict=True)) for side in (0, 1))
    found = paired_difference(x_a, x_b, y_a, y_b, labels, resamples, seed)
    return {
        "metric": metric.name,
        "title": metric.title,
        "better": metric.better,
        "n": found.n,
        "a": sum(x_a) / sum(y_a),
        "b": sum(x_b) / sum(y_b),
        "difference": found.estimate,
        "low": found.low,
        "high": found.high,
        "p": found.p,
    }


def paired_takes(a: Sequence[tuple], b: Sequence[tuple]) -> tuple[list[tuple], list[tuple]]:
    """Takes of one script, seed first, by two systems -> those with the seeds that both have, else the
    first of each, as many as both have."""
    if shared := {seed for seed, *_ in a} & {seed for seed, *_ in b}:
        a, b = ([take for take in takes if take[0] in shared] for takes in (a, b))
    count = min(len(a), len(b))
    return list(a[:count]), list(b[:count])


def _verdict(row: Row, alpha: float) -> str:
    if row["p_holm"] > alpha:
        return "no difference"
    if not row["better"]:
        return "B is higher" if row["difference"] > 0 else "B is lower"
    return "B is better" if (row["difference"] < 0) == (row["better"] == "lower") else "A is better"
