"""The reference loop and the sampler: equal to the reference implementation (boson-ai/higgs-audio), and repeatable."""

import json

import pytest
import torch
from conftest import assert_close
from safetensors.torch import load_file
from tiny import prompt_batch

from higgs.batch import Batch
from higgs.config import SamplingConfig
from higgs.data.chatml import Tokens
from higgs.data.collator import collate, expand_audio_placeholders
from higgs.delay import revert_delay
from higgs.model.kv_cache import KVCache
from higgs.serve.counter_rng import CounterRng, exponential_race, log_uniforms, make_rng, step_keys, token_hashes
from higgs.serve.reference.loop import DelayState, generate
from higgs.serve.reference.sampler import sample_codes
from higgs.tokens import TokenIds

CPU = torch.device("cpu")
GREEDY = SamplingConfig(temperature=0, ras_window=None)
PROMPTS = pytest.mark.parametrize("name", ["smart_voice", "clone", "multi_scene"])


@pytest.fixture(scope="module")
def original(golden):
    return load_file(golden / "original.safetensors")


@PROMPTS
def test_greedy_frames_and_logits_equal_the_reference(model, prompts, ids, original, name):
    """All delayed frames; and the logits of the first and last steps, teacher-forced over them."""
    prompt, delayed = prompt_batch(prompts, name), original[f"{name}.audio_sequence"].long()
    (segment,) = generate(model, prompt, ids, GREEDY, 400, (ids.audio_eos,)).segments
    assert segment.finished and torch.equal(segment.delayed, delayed)
    with torch.inference_mode():
        cache = KVCache(model.config, 1, 450)
        model.prefill(prompt, cache)
        steps = []
        for frame in delayed.T[:-1]:  # the last one is never fed back
            hidden = model.decode_step(model.embed_codes(frame[None, None]), True, cache)
            steps.append(model.audio_logits(hidden)[0])
    first, last = (original[f"{name}.step_logits_{part}"] for part in ("first", "last"))
    assert_close(torch.stack(steps[: len(first)]), first)
    assert_close(torch.stack(steps[-len(last) :]), last)


def golden_prompt(case: dict, numbers: dict, ids: TokenIds, config) -> Batch:
    """Unexpanded ids and delayed references -> a batch, through the collator."""
    name = case["name"]
    references = {}
    for kind, placeholder in (("in", ids.audio_in), ("out", ids.audio_out)):
        starts = case[f"audio_{kind}_starts"] or []
        delayed = numbers.get(f"{name}.audio_{kind}_ids")
        ends = [*starts[1:], 0 if delayed is None else delayed.shape[1]]
        references[placeholder] = [delayed[:, a:b] for a, b in zip(starts, ends, strict=False)]
    input_ids = numbers[f"{name}.input_ids"].tolist()
    codes = [revert_delay(references[token].pop(0))[:, 1:-1] for token in input_ids if references.get(token)]
    tokens = Tokens(input_ids, [-100] * len(input_ids))
    return collate([expand_audio_placeholders(tokens, codes, ids, config, False)], ids)


TEXT_FIRST = [f"text_first_seed{seed}" for seed in (4, 5, 7, 8)]
REFERENCES = ["input_and_output_reference", "input_reference_buckets"]
CASES = ["smart_voice_greedy_ras", "clone_sampled_ras", *TEXT_FIRST, *REFERENCES]


@pytest.mark.parametrize("name", CASES)
def test_hard_runs_equal_the_reference(model, ids, golden, name):
    """RAS in greedy mode, seeded sampling, text first, several segments, references as input and as output."""
    numbers = load_file(golden / "original.generate.safetensors")
    cases = {case["name"]: case for case in json.loads((golden / "original.generate.json").read_text())}
    assert set(cases) == set(CASES)
    case = cases[name]
    settings = {key: case[key] for key in ("top_k", "ras_window", "ras_max_repeats", "seed")}
    temperature = case["temperature"] if case["do_sample"] else 0
    sampling = SamplingConfig(temperature=temperature, top_p=case["top_p"] or 1.0, parity=True, **settings)
    prompt = golden_prompt(case, numbers, ids, model.config)
    result = generate(model, prompt, ids, sampling, case["max_new_tokens"], tuple(case["stop_ids"]))
    assert result.ids == numbers[f"{name}.new_ids"].tolist()
    assert len(result.segments) == case["segments"]
    for index, segment in enumerate(result.segments):
        assert torch.equal(segment.delayed, numbers[f"{name}.segment{index}"].long())


def test_a_draw_depends_on_seed_step_and_codebook_alone():
    logits, rng = torch.zeros(8, 1026), CounterRng(7, CPU)
    fifth, sixth = rng.codes(logits, 5), rng.codes(logits, 6)
    assert torch.equal(rng.codes(logits, 5), fifth)
    assert torch.equal(CounterRng(7, CPU).codes(logits, 5), fifth)
    redrawn = rng.redraw(logits, 5, torch.ones(8, dtype=torch.bool))
    for other in (sixth, CounterRng(8, CPU).codes(logits, 5), redrawn, fifth.roll(1)):
        assert (other == fifth).sum() <= 1


def uniforms(seed: int, steps: int, tokens: int = 1) -> torch.Tensor:
    """[steps, 16, tokens]: of 8 codebooks, and of drawing them again."""
    keys = step_keys(seed, torch.arange(steps), 8)
    return log_uniforms(keys, token_hashes(tokens, CPU)).double().exp()


