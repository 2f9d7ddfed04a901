"""`strict_eos`: how a segment ends when a stray stream eos may not end it, and what is left as in the original."""

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from tiny import prompt_batch
from torch import Tensor

from higgs.batch import Batch
from higgs.config import SamplingConfig
from higgs.data.text.tokenizer import TextTokenizer
from higgs.delay import delayed_segment, segment_frames
from higgs.model.higgs_audio import HiggsAudio
from higgs.serve.reference.loop import DelayState, Generation, generate
from higgs.tokens import TokenIds

BOS, EOS = 1024, 1025
STRICT = SamplingConfig(temperature=0, ras_window=None, strict_eos=True)


@pytest.fixture(scope="module")
def ids(golden) -> TokenIds:
    return TokenIds.of(TextTokenizer.from_pretrained(golden / "text_tokenizer"))


def head(columns: list[list[int]]) -> Callable[[Tensor], Tensor]:
    """Logits in which, column by column, each codebook's favourite is the scripted one, and 1023 the next."""
    script = iter(columns)

    def audio_logits(hidden: Tensor) -> Tensor:
        logits = torch.zeros(1, 8, 1026)
        logits[..., :1024] += torch.linspace(0, 1, 1024)
        logits[0, torch.arange(8), torch.tensor(next(script))] = 3.0
        return logits

    return audio_logits


def scripted(model: HiggsAudio, prompt: Batch, ids: TokenIds, columns: list[list[int]], sampling: SamplingConfig,
             monkeypatch: pytest.MonkeyPatch, limit: int = 60) -> Generation:  # fmt: skip
    monkeypatch.setattr(model, "audio_logits", head(columns))
    return generate(model, prompt, ids, sampling, limit, (ids.audio_eos,))


def test_a_stray_end_in_a_lower_codebook_ends_nothing(model, prompts, ids, monkeypatch):
    """Codebook 5 draws eos in column 3, codebook 0 in column 12: 11 frames, where the original keeps none."""
    columns = [[7] * 8 for _ in range(40)]
    columns[5][5] = EOS  # column 6: codebook 5 has just begun
    columns[11][0] = EOS
    prompt = prompt_batch(prompts, "smart_voice")
    made = scripted(model, prompt, ids, columns, STRICT, monkeypatch)
    (segment,) = made.segments
    assert made.stop_reason == "stop" and segment.finished
    assert segment.delayed.shape == (8, 11 + 9)
    frames = segment_frames(segment.delayed, 1024, finished=True)
    expected = torch.full((8, 11), 7)
    expected[5, 0] = 1023  # the likeliest code, in place of the eos that was asked for
    assert torch.equal(frames, expected)
    loose = SamplingConfig(temperature=0, ras_window=None)
    cut = scripted(model, prompt, ids, columns, loose, monkeypatch).segments[0]
    assert segment_frames(cut.delayed, 1024, finished=True).shape == (8, 0)


def test_every_codebook_ends_one_column_after_the_one_above(model, prompts, ids, monkeypatch):
    """Whatever it would have drawn itself: the last column is all eos, as in training."""
    columns = [[7] * 8 for _ in range(40)]
    columns[3][0] = EOS
    made = scripted(model, prompt_batch(prompts, "smart_voice"), ids, columns, STRICT, monkeypatch)
    delayed = made.segments[0].delayed
    assert delayed.shape == (8, 12)
    for k in range(8):
        assert delayed[k].tolist() == [BOS] * (k + 1) + [7] * 3 + [EOS] * (8 - k)


def test_the_shortest_segment_has_no_frame(model, prompts, ids, monkeypatch):
    columns = [[EOS] * 8] + [[BOS] * 8 for _ in range(20)]
    made = scripted(model, prompt_batch(prompts, "smart_voice"), ids, columns, STRICT, monkeypatch)
    delayed = made.segments[0].delayed
    assert delayed.shape == (8, 9) and segment_frames(delayed, 1024, finished=True).shape == (8, 0)


