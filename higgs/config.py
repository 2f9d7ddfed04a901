"""Sizes of codec and model, and sampling settings, as strict frozen dataclasses."""

import math
from dataclasses import field, fields, replace
from functools import wraps
from typing import Annotated, Any

import pydantic.dataclasses
from pydantic import Field

from higgs.validation import STRICT, Positive, explained

STRIDES = (8, 5, 4, 2, 3)
HUBERT_HOP = 320
# Bounds of what a config may ask for, far above what is in use: nothing is built from nonsense.
Size = Annotated[int, Field(ge=1, le=1 << 20)]
Modules = Annotated[int, Field(ge=1, le=256)]  # layers, codebooks
Stride = Annotated[int, Field(ge=1, le=64)]
SampleRate = Annotated[int, Field(ge=1000, le=768_000)]
Factor = Annotated[float, Field(gt=0, le=1e6)]
MAX_POSITION_WEIGHTS = 1 << 26  # of HuBERT's convolution: the one tensor that is allocated before shapes are compared
MAX_FILTER = 1 << 22  # taps of a resampling filter, roughly
MAX_RAS_WINDOW = 64  # delayed frames of history in a slot of the batch
LEAST_TEMPERATURE = 1e-30  # logits divided by less overflow float32; at this one the likeliest code wins already


class ConfigError(ValueError):
    """A configuration that this package does not run; the message says what was expected."""


def strict(cls: type) -> type:
    """A frozen dataclass with exact types and ranges. A ConfigError names all faults."""
    dataclass = pydantic.dataclasses.dataclass(cls, frozen=True, config=STRICT)
    init, names = dataclass.__init__, [entry.name for entry in fields(dataclass)]

    @wraps(init)
    def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:
        by_name = dict(zip(names, args, strict=False))  # so that faults of positional values have a name
        with explained(cls.__name__, ConfigError):
            init(self, *args[len(names) :], **by_name, **kwargs)

    dataclass.__init__ = checked_init
    return dataclass


@strict
class SemanticConfig:
    """HuBERT's sizes; the defaults are HuBERT-base."""

    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_layers: Modules = 12
    num_heads: Size = 12
    conv_dim: Size = 512
    position_kernel: Size = 128
    position_groups: Size = 16

    def __post_init__(self) -> None:
        for what, parts in (("num_attention_heads", self.num_heads), ("position groups", self.position_groups)):
            if self.hidden_size % parts:
                raise ConfigError(f"HuBERT's hidden_size is {self.hidden_size}: no multiple of {what}, {parts}")
        if self.hidden_size**2 // self.position_groups * self.position_kernel > MAX_POSITION_WEIGHTS:
            sizes = f"{self.hidden_size}, {self.position_kernel} and {self.position_groups}"
            raise ConfigError(f"HuBERT's hidden_size, position kernel and groups are {sizes}: far too large")


@strict
class CodecConfig:
    """The audio tokenizer; the defaults are the release (24 kHz, 25 frames per second, 8 codebooks of 1024)."""

    sample_rate: SampleRate = 24_000
    semantic_sample_rate: SampleRate = 16_000
    strides: Annotated[tuple[Stride, ...], Field(min_length=1, max_length=8)] = STRIDES
    encoder_width: Size = 64
    decoder_width: Size = 1024
    acoustic_dim: Size = 256
    num_codebooks: Modules = 8
    codebook_size: Size = 1024
    codebook_dim: Size = 64
    semantic: SemanticConfig = field(default_factory=SemanticConfig)

    def __post_init__(self) -> None:
        divisor = math.gcd(self.sample_rate, self.semantic_sample_rate)
        if self.sample_rate // divisor * (self.semantic_sample_rate // divisor) > MAX_FILTER:
            raise ConfigError(f"{self.sample_rate} Hz cannot be resampled to {self.semantic_sample_rate} Hz")
        if self.hop_length > self.sample_rate:
            raise ConfigError(f"strides of {list(self.strides)}: a frame of {self.hop_length} samples is over a second")
        if self.hop_length * self.semantic_sample_rate < HUBERT_HOP * self.sample_rate:
            rates = f"{self.hop_length} samples at {self.sample_rate} Hz"
            wanted = f"less than the {HUBERT_HOP} of HuBERT at {self.semantic_sample_rate} Hz"
            raise ConfigError(f"a frame has {rates}: {wanted}")

    @property
    def hop_length(self) -> int:
        return math.prod(self.strides)

    @property
    def frame_rate(self) -> int:
        return math.ceil(self.sample_rate / self.hop_length)

    @property
    def embedding_dim(self) -> int:
        """Width of the quantizer's input: acoustic latent and semantic features concatenated."""
        return self.acoustic_dim + self.semantic.hidden_size


