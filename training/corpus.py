"""Make a corpus of synthetic English speech: `python training/corpus.py --wordnet DIR`.

The teacher is hibari-tts (Apache-2.0; one voice, a harmonic-plus-noise vocoder that takes its pitch and its
spectral envelope as inputs). Played faster or slower, at a tempo that makes up for it, it has the vocal tract of
another speaker, and its pitch is an input: further speakers of the same accent, as well understood. Texts are
WordNet's usage examples (WordNet licence; Debian package `wordnet-base`), sentences from templates of our own, and
sentences that bring each of the 10,000 commonest words to five occurrences. What shares a run of six words with
the sentences of `held_out.txt` is left out. Nothing of this is shipped; the corpus is made again by running this
file.

Output: `shard-NN.pcm` (int16, 24 kHz, mono, utterances one after another) and `shard-NN.jsonl` (one row each:
offset, length, text, speaker, pitch, formant).
"""

import argparse
import json
import multiprocessing
import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from templates import template_sentences
from tqdm import tqdm
from words import covering_sentences, words_of

from higgs.audio import resample

SAMPLE_RATE = 24_000
HOP_LENGTH = 960


@dataclass(frozen=True)
class Speaker:
    """A speaker made from the teacher's voice: pitch and formant frequencies are multiplied."""

    name: str
    pitch: float
    formant: float


ADA = Speaker("ada", 1.0, 1.0)
BEN = Speaker("ben", 0.76, 0.84)
KIT = Speaker("kit", 1.3, 1.18)
RUN = 6  # words


def random_speaker(rng: random.Random) -> Speaker:
    """Low voices have long vocal tracks: pitch and formant scale are correlated."""
    pitch = rng.uniform(0.6, 1.4)
    formant = min(1.22, max(0.8, 0.98 + 0.42 * (pitch - 0.98) + rng.gauss(0, 0.04)))
    return Speaker(f"p{pitch:.2f}f{formant:.2f}", round(pitch, 3), round(formant, 2))


def wordnet_sentences(folder: Path) -> list[str]:
    """The usage examples in WordNet's glosses that are plain sentences of 3 to 14 words."""
    found = set()
    for name in ("data.noun", "data.verb", "data.adj", "data.adv"):
        for line in (folder / name).read_text(encoding="latin-1").splitlines():
            for example in re.findall(r'"([^"]+)"', line.partition("|")[2]):
                text = example.strip(" ;:,-")
                if 3 <= len(text.split()) <= 14 and re.fullmatch(r"[A-Za-z ,.'?!;-]+", text):
                    text = text[0].upper() + text[1:]
                    found.add(text if text[-1] in ".?!" else text + ".")
    return sorted(found)


def trimmed(audio: np.ndarray) -> np.ndarray:
    """[L], whole frames -> the frames from one before to two behind those within 45 dB of the loudest."""
    frames = audio.astype(np.float32).reshape(-1, HOP_LENGTH)
    power = (frames**2).mean(1)
    (loud,) = np.nonzero(power > power.max(initial=0.0) * 10**-4.5)
    if not len(loud):
        return audio
    return frames[max(0, loud[0] - 1) : loud[-1] + 3].reshape(-1)


def speak(teacher, text: str, speaker: Speaker, speed: float, seed: int) -> np.ndarray:
    """-> int16 [L], L a multiple of the codec's hop, peak at -3 dBFS, without the silence before and behind."""
    from hibari import dsp

    rng, parts = np.random.default_rng(seed), []
    for phonemes in teacher.phonemize(text):
        feeds = {
            "ids": np.asarray([teacher.ids(phonemes)], np.int64),
            "speed": np.asarray([speed / speaker.formant], np.float32),
        }
        lh, th, ln, lr, phi, f0 = (output[0] for output in teacher.sess.run(None, feeds))
        parts.append(dsp.synth(lh, th, ln, lr, phi, f0 * (speaker.pitch / speaker.formant), rng))
    audio = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if speaker.formant != 1.0:
        played_at = round(SAMPLE_RATE * speaker.formant)
        audio = resample(torch.from_numpy(audio), played_at, SAMPLE_RATE).numpy()
    audio = trimmed(np.pad(audio, (0, -len(audio) % HOP_LENGTH)))
    peak = max(float(np.abs(audio).max(initial=0.0)), 1e-6)
    return (audio * (0.7 * 32767 / peak)).astype(np.int16)


