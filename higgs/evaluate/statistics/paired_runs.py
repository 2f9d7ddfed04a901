"""Two runs on the same texts: which differences are significant?"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs.evaluate.statistics.intervals import (
    Resampling,
    detectable_difference,
    holm,
    paired_difference,
    smallest_p,
)
from higgs.evaluate.statistics.summary import METRICS, Metric, Sample, mean_sample, samples_of
from higgs.evaluate.utterances import NOT_SCORED
from higgs.workflow.tables import UTTERANCES, Row, find_table, read_rows

CLUSTERS = ("script", "speaker", "voice")
ALPHA = 0.05
EQUAL, UNDECIDED = "equal", "not told apart"
PERCENT, SHARE = 0.05, 0.0005  # half of the last digit that is shown: smaller differences are rounding errors
PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class Comparison:
    """`rows`, one for each metric that could be compared; `notes` say what was left out."""

    rows: list[Row]
    notes: list[str]
    provenance: tuple[dict[str, Any], dict[str, Any]]


def compare(
    folder_a: str | Path,
    folder_b: str | Path,
    group: str = "generated",
    resamples: int = 10_000,
    seed: int = 0,
    cluster: str = "script",
    letters: str = "AB",
) -> Comparison:
    """Two result folders -> for each metric both values, the difference B - A, its interval and p.

    A folder holds `utterances.parquet` (or .jsonl) with the records of `higgs.evaluate.utterances`, and
    `provenance.json`; metrics of different judges are not compared. `group` is a value of the column "group", or the
    prefix of several ("generated" includes "generated: dialogue"). Scripts, or values of the column `cluster`, are
    paired; those of one run only, or with another text, are noted. See `decide` for the other columns. `letters` name
    the runs in notes and verdicts.

    FileNotFoundError for a folder without a table, ValueError where the runs share fewer than 2 scripts or values of
    `cluster`, or no metric has values in 2 of them.
    """
    if cluster not in CLUSTERS:
        raise ValueError(f"cluster: expected one of {', '.join(CLUSTERS)}, got {cluster!r}")
    tables = [read_rows(find_table(folder, UTTERANCES)) for folder in (folder_a, folder_b)]
    files = [Path(folder) / PROVENANCE for folder in (folder_a, folder_b)]
    provenance = tuple(json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {} for file in files)
    chosen = [scored_rows(table, group) for table in tables]
    notes = [
        f"{side} has no rows of the group {group!r}." for side, rows in zip(letters, chosen, strict=True) if not rows
    ]
    shared = shared_scripts(chosen, notes, letters)
    if len(shared) < 2:
        both = f"{folder_a} and {folder_b} share {len(shared)} scripts of the group {group!r}"
        raise ValueError(f"{both}: at least 2 are needed")
    metrics = [metric for metric in METRICS if _same_judge(metric, provenance, notes, letters)]
    clusters = {row["script"]: row[cluster] for row in chosen[0] if row["script"] in shared}
    settings = Resampling(resamples, seed)
    rows = [row for metric in metrics if (row := compare_metric(metric, chosen, clusters, settings))]
    unit = "texts" if cluster == "script" else f"{cluster}s"
    if not rows:
        raise ValueError(f"no metric has values in 2 {unit} of both {folder_a} and {folder_b}: at least 2 are needed")
    for row in rows:
        row |= {"letter": letters[1], "unit": unit}
    decide(rows, settings)
    if chosen[0] == chosen[1]:
        notes.append("The two tables are equal, row by row.")
    return Comparison(rows, notes, provenance)


def scored_rows(table: Sequence[Row], group: str) -> list[Row]:
    """The rows of a group, or of all groups with that prefix, without those that are not scored."""
    scored = [row for row in table if row["status"] not in NOT_SCORED]
    return [row for row in scored if f"{row['group']}: ".startswith(f"{group}: ")]


def shared_scripts(tables: Sequence[Sequence[Row]], notes: list[str], letters: str) -> set[str]:
    """Scripts that all runs have, with the same text; the others are listed in `notes`."""
    texts = [{row["script"]: row["text"] for row in rows} for rows in tables]
    known = dict.fromkeys(script for own in texts for script in own)
    together: dict[str, list[str]] = {}
    for script in known:
        if 0 < sum(script in own for own in texts) < len(texts):
            places = " and ".join(letter for letter, own in zip(letters, texts, strict=True) if script in own)
            together.setdefault(places, []).append(script)
    for places, alone in together.items():
        notes.append(f"{len(alone)} scripts are in {places} only and left out: {_listed(sorted(alone))}.")
    everywhere = {script for script in known if all(script in own for own in texts)}
    if other := sorted(script for script in everywhere if len({own[script] for own in texts}) > 1):
        notes.append(f"{len(other)} scripts have different texts and are left out: {_listed(other)}.")
    return everywhere - set(other)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _same_judge(metric: Metric, provenance: Sequence[dict[str, Any]], notes: list[str], letters: str) -> bool:
    a, b = (known.get("judges", {}).get(metric.judge) for known in provenance)  # None for a metric without a judge
    note = f"The {metric.judge} differs and its numbers are not compared: {a} in {letters[0]}, {b} in {letters[1]}."
    if a != b and note not in notes:
        notes.append(note)
    return a == b


def decide(rows: Sequence[Row], settings: Resampling) -> None:
    """Adds to each row what follows from all of them together, as tests of one family.

    `p_holm`; `smallest_p_holm`, below which Holm's correction lets no p fall with so many texts; `detectable`, the
    difference that would be found in 80 % of cases, None where none would; and the verdict, which names the second run
    by the row's `letter`.
    """
    adjusted = holm({place: row["p"] for place, row in enumerate(rows)})
    least = {place: row.get("smallest_p", smallest_p(row["n"], settings)) for place, row in enumerate(rows)}
    floors = holm(least)
    for place, row in enumerate(rows):
        row |= {"p_holm": adjusted[place], "smallest_p_holm": floors[place]}
        row["detectable"] = detectable_difference(row["standard_error"], row["n"], len(rows), settings)
        row["verdict"] = _verdict(row, row["letter"])


def compare_metric(
    metric: Metric, tables: Sequence[Sequence[Row]], clusters: dict[str, str], settings: Resampling
) -> Row | None:
    """`n` counts clusters, `changed` is of so many `texts`; None where fewer than two clusters have it in both runs."""
    samples = [samples_of(metric, table) for table in tables]
    scripts = sorted(set(samples[0]) & set(samples[1]) & set(clusters))
    labels = [clusters[script] for script in scripts]
    if len(set(labels)) < 2:
        return None
    pairs = [paired_samples(samples[0][script], samples[1][script]) for script in scripts]
    (x_a, y_a), (x_b, y_b) = (tuple(zip(*(mean_sample(pair[side]) for pair in pairs), strict=True)) for side in (0, 1))
    result = paired_difference(x_a, x_b, y_a, y_b, settings, labels)
    row = {"metric": metric.name, "title": metric.title, "better": metric.better, "n": result.n}
    row["texts"] = len(scripts)
    row |= {"a": sum(x_a) / sum(y_a), "b": sum(x_b) / sum(y_b), "difference": result.estimate}
    row |= {"low": result.low, "high": result.high, "p": result.p, "standard_error": result.standard_error}
    least = PERCENT if metric.name.endswith("percent") else SHARE
    changes = (abs(v / w - x / y) for x, y, v, w in zip(x_a, y_a, x_b, y_b, strict=True))
    return row | {"changed": sum(change > least for change in changes)}


def paired_samples(a: Sequence[Sample], b: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Samples of one script by two systems -> those with common seeds, else the first of each, as many as both have."""
    if shared := {seed for seed, *_ in a} & {seed for seed, *_ in b}:
        a, b = ([sample for sample in samples if sample[0] in shared] for samples in (a, b))
    count = min(len(a), len(b))
    return list(a[:count]), list(b[:count])


def _verdict(row: Row, letter: str) -> str:
    if not row["changed"]:
        return EQUAL
    if not row["p_holm"] <= ALPHA:  # NaN is no test
        return UNDECIDED
    if not row["better"]:
        return f"{letter} is {'higher' if row['difference'] > 0 else 'lower'}"
    return f"{letter if (row['difference'] < 0) == (row['better'] == 'lower') else 'A'} is better"
