"""Time of a decoding step, here and in transformers: 8 codes, 40 ms of audio.

    python -m benchmarks.decode                     # on the CPU; `make gpu` is for a GPU

Measurements alternate within one run; numbers are medians with their range. A step's time is the difference between a
long and a short generation over the difference of their lengths, without the prompt. Both sides sample with
temperature 0.7, top-k 50, top-p 0.95 and repetition-aware sampling; the weights are random, and codes that end a
segment are unlikely. CPU time varies less where other programs run.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import transformers
from torch import Tensor

from benchmarks.timing import (
    Measure,
    Row,
    Table,
    Times,
    arguments_of,
    bounds,
    clock,
    middle,
    per_step,
    row_of,
    rows_of,
    scaled,
    since,
    take_turns,
)
from higgs import HiggsAudio
from higgs.batch import Batch
from higgs.checkpoint.config_json import model_to_json
from higgs.config import ModelConfig, SamplingConfig
from higgs.data.chatml import Tokens
from higgs.data.collator import collate, expand_audio_placeholders
from higgs.model.matrices import BITS
from higgs.model.weights import place, to_transformers
from higgs.serve.batching.scheduler import Scheduler
from higgs.serve.batching.scheduler import Sequence as Request
from higgs.serve.batching.slots import SlotDecoder
from higgs.serve.engine import choose_dtype
from higgs.tokens import TokenIds

SAMPLING = SamplingConfig(temperature=0.7, top_k=50, top_p=0.95, seed=1)
GROWING, STATIC, COMPILED = "growing cache", "static cache", "static cache, compiled"  # of transformers' `generate`
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


def random_model(config: ModelConfig, device: str, dtype: torch.dtype, bits: int | None = None) -> HiggsAudio:
    """Random weights that keep activations finite; stream eos is never among the likely codes. `bits` rounds them."""
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
    if bits is None:
        return model
    with torch.device("meta"):
        rounded = HiggsAudio(config)
    place(rounded, dict(model.state_dict()), model.device, dtype, bits, offload_text=False)
    return rounded.eval()


def port_of(model: HiggsAudio, cache: str = GROWING) -> transformers.PreTrainedModel:
    """The same weights in transformers, over the same memory where they stay on their device."""
    made = transformers.HiggsAudioV2Config(**model_to_json(model.config) | PORT_IDS)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(model.dtype)  # in float32 the release would take 23 GB for a moment
    try:
        with torch.device(model.device):
            port = transformers.HiggsAudioV2ForConditionalGeneration(made).to(model.dtype)
    finally:
        torch.set_default_dtype(usual)
    tensors, names = to_transformers(dict(model.state_dict())), dict(port.named_parameters())
    port.load_state_dict({k: v for k, v in tensors.items() if k in names}, strict=False, assign=True)
    settings = port.generation_config
    settings.ras_win_len, settings.ras_win_max_num_repeat = 7, 2
    if cache != GROWING:
        settings.cache_implementation, settings.disable_compile = "static", cache == STATIC
    if cache == COMPILED and model.device.type == "cpu":  # which `generate` compiles for when it is told to
        settings.compile_config = transformers.CompileConfig()
        settings.compile_config._compile_all_devices = True
    return port.eval()


def prompt_of(length: int, config: ModelConfig) -> Batch:
    """Text and the start of audio."""
    text = [256, *(n % 250 for n in range(length - 2)), IDS.audio_out_bos]
    return collate([expand_audio_placeholders(Tokens(text, [-100] * length), [], IDS, config, False)], IDS)


def ours(scheduler: Scheduler, prompt: Batch) -> Callable[[int], None]:
    """-> what generates so many steps for one request."""

    def run(steps: int) -> None:
        sequence = scheduler.submit(Request(prompt, SAMPLING, steps))
        while not sequence.done:
            scheduler.run_steps()
        assert sequence.num_steps == steps, "a segment ended by itself"

    return run


def one_slot(model: HiggsAudio, room: int, **options: bool) -> Scheduler:
    """For one request at a time; `options` as `SlotDecoder`."""
    return Scheduler(SlotDecoder(model, 1, room, steps_per_sync=8, **options), max_waiting=1)


def theirs(port: transformers.PreTrainedModel, prompt: Batch) -> Callable[[int], None]:
    inputs = {"input_ids": prompt.input_ids, "attention_mask": prompt.attention_mask.long()}
    inputs = {name: tensor.to(port.device) for name, tensor in inputs.items()}

    def run(steps: int) -> None:
        generated = port.generate(**inputs, do_sample=True, temperature=0.7, top_k=50, top_p=0.95, max_new_tokens=steps)
        codes = generated if isinstance(generated, Tensor) else generated.audio_sequences
        assert codes.shape[1] == steps, "a segment ended by itself"

    return run


def compare(case: str, config: ModelConfig, halves: bool, repeats: int) -> list[Row]:
    """A model on the CPU, in each mode, beside transformers' `generate` with a growing cache."""
    measures: dict[str, Measure] = {}
    pairs: list[tuple[str, str]] = []
    for dtype in (torch.float32, torch.bfloat16) if halves else (torch.float32,):
        model = random_model(config, "cpu", dtype)
        prompt, kind = prompt_of(100, config), str(dtype).removeprefix("torch.")
        port, static = f"transformers {kind}", f"transformers {kind}, static and compiled"
        measures[port] = per_step(theirs(port_of(model), prompt), model.device, 20, 60)
        if halves:
            measures[static] = per_step(theirs(port_of(model, COMPILED), prompt), model.device, 20, 60)
            pairs.append((port, static))
        modes = {kind: (None, False), f"{kind} compiled": (None, True)}
        if dtype == torch.bfloat16:
            modes |= {name: (bits, False) for name, bits in BITS.items()} | {"int8 compiled": (8, True)}
        for mode, (bits, compiled) in modes.items():
            # Each has weights of its own: they are laid out, or rounded, for it.
            run = ours(one_slot(random_model(config, "cpu", dtype, bits), 256, compiled=compiled), prompt)
            measures[mode] = per_step(run, model.device, 20, 60)
            pairs += [
                (mode, peer) for peer in dict.fromkeys(("transformers float32", port, static)) if peer in measures
            ]
    return rows_of(case, take_turns(measures, repeats), pairs)


