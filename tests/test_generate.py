"""The generation loop: equal to the original code, column by column, and repeatable."""

import json

import pytest
import torch
from conftest import assert_close
from safetensors.torch import load_file
from tiny import prompt_batch

from higgs.batch import Batch
from higgs.config import SamplingConfig
from higgs.data.chatml import Tokens
from higgs.data.collator import collate, spread
from higgs.data.text.tokenizer import TextTokenizer
from higgs.delay import revert_delay
from higgs.model.kv_cache import KVCache
from higgs.serve.counter_rng import (
    CounterRng,
    step_keys,
    log_uniforms,
    make_rng,
    exponential_race,
    token_hashes,
)
from higgs.serve.reference.loop import DelayState, generate
from higgs.serve.reference.sampler import sample_codes
from higgs.tokens import TokenIds

GREEDY = SamplingConfig(temperature=0, ras_window=None)


@pytest.fixture(scope="module")
def ids(golden) -> TokenIds:
    return TokenIds.of(TextTokenizer.from_pretrained(golden / "text_tokenizer"))


@pytest.fixture(scope="module")
def original(golden):
    return load_file(golden / "original.safetensors")


@pytest.mark.parametrize("name", ["smart_voice", "clone", "multi_scene"])
def test_greedy_columns_equal_the_original(model, prompts, ids, original, name):
    prompt = prompt_batch(prompts, name)
    made = generate(model, prompt, ids, GREEDY, 400, (ids.audio_eos,))
    assert len(made.segments) == 1 and made.segments[0].finished
    assert torch.equal(made.segments[0].delayed, original[f"{name}.audio_sequence"].long())


def golden_prompt(case: dict, numbers: dict, ids: TokenIds, config) -> Batch:
    """Unexpanded ids and delayed references -> our batch, through the collator."""
    name = case["name"]
    references = {}
    for kind, placeholder in (("in", ids.audio_in), ("out", ids.audio_out)):
        starts = case[f"audio_{kind}_starts"] or []
        delayed = numbers.get(f"{name}.audio_{kind}_ids")
        ends = [*starts[1:], 0 if delayed is None else delayed.shape[1]]
        references[placeholder] = [delayed[:, a:b] for a, b in zip(starts, ends, strict=False)]
    input_ids = numbers[f"{name}.input_ids"].tolist()
    codes = [
        revert_delay(references[token].pop(0))[:, 1:-1]
        for token in input_ids
        if token in references and references[token]
    ]
    return collate([spread(Tokens(input_ids, [-100] * len(input_ids)), codes, ids, config, False)], ids)


CASES = (
    "smart_voice_greedy_ras",
    "clone_sampled_ras",
    "text_first_seed4",
    "text_first_seed5",
    "text_first_seed7",
    "text_first_seed8",
    "input_and_output_reference",
    "input_reference_buckets",
)


@pytest.mark.parametrize("name", CASES)
def test_hard_runs_equal_the_original(model, ids, golden, name):
    """RAS in greedy mode, seeded sampling, text first, several segments, references heard and spoken."""
    numbers = load_file(golden / "original.generate.safetensors")
    cases = {case["name"]: case for case in json.loads((golden / "original.generate.json").read_text())}
    assert set(cases) == set(CASES)
    case = cases[name]
    sampling = SamplingConfig(
        temperature=case["temperature"] if case["do_sample"] else 0,
        top_k=case["top_k"],
        top_p=case["top_p"] or 1.0,
        ras_window=case["ras_window"],
        ras_max_repeats=case["ras_max_repeats"],
        seed=case["seed"],
        parity=True,
    )
    prompt = golden_prompt(case, numbers, ids, model.config)
    made = generate(model, prompt, ids, sampling, case["max_new_tokens"], tuple(case["stop_ids"]))
    assert made.ids == numbers[f"{name}.new_ids"].tolist()
    assert len(made.segments) == case["segments"]
    for index, segment in enumerate(made.segments):
        assert torch.equal(segment.delayed, numbers[f"{name}.segment{index}"].long())


