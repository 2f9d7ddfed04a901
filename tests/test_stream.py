"""Audio in pieces is the audio in one, to 1e-5: with a codec whose every frame is heard ten frames away."""

from dataclasses import replace

import pytest
import torch

from higgs import AudioTokenizer, Engine
from higgs.config import CodecConfig, SamplingConfig, SemanticConfig
from higgs.data.chatml import smart_voice
from higgs.data.text.tokenizer import TextTokenizer
from higgs.delay import delayed_segment, segment_frames
from higgs.serve.engine import EngineConfig
from higgs.serve.stream import AudioStream

CODEC = CodecConfig(
    encoder_width=4, decoder_width=96, acoustic_dim=24, codebook_dim=12,
    semantic=SemanticConfig(hidden_size=32, intermediate_size=48, num_layers=1, num_heads=4, conv_dim=24),
)  # fmt: skip


def random_codec(config: CodecConfig) -> AudioTokenizer:
    """Weights that keep the variance from layer to layer: as initialised, distant frames would not be heard."""
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
    """-> codes [K, 97], and the columns that make them"""
    codes = torch.randint(0, 1024, (8, 97), generator=torch.Generator().manual_seed(1))
    return codes, delayed_segment(codes, 1024, 1025)


def pieces(stream: AudioStream, columns: torch.Tensor, burst: int, finished: bool = True) -> list:
    made = [chunk for part in columns.split(burst, dim=1) for chunk in stream.push(part)]
    return [*made, stream.finish(finished, "stop")]


@pytest.mark.parametrize("frames", [1, 4, 8, 32])
@pytest.mark.parametrize("burst", [1, 7])
def test_pieces_make_up_the_whole(codec, segment, frames, burst):
    codes, columns = segment
    chunks = pieces(AudioStream(codec, [frames]), columns, burst)
    assert torch.equal(torch.cat([chunk.codes for chunk in chunks], dim=1), codes)
    assert {len(chunk.waveform) for chunk in chunks[:-1]} == {frames * 960}
    assert [chunk.start for chunk in chunks] == list(range(0, frames * len(chunks), frames))
    assert [chunk.stop_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    error = (torch.cat([chunk.waveform for chunk in chunks]) - codec.decode(codes)).abs().max()
    assert error < 1e-5


def test_one_frame_less_to_each_side_is_heard(codec, segment):
    codes, columns = segment
    stream = AudioStream(codec, [8])
    stream.context -= 1
    chunks = pieces(stream, columns, 4)
    error = (torch.cat([chunk.waveform for chunk in chunks]) - codec.decode(codes)).abs().max()
    assert error > 1e-4


def test_other_strides_have_another_reach(segment):
    """Pieces are exact for any decoder: how far it hears is its own to say."""
    codes, columns = segment
    codec = random_codec(replace(CODEC, strides=(2, 2, 2, 2, 4)))
    assert codec.acoustic_decoder.reach > 10
    made = torch.cat([chunk.waveform for chunk in pieces(AudioStream(codec, [8]), columns, 4)])
    assert (made - codec.decode(codes)).abs().max() < 1e-5


def test_a_cut_segment_keeps_its_last_frame(codec, segment):
    codes, columns = segment
    cut = columns[:, :60]
    chunks = pieces(AudioStream(codec), cut, 4, finished=False)
    expected = segment_frames(cut, 1024, finished=False)
    assert expected.shape[1] == 60 - 8
    assert torch.equal(torch.cat([chunk.codes for chunk in chunks], dim=1), expected)
    assert [chunk.codes.shape[1] for chunk in chunks] == [4, 8, 16, 24], "4, 8, 16, and the rest"


@pytest.mark.parametrize("columns", [1, 5, 9])
def test_no_frame_is_one_empty_piece(codec, segment, columns):
    finished = columns == 9
    (chunk,) = pieces(AudioStream(codec), segment[1][:, :columns], 1, finished)
    assert chunk.waveform.shape == (0,) and chunk.codes.shape == (8, 0)
    assert chunk.stop_reason == "stop"


def test_what_is_held_does_not_grow(codec, monkeypatch):
    """Columns beyond reach are dropped, and no window is longer than a piece with what it hears to both sides."""
    windows: list[int] = []

    def decode(codec: AudioTokenizer, codes: torch.Tensor) -> torch.Tensor:
        windows.append(codes.shape[1])
        return torch.zeros(codes.shape[1] * 960)

    monkeypatch.setattr(AudioTokenizer, "decode", decode)
    stream, held = AudioStream(codec), set()
    samples = 0
    for start in range(0, 5000, 4):
        for chunk in stream.push(torch.full((8, 4), start % 1024)):
            samples += len(chunk.waveform)
        held.add(stream.delayed.untyped_storage().nbytes() // 64)
    assert samples > 4900 * 960
    assert max(windows) == 32 + 2 * codec.acoustic_decoder.reach
    assert max(held) < 32 + 2 * codec.acoustic_decoder.reach + 8 + 8


@pytest.fixture(scope="module")
def engine(model, codec, golden) -> Engine:
    text_tokenizer = TextTokenizer.from_pretrained(golden / "text_tokenizer")
    return Engine(model, codec, text_tokenizer, EngineConfig(max_batch=2, max_positions=600))


@pytest.mark.parametrize("chunk_frames", [[1], [4], [8], [32], [4, 8, 16, 32]])
def test_streamed_is_generated(engine, chunk_frames):
    sample, sampling = smart_voice("We walked along the river."), SamplingConfig(seed=1)
    whole = engine.generate(sample, sampling, 70)
    chunks = list(engine.stream(sample, sampling, 70, chunk_frames=chunk_frames))
    assert (torch.cat([chunk.waveform for chunk in chunks]) - whole.waveform).abs().max() < 1e-5
    assert torch.equal(torch.cat([chunk.codes for chunk in chunks], dim=1), whole.codes)
    assert chunks[-1].stop_reason == whole.stop_reason
    assert engine.scheduler.idle


def test_the_first_piece_comes_as_soon_as_it_is_certain(engine):
    """4 frames need 10 beyond them, one that may be none, 7 columns of delay and stream bos; then a burst's rest."""
    stream = engine.stream(smart_voice("We walked."), SamplingConfig(seed=1), 200)
    assert next(stream).codes.shape == (8, 4)
    (sequence,) = engine.scheduler.running.values()
    assert 4 + 10 + 1 + 8 <= sequence.num_steps < 4 + 10 + 1 + 8 + engine.config.steps_per_sync
    stream.close()
    assert engine.scheduler.idle, "leaving early ends the request"


def test_two_streams_share_the_rows(engine):
    asked = [
        (smart_voice("One."), SamplingConfig(seed=5)),
        (smart_voice("And two."), SamplingConfig(seed=6)),
    ]
    expected = [engine.generate(*pair, 60).codes for pair in asked]
    streams = [engine.stream(*pair, 60) for pair in asked]
    made: list[list] = [[], []]
    while streams[0] is not None or streams[1] is not None:
        for index in (0, 1):
            if streams[index] is not None:
                chunk = next(streams[index], None)
                made[index] += [chunk.codes] if chunk else []
                streams[index] = streams[index] if chunk else None
    for codes, chunks in zip(expected, made, strict=True):
        assert torch.equal(torch.cat(chunks, dim=1), codes)


def test_wrong_streams_are_refused_at_once(engine):
    with pytest.raises(ValueError, match="parity"):
        engine.stream(smart_voice("Hi."), SamplingConfig(parity=True))
    with pytest.raises(ValueError, match="chunk_frames"):
        engine.stream(smart_voice("Hi."), chunk_frames=[4, 0])
