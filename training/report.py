"""Write the report of a training: `python training/report.py` runs training/report.ipynb and makes a page of it.

The runner of the stages does the work: a failing cell ends it with its own traceback, and the page loads nothing from
outside.
"""

import argparse
import contextlib
from pathlib import Path

import nbformat

from higgs.files import write_atomically
from higgs.workflow.clean import clean_executed, dump
from higgs.workflow.page import to_html
from higgs.workflow.runner import check_parameters_cell, execute, stage_environment

HERE = Path(__file__).resolve().parent


def write_report(out: Path, workers: int | None = None) -> Path:
    """-> the page, `out/report.html`; beside it the executed notebook. Raises StageError where a cell fails."""
    out, source = out.resolve(), Path("report.ipynb")
    with contextlib.chdir(HERE), stage_environment("training", workers=workers) as scratch:
        check_parameters_cell(nbformat.read(source, 4), ["out"], source)
        executed = clean_executed(execute(source, {"out": str(out)}, scratch, out / "report.failed.ipynb"))
    page = out / "report.html"
    for path, content in ((page, to_html(executed, "training")), (page.with_suffix(".ipynb"), dump(executed))):
        write_atomically(path, content)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = "folder of the jobs' logs, snapshots and evaluation, where the page goes too; default: training/out"
    parser.add_argument("--out", type=Path, default=HERE / "out", help=what)
    parser.add_argument("--workers", type=int, help="default: one for each core")
    arguments = parser.parse_args()
    print(write_report(arguments.out, arguments.workers))


if __name__ == "__main__":
    main()
