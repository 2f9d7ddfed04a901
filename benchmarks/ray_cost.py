"""What Ray adds to the plain loop: CPU time of tokenizing the same recordings, in turns within one run.

    python -m benchmarks.ray_cost           # needs the extra `cluster`; some minutes

Parts of 25 s of speech, one worker, the default checkpoint. A part's time is taken between the moments at which a tenth
and nine tenths of the parts were done: starting Ray and loading are not in it. Ray's daemons, which a machine has once,
are counted for themselves.
"""

import argparse
import os
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from statistics import median

from higgs import AudioTokenizer
from higgs.arithmetic import set_arithmetic
from higgs.data.corpus import Encode, parts_of, read_corpus
from higgs.jobs.cluster import Cluster, disconnect
from higgs.jobs.parts import Store, run

TICKS = os.sysconf("SC_CLK_TCK")
RATE, PART = 24_000, 25


class CpuTimes:
    """CPU seconds of this process and of all that it has started, looked up ten times a second, and how many parts are
    done in `folder` then.
    """

    def __init__(self, folder: str) -> None:
        self.folder, self.rows = Path(folder), []  # rows of done, seconds without daemons of Ray, and theirs
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.follow)

    def __enter__(self) -> "CpuTimes":
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        self.thread.join()

    def follow(self) -> None:
        while not self.over.wait(0.1):
            self.look()

    def look(self) -> None:
        stats, found = {}, [0.0, 0.0]
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    *_, fields = (entry / "stat").read_text().rpartition(") ")
                    line = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                fields = fields.split()
                daemon = b"/ray/" in line and not line.startswith(b"ray::")  # workers are called ray::Worker.run
                stats[int(entry.name)] = int(fields[1]), daemon, (int(fields[11]) + int(fields[12])) / TICKS
        for process, (parent, daemon, seconds) in stats.items():
            while parent in stats and process != os.getpid() and parent != os.getpid():
                parent = stats[parent][0]
            if os.getpid() in (process, parent):
                found[daemon] += seconds
        done = len(list(self.folder.glob("*.json")))
        self.rows.append((done, found[False] - time.thread_time(), found[True]))  # without what looking takes

    def per_part(self, parts: int) -> tuple[float, float]:
        inner = [row for row in self.rows if 0.1 * parts <= row[0] <= 0.9 * parts]
        first, last = inner[0], inner[-1]
        return tuple((b - a) / (last[0] - first[0]) for a, b in zip(first[1:], last[1:], strict=True))


def measure(cluster: Cluster, parts: list) -> tuple[float, float]:
    """CPU seconds of a part without daemons, and of these."""
    load = partial(AudioTokenizer.from_pretrained, "data/checkpoints/nano/codec")
    with tempfile.TemporaryDirectory() as folder, CpuTimes(folder) as times:
        made = len(list(run(Encode(load, True), parts, Store(folder), cluster)))
        disconnect(cluster)
    if made != len(parts):
        raise RuntimeError(f"{made} of {len(parts)} parts were made")
    return times.per_part(len(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=6, help="how often each recording is there")
    arguments = parser.parse_args()
    set_arithmetic(False)  # one thread, as Ray's workers have
    items = read_corpus("data/recordings/manifest.jsonl", None).items
    every = [item._replace(id=f"{n}-{item.id}") for n in range(arguments.repeats) for item in items]
    parts = list(parts_of(every, "nano", True, target=PART * RATE))
    found: dict[str, list[tuple[float, float]]] = {"plain": [], "local": []}
    for _ in range(arguments.rounds):
        for name, rows in found.items():
            rows.append(measure(Cluster(None if name == "plain" else name, 1), parts))
    plain, ray, daemons = (
        1000 * median(row[which] for row in found[name]) for name, which in (("plain", 0), ("local", 0), ("local", 1))
    )
    rounds = {name: [round(1000 * row[0]) for row in rows] for name, rows in found.items()}
    print(f"CPU ms of a part of {PART} s: plain {plain:.0f}, Ray {ray:.0f} ({100 * (ray / plain - 1):+.1f} %)")
    print(f"its daemons {daemons:.0f}; all rounds {rounds}")


if __name__ == "__main__":
    main()
