"""Speech and signals for the tests of judges and metrics."""

import json
import math
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from higgs.audio import load_audio

DATA = Path(__file__).parents[1] / "data"
RATE = 24_000


class Clip(NamedTuple):
    id: str
    text: str
    language: str
    speaker: str
    path: Path

    @property
    def waveform(self) -> Tensor:
        return load(self.path)


@cache
def load(path: Path) -> Tensor:
    return load_audio(path, RATE)[0]


@cache
def clips(language: str | None = None) -> list[Clip]:
    """The recordings, of one language or of all; skips the test where they are absent."""
    manifest = DATA / "recordings" / "manifest.jsonl"
    if not manifest.is_file():
        pytest.skip("data/recordings is absent: dvc pull data.dvc")
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    return [
        Clip(row["id"], row["text"], row["language"], row["speaker"], DATA / row["path"])
        for row in rows
        if language in (None, row["language"])
    ]


def clip(name: str) -> Clip:
    return next(clip for clip in clips() if clip.id == name)


def noise(samples: int = RATE, seed: int = 0) -> Tensor:
    """White noise at about -20 dBFS: every bin of every spectrum lies far above the floors."""
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def sine(hertz: float, amplitude: float = 1.0, samples: int = RATE, sample_rate: int = RATE) -> Tensor:
    return amplitude * torch.sin(2 * math.pi * hertz * torch.arange(samples) / sample_rate)


def with_noise(waveform: Tensor, snr: float, seed: int = 0) -> Tensor:
    """White noise added at a ratio in dB of the whole clips."""
    added = noise(len(waveform), seed)
    gain = waveform.square().mean().sqrt() / added.square().mean().sqrt() * 10 ** (-snr / 20)
    return waveform + gain * added


def made_pair(samples: int = 2 * RATE) -> tuple[Tensor, Tensor]:
    """Two modulated tones in noise, and a softer, noisier copy: the signals of the reference packages' numbers."""
    t = np.arange(samples) / RATE
    first, second = np.random.default_rng(0).random((2, samples)) - 0.5
    low = 0.2 * np.sin(2 * np.pi * 220 * t) * (1 + np.sin(2 * np.pi * 4 * t))
    rising = 0.1 * np.sin(2 * np.pi * 900 * t * (1 + t)) * (1 + np.sin(2 * np.pi * 7 * t + 1))
    clean = low + rising + 0.05 * first
    return torch.from_numpy(clean), torch.from_numpy(0.8 * clean + 0.1 * second)
