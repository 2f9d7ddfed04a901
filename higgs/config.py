"""Sizes of codec and model, and sampling settings, as strict frozen dataclasses."""

import math
from dataclasses import field, fields, replace
from functools import wraps
from typing import Annotated, Any

import pydantic.dataclasses
from pydantic import Field

from higgs.validation import STRICT, Positive, explained

STRIDES = (8, 5, 4, 2, 3)
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

    hidden_size: Positive = 768
    intermediate_size: Positive = 3072
    num_layers: Positive = 12
    num_heads: Positive = 12
    conv_dim: Positive = 512
    position_kernel: Positive = 128
    position_groups: Positive = 16


@strict
class CodecConfig:
    """The audio tokenizer; the defaults are the release (24 kHz, 25 frames per second, 8 codebooks of 1024)."""

    sample_rate: Positive = 24_000
    semantic_sample_rate: Positive = 16_000
    strides: tuple[Positive, ...] = STRIDES
    encoder_width: Positive = 64
    decoder_width: Positive = 1024
    acoustic_dim: Positive = 256
    num_codebooks: Positive = 8
    codebook_size: Positive = 1024
    codebook_dim: Positive = 64
    semantic: SemanticConfig = field(default_factory=SemanticConfig)

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

    theta: float = 500_000.0
    factor: float = 32.0
    low_factor: float = 1.0
    high_factor: float = 4.0
    original_context: Positive = 8192


@strict
class ModelConfig:
    """The generation model; the defaults are the released 3B checkpoint (5,771,283,456 parameters)."""

    vocab_size: Positive = 128_256
    hidden_size: Positive = 3072
    intermediate_size: Positive = 8192
    num_layers: Positive = 28
    num_heads: Positive = 24
    num_kv_heads: Positive = 8
    head_dim: Positive = 128
    rms_norm_eps: float = 1e-5
    rope: RopeConfig = field(default_factory=RopeConfig)
    num_codebooks: Positive = 8
    codebook_size: Positive = 1024

    def __post_init__(self) -> None:
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
