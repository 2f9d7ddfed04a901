"""Level of speech and where it is silent: frames of 20 ms, in dB relative to full scale."""

import math

import torch
from torch import Tensor

FRAME_SECONDS = 0.02
SPEECH_RANGE_DB = 40.0  # frames this far below the loudest are no speech
FLOOR_DBFS = -120.0


def frame_levels(waveform: Tensor, sample_rate: int) -> Tensor:
    """[L] -> [frames] dBFS, at least -120; the last frame is padded with zeros."""
    size = max(1, round(FRAME_SECONDS * sample_rate))
    padded = torch.nn.functional.pad(waveform.double(), (0, -len(waveform) % size))
    power = padded.view(-1, size).square().mean(dim=1)
    return (10 * power.clamp(min=1e-30).log10()).clamp(min=FLOOR_DBFS)


def speech_level(waveform: Tensor, sample_rate: int) -> float:
    """[L] -> dBFS of its speech, without pauses; -inf for silence."""
    levels = frame_levels(waveform, sample_rate)
    loudest = levels.max().item()
    if loudest <= FLOOR_DBFS:
        return -math.inf
    speech = levels[levels >= loudest - SPEECH_RANGE_DB]
    return 10 * math.log10((10 ** (speech / 10)).mean().item())


def silence(waveform: Tensor, sample_rate: int) -> tuple[float, float, float]:
    """[L] -> (seconds before speech, seconds after it, share of silent frames); without speech, all of it is silent."""
    levels = frame_levels(waveform, sample_rate)
    seconds = len(waveform) / sample_rate
    loudest = levels.max().item()
    if loudest <= FLOOR_DBFS:
        return seconds, seconds, 1.0
    speech = (levels >= loudest - SPEECH_RANGE_DB).nonzero()[:, 0]
    before = speech[0].item() * FRAME_SECONDS
    after = (len(levels) - 1 - speech[-1].item()) * FRAME_SECONDS
    return before, after, 1 - len(speech) / len(levels)


def split_at_quiet(waveform: Tensor, sample_rate: int, max_seconds: float) -> list[Tensor]:
    """[L] -> segments of at most `max_seconds` (0.3 or more), cut at the quietest 0.1 s of each one's last third."""
    limit, frame = round(max_seconds * sample_rate), max(1, round(0.1 * sample_rate))
    hop = max(1, frame // 2)
    if limit < 3 * frame:
        raise ValueError(f"split_at_quiet: max_seconds must be at least 0.3, got {max_seconds}")
    segments = []
    while len(waveform) > limit:
        earliest = limit - limit // 3
        frames = waveform[earliest:limit].double().unfold(0, frame, hop)
        cut = earliest + int(frames.square().mean(dim=1).argmin()) * hop + frame // 2
        segments.append(waveform[:cut])
        waveform = waveform[cut:]
    return [*segments, waveform]
