"""How loud speech is and where it is silent: on frames of 20 ms, in dB relative to full scale."""

import math

import torch
from torch import Tensor

FRAME_SECONDS = 0.02
SPEECH_RANGE_DB = 40.0  # frames this far below the loudest are no speech
FLOOR_DBFS = -120.0


def frame_levels(waveform: Tensor, sample_rate: int) -> Tensor:
    """[L] -> [frames] dBFS, at least -120; the last frame is filled up with silence."""
    size = max(1, round(FRAME_SECONDS * sample_rate))
    filled = torch.nn.functional.pad(waveform.double(), (0, -len(waveform) % size))
    power = filled.view(-1, size).square().mean(dim=1)
    return (10 * power.clamp(min=1e-30).log10()).clamp(min=FLOOR_DBFS)


def speech_level(waveform: Tensor, sample_rate: int) -> float:
    """[L] -> dBFS of its speech, pauses not counted; -inf for silence."""
    levels = frame_levels(waveform, sample_rate)
    loudest = levels.max().item()
    if loudest <= FLOOR_DBFS:
        return -math.inf
    heard = levels[levels >= loudest - SPEECH_RANGE_DB]
    return 10 * math.log10((10 ** (heard / 10)).mean().item())


def silence(waveform: Tensor, sample_rate: int) -> tuple[float, float, float]:
    """[L] -> (seconds before speech, seconds behind it, share of silent frames); all of it where there is no speech."""
    levels = frame_levels(waveform, sample_rate)
    seconds = len(waveform) / sample_rate
    loudest = levels.max().item()
    heard = (levels >= loudest - SPEECH_RANGE_DB).nonzero()[:, 0]
    if loudest <= FLOOR_DBFS:
        return seconds, seconds, 1.0
    before = heard[0].item() * FRAME_SECONDS
    behind = (len(levels) - 1 - heard[-1].item()) * FRAME_SECONDS
    return before, behind, 1 - len(heard) / len(levels)
