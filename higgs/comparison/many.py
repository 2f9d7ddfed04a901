"""Two runs or more: each against the first, which of all are told apart, and which no other beats in both respects."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from operator import itemgetter
from string import ascii_uppercase
from typing import Any

from higgs.comparison.runs import Run
from higgs.evaluate.statistics.intervals import Interval, Resampling, holm
from higgs.evaluate.statistics.paired_runs import ALPHA, compare, compare_metric, decide, scored_rows, shared_scripts
from higgs.evaluate.statistics.summary import METRICS, Metric, measure
from higgs.workflow.tables import Row, grouped

MOST_RUNS = 12
RANKED = ("wer_percent", "similarity", "mos_overall")


@dataclass(frozen=True)
class Choice:
    """What is compared, and how: see `paired_runs.compare`."""

    group: str = "generated"
    cluster: str = "script"
    settings: Resampling = Resampling()


@dataclass(frozen=True)
class Findings:
    """`rows` as `paired_runs.compare` makes them, each with the `letter` of the run that stands against A.

    `tables` are the records of the group by run; `rankings` by metric, empty for two runs; `provenance` by run.
    """

    runs: Sequence[Run]
    rows: list[Row]
    notes: list[str]
    tables: list[list[Row]]
    provenance: list[dict[str, Any]]
    rankings: dict[Metric, list[Row]]

    @property
    def letters(self) -> str:
        return ascii_uppercase[: len(self.runs)]


def compare_runs(runs: Sequence[Run], choice: Choice, more: Sequence[Row] = (), notes: Sequence[str] = ()) -> Findings:
    """Runs -> findings; `more` are rows of other tests, of listeners for one, which join the family. ValueError."""
    if not 2 <= len(runs) <= MOST_RUNS:
        raise ValueError(f"2 to {MOST_RUNS} runs can be compared, got {len(runs)}")
    first, *others = runs
    settings, rows, every_note = choice.settings, [], [run.note for run in runs if run.note] + list(notes)
    provenance: list[dict[str, Any]] = []
    for letter, other in zip(ascii_uppercase[1:], others, strict=False):
        named = {"cluster": choice.cluster, "letters": f"A{letter}"}
        found = compare(first.folder, other.folder, choice.group, settings.num_resamples, settings.seed, **named)
        rows += found.rows
        every_note += [note for note in found.notes if note not in every_note]
        provenance += found.provenance[bool(provenance) :]
    rows = [*more, *rows]
    decide(rows, settings)
    tables = [scored_rows(run.rows(), choice.group) for run in runs]
    rankings = rank(tables, provenance, choice) if others[1:] else {}
    return Findings(runs, rows, every_note, tables, provenance, rankings)


def rank(
    tables: Sequence[Sequence[Row]], provenance: Sequence[dict[str, Any]], choice: Choice
) -> dict[Metric, list[Row]]:
    """Metric -> its runs from the best down, over the texts that all have: place, estimate with interval, verdict.

    Holm's correction is over all pairs of runs, so that it holds whichever turns out to be the best. Intervals are over
    texts, p is over clusters. A metric is left out where two runs cannot be tested, or the judges differ.
    """
    shared = shared_scripts(tables, [], ascii_uppercase[: len(tables)])
    clusters = {row["script"]: row[choice.cluster] for row in tables[0] if row["script"] in shared}
    rankings = {}
    for metric in (metric for metric in METRICS if metric.name in RANKED):
        judges = {str(known.get("judges", {}).get(metric.judge)) for known in provenance}
        estimates = [_over(metric, table, shared, choice.settings) for table in tables]
        if len(judges) > 1 or None in estimates:
            continue
        pairs = list(combinations(range(len(tables)), 2))
        found = {
            (a, b): row["p"]
            for a, b in pairs
            if (row := compare_metric(metric, (tables[a], tables[b]), clusters, choice.settings))
        }
        if len(found) < len(pairs):  # without a test nobody is the best
            continue
        adjusted = holm(found)
        sign = 1 if metric.better == "lower" else -1
        order = sorted(range(len(tables)), key=lambda run: (sign * estimates[run].estimate, run))
        rankings[metric] = [
            {"run": run, "interval": estimates[run], "p_holm": adjusted.get((min(run, order[0]), max(run, order[0])))}
            for run in order
        ]
        for row in rankings[metric]:
            row["best"] = row["p_holm"] is None or row["p_holm"] > ALPHA
    return rankings


def _over(metric: Metric, table: Sequence[Row], shared: set[str], settings: Resampling) -> Interval | None:
    return measure(metric, [row for row in table if row["script"] in shared], settings)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """(WER, similarity) of runs -> those that no other equals or beats in both and beats in one, by WER."""
    best = []
    for place, (wer, similarity) in enumerate(points):
        beaten = any(w <= wer and s >= similarity and (w, s) != (wer, similarity) for w, s in points)
        if not beaten:
            best.append(place)
    return sorted(best, key=lambda place: points[place])


def shared_samples(tables: Sequence[Sequence[Row]]) -> dict[str, list[list[Row]]]:
    """Script -> the samples that all runs have of it, each a row of every run: by seed, else in order."""
    shared = shared_scripts(tables, [], ascii_uppercase[: len(tables)])
    by_script = [grouped((row for row in table if row["script"] in shared), itemgetter("script")) for table in tables]
    samples = {}
    for script, first in by_script[0].items():
        sides = [{row["seed"]: row for row in reversed(own[script])} for own in by_script]
        seeds = [seed for seed in dict.fromkeys(row["seed"] for row in first) if all(seed in side for side in sides)]
        in_order = zip(*(own[script] for own in by_script), strict=False)
        samples[script] = [[side[seed] for side in sides] for seed in seeds] or [list(rows) for rows in in_order]
    return samples


def texts_of(findings: Findings) -> list[tuple[float, list[Row]]]:
    """The samples that all runs have: the most changed text first, and of its samples that which changed most.

    With each its change, the largest difference of its word error rates between two runs, in points.
    """
    texts = []
    for samples in shared_samples(findings.tables).values():
        changes = sorted(((_change(rows), rows) for rows in samples), key=lambda pair: -pair[0])
        texts.append((sum(change for change, _ in changes) / len(changes), changes))
    texts.sort(key=lambda pair: -pair[0])
    return [sample for _, changes in texts for sample in changes]


def _change(rows: Sequence[Row]) -> float:
    rates = [row["wer_percent"] for row in rows if row["wer_percent"] is not None]
    return max(rates) - min(rates) if len(rates) == len(rows) else 0.0
