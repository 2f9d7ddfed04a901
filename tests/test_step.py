"""The batched decode step: the codes of the reference loop, few operations, and none that waits for the device."""

import random
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from tiny import prompt_batch, write_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import HiggsAudioV2ForConditionalGeneration

from benchmarks.counts import of_our_step, of_their_steps
from higgs import HiggsAudio
from higgs.arithmetic import can_pin
from higgs.checkpoint.config_json import model_from_json
from higgs.config import SamplingConfig
from higgs.model import matrices
from higgs.model.kv_cache import KVCache
from higgs.model.matrices import dequantize, quantize
from higgs.model.weights import place
from higgs.serve.batching.fused_weights import fuse
from higgs.serve.batching.slots import SlotDecoder, warm_up
from higgs.serve.batching.state import IDLE, SMALL_TOP_K, DecodeState
from higgs.serve.batching.step import decode_step, delay, linear, sample
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


def prefill(decoder: SlotDecoder, prompts: dict, names: tuple[str, ...], limit: int, settings=None) -> None:
    """Golden prompts into the first slots, with seeds 0, 1, ... where there are no settings."""
    for slot, name in enumerate(names):
        sampling = settings[slot] if settings else SamplingConfig(seed=slot)
        decoder.prefill(slot, prompt_batch(prompts, name), limit, sampling)


def drawn(outputs: torch.Tensor) -> torch.Tensor:
    """Outputs of one slot [steps, K + 1] -> the delayed frames in them [K, C]."""
    return outputs[outputs[:, -1] != IDLE, :-1].T.clone()


def delayed_of(decoder: SlotDecoder, prompt, sampling: SamplingConfig, limit: int) -> torch.Tensor:
    """-> [K, C], stream bos included"""
    decoder.prefill(0, prompt, limit, sampling)
    frames = [torch.full((8, 1), 1024)]
    for _ in range(0, limit - 1, decoder.steps_per_sync):
        frames.append(drawn(decoder.run(decoder.steps_per_sync)[0]))
    decoder.free(0)
    return torch.cat(frames, dim=1)


def by_reference(model, prompt, ids: TokenIds, sampling: SamplingConfig, limit: int) -> torch.Tensor:
    return generate(model, prompt, ids, sampling, limit, (ids.audio_eos,)).segments[0].delayed


@pytest.fixture(scope="module")
def decoder(model, layers) -> SlotDecoder:
    return SlotDecoder(model, slots=1, positions=640, steps_per_sync=8)


NAMES = ("smart_voice", "clone", "multi_scene")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_step_draws_what_the_reference_loop_draws(model, decoder, prompts, ids, name, setting):
    prompt, sampling = prompt_batch(prompts, name), SETTINGS[setting]
    assert torch.equal(delayed_of(decoder, prompt, sampling, 120), by_reference(model, prompt, ids, sampling, 120))


def state_of(sampling: list[SamplingConfig], config) -> DecodeState:
    state = DecodeState.create(config, len(sampling), 32, 1, torch.device("cpu"))
    for slot, setting in enumerate(sampling):
        state.start(slot, 1, 30, setting, torch.zeros(8, 0, dtype=torch.long), config)
    return state


def test_a_batch_is_filtered_as_by_the_sampler(model):
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
        together = sample(logits, state, log_uniforms(keys, token_hashes(1026, logits.device)), full_vocab=True)
        history = torch.full((8, 1), 1024)
        for slot, setting in enumerate(settings):
            alone = sample_codes(logits[slot], history, 9, setting, CounterRng(setting.seed, logits.device))
            if slot:
                assert torch.equal(together[slot], alone), setting
                continue
            # Where codes tie with the last that is ranked, either may stay.
            filtered = process_logits(logits[slot], setting)
            least = filtered.masked_fill(filtered == -torch.inf, torch.inf).amin(-1)
            scaled = logits[slot] / (setting.temperature or 1)
            assert (scaled.gather(1, together[slot][:, None])[:, 0] >= least).all()


