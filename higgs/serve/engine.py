"""From a conversation to audio: the codec, the model and the text tokenizer, put together."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from higgs.batch import Batch
from higgs.codec.tokenizer import AudioTokenizer
from higgs.config import SamplingConfig
from higgs.data.chatml import AudioContent, ChatMLSample, TextContent, tokenize
from higgs.data.collator import collate, expand_audio_placeholders
from higgs.data.text.checks import check_messages
from higgs.data.text.tokenizer import TextTokenizer
from higgs.delay import segment_frames
from higgs.model.higgs_audio import HiggsAudio
from higgs.serve.batching.prefix_cache import VoiceCache, fingerprint
from higgs.serve.batching.scheduler import Request, Scheduler, Ticket
from higgs.serve.batching.slots import Decoder
from higgs.serve.generation import GenerationConfig
from higgs.serve.guards import GUARD_STOPS, Guards, Watch
from higgs.serve.reference.loop import Generation, Segment, generate
from higgs.serve.stream import CHUNK_FRAMES, AudioStream, Chunk
from higgs.tokens import TokenIds

MAX_REFERENCE_SECONDS = 60.0


@dataclass(frozen=True)
class EngineConfig:
    """How much the engine takes on at once, and how.

    `max_batch` requests run together, each with at most `max_positions` of prompt and columns; `max_waiting` more may
    wait. The host looks at what was drawn every `burst` steps. `compile` runs the step through torch.compile, which
    takes a minute when first used; `int8` keeps its matrices, but for the head, in a byte for each weight, beside the
    model's own in bfloat16. `guards=None` lets speech run on. References, and the model's reading of them, are
    kept up to `voice_bytes`.
    """

    max_batch: int = 16
    max_positions: int = 4096
    max_waiting: int = 1024
    burst: int = 4
    compile: bool = False
    int8: bool = False
    guards: Guards | None = Guards()
    voice_bytes: int = 256 << 20


@dataclass(frozen=True)
class Usage:
    """Positions of the prompt (audio spread out), and what was generated: text tokens, audio columns, frames.

    `guard_stops` counts the takes that a guard ended, this one or those that were made again.
    """

    prompt_positions: int
    text_tokens: int
    audio_columns: int
    audio_frames: int
    guard_stops: int = 0


@dataclass
class Response:
    """`waveform` [L] float32, not clamped; `codes` [K, T], the segments in a row.

    `stop_reason` is "stop" when the model ended its turn, "length" when `max_new_tokens` cut it off, or the name of
    the guard that did ("guard_text_length", ...). `timing` holds seconds: waiting, prefill and decode together as
    `generate`, the codec's as `decode`.
    """

    waveform: Tensor
    sample_rate: int
    codes: Tensor
    text: str
    stop_reason: str
    usage: Usage
    delayed: list[Tensor] = field(default_factory=list)
    timing: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class Take:
    """A request and what has come of it so far. What a guard ended may be made again, with the next seed."""

    request: Request
    retries: int = 0
    ticket: Ticket | None = None
    columns: list[Tensor] = field(default_factory=list)
    guard_stops: int = 0
    seconds: float = 0.0

    def read(self, on_column: Callable[[int], None] | None) -> None:
        """Collects what is new. `on_column` hears the number of each column that was drawn."""
        new = self.ticket.take()
        first = sum(columns.shape[1] for columns in self.columns)
        self.columns.append(new)
        if on_column is not None:
            for number in range(max(first, 1), first + new.shape[1]):
                on_column(number)

    def again(self) -> bool:
        """Whether it is to be made again; what there was of it is dropped then."""
        if self.ticket.stop_reason not in GUARD_STOPS:
            return False
        self.guard_stops += 1
        if self.guard_stops > self.retries:
            return False
        sampling = replace(self.request.sampling, seed=self.request.sampling.seed + 1)
        self.request = replace(self.request, sampling=sampling)
        self.columns.clear()
        return True


def choose_device(name: str) -> torch.device:
    """ "auto" is the accelerator where there is one, else the CPU."""
    if name != "auto":
        return torch.device(name)
    found = torch.accelerator.current_accelerator(check_available=True)
    return found if found is not None else torch.device("cpu")


def choose_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on an accelerator and float32 on the CPU."""
    if isinstance(name, torch.dtype):
        return name
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return getattr(torch, name)


