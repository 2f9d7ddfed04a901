"""The sounds of a page: Ogg Opus in base64."""

import base64
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from higgs.audio import compress, load_audio, probe
from higgs.files import sha256

BYTES = 5_200_000  # of all sounds of a page: 7 MB in base64
BIT_RATES, OVERHEAD = (12_000, 32_000), 1_100  # the least that is worth hearing, and the usual; bytes of headers


@dataclass(frozen=True)
class Sounds:
    """Sounds in base64, and the length of each; `of` is the number of each file's sound, None for one without."""

    encoded: list[str]
    seconds: list[float]
    of: list[int | None]


def encode(files: Sequence[Path | None], most_bytes: int | None = None) -> Sounds:
    """Audio files, equal ones once, at the highest bit rate at which all fit into `most_bytes` (BYTES).

    Where they do not fit at the least rate, the last ones have no sound; nor has what is missing or unreadable.
    """
    most_bytes = BYTES if most_bytes is None else most_bytes
    lengths, sources, digests = {}, {}, []
    for file in files:
        digest = sha256(file) if file and file.is_file() else None
        if digest and digest not in sources:
            try:
                lengths[digest] = probe(file)[2]
                sources[digest] = file
            except (ValueError, OSError):
                digest = None  # its record says that it is unreadable
        digests.append(digest)
    while lengths:
        rate = 8 * (most_bytes - OVERHEAD * len(lengths)) / max(1.0, sum(lengths.values()))
        if rate >= BIT_RATES[0]:
            break
        lengths.popitem()

    def sound(digest: str) -> str:
        content = compress(*load_audio(sources[digest]), int(min(BIT_RATES[1], rate)))
        return base64.b64encode(content).decode("ascii")

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # libsndfile works outside of Python's lock
        encoded = list(pool.map(sound, lengths))
    while encoded and sum(map(len, encoded)) > 1.1 * 4 / 3 * most_bytes:  # a bit rate is not kept exactly
        encoded.pop()
    places = {digest: place for place, digest in enumerate(lengths) if place < len(encoded)}
    return Sounds(encoded, list(lengths.values())[: len(encoded)], [places.get(digest) for digest in digests])
