"""STOI: how intelligible a degraded copy of clean speech is, by the envelopes of its bands."""

import math
from functools import cache

import torch
from torch import Tensor

from higgs.evaluate.metrics.signal import pair

SAMPLE_RATE = 10_000
FRAME, HOP, N_FFT = 256, 128, 512
BANDS, LOWEST_HERTZ = 15, 150.0  # third octaves
SEGMENT = 30  # frames: 0.384 s
SPEECH_RANGE_DB = 40.0
REJECTION_DB = 60.0  # of what resampling would fold back
CLIP = 10 ** (15 / 20)  # a band may exceed the clean one by no more than this times it
TINY = torch.finfo(torch.float64).eps


def stoi(reference: Tensor, estimate: Tensor, sample_rate: int) -> float | None:
    """[L] clean, [L] degraded -> short-time objective intelligibility, 1 for equal signals.

    Both at 10 kHz; frames where the clean signal lies 40 dB below its loudest are cut out of both;
    third-octave envelopes; over segments of 0.384 s the correlation of the clean envelope with the
    degraded one, brought to its level and clipped at -15 dB signal-to-distortion; the mean over
    bands and segments. Source: Taal, Hendriks, Heusdens and Jensen, "An algorithm for
    intelligibility prediction of time-frequency weighted noisy speech", 2011; pystoi 0.4.1 gives
    the same numbers.

    None for less than 30 frames of speech (0.4 s), for which it is not defined. Raises ValueError
    as `si_sdr` does for unequal lengths and NaN.
    """
    x, y = pair(reference, estimate)
    x, y = (_at_10_khz(signal, sample_rate) for signal in (x, y))
    x, y = _without_silence(x, y)
    if len(x) < FRAME + SEGMENT * HOP:
        return None
    x, y = _segments(x), _segments(y)
    y = y * (x.norm(dim=-1, keepdim=True) / (y.norm(dim=-1, keepdim=True) + TINY))
    y = torch.minimum(y, x * (1 + CLIP))
    return (_centred(x) * _centred(y)).sum(dim=-1).mean().item()


def _at_10_khz(signal: Tensor, sample_rate: int) -> Tensor:
    """[L] -> [ceil(L * 10000 / sample_rate)]: the filter of the authors' resampler, which is Octave's.

    Not `resample`: its steeper filter keeps more at 5 kHz, and moves results by up to 2e-3.
    """
    divisor = math.gcd(SAMPLE_RATE, sample_rate)
    up, down = SAMPLE_RATE // divisor, sample_rate // divisor
    if up == down:
        return signal
    cutoff = 0.5 / max(up, down)
    half = math.ceil((REJECTION_DB - 8) / (28.714 * cutoff / 10))
    window = torch.kaiser_window(2 * half + 1, periodic=False, beta=0.1102 * (REJECTION_DB - 8.7), dtype=signal.dtype)
    sinc = torch.sinc(2 * cutoff * torch.arange(-half, half + 1, dtype=signal.dtype)) * window
    spread = signal.new_zeros(len(signal), up)
    spread[:, 0] = signal
    length = 2 ** (len(signal) * up + 2 * half - 1).bit_length()  # others may have slow transforms
    spectra = (torch.fft.rfft(x, length) for x in (spread.flatten(), sinc / sinc.sum()))
    return torch.fft.irfft(math.prod(spectra), length)[half : half + len(signal) * up : down]


def _frames(signal: Tensor) -> Tensor:
    """[L] -> [frames, 256]: half overlapping, under a Hann window without its zeros.

    A last frame that ends with the signal is left out, as in the authors' code.
    """
    window = torch.hann_window(FRAME + 2, periodic=False, dtype=signal.dtype)[1:-1]
    return signal[:-1].unfold(0, FRAME, HOP) * window if len(signal) > FRAME else signal.new_zeros(0, FRAME)


def _without_silence(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """[L], [L] -> both without the frames in which x is silent, overlapped and added up again."""
    frames_x, frames_y = _frames(x), _frames(y)
    if not len(frames_x):
        return x[:0], y[:0]
    level = 20 * (frames_x.norm(dim=1) + TINY).log10()
    loud = level > level.max() - SPEECH_RANGE_DB
    return _added(frames_x[loud]), _added(frames_y[loud])


def _added(frames: Tensor) -> Tensor:
    """[frames, 256] -> [(frames + 1) * 128]."""
    halves = frames.new_zeros(len(frames) + 1, HOP)
    halves[:-1] += frames[:, :HOP]
    halves[1:] += frames[:, HOP:]
    return halves.flatten()


def _segments(signal: Tensor) -> Tensor:
    """[L] -> [segments, 15, 30]: envelopes of the bands, every stretch of 30 frames."""
    power = torch.fft.rfft(_frames(signal), N_FFT).abs().square()
    return (power @ _third_octaves()).sqrt().unfold(0, SEGMENT, 1)


def _centred(envelopes: Tensor) -> Tensor:
    """[..., 30] -> without their mean, of length 1."""
    centred = envelopes - envelopes.mean(dim=-1, keepdim=True)
    return centred / (centred.norm(dim=-1, keepdim=True) + TINY)


@cache
def _third_octaves() -> Tensor:
    """-> [257, 15]: which bins make up which band; edges fall on the nearest bins."""
    hertz = torch.arange(N_FFT // 2 + 1, dtype=torch.float64) * SAMPLE_RATE / N_FFT
    bands = torch.zeros(len(hertz), BANDS, dtype=torch.float64)
    for band in range(BANDS):
        edges = (LOWEST_HERTZ * 2 ** ((2 * band + side) / 6) for side in (-1, 1))
        low, high = (int((hertz - edge).abs().argmin()) for edge in edges)
        bands[low:high, band] = 1
    return bands
