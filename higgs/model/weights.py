"""Checkpoints of the generation model: tensor names of both layouts <-> this package's names."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from higgs.checkpoint.config_json import ORIGINAL, TRANSFORMERS
from higgs.checkpoint.tensors import CheckpointError, compare, layout_of, read_headers, read_tensors
from higgs.model.matrices import MatrixLinear, Offloaded, QuantizedEmbedding, quantize

# Ours -> theirs, alike in both layouts.
LAYER = {
    "attention.": "self_attn.",
    "audio_norm.": "audio_input_layernorm.",
    "text_norm.": "input_layernorm.",
    "audio_ffn.0.": "audio_post_attention_layernorm.",
    "text_ffn.0.": "post_attention_layernorm.",
    "audio_ffn.1.": "audio_mlp.",
    "text_ffn.1.": "mlp.",
}
# Ours, in the layout of the reference, in that of transformers.
TOP = (
    ("text_embedding.", "embed_tokens.", "model.embed_tokens."),
    ("audio_embedding.", "audio_codebook_embeddings.", "model.embed_audio_tokens.embed_audio_tokens."),
    ("text_head.", "audio_decoder_proj.text_lm_head.", "text_lm_head."),
    ("audio_head.", "audio_decoder_proj.audio_lm_head.", "audio_lm_head."),
    ("norm.", "norm.", "model.norm."),
    ("layers.", "layers.", "model.layers."),
)
TEXT_HEAD = "text_head.weight"  # transformers stores a model without it unless told otherwise
# What a decode step never reads, and an offloaded model leaves in the file: modules, by our names.
TEXT_HALF = re.compile(r"text_embedding|text_head|layers\.\d+\.text_ffn")
_NOT_WEIGHTS = re.compile(r".*rotary_emb\.\w*inv_freq|audio_codebook_weights")
_REFUSED = ("audio_tower.", "audio_encoder_proj.", "audio_out_embed_projector.")


def _replace_start(name: str, pairs: Mapping[str, str]) -> str:
    for start, replacement in pairs.items():
        if name.startswith(start):
            return replacement + name.removeprefix(start)
    return name


def their_name(name: str, layout: str) -> str:
    """This package's name -> the layout's; another name stays as it is."""
    if match := re.match(r"layers\.(\d+)\.(.*)", name):
        name = f"layers.{match[1]}.{_replace_start(match[2], LAYER)}"
    return _replace_start(name, {ours: theirs[layout == TRANSFORMERS] for ours, *theirs in TOP})


def our_name(key: str) -> str:
    """A key of either layout -> ours. Raises CheckpointError for modules that this package does not implement."""
    if key.startswith(_REFUSED) or ".audio_attn." in key:
        raise CheckpointError(f"{key}: the release has no such part, and this package does not implement it")
    # A converted file may mix names of both layouts.
    name = _replace_start(key, {theirs: ours for ours, *both in TOP for theirs in both})
    if match := re.match(r"layers\.(\d+)\.(.*)", name):
        name = f"layers.{match[1]}.{_replace_start(match[2], {theirs: ours for ours, theirs in LAYER.items()})}"
    return name


def join_split(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`x.embedding_frozen` + `x.embedding_trainable` (or `linear_...`) of partly frozen embeddings -> `x`."""
    joined = dict(tensors)
    for key in tensors:
        match = re.fullmatch(r"(.*)\.(embedding|linear)_(frozen|trainable)\.weight", key)
        if match is None:
            continue
        halves = [f"{match[1]}.{match[2]}_{half}.weight" for half in ("frozen", "trainable")]
        if missing := [half for half in halves if half not in tensors]:
            raise CheckpointError(f"{key} is there, {missing[0]} is missing: they are one matrix")
        frozen, trainable = (tensors[half] for half in halves)
        if frozen.shape[1:] != trainable.shape[1:]:
            shapes = f"{list(frozen.shape)}, {halves[1]} is {list(trainable.shape)}"
            raise CheckpointError(f"{halves[0]} is {shapes}: they do not fit together")
        del joined[key]
        if match[3] == "frozen":
            joined[f"{match[1]}.weight"] = torch.cat([frozen, trainable])
    return joined


def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors, or headers -> by our names. CheckpointError for one with two names and values."""
    ours: dict[str, Tensor] = {}
    for key, tensor in join_split(tensors).items():
        if _NOT_WEIGHTS.fullmatch(key):
            continue
        name = our_name(key)
        if (first := ours.get(name)) is not None:
            if first.shape != tensor.shape or not (tensor.is_meta or torch.equal(first, tensor)):
                names = " and ".join(their_name(name, layout) for layout in (ORIGINAL, TRANSFORMERS))
                raise CheckpointError(f"{names} are one tensor under two names, and differ")
        ours[name] = tensor
    return ours


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {their_name(key, TRANSFORMERS): t.contiguous() for key, t in tensors.items()}


def differences(folder: Path, expected: Mapping[str, Tensor]) -> list[str]:
    """Lines that say where a checkpoint's headers differ from the tensors that its config asks for (meta device).

    The text head may be missing.
    """
    headers = read_headers(folder)
    found = convert(headers)
    expected = {name: tensor for name, tensor in expected.items() if name != TEXT_HEAD or name in found}
    return compare(expected, found, lambda name: their_name(name, layout_of(headers)))


def load_weights(folder: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """-> the stored tensors by our names. CheckpointError, before any is read, names those that do not fit."""
    if found := differences(folder, expected):
        raise CheckpointError(f"{folder}: " + "; ".join(found))
    return convert(read_tensors(folder))


def is_rounded(name: str, dim: int) -> bool:
    """Whether int8 and int4 round this tensor: all matrices but those of the codes, which choose the sound."""
    return dim > 1 and not name.startswith("audio_")


def place(
    model: nn.Module,
    tensors: dict[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
    bits: int | None,
    offload_text: bool,
) -> None:
    """Stored tensors take their places in a model on the meta device, one by one, on `device` and in their form.

    `bits` as `is_rounded`; `offload_text` leaves the text half in the mapped file. Empties
    `tensors`.
    """
    for name in list(tensors):
        path, _, attribute = name.rpartition(".")
        module, tensor = model.get_submodule(path), tensors.pop(name)
        offloaded = offload_text and TEXT_HALF.match(path)
        tensor = tensor if offloaded else tensor.to(device).to(dtype)
        if offloaded or bits is None or not is_rounded(name, tensor.dim()):
            setattr(module, attribute, nn.Parameter(tensor, requires_grad=False))
        elif isinstance(module, nn.Embedding):
            model.set_submodule(path, QuantizedEmbedding(quantize(tensor, bits), dtype))
        else:
            model.set_submodule(path, MatrixLinear(quantize(tensor, bits), (len(tensor),)))
    if offload_text:
        for path, module in list(model.named_modules()):
            if TEXT_HALF.fullmatch(path) and any(True for _ in module.parameters()):
                model.set_submodule(path, Offloaded(module, dtype))