def reading(case: str, config: ModelConfig, layers: tuple[int, int], repeats: int) -> list[Row]:
    """Steps on the CPU beside reading as much memory: the share of the read bandwidth that a step reaches.

    A step of all layers is reckoned from steps of a few of them and of a few more, `layers`.
    """
    memory = torch.randn(1 << 27)

    def read() -> Times:
        started = clock("cpu")
        memory.sum()
        return scaled(since(started), 1e9 / memory.nbytes)  # a gigabyte

    measures, sizes = {"read": read}, {}
    names = ("float32", "bfloat16", *BITS) if max(layers) == config.num_layers else ("bfloat16", *BITS)
    for name in names:
        dtype, bits = choose_dtype(name, torch.device("cpu")), BITS.get(name)
        for count in layers:
            model = random_model(replace(config, num_layers=count, vocab_size=512), "cpu", dtype, bits)
            decoder = SlotDecoder(model, 1, 256, steps_per_sync=8)
            decoder.prefill(0, prompt_of(60, model.config), 190, SAMPLING)
            sizes[name, count] = bytes_per_step(decoder, 1, 64)
            measures[f"{name} {count}"] = partial(steps_of, decoder)
    times = take_turns(measures, repeats)
    rows = [row_of(case, f"reading: {1000 / middle(times['read'])[1]:.1f} GB/s", times["read"])]
    few, many = layers
    for name in names:
        size = extrapolated(sizes[name, few], sizes[name, many], layers, config.num_layers)
        steps = [middle(times[f"{name} {count}"]) for count in layers]
        wall, cpu = (extrapolated(*pair, layers, config.num_layers) for pair in zip(*steps, strict=True))
        share = size / 1e9 * middle(times["read"])[1] / cpu
        mode = f"{name}: {size / 1e6:.0f} MB in a step, {share:.0%} of it"
        rows.append(Row(case, mode, wall, ours_cpu_ms_per_step=cpu, range=bounds(times[f"{name} {many}"])))
    return rows


def extrapolated(first: float, second: float, counts: tuple[int, int], wanted: int) -> float:
    """Values at two counts -> the value at another, on a line through them."""
    return first + (second - first) * (wanted - counts[0]) / (counts[1] - counts[0])


def steps_of(decoder: SlotDecoder) -> Times:
    """One of eight steps, from the same place each time."""
    decoder.next_position[0] = 60
    decoder.state.position[0], decoder.state.step[0], decoder.state.active[0] = 60, 1, True
    started = clock("cpu")
    decoder.run(8)
    return scaled(since(started), 1 / 8)


def bytes_per_step(decoder: SlotDecoder, rows: int, context: int) -> int:
    """Memory traffic of a step: the audio path's weights once, keys and values of each slot."""
    found = [t for layer in decoder.weights.layers for t in layer] + [decoder.weights.head]
    matrices = [part for t in found for part in (t if isinstance(t, tuple) else (t,))]
    kv = sum(layer[:, :1, :, :context].nbytes for layer in decoder.cache.layers)
    return sum(t.nbytes for t in matrices) + rows * kv


def main() -> None:
    arguments = arguments_of(__doc__).parse_args()
    table = Table(arguments)
    table.show(compare("96 wide, 3 layers", TINY, False, arguments.repeats))
    table.show(compare("512 wide, 6 layers (22 M)", SMALL, True, arguments.repeats))
    table.show(reading("28 layers of the released sizes", ModelConfig(), (1, 5), arguments.repeats))
    table.show(reading("512 wide, 6 layers (22 M)", SMALL, (2, 6), arguments.repeats))
    table.write()


if __name__ == "__main__":
    main()
