"""Sizes of the codec and of the model, and how one samples: frozen, strict, read from both config schemas.

A checkpoint comes in the layout of the original release or in that of transformers. `from_json` accepts either, and
refuses whatever the released checkpoint does not use: structure is code, not configuration.
"""

import math
from dataclasses import dataclass, field
from typing import Any

STRIDES = (8, 5, 4, 2, 3)


class ConfigError(ValueError):
    """A configuration that this package does not run, with what was expected."""


def expect(config: dict[str, Any], what: str, **allowed: Any) -> None:
    """Every named key that is present must have the given value."""
    for key, value in allowed.items():
        if key in config and config[key] != value:
            raise ConfigError(f"{what}: {key} is {config[key]!r}, this package runs only {value!r}")


def require(config: dict[str, Any], what: str, *keys: str) -> None:
    missing = [key for key in keys if key not in config]
    if missing:
        raise ConfigError(f"{what}: the config lacks {', '.join(missing)}")


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
        if config.get("model_type") == "higgs_audio_v2_tokenizer":
            return _codec_from_transformers(config)
        if "ratios" in config and "n_q" in config:
            if shapes is None:
                raise ConfigError("the original codec config needs the shapes of its tensors")
            return _codec_from_original(config, shapes)
        raise ConfigError(
            "not a Higgs Audio V2 tokenizer config: expected model_type 'higgs_audio_v2_tokenizer' "
            f"or the keys ratios and n_q, got {sorted(config)[:8]}"
        )

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


