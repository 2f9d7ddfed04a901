"""Checkpoints of the codec: tensor names of both layouts <-> this package's names."""

import re
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from higgs.checkpoint.config_json import ORIGINAL, TRANSFORMERS, codec_from_json
from higgs.checkpoint.tensors import CheckpointError, compare, layout_of, read_config, read_headers, read_tensors
from higgs.config import CodecConfig

# Only used in training: the semantic decoder and its projection, and the codebooks' EMA statistics.
TRAINING_ONLY = re.compile(
    r"(decoder_semantic|fc1|fc_post1)\..*|.*codebook\.(cluster_size|embed_avg)|semantic_model\.masked_spec_embed"
)
# Names of modules: ours, in the layout of the reference (boson-ai/higgs-audio), in that of transformers.
# b: block, u: residual unit, p: its part, k: codebook, s: number of strides; b1 is b + 1, and so on.
PARTS = ("snake1", "conv1", "snake2", "conv2")
MODULES = (
    ("fuse", "fc_prior", "fc"),
    ("to_acoustic", "fc_post2", "fc2"),
    ("quantizer.layers.{k}", "quantizer.vq.layers.{k}._codebook", "quantizer.quantizers.{k}.codebook"),
    ("quantizer.layers.{k}.project_in", "quantizer.vq.layers.{k}.project_in", "quantizer.quantizers.{k}.project_in"),
    ("quantizer.layers.{k}.project_out", "quantizer.vq.layers.{k}.project_out", "quantizer.quantizers.{k}.project_out"),
    ("semantic_encoder.teacher", "semantic_model", "semantic_model"),
    ("semantic_encoder.conv", "encoder_semantic.conv.conv", "encoder_semantic.conv"),
    ("semantic_encoder.blocks.{b}.conv", "encoder_semantic.conv_blocks.{b}.conv.conv",
     "encoder_semantic.conv_blocks.{b}.conv"),
    ("semantic_encoder.blocks.{b}.units.{u}.conv1", "encoder_semantic.conv_blocks.{b}.res_units.{u}.conv1.conv",
     "encoder_semantic.conv_blocks.{b}.res_units.{u}.conv1"),
    ("semantic_encoder.blocks.{b}.units.{u}.conv2", "encoder_semantic.conv_blocks.{b}.res_units.{u}.conv2",
     "encoder_semantic.conv_blocks.{b}.res_units.{u}.conv2"),
    ("acoustic_encoder.conv_in", "encoder.block.0", "acoustic_encoder.conv1"),
    ("acoustic_encoder.snake", "encoder.block.{s1}", "acoustic_encoder.snake1"),
    ("acoustic_encoder.conv_out", "encoder.block.{s2}", "acoustic_encoder.conv2"),
    ("acoustic_encoder.blocks.{b}.snake", "encoder.block.{b1}.block.3", "acoustic_encoder.block.{b}.snake1"),
    ("acoustic_encoder.blocks.{b}.down", "encoder.block.{b1}.block.4", "acoustic_encoder.block.{b}.conv1"),
    ("acoustic_encoder.blocks.{b}.units.{u}.{part}", "encoder.block.{b1}.block.{u}.block.{p}",
     "acoustic_encoder.block.{b}.res_unit{u1}.{part}"),
    ("acoustic_decoder.conv_in", "decoder_2.model.0", "acoustic_decoder.conv1"),
    ("acoustic_decoder.snake", "decoder_2.model.{s1}", "acoustic_decoder.snake1"),
    ("acoustic_decoder.conv_out", "decoder_2.model.{s2}", "acoustic_decoder.conv2"),
    ("acoustic_decoder.blocks.{b}.snake", "decoder_2.model.{b1}.block.0", "acoustic_decoder.block.{b}.snake1"),
    ("acoustic_decoder.blocks.{b}.up", "decoder_2.model.{b1}.block.1", "acoustic_decoder.block.{b}.conv_t1"),
    ("acoustic_decoder.blocks.{b}.units.{u}.{part}", "decoder_2.model.{b1}.block.{u2}.block.{p}",
     "acoustic_decoder.block.{b}.res_unit{u1}.{part}"),
)  # fmt: skip


def modules(layout: str, strides: int, codebooks: int) -> dict[str, str]:
    """Our name of every module -> its name in the layout."""
    theirs = 1 if layout == ORIGINAL else 2
    names = {}
    ends = {"s1": strides + 1, "s2": strides + 2}
    for b, u, p in product(range(max(strides, 2, codebooks)), range(3), range(4)):
        fields = ends | {"b": b, "b1": b + 1, "k": b, "u": u, "u1": u + 1, "u2": u + 2, "p": p, "part": PARTS[p]}
        names |= {module[0].format(**fields): module[theirs].format(**fields) for module in MODULES}
    return names


