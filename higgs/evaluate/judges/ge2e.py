"""Whose voice is it: speaker embeddings, their similarity, and how well they tell speakers apart."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from higgs.audio import level_dbfs, resample
from higgs.evaluate.judges.slaney_mel import mel_power
from higgs.evaluate.judges.wheels import wheel_file
from higgs.evaluate.metrics.signal import mono

SILENCE_DBFS = -70.0
SPEECH_RANGE_DB = 40.0  # windows this far below the loudest hold no speech
WINDOW_SECONDS, KEPT_WINDOWS = 0.03, 6  # so at most 0.36 s of a pause is kept


class GE2E:
    """The speaker encoder of Resemblyzer 0.1.4: three LSTM layers on mel spectra, 256 numbers.

    Wan et al., "Generalized end-to-end loss for speaker verification", 2018. As in the package,
    quiet clips are raised to -30 dBFS, and the embedding is the mean over windows of 1.6 s. One
    thing differs: long silences are cut by level, where the package asks the WebRTC voice detector,
    which needs a compiler. On a clip without long silences both give the same numbers.
    """

    WHEEL = ("Resemblyzer", "0.1.4")
    FILE = "resemblyzer/pretrained.pt"
    SAMPLE_RATE = 16_000
    LEAST_DBFS = -30.0
    N_FFT, HOP, NUM_MELS = 400, 160, 40
    WINDOW, STEP = 160, 77  # frames: 1.6 s, and 1.3 windows a second
    LEAST_COVERAGE = 0.75  # of a last window that the clip does not fill

    name = "GE2E speaker encoder (PyPI wheel Resemblyzer 0.1.4)"
    short = "GE2E"

    def __init__(self) -> None:
        """Raises JudgeUnavailable that says what to install if the wheel is absent."""
        file = wheel_file(self.WHEEL, self.FILE)
        weights = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
        self._layers = nn.ModuleDict(
            {
                "lstm": nn.LSTM(self.NUM_MELS, 256, 3, batch_first=True),
                "linear": nn.Linear(256, 256),
            }
        ).eval()
        # The other two are the scale and offset of the loss.
        used = {name: w for name, w in weights.items() if not name.startswith("similarity_")}
        self._layers.load_state_dict(used)

    @torch.inference_mode()
    def embed(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """float [L] in [-1, 1] -> [256] of length 1; no entry is negative.

        Raises ValueError for silence and for waveforms that `check_waveform` refuses.
        """
        samples = resample(mono(waveform, "waveform").float(), sample_rate, self.SAMPLE_RATE)
        level = level_dbfs(samples)
        if level < SILENCE_DBFS:
            raise ValueError(f"there is no voice in silence ({level:.0f} dBFS)")
        samples = samples * 10 ** (max(0.0, self.LEAST_DBFS - level) / 20)
        samples = without_long_silences(samples, self.SAMPLE_RATE)
        starts = self._window_starts(len(samples))
        missing = (starts[-1] + self.WINDOW) * self.HOP - len(samples)
        samples = torch.nn.functional.pad(samples, (0, max(0, missing)))
        mel = mel_power(samples, self.N_FFT, self.HOP, self.NUM_MELS, self.SAMPLE_RATE)
        windows = torch.stack([mel[start : start + self.WINDOW] for start in starts])
        _, (hidden, _) = self._layers["lstm"](windows)
        embeddings = _unit(torch.relu(self._layers["linear"](hidden[-1])))
        return _unit(embeddings.mean(dim=0))

    def _window_starts(self, samples: int) -> list[int]:
        """Where windows begin, in frames: the last only if the clip fills enough of it."""
        frames = math.ceil((samples + 1) / self.HOP)
        starts = list(range(0, max(1, frames - self.WINDOW + self.STEP + 1), self.STEP))
        covered = (samples - starts[-1] * self.HOP) / (self.WINDOW * self.HOP)
        return starts[:-1] if covered < self.LEAST_COVERAGE and len(starts) > 1 else starts


def without_long_silences(samples: Tensor, sample_rate: int) -> Tensor:
    """[L] -> [L' <= L]: windows of 30 ms that are quiet go, unless speech is within 0.18 s of them."""
    size = round(WINDOW_SECONDS * sample_rate)
    if len(samples) < 2 * size:
        return samples
    windows = samples[: len(samples) // size * size].view(-1, size)
    power = windows.double().square().mean(dim=1)
    loud = (power > power.max() * 10 ** (-SPEECH_RANGE_DB / 10)).double()
    near = nn.functional.max_pool1d(loud[None], 2 * KEPT_WINDOWS + 1, stride=1, padding=KEPT_WINDOWS)[0]
    return windows[near.bool()].flatten()


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def similarity(a: Tensor, b: Tensor) -> float:
    """[D], [D] -> cosine, -1 to 1."""
    return nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()


def equal_error_rate(same: Sequence[float], different: Sequence[float]) -> tuple[float, float]:
    """Similarities of same-speaker and of different-speaker pairs -> (error rate, threshold).

    At the threshold, as many same-speaker pairs lie below it as different-speaker pairs lie at or
    above it; between two thresholds the mean of both rates where they are closest. 0 is perfect,
    0.5 is a guess. Raises ValueError if either is empty.
    """
    if not len(same) or not len(different):
        raise ValueError(f"pairs of both kinds are needed, got {len(same)} and {len(different)}")
    thresholds = np.unique(np.concatenate([same, different]))
    missed = np.searchsorted(np.sort(same), thresholds, side="left") / len(same)
    let_in = 1 - np.searchsorted(np.sort(different), thresholds, side="left") / len(different)
    best = int(np.abs(missed - let_in).argmin())
    return float((missed[best] + let_in[best]) / 2), float(thresholds[best])
