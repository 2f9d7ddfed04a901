"""`higgs listen A B ...`: a blind listening test as one page."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from higgs.cli.compare import WHERE


def listen(
    runs: Annotated[list[str], Argument(help=WHERE, metavar="A B [C ...]")],
    out: Annotated[Path, Option(help="the page; its key is written beside it, as NAME.key.json")] = Path(
        "reports/listen.html"
    ),
    texts: Annotated[int, Option(min=2, max=200, help="so many are drawn")] = 12,
    seed: Annotated[int, Option(min=0, help="of texts, order and sides")] = 0,
    scores: Annotated[bool, Option("--scores", help="0 to 100 for each sound, for two runs too")] = False,
    group: Annotated[str, Option(help="which utterances")] = "generated",
) -> None:
    """Make a blind listening test of runs.

    Two are compared in pairs; more are scored from 0 to 100, with a hidden recording and the same through the codec.
    Listeners send back the file that the page gives them: `higgs compare A B --ratings FILE`.
    """
    from higgs.comparison.runs import found_runs

    with found_runs(runs, out) as found:
        # After what may be refused: these import torch.
        from higgs.comparison.listening import PREFERENCE, SCORES, key_path, make_test
        from higgs.workflow.outputs import write_json
        from higgs.workflow.page import write_page

        kind = SCORES if scores or len(runs) > 2 else PREFERENCE
        page, key = make_test(found, kind, texts, seed, group)
    write_json(key_path(out), key)
    write_page(out, page)
    notes = [run.note for run in found if run.note]
    count = f"{len(key['trials'])} texts, {len(page.encode()) / 1e6:.1f} MB"
    print(
        "\n".join([*notes, f"page: {out} ({count}), to be sent to listeners", f"key: {key_path(out)}, not to be sent"])
    )
