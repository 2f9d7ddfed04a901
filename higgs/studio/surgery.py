"""Codes that are changed by hand, to hear what each codebook carries; and codes as colours."""

from collections.abc import Sequence

import torch
from torch import Tensor

from higgs.codec.tokenizer import AudioTokenizer


def _copy(codes: Tensor, *codebooks: int) -> Tensor:
    """A copy. ValueError for a codebook that is not there."""
    if wrong := [book for book in codebooks if not 0 <= book < len(codes)]:
        raise ValueError(f"codebooks are 0 to {len(codes) - 1}, got {wrong}")
    return codes.clone()


def neutral_codes(tokenizer: AudioTokenizer) -> Tensor:
    """-> [K]: of each codebook the code that adds least to the sum which is decoded."""
    return torch.stack([vectors.norm(dim=1).argmin() for vectors in _vectors(tokenizer)])


def _vectors(tokenizer: AudioTokenizer) -> list[Tensor]:
    """What each code of each codebook adds: K times [N, D]."""
    every = torch.arange(tokenizer.codebook_size, device=tokenizer.device)
    with torch.inference_mode():
        return [layer.decode(every).cpu() for layer in tokenizer.quantizer.layers]


def mute(codes: Tensor, codebooks: Sequence[int], neutral: Tensor) -> Tensor:
    """[K, T], codebooks, [K] -> [K, T]: those codebooks say nothing, by their neutral code in every frame."""
    changed = _copy(codes, *codebooks)
    for book in codebooks:
        changed[book] = neutral[book]
    return changed


def swap(codes: Tensor, one: int, other: int) -> Tensor:
    """[K, T] -> [K, T]: two codebooks change places. Each code then means a vector of the other's."""
    changed = _copy(codes, one, other)
    changed[[one, other]] = codes[[other, one]]
    return changed


def shuffle(codes: Tensor, codebooks: Sequence[int], seed: int = 0) -> Tensor:
    """[K, T] -> [K, T]: the frames of those codebooks in another order, the same for all of them."""
    changed = _copy(codes, *codebooks)
    order = torch.randperm(codes.shape[1], generator=torch.Generator().manual_seed(seed))
    for book in codebooks:
        changed[book] = codes[book, order]
    return changed


def splice(codes: Tensor, other: Tensor, from_other: Sequence[int]) -> Tensor:
    """[K, T], [K, T'] -> [K, min(T, T')]: some codebooks of another utterance, the rest as they are."""
    length = min(codes.shape[1], other.shape[1])
    changed = _copy(codes[:, :length], *from_other)
    for book in from_other:
        changed[book] = other[book, :length]
    return changed


def code_colours(tokenizer: AudioTokenizer, codes: Tensor) -> Tensor:
    """[K, T] -> [K, T, 3] in 0 ... 1: similar vectors have similar colours.

    Red, green and blue are the first three principal components of what the codes of a codebook add, from two standard
    deviations below the mean to two above; the number of a code says nothing.
    """
    colours = []
    for vectors, used in zip(_vectors(tokenizer), codes.cpu(), strict=False):
        centred = vectors - vectors.mean(0)
        _, _, axes = torch.linalg.svd(centred, full_matrices=False)
        axes = axes[:3] * axes[:3].gather(1, axes[:3].abs().argmax(1, keepdim=True)).sign()  # one of two equal signs
        parts = centred @ axes.T
        colours.append((parts / parts.std(0) / 4 + 0.5).clamp(0, 1)[used])
    return torch.stack(colours)
