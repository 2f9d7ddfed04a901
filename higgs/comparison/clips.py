"""Sound inside a page: Ogg Opus in base64, each clip once."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from higgs.audio import compress, load_audio


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
                    content = base64.b64encode(compress(waveform, rate, 1000 * self.kbit)).decode("ascii")
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
