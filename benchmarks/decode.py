"""How long a step of decoding takes, here and in transformers: 8 codes, 40 ms of audio.

    python -m benchmarks.decode                     # on the CPU; with a GPU, the released sizes too
    python -m benchmarks.decode --rehearse          # what is for a GPU, at a small size on the CPU

Everything that is compared takes turns within one run; numbers are medians with their range. A step's time is the
difference between a long and a short generation over the difference of their lengths, so the prompt is not in it. Both
sides sample with temperature 0.7, top-k 50, top-p 0.95 and repetition-aware redraws; the weights are random, and codes
that end a segment are made unlikely. CPU time is the steadier one where other programs run beside.
"""

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import transformers
from torch import Tensor

import higgs.audio  # noqa: F401  before transformers' models: the import that makes torchaudio harmless
from higgs import AudioTokenizer, Engine, HiggsAudio
from higgs.batch import Batch
from higgs.config import CodecConfig, ModelConfig, SamplingConfig
from higgs.data.chatml import Tokens, smart_voice
from higgs.data.collator import collate, spread
from higgs.serve.decoder import Decoder
from higgs.serve.scheduler import Request, Scheduler
from higgs.serve.stream import AudioStream
from higgs.tokens import TokenIds

SAMPLING = SamplingConfig(temperature=0.7, top_k=50, top_p=0.95, seed=1)
IDS = TokenIds(256, 257, 258, 259, 260, 261, 262, 263, 264, 265)
PORT_IDS = {
    "pad_token_id": 257, "audio_token_id": 265, "audio_delay_token_id": 266, "audio_bos_token_id": 263,
    "eos_token_id": 260, "bos_token_id": 256,
}  # fmt: skip
TINY = ModelConfig(
    vocab_size=512, hidden_size=96, intermediate_size=256, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=16
)  # fmt: skip
SMALL = replace(
    TINY, hidden_size=512, intermediate_size=1408, num_layers=6, num_heads=8, num_kv_heads=4, head_dim=64
)  # fmt: skip
SPOKEN = "The train to the city leaves at seven in the morning, and it is late on Sundays."
Measure = Callable[[], float]


@dataclass
class Row:
    """One line of the table; None where there is nothing to compare with. Times in ms."""

    case: str
    mode: str
    ours_ms_per_step: float
    peer_ms_per_step: float | None = None
    ratio: float | None = None
    spread: str = ""


def random_model(config: ModelConfig, device: str, dtype: torch.dtype) -> HiggsAudio:
    """Weights that keep activations finite; stream eos is never among the likelier codes."""
    with torch.device("meta"):
        model = HiggsAudio(config)
    model = model.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.fill_(1)
        else:
            weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
    model.audio_head.weight.view(config.num_codebooks, -1, config.hidden_size)[:, -2:] = 0
    return model


def port_of(model: HiggsAudio, static: bool = False) -> transformers.PreTrainedModel:
    """The same weights in transformers, over the same memory where they stay on their device."""
    from higgs.model.weights import to_transformers

    made = transformers.HiggsAudioV2Config(**model.config.to_json() | PORT_IDS)
    with torch.device(model.device):
        port = transformers.HiggsAudioV2ForConditionalGeneration(made).to(model.dtype)
    tensors, names = to_transformers(dict(model.state_dict())), dict(port.named_parameters())
    port.load_state_dict(
        {k: v for k, v in tensors.items() if k in names}, strict=False, assign=True
    )
    port.generation_config.ras_win_len, port.generation_config.ras_win_max_num_repeat = 7, 2
    if static:
        port.generation_config.cache_implementation = "static"
    return port.eval()


def prompt_of(length: int, config: ModelConfig) -> Batch:
    """Text and the start of audio."""
    text = [256, *(n % 250 for n in range(length - 2)), IDS.audio_out_bos]
    return collate([spread(Tokens(text, [-100] * length), [], IDS, config, False)], IDS)


def clock(device: torch.device | str) -> float:
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def per_step(run: Callable[[int], None], device: torch.device, few: int, many: int) -> Measure:
    """`run` makes so many columns -> a measure of the seconds that one takes."""

    def measure() -> float:
        times = []
        for steps in (few, many):
            started = clock(device)
            run(steps)
            times.append(clock(device) - started)
        return (times[1] - times[0]) / (many - few)

    return measure


def ours(
    model: HiggsAudio, prompt: Batch, room: int, compiled: bool = False
) -> Callable[[int], None]:
    scheduler = Scheduler(Decoder(model, 1, room, burst=8, compiled=compiled), max_waiting=1)

    def run(steps: int) -> None:
        ticket = scheduler.submit(Request(prompt, SAMPLING, steps))
        while not ticket.done:
            scheduler.burst()
        assert ticket.made == steps, "a segment ended by itself"

    return run


