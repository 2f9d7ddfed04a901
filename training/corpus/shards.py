"""Reading a corpus of speech: shards of int16 samples with one JSON record for each utterance."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SAMPLE_RATE = 24_000
RANDOM, KOKORO = "random", "kokoro"


@dataclass(frozen=True)
class Utterance:
    """One record of a shard; `offset` and `length` count samples."""

    shard: int
    offset: int
    length: int
    text: str
    speaker: str


class Shards:
    """Every `NAME.pcm` + `NAME.jsonl` in a folder, by name; samples are mapped when first asked for.

    `training` and `validation` are the indices of utterances; shards for validation are called `validation-*`.
    """

    def __init__(self, folder: str | Path):
        paths = sorted(Path(folder).glob("*.jsonl"))
        if not paths:
            raise FileNotFoundError(f"{folder} holds no shards: make the corpus first")
        self.paths = paths
        self.names = [path.stem for path in paths]
        self.utterances: list[Utterance] = []
        self.training: list[int] = []
        self.validation: list[int] = []
        for shard, path in enumerate(paths):
            for line in path.read_text().splitlines():
                part = self.validation if path.name.startswith("validation-") else self.training
                part.append(len(self.utterances))
                self.utterances.append(Utterance(shard, **json.loads(line)))

    def __len__(self) -> int:
        return len(self.utterances)

    @cached_property
    def samples(self) -> list[np.ndarray]:
        return [np.memmap(path.with_suffix(".pcm"), dtype=np.int16, mode="r") for path in self.paths]

    def waveform(self, index: int, start: int = 0, length: int | None = None) -> Tensor:
        """-> [length] float32 from sample `start` of the utterance (the whole by default)."""
        utterance = self.utterances[index]
        stop = utterance.length if length is None else start + length
        if stop > utterance.length:
            raise ValueError(f"samples {start} ... {stop} of an utterance of {utterance.length}")
        samples = self.samples[utterance.shard][utterance.offset + start : utterance.offset + stop]
        return torch.from_numpy(samples.astype(np.float32) / 32768)


def group_of(speaker: str) -> str:
    """An in-house speaker is a group; all of Kokoro's are one (`af_sky+am_onyx@0.9`), and all random (`p0.8f0.9`)."""
    return speaker if speaker.isalpha() else KOKORO if "_" in speaker else RANDOM


def sampling_weights(groups: Sequence[str], sizes: Sequence[float], shares: Mapping[str, float]) -> list[float]:
    """Group and size of each utterance -> weights that draw each group as often as its share (1 by default).

    A codec that is trained on one voice half of the time is good for that voice only.
    """
    totals: dict[str, float] = {}
    for group, size in zip(groups, sizes, strict=True):
        totals[group] = totals.get(group, 0.0) + size
    rates = {name: shares.get(name, 1.0) / total for name, total in totals.items()}
    return [rates[group] * size for group, size in zip(groups, sizes, strict=True)]


def choose_balanced(shards: Shards, indices: Sequence[int], count: int, shares: Mapping[str, float]) -> list[int]:
    """`count` of the indices, or fewer: of each group as many as its share (1 by default), the first ones."""
    groups: dict[str, list[int]] = {}
    for index in indices:
        groups.setdefault(group_of(shards.utterances[index].speaker), []).append(index)
    unit = count / sum(shares.get(name, 1.0) for name in groups)
    return sorted(i for name, group in groups.items() for i in group[: round(unit * shares.get(name, 1.0))])
