"""Guards against speech that runs away: far more of it than the text asks for, a hum that does not end, a loop.

They look at the first codebook, the coarsest. Measured on the recordings and the codec of the default checkpoint: in
speech, 50 frames hold at least 40 different codes of it, and at no lag do more than 7 % of 75 frames repeat; silence
and noise get by with 6 to 17 codes in 100 frames.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TEXT_LENGTH, SILENCE, REPETITION = "guard_text_length", "guard_silence", "guard_repetition"
GUARD_STOPS = (TEXT_LENGTH, SILENCE, REPETITION)


@dataclass(frozen=True)
class Guards:
    """What is taken for running away; each of them None is off. `retries` more takes are made, each with the next seed.

    Speech takes about 0.06 to 0.1 s for each byte of text in UTF-8, in most scripts; a text may take `least_seconds`
    and `seconds_per_byte` more for each byte. Over `window_seconds`, silence is when at most `distinct` codes occur,
    and a loop when the share `repeated` of the frames is what stood 3 to `longest_loop` frames before.
    """

    least_seconds: float = 10.0
    seconds_per_byte: float | None = 0.25
    window_seconds: float = 4.0
    distinct: int | None = 20
    repeated: float | None = 0.9
    longest_loop: int = 75
    retries: int = 0

    def most_frames(self, text: str, frame_rate: int) -> int | None:
        """How many frames the text may take; None is without limit, as is no text at all."""
        if self.seconds_per_byte is None or not text.strip():
            return None
        seconds = self.least_seconds + self.seconds_per_byte * len(text.encode())
        return math.ceil(seconds * frame_rate)


class Watch:
    """The guards' eyes on one request."""

    def __init__(self, guards: Guards, frame_rate: int):
        self.guards = guards
        self.window = math.ceil(guards.window_seconds * frame_rate)
        self.seen = torch.zeros(0, dtype=torch.long)
        self.since = 0

    def observe(self, codes: Tensor) -> str | None:
        """The first codebook's next codes [n] -> why to stop, or None. It looks four times in a window."""
        self.since += len(codes)
        self.seen = torch.cat([self.seen, codes])[-self.window - self.guards.longest_loop :]
        if self.since * 4 < self.window or len(self.seen) < self.window:
            return None
        self.since = 0
        recent = self.seen[-self.window :]
        if self.guards.repeated is not None and self._repeats(recent):
            return REPETITION
        if self.guards.distinct is not None and len(recent.unique()) <= self.guards.distinct:
            return SILENCE
        return None

    def _repeats(self, recent: Tensor) -> bool:
        """Whether the last frames stood there before. One code that stays is silence, not a loop."""
        if (recent[1:] == recent[:-1]).float().mean() > 0.5:
            return False
        for lag in range(3, self.guards.longest_loop + 1):
            overlap = min(self.window, len(self.seen) - lag)
            if 2 * overlap < self.window:
                break
            same = self.seen[-overlap:] == self.seen[-overlap - lag : -lag]
            if same.float().mean() >= self.guards.repeated:
                return True
        return False