def choose_speaker(rng: random.Random) -> Speaker:
    draw = rng.random()
    own = ADA if draw < 0.4 else BEN if draw < 0.6 else KIT
    return own if draw < 0.72 else random_speaker(rng)


def runs(text: str) -> set[tuple[str, ...]]:
    """Every run of RUN words, or the whole of a shorter text."""
    words = words_of(text)
    return {tuple(words[i : i + RUN]) for i in range(max(1, len(words) - RUN + 1))}


def all_texts(wordnet: Path, held_out: Path) -> list[str]:
    """WordNet's sentences and a quarter of their number from templates, shuffled, without what is judged."""
    lines = held_out.read_text(encoding="utf-8").splitlines()
    judged = {run for line in lines if not line.startswith("#") for run in runs(line)}
    texts = wordnet_sentences(wordnet)
    texts += template_sentences(len(texts) // 4)
    texts = [text for text in texts if not runs(text) & judged]
    random.Random(0).shuffle(texts)
    return texts


def choose_texts(texts: list[str], count: int, wordnet: Path) -> list[str]:
    """`count` texts: as many of `texts` as the sentences that cover the commonest words leave room for.

    A corpus that is too small for those, made to try the pipeline, does without them.
    """
    room = count - len(covering_sentences(texts[: count * 4 // 5], wordnet))
    if room <= 0:
        print(f"{count} utterances: the commonest words are not all in them")
        return texts[:count]
    chosen = texts[:room]
    chosen += covering_sentences(chosen, wordnet)
    random.Random(1).shuffle(chosen)
    return chosen


def make_shard(job: tuple[int, list[str], Path]) -> float:
    """Speaks texts into one shard; returns its hours. Finished shards are kept."""
    index, texts, folder = job
    rows_path = folder / f"shard-{index:02d}.jsonl"
    if rows_path.exists():
        return sum(json.loads(row)["length"] for row in rows_path.open()) / SAMPLE_RATE / 3600
    from hibari import Hibari

    torch.set_num_threads(1)
    teacher, rng, offset, rows = Hibari(), random.Random(index), 0, []
    pcm_path = folder / f"shard-{index:02d}.pcm"
    with pcm_path.open("wb") as pcm:
        for number, text in enumerate(texts):
            speaker = choose_speaker(rng)
            audio = speak(teacher, text, speaker, rng.uniform(0.92, 1.12), index * 100_000 + number)
            if not 0.3 * SAMPLE_RATE <= len(audio) <= 12 * SAMPLE_RATE:
                continue
            pcm.write(audio.tobytes())
            rows.append(
                {
                    "offset": offset,
                    "length": len(audio),
                    "text": text,
                    "speaker": speaker.name,
                    "pitch": speaker.pitch,
                    "formant": speaker.formant,
                }
            )
            offset += len(audio)
    partial = rows_path.with_suffix(".tmp")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    partial.rename(rows_path)
    return offset / SAMPLE_RATE / 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wordnet", type=Path, required=True, help="folder with data.noun etc.")
    parser.add_argument("--held-out", type=Path, default=Path("training/held_out.txt"))
    parser.add_argument("--utterances", type=int, default=42_000)
    parser.add_argument("--shards", type=int, default=42)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("training/out/corpus"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    texts = all_texts(arguments.wordnet, arguments.held_out)
    texts = choose_texts(texts, arguments.utterances, arguments.wordnet)
    jobs = [
        (index, texts[index :: arguments.shards], arguments.out)
        for index in range(arguments.shards)
    ]
    with multiprocessing.Pool(arguments.workers) as pool:
        made = sum(tqdm(pool.imap_unordered(make_shard, jobs), total=len(jobs), unit="shard"))
    print(f"{made:.2f} hours in {arguments.out}")


if __name__ == "__main__":
    main()
