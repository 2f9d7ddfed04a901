"""Soak test of one engine: random arrivals and lengths, clients that disconnect, bad inputs.

    python -m benchmarks.soak --requests 300

Every good request must get exactly the audio that it gets by itself, every bad one an error; at the end no slot is
occupied and memory is what it was after the first sixth.
"""

import argparse
import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.timing import NANO, load_engine
from higgs import ChatMLSample, Engine, Message, SamplingConfig
from higgs.data.chatml import smart_voice
from higgs.data.voices import find_voice
from higgs.serve.batching.scheduler import QueueFull
from higgs.serve.http.async_engine import AsyncEngine

PAUSE = 0.05  # seconds between two arrivals, on average; a full engine makes them wait
TEXTS = ("Good morning.", "The train is late.", "We walked along the river, and it was cold.", "Seven.")


def resident() -> int:
    """Bytes of memory that this process holds now; Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass
class SoakRequest:
    """A request, and the audio that it gets by itself."""

    sample: ChatMLSample
    sampling: SamplingConfig
    limit: int
    waveform: torch.Tensor | None = None


@dataclass
class Report:
    """`wrong` lists the failures; `resident` is memory after each request that ended."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    taken_rows: int = 0
    open_requests: int = 0
    seconds: float = 0.0

    @property
    def growth(self) -> float:
        """Memory at the end over that after the first sixth, less 1."""
        return self.resident[-1] / self.resident[len(self.resident) // 6] - 1


def requests_of(engine: Engine, samples: Sequence[ChatMLSample], longest: int) -> list[SoakRequest]:
    """Each sample with its own settings and length, generated once by itself."""
    found = []
    for index, sample in enumerate(samples):
        sampling = SamplingConfig((0.4, 0.9, 0.0)[index % 3], (20, None)[index % 2], seed=index)
        limit = longest // 4 + index * 7 % (longest - longest // 4)
        request = SoakRequest(sample, sampling, limit)
        chunks = engine.stream(request.sample, request.sampling, request.limit)
        request.waveform = torch.cat([chunk.waveform for chunk in chunks])
        found.append(request)
    return found


async def good(async_engine: AsyncEngine, request: SoakRequest, leave_after: int | None) -> str:
    """-> the outcome; with `leave_after`, the client disconnects after so many packets."""
    packets = []
    async with aclosing(async_engine.stream(request.sample, request.sampling, request.limit)) as chunks:
        async for chunk in chunks:
            packets.append(chunk.waveform)
            if len(packets) == leave_after and chunk.stop_reason is None:
                return "left"
    waveform = torch.cat(packets)
    same = waveform.shape == request.waveform.shape and torch.equal(waveform, request.waveform)
    return "good" if same else "wrong audio"


async def bad(async_engine: AsyncEngine, kind: int) -> str:
    """-> "refused", as it should be"""
    sample, limit = smart_voice("Hi."), 10
    if kind == 0:
        sample = ChatMLSample([Message("user", " ")])
    elif kind == 1:
        sample = smart_voice("Too long. " * 5000)
    else:
        limit = 0 if kind == 2 else 10**6
    try:
        async with aclosing(async_engine.stream(sample, SamplingConfig(), limit)) as chunks:
            async for _ in chunks:
                pass
    except ValueError:
        return "refused"
    return "not refused"


async def run(engine: Engine, requests: Sequence[SoakRequest], count: int, seed: int) -> Report:
    rng, report, started = random.Random(seed), Report(), time.monotonic()
    async_engine = AsyncEngine(engine)

    async def one(number: int, kind: float, pick: int, leave: int) -> None:
        try:
            if kind < 0.2:
                outcome = await bad(async_engine, pick % 4)
            elif kind < 0.4:
                outcome = await good(async_engine, requests[pick % len(requests)], leave)
            elif kind < 0.5:
                task = asyncio.create_task(good(async_engine, requests[pick % len(requests)], None))
                await asyncio.sleep(leave * 0.03)
                outcome = await task if task.done() else "cancelled"
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            else:
                outcome = await good(async_engine, requests[pick % len(requests)], None)
        except QueueFull:
            outcome = "busy"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        report.outcomes[outcome] += 1
        if outcome not in ("good", "left", "cancelled", "refused", "busy"):
            report.wrong.append(f"request {number}: {outcome}")
        report.resident.append(resident())

    tasks = []
    for number in range(count):
        choices = rng.random(), rng.randrange(1000), rng.randrange(1, 4)
        tasks.append(asyncio.create_task(one(number, *choices)))
        await asyncio.sleep(rng.expovariate(1 / PAUSE))
        while async_engine.open > async_engine.max_open // 2:
            await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)
    while not engine.scheduler.idle:  # what was left goes before the next burst
        await asyncio.sleep(0.01)
    report.taken_rows = sum(engine.scheduler.decoder.occupied)
    report.open_requests = async_engine.open
    async_engine.close()
    report.seconds = time.monotonic() - started
    return report


def soak(engine: Engine, requests: Sequence[SoakRequest], count: int, seed: int = 0) -> Report:
    return asyncio.run(run(engine, requests, count, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, default=NANO)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    engine = load_engine(arguments.checkpoint, max_batch=4, max_positions=600, max_waiting=16)
    voices = [find_voice("data/voices", name) for name in ("ada", "ben", "cleo")]
    samples = [voice.prompt(text) for voice in voices for text in TEXTS]
    report = soak(engine, requests_of(engine, samples, 80), arguments.requests, arguments.seed)
    first, last = report.resident[len(report.resident) // 6], report.resident[-1]
    print(f"{arguments.requests} requests in {report.seconds:.0f} s: {dict(report.outcomes)}")
    print(f"rows still taken: {report.taken_rows}, requests still open: {report.open_requests}")
    print(f"memory: {first / 1e6:.1f} MB after the first sixth, {last / 1e6:.1f} at the end ({report.growth:+.1%})")
    print("\n".join(report.wrong) or "nothing went wrong")
    if arguments.json:
        found = vars(report) | {"outcomes": dict(report.outcomes)}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    if report.wrong or report.taken_rows or report.open_requests or report.growth > 0.05:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
