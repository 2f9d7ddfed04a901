"""Base classes of recognisers and speaker encoders, and librosa's mel spectrum."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from higgs.audio import SILENT_DBFS, level_dbfs, magnitude, resample
from higgs.data.loudness import split_at_quiet
from higgs.evaluate.metrics.signal import mono
from higgs.files import content_hash

SAMPLE_RATE = 16_000


def mono_16_khz(waveform: Tensor, sample_rate: int) -> Tensor:
    """float [L] in [-1, 1] -> float32 [L'] at 16 kHz; raises as `check_waveform`, and for another shape."""
    return resample(mono(waveform, "waveform").float(), sample_rate, SAMPLE_RATE)


def version_of(source: str | Path) -> str:
    """A judge's file or folder -> its name and a hash of its content; the name of anything else, as it is."""
    path = Path(source)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{path.name}, sha256 {content_hash(files)[:16]}" if files else str(source)


class Recogniser:
    """Speech to text, deterministic. Subclasses define `_transcribe`."""

    name: str  # for provenance
    short: str  # for titles
    on_accelerator = False  # else on the CPU alone
    languages: frozenset[str]
    MAX_SECONDS = 30.0  # longer clips are split in pauses

    def transcribe(self, waveform: Tensor, sample_rate: int, language: str = "en") -> str:
        """float [L] in [-1, 1] -> text; "" for silence, in which models hallucinate. ValueError for other languages."""
        if language not in self.languages:
            raise ValueError(f"{self.short} knows {', '.join(sorted(self.languages))}, not {language!r}")
        segments = split_at_quiet(mono_16_khz(waveform, sample_rate), SAMPLE_RATE, self.MAX_SECONDS)
        with torch.inference_mode():
            texts = [self._transcribe(s, language) for s in segments if level_dbfs(s) > SILENT_DBFS]
        return " ".join(text for text in texts if text)

    def _transcribe(self, samples: Tensor, language: str) -> str:
        """float32 [L] at 16 kHz, at most MAX_SECONDS -> text without blanks round it."""
        raise NotImplementedError


class SpeakerEncoder:
    """Speech to a vector of unit length, similar for similar voices. Subclasses define `_embed`."""

    name: str
    short: str
    on_accelerator = False
    MIN_SECONDS = 0.0

    def embed(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """float [L] in [-1, 1] -> [D] of length 1, on the CPU; ValueError for silence and less than MIN_SECONDS."""
        samples = mono_16_khz(waveform, sample_rate)
        if (level := level_dbfs(samples)) < SILENT_DBFS:
            raise ValueError(f"there is no voice in silence ({level:.0f} dBFS)")
        if len(samples) < self.MIN_SECONDS * SAMPLE_RATE:
            raise ValueError(f"{len(samples) / SAMPLE_RATE:.2f} s are too short for a speaker embedding")
        with torch.inference_mode():
            return unit(self._embed(samples).cpu())

    def _embed(self, samples: Tensor) -> Tensor:
        """float32 [L] at 16 kHz -> [D]."""
        raise NotImplementedError


def unit(vectors: Tensor) -> Tensor:
    """[..., D] -> the same, of length 1."""
    return vectors / vectors.norm(dim=-1, keepdim=True)


@lru_cache(maxsize=8)
def slaney_filters(n_fft: int, num_mels: int) -> Tensor:
    """-> [n_fft // 2 + 1, num_mels]: triangles of equal area from 0 to 8 kHz on Slaney's mel scale (librosa's default).

    Not transformers' `mel_filter_bank`: its bins are wrong for an odd `n_fft`.
    """
    from transformers.audio_utils import hertz_to_mel, mel_to_hertz

    bins = np.arange(n_fft // 2 + 1)[:, None] * SAMPLE_RATE / n_fft
    edges = mel_to_hertz(np.linspace(0.0, hertz_to_mel(SAMPLE_RATE / 2, "slaney"), num_mels + 2), "slaney")
    rising = (bins - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - bins) / np.diff(edges)[1:]
    triangles = np.minimum(rising, falling).clip(min=0) * 2 / (edges[2:] - edges[:-2])
    return torch.from_numpy(triangles.astype(np.float32))


def mel_power(samples: Tensor, n_fft: int, hop: int, num_mels: int) -> Tensor:
    """float32 [L] at 16 kHz -> [1 + L // hop, num_mels]: power; Hann window, zeros beyond the ends."""
    return magnitude(samples, n_fft, hop, pad="constant").square().T @ slaney_filters(n_fft, num_mels)
