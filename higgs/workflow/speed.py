"""`python -m higgs.workflow.speed`: results/*/timing.json, the times of each stage's last run, as an untracked page."""

import json
import os
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path

from higgs.workflow.outputs import table

PAGE = Path("reports/speed.html")
INTRODUCTION = (
    "<h1>Speed</h1><p>Times of the last run of each stage, on this machine. A stage that DVC restored from its cache "
    "shows the times of an earlier run. For comparisons there is <code>benchmarks/</code>.</p>"
)
TITLES = {
    "stage_seconds": "the whole stage, s", "generation_seconds": "generation, s",
    "new_audio_seconds": "generated audio, s", "real_time_factor": "real-time factor (work for a second of audio)",
    "listening_seconds": "evaluation, s", "utterances": "utterances evaluated",
}  # fmt: skip


def cpu_name() -> str:
    """The processor's model, or its architecture where the system does not name it."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)", path.read_text(encoding="utf-8") if path.is_file() else "", re.M)
    return found[1] if found else platform.machine()


def main() -> int:
    from higgs.workflow.page import bare_page, write_page  # which reads notebooks: not for those who want `cpu_name`

    paths = sorted(Path("results").glob("*/timing.json"))
    if not paths:
        sys.stderr.write("times: none, since no stage ran here\n")  # DVC brought all results from its cache
        return 0
    times = []
    for path in paths:
        timing = json.loads(path.read_text(encoding="utf-8")).items()
        times += [{"stage": path.parent.name, "what": TITLES.get(name, name), "time": value} for name, value in timing]
    machine = {
        "processor": cpu_name(), "cores that may be used": str(len(os.sched_getaffinity(0))),
        "Python": platform.python_version(), "torch": version("torch"),
    }  # fmt: skip
    tables = table([{"machine": name, "value": value} for name, value in machine.items()]).data + table(times).data
    write_page(PAGE, bare_page("Speed", INTRODUCTION + tables, "How long did each stage take on this machine?"))
    sys.stdout.write(f"times: {PAGE}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
