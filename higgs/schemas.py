"""The two schemas of a checkpoint's config.json, the original's and transformers', read into one set of sizes.

Whatever the released checkpoint does not use is refused here, with the key and its value: the Whisper tower, adapters
other than the dual FFN, self-attention and projection of the audio output, the RQ transformer.
"""

import math
from collections.abc import Mapping
from typing import Any

from higgs.config import CodecConfig, ConfigError, ModelConfig, RopeConfig, SemanticConfig

MODEL, CODEC = "model", "codec"
ORIGINAL, TRANSFORMERS = "original", "transformers"


def recognise(config: Mapping[str, Any], what: str = "config") -> tuple[str, str]:
    """The content of a config.json -> (MODEL or CODEC, ORIGINAL or TRANSFORMERS). Raises ConfigError for others."""
    known = {
        "higgs_audio": (MODEL, ORIGINAL),
        "higgs_audio_v2": (MODEL, TRANSFORMERS),
        "higgs_audio_v2_tokenizer": (CODEC, TRANSFORMERS),
    }
    if config.get("model_type") in known:
        return known[config["model_type"]]
    if {"ratios", "n_q"} <= config.keys():
        return CODEC, ORIGINAL
    raise ConfigError(
        f"{what}: not a Higgs Audio V2 config: expected model_type {' or '.join(known)}, or the keys ratios and n_q; "
        f"got model_type {config.get('model_type')!r} and the keys {sorted(config)[:8]}"
    )


def _layout(config: dict[str, Any], wanted: str) -> str:
    kind, layout = recognise(config)
    if kind != wanted:
        raise ConfigError(f"the config of a {wanted} is needed, and this is that of a {kind}")
    return layout


def read_codec_config(
    config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> CodecConfig:
    """See `CodecConfig.from_json`."""
    if _layout(config, CODEC) == TRANSFORMERS:
        return _codec_from_transformers(config)
    if shapes is None:
        raise ConfigError("the original codec config needs the shapes of its tensors")
    return _codec_from_original(config, shapes)


def read_model_config(config: dict[str, Any]) -> ModelConfig:
    """See `ModelConfig.from_json`."""
    if _layout(config, MODEL) == TRANSFORMERS:
        return _model_from_transformers(config)
    return _model_from_original(config)


def expect(config: dict[str, Any], what: str, **allowed: Any) -> None:
    """Every named key that is present must have the given value."""
    for key, value in allowed.items():
        if key in config and config[key] != value:
            raise ConfigError(f"{what}: {key} is {config[key]!r}, this package runs only {value!r}")


def require(config: Any, what: str, *keys: str) -> None:
    """A JSON object with all these keys, none of them null."""
    if not isinstance(config, dict):
        raise ConfigError(f"{what}: expected a JSON object, got {config!r}")
    missing = [key for key in keys if config.get(key) is None]
    if missing:
        raise ConfigError(f"{what}: the config lacks {', '.join(missing)}")


def _codec_from_transformers(config: dict[str, Any]) -> CodecConfig:
    what = "codec config (transformers)"
    require(config, what, "acoustic_model_config", "semantic_model_config", "codebook_dim")
    expect(config, what, channel_ratios=[1, 1], strides=[1, 1], block_dilations=[1, 1])
    expect(config, what, unit_kernel_size=3, kernel_size=3, downsample_factor=320)
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


def _codec_from_original(
    config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> CodecConfig:
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
            # No tensor shows the number of heads: HuBERT's have 64 channels; smaller teachers get 4.
            num_heads=hidden // 64 if hidden % 64 == 0 else 4,
            conv_dim=width("semantic_model.feature_projection.layer_norm.weight"),
            position_kernel=width(position, 2),
            position_groups=hidden // width(position, 1),
        ),
    )


def _rope(scaling: dict[str, Any], theta: float) -> RopeConfig:
    require(scaling, "rope", "factor", "low_freq_factor", "high_freq_factor")
    require(scaling, "rope", "original_max_position_embeddings")
    expect(scaling, "rope", rope_type="llama3")
    return RopeConfig(
        theta=theta,
        factor=scaling["factor"],
        low_factor=scaling["low_freq_factor"],
        high_factor=scaling["high_freq_factor"],
        original_context=scaling["original_max_position_embeddings"],
    )


def _llama_sizes(config: dict[str, Any]) -> dict[str, Any]:
    what = "model config"
    require(config, what, "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    require(config, what, "num_attention_heads")
    expect(config, what, hidden_act="silu", attention_bias=False, mlp_bias=False)
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
    require(rope, "model config: rope_parameters", "rope_theta")
    return ModelConfig(
        **_llama_sizes(config),
        rope=_rope(rope, rope["rope_theta"]),
        num_codebooks=config["num_codebooks"],
        codebook_size=codebook_size,
    )


# What the original takes where its config lacks the key: parts that this package does not run.
_ORIGINAL_DEFAULTS = {
    "audio_adapter_type": "stack",
    "encode_whisper_embed": True,
    "encode_audio_in_tokens": False,
    "use_delay_pattern": False,
    "skip_audio_tower": False,
}


def _model_from_original(config: dict[str, Any]) -> ModelConfig:
    what = "model config (original)"
    config = _ORIGINAL_DEFAULTS | config
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
    if dual != list(range(text["num_hidden_layers"])):
        raise ConfigError(
            f"{what}: audio_dual_ffn_layers is {dual}: only dual FFN in all {text['num_hidden_layers']} layers is run"
        )
    codebook_size = config["audio_codebook_size"]
    _stream_ids(config, codebook_size)
    return ModelConfig(
        **_llama_sizes(text),
        rope=_rope(text["rope_scaling"], text["rope_theta"]),
        num_codebooks=config["audio_num_codebooks"],
        codebook_size=codebook_size,
    )
