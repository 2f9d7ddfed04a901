"""Batched encoding: a clip's codes do not depend on the other clips, nor on padding."""

import json
import random

import pytest
import torch
from conftest import ROOT, assert_close

from higgs import AudioTokenizer
from higgs.audio import load_audio
from higgs.codec import acoustic
from higgs.codec.padding import bucket_length, pad_to_batch, run_in_batches

HOP = 960


@pytest.fixture(scope="module")
def speech() -> torch.Tensor:
    """The recordings, concatenated: three and a half minutes."""
    manifest = ROOT / "data" / "recordings" / "manifest.jsonl"
    if not manifest.is_file():
        pytest.skip("the recordings are not here: run `dvc pull data.dvc`")
    rows = map(json.loads, manifest.read_text().splitlines())
    return torch.cat([load_audio(ROOT / "data" / row["path"], 24_000)[0] for row in rows])


@pytest.fixture(scope="module")
def tiny(golden) -> AudioTokenizer:
    return AudioTokenizer.from_pretrained(golden / "codec")


@pytest.fixture(params=["tiny", "nano"])
def codec(request, tiny) -> AudioTokenizer:
    if request.param == "tiny":
        return tiny
    return AudioTokenizer.from_pretrained(request.getfixturevalue("nano") / "codec")


def cut(speech: torch.Tensor, lengths: list[int], draw: random.Random) -> list[torch.Tensor]:
    starts = [draw.randrange(len(speech) - length) for length in lengths]
    return [speech[start : start + n] for start, n in zip(starts, lengths, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "rows"), [("tiny", 2), ("nano", 1)], indirect=["codec"])