def _codec_from_transformers(config: dict[str, Any]) -> CodecConfig:
    what = "codec config (transformers)"
    require(config, what, "acoustic_model_config", "semantic_model_config", "codebook_dim")
    expect(config, what, channel_ratios=[1, 1], strides=[1, 1], block_dilations=[1, 1])
    expect(config, what, unit_kernel_size=3, kernel_size=3, downsample_factor=320)
    acoustic, semantic = config["acoustic_model_config"], config["semantic_model_config"]
    strides = tuple(acoustic["downsampling_ratios"])
    expect(acoustic, what, upsampling_ratios=list(strides))
    expect(semantic, what, do_stable_layer_norm=False, feat_extract_norm="group", conv_bias=False)
    expect(semantic, what, conv_kernel=[10, 3, 3, 3, 3, 2, 2], conv_stride=[5, 2, 2, 2, 2, 2, 2])
    widths = set(semantic.get("conv_dim", [512]))
    if len(widths) != 1:
        raise ConfigError(f"{what}: conv_dim must be one width seven times, got {sorted(widths)}")
    base = SemanticConfig()
    sample_rate = config.get("sample_rate", 24_000)
    codebook_size = config.get("codebook_size", 1024)
    frame_rate = math.ceil(sample_rate / math.prod(strides))
    # The schema has no number of codebooks: it follows from the largest bandwidth.
    bandwidth = config.get("target_bandwidths", [2])[-1]
    return CodecConfig(
        sample_rate=sample_rate,
        semantic_sample_rate=config.get("semantic_sample_rate", 16_000),
        strides=strides,
        encoder_width=acoustic.get("encoder_hidden_size", 64),
        decoder_width=acoustic.get("decoder_hidden_size", 1024),
        acoustic_dim=acoustic.get("hidden_size", 256),
        num_codebooks=int(1000 * bandwidth // (frame_rate * math.log2(codebook_size))),
        codebook_size=codebook_size,
        codebook_dim=config["codebook_dim"],
        semantic=SemanticConfig(
            hidden_size=semantic.get("hidden_size", base.hidden_size),
            intermediate_size=semantic.get("intermediate_size", base.intermediate_size),
            num_layers=semantic.get("num_hidden_layers", base.num_layers),
            num_heads=semantic.get("num_attention_heads", base.num_heads),
            conv_dim=widths.pop(),
            position_kernel=semantic.get("num_conv_pos_embeddings", base.position_kernel),
            position_groups=semantic.get("num_conv_pos_embedding_groups", base.position_groups),
        ),
    )


def _codec_from_original(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> CodecConfig:
    what = "codec config (original)"
    require(config, what, "D", "bins", "codebook_dim", "n_q", "ratios", "sample_rate")
    expect(config, what, semantic_techer="hubert_base_general", merge_mode="concat", vq_scale=1)
    expect(config, what, causal=False, normalize=False, downsample_mode="step_down")
    if not isinstance(config["bins"], int):
        raise ConfigError(f"{what}: bins is {config['bins']!r}: only RVQ (one integer) is run")
    layers = "semantic_model.encoder.layers"
    hidden = shapes["semantic_model.encoder.layer_norm.weight"][0]
    per_group = shapes[
        "semantic_model.encoder.pos_conv_embed.conv.parametrizations.weight.original1"
    ]
    return CodecConfig(
        sample_rate=config["sample_rate"],
        strides=tuple(config["ratios"]),
        encoder_width=shapes["encoder.block.0.bias"][0],
        decoder_width=shapes["decoder_2.model.0.bias"][0],
        acoustic_dim=config["D"],
        num_codebooks=config["n_q"],
        codebook_size=config["bins"],
        codebook_dim=config["codebook_dim"],
        semantic=SemanticConfig(
            hidden_size=hidden,
            intermediate_size=shapes[f"{layers}.0.feed_forward.intermediate_dense.bias"][0],
            num_layers=1 + max(int(key.split(".")[3]) for key in shapes if key.startswith(layers)),
            # No tensor shows the number of heads: HuBERT's have 64 channels; smaller teachers get 4.
            num_heads=hidden // 64 if hidden % 64 == 0 else 4,
            conv_dim=shapes["semantic_model.feature_projection.layer_norm.weight"][0],
            position_kernel=per_group[2],
            position_groups=hidden // per_group[1],
        ),
    )


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
        kind = config.get("model_type")
        if kind == "higgs_audio_v2":
            return _model_from_transformers(config)
        if kind == "higgs_audio":
            return _model_from_original(config)
        raise ConfigError(
            "not a Higgs Audio V2 model config: expected model_type 'higgs_audio' (original) or "
            f"'higgs_audio_v2' (transformers), got {kind!r}"
        )

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


def _rope(scaling: dict[str, Any], theta: float) -> RopeConfig:
    expect(scaling, "rope", rope_type="llama3")
    require(scaling, "rope", "factor", "low_freq_factor", "high_freq_factor")
    return RopeConfig(
        theta=theta,
        factor=scaling["factor"],
        low_factor=scaling["low_freq_factor"],
        high_factor=scaling["high_freq_factor"],
        original_context=scaling["original_max_position_embeddings"],
    )


def _llama_sizes(config: dict[str, Any]) -> dict[str, Any]:
    what = "model config"
    expect(config, what, hidden_act="silu", attention_bias=False, mlp_bias=False)
    require(config, what, "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    heads = config["num_attention_heads"]
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads", heads),
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
    }


def _stream_ids(config: dict[str, Any], codebook_size: int) -> None:
    expect(
        config,
        "model config",
        audio_stream_bos_id=codebook_size,
        audio_stream_eos_id=codebook_size + 1,
    )


def _model_from_transformers(config: dict[str, Any]) -> ModelConfig:
    require(config, "model config", "codebook_size", "num_codebooks", "rope_parameters")
    codebook_size = config["codebook_size"] - 2  # this schema counts the stream ids
    _stream_ids(config, codebook_size)
    rope = config["rope_parameters"]
    return ModelConfig(
        **_llama_sizes(config),
        rope=_rope(rope, rope["rope_theta"]),
        num_codebooks=config["num_codebooks"],
        codebook_size=codebook_size,
    )


def _model_from_original(config: dict[str, Any]) -> ModelConfig:
    what = "model config (original)"
    require(config, what, "text_config", "audio_num_codebooks", "audio_dual_ffn_layers")
    expect(config, what, encode_whisper_embed=False, encode_audio_in_tokens=True)
    expect(config, what, use_delay_pattern=True, skip_audio_tower=True, audio_embed_avg=False)
    expect(config, what, use_audio_out_embed_projector=False, use_audio_out_self_attention=False)
    expect(config, what, use_rq_transformer=False, audio_decoder_proj_num_layers=0)
    text = config["text_config"]
    num_layers = text["num_hidden_layers"]
    adapter = config.get("audio_adapter_type")
    if adapter not in ("dual_ffn", "dual_ffn_fast_forward"):
        raise ConfigError(f"{what}: audio_adapter_type is {adapter!r}: only dual FFN is run")
    if list(config["audio_dual_ffn_layers"]) != list(range(num_layers)):
        raise ConfigError(f"{what}: audio_dual_ffn_layers must list all {num_layers} layers")
    codebook_size = config["audio_codebook_size"]
    _stream_ids(config, codebook_size)
    return ModelConfig(
        **_llama_sizes(text),
        rope=_rope(text["rope_scaling"], text["rope_theta"]),
        num_codebooks=config["audio_num_codebooks"],
        codebook_size=codebook_size,
    )


@dataclass(frozen=True)
class SamplingConfig:
    """How one column of codes, or one text token, is chosen.

    `temperature=0` is greedy. `top_k=None` and `top_p=1` keep everything. Repetition-aware sampling redraws a code
    that stands `ras_max_repeats` times in the last `ras_window` columns of its codebook; `ras_window=None` is off.

    `seed` makes a request repeatable: each draw is a function of (seed, step, codebook) alone, so that nothing else in
    a batch, and no earlier draw, can change it. With `parity` the draws come from one `torch.Generator`, and the text
    head may choose audio placeholders, both as in the original.
    """

    temperature: float = 0.7
    top_k: int | None = 50
    top_p: float = 0.95
    ras_window: int | None = 7
    ras_max_repeats: int = 2
    seed: int = 0
    parity: bool = False

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be >= 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, or None for no limit, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.ras_window is not None and self.ras_window < 1:
            raise ValueError(
                f"ras_window must be at least 1, or None for off, got {self.ras_window}"
            )
        if self.ras_max_repeats < 1:
            raise ValueError(f"ras_max_repeats must be at least 1, got {self.ras_max_repeats}")
