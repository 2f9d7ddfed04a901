"""Sizes of the codec and of the model, and how one samples: frozen, strict, read from both config schemas.

A checkpoint comes in the layout of the original release or in that of transformers. `from_json` accepts either (see
`higgs/schemas.py`), and refuses whatever the released checkpoint does not use: structure is code, not configuration.
"""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

STRIDES = (8, 5, 4, 2, 3)
MAX_RAS_WINDOW = 64  # columns that a request in a batch keeps of its codes


class ConfigError(ValueError):
    """A configuration that this package does not run, with what was expected."""


def require_sizes(config: Any) -> None:
    """Every field of a dataclass that is a whole number must be one, of 1 or more."""
    for field_ in fields(config):
        value = getattr(config, field_.name)
        if field_.type in (int, "int") and (type(value) is not int or value < 1):
            raise ConfigError(f"{field_.name} must be a whole number of 1 or more, got {value!r}")


@dataclass(frozen=True)
class SemanticConfig:
    """HuBERT's sizes; the defaults are HuBERT-base."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    conv_dim: int = 512
    position_kernel: int = 128
    position_groups: int = 16

    def __post_init__(self) -> None:
        require_sizes(self)


@dataclass(frozen=True)
class CodecConfig:
    """The audio tokenizer; the defaults are the release (24 kHz, 25 frames per second, 8 codebooks of 1024)."""

    sample_rate: int = 24_000
    semantic_sample_rate: int = 16_000
    strides: tuple[int, ...] = STRIDES
    encoder_width: int = 64
    decoder_width: int = 1024
    acoustic_dim: int = 256
    num_codebooks: int = 8
    codebook_size: int = 1024
    codebook_dim: int = 64
    semantic: SemanticConfig = field(default_factory=SemanticConfig)

    def __post_init__(self) -> None:
        require_sizes(self)

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

    @classmethod
    def from_json(
        cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]] | None = None
    ) -> "CodecConfig":
        """Reads either schema. The original's has no widths: they come from the tensors' `shapes`.

        Raises ConfigError for a schema that is neither, or for a value that the release does not use.
        """
        from higgs.schemas import read_codec_config

        return read_codec_config(config, shapes)

    def to_json(self) -> dict[str, Any]:
        """The transformers schema."""
        # Bandwidths in kbit/s; transformers derives the number of codebooks from the last.
        kbits = self.num_codebooks * math.log2(self.codebook_size) * self.frame_rate / 1000
        return {
            "architectures": ["HiggsAudioV2TokenizerModel"],
            "model_type": "higgs_audio_v2_tokenizer",
            "acoustic_model_config": {
                "model_type": "dac",
                "encoder_hidden_size": self.encoder_width,
                "decoder_hidden_size": self.decoder_width,
                "hidden_size": self.acoustic_dim,
                "downsampling_ratios": list(self.strides),
                "upsampling_ratios": list(self.strides),
                "hop_length": self.hop_length,
            },
            "semantic_model_config": {
                "model_type": "hubert",
                "hidden_size": self.semantic.hidden_size,
                "intermediate_size": self.semantic.intermediate_size,
                "num_hidden_layers": self.semantic.num_layers,
                "num_attention_heads": self.semantic.num_heads,
                "conv_dim": [self.semantic.conv_dim] * 7,
                "num_conv_pos_embeddings": self.semantic.position_kernel,
                "num_conv_pos_embedding_groups": self.semantic.position_groups,
                "mask_time_prob": 0.0,
            },
            "sample_rate": self.sample_rate,
            "semantic_sample_rate": self.semantic_sample_rate,
            "codebook_size": self.codebook_size,
            "codebook_dim": self.codebook_dim,
            "target_bandwidths": [kbits / 4, kbits / 2, 3 * kbits / 4, kbits],
            "channel_ratios": [1, 1],
            "strides": [1, 1],
            "block_dilations": [1, 1],
            "unit_kernel_size": 3,
            "kernel_size": 3,
        }


@dataclass(frozen=True)
class RopeConfig:
    """Llama-3's rotary embedding; `original_context`, `low_factor` and `high_factor` bound the blended band."""

    theta: float = 500_000.0
    factor: float = 32.0
    low_factor: float = 1.0
    high_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """The generation model; the defaults are the released 3B checkpoint (5,771,283,456 parameters)."""

    vocab_size: int = 128_256
    hidden_size: int = 3072
    intermediate_size: int = 8192
    num_layers: int = 28
    num_heads: int = 24
    num_kv_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-5
    rope: RopeConfig = field(default_factory=RopeConfig)
    num_codebooks: int = 8
    codebook_size: int = 1024

    def __post_init__(self) -> None:
        require_sizes(self)
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

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> "ModelConfig":
        """Reads either schema. Raises ConfigError for others and for parts that the release does not use."""
        from higgs.schemas import read_model_config

        return read_model_config(config)

    def to_json(self) -> dict[str, Any]:
        """The transformers schema, without the token ids (see `HiggsAudio.save_pretrained`)."""
        return {
            "architectures": ["HiggsAudioV2ForConditionalGeneration"],
            "model_type": "higgs_audio_v2",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": self.rope.theta,
                "factor": self.rope.factor,
                "low_freq_factor": self.rope.low_factor,
                "high_freq_factor": self.rope.high_factor,
                "original_max_position_embeddings": self.rope.original_context,
            },
            "num_codebooks": self.num_codebooks,
            "codebook_size": self.code_vocab_size,
            "audio_stream_bos_id": self.stream_bos,
            "audio_stream_eos_id": self.stream_eos,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
        }


@dataclass(frozen=True)
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

    temperature: float = 0.7
    top_k: int | None = 50
    top_p: float = 0.95
    ras_window: int | None = 7
    ras_max_repeats: int = 2
    seed: int = 0
    parity: bool = False
    strict_eos: bool = False

    def __post_init__(self) -> None:
        if self.parity and self.strict_eos:
            raise ValueError(
                "strict_eos leaves the original's rules, which parity asks for: choose one"
            )
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be >= 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, or None for no limit, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.ras_window is not None and not 1 <= self.ras_window <= MAX_RAS_WINDOW:
            raise ValueError(
                f"ras_window must be at least 1 and at most {MAX_RAS_WINDOW}, or None for off, got {self.ras_window}"
            )
        if self.ras_max_repeats < 1:
            raise ValueError(f"ras_max_repeats must be at least 1, got {self.ras_max_repeats}")

    def override(self, **options: Any) -> "SamplingConfig":
        """With the options that are not None. 0 stands for no limit (`top_k`) and for off (`ras_window`)."""
        given = {name: value for name, value in options.items() if value is not None}
        off = {name: None for name in ("top_k", "ras_window") if given.get(name) == 0}
        return replace(self, **given | off)
