"""The delay pattern: codebook k is delayed by k frames, so that one step predicts K codes of K different frames.

T = 3 frames of K = 8 codebooks between stream bos (B) and stream eos (E); `apply_delay(add_stream_ids(codes))`:

    step    0 1  2  3  4  5  6  7  8  9 10 11
    k = 0   B a1 a2 a3 E  E  E  E  E  E  E  E
    k = 1   B B  b1 b2 b3 E  E  E  E  E  E  E
    k = 2   B B  B  c1 c2 c3 E  E  E  E  E  E
    ...
    k = 7   B B  B  B  B  B  B  B  h1 h2 h3 E
"""

import torch
from torch import Tensor

IGNORE = -100


def apply_delay(codes: Tensor, bos: int, eos: int) -> Tensor:
    """[..., K, T] -> [..., K, T + K - 1]: codebook k is k times `bos`, its codes, then `eos` to the end."""
    num_codebooks, length = codes.shape[-2:]
    delayed = codes.new_full((*codes.shape[:-1], length + num_codebooks - 1), eos)
    for k in range(num_codebooks):
        delayed[..., k, :k] = bos
        delayed[..., k, k : k + length] = codes[..., k, :]
    return delayed


def revert_delay(delayed: Tensor) -> Tensor:
    """[..., K, T + K - 1] -> [..., K, T], the inverse of `apply_delay`; fewer than K steps give T = 0."""
    num_codebooks, steps = delayed.shape[-2:]
    length = max(0, steps - num_codebooks + 1)
    if length == 0:
        return delayed[..., :0]
    return torch.stack([delayed[..., k, k : k + length] for k in range(num_codebooks)], dim=-2)


def add_stream_ids(codes: Tensor, bos: int, eos: int) -> Tensor:
    """[..., K, T] -> [..., K, T + 2]: a step of `bos` before the frames, one of `eos` after them."""
    edge = codes.new_full((*codes.shape[:-1], 1), bos)
    return torch.cat([edge, codes, torch.full_like(edge, eos)], dim=-1)


def delayed_segment(codes: Tensor, bos: int, eos: int) -> Tensor:
    """[K, T] -> [K, T + 2 + K - 1]: the model's input for a segment of T frames."""
    return apply_delay(add_stream_ids(codes, bos, eos), bos, eos)


def delayed_labels(codes: Tensor, eos: int) -> Tensor:
    """[K, T] -> [K, T + 2 + K - 1]: the targets of each codebook are its T codes and one `eos`."""
    return apply_delay(add_stream_ids(codes, IGNORE, eos), IGNORE, IGNORE)


def segment_frames(delayed: Tensor, codebook_size: int, finished: bool) -> Tensor:
    """[K, S] generated steps -> [K, T] codes, without the frame of bos and, if finished, that of eos."""
    frames = revert_delay(delayed)[..., 1 : -1 if finished else None]
    return frames.clamp(0, codebook_size - 1)  # stray stream ids become the last code, as in boson-ai/higgs-audio