@pytest.mark.parametrize("name", ["smart_voice", "clone", "multi_scene"])
def test_step_logits_equal_the_original(model, prompts, ids, original, name):
    """Teacher-forced over the original's own columns: the first steps and the last."""
    prompt = prompt_batch(prompts, name)
    columns = original[f"{name}.audio_sequence"].long()
    with torch.inference_mode():
        cache = KVCache(model.config, 1, 450)
        model.prefill(prompt, cache)
        steps = []
        for column in columns.T[:-1]:  # the last column is never fed back
            hidden = model.decode_step(model.embed_codes(column[None, None]), True, cache)
            steps.append(model.audio_logits(hidden)[0])
    first, last = (original[f"{name}.step_logits_{part}"] for part in ("first", "last"))
    assert_close(torch.stack(steps[: len(first)]), first)
    assert_close(torch.stack(steps[-len(last) :]), last)


def test_one_seed_repeats_and_another_differs(model, prompts, ids):
    prompt = prompt_batch(prompts, "clone")
    runs = [
        generate(model, prompt, ids, SamplingConfig(seed=seed), 40, (ids.audio_eos,)).segments[0].delayed
        for seed in (3, 3, 4)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0][:, : runs[2].shape[1]], runs[2])


def test_a_draw_depends_on_seed_step_and_codebook_alone():
    logits = torch.zeros(8, 1026)
    noise = CounterRng(7, torch.device("cpu"))
    fifth = noise.codes(logits, 5)
    noise.codes(logits, 6)
    assert torch.equal(noise.codes(logits, 5), fifth)
    assert torch.equal(CounterRng(7, torch.device("cpu")).codes(logits, 5), fifth)
    others = [noise.codes(logits, 6), CounterRng(8, torch.device("cpu")).codes(logits, 5)]
    others += [noise.redraw(logits, 5, torch.ones(8, dtype=torch.bool)), fifth.roll(1)]
    for other in others:
        assert (other == fifth).sum() <= 1


def uniforms(seed: int, steps: int, symbols: int = 1) -> torch.Tensor:
    """[steps, 16, symbols]: of 8 codebooks, and of drawing them again."""
    keys = step_keys(seed, torch.arange(steps), 8)
    return log_uniforms(keys, token_hashes(symbols, torch.device("cpu"))).double().exp()


def test_uniforms_are_uniform():
    """Mean 1/2, variance 1/12; no correlation of steps, codebooks, seeds, symbols, or a draw and its redraw."""
    draws = uniforms(0, 20_000)[..., 0]
    assert 0 < draws.min() and draws.max() <= 1
    assert draws.mean().item() == pytest.approx(0.5, abs=0.003)
    assert draws.var().item() == pytest.approx(1 / 12, abs=0.001)
    centred = draws - 0.5
    symbols = uniforms(0, 20_000, 2) - 0.5
    pairs = [(centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])]
    pairs += [(centred[:, :8], centred[:, 8:]), (uniforms(1, 20_000)[..., 0] - 0.5, centred)]
    pairs += [(symbols[..., 0], symbols[..., 1])]
    for a, b in pairs:
        assert abs((a * b).mean().item()) < 0.0015


def test_what_is_impossible_is_never_drawn():
    """Not against the smallest number and not against the largest; and one candidate alone is always it."""
    keys = step_keys(0, torch.arange(20_000), 1).flatten(0, 1)
    numbers = log_uniforms(keys, token_hashes(5, torch.device("cpu")))
    extreme = torch.tensor([2.0**-24, 1 - 2.0**-24]).log()
    numbers = torch.cat([numbers, torch.cartesian_prod(*[extreme] * 5)])
    logits = torch.tensor([-torch.inf, 2.0, -torch.inf, 1.0, -torch.inf])
    assert set(exponential_race(logits.softmax(-1), numbers).tolist()) == {1, 3}
    alone = torch.tensor([-torch.inf, -torch.inf, -3.0, -torch.inf, -torch.inf])
    assert (exponential_race(alone.softmax(-1), numbers) == 2).all()


