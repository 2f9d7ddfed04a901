"""How fast the codec is on many short clips: one by one at their own lengths, and through `encode` and `decode`.

    python -m benchmarks.codec --threads 2

Every timing gets clips of lengths that were not seen before, as a corpus has them, and the ways take turns within one
run. Numbers are per second of audio; CPU time is the steadier one where other programs run beside. The last lines say
how many codes differ between the ways.
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

import higgs.audio  # noqa: F401  before transformers: the import that makes torchaudio harmless
from benchmarks.timing import Row, rows_of
from higgs import AudioTokenizer
from higgs.data.recordings import read_recordings

Way = Callable[[list[Tensor]], list[Tensor]]


def speech(manifest: str, sample_rate: int) -> Tensor:
    """All recordings in a row: [L]."""
    recordings = read_recordings(manifest)
    return torch.cat([higgs.audio.load_audio(r.path, sample_rate)[0] for r in recordings])


def cut(source: Tensor, count: int, samples: tuple[int, int], draw: random.Random) -> list[Tensor]:
    """Clips of random lengths from random places."""
    lengths = [draw.randint(*samples) for _ in range(count)]
    starts = [draw.randint(0, len(source) - length) for length in lengths]
    return [source[start : start + n] for start, n in zip(starts, lengths, strict=True)]


def encoders(codec: AudioTokenizer, folder: str, port: bool, rows: int) -> dict[str, Way]:
    def own_length(clips: list[Tensor]) -> list[Tensor]:
        with torch.inference_mode():
            return [codec.quantizer.encode(codec.embed(clip[None, None]))[0] for clip in clips]

    def together(clips: list[Tensor]) -> list[Tensor]:
        codec._rows = lambda samples: rows
        try:
            return codec.encode(clips)
        finally:
            del codec._rows

    ways: dict[str, Way] = {}
    if port:
        from transformers import HiggsAudioV2TokenizerModel
        from transformers.utils import logging

        logging.set_verbosity_error()  # it misses what training alone needs
        model = HiggsAudioV2TokenizerModel.from_pretrained(folder, dtype=torch.float32).eval()

        def transformers(clips: list[Tensor]) -> list[Tensor]:
            with torch.inference_mode():
                return [model.encode(clip[None, None]).audio_codes[0] for clip in clips]

        ways["transformers, one by one"] = transformers
    ways |= {
        "one by one, each at its own length": own_length,
        "encode(clip) for each": lambda clips: [codec.encode(clip) for clip in clips],
        "encode(list)": codec.encode,
    }
    return ways | ({f"encode(list), {rows} rows at once": together} if rows else {})


def decoders(codec: AudioTokenizer) -> dict[str, Way]:
    def own_length(codes: list[Tensor]) -> list[Tensor]:
        with torch.inference_mode():
            return [codec.synthesize(codec.quantizer.decode(clip[None]))[0, 0] for clip in codes]

    return {"one by one, each at its own length": own_length, "decode(list)": codec.decode}


def compare(
    ways: dict[str, Way], make: Callable[[], list[Tensor]], seconds: Callable[[Tensor], float], repeats: int
) -> dict[str, list[tuple[float, float]]]:
    """-> for each way (wall, CPU) in ms per second of audio, once per repeat; the first round is not counted."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            clips = make()
            if repeat == 0:
                clips = clips[:4]
            wall, cpu = time.perf_counter(), time.process_time()
            way(clips)
            total = sum(map(seconds, clips)) / 1000
            if repeat:
                spent = (time.perf_counter() - wall, time.process_time() - cpu)
                times[name].append((spent[0] / total, spent[1] / total))
    return times


def rows_per_frame(case: str, times: dict[str, list[tuple[float, float]]], peer: str, frame_rate: int) -> list[Row]:
    """For --json: a frame, 40 ms of audio, is what a step is to the model."""
    each = {n: [(w / frame_rate, c / frame_rate) for w, c in rows] for n, rows in times.items()}
    return rows_of(case, each, [(name, peer) for name in times if name != peer])


def report(title: str, times: dict[str, list[tuple[float, float]]], baseline: str) -> None:
    print(f"\n{title}: median (and range) in ms per second of audio")
    print(f"{'':38}{'wall':>7} {'':15}{'ratio':>6}{'CPU':>9} {'':15}{'ratio':>6}")
    base = [statistics.median(column) for column in zip(*times[baseline], strict=True)]
    for name, rows in times.items():
        line = f"{name:38}"
        for column, reference in zip(zip(*rows, strict=True), base, strict=True):
            middle = statistics.median(column)
            spread = f"({min(column):.0f} to {max(column):.0f})"
            line += f"{middle:7.1f} {spread:15}{reference / middle:6.2f}  "
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="data/checkpoints/nano/codec")
    parser.add_argument("--recordings", default="data/recordings/manifest.jsonl")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--seconds", type=float, nargs=2, default=(1.0, 3.0), help="shortest and longest clip")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=0, help="also: so many clips in one batch")
    parser.add_argument("--no-port", action="store_true", help="leave transformers out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write one row per case")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    codec = AudioTokenizer.from_pretrained(arguments.checkpoint)
    source, draw, rate = (speech(arguments.recordings, codec.sample_rate), random.Random(0), codec.sample_rate)
    samples = tuple(round(value * rate) for value in arguments.seconds)

    def clips() -> list[Tensor]:
        return cut(source, arguments.clips, samples, draw)

    load = Path("/proc/loadavg")
    print(json.dumps({
        "clips": arguments.clips, "seconds": arguments.seconds, "threads": arguments.threads,
        "repeats": arguments.repeats, "torch": torch.__version__, "machine": platform.machine(),
        "load": load.read_text().split()[0] if load.is_file() else None,
    }))  # fmt: skip
    ways = encoders(codec, arguments.checkpoint, not arguments.no_port, arguments.rows)
    times = compare(ways, clips, lambda clip: len(clip) / rate, arguments.repeats)
    report("encode", times, "one by one, each at its own length")
    peer = "one by one, each at its own length" if arguments.no_port else "transformers, one by one"
    rows = rows_per_frame("codec encode", times, peer, codec.frame_rate)
    frames = tuple(round(value * codec.frame_rate) for value in arguments.seconds)

    def codes() -> list[Tensor]:
        shape = codec.num_codebooks
        lengths = [draw.randint(*frames) for _ in range(arguments.clips)]
        return [torch.randint(codec.codebook_size, (shape, length)) for length in lengths]

    times = compare(decoders(codec), codes, lambda c: c.shape[1] / codec.frame_rate, arguments.repeats)
    report("decode", times, "one by one, each at its own length")
    alone = "one by one, each at its own length"
    rows += rows_per_frame("codec decode", times, alone, codec.frame_rate)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")

    same = clips()
    results = {name: ways[name](same) for name in ways if "transformers" not in name}
    expected = results.pop("encode(clip) for each")
    print()
    for name, found in results.items():
        pairs = zip(found, expected, strict=True)
        differ = sum(int((a != b).sum()) for a, b in pairs)
        print(f"{name}: {differ} of {sum(c.numel() for c in expected)} codes differ from encode(clip)")


if __name__ == "__main__":
    main()
