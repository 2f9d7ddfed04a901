"""Speaker embeddings of the GE2E encoder, and their similarity."""

import math

import torch
from torch import Tensor, nn

from higgs.audio import level_dbfs
from higgs.evaluate.judges.base import SAMPLE_RATE, SpeakerEncoder, mel_power, unit
from higgs.evaluate.judges.wheels import wheel_file

SPEECH_RANGE_DB = 40.0  # windows this far below the loudest hold no speech
VAD_SECONDS, VAD_MARGIN = 0.03, 6  # windows of level detection, and how many around speech remain


class GE2E(SpeakerEncoder):
    """The speaker encoder of Resemblyzer 0.1.4: three LSTM layers on mel spectra, 256 numbers, none negative.

    Wan et al., "Generalized end-to-end loss for speaker verification", 2018. Quiet clips are raised to -30 dBFS; the
    embedding is the mean over windows of 1.6 s. Long silences are cut by level, in the package by the WebRTC voice
    detector (which needs a compiler); on a clip without them both give the same numbers.
    """

    name, short = "GE2E speaker encoder (PyPI wheel Resemblyzer 0.1.4)", "GE2E"
    WHEEL = ("Resemblyzer", "0.1.4")
    MIN_DBFS = -30.0
    N_FFT, HOP, NUM_MELS = 400, 160, 40
    WINDOW, STEP = 160, 77  # frames: 1.6 s, and 1.3 windows a second
    MIN_COVERAGE = 0.75  # of a last window that the clip does not fill

    def __init__(self) -> None:
        """Raises MetricModelUnavailable if the wheel is missing."""
        file = wheel_file(self.WHEEL, "resemblyzer/pretrained.pt")
        weights = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
        layers = {"lstm": nn.LSTM(self.NUM_MELS, 256, 3, batch_first=True), "linear": nn.Linear(256, 256)}
        self._layers = nn.ModuleDict(layers).eval()
        # The other two are the scale and offset of the loss.
        self._layers.load_state_dict({key: w for key, w in weights.items() if not key.startswith("similarity_")})

    def _embed(self, samples: Tensor) -> Tensor:
        samples = samples * 10 ** (max(0.0, self.MIN_DBFS - level_dbfs(samples)) / 20)
        samples = without_long_silences(samples, SAMPLE_RATE)
        starts = self._window_starts(len(samples))
        missing = (starts[-1] + self.WINDOW) * self.HOP - len(samples)
        mel = mel_power(nn.functional.pad(samples, (0, max(0, missing))), self.N_FFT, self.HOP, self.NUM_MELS)
        windows = torch.stack([mel[start : start + self.WINDOW] for start in starts])
        _, (hidden, _) = self._layers["lstm"](windows)
        return unit(torch.relu(self._layers["linear"](hidden[-1]))).mean(dim=0)

    def _window_starts(self, samples: int) -> list[int]:
        """First frames of the windows; the last window only if the clip fills enough of it."""
        frames = math.ceil((samples + 1) / self.HOP)
        starts = list(range(0, max(1, frames - self.WINDOW + self.STEP + 1), self.STEP))
        coverage = (samples - starts[-1] * self.HOP) / (self.WINDOW * self.HOP)
        return starts[:-1] if coverage < self.MIN_COVERAGE and len(starts) > 1 else starts


def without_long_silences(samples: Tensor, sample_rate: int) -> Tensor:
    """[L] -> [L' <= L]: without quiet windows of 30 ms, except those within 0.18 s of speech."""
    size = round(VAD_SECONDS * sample_rate)
    if len(samples) < 2 * size:
        return samples
    windows = samples[: len(samples) // size * size].view(-1, size)
    power = windows.double().square().mean(dim=1)
    loud = (power > power.max() * 10 ** (-SPEECH_RANGE_DB / 10)).double()
    near = nn.functional.max_pool1d(loud[None], 2 * VAD_MARGIN + 1, stride=1, padding=VAD_MARGIN)[0]
    return windows[near.bool()].flatten()


def similarity(a: Tensor, b: Tensor) -> float:
    """[D], [D] -> cosine, -1 to 1."""
    return nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()
