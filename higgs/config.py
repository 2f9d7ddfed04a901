"""Sizes of the codec and of the model, and how one samples: frozen and strict.

`higgs/checkpoint/config_json.py` reads them from a checkpoint's config.json, and refuses whatever the released
checkpoint does not use: structure is code, not configuration.
"""

import math
from dataclasses import field, fields, replace
from functools import wraps
from typing import Annotated, Any

import pydantic.dataclasses
from pydantic import Field

from higgs.validation import STRICT, Positive, explained

STRIDES = (8, 5, 4, 2, 3)
MAX_RAS_WINDOW = 64  # columns that a request in a batch keeps of its codes


class ConfigError(ValueError):
    """A configuration that this package does not run, with what was expected."""


def strict(cls: type) -> type:
    """A frozen dataclass with exact types and ranges. Whatever does not fit is a ConfigError that names all of it."""
    made = pydantic.dataclasses.dataclass(cls, frozen=True, config=STRICT)
    init, names = made.__init__, [entry.name for entry in fields(made)]

    @wraps(init)
    def checked(self: Any, *values: Any, **named: Any) -> None:
        # By name, so that a fault of a positional value has one.
        more = dict(zip(names, values, strict=False))
        with explained(cls.__name__, ConfigError):
            init(self, *values[len(names) :], **more, **named)

    made.__init__ = checked
    return made


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
        """Width of what is quantised: acoustic latent and semantic features side by side."""
        return self.acoustic_dim + self.semantic.hidden_size

    @property
    def semantic_step(self) -> int:
        return int(self.hop_length / (self.sample_rate / self.semantic_sample_rate) / 320)


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
            raise ConfigError(
                f"num_attention_heads is {self.num_heads}: no multiple of num_key_value_heads, {self.num_kv_heads}"
            )

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
    """How one column of codes, or one text token, is chosen.

    `temperature=0` is greedy. `top_k=None` and `top_p=1` keep everything. Repetition-aware sampling redraws a code
    that stands `ras_max_repeats` times in the last `ras_window` columns (64 at most) of its codebook; `ras_window=None`
    is off. The defaults are those recommended for the release; `Engine.generation.sampling` are those of a checkpoint.

    `seed` makes a request repeatable: each draw is a function of (seed, step, codebook) alone, so that nothing else in
    a batch, and no earlier draw, can change it. With `parity` the draws come from one `torch.Generator`, and the text
    head may choose audio placeholders, both as in the original.

    `strict_eos` leaves the original's rule for the end of a segment, by which any codebook's stray stream eos cuts it
    off. With it, stream bos is never drawn, stream eos by codebook 0 alone, and each further codebook ends one column
    later; repetitions are counted in the segment at hand only; and the model reads a segment's last column, as in
    training.
    """

    temperature: Annotated[float, Field(ge=0)] = 0.7
    top_k: Positive | None = 50
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    ras_window: Annotated[int, Field(ge=1, le=MAX_RAS_WINDOW)] | None = 7
    ras_max_repeats: Positive = 2
    seed: int = 0
    parity: bool = False
    strict_eos: bool = False

    def __post_init__(self) -> None:
        if self.parity and self.strict_eos:
            raise ValueError("strict_eos leaves the original's rules, which parity asks for: choose one")

    def override(self, **options: Any) -> "SamplingConfig":
        """With the options that are not None. 0 stands for no limit (`top_k`) and for off (`ras_window`)."""
        given = {name: value for name, value in options.items() if value is not None}
        off = {name: None for name in ("top_k", "ras_window") if given.get(name) == 0}
        return replace(self, **given | off)