@pytest.mark.parametrize("size", [2, 32, 61, 62, 63, 1024])
def test_any_number_of_codes_can_be_drawn(model, size):
    """With fewer codes than are ranked, too."""
    config = replace(model.config, codebook_size=size)
    logits = 3 * torch.randn(4, 8, size + 2, generator=torch.Generator().manual_seed(size))
    settings = [SamplingConfig(top_k=k, seed=9, ras_window=None) for k in (1, 20, 70, None)]
    keys = torch.stack([step_keys(s.seed, torch.tensor([9]), 8)[0] for s in settings])
    noise = log_uniforms(keys, token_hashes(size + 2, logits.device))
    for slots, full_vocab in ((4, True), (2, False)):
        together = sample(logits[:slots], state_of(settings[:slots], config), noise[:slots], full_vocab)
        for slot, setting in enumerate(settings[:slots]):
            rng, history = CounterRng(9, logits.device), torch.full((8, 1), size)
            assert torch.equal(together[slot], sample_codes(logits[slot], history, 9, setting, rng))


@pytest.mark.parametrize("temperature", [0, 5e-324, 1e-46, 1e-38, 1e-37, 1e-30, 1e-20, 1e-6])
def test_temperatures_next_to_nothing_are_greedy(model, temperature):
    """1e-46 is 0 in float32, and logits divided by 1e-38 are infinite."""
    logits = 100 * torch.randn(1, 8, 1026, generator=torch.Generator().manual_seed(0))
    setting = SamplingConfig(temperature=temperature, top_k=50, ras_window=None)
    if setting.greedy:  # where several are likeliest, it is the first of them
        logits[:, :4] = logits[:, :4].div(100).round().clamp(max=3)
    noise = log_uniforms(step_keys(0, torch.tensor([9]), 8), token_hashes(1026, logits.device))
    together = sample(logits, state_of([setting], model.config), noise, full_vocab=False)
    alone = sample_codes(logits[0], torch.zeros(8, 0, dtype=torch.long), 9, setting, CounterRng(0, logits.device))
    assert torch.equal(together[0], logits[0].argmax(-1)) and torch.equal(alone, logits[0].argmax(-1))


@pytest.mark.parametrize("strict", [False, True])
def test_delay_and_end_are_those_of_the_reference_loop(model, strict):
    """With stream bos and eos drawn anywhere, until the segment ends."""
    generator = torch.Generator().manual_seed(1)
    codebook_ids = torch.arange(1, 9)
    lengths = set()
    for _ in range(60):
        state = state_of([SamplingConfig(strict_eos=strict)], model.config)
        reference = DelayState(8, 1024, 1025, strict)
        for step in range(1, 40):
            tokens = torch.randint(0, 1024, (1, 8), generator=generator)
            odd = torch.rand(8, generator=generator)
            if not strict:
                tokens[0, odd < 0.03] = 1025
                tokens[0, odd > 0.97] = 1024
            elif odd[0] < 0.05:
                tokens[0, 0] = 1025
            expected, over = reference.apply(tokens[0])
            codes, num_finished = delay(tokens, state, codebook_ids, 1024)
            assert torch.equal(codes[0], expected) and bool(num_finished >= 8) == over
            state.num_finished.copy_(num_finished)
            state.step += 1
            if over:
                lengths.add(step)
                break
    assert len(lengths) > 10


def test_a_step_waits_for_nothing_and_has_few_operations(model, layers, prompts, config, tmp_path):
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
    for what in ("kernels", "operators"):
        assert getattr(ours, what) <= 0.6 * theirs[what], (what, theirs)


def test_the_step_reads_nothing_of_the_text_path(model, layers, prompts, monkeypatch):
    """Neither its head nor its feed-forward networks: none of their memory is the step's, and none is called."""
    decoder = SlotDecoder(model, slots=1, positions=400, steps_per_sync=8)
    text_path = [model.text_embedding, model.text_head, *(layer.text_ffn for layer in model.layers)]
    weights = [t for layer in decoder.weights.layers for t in layer]
    weights += [t for t in decoder.weights if isinstance(t, torch.Tensor)]

    def memory(tensors) -> set[int]:
        return {t.untyped_storage().data_ptr() for t in tensors}

    assert not memory(weights) & memory(p for part in text_path for p in part.parameters())
    matrices = [t for t in weights if t.dim() > 1 and t is not decoder.weights.rope]
    assert memory(matrices) <= memory(model.parameters()), "no matrix is stored twice"
    prefill(decoder, prompts, NAMES[:1], 20)
    for part in (*text_path, torch.nn.Linear):
        monkeypatch.setattr(part, "forward", lambda *_: pytest.fail("a module in a step"))
    assert (decoder.run(8)[0, :, -1] != IDLE).all()