def test_stream_bos_is_never_drawn(model, prompts, ids, monkeypatch):
    columns = [[BOS] * 8 for _ in range(40)]
    prompt = prompt_batch(prompts, "smart_voice")
    made = scripted(model, prompt, ids, columns, STRICT, monkeypatch, limit=30)
    assert made.stop_reason == "length"
    frames = segment_frames(made.segments[0].delayed, 2048, finished=False)  # stray ids would stay
    assert frames.shape == (8, 22) and (frames == 1023).all()


def test_only_what_is_forbidden_is_masked():
    logits = torch.randn(8, 1026)
    loose, strict = (DelayState(8, BOS, EOS, strict) for strict in (False, True))
    assert torch.equal(loose.restrict(logits), logits)
    for remaining, allowed in ((None, [True] + [False] * 7), (3, [False] * 8)):
        strict.remaining = remaining
        masked = strict.restrict(logits)
        assert torch.equal(masked[:, :1024], logits[:, :1024])
        assert (masked[:, BOS] == -torch.inf).all()
        assert (masked[:, EOS] > -torch.inf).tolist() == allowed


def test_repetitions_are_counted_in_the_segment_at_hand(model, prompts, ids, monkeypatch):
    """The end of the reference holds the same code seven times: the original draws the first columns again."""
    prompt = prompt_batch(prompts, "clone")
    last = prompt.audio_out_mask[0].nonzero()[-7:, 0]
    prompt.codes[0, last] = 7
    columns = [[7] * 8 for _ in range(3)]
    drawn = {}
    for strict in (False, True):
        sampling = SamplingConfig(temperature=0, ras_window=7, ras_max_repeats=3, strict_eos=strict)
        made = scripted(model, prompt, ids, columns, sampling, monkeypatch, limit=4)
        drawn[strict] = made.segments[0].delayed[0, 1:].tolist()
    assert drawn[True] == [7, 7, 7]
    assert 7 not in drawn[False]


def test_repetitions_still_are_drawn_again_but_never_as_stream_ids(model, prompts, ids, monkeypatch):
    columns = [[7] * 8 for _ in range(60)]
    sampling = SamplingConfig(temperature=0, ras_window=7, ras_max_repeats=2, strict_eos=True)
    made = scripted(model, prompt_batch(prompts, "clone"), ids, columns, sampling, monkeypatch)
    delayed = made.segments[0].delayed
    assert (delayed[0, 3:] != 7).any()
    started = torch.arange(delayed.shape[1]) > torch.arange(8)[:, None]
    assert (delayed[1:][started[1:]] < 1024).all() or made.segments[0].finished


def test_the_last_column_is_read_before_what_follows(model, prompts, ids, monkeypatch):
    """The text behind a segment sees what training shows it; the original leaves the last column out."""
    prompt = prompt_batch(prompts, "smart_voice")
    columns = [[7] * 8 for _ in range(40)]
    columns[2] = [EOS] * 8
    columns[3:10] = [[EOS] * 8] * 7
    lengths = {}
    for strict in (False, True):
        fed = []
        real = model.decode_step

        def decode_step(x: Tensor, audio: bool, cache: object, real=real, fed: list = fed) -> Tensor:
            fed.append((audio, x))
            return real(x, audio, cache)

        with monkeypatch.context() as patch:
            patch.setattr(model, "decode_step", decode_step)
            patch.setattr(model, "audio_logits", head(columns))
            sampling = SamplingConfig(temperature=0, ras_window=None, strict_eos=strict)
            made = generate(model, prompt, ids, sampling, 14, (ids.end_of_turn,))
        lengths[strict] = [audio for audio, _ in fed].index(False)
        segment = made.segments[0]
        assert segment.delayed.shape == (8, 11) and (segment.delayed[:, -1] == EOS).all()
        for (audio, x), column in zip(fed[: lengths[strict]], segment.frames, strict=False):
            assert audio and torch.equal(x[0, 0], model.embed_codes(column))
    assert lengths == {False: 10, True: 11}


