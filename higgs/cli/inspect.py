"""`higgs inspect`."""

import json
from dataclasses import asdict
from typing import Annotated

from typer import Argument, Option


def inspect(
    checkpoints: Annotated[
        list[str],
        Argument(metavar="CHECKPOINT...", help="nano, a folder, ORGANISATION/NAME@REVISION or s3://BUCKET/PREFIX"),
    ],
    as_json: Annotated[bool, Option("--json", help="for programs")] = False,
) -> None:
    """Show what a checkpoint holds and needs.

    Its sizes, its faults and the memory on the device, from config and tensor headers: weights are not loaded.
    """
    from higgs.cli.checkpoint_report import inspect_checkpoint, memory, to_text

    reports = [report for source in checkpoints for report in inspect_checkpoint(source)]
    content = {"checkpoints": [asdict(report) for report in reports], "memory": memory(reports)}
    print(json.dumps(content, indent=2) if as_json else to_text(reports))
    if problems := sum(len(report.problems) for report in reports):
        raise ValueError(f"{problems} problems: this checkpoint does not load")
