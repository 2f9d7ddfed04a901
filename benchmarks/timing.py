"""Shared by the benchmarks: alternating measurements, medians with their range, a table and its JSON.

Wall time is what a user waits, CPU time what this process alone took: where other programs share the core, CPU time
varies less, and the ratios of both are given.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from higgs.workflow.speed import cpu_name

if TYPE_CHECKING:
    from higgs import Engine

NANO = Path("data/checkpoints/nano")

Times = tuple[float, float]  # wall and CPU
Measure = Callable[[], Times]


@dataclass
class Row:
    """One line of the table; None where there is nothing to compare with. Times in ms, of a step if not said."""

    case: str
    mode: str
    ours_ms_per_step: float
    peer_ms_per_step: float | None = None
    ratio: float | None = None
    ours_cpu_ms_per_step: float | None = None
    peer_cpu_ms_per_step: float | None = None
    cpu_ratio: float | None = None
    range: str = ""


def clock(device: torch.device | str) -> Times:
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter(), time.process_time()


def since(started: Times, device: torch.device | str = "cpu") -> Times:
    wall, cpu = clock(device)
    return wall - started[0], cpu - started[1]


def scaled(times: Times, factor: float) -> Times:
    return times[0] * factor, times[1] * factor


def per_step(run: Callable[[int], None], device: torch.device, few: int, many: int) -> Measure:
    """`run` generates so many steps -> a measure of one: the prompt's part cancels.

    The longest first: transformers keeps the length of its first static cache, and compiles again for a longer one,
    with shapes that vary.
    """

    def measure() -> Times:
        times = []
        for steps in (many, few):
            started = clock(device)
            run(steps)
            times.append(since(started, device))
        wall, cpu = (long - short for long, short in zip(*times, strict=True))
        return scaled((wall, cpu), 1 / (many - few))

    return measure


def take_turns(measures: dict[str, Measure], repeats: int) -> dict[str, list[Times]]:
    """-> ms of each, once per repeat; the first round is a warm-up."""
    times: dict[str, list[Times]] = {name: [] for name in measures}
    for repeat in range(repeats + 1):
        for name, measure in measures.items():
            value = scaled(measure(), 1000)
            if repeat:
                times[name].append(value)
    return times


def middle(times: list[Times]) -> Times:
    wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
    return wall, cpu


def bounds(times: list[Times]) -> str:
    walls = [wall for wall, _ in times]
    return f"{min(walls):.2f}-{max(walls):.2f}"


def row_of(case: str, mode: str, times: list[Times]) -> Row:
    """A line without a peer."""
    wall, cpu = middle(times)
    return Row(case, mode, wall, ours_cpu_ms_per_step=cpu, range=bounds(times))


def rows_of(case: str, times: dict[str, list[Times]], pairs: list[tuple[str, str]]) -> list[Row]:
    """A line for each pair of ours and a peer."""
    rows = []
    for name, peer in pairs:
        (wall, cpu), (peer_wall, peer_cpu) = middle(times[name]), middle(times[peer])
        ranges = f"{bounds(times[name])} / {bounds(times[peer])}"
        both = f"{name} / {peer}"
        rows.append(Row(case, both, wall, peer_wall, peer_wall / wall, cpu, peer_cpu, peer_cpu / cpu, ranges))
    return rows


def load_engine(checkpoint: Path, **config: Any) -> "Engine":
    """`checkpoint` holds model/ and codec/; `config` as EngineConfig."""
    from higgs import Engine
    from higgs.serve.engine import EngineConfig

    return Engine.from_pretrained(
        checkpoint / "model", checkpoint / "codec", device="cpu", config=EngineConfig(**config)
    )


def machine(arguments: argparse.Namespace) -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    about = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.split() for line in about if line.startswith("flags")), [])
    has = [flag for flag in ("avx512_bf16", "avx512_vnni", "amx_bf16") if flag in flags]
    return json.dumps({
        "cpu": cpu_name(), "has": has, "gpu": gpu, "torch": torch.__version__,
        "transformers": transformers.__version__, "python": platform.python_version(),
        "threads": arguments.threads, "repeats": arguments.repeats,
        "load": Path("/proc/loadavg").read_text().split()[0], "date": time.strftime("%Y-%m-%d"),
    })  # fmt: skip


def arguments_of(description: str, repeats: int = 9) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write one row per case")
    return parser


class Table:
    """Rows, printed as they come, written at the end."""

    def __init__(self, arguments: argparse.Namespace):
        torch.set_num_threads(arguments.threads)
        self.file, self.rows = arguments.json, []
        print(machine(arguments))
        print(f"{'':82}{'wall: ours':>11}{'peer':>9}{'ratio':>7}{'CPU: ours':>11}{'ratio':>7}  range")

    def show(self, rows: list[Row]) -> None:
        for row in rows:
            self.rows.append(row)
            peer = f"{row.peer_ms_per_step:9.3f}" if row.peer_ms_per_step is not None else " " * 9
            peer += f"{row.ratio:6.2f}x" if row.ratio else " " * 7
            cpu = f"{row.ours_cpu_ms_per_step:11.3f}" if row.ours_cpu_ms_per_step else " " * 11
            ratio = f"{row.cpu_ratio:6.2f}x" if row.cpu_ratio else " " * 7
            case = f"{row.case:30}{row.mode:52}{row.ours_ms_per_step:11.3f}"
            print(f"{case}{peer}{cpu}{ratio}  {row.range}", flush=True)

    def write(self) -> None:
        if self.file:
            self.file.write_text(json.dumps([asdict(row) for row in self.rows], indent=2) + "\n")
