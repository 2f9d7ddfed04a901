"""The default checkpoint from text to waveform: real-time factor, first packet, gaps between packets, batches.

    python -m benchmarks.stream --threads 2

The real-time factor is seconds of work for a second of audio, codec included. The first packet is four exact frames
(0.16 s). With several clients, a packet is late when those before it have been played to the end. Batches give seconds
of audio for each second of the machine, too.
"""

import statistics
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.timing import NANO, Row, Table, Times, arguments_of, clock, load_engine, row_of, since, take_turns
from higgs import Engine
from higgs.data.chatml import smart_voice

SENTENCE = "The train to the city leaves at seven in the morning, and it is late on Sundays."
TEXTS = (SENTENCE, "Good morning.", "We walked along the river.", "Is there a doctor in the house?")


def single(engine: Engine, case: str, repeats: int) -> list[Row]:
    def whole() -> Times:
        started = clock("cpu")
        response = engine.generate(smart_voice(SENTENCE))
        wall, cpu = since(started)
        seconds = 1000 * len(response.waveform) / response.sample_rate
        return wall / seconds, cpu / seconds

    def first() -> Times:
        started = clock("cpu")
        stream = engine.stream(smart_voice(SENTENCE))
        next(stream)
        taken = since(started)
        stream.close()
        return taken

    measures = {"real-time factor": whole, "first packet, ms": first}
    return [row_of(case, name, t) for name, t in take_turns(measures, repeats).items()]


def batches(engine: Engine, case: str, sizes: tuple[int, ...], repeats: int) -> list[Row]:
    """The same 16 utterances, so many at a time: seconds of work for a second of audio."""
    samples = [smart_voice(TEXTS[n % len(TEXTS)]) for n in range(16)]
    settings = [replace(engine.generation.sampling, seed=n) for n in range(16)]

    def batched(size: int) -> Times:
        started, length = clock("cpu"), 0
        for first in range(0, 16, size):
            some = slice(first, first + size)
            for response in engine.generate_batch(samples[some], settings[some], 300):
                length += len(response.waveform)
        seconds = 1000 * length / engine.tokenizer.sample_rate
        wall, cpu = since(started)
        return wall / seconds, cpu / seconds

    measures = {f"batch of {n}, real-time factor": lambda n=n: batched(n) for n in sizes}
    times = take_turns(measures, repeats)
    rows = [row_of(case, name, values) for name, values in times.items()]
    for row in rows:
        row.mode += f": {1 / row.ours_ms_per_step:.1f} audio s/s"
    return rows


def clients(engine: Engine, case: str, count: int) -> list[Row]:
    """So many streams at once -> gaps between their packets, and how many were late."""
    gaps: list[float] = []
    late = [0, 0]

    def listen(number: int) -> None:
        sample = smart_voice(TEXTS[number % len(TEXTS)])
        played_to, before = None, time.perf_counter()
        sampling = replace(engine.generation.sampling, seed=number)
        for chunk in engine.stream(sample, sampling, 300):
            now = time.perf_counter()
            if not len(chunk.waveform):
                continue
            if played_to is not None:
                gaps.append(1000 * (now - before))
                late[0] += now > played_to
                late[1] += 1
            start = now if played_to is None else max(now, played_to)
            played_to, before = start + len(chunk.waveform) / chunk.sample_rate, now

    threads = [threading.Thread(target=listen, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    middle = f"{count} clients: median gap, ms; late {late[0]}/{late[1]}"
    return [Row(case, middle, statistics.median(gaps)), Row(case, f"{count} clients: largest gap, ms", max(gaps))]


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--checkpoint", type=Path, default=NANO)
    parser.add_argument("--no-batches", action="store_true")
    arguments = parser.parse_args()
    table = Table(arguments)
    engine, case = load_engine(arguments.checkpoint, max_positions=2048), f"nano, {torch.get_num_threads()} threads"
    table.show(single(engine, case, arguments.repeats))
    if not arguments.no_batches:
        table.show(batches(engine, case, (1, 8, 16), max(1, arguments.repeats // 3)))
    for count in (1, 4):
        table.show(clients(engine, case, count))
    table.write()


if __name__ == "__main__":
    main()
