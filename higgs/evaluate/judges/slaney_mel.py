"""The mel spectrogram that librosa computes, which the judges' networks were trained on."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# The Slaney scale: linear to 1 kHz, 200/3 Hz a mel, then 27 mels for each factor of 6.4.
LINEAR_HERTZ, BREAK_HERTZ = 200 / 3, 1000.0
BREAK_MEL, LOG_STEP = BREAK_HERTZ / LINEAR_HERTZ, np.log(6.4) / 27


def _to_mel(hertz: float) -> float:
    if hertz < BREAK_HERTZ:
        return hertz / LINEAR_HERTZ
    return BREAK_MEL + float(np.log(hertz / BREAK_HERTZ)) / LOG_STEP


def _to_hertz(mel: np.ndarray) -> np.ndarray:
    above = BREAK_HERTZ * np.exp(LOG_STEP * (mel - BREAK_MEL))
    return np.where(mel < BREAK_MEL, mel * LINEAR_HERTZ, above)


@lru_cache(maxsize=8)
def slaney_filters(n_fft: int, num_mels: int, sample_rate: int) -> Tensor:
    """-> [n_fft // 2 + 1, num_mels]: triangles of equal area from 0 to half the sample rate.

    Source: Slaney, "Auditory Toolbox", 1998; librosa's default.
    """
    bins = np.arange(n_fft // 2 + 1) * sample_rate / n_fft
    edges = _to_hertz(np.linspace(0.0, _to_mel(sample_rate / 2), num_mels + 2))
    rising = (bins[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - bins[:, None]) / np.diff(edges)[1:]
    triangles = np.minimum(rising, falling).clip(min=0) * 2 / (edges[2:] - edges[:-2])
    return torch.from_numpy(triangles.astype(np.float32))


def mel_power(samples: Tensor, n_fft: int, hop: int, num_mels: int, sample_rate: int) -> Tensor:
    """[L] -> [1 + L // hop, num_mels]: power in Slaney bands; Hann window, zeros beyond the ends."""
    window = torch.hann_window(n_fft, dtype=samples.dtype)
    spectrum = torch.stft(samples, n_fft, hop, window=window, center=True, pad_mode="constant", return_complex=True)
    filters = slaney_filters(n_fft, num_mels, sample_rate).to(samples.dtype)
    return spectrum.abs().square().T @ filters