def test_sampling_follows_the_distribution():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).repeat(8, 1)
    history = torch.zeros(8, 0, dtype=torch.long)

    def shares(**settings) -> torch.Tensor:
        config = SamplingConfig(**{"temperature": 1.0, "top_k": None, "top_p": 1.0, "ras_window": None} | settings)
        noise = make_rng(config, torch.device("cpu"))
        draws = torch.stack([sample_codes(logits, history, step, config, noise) for step in range(2500)])
        return torch.bincount(draws.flatten(), minlength=4) / draws.numel()

    assert_close(shares(), torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.012)
    assert_close(shares(top_k=2), torch.tensor([0.625, 0.375, 0, 0]), atol=0.012)
    assert_close(shares(top_p=0.85), shares(top_k=3), atol=0.02)
    assert shares(temperature=0).tolist() == [1, 0, 0, 0]
    assert shares(temperature=0.1)[0] > 0.99


def test_repetition_aware_sampling_redraws():
    """A code that stands twice in the window is drawn again from the whole distribution."""
    logits = torch.full((8, 1026), 0.0)
    logits[:, 5] = 3.0
    history = torch.full((8, 7), 5)
    config = SamplingConfig(temperature=0, ras_window=7, ras_max_repeats=2, seed=1)
    noise = make_rng(config, torch.device("cpu"))
    assert (sample_codes(logits, history, 0, config, noise) != 5).sum() >= 6
    once = history.clone()
    once[:, :6] = 9
    assert (sample_codes(logits, once, 0, config, noise) == 5).all()


def run_delay(columns: list[list[int]]) -> tuple[list[list[int]], bool]:
    state, out, ended = DelayState(8, 1024, 1025), [], False
    for column in columns:
        assert not ended, "the segment went on behind its end"
        codes, ended = state.apply(torch.tensor(column))
        out.append(codes.tolist())
    return out, ended


def test_end_of_stream_in_the_usual_order():
    """Row r samples eos in column r + 6: 14 columns with the one of bos, the last all eos, 5 frames."""
    sampled = [[1025 if column >= row + 6 else 7 for row in range(8)] for column in range(1, 14)]
    out, ended = run_delay(sampled)
    assert ended and len(out) == 13
    assert out[-1] == [1025] * 8
    for column, codes in enumerate(out, start=1):
        assert [c == 1024 for c in codes] == [row >= column for row in range(8)]


def test_early_end_in_a_lower_row():
    """The first eos in row 3 of column 7: rows 0 to 2 end at once, and 12 columns hold 3 complete frames."""
    sampled = [[7] * 8 for _ in range(11)]
    sampled[6][3] = 1025
    out, ended = run_delay(sampled)
    assert ended and 1 + len(out) == 12
    assert [c == 1025 for c in out[6]] == [True] * 4 + [False] * 4
    for extra in range(4):
        rows = 4 + extra
        assert [c == 1025 for c in out[7 + extra]] == [True] * rows + [False] * (8 - rows)


def test_text_mode_never_chooses_a_placeholder(model, prompts, ids):
    """With logits that favour the placeholders by far."""
    prompt = prompt_batch(prompts, "smart_voice")
    prompt.input_ids[0, -1] = 5  # not the start of audio: text mode
    weight = model.text_head.weight.clone()
    try:
        model.text_head.weight[[ids.audio_in, ids.audio_out]] *= 1e3
        made = generate(model, prompt, ids, SamplingConfig(temperature=1.0, seed=2), 60, (ids.end_of_turn,))
    finally:
        model.text_head.weight.copy_(weight)
    assert ids.audio_in not in made.ids
    assert made.ids.count(ids.audio_out) == len(made.segments)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"ras_window": 0},
        {"ras_window": 65},
    ],
)
def test_bad_sampling_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingConfig(**wrong)