def test_codes_do_not_depend_on_the_batch(codec, rows, speech, monkeypatch):
    """200 random lengths from 0.05 s to 12 s, short ones more often; in batches of two and of one.

    A quarter is also encoded without padding, as by the reference: another shape, so rounding may differ, and with it
    one code in many thousands.
    """
    monkeypatch.setattr(AudioTokenizer, "_batch_size", lambda self, samples: rows)
    draw = random.Random(0)
    lengths = [round(1200 * 240 ** (draw.random() ** 3)) for _ in range(200)]
    clips = cut(speech, [1200, 288_000, *lengths[2:]], draw)
    alone = [codec.encode(clip) for clip in clips]
    assert [c.shape[1] for c in alone] == [(len(clip) + 841) // HOP for clip in clips]
    order = draw.sample(range(200), 200)
    together = codec.encode([clips[index] for index in order])
    for index, codes in zip(order, together, strict=True):
        assert torch.equal(codes, alone[index]), len(clips[index])
    with torch.inference_mode():
        own = [codec.quantizer.encode(codec.embed(clip[None, None]))[0] for clip in clips[::4]]
    same = [int((a == b).sum()) for a, b in zip(own, alone[::4], strict=True)]
    assert sum(same) >= 0.999 * sum(codes.numel() for codes in own)


# Around the boundaries of the reference's padding rule, short and long, and of bucket lengths.
RESIDUES = (0, 1, 118, 119, 120, 400, 631, 632, 959)
LENGTHS = [7 * HOP + r for r in RESIDUES] + [51 * HOP + r for r in RESIDUES]
LENGTHS += [119, 400, 631, 632, 959, 32 * HOP - 640, 32 * HOP - 639]


def test_padding_does_not_leak(codec, speech):
    clips = cut(speech, LENGTHS, random.Random(1))
    with torch.inference_mode():
        for start in range(0, len(clips), 5):
            some = clips[start : start + 5]
            size = HOP * bucket_length(max(map(len, some)) // HOP + 2)
            z = codec.embed(*pad_to_batch([clip[None] for clip in some], size, len(some)))
            for clip, row in zip(some, z, strict=True):
                own = codec.embed(clip[None, None])[0]
                assert own.shape[1] == codec.num_frames(len(clip)) == (len(clip) + 841) // HOP
                error = (row[:, : own.shape[1]] - own).abs().max() / own.abs().max()
                assert error < 1e-5, f"{len(clip)} samples: {error:.1e}"


def test_clips_of_a_batch_do_not_depend_on_each_other(tiny, speech, monkeypatch):
    """As on an accelerator: batches of four, the last one padded."""
    monkeypatch.setattr(AudioTokenizer, "_batch_size", lambda self, samples: 4)
    clips = cut(speech, [24_000 + 7 * i for i in range(6)], random.Random(2))
    together = tiny.encode(clips)
    for clip, codes in zip(clips, together, strict=True):
        assert torch.equal(tiny.encode(clip), codes)
    waveforms = tiny.decode(together)
    for codes, waveform in zip(together, waveforms, strict=True):
        assert torch.equal(tiny.decode(codes), waveform)


def test_pad_to_hop(tiny):
    for samples in (1, 119, 631, 960, 1500):
        clip = torch.randn(samples, generator=torch.Generator().manual_seed(3)) * 0.1
        codes = tiny.encode(clip, pad_to_hop=True)
        assert codes.shape == (8, -(-samples // HOP))
        assert torch.equal(codes, tiny.encode(torch.nn.functional.pad(clip, (0, -samples % HOP))))


def test_number_of_frames_of_every_length(tiny):
    samples = torch.arange(119, 400_000)
    assert torch.equal(tiny.num_frames(samples), (samples + 841) // HOP)
    assert tiny.num_frames(118) == 0
    rest = samples % HOP
    differ = tiny._branches_differ(samples)
    assert torch.equal(differ, (119 <= rest) & (rest <= 631))
    padded = tiny.acoustic_encoder.frames(samples + 640)
    assert torch.equal(padded[differ], tiny.num_frames(samples)[differ])


@pytest.mark.parametrize("frames", [1, 9, 107, 108, 109, 128, 129, 250])
def test_decoding_in_windows_equals_decoding_at_once(tiny, frames):
    codes = torch.randint(1024, (8, frames), generator=torch.Generator().manual_seed(frames))
    with torch.inference_mode():
        whole = tiny.synthesize(tiny.quantizer.decode(codes[None]))[0, 0]
    assert_close(tiny.decode(codes), whole)
    assert tiny.acoustic_decoder.context_frames == 10


def test_few_sizes():
    sizes = [bucket_length(steps) for steps in range(1, 1025)]
    assert all(steps <= size <= steps * 9 / 8 for steps, size in enumerate(sizes, start=1))
    assert sizes == sorted(sizes) and len({size for size in sizes if 64 < size <= 128}) == 8


def test_items_of_a_size_go_together_in_equal_batches():
    seen = []

    def run(padded: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        seen.append((tuple(padded.shape), lengths.tolist()))
        return padded.sum(-1)

    items = [torch.ones(1, n) for n in (3, 8, 4, 2, 7)]
    sums = run_in_batches(run, items, [4, 8, 4, 4, 8], batch_size=lambda size: 2)
    assert [int(s) for s in sums] == [3, 8, 4, 2, 7]
    assert seen == [((2, 1, 4), [3, 4]), ((2, 1, 4), [2, 2]), ((2, 1, 8), [8, 7])]


def test_snake_in_place_equals_snake_with_gradients():
    x, alpha = torch.randn(2, 3, 50), torch.rand(1, 3, 1) + 0.5
    before, with_gradients = x.clone(), acoustic.snake(x, alpha)
    with torch.no_grad():
        assert torch.equal(acoustic.snake(x, alpha), with_gradients)
    assert torch.equal(x, before)


@pytest.mark.requires_cuda
def test_codes_do_not_depend_on_the_batch_on_an_accelerator(nano, speech):
    on_gpu, on_cpu = (AudioTokenizer.from_pretrained(nano / "codec", device=device) for device in ("cuda", "cpu"))
    draw = random.Random(5)
    clips = cut(speech, [draw.randint(1200, 72_000) for _ in range(64)], draw)
    together = on_gpu.encode(clips)
    for clip, codes in zip(clips, together, strict=True):
        assert torch.equal(on_gpu.encode(clip), codes)
    pairs = [(on_cpu.encode(clip), codes.cpu()) for clip, codes in zip(clips, together, strict=True)]
    same = sum(int((a == b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)
    assert same > 0.995
