"""From a conversation to audio: the codec, the model and the text tokenizer, put together."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from higgs.audio import check_audible
from higgs.codec.tokenizer import AudioTokenizer
from higgs.config import SamplingConfig
from higgs.data.chatml import AudioContent, ChatMLSample, TextContent, tokenize
from higgs.data.collator import collate, expand_audio_placeholders
from higgs.data.text.tokenizer import TextTokenizer
from higgs.delay import segment_frames
from higgs.model.higgs_audio import HiggsAudio
from higgs.model.matrices import BITS, can_pack
from higgs.serve.batching.prefix_cache import PrefixCache, fingerprint
from higgs.serve.batching.scheduler import Scheduler, Sequence
from higgs.serve.batching.slots import SlotDecoder
from higgs.serve.generation_config import GenerationConfig
from higgs.serve.reference.loop import generate
from higgs.serve.runaway import RUNAWAY_STOPS, RunawayConfig, RunawayDetector
from higgs.serve.stream import CHUNK_FRAMES, AudioChunk, AudioStream
from higgs.tokens import TokenIds
from higgs.workers import choose_device

MAX_REFERENCE_SECONDS = 60.0


@dataclass(frozen=True)
class EngineConfig:
    """How much the engine takes on at once, and how.

    `max_batch` requests run together, each with at most `max_positions` of prompt and steps; `max_waiting` more may
    wait. The host syncs with the device every `steps_per_sync` steps. `compile` runs the step through torch.compile,
    which takes a minute on its first use. `runaway=None` turns run-away detection off. Reference codes and the KV of
    prompt prefixes are cached up to `cache_bytes`.
    """

    max_batch: int = 16
    max_positions: int = 4096
    max_waiting: int = 1024
    steps_per_sync: int = 4
    compile: bool = False
    runaway: RunawayConfig | None = RunawayConfig()
    cache_bytes: int = 256 << 20


@dataclass(frozen=True)
class Usage:
    """Positions of the prompt (audio included), and what was generated: text tokens, audio steps, frames.

    `runaway_stops` counts the attempts that run-away detection ended, those that were made again included.
    """

    prompt_positions: int
    text_tokens: int
    audio_steps: int
    audio_frames: int
    runaway_stops: int = 0


@dataclass
class Response:
    """`waveform` [L] float32, not clamped; `codes` [K, T], the segments concatenated; `delayed` [K, C] of each segment.

    `stop_reason` is "stop" when the model ended its turn, "length" when `max_new_tokens` cut it off, or a reason of
    `higgs.serve.runaway`. `timing` holds seconds: waiting, prefill and decode steps together as `generate`, the codec's
    as `decode`.
    """

    waveform: Tensor
    sample_rate: int
    codes: Tensor
    text: str
    stop_reason: str
    usage: Usage
    delayed: list[Tensor] = field(default_factory=list)
    timing: dict[str, float] = field(default_factory=dict)


def choose_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """What is computed in: "auto" is bfloat16 on an accelerator and float32 on the CPU.

    Rounded weights ("int8", "int4") go with bfloat16, or float32 on a CPU that has no instructions for bfloat16.
    """
    if isinstance(name, torch.dtype):
        return name
    if name == "auto" or name in BITS:
        fast = device.type != "cpu" or (name in BITS and can_pack(device, torch.bfloat16))
        return torch.bfloat16 if fast else torch.float32
    if not isinstance(dtype := getattr(torch, name, None), torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype: expected auto, float32, bfloat16, float16, {' or '.join(BITS)}, got {name!r}")
    return dtype


class Engine:
    """`Engine.from_pretrained(model=..., tokenizer=...).generate(sample, sampling)` -> a `Response`.

    Requests of all methods, from any threads, run together. In float32 on the CPU one request's codes do not depend on
    what runs beside it. Sampling settings and limits that are None are those of the checkpoint, `generation`.
    """

    def __init__(
        self,
        model: HiggsAudio,
        tokenizer: AudioTokenizer,
        text_tokenizer: TextTokenizer,
        config: EngineConfig | None = None,
        generation: GenerationConfig | None = None,
        encoder: AudioTokenizer | None = None,
    ):
        """`encoder` is the codec for references, where `tokenizer` only decodes."""
        self.model, self.tokenizer, self.text_tokenizer = model, tokenizer, text_tokenizer
        self.encoder = encoder or tokenizer
        self.config, self.generation = config or EngineConfig(), generation or GenerationConfig()
        self.cache = PrefixCache(self.config.cache_bytes)
        self._lock = threading.Lock()
        self._scheduler: Scheduler | None = None
        self.ids = TokenIds.of(text_tokenizer)
        for what in ("num_codebooks", "codebook_size"):
            ours, theirs = getattr(model.config, what), getattr(tokenizer, what)
            if ours != theirs:
                raise ValueError(f"{what} is {ours} in the model, and {theirs} in the codec")

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        tokenizer: str | Path,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        config: EngineConfig | None = None,
        offload_text: bool = False,
    ) -> "Engine":
        """Folders, hub ids (`organisation/name@revision`) or s3:// prefixes of the model and of the codec.

        `dtype` also takes "int8" and "int4", which round the model's weights. `offload_text` leaves in their files, on
        the host, what only the prompt needs: the model's text half and the codec's encoders. The codec runs in float32
        whatever the model's dtype.
        """
        place = choose_device(device)
        compute, bits = choose_dtype(dtype, place), BITS.get(dtype)
        codec, encoder = AudioTokenizer.from_pretrained(tokenizer, device=place), None
        if offload_text and place.type != "cpu":
            encoder = AudioTokenizer.from_pretrained(tokenizer)
            codec.drop_encoders()
        return cls(
            HiggsAudio.from_pretrained(model, None, place, compute, bits, offload_text),
            codec,
            TextTokenizer.from_pretrained(model),
            config,
            GenerationConfig.from_pretrained(model),
            encoder,
        )

    @property
    def scheduler(self) -> Scheduler:
        """The slots in which requests run, allocated for the first of them."""
        with self._lock:
            if self._scheduler is None:
                c = self.config
                decoder = SlotDecoder(self.model, c.max_batch, c.max_positions, c.steps_per_sync, c.compile, self.cache)
                self._scheduler = Scheduler(decoder, c.max_waiting)
            return self._scheduler

    def reference_codes(self, audio: AudioContent) -> Tensor:
        """-> [K, T] of a file, encoded once; raises as `encode_reference`, and where it cannot be read."""
        return self.encode_reference(audio.load(self.tokenizer.sample_rate), audio.name)

    def encode_reference(self, waveform: Tensor, name: str = "") -> Tensor:
        """[L] at the codec's rate -> [K, T]. Raises ValueError for silent references and those of over a minute."""
        seconds = len(waveform) / self.tokenizer.sample_rate
        if seconds > MAX_REFERENCE_SECONDS:
            raise ValueError(
                f"{name}: a reference of {seconds:.0f} s; at most {MAX_REFERENCE_SECONDS:.0f} s, "
                "and 5 to 15 s are enough"
            )
        check_audible(waveform, name or "the reference")
        return self.cache.get(fingerprint(waveform), lambda: [self.encoder.encode(waveform).cpu()])[0]

    def sequence(
        self,
        sample: ChatMLSample,
        sampling: SamplingConfig | None = None,
        max_new_tokens: int | None = None,
        reference_codes: Iterable[Tensor] | None = None,
        force_audio: bool = True,
    ) -> Sequence:
        """A conversation -> its prompt and settings, which `run` takes. Without codes, its audio files are encoded."""
        limit = self.generation.max_new_tokens if max_new_tokens is None else max_new_tokens
        if limit < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {limit}")
        with self._lock:  # the text tokenizer has a switch that is set for each text
            tokens = tokenize(sample, self.text_tokenizer, generate=True, force_audio=force_audio)
        if reference_codes is None:
            reference_codes = [self.reference_codes(audio) for audio in tokens.audios]
        example = expand_audio_placeholders(
            tokens, [c.cpu() for c in reference_codes], self.ids, self.model.config, False
        )
        sequence = Sequence(collate([example], self.ids), sampling or self.generation.sampling, limit)
        if runaway := self.config.runaway:
            texts = (part.text for part in sample.messages[-1].parts if isinstance(part, TextContent))
            sequence.max_frames = runaway.max_frames(len("".join(texts).encode()), self.tokenizer.frame_rate)
            sequence.make_detector = partial(RunawayDetector, runaway, self.tokenizer.frame_rate)
        return sequence

    def fits(self, sequence: Sequence) -> bool:
        """Whether a slot holds the prompt and its steps."""
        return sequence.length + sequence.max_steps <= self.config.max_positions

    def generate(
        self,
        sample: ChatMLSample,
        sampling: SamplingConfig | None = None,
        max_new_tokens: int | None = None,
        reference_codes: Iterable[Tensor] | None = None,
        force_audio: bool = True,
        on_step: Callable[[int], None] | None = None,
    ) -> Response:
        """Speaks the answer to a conversation.

        `force_audio=False` lets the model write text first, and stops at the end of its turn; with it, generation
        starts with audio and stops at that audio's end. `max_new_tokens` counts text tokens and steps (25 a second).
        Text first, and `parity`, run in the reference loop. `on_step` gets the number of each step that was drawn.
        Raises ValueError for wrong limits and audio that cannot be encoded, RuntimeError when out of device memory.
        """
        sequence = self.sequence(sample, sampling, max_new_tokens, reference_codes, force_audio)
        if sequence.sampling.parity or not force_audio:
            return self._run_reference(sequence, force_audio, on_step)
        return self.run([sequence], on_step)[0]

    def generate_batch(
        self,
        samples: Iterable[ChatMLSample],
        sampling: SamplingConfig | list[SamplingConfig] | None = None,
        max_new_tokens: int | None = None,
    ) -> list[Response]:
        """Several conversations together, with one setting or one for each: as `generate` one by one, only sooner."""
        samples = list(samples)
        each = sampling if isinstance(sampling, list) else [sampling] * len(samples)
        pairs = list(zip(samples, each, strict=True))
        if any(config and config.parity for _, config in pairs):
            return [self.generate(sample, config, max_new_tokens) for sample, config in pairs]
        return self.run([self.sequence(sample, config, max_new_tokens) for sample, config in pairs])

    def stream(
        self,
        sample: ChatMLSample,
        sampling: SamplingConfig | None = None,
        max_new_tokens: int | None = None,
        reference_codes: Iterable[Tensor] | None = None,
        chunk_frames: Iterable[int] = CHUNK_FRAMES,
    ) -> Iterator[AudioChunk]:
        """As `generate`, in chunks as soon as they are final; closing the iterator cancels the request.

        Run-away detection ends a stream without another attempt: what was sent cannot be taken back.
        """
        sequence = self.sequence(sample, sampling, max_new_tokens, reference_codes)
        audio = AudioStream(self.tokenizer, list(chunk_frames))
        chunks = self._stream(self.scheduler.submit(sequence), audio)
        next(chunks)  # into its `try`: closed before the first chunk, it cancels, too
        return chunks

    def _stream(self, sequence: Sequence, audio: AudioStream) -> Iterator[AudioChunk | None]:
        try:
            yield None
            done = False
            while not done:
                self.scheduler.wait(sequence)
                done = sequence.done  # before `read_new`, which then returns all there is
                yield from audio.push(sequence.read_new())
            yield audio.finish(sequence.finished, sequence.stop_reason)
        finally:
            self.scheduler.cancel(sequence)

    def run(self, sequences: list[Sequence], on_step: Callable[[int], None] | None = None) -> list[Response]:
        """Sequences that run together -> their responses, in order. What ran away is made again.

        Raises ValueError and QueueFull as `Scheduler.submit`.
        """
        retries = self.config.runaway.retries if self.config.runaway else 0
        started = time.perf_counter()
        todo, running = deque(enumerate(sequences)), {}
        ended: dict[int, tuple[Sequence, float]] = {}
        stops = [0] * len(sequences)
        try:
            while todo or running:
                while todo and (not running or len(self.scheduler.waiting) < self.scheduler.max_waiting):
                    index, sequence = todo.popleft()
                    running[index] = self.scheduler.submit(sequence)
                self.scheduler.wait(next(iter(running.values())))
                for index, sequence in list(running.items()):
                    done = sequence.done
                    num_new = sequence.read_new().shape[1]
                    if on_step is not None:
                        steps = sequence.steps_read
                        for number in range(max(steps - num_new, 1), steps):
                            on_step(number)
                    if not done:
                        continue
                    del running[index]
                    ran_away = sequence.stop_reason in RUNAWAY_STOPS
                    stops[index] += ran_away
                    if ran_away and stops[index] <= retries:
                        todo.append((index, sequence.next_attempt()))
                    else:
                        ended[index] = sequence, time.perf_counter() - started
        finally:
            for sequence in running.values():
                self.scheduler.cancel(sequence)
        return [self._response_to(*ended[index], stops[index]) for index in range(len(sequences))]

    def _response_to(self, sequence: Sequence, seconds: float, runaway_stops: int) -> Response:
        ids = [self.ids.audio_out, self.ids.audio_eos][: 1 + sequence.finished]
        segments = [(sequence.delayed, sequence.finished)]
        return self._respond(sequence, ids, segments, sequence.stop_reason, seconds, runaway_stops)

    def _run_reference(self, sequence: Sequence, force_audio: bool, on_step: Callable[[int], None] | None) -> Response:
        stop = (self.ids.end_of_turn, self.ids.end_of_text) + (self.ids.audio_eos,) * force_audio
        started = time.perf_counter()
        prompt, sampling = sequence.prompt.to(self.model.device), sequence.sampling
        result = generate(self.model, prompt, self.ids, sampling, sequence.limit, stop, on_step)
        seconds = time.perf_counter() - started
        segments = [(segment.delayed.cpu(), segment.finished) for segment in result.segments]
        return self._respond(sequence, result.ids, segments, result.stop_reason, seconds)

    def _respond(
        self,
        sequence: Sequence,
        ids: list[int],
        segments: list[tuple[Tensor, bool]],
        stop_reason: str,
        seconds: float,
        runaway_stops: int = 0,
    ) -> Response:
        """`segments` are delayed frames [K, C], and whether the segment ended by itself; in so many `seconds`."""
        started = time.perf_counter()
        frames = [segment_frames(delayed, self.tokenizer.codebook_size, finished) for delayed, finished in segments]
        frames = [codes for codes in frames if codes.shape[1]]
        codes = torch.cat(frames, 1) if frames else torch.zeros(self.tokenizer.num_codebooks, 0, dtype=torch.long)
        waveforms = [self.tokenizer.decode(codes).cpu() for codes in frames]
        num_text = sum(token not in (self.ids.audio_out, self.ids.audio_eos) for token in ids)
        num_steps = sum(delayed.shape[1] for delayed, _ in segments)
        return Response(
            waveform=torch.cat(waveforms) if waveforms else torch.zeros(0),
            sample_rate=self.tokenizer.sample_rate,
            codes=codes,
            text=self.text_tokenizer.decode(ids),
            stop_reason=stop_reason,
            usage=Usage(sequence.length, num_text, num_steps, codes.shape[1], runaway_stops),
            delayed=[delayed for delayed, _ in segments],
            timing={"decode": time.perf_counter() - started, "generate": seconds},
        )
