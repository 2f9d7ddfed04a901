"""Streamed chunks are the waveform of a single pass, to 1e-5, with a codec that uses its whole receptive field."""

from dataclasses import replace
from itertools import zip_longest

import pytest
import torch

from higgs import AudioTokenizer, Engine
from higgs.config import CodecConfig, SamplingConfig, SemanticConfig
from higgs.data.chatml import smart_voice
from higgs.delay import delayed_segment, segment_frames
from higgs.serve.engine import EngineConfig
from higgs.serve.stream import CHUNK_FRAMES, AudioStream

CODEC = CodecConfig(
    encoder_width=4, decoder_width=96, acoustic_dim=24, codebook_dim=12,
    semantic=SemanticConfig(hidden_size=32, intermediate_size=48, num_layers=1, num_heads=4, conv_dim=24),
)  # fmt: skip


def test_audio_has_the_rate_of_the_codec_where_none_is_named():
    codec = AudioTokenizer(replace(CODEC, sample_rate=16_000)).eval()
    second = 0.1 * torch.rand(16_000)
    own = codec.encode(second)
    assert own.shape[1] == 17 and torch.equal(own, codec.encode(second, 16_000))


def random_codec(config: CodecConfig) -> AudioTokenizer:
    """Weights that keep the variance from layer to layer: as initialised, distant frames would have no effect."""
    generator = torch.Generator().manual_seed(0)
    codec = AudioTokenizer(config).requires_grad_(False).eval()
    for name, tensor in codec.state_dict().items():
        if tensor.dim() < 2 or name.endswith("alpha"):
            continue
        fan = 2 * tensor.shape[0] if ".up." in name else tensor[0].numel()
        scale = 1.0 if name.endswith("embed") else (0.7 if ".units." in name else 1.0) / fan**0.5
        tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
    last = codec.acoustic_decoder.conv_out.weight
    last /= 10 * codec.decode(torch.randint(0, 1024, (8, 60), generator=generator)).std()
    return codec


@pytest.fixture(scope="module")
def codec() -> AudioTokenizer:
    return random_codec(CODEC)


@pytest.fixture(scope="module")
def segment() -> tuple[torch.Tensor, torch.Tensor]:
    """-> codes [K, 97], and the same as delayed frames"""
    codes = torch.randint(0, 1024, (8, 97), generator=torch.Generator().manual_seed(1))
    return codes, delayed_segment(codes, 1024, 1025)


def stream(codec: AudioTokenizer, delayed: torch.Tensor, lengths=(8,), steps: int = 4, finished=True, context=None):
    """Chunks of a segment that arrives so many steps at a time -> (chunks, waveform, codes)."""
    audio = AudioStream(codec, lengths)
    audio.context = audio.context if context is None else context
    chunks = [chunk for new in delayed.split(steps, dim=1) for chunk in audio.push(new)]
    chunks.append(audio.finish(finished, "stop"))
    return chunks, torch.cat([c.waveform for c in chunks]), torch.cat([c.codes for c in chunks], dim=1)


@pytest.mark.parametrize("length", [1, 4, 8, 32])
@pytest.mark.parametrize("steps", [1, 7])
def test_chunks_concatenate_to_the_whole(codec, segment, length, steps):
    codes, delayed = segment
    chunks, waveform, streamed = stream(codec, delayed, [length], steps)
    assert torch.equal(streamed, codes) and (waveform - codec.decode(codes)).abs().max() < 1e-5
    assert {len(chunk.waveform) for chunk in chunks[:-1]} == {length * 960}
    assert [chunk.start for chunk in chunks] == list(range(0, length * len(chunks), length))
    assert [chunk.stop_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]


@pytest.mark.parametrize("strides", [CODEC.strides, (2, 2, 4, 4, 15)])
def test_the_receptive_field_is_exact_for_any_strides(segment, strides):
    """With it chunks are exact; with one context frame less they are not."""
    codes, delayed = segment
    codec = random_codec(replace(CODEC, strides=strides))
    whole, context = codec.decode(codes), codec.acoustic_decoder.context_frames
    assert (context == 10) == (strides == CODEC.strides)
    assert (stream(codec, delayed)[1] - whole).abs().max() < 1e-5
    if strides == CODEC.strides:
        assert (stream(codec, delayed, context=context - 1)[1] - whole).abs().max() > 1e-4