def test_a_model_can_be_saved_after_its_weights_are_fused(model, layers, config, tmp_path):
    SlotDecoder(model, slots=1, positions=50, steps_per_sync=1)
    model.save_pretrained(tmp_path, {k: v for k, v in config.items() if k.endswith("token_id")})
    saved = HiggsAudio.from_pretrained(tmp_path).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[name]), name


@pytest.fixture()
def as_on_an_accelerator(monkeypatch):
    """Fixed shapes: batches of powers of two, a mask over the KV; traced in one graph, which a wait would break."""
    compile_step = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, options=None, **k: compile_step(step, backend="aot_eager", **k))


def test_fixed_shapes_draw_the_same(model, prompts, ids, as_on_an_accelerator):
    decoder = SlotDecoder(model, slots=3, positions=600, steps_per_sync=8, compiled=True)
    settings = [SETTINGS[name] for name in ("the defaults", "greedy", "no top-k")]
    prefill(decoder, prompts, NAMES, 60, settings)
    outputs = torch.cat([decoder.run(8).clone() for _ in range(8)], dim=1)
    for output, name, sampling in zip(outputs, NAMES, settings, strict=True):
        expected = by_reference(model, prompt_batch(prompts, name), ids, sampling, 60)
        assert torch.equal(drawn(output), expected[:, 1:])


def forced_kv(model: HiggsAudio, prompts: dict, **options) -> list[torch.Tensor]:
    """Keys and values of the last layer in two slots, after six steps of given codes."""
    decoder = SlotDecoder(model, 2, 400, steps_per_sync=4, **options)
    prefill(decoder, prompts, NAMES[:2], 40)
    for step in range(6):
        decoder.state.codes[:] = 100 + step
        decoder.run(1)
    return [decoder.cache.layers[-1][:, slot, :, : decoder.next_position[slot]].float().clone() for slot in (0, 1)]


def test_bfloat16_is_near_float32(config, prompts, tmp_path):
    """Within the rounding of bfloat16."""
    folder = write_model(tmp_path / "m", config)
    exact, near = (
        forced_kv(HiggsAudio.from_pretrained(folder, dtype=dtype), prompts) for dtype in (torch.float32, torch.bfloat16)
    )
    assert all((b - a).norm() < 0.02 * a.norm() for a, b in zip(exact, near, strict=True))


# Bits, dtype -> how far keys and values may be from those of float32; int4 keeps 16 values of normal ones.
ROUNDED = {
    "int8": (8, torch.bfloat16, 0.05), "int4": (4, torch.bfloat16, 0.5),
    "int8, a CPU without bfloat16": (8, torch.float32, 0.05), "int4, the same": (4, torch.float32, 0.5),
}  # fmt: skip
ROUNDABLE = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 8}  # multiples of 64, as int4 asks


@pytest.mark.parametrize("how", ["kernel", "compiled", "no compiler"])
@pytest.mark.parametrize("form", ROUNDED)
def test_rounded_weights_replace_the_matrices(config, prompts, tmp_path, form, how, as_on_an_accelerator, monkeypatch):
    """Prompt and steps read them, and no others; the numbers are near, whichever way they are multiplied."""
    bits, dtype, tolerance = ROUNDED[form]
    folder = write_model(tmp_path / "m", config | ROUNDABLE)
    exact = forced_kv(HiggsAudio.from_pretrained(folder), prompts)
    model = HiggsAudio.from_pretrained(folder, dtype=dtype, bits=bits)
    if how == "no compiler":
        monkeypatch.setattr(matrices, "kernel", lambda: None)
        matrices._warn.cache_clear()
    with pytest.warns(UserWarning, match="slow on this CPU") if how == "no compiler" else nullcontext():
        near = forced_kv(model, prompts, compiled=how == "compiled")
    assert all(0 < (b - a).norm() < tolerance * a.norm() for a, b in zip(exact, near, strict=True))
    weights = SlotDecoder(model, 1, 100, steps_per_sync=1).weights
    for layer, fused in zip(model.layers, weights.layers, strict=True):
        attention, ffn = layer.attention, layer.audio_ffn[1]
        for matrix, parts in ((fused.qkv, "qkv"), (fused.out, "o")):
            assert all(getattr(attention, f"{part}_proj").matrix is matrix for part in parts)
        assert ffn.gate_proj.matrix is ffn.up_proj.matrix is fused.gate_up and ffn.down_proj.matrix is fused.down
    left = {name.split(".")[0] for name, weight in model.named_parameters() if weight.dim() > 1}
    assert left <= {"audio_embedding", "audio_head"}
    with pytest.raises(ValueError, match="for inference"):
        model.save_pretrained(tmp_path / "saved", {})


