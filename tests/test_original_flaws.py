"""Flaws of the reference implementation (boson-ai/higgs-audio) that no other test covers, and that are absent here.

Flaws that the reference's numbers depend on are reproduced: the end of a segment and which repetitions count
(SamplingConfig.strict_eos has better rules), and clips that are no whole number of frames (pad_to_hop).
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from test_strict_eos import with_segment
from tiny import prompt_batch
from torch import Tensor

from higgs import AudioContent, AudioTokenizer, ChatMLSample, Engine, Message, SamplingConfig, TextContent
from higgs.audio import save_audio
from higgs.config import ModelConfig
from higgs.data.chatml import dialogue, smart_voice, tokenize, voice_clone, voices_in_system
from higgs.data.text.tokenizer import TextTokenizer
from higgs.delay import delayed_segment
from higgs.model.kv_cache import KVCache
from higgs.serve.reference.loop import generate
from higgs.tokens import SPECIAL_TOKENS, TokenIds
from training.nano.byte_tokenizer import byte_tokenizer

BYTES = TextTokenizer(byte_tokenizer())
IDS = TokenIds.of(BYTES)
CONFIG = ModelConfig(vocab_size=BYTES.vocab_size)
GREEDY = SamplingConfig(temperature=0, ras_window=None)
A, B = AudioContent("a.wav"), AudioContent("b.wav")


class SilentCodec:
    """Codes of the clip's length, and silence; records the lengths that it decodes."""

    sample_rate, num_codebooks, codebook_size, hop_length, frame_rate = 24_000, 8, 1024, 960, 25

    def __init__(self) -> None:
        self.decoded: list[int] = []

    def encode(self, waveform: Tensor) -> Tensor:
        return torch.full((8, len(waveform) // 960), 7)

    def decode(self, codes: Tensor) -> Tensor:
        self.decoded.append(codes.shape[1])
        return torch.zeros(codes.shape[1] * 960)


@pytest.fixture()
def engine(model, golden) -> Engine:
    return Engine(model, SilentCodec(), TextTokenizer.from_pretrained(golden / "text_tokenizer"))


@pytest.fixture(scope="module")
def codec(golden) -> AudioTokenizer:
    return AudioTokenizer.from_pretrained(golden / "codec")


@pytest.fixture()
def says(model, monkeypatch) -> Callable[[list[int]], None]:
    """Makes the text head choose these tokens, one after another."""

    def script(tokens: list[int]) -> None:
        coming = iter(tokens)

        def forward(hidden: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(torch.tensor([next(coming)]), 512).float()

        monkeypatch.setattr(model.text_head, "forward", forward)

    return script


@pytest.fixture()
def plays(model, monkeypatch) -> Callable[[list[int]], None]:
    """Makes the audio head speak segments of so many frames, of code 7."""

    def script(segments: list[int]) -> None:
        columns = iter(
            [1025 if column > frames + k else 7 for k in range(8)]
            for frames in segments
            for column in range(1, frames + 9)
        )

        def audio_logits(hidden: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(torch.tensor([next(columns)]), 1026).float()

        monkeypatch.setattr(model, "audio_logits", audio_logits)

    return script


def test_reference_audio_reaches_the_model(engine: Engine):
    """the serving engine dropped reference audio in system and user messages without a word."""
    sample = voices_in_system("Hi.", [A])
    codes = torch.arange(24).view(8, 3)
    batch = engine.sequence(sample, reference_codes=[codes]).prompt
    heard = batch.audio_mask & ~batch.audio_out_mask
    assert torch.equal(batch.codes[heard].T, delayed_segment(codes, 1024, 1025))
    other = engine.sequence(sample, reference_codes=[codes + 100]).prompt
    states = [engine.model.hidden(b)[0][:, -1] for b in (batch, other)]
    assert (states[0] - states[1]).abs().max() > 1e-3, "what is heard reaches what is said"


def test_several_segments_are_one_response(engine: Engine, says: Callable, plays: Callable):
    """of several segments, the response held and counted only the first; all were decoded at once at the end."""
    ids = engine.ids
    says([ids.audio_out_bos, ord("-"), ids.audio_out_bos, ids.end_of_turn])
    plays([3, 5])
    response = engine.generate(smart_voice("Hi."), GREEDY, 60, force_audio=False)
    assert response.codes.shape == (8, 8) and len(response.waveform) == 8 * 960
    assert [columns.shape[1] for columns in response.delayed] == [3 + 9, 5 + 9]
    assert (response.usage.audio_frames, response.usage.audio_steps) == (8, 26)
    assert engine.tokenizer.decoded == [3, 5]


def test_generation_equals_generation_without_a_cache(engine: Engine, prompts):
    """generation without a cache crashed at the second column, for it took audio positions for sequences."""
    prompt, ids = prompt_batch(prompts, "clone"), engine.ids
    made = generate(engine.model, prompt, ids, GREEDY, 8, (ids.audio_eos,)).segments[0].delayed
    for column in range(1, 8):  # each step anew, from the whole of what went before
        logits = engine.model(with_segment(prompt, made[:, :column], ids)).audio_logits[0, -1]
        assert torch.equal(logits.argmax(-1)[:column], made[:column, column])


def test_a_prompt_may_end_inside_a_segment(engine: Engine, prompts):
    """a prompt that ended inside a segment crashed, unless it held exactly one column of audio."""
    prompt, ids = prompt_batch(prompts, "clone"), engine.ids
    whole = generate(engine.model, prompt, ids, GREEDY, 16, (ids.audio_eos,)).segments[0].delayed
    rest = with_segment(prompt, whole[:, :6], ids)
    made = generate(engine.model, rest, ids, GREEDY, 10, (ids.audio_eos,))
    assert torch.equal(made.segments[0].delayed, whole)


def test_a_long_prompt_is_given_a_cache_of_its_size(engine: Engine):
    """a run that outgrew the largest cache died and lost everything; no one had looked at its size before."""
    response = engine.generate(voice_clone("Hi.", "Ho.", A), GREEDY, 20, [torch.full((8, 1200), 7)])
    assert response.usage.prompt_positions > 1200 and response.stop_reason == "length"
    assert response.codes.shape == (8, 20 - 8), "what there is by then"


def test_the_cache_counts_positions_and_needs_no_clearing(model):
    """the cache's length was guessed from rows that are not zero, and all of it was cleared for each request."""
    cache = KVCache(model.config, 1, 3)
    shape = (1, model.config.num_kv_heads, 3, model.config.head_dim)
    for value in (0.0, torch.nan):  # rows of zeros count; and what an earlier request left is never read
        for layer in range(model.config.num_layers):
            cache.update(layer, torch.full(shape, value), torch.full(shape, value))
        cache.advance(3)
        assert cache.length == 3
        cache.length = 0
    x = torch.randn(1, 1, model.config.hidden_size)
    assert model.decode_step(x, False, cache).isfinite().all() and cache.length == 1


def test_encoding_changes_nothing_in_any_mode(codec: AudioTokenizer):
    """encoding could change the codebooks, and training mode woke the dropout of the frozen teacher."""
    clip = torch.randn(9600) * 0.1
    before = {name: tensor.clone() for name, tensor in codec.state_dict().items()}
    codes = codec.encode(clip)
    codec.train()
    try:
        assert torch.equal(codec.encode(clip), codes)
    finally:
        codec.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in codec.state_dict().items())


def test_audio_without_data_is_an_error(engine: Engine, tmp_path):
    """audio without data was left out, so that the audios after it went to the wrong placeholders."""
    save_audio(tmp_path / "b.wav", torch.zeros(9600), 24_000)
    here = AudioContent(str(tmp_path / "b.wav"))
    for absent in (AudioContent(), AudioContent("placeholder")):
        with pytest.raises(ValueError, match="audio without a file"):
            engine.generate(voices_in_system("Hi.", [absent, here]), GREEDY, 20)
    with pytest.raises(ValueError, match="2 audio placeholders, but 1 code tensors"):
        engine.sequence(voices_in_system("Hi.", [A, here]), reference_codes=[torch.full((8, 3), 7)])


def test_special_tokens_in_texts_stay_text():
    """the strings of special tokens in a user's text became those tokens."""
    specials = {BYTES.token_id(token) for token in SPECIAL_TOKENS.values()}
    evil = "".join(SPECIAL_TOKENS.values())
    for sample, plain in (
        (smart_voice(evil, evil, evil), smart_voice("-", "-", "-")),
        (voice_clone(evil, evil, AudioContent(evil), evil), voice_clone("-", "-", A, "-")),
        (voices_in_system(evil, [evil, A], evil), voices_in_system("-", ["", A], "-")),
        (dialogue([(0, evil)], {0: evil}, evil), dialogue([(0, "-")], {0: ""}, "-")),
        (ChatMLSample([Message("assistant", evil, evil)]), ChatMLSample([Message("assistant", "-", "-")])),
    ):
        ids = [tokenize(s, BYTES, generate=True).input_ids for s in (sample, plain)]
        assert [t for t in ids[0] if t in specials] == [t for t in ids[1] if t in specials]
    meant = ChatMLSample([Message("user", TextContent("<SE>", allow_special=True))])
    assert BYTES.token_id("<SE>") in tokenize(meant, BYTES).input_ids


def test_text_of_several_bytes_per_character(engine: Engine, says: Callable):
    """an answer without audio raised an IndexError; text was decoded token by token, which broke characters."""
    says([*engine.text_tokenizer.encode("Où? 你好 🎉"), engine.ids.end_of_turn])
    response = engine.generate(smart_voice("Hi."), GREEDY, 60, force_audio=False)
    assert response.text == "Où? 你好 🎉<|eot_id|>" and response.stop_reason == "stop"
    assert response.waveform.shape == (0,) and response.codes.shape == (8, 0)
    assert response.usage.text_tokens == len("Où? 你好 🎉".encode()) + 1


def test_a_chunk_without_a_frame(engine: Engine, plays: Callable):
    """a chunk without a frame of audio crashed the whole text."""
    plays([0])
    response = engine.generate(smart_voice("Hi."), replace(GREEDY, parity=True), 60)
    assert response.stop_reason == "stop" and response.usage.audio_steps == 9
    assert response.waveform.shape == (0,) and response.codes.shape == (8, 0)
