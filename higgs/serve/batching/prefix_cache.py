"""What was computed for a voice once and may be asked for again, by content, up to a size."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor


def fingerprint(*parts: bytes | Tensor) -> bytes:
    """A hash of contents and shapes."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{tuple(part.shape)} {part.dtype};".encode())
            part = part.detach().cpu().contiguous().numpy().tobytes()
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


class VoiceCache:
    """Lists of tensors by fingerprint. Beyond `max_bytes`, what has not been used for longest is forgotten."""

    def __init__(self, max_bytes: int):
        self.max_bytes, self.bytes, self.hits, self.misses = max_bytes, 0, 0, 0
        self._kept: OrderedDict[bytes, Sequence[Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes, compute: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """What is kept under the key, or what `compute` makes, kept from now on. Not to be written to."""
        with self._lock:
            if key in self._kept:
                self.hits += 1
                self._kept.move_to_end(key)
                return self._kept[key]
            self.misses += 1
        made = compute()  # two threads may compute the same
        with self._lock:
            if key not in self._kept and _bytes(made) <= self.max_bytes:
                self._kept[key] = made
                self.bytes += _bytes(made)
            while self.bytes > self.max_bytes:
                self.bytes -= _bytes(self._kept.popitem(last=False)[1])
        return made


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
