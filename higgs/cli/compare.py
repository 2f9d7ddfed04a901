"""`higgs compare A B ...`: runs, found, compared, and heard on one page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

WHERE = "two or more: a folder with results, a Git revision, an experiment, or `workspace`"


def compare(
    runs: Annotated[list[str], Argument(help=WHERE, metavar="A B [C ...]")],
    group: Annotated[str, Option(help="which utterances")] = "generated",
    cluster: Annotated[str, Option(help="what is resampled: script, speaker or voice")] = "script",
    resamples: Annotated[int, Option(min=1, help="of texts")] = 10_000,
    seed: Annotated[int, Option(min=0, help="of the resampling")] = 0,
    ratings: Annotated[list[Path] | None, Option(help="listeners' answers to a page of `higgs listen`")] = None,
    key: Annotated[Path, Option(help="the key of that page")] = Path("reports/listen.key.json"),
    out: Annotated[Path, Option(help="the page")] = Path("reports/compare.html"),
) -> None:
    """Compare runs text by text, each with the first.

    Differences with intervals, tests, and a page on which every text can be heard in all of them.
    """
    from higgs.comparison.runs import found_runs

    # `--ratings A.json B.json`: the second word is no run.
    files = [*(ratings or []), *(Path(name) for name in runs if ratings and name.endswith(".json"))]
    runs = [name for name in runs if not (ratings and name.endswith(".json"))]
    with found_runs(runs, out) as found:
        # After what may be refused: these import torch.
        from higgs.comparison.many import Choice, compare_runs
        from higgs.comparison.page import to_page
        from higgs.comparison.ratings import rated
        from higgs.comparison.tables import power, verdict
        from higgs.evaluate.statistics.intervals import Resampling
        from higgs.workflow.page import write_page

        choice = Choice(group, cluster, Resampling(resamples, seed))
        rows, notes = rated(files, key, found, choice.settings) if files else ([], [])
        findings = compare_runs(found, choice, rows, notes)
        write_page(out, to_page(findings))
    lines = [*power(findings.rows), *findings.notes, verdict(findings.rows)]
    print("\n".join([*aligned(findings.rows, len(runs) > 2), *lines, f"page: {out}"]))


def aligned(rows: Sequence[dict[str, Any]], several: bool = False) -> list[str]:
    """Rows of a comparison -> the lines of a table."""
    from higgs.comparison.tables import COLUMNS, cells

    names = [name.replace("B", "other") for name in COLUMNS] if several else list(COLUMNS)
    lines = [names, *(cells(row) for row in rows)]
    if several:
        lines = [["run", *names], *([row["letter"], *line] for row, line in zip(rows, lines[1:], strict=True))]
    widths = [max(map(len, texts)) for texts in zip(*lines, strict=True)]
    return ["  ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)).rstrip() for line in lines]
