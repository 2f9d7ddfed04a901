"""Long texts and dialogues, spoken chunk by chunk and joined, with pauses between the chunks.

Each chunk is a request of its own. It hears the references and, as earlier turns, the last chunks before it with the
codes that were made for them, as in the original. Unlike there, chunks are decoded one by one, so that memory does not
grow with the text; each has a seed of its own; and a chunk that brings no audio is spoken again, or named in an error.
"""

import hashlib
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from higgs.config import SamplingConfig
from higgs.data.chatml import AudioContent, ChatMLSample, Content, after_chunks
from higgs.data.loudness import speech_level
from higgs.data.scripts import Script
from higgs.data.text.chunks import Chunk, ChunkOptions
from higgs.serve.engine import Engine, Response, Usage

FADE_SECONDS = 0.005  # at both ends of a chunk, so that a pause begins and ends without a click
MAX_GAIN_DB = 6.0


@dataclass(frozen=True)
class SpokenChunk:
    """One chunk and where it lies: samples `start` ... `end` of the waveform, the pause before it not counted.

    `seed` made it, and `attempts` were made in all; `stop_reason` other than "stop" means that it was cut off.
    `gain_db` is what its level was changed by.
    """

    chunk: Chunk
    start: int
    end: int
    seed: int
    attempts: int
    stop_reason: str
    frames: int
    gain_db: float


@dataclass
class LongResponse(Response):
    """As `Response`: codes, usage and timing of all chunks together; the pauses are in the waveform only.

    `stop_reason` is "stop" when every chunk ended by itself, else why the first of the others did.
    """

    chunks: list[SpokenChunk] = field(default_factory=list)

    def rows(self, name: str) -> list[dict[str, str | int | float]]:
        """The borders as a table, one row for each chunk of the request that `name` names."""
        return [
            {
                "name": name,
                "chunk": index,
                "speaker": " ".join(map(str, spoken.chunk.speakers)),
                "border": spoken.chunk.boundary,
                "start": spoken.start,
                "end": spoken.end,
                "audio_frames": spoken.frames,
                "seed": spoken.seed,
                "attempts": spoken.attempts,
                "stop": spoken.stop_reason,
                "gain_db": round(spoken.gain_db, 2),
                "text": spoken.chunk.text,
            }
            for index, spoken in enumerate(self.chunks)
        ]


def in_seconds(chunks: Sequence[dict[str, Any]], sample_rate: int) -> list[dict[str, str | int | float]]:
    """Rows of chunks -> the columns that people look at, with times in seconds."""
    columns = ("name", "chunk", "speaker", "border", "start", "end", "stop", "text")
    return [
        {key: row[key] for key in columns} | {end: round(row[end] / sample_rate, 2) for end in ("start", "end")}
        for row in chunks
    ]


class SilentChunk(ValueError):
    """A chunk that never brought audio. `before` is what was spoken before it, or None."""

    def __init__(self, message: str, before: LongResponse | None):
        super().__init__(message)
        self.before = before


@dataclass
class Take:
    """What became of one chunk; `seconds` sums the timing of all attempts."""

    response: Response
    seed: int
    attempts: int
    seconds: dict[str, float]


def chunk_seed(seed: int, index: int, attempt: int = 0) -> int:
    """The seed of one chunk at one attempt; that of the very first is the base seed itself."""
    if index == attempt == 0:
        return seed
    digest = hashlib.blake2b(f"{seed} {index} {attempt}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def speak_long(
    engine: Engine,
    chunks: Sequence[Chunk],
    prompt: Callable[[str], ChatMLSample],
    sampling: SamplingConfig | None = None,
    options: ChunkOptions | None = None,
    max_new_tokens: int | None = None,
    on_chunk: Callable[[int, Response], None] | None = None,
) -> LongResponse:
    """Speaks chunks in order. `prompt` makes of a text a conversation that ends in it: a voice's `prompt` does.

    References are encoded once. `max_new_tokens` holds for each chunk; settings that are None are the checkpoint's. A
    chunk without audio, or one that is cut off, is made again with another seed, `options.retries` times; `on_chunk`
    gets the index and the take that is kept.
    Raises ValueError for no chunks, and SilentChunk for one that never brought audio, naming it.
    """
    options, sampling = options or engine.generation.chunks, sampling or engine.generation.sampling
    if not chunks:
        raise ValueError("there is no chunk to speak")
    references: dict[AudioContent, Tensor] = {}
    asked: list[Content | list[Content]] = []
    takes: list[Take] = []
    for index, chunk in enumerate(chunks):
        sample = prompt(chunk.text)
        for audio in sample.audios:
            if audio not in references:
                references[audio] = engine.reference_codes(audio)
        before = [n for n in range(index) if not options.per_speaker_context or chunks[n].speakers == chunk.speakers]
        keep = options.context_chunks
        heard = before if keep is None else before[max(0, len(before) - keep) :]
        request = after_chunks(sample, [(asked[n], AudioContent()) for n in heard])
        codes = [references[a] for a in sample.audios] + [takes[n].response.codes for n in heard]

        def speak(seed: int, request: ChatMLSample = request, codes: list = codes) -> Response:
            drawn = replace(sampling, seed=seed)
            return engine.generate(request, drawn, max_new_tokens, reference_codes=codes)

        seeds = [chunk_seed(sampling.seed, index, n) for n in range(options.retries + 1)]
        take = first_whole_take(speak, seeds)
        if not take.response.usage.audio_frames:
            raise SilentChunk(
                f"chunk {index + 1} of {len(chunks)}, {chunk.text[:60]!r}: no audio after {take.attempts} attempts; "
                "try another seed, or shorter chunks",
                _joined(chunks[:index], takes, options) if takes else None,
            )
        takes.append(take)
        asked.append(sample.messages[-1].content)
        if on_chunk is not None:
            on_chunk(index, take.response)
    return _joined(chunks, takes, options)


