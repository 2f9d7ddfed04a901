"""Make a corpus of synthetic English speech: `python -m training.corpus.corpus --wordnet DIR --kokoro FILE`.

The source TTS, hibari-tts, speaks in three in-house voices and in random ones (training/corpus/voices.py), Kokoro-82M
in 22 voices and mixtures of them (training/corpus/kokoro.py). Texts are WordNet's usage examples (WordNet licence;
Debian package `wordnet-base`), sentences from templates, and sentences that bring each of the 10,000 commonest words to
a few occurrences. What shares six consecutive words with the sentences of `held_out.txt` or `validation.txt` is left
out. The corpus is not shipped, but made again by this file; a shard is a function of its seed, texts and speakers, by
any number of workers, and is made again where these are others.

Output: for each shard `NAME.pcm` (int16, 24 kHz, mono, utterances one after another), `NAME.jsonl` (one record each:
offset, length, text, speaker) and `NAME.key` (a hash of what it was made from). `hibari-NN` and `kokoro-NN` are trained
on. `validation-own` has the sentences of `validation.txt` in the in-house voices, `validation-others` some of them in
Kokoro's held-out voices and mixtures.
"""

import argparse
import hashlib
import json
import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from higgs.files import replacing, write_atomically
from training.corpus.kokoro import HELD_OUT_VOICES, MIXTURES, Blend, Kokoro, blends, read_tables
from training.corpus.texts import VALIDATION, all_texts, choose_texts, read_sentences
from training.corpus.voices import IN_HOUSE, SAMPLE_RATE, choose_speaker, finished, speak

SECONDS = (0.3, 12.0)
BLENDS_PER_SHARD = 3
HELD_OUT_SENTENCES = 10  # of each held-out voice, and of each mixture of those
Speech = Iterator[tuple[np.ndarray, str, str]]  # int16 [L], text, speaker


@dataclass(frozen=True)
class Shard:
    """What one shard holds: texts by hibari's speakers, or `texts` shared out among `speakers` of Kokoro."""

    name: str
    seed: int
    texts: tuple[str, ...]
    speakers: tuple[Blend, ...] = ()
    tables: Path | None = None
    folder: Path = Path()

    @property
    def key(self) -> str:
        """A hash of what it is made from."""
        parts = self.seed, self.texts, self.speakers, self.tables and self.tables.name
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def by_hibari(shard: Shard, tts) -> Speech:
    rng = random.Random(shard.seed)
    for number, text in enumerate(shard.texts):
        speaker, speed = choose_speaker(rng), rng.uniform(0.92, 1.12)
        yield speak(tts, text, speaker, speed, shard.seed * 100_000 + number), text, speaker.name


def in_house_validation(shard: Shard, tts) -> Speech:
    for number, text in enumerate(shard.texts):
        for speaker in IN_HOUSE:
            yield speak(tts, text, speaker, 1.0, shard.seed + number), text, speaker.name


def by_kokoro(shard: Shard, tts) -> Speech:
    """Each speaker's texts; in training the first half of them resampled too, as a speaker with other formants."""
    kokoro, rng = Kokoro(shard.tables, tts), random.Random(shard.seed)
    each = len(shard.texts) // len(shard.speakers)
    validation = shard.name.startswith("validation")
    for index, blend in enumerate(shard.speakers):
        for number, text in enumerate(shard.texts[index * each : (index + 1) * each]):
            audio = kokoro.speak(text, blend, rng.uniform(0.92, 1.12))
            yield finished(audio), text, blend.name
            if 2 * number < each and not validation:
                yield finished(audio, blend.played), text, f"{blend.name}@{blend.played}"


def make_shard(shard: Shard) -> float:
    """Speaks the texts of one shard, unless it is there; returns its hours."""
    records_path, pcm_path, key_path = (shard.folder / f"{shard.name}.{end}" for end in ("jsonl", "pcm", "key"))
    if records_path.exists() and key_path.is_file() and key_path.read_text() == shard.key:
        return sum(json.loads(line)["length"] for line in records_path.open()) / SAMPLE_RATE / 3600
    from hibari import Hibari

    torch.set_num_threads(1)
    records_path.unlink(missing_ok=True)  # written last, it says that the others are whole
    offset, records = 0, []
    speech = by_kokoro if shard.speakers else in_house_validation if shard.name == "validation-own" else by_hibari
    with replacing(pcm_path) as partial, partial.open("wb") as pcm:
        for audio, text, speaker in speech(shard, Hibari()):
            if SECONDS[0] * SAMPLE_RATE <= len(audio) <= SECONDS[1] * SAMPLE_RATE:
                pcm.write(audio.tobytes())
                records.append({"offset": offset, "length": len(audio), "text": text, "speaker": speaker})
                offset += len(audio)
    write_atomically(key_path, shard.key)
    write_atomically(records_path, "".join(json.dumps(record) + "\n" for record in records))
    return offset / SAMPLE_RATE / 3600


def plan(arguments: argparse.Namespace) -> list[Shard]:
    """Every shard. Hibari and Kokoro share no text."""
    folder, archive, each = arguments.out, arguments.kokoro, arguments.sentences
    texts = all_texts(arguments.wordnet)
    voices = [name for name in read_tables(archive) if name not in HELD_OUT_VOICES]
    speakers = blends(voices, MIXTURES, seed=0)
    kokoros, texts = texts[: len(speakers) * each], texts[len(speakers) * each :]
    texts = choose_texts(texts, arguments.utterances, arguments.wordnet)
    shards = [
        Shard(f"hibari-{i:02d}", i, tuple(texts[i :: arguments.shards]), folder=folder) for i in range(arguments.shards)
    ]
    for number, start in enumerate(range(0, len(speakers), BLENDS_PER_SHARD)):
        some = tuple(speakers[start : start + BLENDS_PER_SHARD])
        some_texts = tuple(kokoros[start * each : (start + len(some)) * each])
        shards.append(Shard(f"kokoro-{number:02d}", 1000 + number, some_texts, some, archive, folder))
    sentences = read_sentences(VALIDATION)
    others = tuple(blends(list(HELD_OUT_VOICES), len(HELD_OUT_VOICES), seed=1))
    repeated = (sentences * len(others))[: HELD_OUT_SENTENCES * len(others)]
    return [
        Shard("validation-own", 2000, tuple(sentences), folder=folder),
        Shard("validation-others", 2001, tuple(repeated), others, archive, folder),
        *shards,
    ]


def remove_others(folder: Path, shards: list[Shard]) -> None:
    """Removes the shards that this file has made and that are no longer planned, as after a change of their number."""
    planned = {shard.name for shard in shards}
    for path in folder.glob("*.key"):
        if path.stem not in planned:
            for end in ("jsonl", "pcm", "key"):
                path.with_suffix(f".{end}").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wordnet", type=Path, required=True, help="folder with data.noun etc.")
    parser.add_argument("--kokoro", type=Path, required=True, help="what `npm pack kokoro-js` wrote")
    parser.add_argument("--utterances", type=int, default=25_000, help="of hibari's")
    parser.add_argument("--sentences", type=int, default=36, help="of each of Kokoro's speakers")
    parser.add_argument("--shards", type=int, default=25)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("training/out/corpus"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    shards = plan(arguments)
    remove_others(arguments.out, shards)
    with multiprocessing.Pool(arguments.workers) as pool:
        hours = sum(tqdm(pool.imap_unordered(make_shard, shards), total=len(shards), unit="shard"))
    print(f"{hours:.2f} hours in {arguments.out}")


if __name__ == "__main__":
    main()
