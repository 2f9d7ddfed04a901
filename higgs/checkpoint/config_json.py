"""config.json of a checkpoint <-> sizes, in the schema of the reference (boson-ai/higgs-audio), or of transformers.

The latter is written. Features that the release does not use raise ConfigError with the key and its value.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from higgs.config import CodecConfig, ConfigError, ModelConfig, RopeConfig, SemanticConfig

MODEL, CODEC = "model", "codec"
ORIGINAL, TRANSFORMERS = "original", "transformers"
Shapes = Mapping[str, tuple[int, ...]]

# This package's names of sizes -> the keys of transformers' schema, which the reference's Llama has too.
ACOUSTIC = {
    "encoder_width": "encoder_hidden_size", "decoder_width": "decoder_hidden_size", "acoustic_dim": "hidden_size",
}  # fmt: skip
HUBERT = {
    "hidden_size": "hidden_size", "intermediate_size": "intermediate_size", "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads", "conv_dim": "conv_dim", "position_kernel": "num_conv_pos_embeddings",
    "position_groups": "num_conv_pos_embedding_groups",
}  # fmt: skip
CODEC_SIZES = {key: key for key in ("sample_rate", "semantic_sample_rate", "codebook_size", "codebook_dim")}
LLAMA = {
    "vocab_size": "vocab_size", "hidden_size": "hidden_size", "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
}  # fmt: skip
ROPE = {
    "theta": "rope_theta", "factor": "factor", "low_factor": "low_freq_factor", "high_factor": "high_freq_factor",
    "original_context": "original_max_position_embeddings",
}  # fmt: skip

# Keys of transformers' schema that have one value in every config that this package runs.
FIXED_CODEC = {
    "channel_ratios": [1, 1], "strides": [1, 1], "block_dilations": [1, 1], "unit_kernel_size": 3, "kernel_size": 3,
}  # fmt: skip
FIXED_LLAMA = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
KINDS = {
    "higgs_audio": (MODEL, ORIGINAL), "higgs_audio_v2": (MODEL, TRANSFORMERS),
    "higgs_audio_v2_tokenizer": (CODEC, TRANSFORMERS),
}  # fmt: skip


def recognise(config: Mapping[str, Any], what: str = "config") -> tuple[str, str]:
    """The content of a config.json -> (MODEL or CODEC, ORIGINAL or TRANSFORMERS). Raises ConfigError for others."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in KINDS:
        return KINDS[model_type]
    if {"ratios", "n_q"} <= config.keys():
        return CODEC, ORIGINAL
    expected = f"expected model_type {' or '.join(KINDS)}, or the keys ratios and n_q"
    got = f"got model_type {model_type!r:.60} and the keys {sorted(config)[:8]}"
    raise ConfigError(f"{what}: not a Higgs Audio V2 config: {expected}; {got}")


def _layout(config: dict[str, Any], expected: str) -> str:
    kind, layout = recognise(config)
    if kind != expected:
        raise ConfigError(f"expected the config of a {expected}, got that of a {kind}")
    return layout


def codec_from_json(config: dict[str, Any], shapes: Shapes = MappingProxyType({})) -> CodecConfig:
    """Reads either schema. The reference's has no widths: they come from the tensors' `shapes`. Raises ConfigError."""
    if _layout(config, CODEC) == TRANSFORMERS:
        return _codec_from_transformers(config)
    return _codec_from_original(config, shapes)


def expect(config: dict[str, Any], what: str, **allowed: Any) -> None:
    """Raises ConfigError for a key that is present with another value."""
    for key, value in allowed.items():
        if key in config and config[key] != value:
            raise ConfigError(f"{what}: {key} is {config[key]!r}, this package runs only {value!r}")


def require(config: Any, what: str, *keys: str) -> None:
    """Raises ConfigError unless `config` is a JSON object with all these keys, none of them null."""
    if not isinstance(config, dict):
        raise ConfigError(f"{what}: expected a JSON object, got {config!r}")
    if missing := [key for key in keys if config.get(key) is None]:
        raise ConfigError(f"{what}: the config lacks {', '.join(missing)}")


