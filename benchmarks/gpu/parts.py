"""The parts of `make gpu`: each measures one thing and reports its figures; `PARTS` says in which order and how long.

Units: ms of a step (8 codes, 40 ms of audio) where nothing else is said. Weights are random, of the released shapes.
"""

import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
import transformers

from benchmarks.decode import (
    COMPILED,
    GROWING,
    PORT_IDS,
    SAMPLING,
    STATIC,
    bytes_per_step,
    one_slot,
    ours,
    port_of,
    prompt_of,
    random_model,
    theirs,
)
from benchmarks.gpu.outcomes import Outcomes
from benchmarks.gpu.report import NOT_AVAILABLE, Report
from benchmarks.gpu.sizes import SIZES, TINY_CODEC, Size, random_codec
from benchmarks.timing import Measure, Times, clock, per_step, scaled, since
from higgs import HiggsAudio
from higgs.batch import Batch
from higgs.serve.batching.scheduler import Scheduler, Sequence
from higgs.serve.batching.slots import SlotDecoder
from higgs.serve.stream import AudioStream

ROOT = Path(__file__).resolve().parents[2]
STEPS = 8  # of a burst between two waits of the host
MS, GB_S = "ms", "GB/s"


@dataclass
class Bench:
    """Where and at what size a part measures, and where its figures go. `scratch` is a folder of all parts."""

    size: Size
    device: str
    report: Report
    scratch: Path

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @cached_property
    def model(self) -> HiggsAudio:
        return random_model(self.size.model, self.device, torch.bfloat16)

    def port(self, figure: str, cache: str) -> transformers.PreTrainedModel | None:
        """The model in transformers; None where it cannot be made, which is told in place of the figure."""
        return self.report.attempt(figure, partial(port_of, self.model, cache))

    def prompt(self, length: int) -> Batch:
        return prompt_of(length, self.size.model)

    def step(self, run: Callable[[int], None]) -> Measure:
        """Of a step after the usual prompt, which is not counted."""
        return per_step(run, torch.device(self.device), self.size.few, self.size.many)

    def in_turns(self, measures: dict[str, Measure], unit: str = MS, factor: float = 1000) -> None:
        self.report.in_turns(measures, self.size.repeats, unit, factor)


def bandwidth(bench: Bench) -> None:
    """Of reading memory (a sum), and of copying it, bytes read and written; at best, in GB/s."""
    memory = torch.randn(int(bench.size.gigabytes * 2**28), device=bench.device)
    copy = torch.empty_like(memory)
    actions = {"read": (memory.sum, 1), "copy": (lambda: copy.copy_(memory), 2)}
    for name, (action, times) in actions.items():
        taken = []
        for _ in range(bench.size.repeats + 3):
            started = clock(bench.device)
            action()
            taken.append(since(started, bench.device)[0])
        bench.report.figure(name, times * memory.nbytes / min(taken) / 1e9, GB_S)


def eager(decoder: SlotDecoder) -> SlotDecoder:
    """Without CUDA graphs."""
    decoder.graphed = None
    return decoder


def decode(bench: Bench) -> None:
    """One request: eager, as a CUDA graph, compiled; beside transformers with its kinds of cache."""
    size, prompt = bench.size, bench.prompt(bench.size.prompt)
    ports = {f"transformers, {cache}": cache for cache in (GROWING, STATIC, COMPILED)}
    ports = {name: bench.port(name, cache) for name, cache in ports.items()}
    schedulers = {"eager": one_slot(bench.model, 512)}
    eager(schedulers["eager"].decoder)
    if bench.on_gpu:
        schedulers["graph"] = one_slot(bench.model, 512)
    schedulers["compiled"] = one_slot(bench.model, 512, compiled=True)
    context = size.prompt + (size.few + size.many) // 2
    traffic = bytes_per_step(schedulers["compiled"].decoder, 1, context)
    bench.report.figure("bytes of a step", traffic / 1e9, "GB", context=context)
    measures = {name: bench.step(ours(scheduler, prompt)) for name, scheduler in schedulers.items()}
    bench.in_turns(measures | {name: bench.step(theirs(port, prompt)) for name, port in ports.items() if port})


def fill(decoder: SlotDecoder, prompts: list[Batch]) -> None:
    """A prompt into each of the first slots."""
    for slot, prompt in enumerate(prompts):
        decoder.prefill(slot, prompt, decoder.positions - prompt.input_ids.shape[1], replace(SAMPLING, seed=slot))


def bursts(decoder: SlotDecoder) -> Measure:
    """Of a step of all slots that are filled."""

    def measure() -> Times:
        started = clock(decoder.model.device)
        decoder.run(STEPS)
        return scaled(since(started, decoder.model.device), 1 / STEPS)

    return measure