def first_whole_take(speak: Callable[[int], Response], seeds: Sequence[int]) -> Take:
    """The first take that has audio and ended by itself; else the last that has audio; else the first."""
    take: Take | None = None
    seconds: dict[str, float] = {}
    for attempts, seed in enumerate(seeds, 1):
        response = speak(seed)
        if take is None or response.usage.audio_frames:
            take = Take(response, seed, attempts, seconds)
        take.attempts = attempts
        for name, value in response.timing.items():
            seconds[name] = seconds.get(name, 0.0) + value
        if response.usage.audio_frames and response.stop_reason == "stop":
            break
    return take


def speak_script(engine: Engine, script: Script, sampling: SamplingConfig, max_new_tokens: int) -> Response:
    """A script as it asks for: chunk by chunk (then a `LongResponse`), or in one go."""
    limit = script.max_new_tokens or max_new_tokens
    if not script.chunks:
        return engine.generate(script.sample, sampling, limit)
    return speak_long(engine, script.chunks, script.prompt, sampling, script.options, limit)


def _joined(chunks: Sequence[Chunk], takes: Sequence[Take], options: ChunkOptions) -> LongResponse:
    responses = [take.response for take in takes]
    rate = responses[0].sample_rate
    gains = _gains(chunks, responses) if options.match_levels else [0.0] * len(takes)
    pieces, spoken, end = [], [], 0
    for chunk, take, gain in zip(chunks, takes, gains, strict=True):
        pause = torch.zeros(round(options.pause(chunk.boundary) * rate))
        waveform = _faded(take.response.waveform, round(FADE_SECONDS * rate)) * 10 ** (gain / 20)
        pieces += [pause, waveform]
        start = end + len(pause)
        end = start + len(waveform)
        reason, frames = take.response.stop_reason, take.response.usage.audio_frames
        spoken.append(SpokenChunk(chunk, start, end, take.seed, take.attempts, reason, frames, gain))
    usages = [response.usage for response in responses]
    names = [entry.name for entry in fields(Usage)]
    reasons = [response.stop_reason for response in responses]
    return LongResponse(
        waveform=torch.cat(pieces),
        sample_rate=rate,
        codes=torch.cat([response.codes for response in responses], dim=1),
        text="".join(response.text for response in responses),
        stop_reason=next((reason for reason in reasons if reason != "stop"), "stop"),
        usage=Usage(**{name: sum(getattr(usage, name) for usage in usages) for name in names}),
        delayed=[columns for response in responses for columns in response.delayed],
        timing={name: sum(take.seconds[name] for take in takes) for name in takes[0].seconds},
        chunks=spoken,
    )


def _gains(chunks: Sequence[Chunk], responses: Sequence[Response]) -> list[float]:
    """dB that bring each chunk to the median level of its speaker's chunks: at most 6, and never into clipping."""
    levels = [speech_level(response.waveform, response.sample_rate) for response in responses]
    gains = []
    for chunk, level, response in zip(chunks, levels, responses, strict=True):
        same = [x for c, x in zip(chunks, levels, strict=True) if c.speakers == chunk.speakers]
        gain = statistics.median(same) - level if math.isfinite(level) else 0.0
        gain = max(-MAX_GAIN_DB, min(MAX_GAIN_DB, gain))
        peak = response.waveform.abs().max().item()
        headroom = -20 * math.log10(peak) if peak > 0 else 0.0
        gains.append(min(gain, max(0.0, headroom)))
    return gains


def _faded(waveform: Tensor, samples: int) -> Tensor:
    """[L] -> the same with a ramp over so many samples at both ends."""
    samples = min(samples, len(waveform) // 2)
    ramp = torch.linspace(0, 1, samples + 2)[1:-1]
    faded = waveform.clone()
    faded[:samples] *= ramp
    faded[len(faded) - samples :] *= ramp.flip(0)
    return faded
