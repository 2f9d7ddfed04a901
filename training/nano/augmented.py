"""Speakers made out of those of the corpus, so that cloning meets many: `python -m training.nano.augmented --help`.

The corpus has too few voices to learn from that a voice is to be copied. Here an utterance is played at another speed,
which moves pitch and formants, and its long-term spectrum gets another shape and other band limits. A new speaker is
one such change of some utterances of one speaker. By GE2E it is as far from the old one as other people are, and the
codec keeps it (similarity of the round trip .87, to the old speaker .70; medians of 24).

Their codes are those of the codec's encoder, as a reference's are. The rest of the corpus has the autoencoder's, of
which, in the first codebook, fewer than half are the same.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from higgs.codec.tokenizer import AudioTokenizer
from higgs.data.text.lexicon import FILE as LEXICON
from higgs.train.checkpointing import load_state, save_state
from training.corpus.corpus import SECONDS
from training.corpus.shards import SAMPLE_RATE, Shards, Utterance
from training.corpus.voices import DESCRIBED, finished
from training.nano.alignment import spell_some
from training.nano.codec import trained_codec
from training.nano.conversations import coarse_speaker
from training.nano.job import hashes, job_arguments
from training.nano.mel_autoencoder import MelAutoencoder, trained_autoencoder
from training.nano.quantizer import code_shard
from training.nano.sizes import NANO_CODEC

FILE, SOURCES = "augmented.pt", (LEXICON, "quantizer.pt", "encoder.pt")
EACH = 6  # utterances of a speaker
SHARES = (0.6, 0.25)  # of speakers made out of Kokoro's, out of hibari's random ones; the rest out of the in-house ones
BANDS = (60, 150, 300, 600, 1200, 2400, 4800, 9600)  # Hz


@dataclass(frozen=True)
class Change:
    """What makes another speaker: the speed of playing, gains at `BANDS` in dB, and band limits in Hz or none."""

    played: float
    gains: tuple[float, ...]
    low_pass: float | None
    high_pass: float | None

    @classmethod
    def draw(cls, rng: random.Random, base: str) -> "Change":
        """A low voice is played faster rather than slower, a high one the reverse."""
        low, high = {"ben": (-0.1, 0.3), "kit": (-0.3, 0.1)}.get(base, (-0.22, 0.22))
        played, tilt = math.exp(rng.uniform(low, high)), rng.gauss(0, 1.5)
        gains = tuple(rng.gauss(0, 4) + tilt * (band - (len(BANDS) - 1) / 2) for band in range(len(BANDS)))
        low_pass = rng.uniform(3400, 9000) if rng.random() < 0.35 else None
        high_pass = rng.uniform(80, 300) if rng.random() < 0.35 else None
        return cls(round(played, 2), gains, low_pass, high_pass)

    def shaped(self, waveform: Tensor) -> np.ndarray:
        """[L], 24 kHz -> float32 [L] at its own speed. 40 dB an octave above the upper limit, 18 below the lower."""
        frequencies = np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE)
        octaves = np.log2(np.maximum(frequencies, 20))
        gains = np.interp(octaves, np.log2(BANDS), self.gains)
        if self.low_pass:
            gains -= 40 * np.maximum(0, octaves - math.log2(self.low_pass))
        if self.high_pass:
            gains -= 18 * np.maximum(0, math.log2(self.high_pass) - octaves)
        changed = np.fft.irfft(np.fft.rfft(waveform.numpy()) * 10 ** (gains / 20), len(waveform))
        return changed.astype(np.float32)

    def apply(self, waveform: Tensor) -> np.ndarray:
        """[L] -> int16, as the corpus has it."""
        return finished(self.shaped(waveform), self.played)


class Changed:
    """Some utterances of `shards`, changed; what `code_shard` reads of a `Shards`."""

    def __init__(self, shards: Shards, indices: Sequence[int], change: Change, speaker: str):
        self.utterances: list[Utterance] = []
        self.waveforms: list[Tensor] = []
        for index in indices:
            audio = change.apply(shards.waveform(index))
            if SECONDS[0] * SAMPLE_RATE <= len(audio) <= SECONDS[1] * SAMPLE_RATE:
                self.utterances.append(replace(shards.utterances[index], length=len(audio), speaker=speaker))
                self.waveforms.append(torch.from_numpy(audio.astype(np.float32) / 32768))

    def waveform(self, index: int) -> Tensor:
        return self.waveforms[index]


def choose_base(rng: random.Random, groups: dict[str, list[str]]) -> str:
    draw = rng.random()
    for names, share in zip(groups.values(), SHARES, strict=False):
        if draw < share and names:
            return rng.choice(names)
        draw -= share
    return rng.choice(list(DESCRIBED))


def augment(
    shards: Shards, autoencoder: MelAutoencoder, codec: AudioTokenizer, speakers: int, seed: int
) -> dict[str, list]:
    """-> texts as the model reads them, speakers, codes [K, T] and alignments [T] of `EACH` utterances a speaker.

    Alignments are by the autoencoder.
    """
    by_speaker: dict[str, list[int]] = {}
    for index in shards.training:
        by_speaker.setdefault(coarse_speaker(shards.utterances[index].speaker), []).append(index)
    enough = [name for name, indices in by_speaker.items() if len(indices) >= EACH and name not in DESCRIBED]
    groups = {
        "kokoro": [name for name in enough if "_" in name and "@" not in name],
        "random": [name for name in enough if "_" not in name],
    }
    rng, found = random.Random(seed), {"texts": [], "speakers": [], "codes": [], "aligned": []}
    for number in tqdm(range(speakers), desc="speakers", mininterval=10):
        base = choose_base(rng, groups)
        change = Change.draw(rng, base)
        changed = Changed(shards, rng.sample(by_speaker[base], k=EACH), change, f"augmented_{number}")
        texts = [spell_some(u.text, rng) for u in changed.utterances]
        _, aligned = code_shard(autoencoder, changed, texts, range(len(texts)))
        found["texts"] += texts
        found["speakers"] += [u.speaker for u in changed.utterances]
        found["codes"] += [codes.short() for codes in codec.encode(changed.waveforms)]
        found["aligned"] += aligned
    return found


def main() -> None:
    arguments = job_arguments(__doc__, 0, speakers=3000)
    out = arguments.out
    key = {"speakers": arguments.speakers, "seed": arguments.seed} | hashes(out, SOURCES)
    if (load_state(out / FILE) or {}).get("key") != key:
        autoencoder = trained_autoencoder(out, NANO_CODEC)
        codec, shards = trained_codec(autoencoder, out, NANO_CODEC), Shards(arguments.corpus)
        save_state(out / FILE, key=key, **augment(shards, autoencoder, codec, arguments.speakers, arguments.seed))


if __name__ == "__main__":
    main()
