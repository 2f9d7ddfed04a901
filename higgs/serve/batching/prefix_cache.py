"""An LRU cache of reference codes and of the KV of prompt prefixes, keyed by content and bounded in bytes."""

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


class PrefixCache:
    """Lists of tensors by fingerprint. Beyond `max_bytes` the least recently used are dropped. Thread-safe."""

    def __init__(self, max_bytes: int):
        self.max_bytes, self.bytes, self.hits, self.misses = max_bytes, 0, 0, 0
        self._entries: OrderedDict[bytes, Sequence[Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes, compute: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """The entry, or what `compute` returns, which becomes the entry. Not to be written to."""
        with self._lock:
            if key in self._entries:
                self.hits += 1
                self._entries.move_to_end(key)
                return self._entries[key]
            self.misses += 1
        entry = compute()  # two threads may compute the same
        with self._lock:
            if key not in self._entries and _bytes(entry) <= self.max_bytes:
                self._entries[key] = entry
                self.bytes += _bytes(entry)
            while self.bytes > self.max_bytes:
                self.bytes -= _bytes(self._entries.popitem(last=False)[1])
        return entry


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
