"""Run-away detection: far more speech than the text needs, a hum that does not end, a loop.

The detector reads the first codebook, the coarsest. Measured on the recordings and the codec of the default checkpoint:
in speech, 50 frames hold at least 40 different codes of it, and at no lag do more than 7 % of 75 frames repeat; silence
and noise have 6 to 17 codes in 100 frames.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Stop reasons.
TEXT_LENGTH, SILENCE, REPETITION = "guard_text_length", "guard_silence", "guard_repetition"
RUNAWAY_STOPS = (TEXT_LENGTH, SILENCE, REPETITION)


@dataclass(frozen=True)
class RunawayConfig:
    """What counts as running away; a criterion that is None is off. `retries` more attempts have the next seeds.

    Speech takes about 0.06 to 0.1 s for each byte of text in UTF-8, in most scripts; a text may take `least_seconds`
    and `seconds_per_byte` more for each byte. Over `window_seconds`, silence is when at most `distinct` codes occur,
    and a loop when the share `repeated` of the frames equals the frames 3 to `longest_loop` frames before.
    """

    least_seconds: float = 10.0
    seconds_per_byte: float | None = 0.25
    window_seconds: float = 4.0
    distinct: int | None = 20
    repeated: float | None = 0.9
    longest_loop: int = 75
    retries: int = 0

    def max_frames(self, text_bytes: int, frame_rate: int) -> int | None:
        """How many frames a text of so many bytes may take; None is no limit, as for no text at all."""
        if self.seconds_per_byte is None or not text_bytes:
            return None
        seconds = self.least_seconds + self.seconds_per_byte * text_bytes
        return math.ceil(seconds * frame_rate)


class RunawayDetector:
    """Incremental detector for one request."""

    def __init__(self, config: RunawayConfig, frame_rate: int):
        self.config = config
        self.window = math.ceil(config.window_seconds * frame_rate)
        self.codes = torch.zeros(0, dtype=torch.long)
        self.unchecked = 0

    def observe(self, codes: Tensor) -> str | None:
        """The first codebook's next codes [n] -> the stop reason, or None. It checks four times in a window."""
        self.unchecked += len(codes)
        self.codes = torch.cat([self.codes, codes])[-self.window - self.config.longest_loop :]
        if self.unchecked * 4 < self.window or len(self.codes) < self.window:
            return None
        self.unchecked = 0
        recent = self.codes[-self.window :]
        if self.config.repeated is not None and self._repeats(recent):
            return REPETITION
        if self.config.distinct is not None and len(recent.unique()) <= self.config.distinct:
            return SILENCE
        return None

    def _repeats(self, recent: Tensor) -> bool:
        """Whether the last frames equal earlier ones at some lag. One constant code is silence, not a loop."""
        if (recent[1:] == recent[:-1]).float().mean() > 0.5:
            return False
        for lag in range(3, self.config.longest_loop + 1):
            overlap = min(self.window, len(self.codes) - lag)
            if 2 * overlap < self.window:
                break
            same = self.codes[-overlap:] == self.codes[-overlap - lag : -lag]
            if same.float().mean() >= self.config.repeated:
                return True
        return False
