"""`python -m higgs.workflow.speed`: how long the last run took, on one page that nothing tracks.

Times vary from run to run, so they are in no report: stages leave them in results/STAGE/timing.json.
"""

import html
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from higgs.workflow.outputs import write_atomically
from higgs.workflow.page import bare_page

PAGE = Path("reports/speed.html")
TITLES = {
    "stage_seconds": "the whole stage, s",
    "generation_seconds": "speaking, s",
    "new_audio_seconds": "sound that was made, s",
    "times_real_time": "times real time, codec included",
    "listening_seconds": "judging, s",
    "utterances": "utterances judged",
}


def cpu_name() -> str:
    """The processor's model, or its kind where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def machine() -> dict[str, str]:
    """What the times depend on."""
    return {
        "processor": cpu_name(),
        "cores that may be used": str(len(os.sched_getaffinity(0))),
        "Python": platform.python_version(),
        "torch": version("torch"),
    }


def timings(results: Path) -> dict[str, dict[str, float]]:
    """Stage -> what it recorded, in the order of the stages' names."""
    found = {}
    for path in sorted(results.glob("*/timing.json")):
        found[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def to_page(results: Path) -> str:
    """Raises FileNotFoundError where no stage has recorded anything."""
    known = timings(results)
    if not known:
        raise FileNotFoundError(f"{results} holds no timing.json: run `dvc repro` first")
    rows = [
        f"<tr><td>{html.escape(stage)}</td><td>{TITLES.get(name, html.escape(name))}</td>"
        f'<td class="number">{value:.4g}</td></tr>'
        for stage, timing in known.items()
        for name, value in timing.items()
    ]
    facts = "".join(f"<tr><td>{name}</td><td>{html.escape(v)}</td></tr>" for name, v in machine().items())
    return bare_page(
        "Speed",
        "<h1>Speed</h1><p>Times of the last run of each stage, on this machine. A stage that DVC took from its cache "
        "keeps those of the run that made it, if that was here. For comparisons there is <code>benchmarks/</code>.</p>"
        f"<table>{facts}</table><table><thead><tr><th>stage</th><th>what</th><th></th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>",
    )


def main() -> int:
    try:
        page = to_page(Path("results"))
    except FileNotFoundError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    PAGE.parent.mkdir(exist_ok=True)
    write_atomically(PAGE, page)
    sys.stdout.write(f"times: {PAGE}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
