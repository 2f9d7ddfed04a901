"""A comparison in words: the cells of its table, what it found, and what it could have found."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from higgs.comparison.figures import UNITS, kind_of
from higgs.evaluate.statistics.paired_runs import ALPHA, EQUAL, UNDECIDED
from higgs.validation import flat
from higgs.workflow.tables import Row, grouped

COLUMNS = ("metric", "A", "B", "B - A [95 % interval]", "p", "p, Holm", "found from", "verdict")
NOTHING = "nothing"


def digits_of(row: Row) -> int:
    return 1 if kind_of(row["metric"]) in ("percent", "preference", "score") else 3


def short_p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"  # NaN is no test


def cells(row: Row) -> list[str]:
    """One metric, under COLUMNS."""
    digits = digits_of(row)
    a, b, change, low, high = (f"{row[name]:.{digits}f}" for name in ("a", "b", "difference", "low", "high"))
    sign = "" if change.startswith("-") else "+"
    tests = [short_p(row[name]) for name in ("p", "p_holm")]
    return [row["title"], a, b, f"{sign}{change} [{low}, {high}]", *tests, found_from(row), row["verdict"]]


def found_from(row: Row) -> str:
    """The difference that would be found in 80 % of cases; "nothing" where no p can be small enough, "-" unknown."""
    if row["smallest_p_holm"] > ALPHA:
        return NOTHING
    return "-" if row["detectable"] is None else f"{row['detectable']:.{digits_of(row)}f}"


def verdict(rows: Sequence[Row]) -> str:
    """The significant differences in one sentence; without any, that."""
    if found := [row for row in rows if row["verdict"] not in (EQUAL, UNDECIDED)]:
        return "; ".join(f"{row['title']}: {row['verdict']}" for row in found) + "."
    if all(row["verdict"] == EQUAL for row in rows):
        return "The runs are equal in every metric."
    return f"The runs are not told apart (p >= {ALPHA} after Holm's correction for {len(rows)} tests)."


def power(rows: Sequence[Row]) -> list[str]:
    """What so many texts, or clusters of them, could show, in numbers."""
    lines, blind = [], [row for row in rows if row["smallest_p_holm"] > ALPHA]
    for (n, unit), some in sorted(grouped(blind, itemgetter("n", "unit")).items()):
        least = min(row["smallest_p_holm"] for row in some)
        titles = "every metric" if len(some) == len(rows) else f"{len(some)} of {len(rows)} tests"
        lines.append(
            f"With {n} {unit} nothing can be found in {titles}: after Holm's correction for {len(rows)} tests "
            f"no p is below {least:.2g}, however large the difference."
        )
    known = [row for row in rows if row["detectable"] is not None]
    first = next((row for row in known if row["metric"] == "wer_percent"), known[0] if known else None)
    if first:
        unit = UNITS.get(kind_of(first["metric"]), "")
        lines.append(
            f"{first['title']}: a true difference of {first['detectable']:.{digits_of(first)}f} {unit}".rstrip()
            + f" would be found in 80 % of cases with {first['n']} {first['unit']} (run {first['letter']} against A). "
            'The column "found from" has this for every metric; a smaller one may be there and stay unseen.'
        )
    return lines


def what_differs(provenance: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The entries that are not the same in all runs: name, and each run's value."""
    known = [flat(values) for values in provenance]
    keys = dict.fromkeys(key for values in known for key in values)
    lines = [[key, *(values.get(key, "-") for values in known)] for key in keys]
    return [line for line in lines if len(set(line[1:])) > 1]
