"""Distances between two waveforms, usage of codes, share of silence.

Functions of float waveforms [L] in [-1, 1], in float64 on the CPU. Two that are compared must be aligned, of equal
length and sample rate; levels are matched only where the docstring says so.
"""

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from higgs.audio import check_waveform, magnitude, mel_filterbank

MEL_WINDOWS = (2048, 1024, 512)
MEL_FLOOR = 1e-5  # -100 dB relative to a full-scale sine
STFT_WINDOWS = (2048, 512)
STFT_FLOOR = 1e-5
SILENCE_DBFS = -50.0


def mono(waveform: Tensor, what: str) -> Tensor:
    check_waveform(waveform, what)
    if waveform.dim() != 1:
        raise ValueError(f"{what}: expected shape [L], got {tuple(waveform.shape)}")
    return waveform.detach().cpu().double()


def pair(reference: Tensor, estimate: Tensor, at_least: int = 1) -> tuple[Tensor, Tensor]:
    reference, estimate = mono(reference, "reference"), mono(estimate, "estimate")
    if len(reference) != len(estimate):
        raise ValueError(f"reference has {len(reference)} samples and estimate {len(estimate)}; lengths must be equal")
    if len(reference) < at_least:
        raise ValueError(f"the longest window needs {at_least} samples, got {len(reference)}")
    return reference, estimate


def log_mel_distance(reference: Tensor, estimate: Tensor, sample_rate: int = 24_000) -> float:
    """[L], [L] -> mean absolute difference of log mel spectra in dB, over three resolutions.

    Windows of 2048, 1024 and 512 samples (Hann, hop a quarter window, edges reflected) with 160, 80 and 40 mel bands up
    to half the sample rate (HTK scale): 20 log10 of mel magnitudes, of which a sine of amplitude 1 has 1 in its bin,
    floored at 1e-5. ValueError: unequal lengths, fewer than 2048 samples, NaN.
    """
    reference, estimate = pair(reference, estimate, at_least=max(MEL_WINDOWS))
    distances = []
    for window_length in MEL_WINDOWS:
        bands = mel_filterbank(window_length, window_length * 80 // 1024, sample_rate).double()
        # At high sample rates a filter can fall between two bins: always equal, so left out.
        bands = bands[:, bands.sum(dim=0) > 0]
        decibels = []
        for waveform in (reference, estimate):
            scaled = magnitude(waveform, window_length, window_length // 4, pad="reflect") * (4 / window_length)
            decibels.append(20 * (bands.T @ scaled).clamp(min=MEL_FLOOR).log10())
        distances.append((decibels[0] - decibels[1]).abs().mean())
    return torch.stack(distances).mean().item()


def stft_distance(reference: Tensor, estimate: Tensor) -> float:
    """[L], [L] -> multi-resolution STFT distance, no unit: the loss of the DAC codec (Kumar et al. 2023).

    For windows of 2048 and 512 samples (as above, unscaled), the sum of mean |log10 max(|X|, 1e-5)^2 -
    log10 max(|Y|, 1e-5)^2| + mean ||X| - |Y||. The second term grows with the level. Raises as `log_mel_distance`.
    """
    reference, estimate = pair(reference, estimate, at_least=max(STFT_WINDOWS))
    distance = 0.0
    for window_length in STFT_WINDOWS:
        x, y = (magnitude(w, window_length, window_length // 4, pad="reflect") for w in (reference, estimate))
        log_x, log_y = (2 * m.clamp(min=STFT_FLOOR).log10() for m in (x, y))
        distance += (log_x - log_y).abs().mean().item() + (x - y).abs().mean().item()
    return distance


def si_sdr(reference: Tensor, estimate: Tensor) -> float:
    """[L], [L] -> scale-invariant signal-to-distortion ratio in dB; higher is better.

    With s the reference and e the estimate, both without their mean, and a = <e, s> / <s, s>: 10 log10(|a s|^2 /
    |a s - e|^2) (Le Roux et al., "SDR - half-baked or well done?", 2019); inf or some 300 dB for a multiple of the
    reference, -inf for silence. ValueError: unequal lengths, NaN, a constant reference.
    """
    reference, estimate = pair(reference, estimate)
    s, e = reference - reference.mean(), estimate - estimate.mean()
    energy = s.square().sum()
    # Removing the mean of a constant leaves rounding errors, not zeros.
    if energy <= 1e-20 * reference.square().sum():
        raise ValueError(f"SI-SDR is not defined for a constant reference ({reference[0].item():g})")
    target = (e @ s) / energy * s
    signal, distortion = target.square().sum().item(), (target - e).square().sum().item()
    if signal == 0:
        return -math.inf
    return 10 * math.log10(signal / distortion) if distortion > 0 else math.inf


def stoi(reference: Tensor, estimate: Tensor, sample_rate: int) -> float | None:
    """[L] clean, [L] degraded -> short-time objective intelligibility (Taal et al. 2011), 1 for equal signals.

    Frames 40 dB below the loudest are left out. None for less than 30 frames (0.4 s). ValueError: lengths, NaN.
    """
    import pystoi  # takes 0.7 s

    reference, estimate = pair(reference, estimate)
    if len(reference) < 0.4 * sample_rate:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of less than 30 frames, for which it returns 1e-5
        score = float(pystoi.stoi(reference.numpy(), estimate.numpy(), sample_rate))
    return None if score == 1e-5 else score


def code_usage(codes: Sequence[Tensor], codebook_size: int) -> list[dict[str, int | float]]:
    """int [K, T_i] of several clips -> the usage of each codebook: of its codes `distinct` occur in `frames` frames.

    With p the share of each code: entropy -sum p log2 p in bits (at most log2 codebook_size and log2 frames: few frames
    understate it), perplexity 2^entropy. ValueError for no codes, or codes out of range.
    """
    joined = torch.cat(list(codes), dim=1).cpu()
    if not joined.numel():
        raise ValueError(f"code_usage: no codes (shape {tuple(joined.shape)})")
    low, high = joined.min().item(), joined.max().item()
    if low < 0 or high >= codebook_size:
        raise ValueError(f"code_usage: codes span {low}..{high}, outside 0..{codebook_size - 1}")
    usage = []
    for codebook, indices in enumerate(joined):
        counts = torch.bincount(indices, minlength=codebook_size).double()
        shares = counts[counts > 0] / len(indices)
        entropy = max(0.0, -(shares * shares.log2()).sum().item())  # not -0.0 for a single code
        sizes = {"codebook_size": codebook_size, "frames": len(indices), "distinct": len(shares)}
        usage.append({"codebook": codebook, **sizes, "entropy_bits": entropy, "perplexity": 2**entropy})
    return usage


def silence_share(waveform: Tensor, sample_rate: int) -> float:
    """[L] -> share of whole frames of 20 ms with an RMS below -50 dBFS; ValueError for less than one, or NaN."""
    waveform, frame = mono(waveform, "waveform"), round(0.02 * sample_rate)
    if not 0 < frame <= len(waveform):
        raise ValueError(f"silence_share: a frame has {frame} samples, the waveform has {len(waveform)}")
    frames = waveform[: len(waveform) // frame * frame].reshape(-1, frame)
    return (frames.square().mean(dim=1) < 10 ** (SILENCE_DBFS / 10)).double().mean().item()
