"""The acoustic branch: convolutions from waveform to latent and back, after the Descript Audio Codec.

Differences from DAC (https://github.com/descriptinc/descript-audio-codec): the decoder uses the strides in the
encoder's order, its transposed convolutions have output padding for odd strides, and there is no final tanh.
"""

import math

import torch
from torch import Tensor, nn

from higgs.codec.padding import Lengths, conv_lengths, mask_padding

DILATIONS = (1, 3, 9)


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """[B, D, T], [1, D, 1] -> [B, D, T]: x + sin^2(alpha x) / alpha (Ziyin et al. 2020)."""
    if torch.is_grad_enabled():
        return x + (alpha + 1e-9).reciprocal() * torch.sin(alpha * x).pow(2)
    # The same operations in place: half the time on a CPU, where this is a third of the codec.
    return (alpha * x).sin_().square_().mul_((alpha + 1e-9).reciprocal()).add_(x)


class Snake(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return snake(x, self.alpha)


class ResidualUnit(nn.Module):
    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.snake1 = Snake(channels)
        self.conv1 = nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation)
        self.snake2 = Snake(channels)
        self.conv2 = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return x + self.conv2(self.snake2(self.conv1(mask_padding(self.snake1(x), lengths))))


def residual_units(channels: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualUnit(channels, dilation) for dilation in DILATIONS))


class EncoderBlock(nn.Module):
    """[B, D, T] -> [B, 2 D, T / stride]"""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.units = residual_units(channels)
        self.snake = Snake(channels)
        self.down = nn.Conv1d(channels, 2 * channels, 2 * stride, stride, padding=math.ceil(stride / 2))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        for unit in self.units:
            x = unit(x, lengths)
        return self.down(mask_padding(self.snake(x), lengths))


class DecoderBlock(nn.Module):
    """[B, D, T] -> [B, D / 2, T * stride]"""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.snake = Snake(channels)
        self.up = nn.ConvTranspose1d(
            channels, channels // 2, 2 * stride, stride, padding=math.ceil(stride / 2), output_padding=stride % 2
        )
        self.units = residual_units(channels // 2)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = self.up(mask_padding(self.snake(x), lengths))
        for unit in self.units:
            x = unit(x, None if lengths is None else lengths * self.up.stride[0])
        return x


class AcousticEncoder(nn.Module):
    """[B, 1, L] -> [B, D, L / hop_length]"""

    def __init__(self, width: int, latent: int, strides: tuple[int, ...]):
        super().__init__()
        self.conv_in = nn.Conv1d(1, width, 7, padding=3)
        self.blocks = nn.Sequential(*(EncoderBlock(width << i, s) for i, s in enumerate(strides)))
        self.snake = Snake(width << len(strides))
        self.conv_out = nn.Conv1d(width << len(strides), latent, 3, padding=1)

    def frames(self, samples: Lengths) -> Lengths:
        """Number of output frames; below 1 where a convolution would have no input."""
        for block in self.blocks:
            samples = conv_lengths(samples, block.down)
        return samples

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = self.conv_in(waveform)
        for block in self.blocks:
            x = block(x, lengths)
            lengths = None if lengths is None else conv_lengths(lengths, block.down)
        return self.conv_out(mask_padding(self.snake(x), lengths))


class AcousticDecoder(nn.Module):
    """[B, D, T] -> [B, 1, T * hop_length]"""

    def __init__(self, latent: int, width: int, strides: tuple[int, ...]):
        super().__init__()
        self.conv_in = nn.Conv1d(latent, width, 7, padding=3)
        self.blocks = nn.Sequential(*(DecoderBlock(width >> i, s) for i, s in enumerate(strides)))
        self.snake = Snake(width >> len(strides))
        self.conv_out = nn.Conv1d(width >> len(strides), 1, 7, padding=3)

    @property
    def context_frames(self) -> int:
        """The receptive field of a sample, in frames to each side of its own: 10 with the release's strides."""
        hop = math.prod(block.up.stride[0] for block in self.blocks)
        first, last = -3, hop - 1 + 3
        for up in (block.up for block in reversed(self.blocks)):
            first, last = first - 3 * sum(DILATIONS), last + 3 * sum(DILATIONS)
            # Output j of a transposed convolution depends on the inputs i with 0 <= j + padding - i * stride < kernel.
            first = -((up.kernel_size[0] - 1 - first - up.padding[0]) // up.stride[0])
            last = (last + up.padding[0]) // up.stride[0]
        return max(3 - first, last + 3)

    def forward(self, z: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = self.conv_in(z)
        for block in self.blocks:
            x = block(x, lengths)
            lengths = None if lengths is None else lengths * block.up.stride[0]
        return self.conv_out(mask_padding(self.snake(x), lengths))