def test_there_is_room_for_every_segment(model, prompts, ids, monkeypatch):
    """The shortest segments in a row, each with its extra position, to the last token that is allowed."""

    def opening(hidden: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor([ids.audio_out_bos]), 512).float()

    monkeypatch.setattr(model.text_head, "forward", opening)
    columns = [[EOS] * 8 for _ in range(200)]
    monkeypatch.setattr(model, "audio_logits", head(columns))
    prompt = prompt_batch(prompts, "smart_voice")
    made = generate(model, prompt, ids, STRICT, 100, (ids.end_of_turn,))
    assert len(made.segments) == 10 and made.stop_reason == "length"


def begun(prompt: Batch, columns: Tensor, ids: TokenIds) -> Batch:
    """The prompt, and behind it columns [K, C] of the segment that it opens."""
    spoken = torch.ones(1, columns.shape[1], dtype=torch.bool)
    places = torch.full_like(spoken, ids.audio_out, dtype=torch.long)
    return Batch(
        torch.cat([prompt.input_ids, places], 1),
        torch.cat([prompt.codes, columns.T[None]], 1),
        torch.cat([prompt.audio_mask, spoken], 1),
        torch.cat([prompt.audio_out_mask, spoken], 1),
        torch.cat([prompt.attention_mask, spoken], 1),
    )


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kept", [1, 5, 12])
def test_a_segment_that_the_prompt_has_begun_goes_on(model, prompts, ids, kept, strict):
    """The same columns follow as in one go: the model has read the prompt's, and the delay pattern has counted them."""
    prompt = prompt_batch(prompts, "clone")
    sampling = SamplingConfig(temperature=0, ras_window=None, strict_eos=strict)
    whole = generate(model, prompt, ids, sampling, 20, (ids.audio_eos,)).segments[0].delayed
    rest = begun(prompt, whole[:, :kept], ids)
    made = generate(model, rest, ids, sampling, 20 - kept, (ids.audio_eos,))
    assert len(made.segments) == 1 and torch.equal(made.segments[0].delayed, whole)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kept", [1, 3, 8, 11, 12, 13, 16, 19])
def test_a_segment_that_the_prompt_has_begun_ends_where_it_would_have(model, prompts, ids, kept, strict, monkeypatch):
    """From any of its columns, those of its end included: 11 frames in 20 columns."""
    prompt = prompt_batch(prompts, "smart_voice")
    columns = [[EOS if c >= 11 + k else 7 for k in range(8)] for c in range(40)]
    sampling = SamplingConfig(temperature=0, ras_window=None, strict_eos=strict)
    whole = scripted(model, prompt, ids, columns, sampling, monkeypatch).segments[0].delayed
    assert whole.shape == (8, 20)
    rest = begun(prompt, whole[:, :kept], ids)
    made = scripted(model, rest, ids, columns[kept - 1 :], sampling, monkeypatch)
    assert made.segments[0].finished and torch.equal(made.segments[0].delayed, whole)


def test_a_complete_segment_at_the_prompt_s_end_is_left_alone(model, prompts, ids):
    prompt = prompt_batch(prompts, "smart_voice")
    whole = delayed_segment(torch.full((8, 3), 7), BOS, EOS)
    made = generate(model, begun(prompt, whole, ids), ids, STRICT, 1, (ids.audio_eos,))
    assert made.segments == [] and len(made.ids) == 1, "text follows"


def test_without_stray_symbols_nothing_changes(model, prompts, ids, golden):
    """The first columns of the original's own greedy run."""
    expected = load_file(golden / "original.safetensors")["clone.audio_sequence"].long()[:, :30]
    made = generate(model, prompt_batch(prompts, "clone"), ids, STRICT, 30, (ids.audio_eos,))
    assert torch.equal(made.segments[0].delayed, expected)


def test_strict_and_parity_exclude_each_other():
    with pytest.raises(ValueError, match="strict_eos leaves the original's rules"):
        SamplingConfig(parity=True, strict_eos=True)
