"""Distances between two waveforms, usage of codes, share of silence.

Pure functions of float waveforms [L] in [-1, 1], computed in float64 on the CPU. Two that are compared must be
aligned, of equal length and sample rate; levels are not matched unless the docstring says so.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from higgs.audio import check_waveform, mel_filterbank

MEL_WINDOWS = (2048, 1024, 512)
MEL_FLOOR = 1e-5  # -100 dB relative to a full-scale sine
STFT_WINDOWS = (2048, 512)
STFT_FLOOR = 1e-5


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


def _magnitude(waveform: Tensor, window_length: int) -> Tensor:
    """[L] -> [window_length // 2 + 1, frames]: |STFT|, Hann, hop of a quarter window."""
    window = torch.hann_window(window_length, dtype=waveform.dtype)
    spectrum = torch.stft(waveform, window_length, window_length // 4, window=window, center=True, return_complex=True)
    return spectrum.abs()


def log_mel_distance(reference: Tensor, estimate: Tensor, sample_rate: int = 24_000) -> float:
    """[L], [L] -> mean absolute difference of log mel spectra in dB, over three resolutions.

    Windows of 2048, 1024 and 512 samples (Hann, hop a quarter window, edges reflected) with 160, 80 and 40 mel bands
    from 0 to half the sample rate (HTK scale): 20 log10 of mel magnitudes, scaled so that a sine of amplitude 1 has
    magnitude 1 in its bin, floored at 1e-5. A change of level by g dB gives |g| above the floor.

    Raises ValueError: unequal lengths, fewer than 2048 samples, NaN.
    """
    reference, estimate = pair(reference, estimate, at_least=max(MEL_WINDOWS))
    distances = []
    for window_length in MEL_WINDOWS:
        bands = mel_filterbank(window_length, window_length * 80 // 1024, sample_rate).double()
        # At high sample rates a filter can fall between two bins: always equal, so left out.
        bands = bands[:, bands.sum(dim=0) > 0]
        decibels = []
        for waveform in (reference, estimate):
            magnitude = _magnitude(waveform, window_length) * (4 / window_length)
            decibels.append(20 * (bands.T @ magnitude).clamp(min=MEL_FLOOR).log10())
        distances.append((decibels[0] - decibels[1]).abs().mean())
    return torch.stack(distances).mean().item()


def stft_distance(reference: Tensor, estimate: Tensor) -> float:
    """[L], [L] -> multi-resolution STFT distance, no unit: the loss of the DAC codec (Kumar et al. 2023).

    For windows of 2048 and 512 samples (Hann, hop a quarter window, edges reflected, unscaled), the sum of
    mean |log10 max(|X|, 1e-5)^2 - log10 max(|Y|, 1e-5)^2| + mean ||X| - |Y||. The second term grows with the level
    of the signals, so numbers compare only on the same recordings.

    Raises ValueError: unequal lengths, fewer than 2048 samples, NaN.
    """
    reference, estimate = pair(reference, estimate, at_least=max(STFT_WINDOWS))
    distance = 0.0
    for window_length in STFT_WINDOWS:
        x, y = _magnitude(reference, window_length), _magnitude(estimate, window_length)
        log_x, log_y = (2 * m.clamp(min=STFT_FLOOR).log10() for m in (x, y))
        distance += (log_x - log_y).abs().mean().item() + (x - y).abs().mean().item()
    return distance


def si_sdr(reference: Tensor, estimate: Tensor) -> float:
    """[L], [L] -> scale-invariant signal-to-distortion ratio in dB; higher is better.

    With s the reference and e the estimate, both without their mean, and a = <e, s> / <s, s>: 10 log10(|a s|^2 /
    |a s - e|^2) (Le Roux et al., "SDR - half-baked or well done?", 2019). A multiple of the reference gives inf or, by
    rounding, some 300 dB; silence gives -inf. Raises ValueError: unequal lengths, NaN, a constant reference.
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

    Frames in which the clean signal lies 40 dB below its loudest are left out. None for less than 30 frames of
    speech (0.4 s), for which STOI is not defined. Raises ValueError: unequal lengths, NaN.
    """
    import pystoi  # takes 0.7 s

    reference, estimate = pair(reference, estimate)
    if len(reference) < 0.4 * sample_rate:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of less than 30 frames, for which it returns 1e-5
        score = float(pystoi.stoi(reference.numpy(), estimate.numpy(), sample_rate))
    return None if score == 1e-5 else score


@dataclass(frozen=True)
class CodebookUsage:
    """Of `codebook_size` codes of a codebook, `distinct` occur in `frames` frames."""

    codebook: int
    codebook_size: int
    frames: int
    distinct: int
    entropy_bits: float
    perplexity: float


def code_usage(codes: Tensor | Sequence[Tensor], codebook_size: int) -> list[CodebookUsage]:
    """int [K, T], or a sequence of [K, T_i] counted together -> usage of each codebook.

    With p the share of each code: entropy -sum p log2 p in bits (at most log2 codebook_size, and at most log2 frames,
    so few frames understate it), perplexity 2^entropy.

    Raises ValueError for no codes, or codes out of range.
    """
    joined = torch.cat([codes] if isinstance(codes, Tensor) else list(codes), dim=1).cpu()
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
        usage.append(CodebookUsage(codebook, codebook_size, len(indices), len(shares), entropy, 2**entropy))
    return usage


def silence_share(
    waveform: Tensor, sample_rate: int, threshold_dbfs: float = -50.0, frame_seconds: float = 0.02
) -> float:
    """[L] -> share of frames (20 ms, a last partial one left out) with an RMS below the threshold (1 is 0 dBFS).

    Raises ValueError for less than one frame, or NaN.
    """
    waveform = mono(waveform, "waveform")
    frame = round(frame_seconds * sample_rate)
    if frame < 1 or len(waveform) < frame:
        raise ValueError(
            f"silence_share: a frame of {frame_seconds} s at {sample_rate} Hz is {frame} samples, "
            f"the waveform has {len(waveform)}"
        )
    frames = waveform[: len(waveform) // frame * frame].reshape(-1, frame)
    threshold_power = 10 ** (threshold_dbfs / 10)
    return (frames.square().mean(dim=1) < threshold_power).double().mean().item()
