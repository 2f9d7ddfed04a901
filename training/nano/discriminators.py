"""Discriminators on complex spectrograms, and the losses against them.

Losses as in HiFi-GAN (arXiv:2010.05646): least squares and feature matching. Discriminators after EnCodec's
(arXiv:2210.13438), smaller.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

SIZES = (1536, 768, 384)  # of the spectrograms; hop a quarter
CHANNELS = 16
COMPRESSION = 0.4  # of magnitudes: soft parts count, too


class Discriminator(nn.Module):
    """Complex spectrogram of one size -> scores [B, 1, T, F], and the features of each layer."""

    def __init__(self, n_fft: int):
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        sizes = [(2, (3, 9), 1, 2), (CHANNELS, (3, 9), 1, 2), (CHANNELS, (3, 9), 2, 2), (CHANNELS, (3, 3), 1, 1)]
        self.layers = nn.ModuleList(
            weight_norm(
                nn.Conv2d(
                    width, CHANNELS, kernel, (1, stride), (kernel[0] // 2 * dilation, kernel[1] // 2), (dilation, 1)
                )
            )
            for width, kernel, dilation, stride in sizes
        )
        self.score = weight_norm(nn.Conv2d(CHANNELS, 1, 3, padding=1))

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B, L]"""
        spectrum = torch.stft(waveform, self.n_fft, self.n_fft // 4, window=self.window, return_complex=True)
        parts = torch.view_as_real(spectrum / self.n_fft**0.5)
        loudness = parts.square().sum(-1, keepdim=True) + 1e-7
        x, features = (parts * loudness ** ((COMPRESSION - 1) / 2)).permute(0, 3, 2, 1), []
        for layer in self.layers:
            x = nn.functional.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.score(x), features


class Discriminators(nn.ModuleList):
    def __init__(self) -> None:
        super().__init__(Discriminator(size) for size in SIZES)

    def losses(self, estimate: Tensor, waveform: Tensor) -> dict[str, Tensor]:
        """[B, L] twice -> `discriminators`, which reaches their weights alone, `adversarial` and `matching`, which
        reach the estimate alone: one backward pass serves both sides.
        """
        each = [self.losses_of(one, estimate, waveform) for one in self]
        return {name: torch.stack([losses[name] for losses in each]).mean() for name in each[0]}

    def losses_of(self, one: Discriminator, estimate: Tensor, waveform: Tensor) -> dict[str, Tensor]:
        frozen = {name: weight.detach() for name, weight in one.named_parameters()}
        real, wanted = one(waveform)
        fake, _ = one(estimate.detach())
        score, found = torch.func.functional_call(one, frozen, (estimate,))
        pairs = [(a.float(), b.float().detach()) for a, b in zip(found, wanted, strict=True)]
        return {
            "discriminators": (1 - real.float()).square().mean() + fake.float().square().mean(),
            "adversarial": (1 - score.float()).square().mean(),
            "matching": torch.stack([(a - b).abs().mean() / b.abs().mean() for a, b in pairs]).mean(),
        }
