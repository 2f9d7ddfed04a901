"""Sound inside a page: Ogg Opus in base64, each clip once."""

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import soundfile
from torch import Tensor

from higgs.audio import load_audio, resample

OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)


def encode_opus(waveform: Tensor, sample_rate: int, kbit: int) -> bytes:
    """[L] in [-1, 1] -> Ogg Opus of about so many kbit/s (8 to 128)."""
    if sample_rate not in OPUS_RATES:
        waveform, sample_rate = resample(waveform, sample_rate, 48_000), 48_000
    content = io.BytesIO()
    level = 1 - (kbit - 6) / 250  # libsndfile: 6 kbit/s at level 1, 256 at level 0
    settings = {"format": "OGG", "subtype": "OPUS", "compression_level": level}
    soundfile.write(content, waveform.clamp(-1, 1).numpy(), sample_rate, **settings)
    return content.getvalue()


@dataclass
class Clips:
    """The clips of a page: `add` returns a clip's number, `limit` bounds their size in characters of base64."""

    limit: int
    kbit: int = 32
    encoded: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    _known: dict[str, int] = field(default_factory=dict)

    def add(self, files: Sequence[Path | None]) -> list[int | None] | None:
        """The files of one row -> their numbers, None for a missing one; None where they are too large for the page.

        A file that cannot be read as sound is as one that is missing.
        """
        new: dict[str, tuple[str, float]] = {}
        keys: list[str | None] = []
        for file in files:
            key = hashlib.sha256(file.read_bytes()).hexdigest() if file else None
            if key and key not in self._known and key not in new:
                try:
                    waveform, rate = load_audio(file)
                except ValueError:
                    key = None
                else:
                    content = base64.b64encode(encode_opus(waveform, rate, self.kbit)).decode("ascii")
                    new[key] = content, len(waveform) / rate
            keys.append(key)
        if self.size + sum(len(content) for content, _ in new.values()) > self.limit:
            return None
        for key, (content, seconds) in new.items():
            self._known[key] = len(self.encoded)
            self.encoded.append(content)
            self.seconds.append(seconds)
        return [None if key is None else self._known[key] for key in keys]

    @property
    def size(self) -> int:
        return sum(map(len, self.encoded))