def theirs(port: transformers.PreTrainedModel, prompt: Batch) -> Callable[[int], None]:
    inputs = {"input_ids": prompt.input_ids, "attention_mask": prompt.attention_mask.long()}
    inputs = {name: tensor.to(port.device) for name, tensor in inputs.items()}

    def run(steps: int) -> None:
        made = port.generate(
            **inputs, do_sample=True, temperature=0.7, top_k=50, top_p=0.95, max_new_tokens=steps
        )
        columns = made if isinstance(made, Tensor) else made.audio_sequences
        assert columns.shape[1] == steps, "a segment ended by itself"

    return run


def take_turns(measures: dict[str, Measure], repeats: int) -> dict[str, list[float]]:
    """-> ms of each, once per repeat; a first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in measures}
    for repeat in range(repeats + 1):
        for name, measure in measures.items():
            value = 1000 * measure()
            if repeat:
                times[name].append(value)
    return times


def rows_of(case: str, times: dict[str, list[float]], peers: dict[str, str]) -> list[Row]:
    """A line for each of ours, beside the peer that `peers` names for it."""
    rows = []
    for name, peer in peers.items():
        mine, other = statistics.median(times[name]), statistics.median(times[peer])
        ranges = (f"{min(times[n]):.2f}-{max(times[n]):.2f}" for n in (name, peer))
        rows.append(Row(case, f"{name} / {peer}", mine, other, other / mine, " / ".join(ranges)))
    return rows


def compare(case: str, config: ModelConfig, halves: bool, repeats: int) -> list[Row]:
    """A model on the CPU, in each mode, beside transformers' `generate` with a growing cache."""
    measures: dict[str, Measure] = {}
    peers: dict[str, str] = {}
    for dtype in (torch.float32, torch.bfloat16) if halves else (torch.float32,):
        model = random_model(config, "cpu", dtype)
        prompt, kind = prompt_of(100, config), str(dtype).removeprefix("torch.")
        port = f"transformers {kind}"
        measures[port] = per_step(theirs(port_of(model), prompt), model.device, 20, 60)
        peers |= {kind: "transformers float32", f"{kind} compiled": "transformers float32"}
        for mode, compiled in ((kind, False), (f"{kind} compiled", True)):
            run = ours(model, prompt, 256, compiled)
            measures[mode] = per_step(run, model.device, 20, 60)
    rows = rows_of(case, take_turns(measures, repeats), peers)
    if halves:
        more = {"bfloat16": "transformers bfloat16"}
        rows += rows_of(
            case, take_turns({n: measures[n] for n in (*more, *more.values())}, repeats), more
        )
    return rows


def speech(folder: Path, threads: int, repeats: int) -> list[Row]:
    """The default checkpoint from text to waveform: times real time, and the first packet of a stream."""
    torch.set_num_threads(threads)
    engine = Engine.from_pretrained(folder / "model", folder / "codec", device="cpu")
    sampling = SamplingConfig(0.4, 20, 1.0, seed=0)

    def whole() -> float:
        started = time.perf_counter()
        response = engine.generate(smart_voice(SPOKEN), sampling)
        return (
            (time.perf_counter() - started) / (len(response.waveform) / response.sample_rate) / 1000
        )

    def first() -> float:
        started = time.perf_counter()
        stream = engine.stream(smart_voice(SPOKEN), sampling)
        next(stream)
        seconds = time.perf_counter() - started
        stream.close()
        return seconds

    times = take_turns({"times real time": whole, "first packet, ms": first}, repeats)
    return [
        Row(
            f"default checkpoint, {threads} threads",
            name,
            statistics.median(v),
            spread=f"{min(v):.2f}-{max(v):.2f}",
        )
        for name, v in times.items()
    ]


def read_bandwidth(device: torch.device, gigabytes: float, repeats: int) -> float:
    """Bytes a second of a sum over memory, at best."""
    memory = torch.randn(int(gigabytes * 2**28), device=device)

    def read() -> float:
        started = clock(device)
        memory.sum()
        return clock(device) - started

    return memory.nbytes / min(read() for _ in range(repeats + 2))


def bytes_per_step(decoder: Decoder, rows: int, context: int) -> int:
    """What a step has to read: the audio path's weights once, keys and values of each row."""
    matrices = [t for layer in decoder.weights.layers for t in layer] + [decoder.weights.head]
    kept = sum(layer[:, :1, :, :context].nbytes for layer in decoder.cache.layers)
    return sum(t.nbytes for t in matrices) + rows * kept


