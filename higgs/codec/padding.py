"""Clips of any length in few shapes: padded with zeros, and encoded as if each were alone.

A convolution library prepares code for each shape it meets, which for a clip of a second or two costs as much as the
convolutions themselves, and no two clips of a corpus are equally long. So a clip is padded to one of eight lengths per
octave (`room`), and how many clips go through the network together depends on that length and the device alone. What a
clip becomes then depends on nothing but the clip: the same shapes, the same kernels, the same sums.

A clip that is alone has zeros beyond its ends, before every layer. A padded one has there what the layers before left,
biases at least. So the padding is set to zero again before every convolution that looks sideways. `lengths` [B] counts
the valid steps of each row at the present rate; None stands for "all of them".
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

Steps = TypeVar("Steps", int, Tensor)


def room(steps: int) -> int:
    """`steps`, rounded up to one of eight lengths per octave: at most an eighth more, a sixteenth on average."""
    step = 1 << max(0, steps.bit_length() - 4)
    return -(-steps // step) * step


def in_batches(
    run: Callable[[Tensor, Tensor], Tensor],
    items: Sequence[Tensor],
    sizes: Sequence[int],
    rows: Callable[[int], int],
) -> list[Tensor]:
    """`run(padded [count, ..., size], lengths [count])` on items of one size together -> each item's row of the result.

    `count` is always `rows(size)`: where there are fewer items, the last fills the batch.
    """
    results = [torch.empty(0)] * len(items)
    for size in sorted(set(sizes)):
        same = [index for index, other in enumerate(sizes) if other == size]
        count = rows(size)
        for start in range(0, len(same), count):
            chosen = same[start : start + count]
            found = run(*stack([items[index] for index in chosen], size, count))
            for index, row in zip(chosen, found, strict=False):
                results[index] = row
    return results


def stack(items: Sequence[Tensor], size: int, count: int) -> tuple[Tensor, Tensor]:
    """[..., T_i] -> ([count, ..., size], lengths [count]): zeros behind each, the last one again in rows left over."""
    filled = [*items, *[items[-1]] * (count - len(items))]
    padded = items[0].new_zeros(count, *items[0].shape[:-1], size)
    for index, item in enumerate(filled):
        padded[index, ..., : item.shape[-1]] = item
    return padded, torch.tensor([item.shape[-1] for item in filled], device=padded.device)


class Window(NamedTuple):
    """A part of a clip: the frames to look at, and of the result `frames` after the first `skip`."""

    heard: slice
    skip: int
    frames: int


def windows(length: int, own: int, reach: int) -> Iterator[Window]:
    """Parts of `own` frames each, in order, that hear `reach` frames to each side as far as there are any."""
    for start in range(0, length, own):
        end, first = min(start + own, length), max(0, start - reach)
        yield Window(slice(first, min(end + reach, length)), start - first, end - start)


def inside(x: Tensor, lengths: Tensor) -> Tensor:
    """[B, D, T], [B] -> [B, 1, T] bool: which steps belong to the clip."""
    return torch.arange(x.shape[-1], device=x.device) < lengths[:, None, None]


def trim(x: Tensor, lengths: Tensor | None) -> Tensor:
    """[B, D, T] -> the same, zero beyond each clip's end."""
    return x if lengths is None else x * inside(x, lengths).to(x.dtype)


def conv_steps(steps: Steps, conv: nn.Conv1d) -> Steps:
    """Steps that come out of a convolution for those that go in."""
    reach = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1
    return (steps + 2 * conv.padding[0] - reach) // conv.stride[0] + 1


def group_norm(x: Tensor, norm: nn.GroupNorm, lengths: Tensor | None) -> Tensor:
    """[B, D, T] -> the same: one group for each channel, its mean and variance over the valid steps."""
    if lengths is None:
        return norm(x)
    normed = torch.zeros_like(x)
    for index, steps in enumerate(lengths.tolist()):
        normed[index, :, :steps] = norm(x[index : index + 1, :, :steps])[0]
    return normed