@strict
class RopeConfig:
    """Llama-3's rotary embedding; `original_context`, `low_factor` and `high_factor` bound the blended band."""

    theta: Annotated[float, Field(gt=1, le=1e12)] = 500_000.0
    factor: Factor = 32.0
    low_factor: Factor = 1.0
    high_factor: Factor = 4.0
    original_context: Annotated[int, Field(ge=1, le=1 << 24)] = 8192

    def __post_init__(self) -> None:
        if self.low_factor >= self.high_factor:
            raise ConfigError(f"low_freq_factor, {self.low_factor}, is not below high_freq_factor, {self.high_factor}")


@strict
class ModelConfig:
    """The generation model; the defaults are the released 3B checkpoint (5,771,283,456 parameters)."""

    vocab_size: Size = 128_256
    hidden_size: Size = 3072
    intermediate_size: Size = 8192
    num_layers: Modules = 28
    num_heads: Size = 24
    num_kv_heads: Size = 8
    head_dim: Size = 128
    rms_norm_eps: Annotated[float, Field(gt=0, le=0.01)] = 1e-5
    rope: RopeConfig = field(default_factory=RopeConfig)
    num_codebooks: Modules = 8
    codebook_size: Size = 1024

    def __post_init__(self) -> None:
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}: rotary embeddings need an even number")
        if self.num_heads % self.num_kv_heads:
            heads = f"num_key_value_heads, {self.num_kv_heads}"
            raise ConfigError(f"num_attention_heads is {self.num_heads}: no multiple of {heads}")

    @property
    def code_vocab_size(self) -> int:
        """Codes and the two stream ids."""
        return self.codebook_size + 2

    @property
    def stream_bos(self) -> int:
        return self.codebook_size

    @property
    def stream_eos(self) -> int:
        return self.codebook_size + 1


@strict
class SamplingConfig:
    """How one audio token step of K codes, or one text token, is sampled. A checkpoint has its own settings.

    `temperature=0` is greedy, and so is what float32 cannot divide by. `top_k=None` and `top_p=1` do not filter.
    Repetition-aware sampling (RAS) redraws a code that occurs `ras_max_repeats` times in the last `ras_window` steps of
    its codebook; `ras_window=None` is off.

    Each draw is a function of (`seed`, step, codebook) alone, whatever else is in the batch. With `parity` all draws
    come from one `torch.Generator` and the text head may choose audio placeholders, as in the reference implementation
    (boson-ai/higgs-audio), where a stray stream eos of any codebook ends a segment. With `strict_eos` stream bos is
    never sampled, stream eos only by codebook 0, and each further codebook ends one step later; repetitions are counted
    within the segment; and the model reads a segment's last delayed frame, as in training.
    """

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.7
    top_k: Positive | None = 50
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    ras_window: Annotated[int, Field(ge=1, le=MAX_RAS_WINDOW)] | None = 7
    ras_max_repeats: Positive = 2
    seed: int = 0
    parity: bool = False
    strict_eos: bool = False

    def __post_init__(self) -> None:
        if self.parity and self.strict_eos:
            raise ValueError("strict_eos differs from the reference's rules, which parity asks for: choose one")

    @property
    def greedy(self) -> bool:
        return self.temperature < LEAST_TEMPERATURE

    def override(self, **options: Any) -> "SamplingConfig":
        """A copy with the options that are not None. `top_k=0` is no limit, `ras_window=0` is off."""
        off = {name: None for name in ("top_k", "ras_window") if options.get(name) == 0}
        return replace(self, **{name: value for name, value in options.items() if value is not None} | off)
