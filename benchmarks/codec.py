"""Codec throughput on many short clips: one by one at their own lengths, and batched by `encode` and `decode`.

    python -m benchmarks.codec --threads 2

Every timing gets clips of new lengths, as a corpus has them. Times are milliseconds for each second of audio. The last
lines say how many codes differ between the ways.
"""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Measure, Row, Table, Times, arguments_of, clock, rows_of, scaled, since, take_turns
from higgs import AudioTokenizer
from higgs.audio import load_audio
from higgs.checkpoint.config_json import codec_to_json
from higgs.codec.tokenizer import exact_convolutions
from higgs.config import CodecConfig
from higgs.data.recordings import read_recordings

Way = Callable[[list[Tensor]], list[Tensor]]
ONE_BY_ONE, PORT = "one by one, each at its own length", "transformers, one by one"
EACH = "encode(clip) for each"


def cut(source: Tensor, count: int, samples: tuple[int, int], rng: random.Random) -> list[Tensor]:
    """Clips of random lengths from random places."""
    lengths = [rng.randint(*samples) for _ in range(count)]
    starts = [rng.randint(0, len(source) - length) for length in lengths]
    return [source[start : start + n] for start, n in zip(starts, lengths, strict=True)]


def codec_port(config: CodecConfig, device: str) -> Any:
    """transformers' codec of these sizes, with random weights."""
    from transformers import HiggsAudioV2TokenizerConfig, HiggsAudioV2TokenizerModel

    with torch.device(device):
        return HiggsAudioV2TokenizerModel(HiggsAudioV2TokenizerConfig(**codec_to_json(config))).eval()


def load_port(folder: str) -> Any:
    from transformers import HiggsAudioV2TokenizerModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # it warns of missing weights that training alone needs
    return HiggsAudioV2TokenizerModel.from_pretrained(folder, dtype=torch.float32).eval()


def encoders(codec: AudioTokenizer, port: Any = None, batch: int = 0) -> dict[str, Way]:
    """`port` is transformers' codec; `batch` adds the way with so many clips in a batch."""

    def own_length(clips: list[Tensor]) -> list[Tensor]:
        with torch.inference_mode(), exact_convolutions(codec.device):
            return [codec.quantizer.encode(codec.embed(clip[None, None]))[0] for clip in clips]

    def transformers(clips: list[Tensor]) -> list[Tensor]:
        with torch.inference_mode(), exact_convolutions(codec.device):
            return [port.encode(clip[None, None]).audio_codes[0] for clip in clips]

    def batched(clips: list[Tensor]) -> list[Tensor]:
        codec._batch_size = lambda samples: batch
        try:
            return codec.encode(clips)
        finally:
            del codec._batch_size

    ways: dict[str, Way] = {} if port is None else {PORT: transformers}
    ways |= {ONE_BY_ONE: own_length, EACH: lambda clips: [codec.encode(clip) for clip in clips]}
    ways["encode(list)"] = codec.encode
    return ways | ({f"encode(list), {batch} in a batch": batched} if batch else {})


def decoders(codec: AudioTokenizer) -> dict[str, Way]:
    def own_length(codes: list[Tensor]) -> list[Tensor]:
        with torch.inference_mode(), exact_convolutions(codec.device):
            return [codec.synthesize(codec.quantizer.decode(clip[None]))[0, 0] for clip in codes]

    return {ONE_BY_ONE: own_length, "decode(list)": codec.decode}


def timed(way: Way, make: Callable[[], list[Tensor]], rate: int, device: str = "cpu") -> Measure:
    """Of a second of audio, on new clips of `rate` steps a second each time."""

    def measure() -> Times:
        clips = make()
        started = clock(device)
        way(clips)
        return scaled(since(started, device), rate / sum(clip.shape[-1] for clip in clips))

    return measure


def compare(
    case: str, ways: dict[str, Way], make: Callable[[], list[Tensor]], rate: int, peer: str, repeats: int
) -> list[Row]:
    """Each way beside `peer`."""
    times = take_turns({name: timed(way, make, rate) for name, way in ways.items()}, repeats)
    return rows_of(case, times, [(name, peer) for name in times if name != peer])


def main() -> None:
    parser = arguments_of(__doc__, repeats=5)
    parser.add_argument("--checkpoint", default="data/checkpoints/nano/codec")
    parser.add_argument("--recordings", default="data/recordings/manifest.jsonl")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--seconds", type=float, nargs=2, default=(1.0, 3.0), help="shortest and longest clip")
    parser.add_argument("--batch", type=int, default=0, help="also: so many clips in one batch")
    parser.add_argument("--no-port", action="store_true", help="leave transformers out")
    arguments = parser.parse_args()
    table, rng = Table(arguments), random.Random(0)
    codec = AudioTokenizer.from_pretrained(arguments.checkpoint)
    rate, frame_rate = codec.sample_rate, codec.frame_rate
    source = torch.cat([load_audio(r.path, rate)[0] for r in read_recordings(arguments.recordings)])

    def clips() -> list[Tensor]:
        return cut(source, arguments.clips, tuple(round(value * rate) for value in arguments.seconds), rng)

    def codes() -> list[Tensor]:
        frames = [round(rng.uniform(*arguments.seconds) * frame_rate) for _ in range(arguments.clips)]
        return [torch.randint(codec.codebook_size, (codec.num_codebooks, count)) for count in frames]

    port = None if arguments.no_port else load_port(arguments.checkpoint)
    ways = encoders(codec, port, arguments.batch)
    peer = ONE_BY_ONE if arguments.no_port else PORT
    table.show(compare("codec encode", ways, clips, rate, peer, arguments.repeats))
    table.show(compare("codec decode", decoders(codec), codes, frame_rate, ONE_BY_ONE, arguments.repeats))
    table.write()
    same = clips()
    expected = ways[EACH](same)
    for name in ways.keys() - {PORT, EACH}:
        differ = sum(int((a != b).sum()) for a, b in zip(ways[name](same), expected, strict=True))
        print(f"{name}: {differ} of {sum(c.numel() for c in expected)} codes differ from {EACH}")


if __name__ == "__main__":
    main()
