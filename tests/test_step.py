"""The decode step: the codes of the reference loop, fewer operations than the port's, and none that waits for the device."""

import random

import pytest
import torch
import torch.nn.functional as F
from tiny import prompt_batch, write_model
from transformers import HiggsAudioV2ForConditionalGeneration

from benchmarks.counts import of_our_step, of_their_steps
from higgs import HiggsAudio
from higgs.config import SamplingConfig
from higgs.data.text.tokenizer import TextTokenizer
from higgs.serve.batching.fused_weights import quantize
from higgs.serve.batching.slots import SlotDecoder
from higgs.serve.batching.state import IDLE, SMALL_TOP_K, DecodeState
from higgs.serve.batching.step import delay, linear, sample
from higgs.serve.counter_rng import CounterRng, log_uniforms, step_keys, token_hashes
from higgs.serve.reference.loop import DelayState, generate
from higgs.serve.reference.sampler import process_logits, sample_codes
from higgs.tokens import TokenIds

SETTINGS = {
    "greedy": SamplingConfig(temperature=0, ras_window=None),
    "greedy, repeats drawn again": SamplingConfig(temperature=0),
    "the defaults": SamplingConfig(seed=3),
    "no top-k": SamplingConfig(1.0, None, 0.9, seed=4),
    "everything": SamplingConfig(1.0, None, 1.0, None, seed=5),
    "a long window": SamplingConfig(0.8, 64, 1.0, ras_window=64, ras_max_repeats=1, seed=6),
    "more than are ranked": SamplingConfig(1.2, 65, 0.99, seed=7),
    "strict end": SamplingConfig(0.9, 20, 0.95, seed=8, strict_eos=True),
}


@pytest.fixture(scope="module")
def ids(golden) -> TokenIds:
    return TokenIds.of(TextTokenizer.from_pretrained(golden / "text_tokenizer"))


def frames_of(decoder: SlotDecoder, prompt, sampling: SamplingConfig, limit: int, slot: int = 0):
    """-> [K, C], stream bos included"""
    decoder.prefill(slot, prompt, limit, sampling)
    made = [torch.full((8, 1), 1024)]
    for _ in range(0, limit - 1, decoder.steps_per_sync):
        outputs = decoder.run(decoder.steps_per_sync)[slot]
        made.append(outputs[outputs[:, -1] != IDLE, :-1].T.clone())
    decoder.free(slot)
    return torch.cat(made, dim=1)


@pytest.fixture(scope="module")
def decoder(model) -> SlotDecoder:
    return SlotDecoder(model, slots=1, positions=640, steps_per_sync=8)


