"""The layers of a step as one call into C, beside the same step by PyTorch's operators."""

from dataclasses import replace

import pytest
import torch
from test_step import FORMS, SETTINGS, delayed_of
from torch import Tensor

from benchmarks.decode import TINY, prompt_of, random_model
from higgs.arithmetic import can_pin
from higgs.config import ModelConfig
from higgs.model import matrices
from higgs.model.kv_cache import KVCache
from higgs.serve.batching import fused_weights
from higgs.serve.batching.fused_weights import FusedWeights, fuse
from higgs.serve.batching.slots import SlotDecoder
from higgs.serve.batching.state import DecodeState
from higgs.serve.batching.step import run_layers

CAPACITY = 70


def sized(width: int, d: int, ffn: int, heads: int, kv_heads: int, **others: int) -> ModelConfig:
    return replace(
        TINY, hidden_size=width, head_dim=d, intermediate_size=ffn, num_heads=heads, num_kv_heads=kv_heads, **others
    )


SIZES = {
    "96": sized(96, 16, 256, 6, 2),
    "nano": sized(192, 64, 448, 3, 3),
    "22 M": sized(512, 64, 1408, 8, 4),
    "multiples of nothing": sized(84, 18, 37, 5, 1, codebook_size=59, num_codebooks=3),
    "narrower than a vector": sized(6, 2, 5, 4, 2, codebook_size=1, num_codebooks=1),
    "one group": sized(128, 8, 64, 16, 1),
    "the release": sized(3072, 128, 8192, 24, 8, num_layers=1),
}
# How far logits may be from those of PyTorch's operators, by their largest. Each row of x has 16 bits before a rounded
# matrix; in bfloat16 the operators round after each.
TOLERANCES = {
    "float32": 5e-6, "int8, a CPU without bfloat16": 3e-4, "int4, the same": 3e-4, "int8": 0.03, "int4": 0.03,
}  # fmt: skip


def made(size: str, form: str, monkeypatch) -> tuple[FusedWeights, FusedWeights]:
    """The same weights for the call into C and for PyTorch's operators."""
    dtype, bits = FORMS[form]
    model = random_model(SIZES[size], "cpu", dtype, bits)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) * 0.2 + 1)
    native = fuse(model, CAPACITY)
    with monkeypatch.context() as patched:
        patched.setattr(matrices, "kernel", lambda: None)
        return native, fuse(model, CAPACITY)


def inputs(config: ModelConfig, dtype: torch.dtype, positions: list[int]) -> tuple[Tensor, list[Tensor], DecodeState]:
    """Hidden states, of which the first are next to nothing, a filled cache, and slots at these positions."""
    generator = torch.Generator().manual_seed(1)
    cache = KVCache(config, len(positions), CAPACITY, "cpu", dtype).layers
    for kv in cache:
        kv.normal_(0, 2, generator=generator)
    state = DecodeState.create(config, len(positions), CAPACITY, 1, torch.device("cpu"))
    state.position[:] = torch.tensor(positions)
    x = torch.randn(len(positions), 1, config.hidden_size, generator=generator)
    x[0] *= 1e-3
    return x.to(dtype), cache, state


def one_of(slot: int, given: tuple[Tensor, list[Tensor], DecodeState]) -> tuple[Tensor, list[Tensor], DecodeState]:
    """One slot of these, over the same memory."""
    x, cache, state = given
    part = slice(slot, slot + 1)
    alone = DecodeState(**{k: v if k == "output_step" else v[part] for k, v in vars(state).items()})
    return x[part], [kv[:, part] for kv in cache], alone


MULTIPLES = {form: {None: 1, 8: 32, 4: 64}[FORMS[form][1]] for form in TOLERANCES}
CASES = [
    (size, form, instructions)
    for size, config in SIZES.items()
    for form in TOLERANCES
    for instructions in ("native", "haswell", "x86-64")
    if all(n % MULTIPLES[form] == 0 for n in (config.hidden_size, config.intermediate_size))
    if size != "the release" or instructions == "native"
]


@pytest.fixture(scope="module")
def kernel_for(tmp_path_factory):
    """The kernel for this processor, for AVX2, and for no vectors that it knows of."""
    flags, built = matrices.FLAGS, {"native": matrices.kernel()}

    def build(instructions: str):
        if instructions not in built:
            if not can_pin():
                pytest.skip("of x86-64 with AVX2")
            with pytest.MonkeyPatch.context() as patched:
                patched.setenv("HIGGS_CACHE", str(tmp_path_factory.mktemp("kernel")))
                patched.setattr(matrices, "FLAGS", [flag.replace("native", instructions) for flag in flags])
                built[instructions] = matrices.build_kernel.__wrapped__()
        return built[instructions]

    return build


