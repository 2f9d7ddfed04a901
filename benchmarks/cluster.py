"""How long a cluster takes to tokenize a corpus: a simulation, event by event, of the pool in jobs/cluster.py.

    python benchmarks/cluster.py            # the table of docs/cluster.md, half a minute

Nothing in it is a measurement of a GPU: the speeds are assumptions, and stand in the table. Per part 1.5 s go to S3 and
2 ms to the driver. Durations spread by 25 %, one GPU in a hundred is four times slower, a GPU is lost every 24 hours
and 330 s later another has taken its place. A node of 8 GPUs reads 25 Gbit/s, all nodes together 400.
"""

import heapq
import random
from collections import deque
from dataclasses import dataclass

MB_PER_HOUR = 83  # FLAC, 24 kHz, mono
NODE, BUCKET = 25e9 / 8 / 8, 400e9 / 8  # bytes a second, of a GPU and of all
S3_SECONDS, DRIVER_SECONDS = 1.5, 0.002
SPREAD, SLOW, SLOWNESS = 0.25, 0.01, 4
HOURS_TO_LOSS, RECOVERY = 24, 330


@dataclass
class Run:
    """Hours of work at `wall`, and what was lost."""

    wall: float
    lost_gpus: int
    lost_hours: float
    driver_hours: float


def simulate(hours: float, gpus: int, part_hours: float, speed: float, seed: int = 0) -> Run:
    """`speed` is the codec's, in multiples of real time. A lost GPU's part is made again, from its start."""
    draw = random.Random(seed)
    reading = part_hours * MB_PER_HOUR * 1e6 / min(NODE, BUCKET / gpus)
    computing = part_hours * 3600 / speed
    slow = [SLOWNESS if draw.random() < SLOW else 1 for _ in range(gpus)]
    dies = [draw.expovariate(1 / (HOURS_TO_LOSS * 3600)) for _ in range(gpus)]
    todo, free_driver, end, losses, wasted = deque([1] * round(hours / part_hours)), 0.0, 0.0, 0, 0.0
    idle = [(0.0, gpu) for gpu in range(gpus)]  # a heap: when a GPU is free
    parts = len(todo)
    while todo:
        now, gpu = heapq.heappop(idle)
        todo.popleft()
        free_driver = max(free_driver, now) + DRIVER_SECONDS
        seconds = max(reading, computing * slow[gpu] * max(0.3, draw.gauss(1, SPREAD))) + S3_SECONDS
        done = free_driver + seconds
        if done > dies[gpu]:
            lost_at = max(dies[gpu], free_driver)
            wasted, losses = wasted + lost_at - free_driver, losses + 1
            todo.append(1)
            back = lost_at + RECOVERY
            dies[gpu] = back + draw.expovariate(1 / (HOURS_TO_LOSS * 3600))
            heapq.heappush(idle, (back, gpu))
        else:
            end = max(end, done)
            heapq.heappush(idle, (done, gpu))
    return Run(end / 3600, losses, wasted / 3600, parts * DRIVER_SECONDS / 3600)


CASES = [  # hours, GPUs, hours of a part, speed
    (10_000, 1, 10, 500), (10_000, 8, 10, 500), (10_000, 64, 10, 500), (10_000, 64, 1, 500),
    (1_000_000, 8, 10, 500), (1_000_000, 64, 10, 500), (1_000_000, 512, 10, 500), (1_000_000, 512, 40, 2000),
    (10_000_000, 64, 40, 500), (10_000_000, 512, 40, 500), (10_000_000, 512, 40, 2000),
]  # fmt: skip


def table() -> str:
    names = "hours, GPUs, hours a part, speed, parts, wall h, ideal h, efficiency, GPUs lost, GPU h lost, Gbit/s".split(
        ", "
    )
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for hours, gpus, part, speed in CASES:
        run, ideal = simulate(hours, gpus, part, speed), hours / speed / gpus
        rate = hours * MB_PER_HOUR * 8e6 / (run.wall * 3600) / 1e9
        cells = [
            f"{hours:,}", gpus, part, f"{speed:,}", f"{hours // part:,}", f"{run.wall:.3g}", f"{ideal:.3g}",
            f"{ideal / run.wall:.2f}", run.lost_gpus, f"{run.lost_hours:.1f}",
            f"{rate:.2g}" if rate < 10 else f"{rate:.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
