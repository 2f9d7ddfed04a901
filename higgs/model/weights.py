"""Checkpoints of the generation model, in both layouts, to this package's names. Their names go no further."""

import re

import torch
from torch import Tensor

_LAYER = {
    "self_attn.": "attention.",
    "audio_input_layernorm.": "audio_norm.",
    "input_layernorm.": "text_norm.",
    "audio_post_attention_layernorm.": "audio_ffn.0.",
    "post_attention_layernorm.": "text_ffn.0.",
    "audio_mlp.": "audio_ffn.1.",
    "mlp.": "text_ffn.1.",
}
_TOP = {
    "embed_tokens.": "text_embedding.",
    "audio_codebook_embeddings.": "audio_embedding.",
    "embed_audio_tokens.embed_audio_tokens.": "audio_embedding.",
    "audio_decoder_proj.text_lm_head.": "text_head.",
    "audio_decoder_proj.audio_lm_head.": "audio_head.",
    "text_lm_head.": "text_head.",
    "audio_lm_head.": "audio_head.",
    "norm.": "norm.",
}
_NOT_WEIGHTS = re.compile(r".*rotary_emb\.\w*inv_freq|audio_codebook_weights")
_REFUSED = ("audio_tower.", "audio_encoder_proj.", "audio_out_embed_projector.")


def our_name(key: str) -> str:
    """One key of either layout -> ours. Raises ValueError for parts that this package does not run."""
    if key.startswith(_REFUSED) or ".audio_attn." in key:
        raise ValueError(f"{key}: the release has no such part, and this package does not run it")
    name = key.removeprefix("model.")
    if match := re.match(r"layers\.(\d+)\.(.*)", name):
        for theirs, ours in _LAYER.items():
            if match[2].startswith(theirs):
                return f"layers.{match[1]}.{ours}{match[2].removeprefix(theirs)}"
    for theirs, ours in _TOP.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return key


def join_split(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`x.embedding_frozen` + `x.embedding_trainable` (or `linear_...`), written while tuning new rows -> `x`."""
    joined = {}
    for key, tensor in tensors.items():
        if "_trainable." in key:
            continue
        if match := re.fullmatch(r"(.*)\.(embedding|linear)_frozen\.weight", key):
            trained = tensors[f"{match[1]}.{match[2]}_trainable.weight"]
            joined[f"{match[1]}.weight"] = torch.cat([tensor, trained])
        else:
            joined[key] = tensor
    return joined


def convert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors -> ours. Head copies that a conversion left under both names must be equal."""
    ours: dict[str, Tensor] = {}
    for key, tensor in join_split(tensors).items():
        if _NOT_WEIGHTS.fullmatch(key):
            continue
        name = our_name(key)
        if name in ours and not torch.equal(ours[name], tensor):
            raise ValueError(f"{key}: two different tensors for {name}")
        ours[name] = tensor
    return ours


def to_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """This package's names -> those of transformers, the layout in which we write checkpoints."""
    layer = {ours: theirs for theirs, ours in _LAYER.items()}
    top = {
        "text_embedding.": "model.embed_tokens.",
        "audio_embedding.": "model.embed_audio_tokens.embed_audio_tokens.",
        "text_head.": "text_lm_head.",
        "audio_head.": "audio_lm_head.",
        "norm.": "model.norm.",
    }
    renamed = {}
    for key, tensor in tensors.items():
        if match := re.match(r"layers\.(\d+)\.(.*)", key):
            ours = next(part for part in layer if match[2].startswith(part))
            name = f"model.layers.{match[1]}.{layer[ours]}{match[2].removeprefix(ours)}"
        else:
            ours = next(part for part in top if key.startswith(part))
            name = top[ours] + key.removeprefix(ours)
        renamed[name] = tensor.contiguous()
    return renamed