@pytest.mark.parametrize(("size", "form", "instructions"), CASES)
def test_it_computes_what_the_operators_compute(size, form, instructions, kernel_for, monkeypatch):
    """Slots at different positions, one of them idle; exact lengths and a bound; keys and values too, and no others."""
    kernel = kernel_for(instructions)
    monkeypatch.setattr(matrices, "kernel", lambda: kernel)
    native, operators = made(size, form, monkeypatch)
    assert native.native and not operators.native
    config, dtype, positions = SIZES[size], FORMS[form][0], [33, 0, CAPACITY - 1]
    x, kept, state = inputs(config, dtype, positions)
    results = []
    for weights, kv_len in ((native, CAPACITY), (native, [p + 1 for p in positions]), (operators, CAPACITY)):
        cache = [kv.clone() for kv in kept]
        results.append((run_layers(x, weights, cache, state, kv_len).float(), cache))
    (ours, ours_kv), (exact, exact_kv), (theirs, theirs_kv) = results
    assert torch.equal(ours, exact) and all(map(torch.equal, ours_kv, exact_kv))
    assert ours.shape == theirs.shape
    for a, b in ((ours, theirs), *zip(ours_kv, theirs_kv, strict=True)):
        assert (a.float() - b.float()).abs().max() <= TOLERANCES[form] * b.float().abs().max()
    written = torch.zeros(len(positions), CAPACITY, dtype=torch.bool)
    written[range(len(positions)), positions] = True
    for kv, before in zip(ours_kv, kept, strict=True):
        changed = (kv != before).any(-1)  # [2, B, kv heads, capacity]
        assert torch.equal(changed, written[None, :, None].expand_as(changed))


@pytest.mark.parametrize("form", TOLERANCES)
def test_neither_the_other_slots_nor_threads_change_a_bit(form, monkeypatch):
    """Each slot as it is alone, and as in two threads; what is no number in one of them stays there."""
    native, _ = made("22 M", form, monkeypatch)
    x, cache, state = given = inputs(SIZES["22 M"], FORMS[form][0], [5, 69, 0, 12, 13])
    slots = (one_of(slot, given) for slot in range(5))
    alone = torch.cat([run_layers(hidden, native, *memory, CAPACITY) for hidden, *memory in slots])
    together = run_layers(x, native, cache, state, CAPACITY)
    assert torch.equal(alone, together)
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        assert torch.equal(run_layers(x, native, cache, state, CAPACITY), together)
    finally:
        torch.set_num_threads(threads)
    x[1, 0, 7] = torch.nan
    spoilt = run_layers(x, native, cache, state, CAPACITY)
    assert spoilt[1].isnan().all() and torch.equal(spoilt[[0, 2, 3, 4]], together[[0, 2, 3, 4]])


@pytest.mark.parametrize("position", [-1, CAPACITY, 1 << 40])
def test_a_position_without_room_is_an_error(position, monkeypatch):
    """Before anything is written."""
    native, _ = made("96", "float32", monkeypatch)
    x, cache, state = inputs(SIZES["96"], torch.float32, [3, position])
    before = [kv.clone() for kv in cache]
    with pytest.raises(IndexError, match=r"expected 0 to 69"):
        run_layers(x, native, cache, state, CAPACITY)
    assert all(map(torch.equal, cache, before))


def test_without_it_steps_draw_the_same(monkeypatch):
    """In float32, greedy and by chance; pinned, or without a compiler, operators compute, and none warns."""
    model, prompt = random_model(TINY, "cpu", torch.float32), prompt_of(30, TINY)
    sampled = {}
    for how in ("native", "pinned", "no compiler"):
        if how == "pinned":
            monkeypatch.setattr(fused_weights, "pinned", lambda: True)
            monkeypatch.setattr(matrices, "kernel", lambda: pytest.fail("a compiler is asked for"))
        elif how == "no compiler":
            monkeypatch.undo()
            monkeypatch.setattr(matrices, "kernel", lambda: None)
        decoder = SlotDecoder(model, 1, 128, steps_per_sync=8)
        assert bool(decoder.weights.native) == (how == "native")
        names = ("greedy", "the defaults", "no top-k")
        sampled[how] = [delayed_of(decoder, prompt, SETTINGS[name], 48) for name in names]
    assert all(frames.shape[1] > 30 for frames in sampled["native"])
    for how in ("pinned", "no compiler"):
        assert all(map(torch.equal, sampled["native"], sampled[how]))
