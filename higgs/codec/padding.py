"""Clips of any length in few shapes: zero-padded, yet encoded as if each were a batch of its own.

Preparing kernels for a new shape costs as much as convolving a short clip. So clips are padded to one of eight lengths
per octave (`bucket_length`), and the batch size depends on that length and the device only: a clip's result depends on
nothing but the clip. Layers leave biases in the padding: it is set to zero again before every convolution with a kernel
wider than 1. `lengths` [B] counts the valid steps of each clip at the present rate; None means that all are valid.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Lengths = TypeVar("Lengths", int, Tensor)


def bucket_length(length: int) -> int:
    """`length`, rounded up to one of eight lengths per octave: at most an eighth more, a sixteenth on average."""
    step = 1 << max(0, length.bit_length() - 4)
    return -(-length // step) * step


def run_in_batches(
    run: Callable[[Tensor, Tensor], Tensor], items: list[Tensor], sizes: list[int], batch_size: Callable[[int], int]
) -> list[Tensor]:
    """`run(padded [B, ..., size], lengths [B])` on batches of items with the same size -> the result for each item.

    B is always `batch_size(size)`: the last item is repeated where there are fewer.
    """
    results = [torch.empty(0)] * len(items)
    for size in sorted(set(sizes)):
        same_size = [index for index, other in enumerate(sizes) if other == size]
        count = batch_size(size)
        for start in range(0, len(same_size), count):
            indices = same_size[start : start + count]
            outputs = run(*pad_to_batch([items[index] for index in indices], size, count))
            for index, output in zip(indices, outputs, strict=False):
                results[index] = output
    return results


def pad_to_batch(items: Sequence[Tensor], size: int, count: int) -> tuple[Tensor, Tensor]:
    """[..., T_i] -> ([count, ..., size], lengths [count]): zero-padded, the last item repeated up to `count`."""
    items = [*items, *[items[-1]] * (count - len(items))]
    padded = items[0].new_zeros(count, *items[0].shape[:-1], size)
    for index, item in enumerate(items):
        padded[index, ..., : item.shape[-1]] = item
    return padded, torch.tensor([item.shape[-1] for item in items], device=padded.device)


def windows(length: int, frames: int, context: int) -> Iterator[tuple[slice, int, int]]:
    """Consecutive segments of `frames` frames -> (the segment with its context, frames to skip, frames to take)."""
    for start in range(0, length, frames):
        end, first = min(start + frames, length), max(0, start - context)
        yield slice(first, min(end + context, length)), start - first, end - start


def length_mask(x: Tensor, lengths: Tensor) -> Tensor:
    """[B, D, T], [B] -> [B, 1, T] bool: the valid steps."""
    return torch.arange(x.shape[-1], device=x.device) < lengths[:, None, None]


def mask_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """[B, D, T] -> the same, zero beyond each clip's end."""
    return x if lengths is None else x * length_mask(x, lengths).to(x.dtype)


def conv_lengths(lengths: Lengths, conv: nn.Conv1d) -> Lengths:
    """Input lengths -> output lengths of a convolution."""
    kernel = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1
    return (lengths + 2 * conv.padding[0] - kernel) // conv.stride[0] + 1


def group_norm(x: Tensor, norm: nn.GroupNorm, lengths: Tensor | None) -> Tensor:
    """[B, D, T] -> the same: one group for each channel, its mean and variance over the valid steps."""
    if lengths is None:
        return norm(x)
    normed = torch.zeros_like(x)
    for index, length in enumerate(lengths.tolist()):
        normed[index, :, :length] = norm(x[index : index + 1, :, :length])[0]
    return normed