def rename(key: str, names: Mapping[str, str]) -> str:
    """Replaces the longest prefix of a dotted name that is in `names`; a name without one stays as it is."""
    parts = key.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        if prefix := names.get(".".join(parts[:cut])):
            return ".".join([prefix, *parts[cut:]])
    return key


def _count(pattern: str, names: Iterable[str]) -> int:
    """1 + the largest number that `pattern` matches in a name."""
    return 1 + max((int(m[1]) for name in names if (m := re.match(pattern, name))), default=-1)


def sizes(names: Iterable[str]) -> tuple[int, int]:
    """The number of strides and of codebooks, from this package's tensor names."""
    names = list(names)
    return _count(r"acoustic_encoder\.blocks\.(\d+)\.", names), _count(r"quantizer\.layers\.(\d+)\.", names)


def fold_weight_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`x.weight_g`, `x.weight_v` -> `x.weight` = g v / |v|, the norm over all dims but the first."""
    folded = {key: t for key, t in tensors.items() if not key.endswith(("weight_g", "weight_v"))}
    for key in (key for key in tensors if key.endswith(("weight_g", "weight_v"))):
        name = key[:-2]
        if missing := {f"{name}_g", f"{name}_v"} - tensors.keys():
            raise CheckpointError(f"{key} is there, {missing.pop()} is missing: they are one weight")
        if name not in folded:
            g, v = tensors[f"{name}_g"].float(), tensors[f"{name}_v"].float()
            if g.shape != (len(v), *[1] * (v.dim() - 1)):
                raise CheckpointError(f"{name}_g is {list(g.shape)} beside {name}_v {list(v.shape)}")
            norm = v.flatten(1).norm(dim=1).view_as(g)
            folded[name] = v * (g / norm)
    return folded


def convert(tensors: dict[str, Tensor], num_strides: int) -> tuple[dict[str, Tensor], list[str]]:
    """A checkpoint's tensors, or headers -> (by our names, names of the training-only ones that are left out)."""
    inited = {key for key in tensors if key.endswith("codebook.inited")}
    for key in inited:
        if not tensors[key].is_meta and not bool(tensors[key].bool().all()):
            raise CheckpointError(f"{key} is 0: this codebook was never trained")
    left_out = sorted(key for key in tensors if TRAINING_ONLY.fullmatch(key))
    used = {key: tensor for key, tensor in tensors.items() if key not in inited.union(left_out)}
    codebooks = _count(r"quantizer\.(?:vq\.layers|quantizers)\.(\d+)\.", used)
    names = modules(layout_of(tensors), num_strides, codebooks)
    ours = {theirs: name for name, theirs in names.items()}
    return {rename(key, ours): tensor for key, tensor in fold_weight_norm(used).items()}, left_out


def to_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    names = modules(TRANSFORMERS, *sizes(tensors))
    renamed = {rename(key, names): tensor.contiguous() for key, tensor in tensors.items()}
    flags = [key for key in renamed if key.endswith("codebook.embed")]
    return renamed | {key.replace("embed", "inited"): torch.ones(1) for key in flags}


def load_config(folder: Path) -> CodecConfig:
    """The sizes of a checkpoint; the reference's config leaves the widths to the tensors."""
    shapes = {name: tuple(tensor.shape) for name, tensor in read_headers(folder).items()}
    return codec_from_json(read_config(folder), shapes)


def differences(folder: Path, expected: Mapping[str, Tensor]) -> list[str]:
    """Lines that say where a checkpoint's headers differ from the tensors that its config asks for (meta device)."""
    headers = read_headers(folder)
    layout, (strides, codebooks) = layout_of(headers), sizes(expected)
    found, _ = convert(headers, strides)
    names = modules(layout, strides, max(codebooks, sizes(found)[1]))

    def their_name(name: str) -> str:
        normed = layout == ORIGINAL and re.fullmatch(r"acoustic_.*\.weight", name)
        return rename(name, names) + ("_v" if normed else "")

    return compare(expected, found, their_name)


def load_weights(folder: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """-> the tensors by our names, in float32. CheckpointError, before any is read, names those that do not fit."""
    if found := differences(folder, expected):
        raise CheckpointError(f"{folder}: " + "; ".join(found))
    ours, _ = convert(read_tensors(folder), sizes(expected)[0])
    return {name: tensor.float() for name, tensor in ours.items()}