@pytest.fixture(params=["native", "haswell", "x86-64", None])
def instructions(request, monkeypatch, tmp_path):
    """The kernel for this processor, for AVX2, for no vectors that it knows of, and none."""
    if request.param is None:
        monkeypatch.setattr(matrices, "kernel", lambda: None)
        return
    if request.param != "native" and not can_pin():
        pytest.skip("of x86-64 with AVX2")
    monkeypatch.setenv("HIGGS_CACHE", str(tmp_path))
    flags = [flag.replace("native", request.param) for flag in matrices.FLAGS]
    monkeypatch.setattr(matrices, "FLAGS", flags)
    product = matrices.build_kernel.__wrapped__()
    assert not isinstance(product, str), product
    monkeypatch.setattr(matrices, "kernel", lambda: product)


@pytest.mark.parametrize("bits, step", [(8, 1 / 254), (4, 1 / 16)])
def test_each_weight_is_rounded_to_the_nearest(bits, step, instructions):
    """Within half a step of its scale, a whole one at int4's short side; and the product is that of rounded weights."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(160, 192, generator=generator)
    weight[3] = 0
    weight[5, :64] *= 1e-3  # int4 has a scale for these alone
    stored = quantize(weight, bits)
    back = dequantize(stored, torch.float32)
    groups = weight[:, None] if bits == 8 else weight.unflatten(1, (-1, 64))
    most = groups.abs().amax(-1, keepdim=True).expand_as(groups).reshape(160, 192)
    assert ((back - weight).abs() <= 1.02 * (1 if bits == 8 else 2) * step * most + 4e-3 * back.abs()).all()
    assert stored.values.nbytes * 8 == weight.numel() * bits
    for rows, dtype in ((1, torch.bfloat16), (3, torch.bfloat16), (5, torch.float32), (40, torch.bfloat16)):
        x = torch.randn(rows, 1, 192, generator=generator).to(dtype)
        product, exact = linear(x, stored), x.float() @ back.t()
        assert product.shape == (rows, 1, 160) and product.dtype == dtype
        assert (product.float() - exact).norm() < (1e-4 if dtype == torch.float32 else 0.006) * exact.norm()
        residual = torch.ones_like(product)
        assert torch.equal(linear(x, stored, residual), residual + product)
    if matrices.kernel():
        assert linear(torch.full((1, 1, 192), torch.nan), stored).isnan().all(), "what is no number is seen"
    alone = torch.cat([linear(row[None], stored) for row in x[:8]])
    assert torch.equal(alone, linear(x[:8], stored)), "a slot's bits do not depend on the others"
    with pytest.raises(ValueError, match="multiples of"):
        quantize(weight[:, :72], bits)


class Capturable(TorchDispatchMode):
    """Fails on whatever a CUDA graph cannot record, of a step whose tensors are all on `device`.

    That is a tensor of another device, read or made (copies to and from the host, constants of Python); numbers that
    the host asks for; shapes that depend on data; random numbers of a generator; pinned memory.
    """

    HOST = ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "masked_select", "equal", "unique", "lift_fresh")
    RANDOM = ("rand", "normal", "uniform_", "bernoulli", "multinomial", "exponential_")

    def __init__(self, device: str):
        super().__init__()
        self.device, self.count = device, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.name().removeprefix("aten::").split(".")[0]
        boolean = name.startswith("index") and any(
            isinstance(t, torch.Tensor) and t.dtype == torch.bool for t in tree_leaves(args[1])
        )
        assert not name.startswith((*self.HOST, *self.RANDOM)) and not boolean, f"{name} in a step"
        assert not kwargs.get("pin_memory"), f"{name} pins memory"
        result = function(*args, **kwargs)
        places = {t.device.type for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)}
        assert places <= {self.device}, f"{name} with tensors on {sorted(places)}"
        self.count += 1
        return result


FORMS = {"float32": (torch.float32, None), "bfloat16": (torch.bfloat16, None)}
FORMS |= {name: (dtype, bits) for name, (bits, dtype, _) in ROUNDED.items()}


@pytest.mark.parametrize("full_vocab", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_graph_can_record_a_step(config, form, full_vocab, monkeypatch):
    """On the meta device, which stands for an accelerator: nothing of the step touches another one."""
    dtype, bits = FORMS[form]
    with torch.device("meta"):
        stored, model = (HiggsAudio(model_from_json(config | ROUNDABLE)) for _ in range(2))
    place(model, dict(stored.state_dict()), torch.device("meta"), dtype, bits, offload_text=False)
    weights, cache = fuse(model, 64), KVCache(model.config, 3, 64, "meta", dtype).layers
    state = DecodeState.create(model.config, 3, 64, 4, torch.device("meta"))
    for slot, name in enumerate(("the defaults", "no top-k", "strict end")):
        state.start(slot, 9, 20, SETTINGS[name], torch.zeros(8, 5, dtype=torch.long, device="meta"), model.config)
    # On the meta device it reaches no dispatcher; on an accelerator it copies from the host.
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("a constant of Python"))
    with torch.no_grad(), Capturable("meta") as seen:
        decode_step(weights, cache, state, 32, full_vocab)
    assert seen.count > 100


FAULTS = {  # the device on which the operation itself works
    "a number read": ("cpu", lambda x: x * float(x.sum())),
    "a condition": ("cpu", lambda x: x if x.sum() > 0 else -x),
    "places that depend on data": ("cpu", lambda x: x.nonzero()),
    "a boolean index": ("cpu", lambda x: x[x > 0]),
    "a boolean write": ("cpu", lambda x: x.index_put_((x > 0,), x.new_zeros(()))),
    "a comparison": ("cpu", lambda x: torch.equal(x, x)),
    "a generator's numbers": ("cpu", lambda x: x + torch.rand_like(x)),
    "noise in place": ("cpu", lambda x: x.exponential_()),
    "a constant of Python": ("meta", lambda x: x * torch.tensor([2.0]).to(x.device)),
    "a table on the host": ("meta", lambda x: torch.arange(4.0) * 2),
    "a tensor of the host": ("meta", lambda x: x.copy_(torch.ones(4))),
    "a scalar of the host": ("meta", lambda x: x * torch.ones(())),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_no_graph_can_record_is_seen(fault):
    device, operation = FAULTS[fault]
    x = torch.ones(4, device=device)
    with pytest.raises(AssertionError), Capturable(device):
        operation(x)


def test_a_warm_up_leaves_nothing_and_stays_within_the_outputs():
    """A graph may be captured at the last step before the host reads: there is no column for a second one."""
    outputs, place = torch.zeros(2, 4), torch.tensor([3])

    def step() -> None:
        outputs.index_copy_(1, place, torch.ones(2, 1))
        place.add_(1)

    warm_up([outputs, place], step)
    assert not outputs.any() and place.item() == 3


@pytest.mark.requires_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_draw_what_eager_steps_draw(config, prompts, tmp_path, dtype):
    """Several slots, filled one after another while steps run."""
    model = HiggsAudio.from_pretrained(write_model(tmp_path / "m", config), device="cuda", dtype=dtype)
    runs = []
    for graphs in (True, False):
        decoder = SlotDecoder(model, slots=4, positions=600, steps_per_sync=4)
        assert decoder.graphed is not None
        decoder.graphed = decoder.graphed if graphs else None
        outputs = []
        for slot, name in enumerate(NAMES):
            decoder.prefill(slot, prompt_batch(prompts, name), 80, list(SETTINGS.values())[slot + 2])
            outputs.append(decoder.run(4)[:1].clone())
        outputs += [decoder.run(4)[:3].clone() for _ in range(12)]
        runs.append(torch.cat([output.flatten(0, 1) for output in outputs]))
    assert torch.equal(*runs)


@pytest.mark.requires_cuda
def test_several_steps_on_a_gpu_wait_once(model, prompts):
    """With synchronisation an error, all but the copy of the outputs would fail."""
    decoder = SlotDecoder(deepcopy(model).cuda(), slots=2, positions=400, steps_per_sync=4)
    prefill(decoder, prompts, NAMES[:1], 60)
    decoder.run(4)  # captures the graph
    torch.cuda.set_sync_debug_mode("error")
    try:
        decoder.run(4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
