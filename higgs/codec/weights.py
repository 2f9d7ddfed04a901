"""Checkpoints of the codec, in both layouts, to this package's names. Their names go no further than this file."""

import re

import torch
from torch import Tensor

ORIGINAL, TRANSFORMERS = "original", "transformers"

# Used by training alone: the semantic decoder and its projection, and the codebooks' running averages.
TRAINING_ONLY = re.compile(
    r"(decoder_semantic|fc1|fc_post1)\..*|.*codebook\.(cluster_size|embed_avg)|semantic_model\.masked_spec_embed"
)


def layout_of(keys: set[str]) -> str:
    """Which of the two layouts a codec checkpoint has, by its keys; ValueError when it is neither."""
    if "fc_prior.weight" in keys:
        return ORIGINAL
    if "fc.weight" in keys:
        return TRANSFORMERS
    raise ValueError(f"not a Higgs Audio V2 tokenizer checkpoint: keys like {sorted(keys)[:4]}")


def fold_weight_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`x.weight_g`, `x.weight_v` -> `x.weight` = g v / |v|, the norm over all dims but the first."""
    folded = {key: t for key, t in tensors.items() if not key.endswith(("weight_g", "weight_v"))}
    for key, g in tensors.items():
        if key.endswith("weight_g"):
            v = tensors[key.removesuffix("g") + "v"]
            norm = v.flatten(1).norm(dim=1).view(-1, *[1] * (v.dim() - 1))
            folded[key.removesuffix("_g")] = v * (g / norm)
    return folded


def _acoustic_original(key: str, strides: int) -> str:
    """`encoder.block.*` and `decoder_2.model.*` number every layer of every Sequential."""
    first, last = 0, strides + 2
    for theirs, ours, conv, units_from in (
        ("encoder.block.", "acoustic_encoder.", ("snake", 3, "down", 4), 0),
        ("decoder_2.model.", "acoustic_decoder.", ("snake", 0, "up", 1), 2),
    ):
        if not key.startswith(theirs):
            continue
        head, _, rest = key.removeprefix(theirs).partition(".")
        index = int(head)
        if index == first:
            return f"{ours}conv_in.{rest}"
        if index == last:
            return f"{ours}conv_out.{rest}"
        if index == last - 1:
            return f"{ours}snake.{rest}"
        _, inner, *tail = rest.split(".")
        for name, at in ((conv[0], conv[1]), (conv[2], conv[3])):
            if int(inner) == at:
                return f"{ours}blocks.{index - 1}.{name}.{'.'.join(tail)}"
        part = ("snake1", "conv1", "snake2", "conv2")[int(tail[1])]
        unit = int(inner) - units_from
        return f"{ours}blocks.{index - 1}.units.{unit}.{part}.{'.'.join(tail[2:])}"
    return key


def _acoustic_transformers(key: str) -> str:
    key = re.sub(r"^(acoustic_\w+)\.conv1\.", r"\1.conv_in.", key)
    key = re.sub(r"^(acoustic_\w+)\.conv2\.", r"\1.conv_out.", key)
    key = re.sub(r"^(acoustic_\w+)\.snake1\.", r"\1.snake.", key)
    key = re.sub(r"^(acoustic_encoder)\.block\.(\d+)\.conv1\.", r"\1.blocks.\2.down.", key)
    key = re.sub(r"^(acoustic_decoder)\.block\.(\d+)\.conv_t1\.", r"\1.blocks.\2.up.", key)
    key = re.sub(r"^(acoustic_\w+)\.block\.(\d+)\.snake1\.", r"\1.blocks.\2.snake.", key)
    return re.sub(
        r"^(acoustic_\w+)\.block\.(\d+)\.res_unit(\d)\.",
        lambda m: f"{m[1]}.blocks.{m[2]}.units.{int(m[3]) - 1}.",
        key,
    )


def _semantic(key: str) -> str:
    key = re.sub(r"^semantic_model\.", "semantic_encoder.teacher.", key)
    key = re.sub(r"^encoder_semantic\.conv\.(conv\.)?", "semantic_encoder.conv.", key)
    key = re.sub(r"^encoder_semantic\.conv_blocks\.", "semantic_encoder.blocks.", key)
    key = key.replace(".res_units.", ".units.")
    if key.startswith("semantic_encoder.blocks."):
        key = key.replace(".conv1.conv.", ".conv1.").replace(".conv2.conv.", ".conv2.")
        key = key.replace(".conv.conv.", ".conv.")
    return key


def _quantizer(key: str) -> str:
    key = re.sub(r"^quantizer\.(vq\.layers|quantizers)\.", "quantizer.layers.", key)
    key = re.sub(r"\._?codebook\.", ".", key)
    key = re.sub(r"^(fc_prior|fc)\.", "fuse.", key)
    return re.sub(r"^(fc_post2|fc2)\.", "to_acoustic.", key)


def convert(tensors: dict[str, Tensor], num_strides: int) -> tuple[dict[str, Tensor], list[str]]:
    """A checkpoint's tensors -> (ours, names of the training-only ones left out).

    Raises ValueError when a codebook was never initialised: its codes would mean nothing.
    """
    layout = layout_of(set(tensors))
    left_out = sorted(key for key in tensors if TRAINING_ONLY.fullmatch(key))
    kept = {key: tensor for key, tensor in tensors.items() if key not in set(left_out)}
    for key in [key for key in kept if key.endswith("codebook.inited")]:
        if not bool(kept.pop(key).bool().all()):
            raise ValueError(f"{key} is 0: this codebook was never trained")
    ours = {}
    for key, tensor in fold_weight_norm(kept).items():
        name = (
            _acoustic_original(key, num_strides)
            if layout == ORIGINAL
            else _acoustic_transformers(key)
        )
        ours[_quantizer(_semantic(name))] = tensor.float()
    return ours, left_out


def to_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """This package's names -> those of transformers, the layout in which we write checkpoints."""
    renamed = {}
    for key, tensor in tensors.items():
        key = re.sub(r"^(acoustic_\w+)\.conv_in\.", r"\1.conv1.", key)
        key = re.sub(r"^(acoustic_\w+)\.conv_out\.", r"\1.conv2.", key)
        key = re.sub(r"^(acoustic_\w+)\.snake\.", r"\1.snake1.", key)
        key = re.sub(r"^(acoustic_\w+)\.blocks\.(\d+)\.down\.", r"\1.block.\2.conv1.", key)
        key = re.sub(r"^(acoustic_\w+)\.blocks\.(\d+)\.up\.", r"\1.block.\2.conv_t1.", key)
        key = re.sub(r"^(acoustic_\w+)\.blocks\.(\d+)\.snake\.", r"\1.block.\2.snake1.", key)
        key = re.sub(
            r"^(acoustic_\w+)\.blocks\.(\d+)\.units\.(\d)\.",
            lambda m: f"{m[1]}.block.{m[2]}.res_unit{int(m[3]) + 1}.",
            key,
        )
        key = re.sub(r"^semantic_encoder\.teacher\.", "semantic_model.", key)
        key = re.sub(r"^semantic_encoder\.conv\.", "encoder_semantic.conv.", key)
        key = re.sub(
            r"^semantic_encoder\.blocks\.(\d+)\.units\.",
            r"encoder_semantic.conv_blocks.\1.res_units.",
            key,
        )
        key = re.sub(r"^semantic_encoder\.blocks\.", "encoder_semantic.conv_blocks.", key)
        key = re.sub(
            r"^quantizer\.layers\.(\d+)\.embed$", r"quantizer.layers.\1.codebook.embed", key
        )
        key = re.sub(r"^quantizer\.layers\.", "quantizer.quantizers.", key)
        key = re.sub(r"^fuse\.", "fc.", key)
        renamed[re.sub(r"^to_acoustic\.", "fc2.", key)] = tensor.contiguous()
    for key in [key for key in renamed if key.endswith("codebook.embed")]:
        renamed[key.replace("embed", "inited")] = torch.ones(1)
    return renamed
