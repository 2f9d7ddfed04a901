"""Checkpoints of the codec, in both layouts, to this package's names. Their names go no further than this file."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from higgs.checkpoint.config_json import ORIGINAL, TRANSFORMERS, codec_from_json
from higgs.checkpoint.folder import (
    CheckpointError,
    compare,
    layout_of,
    read_config,
    read_headers,
    read_tensors,
)
from higgs.config import CodecConfig

# Used by training alone: the semantic decoder and its projection, and the codebooks' running averages.
TRAINING_ONLY = re.compile(
    r"(decoder_semantic|fc1|fc_post1)\..*|.*codebook\.(cluster_size|embed_avg)|semantic_model\.masked_spec_embed"
)
UNIT = ("snake1", "conv1", "snake2", "conv2")


def _original_modules(strides: int, codebooks: int) -> Iterator[tuple[str, str]]:
    """(ours, theirs). The original numbers every layer of every Sequential."""
    for side, theirs, snake, conv, units in (
        ("acoustic_encoder", "encoder.block", (3, "snake"), (4, "down"), 0),
        ("acoustic_decoder", "decoder_2.model", (0, "snake"), (1, "up"), 2),
    ):
        yield f"{side}.conv_in", f"{theirs}.0"
        yield f"{side}.snake", f"{theirs}.{strides + 1}"
        yield f"{side}.conv_out", f"{theirs}.{strides + 2}"
        for b in range(strides):
            for place, name in (snake, conv):
                yield f"{side}.blocks.{b}.{name}", f"{theirs}.{b + 1}.block.{place}"
            for u in range(3):
                unit = f"{theirs}.{b + 1}.block.{u + units}"
                for j, part in enumerate(UNIT):
                    yield f"{side}.blocks.{b}.units.{u}.{part}", f"{unit}.block.{j}"
    yield "semantic_encoder.conv", "encoder_semantic.conv.conv"
    for b in range(2):
        block = f"encoder_semantic.conv_blocks.{b}"
        yield f"semantic_encoder.blocks.{b}.conv", f"{block}.conv.conv"
        for u in range(2):
            for part, theirs in (("conv1", "conv1.conv"), ("conv2", "conv2")):
                yield (
                    f"semantic_encoder.blocks.{b}.units.{u}.{part}",
                    f"{block}.res_units.{u}.{theirs}",
                )
    for k in range(codebooks):
        for part in ("project_in", "project_out"):
            yield f"quantizer.layers.{k}.{part}", f"quantizer.vq.layers.{k}.{part}"
        yield f"quantizer.layers.{k}", f"quantizer.vq.layers.{k}._codebook"
    yield from (("fuse", "fc_prior"), ("to_acoustic", "fc_post2"))


def _transformers_modules(strides: int, codebooks: int) -> Iterator[tuple[str, str]]:
    """(ours, theirs)"""
    for side, conv, name in (
        ("acoustic_encoder", "conv1", "down"),
        ("acoustic_decoder", "conv_t1", "up"),
    ):
        yield f"{side}.conv_in", f"{side}.conv1"
        yield f"{side}.snake", f"{side}.snake1"
        yield f"{side}.conv_out", f"{side}.conv2"
        for b in range(strides):
            yield f"{side}.blocks.{b}.snake", f"{side}.block.{b}.snake1"
            yield f"{side}.blocks.{b}.{name}", f"{side}.block.{b}.{conv}"
            for u in range(3):
                yield f"{side}.blocks.{b}.units.{u}", f"{side}.block.{b}.res_unit{u + 1}"
    yield "semantic_encoder.conv", "encoder_semantic.conv"
    for b in range(2):
        block = f"encoder_semantic.conv_blocks.{b}"
        yield f"semantic_encoder.blocks.{b}.conv", f"{block}.conv"
        yield f"semantic_encoder.blocks.{b}.units", f"{block}.res_units"
    for k in range(codebooks):
        for part in ("project_in", "project_out"):
            yield f"quantizer.layers.{k}.{part}", f"quantizer.quantizers.{k}.{part}"
        yield f"quantizer.layers.{k}", f"quantizer.quantizers.{k}.codebook"
    yield from (("fuse", "fc"), ("to_acoustic", "fc2"))


def modules(layout: str, strides: int, codebooks: int) -> dict[str, str]:
    """This package's name of every module -> what the layout calls it."""
    listed = _original_modules if layout == ORIGINAL else _transformers_modules
    return {"semantic_encoder.teacher": "semantic_model", **dict(listed(strides, codebooks))}


def rename(key: str, names: Mapping[str, str]) -> str:
    """Replaces the longest beginning of a dotted name that `names` holds; a name without one stays as it is."""
    parts = key.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        if found := names.get(".".join(parts[:cut])):
            return ".".join([found, *parts[cut:]])
    return key


def _count(pattern: str, names: Iterable[str]) -> int:
    """1 + the largest number that `pattern` matches in a name."""
    return 1 + max((int(m[1]) for name in names if (m := re.match(pattern, name))), default=-1)


def sizes(names: Iterable[str]) -> tuple[int, int]:
    """How many strides and codebooks this package's names tell of."""
    names = list(names)
    return (
        _count(r"acoustic_encoder\.blocks\.(\d+)\.", names),
        _count(r"quantizer\.layers\.(\d+)\.", names),
    )


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
    """A checkpoint's tensors -> (ours, names of the training-only ones left out). Headers are converted alike.

    Raises CheckpointError when a codebook was never initialised: its codes would mean nothing.
    """
    left_out = sorted(key for key in tensors if TRAINING_ONLY.fullmatch(key))
    kept = {key: tensor for key, tensor in tensors.items() if key not in set(left_out)}
    for key in [key for key in kept if key.endswith("codebook.inited")]:
        flag = kept.pop(key)
        if not flag.is_meta and not bool(flag.bool().all()):
            raise CheckpointError(f"{key} is 0: this codebook was never trained")
    codebooks = _count(r"quantizer\.(?:vq\.layers|quantizers)\.(\d+)\.", kept)
    names = modules(layout_of(tensors), num_strides, codebooks)
    ours = {theirs: name for name, theirs in names.items()}
    return {rename(key, ours): t for key, t in fold_weight_norm(kept).items()}, left_out


def to_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """This package's names -> those of transformers, the layout in which we write checkpoints."""
    strides, codebooks = sizes(tensors)
    names = modules(TRANSFORMERS, strides, codebooks)
    renamed = {rename(key, names): tensor.contiguous() for key, tensor in tensors.items()}
    flags = [key for key in renamed if key.endswith("codebook.embed")]
    return renamed | {key.replace("embed", "inited"): torch.ones(1) for key in flags}


def load_config(folder: Path) -> CodecConfig:
    """The sizes of a checkpoint; the original's config leaves the widths to the tensors."""
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
    """-> the tensors by this package's names, in float32. Nothing is read before all of them are known to fit.

    Raises CheckpointError that names the tensors which are missing, unexpected or misshapen.
    """
    if found := differences(folder, expected):
        raise CheckpointError(f"{folder}: " + "; ".join(found))
    ours, _ = convert(read_tensors(folder), sizes(expected)[0])
    return {name: tensor.float() for name, tensor in ours.items()}
