"""Time of a decoding step, here and in transformers: 8 codes, 40 ms of audio.

    python -m benchmarks.decode                     # on the CPU; `make gpu` is for a GPU

Measurements alternate within one run; numbers are medians with their range. A step's time is the difference between a
long and a short generation over the difference of their lengths, without the prompt. Both sides sample with
temperature 0.7, top-k 50, top-p 0.95 and repetition-aware sampling; the weights are random, and codes that end a
segment are unlikely. CPU time varies less where other programs run.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import transformers
from torch import Tensor

from benchmarks.timing import (
    Measure,
    Row,
    Table,
    arguments_of,
    per_step,
    rows_of,
    take_turns,
)
from higgs import HiggsAudio
from higgs.batch import Batch
from higgs.checkpoint.config_json import model_to_json
from higgs.config import ModelConfig, SamplingConfig
from higgs.data.chatml import Tokens
from higgs.data.collator import collate, expand_audio_placeholders
from higgs.serve.batching.scheduler import Scheduler, Sequence
from higgs.serve.batching.slots import SlotDecoder
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


def random_model(config: ModelConfig, device: str, dtype: torch.dtype) -> HiggsAudio:
    """Random weights that keep activations finite; stream eos is never among the likely codes."""
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


def port_of(model: HiggsAudio, cache: str = GROWING) -> transformers.PreTrainedModel:
    """The same weights in transformers, over the same memory where they stay on their device."""
    from higgs.model.weights import to_transformers

    made = transformers.HiggsAudioV2Config(**model_to_json(model.config) | PORT_IDS)
    with torch.device(model.device):
        port = transformers.HiggsAudioV2ForConditionalGeneration(made).to(model.dtype)
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
        sequence = scheduler.submit(Sequence(prompt, SAMPLING, steps))
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
        port = f"transformers {kind}"
        measures[port] = per_step(theirs(port_of(model), prompt), model.device, 20, 60)
        modes = {kind: {}, f"{kind} compiled": {"compiled": True}}
        if dtype == torch.bfloat16:
            modes |= {"int8": {"int8": True}, "int8 compiled": {"compiled": True, "int8": True}}
        for mode, options in modes.items():
            measures[mode] = per_step(ours(one_slot(model, 256, **options), prompt), model.device, 20, 60)
            pairs += [(mode, peer) for peer in dict.fromkeys(("transformers float32", port))]
    return rows_of(case, take_turns(measures, repeats), pairs)


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
    table.write()


if __name__ == "__main__":
    main()