def test_a_segment_that_is_cut_off_has_its_last_frame(codec, segment):
    delayed = segment[1][:, :60]
    chunks, _, codes = stream(codec, delayed, CHUNK_FRAMES, finished=False)
    assert torch.equal(codes, segment_frames(delayed, 1024, finished=False)) and codes.shape[1] == 60 - 8
    assert [chunk.codes.shape[1] for chunk in chunks] == [4, 8, 16, 24], "4, 8, 16, and the rest"


@pytest.mark.parametrize("steps", [1, 5, 9])
def test_no_frame_is_one_empty_chunk(codec, segment, steps):
    (chunk,), waveform, codes = stream(codec, segment[1][:, :steps], steps=1, finished=steps == 9)
    assert waveform.shape == (0,) and codes.shape == (8, 0) and chunk.stop_reason == "stop"


def test_memory_is_bounded(codec, monkeypatch):
    """Frames beyond the context are dropped, and no window is longer than a chunk with its context to both sides."""
    windows, sizes, samples = [], [], 0

    def decode(codec: AudioTokenizer, codes: torch.Tensor) -> torch.Tensor:
        windows.append(codes.shape[1])
        return torch.zeros(codes.shape[1] * 960)

    monkeypatch.setattr(AudioTokenizer, "decode", decode)
    audio = AudioStream(codec)
    for start in range(0, 5000, 4):
        samples += sum(len(chunk.waveform) for chunk in audio.push(torch.full((8, 4), start % 1024)))
        sizes.append(audio.delayed.untyped_storage().nbytes() // 64)
    longest = 32 + 2 * codec.acoustic_decoder.context_frames
    assert samples > 4900 * 960 and max(windows) == longest and max(sizes) < longest + 8 + 8


@pytest.fixture(scope="module")
def engine(tiny_parts, codec) -> Engine:
    model, _, text_tokenizer = tiny_parts
    return Engine(model, codec, text_tokenizer, EngineConfig(max_batch=2, max_positions=600))


@pytest.mark.parametrize("chunk_frames", [[1], [4], [8], [32], [4, 8, 16, 32]])
def test_a_stream_equals_generate(engine, chunk_frames):
    sample, sampling = smart_voice("We walked along the river."), SamplingConfig(seed=1)
    whole = engine.generate(sample, sampling, 70)
    chunks = list(engine.stream(sample, sampling, 70, chunk_frames=chunk_frames))
    assert (torch.cat([chunk.waveform for chunk in chunks]) - whole.waveform).abs().max() < 1e-5
    assert torch.equal(torch.cat([chunk.codes for chunk in chunks], dim=1), whole.codes)
    assert chunks[-1].stop_reason == whole.stop_reason
    assert engine.scheduler.idle


def test_the_first_chunk_comes_as_soon_as_it_is_final(engine):
    """4 frames need 10 after them, one that may be none, 7 steps of delay and stream bos; then the next host sync."""
    chunks = engine.stream(smart_voice("We walked."), SamplingConfig(seed=1), 200)
    assert next(chunks).codes.shape == (8, 4)
    (sequence,) = engine.scheduler.running.values()
    assert 4 + 10 + 1 + 8 <= sequence.num_steps < 4 + 10 + 1 + 8 + engine.config.steps_per_sync
    chunks.close()
    assert engine.scheduler.idle, "closing the iterator ends the request"


def test_a_stream_that_is_closed_before_its_first_chunk_is_not_spoken(engine):
    engine.stream(smart_voice("We walked."), SamplingConfig(seed=1), 200).close()
    assert engine.scheduler.idle


def test_two_streams_share_the_slots(engine):
    requests = [(smart_voice(text), SamplingConfig(seed=seed), 60) for text, seed in (("One.", 5), ("And two.", 6))]
    expected = [engine.generate(*request).codes for request in requests]
    streams = [engine.stream(*request) for request in requests]
    pairs = list(zip_longest(*streams))  # one chunk of each in turn
    for codes, chunks in zip(expected, zip(*pairs, strict=True), strict=True):
        assert torch.equal(torch.cat([chunk.codes for chunk in chunks if chunk], dim=1), codes)


def test_wrong_streams_are_refused_at_once(engine):
    with pytest.raises(ValueError, match="parity"):
        engine.stream(smart_voice("Hi."), SamplingConfig(parity=True))
    with pytest.raises(ValueError, match="chunk_frames"):
        engine.stream(smart_voice("Hi."), chunk_frames=[4, 0])