def large(
    config: ModelConfig, codec: CodecConfig, device: str, scale: int, repeats: int
) -> list[Row]:
    """What is asked of a GPU, at any size: alone, beside transformers, 64 rows, and the first packet."""
    dtype = torch.bfloat16
    model = random_model(config, device, dtype)
    where, case = model.device, f"{config.hidden_size} wide, {config.num_layers} layers, bfloat16"
    bandwidth = read_bandwidth(where, 6 if scale == 1 else 0.05, repeats)
    prompt, few, many = prompt_of(300 // scale, config), 100 // scale, 600 // scale
    room = 1024
    measures = {
        "transformers, growing cache": per_step(theirs(port_of(model), prompt), where, few, many),
        "transformers, static cache": per_step(
            theirs(port_of(model, True), prompt), where, few, many
        ),
        "eager" if device == "cpu" else "graph": per_step(
            ours(model, prompt, room), where, few, many
        ),
        "compiled": per_step(ours(model, prompt, room, True), where, few, many),
    }
    peer = list(measures)[:2]
    times = take_turns(measures, repeats)
    rows = [r for p in peer for r in rows_of(case, times, {name: p for name in list(measures)[2:]})]
    decoder = Decoder(model, 1, room, burst=8)
    limit = 1000 * bytes_per_step(decoder, 1, (300 + 350) // scale) / bandwidth
    rows.append(Row(case, f"limit at {bandwidth / 1e9:.0f} GB/s read", limit))
    del decoder, measures
    gc.collect()
    rows.append(many_rows(model, case, scale, repeats))
    rows.append(first_packet(model, codec, case, 512 // scale, repeats))
    return rows


def many_rows(model: HiggsAudio, case: str, scale: int, repeats: int) -> Row:
    """64 requests with contexts of 200 to 1,200 positions."""
    count = max(4, 64 // scale)
    decoder = Decoder(model, count, 1536, burst=8, compiled=model.device.type != "cpu")
    for row in range(count):
        length = (200 + 900 * row // max(1, count - 1)) // scale
        decoder.admit(row, prompt_of(length, model.config), 400, replace(SAMPLING, seed=row))

    def burst() -> float:
        started = clock(model.device)
        decoder.run(8)
        return (clock(model.device) - started) / 8

    times = take_turns({"step": burst}, repeats + 3)["step"]
    middle = statistics.median(times)
    mode = f"{count} rows: {1000 * count / middle:.0f} frames/s"
    return Row(case, mode, middle, spread=f"{min(times):.2f}-{max(times):.2f}")


def first_packet(
    model: HiggsAudio, config: CodecConfig, case: str, length: int, repeats: int
) -> Row:
    """From a request to four exact frames on the host, with a codec of random weights."""
    torch.manual_seed(0)
    codec = AudioTokenizer(config).eval().requires_grad_(False).to(model.device)
    for name, buffer in codec.named_buffers():
        if name.endswith("embed"):
            buffer.normal_()
    compiled = model.device.type != "cpu"
    scheduler = Scheduler(Decoder(model, 1, 1024, burst=4, compiled=compiled), max_waiting=1)
    prompt = prompt_of(length, model.config)

    def first() -> float:
        started = time.perf_counter()
        ticket, audio, chunks = (
            scheduler.submit(Request(prompt, SAMPLING, 100)),
            AudioStream(codec, [4]),
            [],
        )
        while not chunks:
            scheduler.burst()
            chunks = list(audio.push(ticket.take()))
        seconds = time.perf_counter() - started
        scheduler.cancel(ticket)
        return seconds

    times = take_turns({"first": first}, repeats)["first"]
    spread = f"{min(times):.2f}-{max(times):.2f}"
    return Row(
        case, f"first packet after {length} positions", statistics.median(times), spread=spread
    )


def machine(arguments: argparse.Namespace) -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    load, about = Path("/proc/loadavg"), Path("/proc/cpuinfo").read_text()
    names = [line.split(":")[1].strip() for line in about.splitlines() if "model name" in line]
    return json.dumps({
        "cpu": names[0] if names else platform.machine(), "gpu": gpu, "torch": torch.__version__,
        "transformers": transformers.__version__, "python": platform.python_version(), "threads": arguments.threads,
        "repeats": arguments.repeats, "load": load.read_text().split()[0], "date": time.strftime("%Y-%m-%d"),
    })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--checkpoint", type=Path, default=Path("data/checkpoints/nano"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write one row per case")
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine(arguments))
    rows: list[Row] = []

    def show(more: list[Row]) -> None:
        rows.extend(more)
        for row in more:
            beside = f"{row.peer_ms_per_step:9.3f}{row.ratio:8.2f}x" if row.ratio else " " * 18
            print(
                f"{row.case:34}{row.mode:46}{row.ours_ms_per_step:9.3f}{beside}  {row.spread}",
                flush=True,
            )

    print(f"{'case':34}{'mode: ours / peer':46}{'ours ms':>9}{'peer ms':>9}{'ratio':>9}  range")
    if arguments.rehearse:
        small = CodecConfig(encoder_width=4, decoder_width=96, acoustic_dim=24)
        show(large(SMALL, small, "cpu", 8, arguments.repeats))
    else:
        show(compare("96 wide, 3 layers", TINY, False, arguments.repeats))
        show(compare("512 wide, 6 layers (22 M)", SMALL, True, arguments.repeats))
        for threads in (1, 2):
            show(speech(arguments.checkpoint, threads, arguments.repeats))
        if torch.cuda.is_available():
            show(large(ModelConfig(), CodecConfig(), "cuda", 1, arguments.repeats))
        else:
            print("the released sizes: not measured, there is no CUDA device")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