@pytest.mark.parametrize("name", ["smart_voice", "clone", "multi_scene"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_step_draws_what_the_reference_loop_draws(model, decoder, prompts, ids, name, setting):
    prompt, sampling = prompt_batch(prompts, name), SETTINGS[setting]
    reference = generate(model, prompt, ids, sampling, 120, (ids.audio_eos,)).segments[0]
    assert torch.equal(frames_of(decoder, prompt, sampling, 120), reference.delayed)


def state_of(sampling: list[SamplingConfig], config) -> DecodeState:
    state = DecodeState.create(config, len(sampling), 32, 1, torch.device("cpu"))
    for slot, setting in enumerate(sampling):
        state.start(slot, 1, 30, setting, torch.zeros(8, 0, dtype=torch.long), config)
    return state


def test_filters_keep_what_the_sampler_keeps(model):
    """Random settings and logits, some of them tied: drawn in one batch, and one by one by the sampler."""
    chance, generator = random.Random(0), torch.Generator().manual_seed(0)
    for _ in range(25):
        settings = [
            SamplingConfig(
                chance.choice([0, 0.3, 0.7, 1.0, 1.5]),
                chance.choice([None, 1, 2, 20, 50, SMALL_TOP_K, SMALL_TOP_K + 1, 400, 5000]),
                chance.choice([1.0, 0.99, 0.8, 0.3, 1e-6]),
                chance.choice([None, 1, 7]),
                chance.choice([1, 2]),
                seed=chance.randrange(1 << 40),
            )
            for _ in range(6)
        ]
        logits = 3 * torch.randn(6, 8, 1026, generator=generator)
        logits[0] = logits[0].round()  # ties
        state = state_of(settings, model.config)
        keys = torch.stack([step_keys(s.seed, torch.tensor([9]), 8)[0] for s in settings])
        noise = log_uniforms(keys, token_hashes(1026, logits.device))
        together = sample(logits, state, noise, full_vocab=True)
        history = torch.full((8, 1), 1024)
        for slot, setting in enumerate(settings):
            alone = sample_codes(logits[slot], history, 9, setting, CounterRng(setting.seed, logits.device))
            if slot == 0:  # where codes tie with the last that is ranked, either may stay
                kept = process_logits(logits[slot], setting)
                least = kept.masked_fill(kept == -torch.inf, torch.inf).amin(-1)
                scaled = logits[slot] / (setting.temperature or 1)
                assert (scaled.gather(1, together[slot][:, None])[:, 0] >= least).all()
                continue
            assert torch.equal(together[slot], alone), setting


@pytest.mark.parametrize("strict", [False, True])
def test_delay_and_end_are_those_of_the_reference_loop(model, strict):
    """Columns with stream bos and eos anywhere, until the segment ends."""
    generator = torch.Generator().manual_seed(1)
    codebook_ids = torch.arange(1, 9)
    lengths = set()
    for _ in range(60):
        state = state_of([SamplingConfig(strict_eos=strict)], model.config)
        reference = DelayState(8, 1024, 1025, strict)
        for step in range(1, 40):
            drawn = torch.randint(0, 1024, (1, 8), generator=generator)
            odd = torch.rand(8, generator=generator)
            if not strict:
                drawn[0, odd < 0.03] = 1025
                drawn[0, odd > 0.97] = 1024
            elif odd[0] < 0.05:
                drawn[0, 0] = 1025
            expected, over = reference.apply(drawn[0])
            codes, ended = delay(drawn, state, codebook_ids, 1024)
            assert torch.equal(codes[0], expected)
            assert bool(ended >= 8) == over
            state.num_finished.copy_(ended)
            state.step += 1
            if over:
                lengths.add(step)
                break
    assert len(lengths) > 10


def test_no_step_waits_for_the_device_and_few_operations_do(model, prompts, config, tmp_path):
    """Against the port's `generate`, at the settings that both have: top-k 50, top-p 0.95, repeats drawn again."""
    prompt = prompt_batch(prompts, "smart_voice")
    ours = of_our_step(model, prompt)
    assert ours.waits == 0, ours.seen
    folder = write_model(tmp_path / "model", config)
    port = HiggsAudioV2ForConditionalGeneration.from_pretrained(folder).eval()
    port.generation_config.ras_win_len, port.generation_config.ras_win_max_num_repeat = 7, 2
    port.audio_lm_head.weight.data.view(8, 1026, -1)[:, 1025] = 0  # its segments must not end by chance
    theirs = of_their_steps(port, prompt)
    assert theirs["waits"] >= 1, "the port's waits are seen"
    assert ours.kernels <= 0.6 * theirs["kernels"], (ours.kernels, theirs)
    assert ours.operators <= 0.6 * theirs["operators"], (ours.operators, theirs)


def test_the_step_reads_nothing_of_the_texts(model, prompts, monkeypatch):
    """Neither its head nor its networks: their memory is not among the step's, and no part of them is called."""
    decoder = SlotDecoder(model, slots=1, positions=400, steps_per_sync=8)
    texts = [model.text_embedding, model.text_head, *(layer.text_ffn for layer in model.layers)]
    held = [t for layer in decoder.weights.layers for t in layer]
    held += [t for t in decoder.weights if isinstance(t, torch.Tensor)]
    memory = {t.untyped_storage().data_ptr() for t in held}
    assert not memory & {p.untyped_storage().data_ptr() for m in texts for p in m.parameters()}
    matrices = [t for t in held if t.dim() > 1 and t is not decoder.weights.rope]
    mine = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert all(t.untyped_storage().data_ptr() in mine for t in matrices), "no matrix is held twice"
    decoder.prefill(0, prompt_batch(prompts, "smart_voice"), 20, SamplingConfig())
    for part in texts:
        monkeypatch.setattr(part, "forward", lambda *_: pytest.fail("text in an audio step"))
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda *_: pytest.fail("a module in a step"))
    assert (decoder.run(8)[0, :, -1] != IDLE).all()


def test_a_model_can_be_saved_behind_an_engine(model, config, tmp_path):
    """Whose weights lie as the step reads them: the file has them as ever."""
    SlotDecoder(model, slots=1, positions=50, steps_per_sync=1)
    model.save_pretrained(tmp_path, {k: v for k, v in config.items() if k.endswith("token_id")})
    saved = HiggsAudio.from_pretrained(tmp_path).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[name]), name


@pytest.fixture()
def as_on_an_accelerator(monkeypatch):
    """Fixed shapes: rows in powers of two, and a mask over the span; traced in one graph, which no wait may break."""
    whole = torch.compile

    def trace(function, options=None, **how):
        return whole(function, backend="aot_eager", **how)

    monkeypatch.setattr(torch, "compile", trace)


def test_fixed_shapes_draw_the_same(model, prompts, ids, as_on_an_accelerator):
    decoder = SlotDecoder(model, slots=3, positions=600, steps_per_sync=8, compiled=True)
    settings = [SETTINGS[name] for name in ("the defaults", "greedy", "no top-k")]
    asked = [prompt_batch(prompts, name) for name in ("smart_voice", "clone", "multi_scene")]
    for slot, (prompt, sampling) in enumerate(zip(asked, settings, strict=True)):
        decoder.prefill(slot, prompt, 60, sampling)
    outputs = torch.cat([decoder.run(8).clone() for _ in range(8)], dim=1)
    for slot, (prompt, sampling) in enumerate(zip(asked, settings, strict=True)):
        reference = generate(model, prompt, ids, sampling, 60, (ids.audio_eos,)).segments[0]
        drawn = outputs[slot][outputs[slot, :, -1] != IDLE, :-1].T
        assert torch.equal(drawn, reference.delayed[:, 1:])


