"""From a conversation to audio: the codec, the model and the text tokenizer, put together."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from higgs.audio import load_audio
from higgs.batch import Batch
from higgs.codec.tokenizer import AudioTokenizer
from higgs.config import SamplingConfig
from higgs.data.chatml import AudioContent, ChatMLSample, tokenize
from higgs.data.collator import collate, spread
from higgs.data.text import TextTokenizer
from higgs.delay import segment_frames
from higgs.model.higgs_audio import HiggsAudio
from higgs.serve.generate import Generation, generate
from higgs.tokens import TokenIds

MAX_REFERENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Usage:
    """Positions of the prompt (audio spread out), and what was generated: text tokens, audio columns, frames."""

    prompt_positions: int
    text_tokens: int
    audio_columns: int
    audio_frames: int


@dataclass
class Response:
    """`waveform` [L] float32, not clamped; `codes` [K, T], the segments in a row.

    `stop_reason` is "stop" when the model ended its turn and "length" when `max_new_tokens` cut it off. `timing` holds
    seconds: prefill and decode together as `generate`, the codec's as `decode`.
    """

    waveform: Tensor
    sample_rate: int
    codes: Tensor
    text: str
    stop_reason: str
    usage: Usage
    delayed: list[Tensor] = field(default_factory=list)
    timing: dict[str, float] = field(default_factory=dict)


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
    """`Engine.from_pretrained(model=..., tokenizer=...).generate(sample, sampling)` -> a `Response`."""

    def __init__(self, model: HiggsAudio, tokenizer: AudioTokenizer, text_tokenizer: TextTokenizer):
        self.model, self.tokenizer, self.text_tokenizer = model, tokenizer, text_tokenizer
        self.ids = TokenIds.of(text_tokenizer)
        if model.config.num_codebooks != tokenizer.num_codebooks:
            raise ValueError(
                f"the model has {model.config.num_codebooks} codebooks, the codec {tokenizer.num_codebooks}"
            )
        if model.config.codebook_size != tokenizer.codebook_size:
            raise ValueError(
                f"the model has {model.config.codebook_size} codes in a codebook, "
                f"the codec {tokenizer.codebook_size}"
            )

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        tokenizer: str | Path,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
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
        )

    def reference_codes(self, audio: AudioContent) -> Tensor:
        """-> [K, T] of a file. Raises ValueError for references of more than a minute."""
        if not audio.audio_url:
            raise ValueError(
                "the conversation holds audio without a file, and no reference_codes for it"
            )
        waveform, _ = load_audio(audio.audio_url, self.tokenizer.sample_rate)
        seconds = len(waveform) / self.tokenizer.sample_rate
        if seconds > MAX_REFERENCE_SECONDS:
            raise ValueError(
                f"{audio.audio_url}: a reference of {seconds:.0f} s; at most {MAX_REFERENCE_SECONDS:.0f} s, "
                "and 5 to 15 s are enough"
            )
        return self.tokenizer.encode(waveform)

    def prepare(
        self,
        sample: ChatMLSample,
        reference_codes: Sequence[Tensor] | None = None,
        force_audio: bool = True,
    ) -> Batch:
        """A conversation -> the prompt on the model's device. Without codes, its audio files are encoded."""
        codes = (
            [self.reference_codes(audio) for audio in sample.audios]
            if reference_codes is None
            else list(reference_codes)
        )
        tokens = tokenize(sample, self.text_tokenizer, generate=True, force_audio=force_audio)
        row = spread(tokens, [c.cpu() for c in codes], self.ids, self.model.config, False)
        return collate([row], self.ids).to(self.model.device)

    def generate(
        self,
        sample: ChatMLSample,
        sampling: SamplingConfig | None = None,
        max_new_tokens: int = 1024,
        reference_codes: Sequence[Tensor] | None = None,
        force_audio: bool = True,
        on_column: Callable[[int], None] | None = None,
    ) -> Response:
        """Speaks the answer to a conversation.

        `force_audio=False` lets the model write text first, and stops at the end of its turn; with it, generation
        starts with audio and stops at that audio's end. `max_new_tokens` counts text tokens and columns (25 a second).
        Raises ValueError for `max_new_tokens` below 1, and for audio that cannot be encoded.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        sampling = sampling or SamplingConfig()
        prompt = self.prepare(sample, reference_codes, force_audio)
        stop = (self.ids.end_of_turn, self.ids.end_of_text)
        stop += (self.ids.audio_eos,) if force_audio else ()
        started = time.perf_counter()
        made = generate(self.model, prompt, self.ids, sampling, max_new_tokens, stop, on_column)
        generated = time.perf_counter()
        response = self._respond(made, prompt.input_ids.shape[1])
        decoded = time.perf_counter()
        response.timing = {"generate": generated - started, "decode": decoded - generated}
        return response

    def generate_batch(
        self,
        samples: Sequence[ChatMLSample],
        sampling: SamplingConfig | Sequence[SamplingConfig] | None = None,
        max_new_tokens: int = 1024,
    ) -> list[Response]:
        """Several conversations, one after another: no request's codes depend on another's."""
        each = sampling if isinstance(sampling, Sequence) else [sampling] * len(samples)
        pairs = zip(samples, each, strict=True)
        return [self.generate(sample, config, max_new_tokens) for sample, config in pairs]

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
