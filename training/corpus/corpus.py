"""Make a corpus of synthetic English speech: `python -m training.corpus.corpus --wordnet DIR --kokoro FILE`.

hibari-tts speaks in three voices of its own and in others drawn at random (training/corpus/voices.py), Kokoro-82M in 22
voices and mixtures of them (training/corpus/kokoro.py). Texts are WordNet's usage examples (WordNet licence; Debian
package `wordnet-base`), sentences from templates of our own, and sentences that bring each of the 10,000 commonest
words to a few occurrences. What shares a run of six words with the sentences of `held_out.txt` or `validation.txt` is
left out. Nothing of this is shipped; the corpus is made again by running this file, by any number of workers alike: a
shard is a function of its name and its texts.

Output: for each shard `NAME.pcm` (int16, 24 kHz, mono, utterances one after another) and `NAME.jsonl` (one record
each: offset, length, text, speaker). `hibari-NN` and `kokoro-NN` are trained on. `validation-own` holds the sentences
of `validation.txt` in the own voices, `validation-others` some of them in Kokoro's voices that were kept out and in
mixtures of those.
"""

import argparse
import json
import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from higgs.files import replacing
from training.corpus.kokoro import (
    KEPT_OUT,
    MIXTURES,
    Blend,
    Kokoro,
    blends,
    read_tables,
    training_voices,
)
from training.corpus.texts import JUDGED, all_texts, choose_texts, read_sentences
from training.corpus.voices import OWN, SAMPLE_RATE, choose_speaker, speak

SECONDS = (0.3, 12.0)
BLENDS_A_SHARD = 3
KEPT_OUT_SENTENCES = 10  # of each voice that is kept out, and of each mixture of those
Spoken = Iterator[tuple[np.ndarray, str, str]]  # int16 [L], text, speaker


@dataclass(frozen=True)
class Shard:
    """What one shard holds: texts by hibari's speakers, or `texts` shared out among `speakers` of Kokoro."""

    name: str
    seed: int
    texts: tuple[str, ...]
    speakers: tuple[Blend, ...] = ()
    tables: Path | None = None
    folder: Path = Path()


def by_hibari(shard: Shard, teacher) -> Spoken:
    rng = random.Random(shard.seed)
    for number, text in enumerate(shard.texts):
        speaker, speed = choose_speaker(rng), rng.uniform(0.92, 1.12)
        audio = speak(teacher, text, speaker, speed, shard.seed * 100_000 + number)
        yield audio, text, speaker.name


def own_validation(shard: Shard, teacher) -> Spoken:
    for number, text in enumerate(shard.texts):
        for speaker in OWN:
            yield speak(teacher, text, speaker, 1.0, shard.seed + number), text, speaker.name


def by_kokoro(shard: Shard, teacher) -> Spoken:
    """Each speaker's texts; in training the first half of them at the other speed too, by a speaker of that name."""
    kokoro, rng = Kokoro(shard.tables, teacher), random.Random(shard.seed)
    each = len(shard.texts) // len(shard.speakers)
    validation = shard.name.startswith("validation")
    for place, blend in enumerate(shard.speakers):
        for number, text in enumerate(shard.texts[place * each : (place + 1) * each]):
            audio, faster = kokoro.both(text, blend, rng.uniform(0.92, 1.12))
            yield audio, text, blend.name
            if 2 * number < each and not validation:
                yield faster, text, f"{blend.name}@{blend.played}"


def make_shard(shard: Shard) -> float:
    """Speaks the texts of one shard; returns its hours. Finished shards are kept."""
    rows_path, pcm_path = (shard.folder / f"{shard.name}.{end}" for end in ("jsonl", "pcm"))
    if rows_path.exists():
        return sum(json.loads(row)["length"] for row in rows_path.open()) / SAMPLE_RATE / 3600
    from hibari import Hibari

    torch.set_num_threads(1)
    offset, rows = 0, []
    way = by_kokoro if shard.speakers else own_validation if shard.name == "validation-own" else by_hibari
    with replacing(pcm_path) as partial, partial.open("wb") as pcm:
        for audio, text, speaker in way(shard, Hibari()):
            if not SECONDS[0] * SAMPLE_RATE <= len(audio) <= SECONDS[1] * SAMPLE_RATE:
                continue
            pcm.write(audio.tobytes())
            rows.append({"offset": offset, "length": len(audio), "text": text, "speaker": speaker})
            offset += len(audio)
    with replacing(rows_path) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return offset / SAMPLE_RATE / 3600


def plan(arguments: argparse.Namespace) -> list[Shard]:
    """Every shard. Kokoro's texts are those that hibari has not said."""
    folder, tables, each = arguments.out, arguments.kokoro, arguments.sentences
    texts = all_texts(arguments.wordnet)
    speakers = blends(training_voices(read_tables(tables)), MIXTURES, seed=0)
    count = len(speakers) * each
    theirs, texts = texts[:count], texts[count:]
    texts = choose_texts(texts, arguments.utterances, arguments.wordnet)
    shards = [
        Shard(f"hibari-{i:02d}", i, tuple(texts[i :: arguments.shards]), folder=folder) for i in range(arguments.shards)
    ]
    for number, at in enumerate(range(0, len(speakers), BLENDS_A_SHARD)):
        some = tuple(speakers[at : at + BLENDS_A_SHARD])
        said = tuple(theirs[at * each : (at + len(some)) * each])
        shards.append(Shard(f"kokoro-{number:02d}", 1000 + number, said, some, tables, folder))
    own = read_sentences(JUDGED[1])
    others = tuple(blends(list(KEPT_OUT), len(KEPT_OUT), seed=1))
    said = (own * len(others))[: KEPT_OUT_SENTENCES * len(others)]
    return [
        Shard("validation-own", 2000, tuple(own), folder=folder),
        Shard("validation-others", 2001, tuple(said), others, tables, folder),
        *shards,
    ]


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
    with multiprocessing.Pool(arguments.workers) as pool:
        made = sum(tqdm(pool.imap_unordered(make_shard, shards), total=len(shards), unit="shard"))
    print(f"{made:.2f} hours in {arguments.out}")


if __name__ == "__main__":
    main()
