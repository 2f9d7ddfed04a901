"""How a segment ends: with `strict_eos` by codebook 0 alone, without it as in the reference implementation."""

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from tiny import prompt_batch
from torch import Tensor

from higgs.batch import Batch
from higgs.config import SamplingConfig
from higgs.delay import delayed_segment, segment_frames
from higgs.serve.reference.loop import Generation, generate
from higgs.tokens import TokenIds

BOS, EOS = 1024, 1025
RULES = {strict: SamplingConfig(temperature=0, ras_window=None, strict_eos=strict) for strict in (False, True)}
STRICT = RULES[True]


def head(script: list[list[int]]) -> Callable[[Tensor], Tensor]:
    """Logits in which, step by step, each codebook's likeliest token is the scripted one, and 1023 the next."""
    steps = iter(script)

    def audio_logits(hidden: Tensor) -> Tensor:
        logits = torch.zeros(1, 8, 1026)
        logits[..., :1024] += torch.linspace(0, 1, 1024)
        logits[0, torch.arange(8), torch.tensor(next(steps))] = 3.0
        return logits

    return audio_logits


@pytest.fixture
def scripted(model, prompts, ids, monkeypatch):
    """Generates with a scripted head; by default after the prompt `smart_voice`."""

    def run(script: list[list[int]], sampling=STRICT, limit=60, prompt="smart_voice", stop="audio_eos") -> Generation:
        monkeypatch.setattr(model, "audio_logits", head(script))
        prompt = prompt_batch(prompts, prompt) if isinstance(prompt, str) else prompt
        return generate(model, prompt, ids, sampling, limit, (getattr(ids, stop),))

    return run


def test_a_stray_eos_of_a_lower_codebook_ends_nothing(scripted):
    """Codebook 5 draws eos in step 6, codebook 0 in step 12: 11 frames, of which the reference rules keep none."""
    script = [[7] * 8 for _ in range(40)]
    script[5][5] = script[11][0] = EOS
    result = scripted(script)
    (segment,) = result.segments
    assert result.stop_reason == "stop" and segment.finished and segment.delayed.shape == (8, 11 + 9)
    expected = torch.full((8, 11), 7)
    expected[5, 0] = 1023  # the likeliest code, in place of eos
    assert torch.equal(segment_frames(segment.delayed, 1024, finished=True), expected)
    cut = scripted(script, RULES[False]).segments[0].delayed
    assert segment_frames(cut, 1024, finished=True).shape == (8, 0)


@pytest.mark.parametrize("frames", [0, 3])
def test_each_codebook_ends_one_step_after_the_one_above(scripted, frames):
    """Whatever it would have drawn: the last delayed frame is all eos, as in training."""
    script = [[7] * 8] * frames + [[EOS] + [7] * 7] + [[BOS] * 8, [EOS] * 8] * 10
    delayed = scripted(script).segments[0].delayed
    assert delayed.shape == (8, frames + 9)
    for k in range(8):
        row = delayed[k].tolist()
        assert row[: k + 1] == [BOS] * (k + 1) and row[k + 1 + frames :] == [EOS] * (8 - k)
        assert all(token < BOS for token in row[k + 1 : k + 1 + frames])
    assert segment_frames(delayed, 1024, finished=True).shape == (8, frames)


def test_stream_bos_is_never_drawn(scripted):
    result = scripted([[BOS] * 8] * 40, limit=30)
    frames = segment_frames(result.segments[0].delayed, 2048, finished=False)  # stray ids would stay
    assert result.stop_reason == "length" and frames.shape == (8, 22) and (frames == 1023).all()


@pytest.mark.parametrize("strict", RULES)
def test_the_ras_window_begins_with_the_segment(scripted, prompts, strict):
    """The reference audio ends in seven equal codes: the reference rules count them, `strict_eos` does not."""
    prompt = prompt_batch(prompts, "clone")
    prompt.codes[0, prompt.audio_out_mask[0].nonzero()[-7:, 0]] = 7
    sampling = SamplingConfig(temperature=0, ras_window=7, ras_max_repeats=3, strict_eos=strict)
    codes = scripted([[7] * 8] * 3, sampling, 4, prompt).segments[0].delayed[0, 1:].tolist()
    assert codes == [7, 7, 7] if strict else 7 not in codes


def test_repeats_are_drawn_again_but_never_as_stream_ids(scripted):
    sampling = SamplingConfig(temperature=0, ras_window=7, ras_max_repeats=2, strict_eos=True)
    segment = scripted([[7] * 8] * 60, sampling, prompt="clone").segments[0]
    assert (segment.delayed[0, 3:] != 7).any()
    started = torch.arange(segment.delayed.shape[1]) > torch.arange(8)[:, None]
    assert (segment.delayed[1:][started[1:]] < 1024).all() or segment.finished


