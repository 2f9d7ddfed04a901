"""Long texts and dialogues, spoken chunk by chunk and joined, with pauses between the chunks.

Each chunk is a request of its own. Its prompt holds the references and, as earlier turns, the last chunks before it
with the codes generated for them, as in the reference implementation (boson-ai/higgs-audio). Unlike there, chunks are
decoded one by one, each with its own seed, and a chunk without audio is generated again.
"""

import hashlib
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from higgs.config import SamplingConfig
from higgs.data.chatml import AudioContent, after_chunks
from higgs.data.loudness import speech_level
from higgs.data.speech import SpeechRequest
from higgs.data.text.chunks import Chunk, ChunkOptions
from higgs.serve.batching.scheduler import Sequence as SlotSequence
from higgs.serve.engine import Engine, Response, Usage

FADE_SECONDS = 0.005  # at both ends of a chunk, so that a pause begins and ends without a click
MAX_GAIN_DB = 6.0


@dataclass(frozen=True)
class ChunkSpan:
    """One chunk, samples `start` ... `end` of the waveform, without the pause before it.

    `seed` is that of the one selected of `attempts`; a `stop_reason` other than "stop" means that it was cut off.
    `gain_db` is the change of its level.
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

    chunks: list[ChunkSpan] = field(default_factory=list)

    def records(self, name: str) -> list[dict[str, str | int | float]]:
        """A record for each chunk of the request that `name` names."""
        return [
            {
                "name": name,
                "chunk": index,
                "speaker": " ".join(map(str, span.chunk.speakers)),
                "border": span.chunk.boundary,
                "start": span.start,
                "end": span.end,
                "audio_frames": span.frames,
                "seed": span.seed,
                "attempts": span.attempts,
                "stop": span.stop_reason,
                "gain_db": round(span.gain_db, 2),
                "text": span.chunk.text,
            }
            for index, span in enumerate(self.chunks)
        ]


def times_in_seconds(chunks: Sequence[dict[str, Any]], sample_rate: int) -> list[dict[str, str | int | float]]:
    """Records of chunks -> what a table shows of them, with times in seconds."""
    keys = ("name", "chunk", "speaker", "border", "start", "end", "stop", "text")
    return [
        {key: record[key] for key in keys} | {end: round(record[end] / sample_rate, 2) for end in ("start", "end")}
        for record in chunks
    ]


class SilentChunkError(ValueError):
    """A chunk that never had audio. `before` is the speech before it, or None."""

    def __init__(self, chunks: Sequence[Chunk], index: int, before: LongResponse | None = None):
        super().__init__(
            f"chunk {index + 1} of {len(chunks)}, {chunks[index].text[:60]!r}: no audio in any attempt; try another "
            "seed, or shorter chunks"
        )
        self.before = before


@dataclass
class Attempts:
    """The response selected for one chunk; `seconds` sums the timing of all attempts."""

    response: Response
    seed: int
    count: int
    seconds: dict[str, float]


def chunk_seed(seed: int, index: int, attempt: int = 0) -> int:
    """The seed of one chunk at one attempt; that of the very first is the base seed itself."""
    if index == attempt == 0:
        return seed
    digest = hashlib.blake2b(f"{seed} {index} {attempt}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def chunk_seeds(seed: int, index: int, options: ChunkOptions) -> list[int]:
    return [chunk_seed(seed, index, attempt) for attempt in range(options.retries + 1)]


def chunk_sequence(
    engine: Engine,
    request: SpeechRequest,
    index: int,
    sampling: SamplingConfig,
    codes: Sequence[Tensor],
    generated: Sequence[Tensor],
) -> SlotSequence:
    """The prompt of one chunk, with the earlier chunks as turns: as many as the request has, or a slot holds.

    `codes` [K, T] are those of its recordings, `generated` those of the chunks before it.
    """
    chunks, options, sample = request.chunks, request.options, request.samples[index]
    own = chunks[index].speakers
    context = [n for n in range(index) if not options.per_speaker_context or chunks[n].speakers == own]
    if options.context_chunks is not None:
        context = context[max(0, len(context) - options.context_chunks) :]
    while True:
        prompt = after_chunks(sample, [(request.samples[n].messages[-1].content, AudioContent()) for n in context])
        audio = [*codes, *(generated[n] for n in context)]
        sequence = engine.sequence(prompt, sampling, request.max_new_tokens, audio)
        if not context or engine.fits(sequence):
            return sequence
        context.pop(0)


def speak(
    engine: Engine,
    request: SpeechRequest,
    on_step: Callable[[int], None] | None = None,
    on_chunk: Callable[[int, Response], None] | None = None,
) -> Response:
    """A request in a single pass, or chunk by chunk: then a `LongResponse`.

    `max_new_tokens` holds for each chunk. A chunk without audio, or one that is cut off, is generated again with other
    seeds, `options.retries` times. `on_step` gets the number of each step of a single pass, `on_chunk` the index and
    the response of each chunk. Raises ValueError as `Engine.generate`, and SilentChunkError.
    """
    chunks, options, limit = request.chunks, request.options, request.max_new_tokens
    if not chunks:
        return engine.run([engine.sequence(request.samples[0], request.sampling, limit)], on_step)[0]
    sampling = request.sampling or engine.generation.sampling
    reference_codes = cache(engine.reference_codes)  # its file is read once
    selected: list[Attempts] = []
    generated: list[Tensor] = []
    for index in range(len(chunks)):
        codes = [reference_codes(audio) for audio in request.samples[index].audios]
        make = partial(chunk_sequence, engine, request, index, codes=codes, generated=generated)

        def attempt(seed: int, make: Callable[..., SlotSequence] = make) -> Response:
            return engine.run([make(replace(sampling, seed=seed))])[0]

        attempts = first_complete(attempt, chunk_seeds(sampling.seed, index, options))
        if not attempts.response.usage.audio_frames:
            raise SilentChunkError(chunks, index, _joined(chunks[:index], selected, options) if selected else None)
        selected.append(attempts)
        generated.append(attempts.response.codes)
        if on_chunk is not None:
            on_chunk(index, attempts.response)
    return _joined(chunks, selected, options)


def first_complete(attempt: Callable[[int], Response], seeds: Iterable[int]) -> Attempts:
    """The first response with audio that ended by itself; else the last that has audio; else the first."""
    attempts: Attempts | None = None
    seconds: dict[str, float] = {}
    for count, seed in enumerate(seeds, 1):
        response = attempt(seed)
        if attempts is None or response.usage.audio_frames:
            attempts = Attempts(response, seed, count, seconds)
        attempts.count = count
        for name, value in response.timing.items():
            seconds[name] = seconds.get(name, 0.0) + value
        if response.usage.audio_frames and response.stop_reason == "stop":
            break
    return attempts


def _joined(chunks: Sequence[Chunk], selected: Sequence[Attempts], options: ChunkOptions) -> LongResponse:
    responses = [attempts.response for attempts in selected]
    rate = responses[0].sample_rate
    gains = _gains(chunks, responses) if options.match_levels else [0.0] * len(selected)
    parts, spans, end = [], [], 0
    for chunk, attempts, gain in zip(chunks, selected, gains, strict=True):
        response = attempts.response
        pause = torch.zeros(round(options.pause(chunk.boundary) * rate))
        waveform = fade(response.waveform, round(FADE_SECONDS * rate)) * 10 ** (gain / 20)
        parts += [pause, waveform]
        start = end + len(pause)
        end = start + len(waveform)
        reason, frames = response.stop_reason, response.usage.audio_frames
        spans.append(ChunkSpan(chunk, start, end, attempts.seed, attempts.count, reason, frames, gain))
    usages = [response.usage for response in responses]
    names = [entry.name for entry in fields(Usage)]
    reasons = [response.stop_reason for response in responses]
    return LongResponse(
        waveform=torch.cat(parts),
        sample_rate=rate,
        codes=torch.cat([response.codes for response in responses], dim=1),
        text="".join(response.text for response in responses),
        stop_reason=next((reason for reason in reasons if reason != "stop"), "stop"),
        usage=Usage(**{name: sum(getattr(usage, name) for usage in usages) for name in names}),
        delayed=[delayed for response in responses for delayed in response.delayed],
        timing={name: sum(attempts.seconds[name] for attempts in selected) for name in selected[0].seconds},
        chunks=spans,
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


def fade(waveform: Tensor, samples: int) -> Tensor:
    """[L] -> the same with a ramp over so many samples at both ends."""
    samples = min(samples, len(waveform) // 2)
    ramp = torch.linspace(0, 1, samples + 2)[1:-1]
    faded = waveform.clone()
    faded[:samples] *= ramp
    faded[len(faded) - samples :] *= ramp.flip(0)
    return faded


class StreamFade:
    """`fade` for a waveform that comes in parts: the last samples are held back until it ends."""

    def __init__(self, samples: int):
        self.samples, self.held, self.started = samples, torch.zeros(0), False

    def push(self, waveform: Tensor) -> Tensor:
        """[L] -> what is final, which may be empty."""
        self.held = torch.cat([self.held, waveform])
        if len(self.held) < 2 * self.samples:
            return torch.zeros(0)
        final, self.held = self.held[: -self.samples], self.held[-self.samples :]
        if not self.started:
            final = fade(torch.cat([final, final.new_zeros(self.samples)]), self.samples)[: -self.samples]
        self.started = True
        return final

    def finish(self) -> Tensor:
        """-> the rest."""
        if not self.started:
            return fade(self.held, self.samples)
        return fade(torch.cat([self.held.new_zeros(self.samples), self.held]), self.samples)[self.samples :]