def test_uniforms_are_uniform():
    """Mean 1/2, variance 1/12; no correlation of steps, codebooks, seeds, token ids, or a draw and its redraw."""
    draws = uniforms(0, 20_000)[..., 0]
    assert 0 < draws.min() and draws.max() <= 1
    assert draws.mean().item() == pytest.approx(0.5, abs=0.003)
    assert draws.var().item() == pytest.approx(1 / 12, abs=0.001)
    centred, tokens = draws - 0.5, uniforms(0, 20_000, 2) - 0.5
    for a, b in (
        (centred[1:], centred[:-1]),
        (centred[:, 1:], centred[:, :-1]),
        (centred[:, :8], centred[:, 8:]),
        (uniforms(1, 20_000)[..., 0] - 0.5, centred),
        (tokens[..., 0], tokens[..., 1]),
    ):
        assert abs((a * b).mean().item()) < 0.0015


def test_tokens_of_probability_0_are_never_drawn():
    """Not against the smallest number and not against the largest; and a single candidate is always drawn."""
    keys = step_keys(0, torch.arange(20_000), 1).flatten(0, 1)
    extreme = torch.tensor([2.0**-24, 1 - 2.0**-24]).log()
    numbers = torch.cat([log_uniforms(keys, token_hashes(5, CPU)), torch.cartesian_prod(*[extreme] * 5)])
    for logits, drawn in (
        ([-torch.inf, 2.0, -torch.inf, 1.0, -torch.inf], {1, 3}),
        ([-torch.inf, -torch.inf, -3.0, -torch.inf, -torch.inf], {2}),
    ):
        assert set(exponential_race(torch.tensor(logits).softmax(-1), numbers).tolist()) == drawn


def test_sampling_follows_the_distribution():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).repeat(8, 1)
    history = torch.zeros(8, 0, dtype=torch.long)

    def shares(**settings) -> torch.Tensor:
        config = SamplingConfig(**{"temperature": 1.0, "top_k": None, "top_p": 1.0, "ras_window": None} | settings)
        rng = make_rng(config, CPU)
        draws = torch.stack([sample_codes(logits, history, step, config, rng) for step in range(2500)])
        return torch.bincount(draws.flatten(), minlength=4) / draws.numel()

    assert_close(shares(), torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.012)
    assert_close(shares(top_k=2), torch.tensor([0.625, 0.375, 0, 0]), atol=0.012)
    assert_close(shares(top_p=0.85), shares(top_k=3), atol=0.02)
    assert shares(temperature=0).tolist() == [1, 0, 0, 0]
    assert shares(temperature=0.1)[0] > 0.99


def test_repetition_aware_sampling_draws_again():
    """A code that occurs twice in the window is drawn again from the whole distribution."""
    logits, repeated = torch.zeros(8, 1026), torch.full((8, 7), 5)
    logits[:, 5] = 3.0
    once = repeated.clone()
    once[:, :6] = 9
    config = SamplingConfig(temperature=0, ras_window=7, ras_max_repeats=2, seed=1)
    rng = make_rng(config, CPU)
    assert (sample_codes(logits, repeated, 0, config, rng) != 5).sum() >= 6
    assert (sample_codes(logits, once, 0, config, rng) == 5).all()


@pytest.mark.parametrize(
    ("first_eos", "steps", "num_finished"),
    [
        # Codebook k draws eos in step k + 6: with the step of bos 14, of which the last is all eos: 5 frames.
        ([6, 7, 8, 9, 10, 11, 12, 13], 13, [0] * 5 + [1, 2, 3, 4, 5, 6, 7, 8]),
        # Codebook 3 draws the first eos in step 7: codebooks 0 to 2 end at once, and 12 steps hold 3 frames.
        ([99, 99, 99, 7, 99, 99, 99, 99], 11, [0] * 6 + [4, 4, 5, 6, 7]),
    ],
)
def test_codebooks_start_and_end_by_the_delay_pattern(first_eos, steps, num_finished):
    """Each step starts one more codebook; after the first eos each ends one more, the last one by its own eos."""
    state = DelayState(8, 1024, 1025)
    for step in range(1, steps + 1):
        drawn = torch.tensor([1025 if first_eos[k] == step else 7 for k in range(8)])
        codes, ended = state.apply(drawn)
        assert [c == 1024 for c in codes] == [k >= step for k in range(8)]
        assert [c == 1025 for c in codes] == [k < num_finished[step - 1] for k in range(8)]
        assert ended == (step == steps)


def test_text_mode_never_chooses_a_placeholder(model, prompts, ids):
    """With logits that favour the placeholders by far."""
    prompt = prompt_batch(prompts, "smart_voice")
    prompt.input_ids[0, -1] = 5  # not the start of audio: text mode
    weight = model.text_head.weight.clone()
    try:
        model.text_head.weight[[ids.audio_in, ids.audio_out]] *= 1e3
        result = generate(model, prompt, ids, SamplingConfig(temperature=1.0, seed=2), 60, (ids.end_of_turn,))
    finally:
        model.text_head.weight.copy_(weight)
    assert ids.audio_in not in result.ids
    assert result.ids.count(ids.audio_out) == len(result.segments)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("temperature", float("nan")), ("temperature", float("inf")),
     ("top_k", 0), ("top_p", 0.0), ("top_p", 1.5),
     ("ras_window", 0), ("ras_window", 65), ("strict_eos", True)],
)  # fmt: skip
def test_wrong_sampling_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        SamplingConfig(**{name: value}, parity=True)