class Engine:
    """`Engine.from_pretrained(model=..., tokenizer=...).generate(sample, sampling)` -> a `Response`.

    Requests of all methods, from any threads, run together. In float32 on the CPU one request's codes do not depend on
    what runs beside it. The model's weights are taken as they are when the first request comes. A request without
    sampling settings or a limit has those of the checkpoint, `generation`.
    """

    def __init__(
        self,
        model: HiggsAudio,
        tokenizer: AudioTokenizer,
        text_tokenizer: TextTokenizer,
        config: EngineConfig | None = None,
        generation: GenerationConfig | None = None,
    ):
        self.model, self.tokenizer, self.text_tokenizer = model, tokenizer, text_tokenizer
        self.config, self.generation = config or EngineConfig(), generation or GenerationConfig()
        self.voices = VoiceCache(self.config.voice_bytes)
        self._lock = threading.Lock()
        self._scheduler: Scheduler | None = None
        self.ids = TokenIds.of(text_tokenizer)
        if model.config.num_codebooks != tokenizer.num_codebooks:
            raise ValueError(
                f"the model has {model.config.num_codebooks} codebooks, the codec {tokenizer.num_codebooks}"
            )
        if model.config.codebook_size != tokenizer.codebook_size:
            raise ValueError(
                f"the model has {model.config.codebook_size} codes in a codebook, the codec {tokenizer.codebook_size}"
            )

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        tokenizer: str | Path,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        config: EngineConfig | None = None,
    ) -> "Engine":
        """Folders, hub ids (`organisation/name@revision`) or s3:// prefixes of the model and of the codec.

        The codec runs in float32 whatever the model's dtype.
        """
        place = choose_device(device)
        kind = choose_dtype(dtype, place)
        return cls(
            HiggsAudio.from_pretrained(model, device=place, dtype=kind),
            AudioTokenizer.from_pretrained(tokenizer, device=place),
            TextTokenizer.from_pretrained(model),
            config,
            GenerationConfig.from_pretrained(model),
        )

    @property
    def scheduler(self) -> Scheduler:
        """The rows in which requests run, set up for the first of them."""
        with self._lock:
            if self._scheduler is None:
                made = self.config
                rows, positions = made.max_batch, made.max_positions
                decoder = Decoder(self.model, rows, positions, made.burst, made.compile, self.voices, made.int8)
                self._scheduler = Scheduler(decoder, made.max_waiting)
            return self._scheduler

    def reference_codes(self, audio: AudioContent) -> Tensor:
        """-> [K, T] of a file, encoded once. Raises ValueError for references of more than a minute."""
        waveform = audio.load(self.tokenizer.sample_rate)
        seconds = len(waveform) / self.tokenizer.sample_rate
        if seconds > MAX_REFERENCE_SECONDS:
            raise ValueError(
                f"{audio.name}: a reference of {seconds:.0f} s; at most {MAX_REFERENCE_SECONDS:.0f} s, "
                "and 5 to 15 s are enough"
            )
        key = fingerprint(waveform)
        return self.voices.get(key, lambda: [self.tokenizer.encode(waveform).cpu()])[0]

    def prepare(
        self,
        sample: ChatMLSample,
        reference_codes: Sequence[Tensor] | None = None,
        force_audio: bool = True,
    ) -> Batch:
        """A conversation -> the prompt, on the CPU. Without codes, its audio files are encoded."""
        check_messages(sample.messages)
        codes = (
            [self.reference_codes(audio) for audio in sample.audios]
            if reference_codes is None
            else list(reference_codes)
        )
        with self._lock:  # the text tokenizer has a switch that is turned for each text
            tokens = tokenize(sample, self.text_tokenizer, generate=True, force_audio=force_audio)
        row = expand_audio_placeholders(tokens, [c.cpu() for c in codes], self.ids, self.model.config, False)
        return collate([row], self.ids)

    def request(
        self,
        sample: ChatMLSample,
        sampling: SamplingConfig | None = None,
        max_new_tokens: int | None = None,
        reference_codes: Sequence[Tensor] | None = None,
    ) -> Request:
        """What `scheduler.submit` takes. Raises ValueError as `generate` does, and for parity."""
        sampling, max_new_tokens = self._settings(sampling, max_new_tokens)
        if sampling.parity:
            raise ValueError("parity=True is for `generate` and `generate_batch`")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        prompt = self.prepare(sample, reference_codes)
        request = Request(prompt, sampling, max_new_tokens)
        if guards := self.config.guards:
            parts = sample.messages[-1].parts
            said = "".join(part.text for part in parts if isinstance(part, TextContent))
            request.most_frames = guards.most_frames(said, self.tokenizer.frame_rate)
            request.watch = partial(Watch, guards, self.tokenizer.frame_rate)
        return request

    def _settings(self, sampling: SamplingConfig | None, max_new_tokens: int | None) -> tuple[SamplingConfig, int]:
        """What is None is the checkpoint's own."""
        limit = self.generation.max_new_tokens if max_new_tokens is None else max_new_tokens
        return sampling or self.generation.sampling, limit

    def generate(
        self,
        sample: ChatMLSample,
        sampling: SamplingConfig | None = None,
        max_new_tokens: int | None = None,
        reference_codes: Sequence[Tensor] | None = None,
        force_audio: bool = True,
        on_column: Callable[[int], None] | None = None,
    ) -> Response:
        """Speaks the answer to a conversation.

        `force_audio=False` lets the model write text first, and stops at the end of its turn; with it, generation
        starts with audio and stops at that audio's end. `max_new_tokens` counts text tokens and columns (25 a second).
        Text first, and `parity`, take the plain loop.
        Raises ValueError for `max_new_tokens` below 1, for more than the engine's `max_positions`, and for audio that
        cannot be encoded; RuntimeError when the device has no memory left.
        """
        sampling, max_new_tokens = self._settings(sampling, max_new_tokens)
        if sampling.parity or not force_audio:
            prompt = self.prepare(sample, reference_codes, force_audio)
            return self._generate_plainly(prompt, sampling, max_new_tokens, force_audio, on_column)
        request = self.request(sample, sampling, max_new_tokens, reference_codes)
        return self._run([request], on_column)[0]

    def generate_batch(
        self,
        samples: Sequence[ChatMLSample],
        sampling: SamplingConfig | Sequence[SamplingConfig] | None = None,
        max_new_tokens: int | None = None,
    ) -> list[Response]:
        """Several conversations together, with one setting or one for each: as `generate` one by one, only sooner."""
        each = sampling if isinstance(sampling, Sequence) else [sampling] * len(samples)
        pairs = list(zip(samples, each, strict=True))
        if any(config and config.parity for _, config in pairs):
            return [self.generate(sample, config, max_new_tokens) for sample, config in pairs]
        return self._run([self.request(sample, config, max_new_tokens) for sample, config in pairs])

    def stream(
        self,
        sample: ChatMLSample,
        sampling: SamplingConfig | None = None,
        max_new_tokens: int | None = None,
        reference_codes: Sequence[Tensor] | None = None,
        chunk_frames: Sequence[int] = CHUNK_FRAMES,
    ) -> Iterator[Chunk]:
        """As `generate`, in pieces as soon as they are certain; leaving the loop early ends the request.

        A guard ends a stream without another take: what has been heard cannot be taken back.
        """
        request = self.request(sample, sampling, max_new_tokens, reference_codes)
        return self._stream(request, AudioStream(self.tokenizer, chunk_frames))

    def _stream(self, request: Request, audio: AudioStream) -> Iterator[Chunk]:
        ticket = self.scheduler.submit(request)
        try:
            done = False
            while not done:
                self.scheduler.wait(ticket)
                done = ticket.done  # before `take`, which then yields all there is
                yield from audio.push(ticket.take())
            yield audio.finish(ticket.finished, ticket.stop_reason)
        finally:
            self.scheduler.cancel(ticket)

    def _run(self, requests: Sequence[Request], on_column: Callable[[int], None] | None = None) -> list[Response]:
        """Requests that run together -> their responses, in order."""
        retries = self.config.guards.retries if self.config.guards else 0
        takes = [Take(request, retries) for request in requests]
        started = time.perf_counter()
        todo, running = deque(takes), []
        try:
            while todo or running:
                while todo and len(self.scheduler.waiting) < self.scheduler.max_waiting:
                    take = todo.popleft()
                    take.ticket = self.scheduler.submit(take.request)
                    running.append(take)
                self.scheduler.wait(running[0].ticket)
                ended = [take for take in running if take.ticket.done]
                for take in running:
                    take.read(on_column)
                for take in ended:
                    running.remove(take)
                    take.seconds = time.perf_counter() - started
                todo += [take for take in ended if take.again()]
        finally:
            for take in running:
                self.scheduler.cancel(take.ticket)
        return [self._respond_to(take) for take in takes]

    def _respond_to(self, take: Take) -> Response:
        ticket = take.ticket
        columns = torch.cat(take.columns, dim=1)
        ids = [self.ids.audio_out, self.ids.audio_eos][: 1 + ticket.finished]
        segment = Segment(list(columns.unbind(1)), ticket.finished)
        made = Generation(ids, [segment], columns.shape[1], ticket.stop_reason)
        started = time.perf_counter()
        response = self._respond(made, take.request.prompt.input_ids.shape[1])
        response.usage = replace(response.usage, guard_stops=take.guard_stops)
        response.timing = {"generate": take.seconds, "decode": time.perf_counter() - started}
        return response

    def _generate_plainly(
        self,
        prompt: Batch,
        sampling: SamplingConfig,
        max_new_tokens: int,
        force_audio: bool,
        on_column: Callable[[int], None] | None,
    ) -> Response:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        stop = (self.ids.end_of_turn, self.ids.end_of_text)
        stop += (self.ids.audio_eos,) if force_audio else ()
        started = time.perf_counter()
        prompt = prompt.to(self.model.device)
        made = generate(self.model, prompt, self.ids, sampling, max_new_tokens, stop, on_column)
        generated = time.perf_counter()
        response = self._respond(made, prompt.input_ids.shape[1])
        decoded = time.perf_counter()
        response.timing = {"generate": generated - started, "decode": decoded - generated}
        return response

    def _respond(self, made: Generation, prompt_positions: int) -> Response:
        size = self.tokenizer.codebook_size
        delayed = [segment.delayed.cpu() for segment in made.segments]
        frames = [
            segment_frames(columns, size, segment.finished)
            for columns, segment in zip(delayed, made.segments, strict=True)
        ]
        spoken = [codes for codes in frames if codes.shape[1]]
        empty = torch.zeros(self.tokenizer.num_codebooks, 0, dtype=torch.long)
        waveforms = [self.tokenizer.decode(codes).cpu() for codes in spoken]
        codes = torch.cat(spoken, dim=1) if spoken else empty
        placeholders = (self.ids.audio_out, self.ids.audio_eos)
        return Response(
            waveform=torch.cat(waveforms) if waveforms else torch.zeros(0),
            sample_rate=self.tokenizer.sample_rate,
            codes=codes,
            text=self.text_tokenizer.decode(made.ids),
            stop_reason=made.stop_reason,
            usage=Usage(
                prompt_positions,
                sum(token not in placeholders for token in made.ids),
                sum(columns.shape[1] for columns in delayed),
                codes.shape[1],
            ),
            delayed=delayed,
        )
