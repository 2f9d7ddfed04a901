"""The page of `higgs compare A B`."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from higgs.evaluate.statistics.paired_runs import Comparison
from higgs.workflow.outputs import picture, table
from higgs.workflow.page import bare_page
from higgs.workflow.plots import differences, png
from higgs.workflow.tables import Row

MOST = 12
COLUMNS = ("metric", "A", "B", "B - A [95 % interval]", "p", "p, Holm", "verdict")


def cells(row: Row) -> list[str]:
    """One metric, under COLUMNS."""
    digits = 1 if row["metric"].endswith("percent") else 3
    a, b, change, low, high = (f"{row[name]:.{digits}f}" for name in ("a", "b", "difference", "low", "high"))
    sign = "" if change.startswith("-") else "+"
    tests = ["<0.001" if row[name] < 0.001 else f"{row[name]:.3f}" for name in ("p", "p_holm")]
    return [row["title"], a, b, f"{sign}{change} [{low}, {high}]", *tests, row["verdict"]]


def verdict(comparison: Comparison) -> str:
    """The significant differences in one sentence."""
    decided = [row for row in comparison.rows if row["verdict"] != "no difference"]
    if not decided:
        return "No difference that could not be chance (p >= 0.05 after Holm's correction for all metrics)."
    return "; ".join(f"{row['title']}: {row['verdict']}" for row in decided) + "."


def to_page(comparison: Comparison, names: Sequence[str], rows: Sequence[Sequence[Row]]) -> str:
    title = " against ".join(names)
    parts = [
        f"<h1>{html.escape(title)}</h1><p><b>{html.escape(verdict(comparison))}</b></p>",
        "<p>Both spoke the same texts, so they are paired text by text: the difference is B - A, its interval is "
        "bootstrapped over texts, p is that of a permutation test.</p>",
        _table(COLUMNS, [cells(row) for row in comparison.rows]),
        picture(png(differences(comparison.rows)), "differences with their intervals")._repr_html_(),
        *(f"<p>{html.escape(note)}</p>" for note in comparison.notes),
        "<h2>What differs between the runs</h2>",
        _table(("what", "A", "B"), _changed(*comparison.provenance)),
        "<h2>Texts that changed most</h2>",
        _table(("text", "A: WER %", "A: hypothesis", "B: WER %", "B: hypothesis"), moved(*rows)),
    ]
    return bare_page(title, "".join(parts))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "<p>Nothing.</p>"
    content = table([dict(zip(columns, row, strict=True)) for row in rows])
    return f'<div class="output_subarea">{content._repr_html_()}</div>'


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[list[str]]:
    keys = dict.fromkeys([*a, *b])
    return [[key, str(a.get(key, "-")), str(b.get(key, "-"))] for key in keys if a.get(key) != b.get(key)]


def moved(a: Sequence[Row], b: Sequence[Row]) -> list[list[str]]:
    """The texts whose word errors over all samples changed most, with the hypotheses of the first samples."""
    changes = []
    for script in dict.fromkeys(row["script"] for row in a):
        sides = [[r for r in rows if r["script"] == script and r["words"]] for rows in (a, b)]
        if not all(sides) or any(r["word_errors"] is None for side in sides for r in side):
            continue
        before, after = (100 * sum(r["word_errors"] for r in s) / sum(r["words"] for r in s) for s in sides)
        if before != after:
            row_a, row_b = (side[0] for side in sides)
            shown = [row_a["text"], f"{before:.0f}", row_a["heard"], f"{after:.0f}", row_b["heard"]]
            changes.append((abs(after - before), shown))
    changes.sort(key=lambda pair: -pair[0])
    return [shown for _, shown in changes[:MOST]]
