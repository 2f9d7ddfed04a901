"""Many requests on one engine: random arrivals and lengths, clients that disconnect, bad inputs.

    python -m benchmarks.soak --requests 300

Every good request must get exactly the audio that it gets alone, every bad one its refusal; at the end no slot is
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

import higgs.audio  # noqa: F401  before transformers: the import that makes torchaudio harmless
from higgs import ChatMLSample, Engine, SamplingConfig
from higgs.data.speech import SpeechRequest, speech_request
from higgs.data.voices import Voice, find_voice
from higgs.serve.batching.scheduler import QueueFull
from higgs.serve.engine import EngineConfig
from higgs.serve.http.async_engine import AsyncEngine

PAUSE = 0.05  # seconds between two arrivals, on average; a full engine makes them wait
TEXTS = (
    "Good morning.",
    "The train is late.",
    "We walked along the river, and it was cold.",
    "Seven.",
)


def resident() -> int:
    """Bytes of memory that this process holds now; Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Reference:
    """A request, and the audio that it gets when it is alone."""

    request: SpeechRequest
    waveform: torch.Tensor


@dataclass
class Report:
    """`wrong` holds what did not go as it should; `resident` is memory after each request that ended."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    occupied_slots: int = 0
    open_requests: int = 0
    seconds: float = 0.0

    @property
    def growth(self) -> float:
        """Memory at the end over that after the first sixth, less 1."""
        return self.resident[-1] / self.resident[len(self.resident) // 6] - 1


def references(engine: Engine, samples: Sequence[ChatMLSample], longest: int) -> list[Reference]:
    """Each sample with settings and a length of its own, spoken once alone."""
    result = []
    for index, sample in enumerate(samples):
        sampling = SamplingConfig((0.4, 0.9, 0.0)[index % 3], (20, None)[index % 2], seed=index)
        limit = longest // 4 + index * 7 % (longest - longest // 4)
        waveform = torch.cat([chunk.waveform for chunk in engine.stream(sample, sampling, limit)])
        result.append(Reference(SpeechRequest((sample,), sampling=sampling, max_new_tokens=limit), waveform))
    return result


async def good(async_engine: AsyncEngine, reference: Reference, leave_after: int | None) -> str:
    """-> the outcome; with `leave_after`, the client disconnects after so many chunks."""
    received = []
    async with aclosing(async_engine.stream(reference.request)) as chunks:
        async for chunk in chunks:
            received.append(chunk.waveform)
            if len(received) == leave_after and chunk.stop_reason is None:
                return "left"
    return "good" if torch.equal(torch.cat(received), reference.waveform) else "wrong audio"


async def bad(async_engine: AsyncEngine, kind: int) -> str:
    """-> "refused", as it should be"""
    text, limit = ((" ", 10), ("Too long. " * 5000, 10), ("Hi.", 0), ("Long. " * 500, 10**6))[kind]
    try:
        voice, sampling = Voice("any"), SamplingConfig()
        request = speech_request(text, voice, chunked=False, sampling=sampling, max_new_tokens=limit)
        async with aclosing(async_engine.stream(request)) as chunks:
            async for _ in chunks:
                pass
    except ValueError:
        return "refused"
    return "spoken, and should not have been"


async def run(engine: Engine, requests: Sequence[Reference], count: int, seed: int) -> Report:
    chance, report, started = random.Random(seed), Report(), time.monotonic()
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
        drawn = chance.random(), chance.randrange(1000), chance.randrange(1, 4)
        tasks.append(asyncio.create_task(one(number, *drawn)))
        await asyncio.sleep(chance.expovariate(1 / PAUSE))
        while async_engine.open > async_engine.max_open // 2:
            await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)
    while not engine.scheduler.idle:  # what was left ends before the next steps
        await asyncio.sleep(0.01)
    report.occupied_slots = sum(position > 0 for position in engine.scheduler.decoder.next_position)
    report.open_requests = async_engine.open
    async_engine.close()
    report.seconds = time.monotonic() - started
    return report


def soak(engine: Engine, requests: Sequence[Reference], count: int, seed: int = 0) -> Report:
    return asyncio.run(run(engine, requests, count, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, default=Path("data/checkpoints/nano"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = EngineConfig(max_batch=4, max_positions=600, max_waiting=16)
    folder = arguments.checkpoint
    engine = Engine.from_pretrained(folder / "model", folder / "codec", device="cpu", config=config)
    voices = [find_voice("data/voices", name) for name in ("ada", "ben", "cleo")]
    samples = [voice.prompt(text) for voice in voices for text in TEXTS]
    report = soak(engine, references(engine, samples, 80), arguments.requests, arguments.seed)
    first, last = report.resident[len(report.resident) // 6], report.resident[-1]
    print(f"{arguments.requests} requests in {report.seconds:.0f} s: {dict(report.outcomes)}")
    print(f"slots still occupied: {report.occupied_slots}, requests still open: {report.open_requests}")
    print(f"memory: {first / 1e6:.1f} MB after the first sixth, {last / 1e6:.1f} at the end ({report.growth:+.1%})")
    print("\n".join(report.wrong) or "nothing went wrong")
    if arguments.json:
        results = vars(report) | {"outcomes": dict(report.outcomes)}
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    if report.wrong or report.occupied_slots or report.open_requests or report.growth > 0.05:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