def slots(bench: Bench) -> None:
    """The largest batch with contexts of all lengths, compiled: the goal of frames in a second."""
    count, (low, high) = bench.size.rows, bench.size.contexts
    decoder = SlotDecoder(bench.model, count, bench.size.room, STEPS, compiled=True)
    fill(decoder, [bench.prompt(low + (high - low) * n // max(1, count - 1)) for n in range(count)])
    bench.in_turns({f"batch {count}, contexts {low} to {high}": bursts(decoder)})


def batches(bench: Bench) -> None:
    """1, 2, 4 ... requests of the same length, eager and as a graph; compiled and transformers for some of them."""
    size, prompt = bench.size, bench.prompt(bench.size.prompt)
    sizes = [1 << n for n in range(size.rows.bit_length())]
    plain, compiled = (SlotDecoder(bench.model, size.rows, 512, STEPS, compiled=how) for how in (False, True))
    graphs = plain.graphed
    for count in sizes:
        fill(plain, [prompt] * count)
        for mode in ("eager", "graph") if bench.on_gpu else ("eager",):
            plain.graphed = None if mode == "eager" else graphs
            bench.in_turns({f"batch {count}, {mode}": bursts(plain)})
    few, many = size.few // 2, size.many // 2
    for count in (size.rows, max(1, size.rows // 8)):
        fill(compiled, [prompt] * count)
        for slot in range(count, size.rows):
            compiled.free(slot)
        bench.in_turns({f"batch {count}, compiled": bursts(compiled)})
        together = Batch(**{k: v if v is None else v.repeat_interleave(count, 0) for k, v in vars(prompt).items()})
        for cache in (GROWING, COMPILED) if count == size.rows else (GROWING,):
            name = f"batch {count}, transformers, {cache}"
            if port := bench.port(name, cache):
                bench.in_turns({name: per_step(theirs(port, together), bench.model.device, few, many)})


def first_packet(bench: Bench) -> None:
    """From a request to four exact frames on the host, in ms."""
    codec, prompt = random_codec(bench.size.codec, bench.device), bench.prompt(bench.size.latency)

    def measure(compiled: bool) -> Measure:
        scheduler = Scheduler(SlotDecoder(bench.model, 1, 1024, steps_per_sync=4, compiled=compiled), max_waiting=1)

        def first() -> Times:
            started = clock(bench.device)
            sequence = scheduler.submit(Sequence(prompt, SAMPLING, 100))
            audio, chunks = AudioStream(codec, [4]), []
            while not chunks:
                scheduler.run_steps()
                chunks = list(audio.push(sequence.read_new()))
            taken = since(started, bench.device)
            scheduler.cancel(sequence)
            return taken

        return first

    plain = "graph" if bench.on_gpu else "eager"
    for mode, compiled in ((plain, False), ("compiled", True)):  # not in turns: compiling can fail, or take too long
        bench.in_turns({f"after {bench.size.latency} positions, {mode}": measure(compiled)})


def codec(bench: Bench) -> None:
    """Clips of new lengths each time, one by one and in lists: ms for each second of audio."""
    import random

    from benchmarks.codec import ONE_BY_ONE, PORT, codec_port, cut, decoders, encoders, timed

    size, rng = bench.size, random.Random(0)
    ours, port = random_codec(size.codec, bench.device), codec_port(size.codec, bench.device)
    rate, frames = ours.sample_rate, ours.frame_rate
    source = 0.1 * torch.randn(round(2 * size.seconds[1] * rate), device=bench.device)
    lengths = tuple(round(value * rate) for value in size.seconds)

    def codes() -> list[torch.Tensor]:
        counts = [round(rng.uniform(*size.seconds) * frames) for _ in range(size.clips)]
        shape = (ours.num_codebooks,)
        return [torch.randint(ours.codebook_size, (*shape, count), device=bench.device) for count in counts]

    for what, ways, make, per_second in (
        ("encode", encoders(ours, port), lambda: cut(source, size.clips, lengths, rng), rate),
        ("decode", decoders(ours), codes, frames),
    ):
        names = [name for name in ways if name in (PORT, ONE_BY_ONE) or "list" in name]
        bench.in_turns({f"{what}, {name}": timed(ways[name], make, per_second, bench.device) for name in names})


FORMS = {
    "int8": {"dtype": "int8"}, "int4": {"dtype": "int4"},
    "offload": {"dtype": "bfloat16", "offload_text": True},
}  # fmt: skip


def write_checkpoint(bench: Bench) -> tuple[Path, Path]:
    """-> folders of a model of random weights and of a small codec, written once for all parts."""
    folder = bench.scratch / "checkpoint"
    model, small = folder / "model", folder / "codec"
    if not folder.is_dir():
        partial = bench.scratch / "checkpoint.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(ROOT / "tests/golden/text_tokenizer", partial / "model")
        bench.model.save_pretrained(partial / "model", PORT_IDS)
        random_codec(TINY_CODEC, "cpu").save_pretrained(partial / "codec")
        partial.rename(folder)
        del bench.__dict__["model"]
    return model, small


def form(bench: Bench, name: str) -> None:
    """A form of the weights through `Engine.from_pretrained`, compiled: a step, and the memory of the device."""
    from higgs.serve.engine import Engine, EngineConfig

    config = EngineConfig(max_batch=1, max_positions=512, steps_per_sync=STEPS, compile=True)
    folders = write_checkpoint(bench)
    if bench.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    started = clock(bench.device)

    def load() -> Engine:
        return Engine.from_pretrained(*folders, device=bench.device, config=config, **FORMS[name])

    if (engine := bench.report.attempt(name, load)) is None:
        return
    bench.report.figure("loading", since(started, bench.device)[0], "s")
    prompt = bench.prompt(bench.size.prompt)
    scheduler = engine.scheduler
    bench.in_turns({"compiled": bench.step(ours(scheduler, prompt))})
    if bench.on_gpu:
        bench.report.figure("memory at most", torch.cuda.max_memory_allocated() / 1e9, "GB")


def profile(bench: Bench) -> None:
    """Kernels and waits of a step: by the profiler on a GPU; operators by the dispatcher everywhere."""
    from benchmarks.counts import of_our_step, of_their_steps, on_a_gpu

    prompt = bench.prompt(bench.size.prompt)
    if bench.on_gpu:
        for mode in ("eager", "graph", "compiled"):
            counted = bench.report.attempt(f"{mode}, kernels", lambda mode=mode: on_a_gpu(bench.model, prompt, mode))
            for name, (value, note) in (counted or {}).items():
                bench.report.figure(f"{mode}, {name}", value, "a step", note=note)
    seen = of_our_step(bench.model, prompt)
    for name, value in of_their_steps(port_of(bench.model), prompt).items():
        bench.report.figure(f"ours, {name}", getattr(seen, name), "a step")
        bench.report.figure(f"transformers, {name}", value, "a step")


def plain_step(bench: Bench) -> None:
    """The model's own modules, compiled, beside the fused step: what is the fused one worth?"""
    from benchmarks.gpu.plain_step import PlainDecoder

    prompt = bench.prompt(bench.size.prompt)
    decoders = {
        name: kind(bench.model, 1, 512, steps_per_sync=STEPS, compiled=True)
        for name, kind in (("fused, compiled", SlotDecoder), ("plain, compiled", PlainDecoder))
    }
    bench.in_turns({k: bench.step(ours(Scheduler(d, max_waiting=1), prompt)) for k, d in decoders.items()})


def tests(bench: Bench) -> None:
    """The tests that need a CUDA device."""
    if importlib.util.find_spec("pytest") is None:
        bench.report.figure("pytest", f"{NOT_AVAILABLE}: not installed, so the tests were not run")
        return
    import pytest

    folder = ROOT / "tests"
    sys.path.insert(0, str(folder))
    files = [str(p) for p in sorted(folder.glob("test_*.py")) if "requires_cuda" in p.read_text(encoding="utf-8")]
    # A file that cannot be collected is reported, and the others are run.
    options = [
        "-q",
        "--continue-on-collection-errors",
        "-m",
        "requires_cuda",
        "-p",
        "no:cacheprovider",
        f"--rootdir={ROOT}",
    ]
    code = pytest.main([*options, *files], plugins=[Outcomes(bench.report)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED):
        raise RuntimeError(f"pytest ended with {code!r}")


def of_form(name: str) -> Callable[[Bench], None]:
    return lambda bench: form(bench, name)


# In the order of what is worth most, with the most seconds of each: when the time is over, the rest is not run.
PARTS: dict[str, tuple[Callable[[Bench], None], int]] = {
    "bandwidth": (bandwidth, 40),
    "decode": (decode, 150),
    "slots": (slots, 90),
    "tests": (tests, 80),
    "first_packet": (first_packet, 80),
    "codec": (codec, 60),
    "plain_step": (plain_step, 80),
    "profile": (profile, 60),
    "int8": (of_form("int8"), 120),
    "int4": (of_form("int4"), 90),
    "offload": (of_form("offload"), 90),
    "batches": (batches, 150),
}


def run_part(name: str, size: str, device: str, scratch: Path) -> None:
    """In a process of its own, which ends at its next figure where nobody reads them any more."""
    bench = Bench(SIZES[size], device, Report(), scratch)
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        PARTS[name][0](bench)
    except Exception as error:
        bench.report.missing(name, error)
        raise