@pytest.mark.parametrize("strict", RULES)
def test_the_last_delayed_frame_is_read_before_the_text(model, scripted, strict, monkeypatch):
    """As in training; the reference implementation (boson-ai/higgs-audio) leaves it out."""
    fed, decode_step = [], model.decode_step
    monkeypatch.setattr(model, "decode_step", lambda x, *rest: (fed.append((x, rest[0])), decode_step(x, *rest))[1])
    script = [[7] * 8] * 2 + [[EOS] * 8] * 8 + [[7] * 8] * 30
    segment = scripted(script, RULES[strict], 14, stop="end_of_turn").segments[0]
    assert segment.delayed.shape == (8, 11) and (segment.delayed[:, -1] == EOS).all()
    length = [audio for _, audio in fed].index(False)
    assert length == 10 + strict
    for (x, _), frame in zip(fed[:length], segment.frames, strict=False):
        assert torch.equal(x[0, 0], model.embed_codes(frame))


def test_the_cache_holds_every_segment(model, scripted, ids, monkeypatch):
    """The shortest segments in a row, each with its extra position, to the last token that is allowed."""
    opening = torch.nn.functional.one_hot(torch.tensor([ids.audio_out_bos]), 512).float()
    monkeypatch.setattr(model.text_head, "forward", lambda hidden: opening)
    result = scripted([[EOS] * 8] * 200, limit=100, stop="end_of_turn")
    assert len(result.segments) == 10 and result.stop_reason == "length"


def with_segment(prompt: Batch, delayed: Tensor, ids: TokenIds) -> Batch:
    """The prompt, and after it delayed frames [K, C] of the segment that it opens."""
    mask = torch.ones(1, delayed.shape[1], dtype=torch.bool)
    placeholders = torch.full_like(mask, ids.audio_out, dtype=torch.long)
    return Batch(
        torch.cat([prompt.input_ids, placeholders], 1),
        torch.cat([prompt.codes, delayed.T[None]], 1),
        torch.cat([prompt.audio_mask, mask], 1),
        torch.cat([prompt.audio_out_mask, mask], 1),
        torch.cat([prompt.attention_mask, mask], 1),
    )


@pytest.mark.parametrize("strict", RULES)
@pytest.mark.parametrize("length", [1, 5, 12])
def test_a_segment_begun_in_the_prompt_goes_on(model, prompts, ids, length, strict):
    """As in a single pass: the model has read the prompt's frames, and the delay pattern has counted them."""
    prompt, stop = prompt_batch(prompts, "clone"), (ids.audio_eos,)
    whole = generate(model, prompt, ids, RULES[strict], 20, stop).segments[0].delayed
    result = generate(model, with_segment(prompt, whole[:, :length], ids), ids, RULES[strict], 20 - length, stop)
    assert len(result.segments) == 1 and torch.equal(result.segments[0].delayed, whole)


@pytest.mark.parametrize("strict", RULES)
@pytest.mark.parametrize("length", [1, 3, 8, 11, 12, 13, 16, 19])
def test_a_segment_begun_in_the_prompt_ends_at_the_same_step(scripted, prompts, ids, length, strict):
    """From any delayed frame, those of the end included: 11 frames in 20 steps."""
    script = [[EOS if step >= 11 + k else 7 for k in range(8)] for step in range(40)]
    whole = scripted(script, RULES[strict]).segments[0].delayed
    assert whole.shape == (8, 20)
    rest = with_segment(prompt_batch(prompts, "smart_voice"), whole[:, :length], ids)
    segment = scripted(script[length - 1 :], RULES[strict], prompt=rest).segments[0]
    assert segment.finished and torch.equal(segment.delayed, whole)


def test_a_complete_segment_at_the_end_of_the_prompt_is_not_continued(model, prompts, ids):
    whole = delayed_segment(torch.full((8, 3), 7), BOS, EOS)
    prompt = with_segment(prompt_batch(prompts, "smart_voice"), whole, ids)
    result = generate(model, prompt, ids, STRICT, 1, (ids.audio_eos,))
    assert result.segments == [] and len(result.ids) == 1, "text follows"


def test_without_stray_stream_ids_nothing_changes(model, prompts, ids, golden):
    """The first delayed frames of the reference implementation's greedy run."""
    expected = load_file(golden / "original.safetensors")["clone.audio_sequence"].long()[:, :30]
    result = generate(model, prompt_batch(prompts, "clone"), ids, STRICT, 30, (ids.audio_eos,))
    assert torch.equal(result.segments[0].delayed, expected)
