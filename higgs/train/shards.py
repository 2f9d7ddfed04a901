"""Reading a corpus of speech: shards of int16 samples with one JSON row for each utterance."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SAMPLE_RATE = 24_000
DRAWN = "drawn"


@dataclass(frozen=True)
class Utterance:
    """One row of a shard; `offset` and `length` count samples."""

    shard: int
    offset: int
    length: int
    text: str
    speaker: str


class Shards:
    """`shard-NN.pcm` + `shard-NN.jsonl` in a folder; samples are mapped, not read."""

    def __init__(self, folder: str | Path):
        paths = sorted(Path(folder).glob("shard-*.jsonl"))
        if not paths:
            raise FileNotFoundError(f"{folder} holds no shard-*.jsonl: make the corpus first")
        self.samples, self.utterances = [], []
        for shard, path in enumerate(paths):
            self.samples.append(np.memmap(path.with_suffix(".pcm"), dtype=np.int16, mode="r"))
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self.utterances.append(
                    Utterance(shard, row["offset"], row["length"], row["text"], row["speaker"])
                )

    def __len__(self) -> int:
        return len(self.utterances)

    def waveform(self, index: int, start: int = 0, length: int | None = None) -> Tensor:
        """-> [length] float32 from sample `start` of the utterance (the whole by default)."""
        utterance = self.utterances[index]
        stop = utterance.length if length is None else start + length
        if stop > utterance.length:
            raise ValueError(f"samples {start} ... {stop} of an utterance of {utterance.length}")
        piece = self.samples[utterance.shard][utterance.offset + start : utterance.offset + stop]
        return torch.from_numpy(piece.astype(np.float32) / 32768)


def split(count: int, held_out: int) -> tuple[range, range]:
    """Indices to train on and the last `held_out` ones, never trained on."""
    return range(count - held_out), range(count - held_out, count)


def group_of(speaker: str) -> str:
    """A named speaker is a group; all that were drawn at random are one."""
    return speaker if speaker.isalpha() else DRAWN


def balance(groups: Sequence[str], sizes: Sequence[float]) -> list[float]:
    """Group and size of each utterance -> weights that give each named speaker as much, and those drawn twice that.

    A codec that hears one voice half of the time is good for that voice only.
    """
    totals: dict[str, float] = {}
    for group, size in zip(groups, sizes, strict=True):
        totals[group] = totals.get(group, 0.0) + size
    shares = {name: (2.0 if name == DRAWN else 1.0) / total for name, total in totals.items()}
    return [shares[group] * size for group, size in zip(groups, sizes, strict=True)]


def balanced(shards: Shards, indices: range, count: int) -> list[int]:
    """`count` of the indices, as many of each named speaker, and twice as many of those drawn."""
    groups: dict[str, list[int]] = {}
    for index in indices:
        groups.setdefault(group_of(shards.utterances[index].speaker), []).append(index)
    shares = {name: 2 if name == DRAWN else 1 for name in groups}
    unit = count / sum(shares.values())
    return sorted(i for name, group in groups.items() for i in group[: round(unit * shares[name])])
