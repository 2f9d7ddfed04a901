"""The acoustic branch: convolutions from waveform to latent and back, after the Descript Audio Codec.

Differences from stock DAC (https://github.com/descriptinc/descript-audio-codec): the decoder uses the strides in the
encoder's order, its transposed convolutions have output padding for odd strides, and no tanh ends it.
"""

import math

import torch
from torch import Tensor, nn


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """[B, D, T], [1, D, 1] -> [B, D, T]: x + sin^2(alpha x) / alpha (Ziyin et al. 2020)."""
    return x + (alpha + 1e-9).reciprocal() * torch.sin(alpha * x).pow(2)


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

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.snake2(self.conv1(self.snake1(x))))


def residual_units(channels: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualUnit(channels, dilation) for dilation in (1, 3, 9)))


class EncoderBlock(nn.Module):
    """[B, D, T] -> [B, 2 D, T / stride]"""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.units = residual_units(channels)
        self.snake = Snake(channels)
        self.down = nn.Conv1d(
            channels, 2 * channels, 2 * stride, stride, padding=math.ceil(stride / 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.snake(self.units(x)))


class DecoderBlock(nn.Module):
    """[B, D, T] -> [B, D / 2, T * stride]"""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.snake = Snake(channels)
        self.up = nn.ConvTranspose1d(
            channels,
            channels // 2,
            2 * stride,
            stride,
            padding=math.ceil(stride / 2),
            output_padding=stride % 2,
        )
        self.units = residual_units(channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.units(self.up(self.snake(x)))


class AcousticEncoder(nn.Module):
    """[B, 1, L] -> [B, D, L / hop_length]"""

    def __init__(self, width: int, latent: int, strides: tuple[int, ...]):
        super().__init__()
        self.conv_in = nn.Conv1d(1, width, 7, padding=3)
        self.blocks = nn.Sequential(*(EncoderBlock(width << i, s) for i, s in enumerate(strides)))
        self.snake = Snake(width << len(strides))
        self.conv_out = nn.Conv1d(width << len(strides), latent, 3, padding=1)

    def forward(self, waveform: Tensor) -> Tensor:
        return self.conv_out(self.snake(self.blocks(self.conv_in(waveform))))


class AcousticDecoder(nn.Module):
    """[B, D, T] -> [B, 1, T * hop_length]; one frame reaches 10 frames to each side."""

    def __init__(self, latent: int, width: int, strides: tuple[int, ...]):
        super().__init__()
        self.conv_in = nn.Conv1d(latent, width, 7, padding=3)
        self.blocks = nn.Sequential(*(DecoderBlock(width >> i, s) for i, s in enumerate(strides)))
        self.snake = Snake(width >> len(strides))
        self.conv_out = nn.Conv1d(width >> len(strides), 1, 7, padding=3)

    def forward(self, z: Tensor) -> Tensor:
        return self.conv_out(self.snake(self.blocks(self.conv_in(z))))