def test_bfloat16_is_near_float32(config, prompts, tmp_path_factory):
    """The logits of one step, teacher-forced: within the rounding of bfloat16, which the reference model has too."""
    folder = write_model(tmp_path_factory.mktemp("half"), config)
    seen = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = HiggsAudio.from_pretrained(folder, dtype=dtype)
        decoder = SlotDecoder(model, slots=1, positions=400, steps_per_sync=4)
        for name in ("smart_voice", "clone"):
            decoder.prefill(0, prompt_batch(prompts, name), 40, SamplingConfig(temperature=0, ras_window=None))
            for step in range(6):
                decoder.state.codes[:] = 100 + step
                decoder.run(1)
            seen[name, dtype] = decoder.cache.layers[-1][:, 0, :, : decoder.next_position[0]].float().clone()
    for name in ("smart_voice", "clone"):
        exact, near = seen[name, torch.float32], seen[name, torch.bfloat16]
        assert (near - exact).norm() < 0.02 * exact.norm()


def test_int8_is_the_product_with_rounded_weights():
    """Each weight within half a step of its row, and the kernel against the reference product with what is stored."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(96, 160, generator=generator).bfloat16()
    stored = quantize(matrix)
    back = (stored.values.float() * stored.scales.float()[:, None]).t()
    assert stored.values.dtype == torch.int8 and stored.values.abs().amax() == 127
    assert ((back - matrix.float()).abs() <= 0.51 * stored.scales.float() + 1e-2 * back.abs()).all()
    for rows in (1, 3, 16):
        x = torch.randn(rows, 1, 96, generator=generator).bfloat16()
        made, residual = linear(x, stored), torch.ones(rows, 1, 160).bfloat16()
        exact = x.float() @ back
        assert made.shape == (rows, 1, 160) and (made.float() - exact).norm() < 0.01 * exact.norm()
        assert torch.equal(linear(x, stored, residual), residual + made)
        twin = F.linear(x, stored.values.to(x.dtype)) * stored.scales  # what other devices do
        assert (twin.float() - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("compiled", [False, True])
def test_int8_is_near_bfloat16(config, prompts, tmp_path, compiled, as_on_an_accelerator):
    """Keys and values of the last layer after some steps; the model's own weights are left alone."""
    model = HiggsAudio.from_pretrained(write_model(tmp_path / "m", config), dtype=torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = []
    for int8 in (False, True):
        decoder = SlotDecoder(model, 2, 400, steps_per_sync=4, compiled=compiled, int8=int8)
        for slot, name in enumerate(("smart_voice", "clone")):
            decoder.prefill(slot, prompt_batch(prompts, name), 40, SamplingConfig(seed=1))
        for step in range(6):
            decoder.state.codes[:] = 100 + step
            decoder.run(1)
        seen.append([decoder.cache.layers[-1][:, r, :, : decoder.next_position[r]].float() for r in (0, 1)])
    for near, exact in zip(*seen, strict=True):
        assert 0 < (near - exact).norm() < 0.05 * exact.norm()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_int8_wants_bfloat16(model):
    with pytest.raises(ValueError, match="int8 weights go with dtype bfloat16"):
        SlotDecoder(model, 1, 100, steps_per_sync=1, int8=True)


@pytest.mark.requires_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_draw_what_eager_steps_draw(config, prompts, tmp_path, dtype):
    """Several rows, of which one comes later, with graphs and without."""
    model = HiggsAudio.from_pretrained(write_model(tmp_path / "m", config), device="cuda", dtype=dtype)
    made = []
    for graphs in (True, False):
        decoder = SlotDecoder(model, slots=4, positions=600, steps_per_sync=4)
        assert decoder.graphed is not None
        decoder.graphed = decoder.graphed if graphs else None
        outputs = []
        for slot, name in enumerate(("smart_voice", "clone", "multi_scene")):
            decoder.prefill(slot, prompt_batch(prompts, name), 80, list(SETTINGS.values())[slot + 2])
            outputs += [decoder.run(4)[:1].clone()]
        outputs += [decoder.run(4)[:3].clone() for _ in range(12)]
        made.append(torch.cat([r.flatten(0, 1) for r in outputs]))
    assert torch.equal(*made)


@pytest.mark.requires_cuda
def test_several_steps_on_a_gpu_wait_once(model, prompts):
    """With synchronisation made an error, only the copy of the outputs is left."""
    from copy import deepcopy

    decoder = SlotDecoder(deepcopy(model).cuda(), slots=2, positions=400, steps_per_sync=4)
    decoder.prefill(0, prompt_batch(prompts, "smart_voice"), 60, SamplingConfig())
    decoder.run(4)  # outputs the graph
    torch.cuda.set_sync_debug_mode("error")
    try:
        decoder.run(4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