def _read(config: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The sizes that a config has, by this package's names."""
    return {ours: config[key] for ours, key in names.items() if config.get(key) is not None}


def _write(config: Any, names: dict[str, str]) -> dict[str, Any]:
    return {key: getattr(config, ours) for ours, key in names.items()}


def _codec_from_transformers(config: dict[str, Any]) -> CodecConfig:
    what = "codec config (transformers)"
    require(config, what, "acoustic_model_config", "semantic_model_config", "codebook_dim")
    expect(config, what, **FIXED_CODEC, downsample_factor=320)
    acoustic, semantic = config["acoustic_model_config"], config["semantic_model_config"]
    require(acoustic, f"{what}: acoustic_model_config", "downsampling_ratios")
    require(semantic, f"{what}: semantic_model_config")
    strides = tuple(acoustic["downsampling_ratios"])
    expect(acoustic, what, upsampling_ratios=list(strides))
    expect(semantic, what, do_stable_layer_norm=False, feat_extract_norm="group", conv_bias=False)
    expect(semantic, what, conv_kernel=[10, 3, 3, 3, 3, 2, 2], conv_stride=[5, 2, 2, 2, 2, 2, 2])
    widths = set(semantic.get("conv_dim", [512]))
    if len(widths) != 1:
        raise ConfigError(f"{what}: conv_dim must be one width seven times, got {sorted(widths)}")
    sizes = CodecConfig(**_read(config, CODEC_SIZES), strides=strides)
    # The schema has no number of codebooks: it follows from the largest bandwidth.
    bandwidth = config.get("target_bandwidths", [2])[-1]
    bits = sizes.frame_rate * math.log2(sizes.codebook_size)
    hubert = SemanticConfig(**_read(semantic, HUBERT) | {"conv_dim": widths.pop()})
    num_codebooks = int(1000 * bandwidth / bits + 1e-6)  # both are rounded
    return replace(sizes, **_read(acoustic, ACOUSTIC), num_codebooks=num_codebooks, semantic=hubert)


def _codec_from_original(config: dict[str, Any], shapes: Shapes) -> CodecConfig:
    what = "codec config (original)"
    require(config, what, "D", "bins", "codebook_dim", "n_q", "ratios", "sample_rate")
    expect(config, what, semantic_techer="hubert_base_general", merge_mode="concat", vq_scale=1)
    expect(config, what, causal=False, normalize=False, downsample_mode="step_down")
    if not isinstance(config["bins"], int):
        raise ConfigError(f"{what}: bins is {config['bins']!r}: only RVQ (one integer) is run")

    def width(name: str, dim: int = 0) -> int:
        if len(shapes.get(name, ())) <= dim:
            raise ConfigError(f"{what}: the widths come from the tensors, and {name} is missing")
        return shapes[name][dim]

    encoder = "semantic_model.encoder"
    position = f"{encoder}.pos_conv_embed.conv.parametrizations.weight.original1"
    hidden = width(f"{encoder}.layer_norm.weight")
    return CodecConfig(
        sample_rate=config["sample_rate"],
        strides=tuple(config["ratios"]),
        encoder_width=width("encoder.block.0.bias"),
        decoder_width=width("decoder_2.model.0.bias"),
        acoustic_dim=config["D"],
        num_codebooks=config["n_q"],
        codebook_size=config["bins"],
        codebook_dim=config["codebook_dim"],
        semantic=SemanticConfig(
            hidden_size=hidden,
            intermediate_size=width(f"{encoder}.layers.0.feed_forward.intermediate_dense.bias"),
            num_layers=len({key.split(".")[3] for key in shapes if f"{encoder}.layers." in key}),
            # No tensor shows the number of heads: HuBERT's have 64 channels; smaller models get 4.
            num_heads=hidden // 64 if hidden % 64 == 0 else 4,
            conv_dim=width("semantic_model.feature_projection.layer_norm.weight"),
            position_kernel=width(position, 2),
            position_groups=hidden // width(position, 1),
        ),
    )


# The reference's defaults for absent keys, all of features that this package does not run.
REFERENCE_DEFAULTS = {
    "audio_adapter_type": "stack", "encode_whisper_embed": True, "encode_audio_in_tokens": False,
    "use_delay_pattern": False, "skip_audio_tower": False,
}  # fmt: skip


def _text_config(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The reference's schema -> its Llama and RoPE, once the other parts are known to be those of the release."""
    what = "model config (original)"
    config = REFERENCE_DEFAULTS | config
    adapter = config["audio_adapter_type"]
    if adapter not in ("dual_ffn", "dual_ffn_fast_forward"):
        raise ConfigError(f"{what}: audio_adapter_type is {adapter!r}: only dual FFN is run")
    expect(config, what, encode_whisper_embed=False, encode_audio_in_tokens=True)
    expect(config, what, use_delay_pattern=True, skip_audio_tower=True, audio_embed_avg=False)
    expect(config, what, use_audio_out_embed_projector=False, use_audio_out_self_attention=False)
    expect(config, what, use_rq_transformer=False, audio_decoder_proj_num_layers=0)
    require(config, what, "text_config", "audio_num_codebooks", "audio_codebook_size")
    text, dual = config["text_config"], config.get("audio_dual_ffn_layers")
    require(text, f"{what}: text_config", "num_hidden_layers", "rope_theta", "rope_scaling")
    layers = text["num_hidden_layers"]
    # Not list(range(layers)) before its length is compared: a config may ask for a billion.
    if not isinstance(dual, list) or len(dual) != layers or dual != list(range(len(dual))):
        raise ConfigError(f"{what}: audio_dual_ffn_layers is {dual}: only dual FFN in all {layers} layers is run")
    rope = text["rope_scaling"]
    require(rope, f"{what}: rope_scaling")
    return text, {**rope, "rope_type": rope.get("rope_type", rope.get("type")), "rope_theta": text["rope_theta"]}


def model_from_json(config: dict[str, Any]) -> ModelConfig:
    """Reads either schema. Raises ConfigError for others and for parts that the release does not use."""
    what = "model config"
    if _layout(config, MODEL) == ORIGINAL:
        llama, rope = _text_config(config)
        num_codebooks, codebook_size = config["audio_num_codebooks"], config["audio_codebook_size"]
    else:
        require(config, what, "codebook_size", "num_codebooks", "rope_parameters")
        llama, rope = config, config["rope_parameters"]
        num_codebooks, codebook_size = config["num_codebooks"], config["codebook_size"] - 2  # less the stream ids
    expect(config, what, audio_stream_bos_id=codebook_size, audio_stream_eos_id=codebook_size + 1)
    require(llama, what, *(key for key in LLAMA.values() if key not in ("num_key_value_heads", "head_dim")))
    expect(llama, what, **FIXED_LLAMA)
    require(rope, f"{what}: rope")
    expect({key: value for key, value in rope.items() if value is not None}, f"{what}: rope", rope_type="llama3")
    require(rope, f"{what}: rope", *ROPE.values())
    sizes = _read(llama, LLAMA)
    model = ModelConfig(
        **{"num_kv_heads": sizes["num_heads"]} | sizes,
        rms_norm_eps=llama.get("rms_norm_eps", ModelConfig.rms_norm_eps),
        rope=RopeConfig(**_read(rope, ROPE)),
        num_codebooks=num_codebooks,
        codebook_size=codebook_size,
    )
    return model if "head_dim" in sizes else replace(model, head_dim=model.hidden_size // model.num_heads)


def codec_to_json(config: CodecConfig) -> dict[str, Any]:
    """The transformers schema."""
    # Bandwidths in kbit/s; transformers derives the number of codebooks from the last.
    kbits = config.num_codebooks * math.log2(config.codebook_size) * config.frame_rate / 1000
    strides = list(config.strides)
    return {
        "architectures": ["HiggsAudioV2TokenizerModel"], "model_type": "higgs_audio_v2_tokenizer",
        "acoustic_model_config": {
            "model_type": "dac", **_write(config, ACOUSTIC), "downsampling_ratios": strides,
            "upsampling_ratios": strides, "hop_length": config.hop_length,
        },
        "semantic_model_config": {
            "model_type": "hubert", **_write(config.semantic, HUBERT), "conv_dim": [config.semantic.conv_dim] * 7,
            "mask_time_prob": 0.0,
        },
        **_write(config, CODEC_SIZES), "target_bandwidths": [kbits / 4, kbits / 2, 3 * kbits / 4, kbits], **FIXED_CODEC,
    }  # fmt: skip


def model_to_json(config: ModelConfig) -> dict[str, Any]:
    """The transformers schema, without the token ids (see `HiggsAudio.save_pretrained`)."""
    return {
        "architectures": ["HiggsAudioV2ForConditionalGeneration"], "model_type": "higgs_audio_v2",
        **_write(config, LLAMA), "max_position_embeddings": 131_072, "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_type": "llama3", **_write(config.rope, ROPE)},
        "num_codebooks": config.num_codebooks, "codebook_size": config.code_vocab_size,
        "audio_stream_bos_id": config.stream_bos, "audio_stream_eos_id": config.stream_eos,
        **FIXED_LLAMA, "tie_word_embeddings": False,
    }  # fmt: skip
